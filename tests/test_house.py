"""The house itself: which module may import which, what is public, what the README promises."""

import ast
import graphlib
import inspect
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
from click.testing import CliRunner
from optimized import optimized

import qinco_jax as qj
from qinco_jax.cli.main import main
from qinco_jax.quantizers import rq
from qinco_jax.training import start

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "qinco_jax"

FLOORS = [
    {"errors", "files", "kinds", "numbers", "seeds", "version", "words"},
    {"config", "interrupts", "optional", "remote"},
    {"vectors"},
    {"datasets"},
    {"quantizers"},
    {"models"},
    {"training"},
    {"search"},
    {"cluster"},
    {"codecs"},
    {"evaluate"},
    {"serve"},
    {"cli"},
]
"""The packages and the modules beside them, lowest first: imports point down."""


def modules() -> dict[str, ast.Module]:
    paths = [path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__")]
    names = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths]
    return {name: ast.parse(path.read_text()) for name, path in zip(names, paths, strict=True)}


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of the package that a module imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qinco_jax"):
            base = (node.module or "").removeprefix("qinco_jax").lstrip(".")
            names = {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
            found |= {name for name in names if name in known} or {base}
    return found


def floor_of(module: str) -> int:
    (floor,) = (n for n, floor in enumerate(FLOORS) if module.partition(".")[0] in floor)
    return floor


def test_imports_point_down() -> None:
    trees = modules()
    arrows = {name: imports(tree, set(trees)) for name, tree in trees.items()}
    for name, others in arrows.items():
        for other in others - {""}:  # the public names, which the command line may use
            if other.partition(".")[0] != name.partition(".")[0]:
                below = floor_of(other) < floor_of(name) or other == "errors"
                assert below, f"{name} imports {other}, which is not on a lower floor"
    assert not arrows["errors"]
    order = graphlib.TopologicalSorter({name: arrows[name] - {""} for name in arrows})
    order.prepare()  # raises CycleError where modules import each other in a circle


def test_the_tests_mirror_the_packages() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.relative_to(ROOT / "tests").parent
        tested = ROOT / folder if folder.name == "experiments" else PACKAGE / folder
        assert tested.is_dir(), f"{path} is a test of no package"


def test_importing_the_package_loads_little_besides_jax() -> None:
    script = "import sys, {}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = [
        set(
            subprocess.check_output([sys.executable, "-c", script.format(names)], text=True).split()
        )
        for names in (
            "jax, numpy, flax.struct, optax, orbax.checkpoint",
            "qinco_jax; [getattr(qinco_jax, name) for name in qinco_jax.__all__]; "
            "qinco_jax.datasets.load('sift-photos')",
        )
    ]
    further = loaded[1] - loaded[0] - sys.stdlib_module_names
    assert further == {"qinco_jax", "lazy_loader"}


def test_importing_and_saving_change_no_logging(tmp_path: Path) -> None:
    script = """
import logging, sys
import absl.logging, jax, flax, optax, orbax.checkpoint
there = logging.getLogger("absl").level, list(logging.getLogger().handlers)
import numpy as np, qinco_jax as qj
assert (logging.getLogger("absl").level, list(logging.getLogger().handlers)) == there
config = qj.QincoConfig(num_steps=2, codebook_size=4, hidden_dim=4, num_candidates=2, beam_size=2)
x = np.random.default_rng(0).normal(size=(100, 4))
qj.train(x, config, num_epochs=20, batch_size=64, run_dir=sys.argv[1])
qj.load(sys.argv[1] + "/model")
assert (logging.getLogger("absl").level, list(logging.getLogger().handlers)) == there
"""
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    cache = str(tmp_path / "compiled")  # a shared one may be read while it is written, and warn
    own = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    assert ran.returncode == 0 and not ran.stderr, ran.stderr


