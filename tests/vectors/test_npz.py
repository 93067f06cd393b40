"""What `.npz` files hold besides vectors, and damage; `test_containers` has what kinds share."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qinco_jax import InputError
from qinco_jax.vectors.shards import read_rows

X = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)


def test_members_of_npz_that_are_not_vectors(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    cases = {
        "object (2, 2)": np.full((2, 2), None), "(300,)": X[:, 0], "(2, 3, 4)": np.zeros((2, 3, 4)),
        "bool (2, 2)": np.zeros((2, 2), bool),
    }  # fmt: skip
    for what, x in cases.items():
        np.savez(path, a=x, labels=np.arange(3))
        for source in (path, f"{path}::a"):
            with pytest.raises(
                InputError, match=re.escape(what) + ".*labels.*save them .*\\[N, D\\]"
            ):
                read_rows(source)
    np.savez(path, a=X, labels=np.arange(3))
    np.testing.assert_array_equal(read_rows(path), X)  # the only matrix
    np.savez(path, a=X[:0])
    with pytest.raises(InputError, match="has no rows"):
        read_rows(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        np.save(tmp_path / "a.npy", X)
        archive.write(tmp_path / "a.npy", "a.npy")
    with pytest.raises(InputError, match=r"a\.npy in .*x\.npz is not compressed as NumPy does it"):
        read_rows(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"no array")
    with pytest.raises(InputError, match=r"a\.npy in .*x\.npz is not a \.npy file"):
        read_rows(path)
    path.write_bytes(b"PK but no more")
    with pytest.raises(InputError, match=r"x\.npz cannot be read \(File is not a zip file\)"):
        read_rows(path)


def test_a_damaged_compressed_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=X)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npz cannot be read \(.*fetch or write it again"):
        read_rows(path)
