"""Files of other programs that may hold vectors, and how each is converted to one that is read."""

from collections.abc import Sequence
from pathlib import Path

from qinco_jax.remote.paths import AnyPath

TEXT = "import numpy as np; np.save({target!r}, np.loadtxt({path!r}, np.float32{options}, ndmin=2))"
FEATHER = (
    "import pyarrow.feather as f, pyarrow.parquet as p; "
    "p.write_table(f.read_table({path!r}), {target!r})"
)
TORCH = "import numpy as np, torch; np.save({target!r}, torch.load({path!r}).float().numpy())"
PICKLE = (
    "import numpy as np; "
    "np.save({target!r}, np.array(np.load({path!r}, allow_pickle=True), np.float32))"
)
JSON = (
    "import json, pathlib, numpy as np; text = pathlib.Path({path!r}).read_text(); "
    "np.save({target!r}, np.array(json.loads(text), np.float32))"
)
LINES = (
    "import json, pathlib, numpy as np; text = pathlib.Path({path!r}).read_text(); "
    "np.save({target!r}, np.array([json.loads(line)['embedding'] for line in text.splitlines()], "
    "np.float32))"
)
MATLAB = "import numpy as np, scipy.io; np.save({target!r}, scipy.io.loadmat({path!r})['NAME'])"
SNIPPETS = {
    ".csv": TEXT.replace("{options}", ", delimiter=','"),
    ".tsv": TEXT.replace("{options}", ", delimiter='\\t'"),
    ".txt": TEXT.replace("{options}", ""),
    ".json": JSON,
    ".jsonl": LINES,
    ".pkl": PICKLE,
    ".pickle": PICKLE,
    ".pt": TORCH,
    ".pth": TORCH,
    ".feather": FEATHER,
    ".mat": MATLAB,
}
"""A line of Python for each ending."""
BEGINNINGS = {
    b"\x93NUMPY": ".npy",
    b"PK\x03\x04": ".npz",
    b"\x89HDF\r\n": ".hdf5",
    b"PAR1": ".parquet",
    b"\x1f\x8b": ".gz",
    b"\x80": ".pkl",
}
"""The first bytes of files of some formats."""


def unread(path: AnyPath, known: Sequence[str]) -> str:
    """Why a file is not read that has none of the `known` endings, and what to do, as text."""
    ending = path.suffix
    what = f"{path} has {'an unknown' if ending else 'no'} ending; it must be one of"
    return f"{what} {', '.join(known)}{_remedy(path, known)}"


def _remedy(path: AnyPath, known: Sequence[str]) -> str:
    if ".npz" not in known:  # codes or centroids, which are in files of ours
        return ""
    if path.suffix.lower() in known:
        return ", in lower case"
    if path.suffix == ".gz":
        return f"; unpack it first (gunzip {path})"
    line = conversion(path)
    return f"; convert it in Python: {line}" if line else ""


def conversion(path: AnyPath) -> str | None:
    """A line of Python that converts a file to one that is read; `None` if none is known."""
    if not isinstance(path, Path) or path.suffix.lower() not in SNIPPETS:
        return None
    snippet = SNIPPETS[path.suffix.lower()]
    target = path.with_suffix(".parquet" if snippet is FEATHER else ".npy").name
    return snippet.format(path=str(path), target=target)


def told_by(start: bytes) -> str | None:
    """The ending that fits the first bytes of a file, if they tell."""
    found = (ending for begin, ending in BEGINNINGS.items() if start.startswith(begin))
    return next(found, None)
