"""Packing of codes, against an oracle that works bit by bit."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinco_jax import InputError
from qinco_jax.quantizers.packing import code_bytes, code_dtype, pack, unpack

SIZES = [2**bits for bits in range(1, 17)]


def random_codes(rows, steps, codebook_size, seed=0):
    codes = np.random.default_rng(seed).integers(0, codebook_size, (rows, steps))
    return codes.astype(code_dtype(codebook_size))


def pack_slowly(codes, codebook_size):
    bits = (codebook_size - 1).bit_length()
    packed = np.zeros((len(codes), -(-codes.shape[1] * bits // 8)), np.uint8)
    for row, column in np.ndindex(codes.shape):
        for bit in range(bits):
            place = column * bits + bit
            packed[row, place // 8] |= (int(codes[row, column]) >> bit & 1) << place % 8
    return packed


@settings(max_examples=100, deadline=None)
@given(
    codebook_size=st.sampled_from(SIZES),
    rows=st.integers(0, 9),
    steps=st.integers(1, 17),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([None, np.int32, np.int64, np.uint32, ">i4"]),
)
def test_against_oracle(codebook_size, rows, steps, seed, dtype):
    codes = random_codes(rows, steps, codebook_size, seed)
    packed = pack(codes if dtype is None else codes.astype(dtype), codebook_size)
    assert packed.dtype == np.uint8
    assert packed.shape == (rows, code_bytes(steps, codebook_size))
    np.testing.assert_array_equal(packed, pack_slowly(codes, codebook_size))
    back = unpack(packed, steps, codebook_size)
    assert back.dtype == code_dtype(codebook_size)
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("codebook_size", SIZES)
def test_against_faiss(codebook_size):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its generated bindings
        faiss = pytest.importorskip("faiss")
    codes = random_codes(50, 9, codebook_size)
    expected = faiss.pack_bitstrings(codes.astype(np.int32), codebook_size.bit_length() - 1)
    np.testing.assert_array_equal(pack(codes, codebook_size), expected)


@pytest.mark.parametrize("codebook_size", [256, 65536])
def test_whole_bytes_are_not_copied(codebook_size):
    codes = random_codes(6, 5, codebook_size)
    packed = pack(codes, codebook_size)
    assert np.shares_memory(packed, codes)
    assert np.shares_memory(unpack(packed, 5, codebook_size), codes)


@pytest.mark.parametrize("codebook_size", [16, 256, 65536])
def test_any_memory_order(codebook_size):
    codes = random_codes(6, 5, codebook_size)
    packed = pack(codes, codebook_size)
    np.testing.assert_array_equal(pack(np.asfortranarray(codes), codebook_size), packed)
    np.testing.assert_array_equal(pack(codes[::-1], codebook_size), packed[::-1])
    back = unpack(np.asfortranarray(packed), 5, codebook_size)
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("codebook_size", [32, 256, 65536])
def test_unpacks_a_mapped_file(tmp_path, codebook_size):
    codes = random_codes(20, 7, codebook_size)
    np.save(tmp_path / "codes.npy", pack(codes, codebook_size))
    packed = np.load(tmp_path / "codes.npy", mmap_mode="r")
    np.testing.assert_array_equal(unpack(packed, 7, codebook_size), codes)


@pytest.mark.parametrize("codebook_size", [-2, 0, 1, 3, 100, 257, 2**17])
def test_refuses_sizes_that_are_no_powers_of_two(codebook_size):
    inside = 2 <= codebook_size <= 65_536
    message = f"{codebook_size} codewords cannot be packed" if inside else "must be 2 to 65,536"
    with pytest.raises(InputError, match=message):
        code_bytes(4, codebook_size)
    with pytest.raises(InputError, match=message):
        pack(np.zeros((1, 4), np.uint8), codebook_size)
    with pytest.raises(InputError, match=message):
        unpack(np.zeros((1, 4), np.uint8), 4, codebook_size)


@pytest.mark.parametrize("bad", [-1, 32, 2**40])
def test_refuses_codes_out_of_range(bad):
    codes = np.zeros((3, 4), np.int64)
    codes[2, 1] = bad
    with pytest.raises(InputError, match=rf"code {bad} in row 2, column 1 is outside 0\.\.31"):
        pack(codes, 32)


@pytest.mark.parametrize(
    "codes", [np.zeros(4, int), np.zeros((2, 0), int), np.zeros((2, 4)), np.zeros((2, 4), bool)]
)
def test_refuses_what_are_no_codes(codes):
    with pytest.raises(InputError, match=r"codes have shape .* pass integers \[N, M\]"):
        pack(codes, 256)


def test_sizes_are_integers_of_any_kind():
    codes = random_codes(3, 4, 16)
    packed = pack(codes, np.uint8(16))
    np.testing.assert_array_equal(unpack(packed, np.int64(4), np.int64(16)), codes)
    for wrong, message in (
        (lambda: pack(16, codes), "codebook_size must be an integer, got an object of type nd"),
        (lambda: pack(codes, "16"), "codebook_size must be an integer, got '16'"),
        (lambda: unpack(4, packed, 16), "num_steps must be an integer, got an object of type nd"),
        (lambda: pack([[1, 2], [3]], 16), "codes must be an array, but its parts have different"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()


@pytest.mark.parametrize(
    "packed",
    [
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 4), np.uint8),
        np.zeros(3, np.uint8),
        np.zeros((2, 3), np.int8),
    ],
)
def test_refuses_packed_codes_of_another_model(packed):
    with pytest.raises(InputError, match=r"4 steps with 32 codewords take uint8 \[N, 3\]"):
        unpack(packed, 4, 32)


def test_refuses_bits_behind_the_last_code():
    packed = pack(random_codes(3, 4, 32), 32)  # 20 bits in 3 bytes
    for bit in range(4, 8):
        damaged = packed.copy()
        damaged[1, 2] |= 1 << bit
        with pytest.raises(InputError, match="bits set behind their last code"):
            unpack(damaged, 4, 32)
