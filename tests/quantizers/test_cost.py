"""What the compiler says encode and decode cost: no more than the arithmetic needs."""

import functools

import jax
import jax.numpy as jnp
import oracle
import pytest

import qinco_jax as qj
from qinco_jax.quantizers import qinco

D, E, H, L, K, ROWS = 32, 48, 64, 3, 128, 16
CONFIG = qj.QincoConfig(
    dim=D, num_steps=2, codebook_size=K, embed_dim=E, hidden_dim=H, num_blocks=L, num_candidates=8
)
MODEL = oracle.random_model(CONFIG)
PER_CANDIDATE = 2 * ((2 * L - 1) * E * H + E * D)  # no W, no first up-projection, no P_in
PER_ENTRY = 2 * (K * D + D * E + E * H)  # pre-selection, and the context's part
MARGIN = 1.1  # sums, distances, choices


@functools.cache
def encode_flops(num_candidates: int, beam_size: int, joint: bool = False) -> float:
    """Of one row, by the compiler's count."""
    search = qinco.Search(num_candidates, beam_size, joint)
    encode = jax.jit(lambda prepared, rows: prepared.encode(rows, search))
    prepared = jax.eval_shape(qj.Qinco.prepare, MODEL)
    rows = jax.ShapeDtypeStruct((ROWS, D), jnp.float32)
    return encode.lower(prepared, rows).compile().cost_analysis()["flops"] / ROWS


@pytest.mark.parametrize("joint", [False, True])
def test_a_candidate_costs_its_part_of_the_network(joint: bool) -> None:
    more, fewer = encode_flops(16, 8, joint), encode_flops(8, 8, joint)
    assert PER_CANDIDATE <= (more - fewer) / 64 < MARGIN * PER_CANDIDATE


@pytest.mark.parametrize("joint", [False, True])
def test_a_partial_code_costs_one_preselection_and_one_context(joint: bool) -> None:
    expected = 8 * (PER_ENTRY + 4 * PER_CANDIDATE)
    assert expected <= encode_flops(4, 16, joint) - encode_flops(4, 8, joint) < MARGIN * expected


def test_decoding_costs_one_candidate_a_step() -> None:
    prepared = jax.eval_shape(qj.Qinco.prepare, MODEL)
    codes = jax.ShapeDtypeStruct((ROWS, 2), jnp.uint8)
    compiled = jax.jit(qinco.Prepared.decode).lower(prepared, codes).compile()
    expected = 2 * (D * E + E * H) + PER_CANDIDATE
    assert expected <= compiled.cost_analysis()["flops"] / ROWS < MARGIN * expected


def test_memory_grows_with_the_block_and_not_with_the_rows() -> None:
    def temporary(num_rows: int) -> int:
        encode = jax.jit(lambda model, x: qj.encode(model, x))
        rows = jax.ShapeDtypeStruct((num_rows, D), jnp.uint8)
        return encode.lower(MODEL, rows).compile().memory_analysis().temp_size_in_bytes

    small, large = 10_000, 100_000
    assert temporary(large) - temporary(small) < 2 * (large - small) * (D + 2)  # beyond in and out
