"""Vectors, and files that hold them in each way that containers do."""

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from qinco_jax.vectors import npy
from qinco_jax.vectors.stored import Rows

X = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)


def lists_of(x: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])


def write_parquet(path: Path, group: int = 100, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def write_hdf5(path: Path, chunks: tuple[int, int] | None = None, **datasets: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, x in datasets.items():
            file.create_dataset(name, data=x, chunks=chunks, compression=chunks and "gzip")
    return path


def every_kind(folder: Path, x: np.ndarray) -> dict[str, Path]:
    """The same vectors in each way that containers hold them."""
    save_file({"emb": x}, folder / "x.safetensors")
    np.savez(folder / "x.npz", emb=x)
    np.savez_compressed(folder / "y.npz", emb=x)
    found = {
        "tensor": folder / "x.safetensors", "member": folder / "x.npz",
        "compressed member": folder / "y.npz",
    }  # fmt: skip
    if x.dtype != npy.BFLOAT16:
        found["contiguous"] = write_hdf5(folder / "x.hdf5", emb=x)
        found["chunked"] = write_hdf5(folder / "y.h5", chunks=(32, x.shape[1]), emb=x)
        found["fixed lists"] = write_parquet(folder / "x.parquet", emb=lists_of(x))
        found["lists"] = write_parquet(folder / "y.parquet", emb=lists_of(x).cast(
            pa.list_(pa.from_numpy_dtype(x.dtype))))  # fmt: skip
    return found


def same(stored: Rows, x: np.ndarray) -> None:
    assert (stored.shape, stored.dtype, stored.ndim) == (x.shape, x.dtype, 2)
    np.testing.assert_array_equal(stored, x)
    rows = np.random.default_rng(1).integers(-len(x), len(x), 50)
    np.testing.assert_array_equal(stored[rows], x[rows])
    np.testing.assert_array_equal(stored[7:50][3:9], x[10:16])


NUMBERS = {  # numbers that each format takes
    ".fvecs": "f4", ".fbin": "f4", ".ivecs": "i4", ".ibin": "i4", ".bvecs": "u1", ".u8bin": "u1",
    ".i8bin": "i1",
}  # fmt: skip
