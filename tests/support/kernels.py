"""Runs notebooks, first cell to last, in a fresh kernel of this very Python, and keeps the outputs.

Usage: python tests/support/kernels.py notebooks/*.ipynb
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient


def execute(path: Path, folder: str) -> None:
    """Runs a notebook in a folder and writes its outputs into it; raises what a cell raises."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": folder}},
        coalesce_streams=True,
        record_timing=False,
    ).execute()
    notebook.metadata.language_info = {"name": "python"}  # and no version of it
    nbformat.write(notebook, path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:  # one for all: a model is trained once
        write_kernel_spec(Path(folder, "kernels", "python3"))  # elsewhere it may be another Python
        os.environ["JUPYTER_PATH"] = folder
        for name in sys.argv[1:]:
            execute(Path(name), folder)