def public_functions() -> list[object]:
    found = [getattr(qj, name) for name in qj.__all__]
    for module in [thing for thing in found if isinstance(thing, ModuleType)]:
        found += [
            thing for name, thing in vars(module).items()
            if inspect.isfunction(thing) and not name.startswith("_")
            and thing.__module__ == module.__name__
        ]  # fmt: skip
    return [thing for thing in found if inspect.isfunction(thing)]


@pytest.mark.parametrize(
    "function", public_functions(), ids=lambda f: f"{f.__module__}.{f.__name__}"
)
def test_a_public_function_says_what_it_takes_and_gives(function: object) -> None:
    assert callable(function)
    signature, text = inspect.signature(function), inspect.getdoc(function) or ""
    assert signature.return_annotation is not inspect.Signature.empty
    takes_or_gives_arrays = False
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        takes_or_gives_arrays |= "Array" in str(parameter.annotation)
    assert len(text.split()) > 5
    if takes_or_gives_arrays:
        assert re.search(r"\[(\.\.\., )?[A-Z]", text), "shapes stand in the docstring"


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize(
    "path",
    [path for path in pages() if "```python" in path.read_text()],
    ids=lambda path: path.stem,
)
def test_the_python_of_the_documentation_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(rq, "ROWS_PER_CODEWORD", 12)  # k-means of 256 takes most of the time
    monkeypatch.setattr(start, "OVERFIT", np.inf)  # or few rows are moved, and codebooks fitted
    monkeypatch.setattr(start, "gains_by_refits", lambda *_: False)  # together, as long again
    scope: dict[str, object] = {}
    with optimized():
        for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
            exec(block.replace("20_000", "3_000"), scope)


def commands(text: str, program: str) -> list[list[str]]:
    """The words after a program's name, of the indented lines of a text that call it."""
    lines = re.findall(
        rf"^ {{4,}}{program} (.+?)(?: {{2,}}#.*)?$", text.replace("\\\n", " "), re.MULTILINE
    )
    return [shlex.split(line) for line in lines]


def assert_exists(words: list[str]) -> None:
    """The options and arguments of a `qinco` command are those that it takes; nothing is run."""
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        _, command, words = command.resolve_command(context, words)
        context = command.make_context(command.name, list(words), parent=context)
        words = [*context._protected_args, *context.args]


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_the_commands_of_the_documentation_exist(path: Path) -> None:
    for words in commands(path.read_text(), "qinco"):
        assert_exists(words)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(path.read_text(), "make"):
        assert words[0] in targets, words


def every_command(group: click.Group, *names: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from every_command(command, *names, name)
        else:
            yield *names, name


@pytest.mark.parametrize("names", list(every_command(main)), ids=" ".join)
def test_the_help_of_a_command_has_an_example_of_it(names: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(main, [*names, "--help"], terminal_width=200).output
    examples = commands(shown, "qinco")
    if names != ("settings",):
        assert [words[: len(names)] for words in examples] == [list(names)]
    for words in examples:
        assert_exists(words)


def test_the_embedded_set_is_what_it_says() -> None:
    data = qj.datasets.load("sift-photos")
    assert data.database is not None and data.queries is not None and data.groundtruth is not None
    assert (data.train.shape, data.train.dtype) == ((100_000, 128), np.uint8)
    rows = np.random.default_rng(0).choice(len(data.queries), 50, replace=False)
    database, queries = np.int64(data.database), np.int64(data.queries[rows])
    exact = np.square(queries[:, None, :] - database[None, :4000]).sum(-1).min(1)
    found = np.square(queries - database[data.groundtruth[rows, 0]]).sum(-1)
    assert (found <= exact).all()
    photographs = (PACKAGE / "datasets" / "sift-photos-ATTRIBUTION.tsv").read_text().splitlines()
    table = [line.split("\t") for line in photographs if not line.startswith("#")]
    column = table[0].index("train_rows")
    assert sum(int(row[column]) for row in table[1:]) == len(data.train)
    licences = {row[table[0].index("licence")] for row in table[1:]}
    assert all(name.startswith(("CC", "public-domain")) for name in licences)
    assert (PACKAGE / "datasets" / "sift-photos.npz").stat().st_size < 14e6
