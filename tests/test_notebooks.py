"""The notebooks run from an empty kernel, show what they should, and work in Colab."""

import ast
import base64
import configparser
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

import qinco_jax as qj

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SETUP = configparser.ConfigParser(interpolation=None)
SETUP.read(ROOT / "setup.cfg")
REPOSITORY = SETUP["metadata"]["url"].removeprefix("https://github.com/")
COLAB = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/"
ADDRESS = re.compile(
    r"(?:github\.com[:/]|githubusercontent\.com/|google\.com/github/)([\w.-]+/[\w.-]*\w)"
    r"|([\w-]+)\.github\.io/([\w.-]*\w)"
)
TEXTS = {"", ".md", ".cfg", ".toml", ".py", ".ipynb", ".html", ".svg", ".yml", ".yaml", ".txt"}
OTHERS = {"facebookresearch/contriever", "a.b/c-d.js", "a-b/c.js"}  # two are of the test below
PLACES = r"/(tmp|home|root|work|opt|usr|Users|var|mnt)/|site-packages|[A-Z]:\\"
MAX_PICTURE = 100_000
FIELD = re.compile(r"^(\w+) = (.+?) +# @param (.+)$", re.MULTILINE)

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


@each_notebook
def test_installing_keeps_the_plugin_of_the_machine(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Shell:
        def run_line_magic(self, name: str, line: str) -> None:
            asked.append(line.format(**names))

    cell = compile(TransformerManager().transform_cell(code_cells(path)[0].source), path, "exec")
    for here, extras in (
        ({"jax_cuda12_plugin"}, "cuda12"),
        ({"jax_cuda13_plugin"}, "cuda13"),
        ({"libtpu"}, "tpu"),
        (set(), ""),
        ({"qinco_jax"}, None),
    ):
        names: dict[str, object] = {"get_ipython": Shell}
        with monkeypatch.context() as patched:
            patched.setattr(importlib.util, "find_spec", {name: name for name in here}.get)
            exec(cell, names)
        if extras is None:
            assert not asked
        else:
            *_, jax, package = shlex.split(asked.pop())
            assert jax == f"jax[{extras}]"
            assert package.endswith(f" @ git+{SETUP['metadata']['url']}")


@each_notebook
def test_sizes_are_form_fields_that_colab_reads(path: Path) -> None:
    text = "\n".join(cell.source for cell in code_cells(path))
    fields = FIELD.findall(text)
    assert fields and len(fields) == text.count("@param")
    for name, value, form in fields:
        field, value = json.loads(form), ast.literal_eval(value)
        if isinstance(field, list):
            assert value in field
        else:
            assert (
                field["type"] in {"integer", "raw", "string"}
                or field["min"] <= value <= field["max"]
            )
        assert name != "preset" or set(field) <= set(qj.PRESETS)


def addresses(text: str) -> set[str]:
    """The repositories OWNER/NAME that a text has addresses of, those of their pages too."""
    found = (name or f"{owner}/{page}" for name, owner, page in ADDRESS.findall(text))
    return {name.removesuffix(".git") for name in found}


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/a.b/c-d.js.",
        "git@github.com:a.b/c-d.js.git",
        "https://raw.githubusercontent.com/a.b/c-d.js/main/x.npy",
    ],
)
def test_every_kind_of_address_is_seen(address: str) -> None:
    assert addresses(f"see {address}") == {"a.b/c-d.js"}
    assert addresses("https://a-b.github.io/c.js/page") == {"a-b/c.js"}


def test_every_address_of_the_repository_is_that_of_setup_cfg() -> None:
    files = list(ROOT.iterdir())
    for folder in (".ci", ".github", "docs", "experiments", "notebooks", "qinco_jax", "tests"):
        files += (ROOT / folder).rglob("*")
    texts = [path.read_text() for path in files if path.is_file() and path.suffix in TEXTS]
    assert set().union(*map(addresses, texts)) - OTHERS == {REPOSITORY}
    moving = f"git grep -l {REPOSITORY} | xargs sed -i 's,{REPOSITORY},OWNER/NAME,g'"
    assert moving in (ROOT / "CONTRIBUTING.md").read_text()
