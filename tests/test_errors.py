"""What messages suggest for a name that nobody knows, and how they count."""

import pytest

from qinco_jax.errors import unknown

KNOWN = ["mix", "num_steps", "final_rate", "qinco1", "qinco2-S", "qinco2-M", "sift-photos"]


def test_a_name_of_any_length_is_refused_at_once_and_briefly() -> None:
    assert unknown("name", "x" * 10**7, KNOWN) == (
        f"unknown name {'x' * 60!r}...; known: {', '.join(KNOWN)}"
    )


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("qinco2-m", ["qinco2-M"]),  # by case, not another that is as near
        ("Sift_Photo", ["sift-photos"]),
        ("steps", ["num_steps"]),
        ("num_setps", ["num_steps"]),
        ("qinco2", ["qinco2-S", "qinco2-M"]),
        ("frate", ["final_rate"]),
        *((name, []) for name in ("max", "qinco3", "x", "")),
    ],
)
def test_what_is_near_is_suggested_and_else_all_is_listed(name: str, suggested: list[str]) -> None:
    hint = f"did you mean {' or '.join(map(repr, suggested))}?"
    assert unknown("name", name, KNOWN) == (
        f"unknown name {name!r}; {hint if suggested else 'known: ' + ', '.join(KNOWN)}"
    )
