"""Files of other programs: each message has a line of Python, which does what it says."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
import scipy.io

from qinco_jax import InputError
from qinco_jax.vectors.shards import read_rows

X = np.arange(12, dtype=np.float32).reshape(4, 3)
WRITERS: dict[str, Callable[[Path], object]] = {
    ".csv": lambda path: np.savetxt(path, X, delimiter=","),
    ".tsv": lambda path: np.savetxt(path, X, delimiter="\t"),
    ".txt": lambda path: np.savetxt(path, X),
    ".json": lambda path: path.write_text(json.dumps(X.tolist())),
    ".jsonl": lambda path: path.write_text(
        "".join(json.dumps({"embedding": row.tolist()}) + "\n" for row in X)
    ),
    ".pkl": lambda path: path.write_bytes(pickle.dumps(X)),
    ".feather": lambda path: pa.feather.write_feather(pa.table({"x": list(X)}), str(path)),
    ".mat": lambda path: scipy.io.savemat(path, {"NAME": X}),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_the_line_that_a_message_gives_converts_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.chdir(tmp_path)
    WRITERS[ending](Path(f"my x{ending}"))
    with pytest.raises(InputError, match=r"unknown ending.*; convert it in Python: ") as error:
        read_rows(f"my x{ending}")
    exec(str(error.value).partition("in Python: ")[2], {})
    (made,) = set(Path().iterdir()) - {Path(f"my x{ending}")}
    np.testing.assert_array_equal(read_rows(made), X)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x", "has no ending; it must be one of .npy"),
        ("x.NPY", r"an unknown ending; it must be one of .*, in lower case"),
        ("x.npy.gz", r"unknown ending.*; unpack it first \(gunzip .*x\.npy\.gz\)"),
        ("x.pt", r"; convert it in Python: .*torch.load\('.*x.pt'\)"),
        ("x.abc", r"an unknown ending; .*\.npz$"),
    ],
)
def test_other_endings(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"1")
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / name)
