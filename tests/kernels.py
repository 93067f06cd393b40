"""Runs notebooks, first cell to last, in a fresh kernel of this very Python, and keeps the outputs.

Usage: python tests/kernels.py notebooks/*.ipynb
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient


def execute(path: Path) -> None:
    """Writes the outputs into the notebook; raises what a cell raises."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(Path(folder, "kernels", "python3"))  # elsewhere it may be another Python
        os.environ["JUPYTER_PATH"] = folder
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
    for name in sys.argv[1:]:
        execute(Path(name))
