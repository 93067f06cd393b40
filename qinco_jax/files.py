"""Small files that appear whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a place beside `path` to write to, which takes the name `path` at the end.

    An exception inside removes it.
    """
    target = Path(path)
    partial = target.with_name(f".{uuid.uuid4().hex[:8]}-{target.name}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
