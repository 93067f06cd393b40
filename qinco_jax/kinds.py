"""What a folder or file is, for messages where something else was meant."""

import os
from pathlib import Path
from typing import Protocol

MODEL, RUN, INDEX, SHARDS = "model.json", "run.json", "index.json", "shards.json"
"""The file that is looked for first in each kind of folder."""
LISTS, ARRAYS = "lists.faiss", "arrays"
"""What an index and a model also hold."""
KINDS = {
    "an index in shards": (SHARDS,),
    "an index": (INDEX, LISTS),
    "the folder of a run": (RUN,),
    "a model": (MODEL, ARRAYS),
}
"""What each kind of folder holds."""
MODEL_ENTRY = "qinco_jax"
"""The entry in the metadata of a `.safetensors` file that holds a model."""


class Place(Protocol):
    """A path, which may be remote."""

    def __truediv__(self, name: str, /) -> "Place": ...
    def exists(self) -> bool:
        """Whether anything is there."""


def kind_of(folder: Place) -> str | None:
    """What a folder is, such as "a model"; `None` if it is nothing of ours."""
    for kind, names in KINDS.items():
        if all((folder / name).exists() for name in names):
            return kind
    return None


def instead(folder: Path, file: str) -> str:
    """What is at a path where a folder with a certain file was expected, as text."""
    if not os.path.lexists(folder):
        return "there is no such file or folder"
    if not folder.is_dir():
        return "it is a file, not a folder" if folder.exists() else "it is a broken link"
    if (folder / file).exists():
        return f"{folder / file} is no file that can be read"
    what = kind_of(folder)
    return f"it is {what}" if what else f"{folder / file} is missing"
