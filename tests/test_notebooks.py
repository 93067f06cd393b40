"""The notebooks run from an empty kernel, and what is kept of them is fit to be looked at."""

import base64
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/qinco-jax/qinco_jax/blob/main/notebooks/"
PLACES = r"/(tmp|home|root|work|opt|usr|Users|var|mnt)/|site-packages|[A-Z]:\\"
MAX_PICTURE = 100_000

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def kinds(cell: nbformat.NotebookNode) -> list[tuple[str, ...]]:
    """What a cell shows, without the values: printed text, pictures, a last expression."""
    shown = [output for output in cell.outputs if output.get("name") != "stderr"]
    every = [(output.output_type, *sorted(output.get("data", ()))) for output in shown]
    return list(dict.fromkeys(every))  # a slow kernel sends one print in several parts


def test_the_notebooks_run_and_show_what_is_kept_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QINCO_JAX_NOTEBOOK_SCALE", "tiny")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    copies = [Path(shutil.copy(path, tmp_path)) for path in NOTEBOOKS]
    program = [sys.executable, ROOT / "tests" / "support" / "kernels.py", *copies]
    ran = subprocess.run(program, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for copy, path in zip(copies, NOTEBOOKS, strict=True):
        shown, kept = ([kinds(cell) for cell in code_cells(file)] for file in (copy, path))
        assert shown == kept, path


@each_notebook
def test_the_kept_outputs_are_those_of_one_whole_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(cell.metadata for cell in notebook.cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    pictures, texts = [], []
    for output in [output for cell in cells for output in cell.outputs]:
        assert output.output_type != "error" and output.get("name") != "stderr"
        data = output.get("data", {"text/plain": output.get("text", "")})
        texts += [text for kind, text in data.items() if kind.startswith("text/")]
        pictures += [text for kind, text in data.items() if kind == "image/png"]
    assert pictures
    for picture in map(base64.b64decode, pictures):
        assert picture.startswith(b"\x89PNG") and len(picture) < MAX_PICTURE
    assert not [text for text in texts if re.search(PLACES, text)]


@each_notebook
def test_a_notebook_opens_in_colab_and_links_to_notebooks_that_exist(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert f"({COLAB}{path.name})" in notebook.cells[0].source
    text = "\n".join(cell.source for cell in notebook.cells)
    for link in re.findall(r"\]\((\w+\.ipynb)\)", text):
        assert (path.parent / link).exists()
