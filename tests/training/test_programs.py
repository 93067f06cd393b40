"""How many programs are compiled before the first result: each takes a GPU a tenth of a second."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import pytest
from killed import CONFIG, RECIPE, vectors

import qinco_jax as qj

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def programs() -> Iterator[list[str]]:
    """The names of those that were compiled, or taken from a cache on disk, in this test."""
    names: list[str] = []

    def count(event: str, _: float, **facts: Any) -> None:
        if event == COMPILED:
            names.append(str(facts.get("fun_name")))

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(count)
    yield names
    jax.monitoring.unregister_event_duration_listener(count)


def test_training_compiles_few_programs(programs: list[str]) -> None:
    qj.train(vectors(), CONFIG, RECIPE, mix=0.0, num_epochs=1)
    assert len(programs) <= 14, programs


def test_a_model_from_disk_needs_one_program_besides_those_of_encode_and_decode(
    tmp_path: Path, programs: list[str]
) -> None:
    x = vectors()
    qj.save(qj.train(x, CONFIG, num_epochs=0), tmp_path / "model")
    jax.clear_caches()
    programs.clear()
    codes = qj.encode(qj.load(tmp_path / "model"), x)
    qj.decode(qj.load(tmp_path / "model"), codes)
    assert sorted(programs) == ["jit(_chunk)", "jit(_chunk)", "jit(prepared_from)"]
