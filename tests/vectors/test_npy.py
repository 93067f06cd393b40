"""Arrays in Fortran order or of the other byte order are rows of this machine, in every format."""

import tempfile
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qinco_jax.vectors import formats
from qinco_jax.vectors.shards import read_rows
from qinco_jax.vectors.stored import Stored


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["f2", "f4", "f8", "i1", "i2", "u4", "i8", "bfloat16"]),
    swapped=st.booleans(),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    data=st.data(),
)
def test_any_order_and_byte_order_is_read_as_rows_of_this_machine(
    dtype: str, swapped: bool, rows: int, columns: int, data: st.DataObject
) -> None:
    x = np.random.default_rng(rows).integers(0, 100, (rows, columns)).astype(np.dtype(dtype))
    swapped &= dtype != "bfloat16"  # which NumPy writes as V2, without a byte order
    stored = x.astype(x.dtype.newbyteorder("S")) if swapped else x
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "x.npy"), np.asfortranarray(stored))
        found = formats.read(Path(folder, "x.npy"))
        in_place = min(rows, columns) == 1 and stored.dtype == x.dtype
        assert isinstance(found, np.memmap if in_place else Stored)
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(found, x)
        chosen = data.draw(st.lists(st.integers(-rows, rows - 1), max_size=9))
        np.testing.assert_array_equal(found[np.int64(chosen)], x[np.int64(chosen)])
        window = data.draw(st.slices(rows))
        np.testing.assert_array_equal(found[window], x[window])


def test_a_file_in_fortran_order_is_read_in_blocks(tmp_path: Path) -> None:
    """A gigabyte, of which only holes are on the disk."""
    with (tmp_path / "x.npy").open("wb") as file:
        about = {"descr": ">f4", "fortran_order": True, "shape": (2**20, 256)}
        np.lib.format.write_array_header_1_0(file, about)
        file.truncate(file.tell() + 2**30)
    rows = formats.read(tmp_path / "x.npy")
    assert isinstance(rows, Stored) and rows.block_rows == 1024
    tracemalloc.start()
    for found in (np.asarray(rows[2**19 : 2**19 + 5]), rows[[3, 2**20 - 1]]):
        assert found.shape[1] == 256 and not found.any()
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_containers_may_hold_them_too(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    swapped = x.astype(">f4")
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("whole", data=swapped)
        file.create_dataset("chunks", data=swapped, chunks=(32, 8), compression="gzip")
    for save, name in ((np.savez, "x.npz"), (np.savez_compressed, "y.npz")):
        save(tmp_path / name, swapped=swapped, columns=np.asfortranarray(x))
    places = "x.hdf5::whole", "x.hdf5::chunks"
    for place in (*places, *(f"{a}.npz::{b}" for a in "xy" for b in ("swapped", "columns"))):
        rows = read_rows(tmp_path / place)
        assert isinstance(rows, Stored) and rows.dtype == np.float32
        np.testing.assert_array_equal(rows, x)
        np.testing.assert_array_equal(rows[[7, -1, 7]], x[[7, -1, 7]])
