"""Models outside of our process: `.safetensors` files, and programs that only need JAX."""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from click.testing import CliRunner
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import qinco_jax as qj
from qinco_jax.cli.main import main
from qinco_jax.models import disk, safetensors
from qinco_jax.vectors.shards import read_rows

small = functools.partial(
    qj.QincoConfig, dim=6, num_steps=3, codebook_size=16, hidden_dim=8, num_candidates=5,
    beam_size=4,
)  # fmt: skip
CONFIGS = {
    "second form, joint": small(joint=True, rotate=True),
    "first form, greedy": small(form="qinco", num_candidates=None, beam_size=1),
    "low rank": small(form="qinco-lr", unit_norm=True),
    "one step": small(num_steps=1),
    "wide codes": small(codebook_size=300, num_steps=2),
    "coarse codebook": small(num_centroids=11),
    "product": small(num_parts=2, opq=True),
}
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
PAIRWISE = CHECKPOINTS / "v2_pairwise_decoder_ivf32_M4_K16_D16.pt"
X = oracle.random_vectors(300, 6)


def random_model(config: qj.QincoConfig) -> Any:
    rng = np.random.default_rng(0)

    def random(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(random, disk.abstract(config))


MODELS = {name: random_model(config) for name, config in CONFIGS.items()}
MODEL = MODELS["second form, joint"]
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(ours, jax.Array)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    qj.save(MODEL, path)
    return path


def test_a_model_is_not_taken_for_vectors(file: Path) -> None:
    for source in (file, f"{file}::mean"):
        with pytest.raises(qj.InputError, match=r"\.safetensors is a saved model, not a file of"):
            read_rows(source)


@every_model
def test_a_model_comes_back_from_one_file(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.safetensors"
    qj.save(model, path)
    assert_same(qj.load(path), model)
    assert [path] == list(path.parent.iterdir())
    with pytest.raises(qj.InputError, match="exists"):
        qj.save(model, path)


def test_a_file_is_read_without_jax(file: Path) -> None:
    tensors = load_file(file)
    assert set(tensors) == {"mean", "scale", "rotation", "codebook"} | {
        f"steps.{name}" for name, leaf in vars(MODEL.steps).items() if leaf is not None
    }
    np.testing.assert_array_equal(tensors["steps.up"], MODEL.steps.up)
    with safe_open(file, framework="numpy") as opened:
        content = json.loads(opened.metadata()["qinco_jax"])
    assert qj.QincoConfig(**content["config"]) == MODEL.config
    assert content["version"] == qj.__version__


def test_a_product_numbers_its_parts(tmp_path: Path) -> None:
    qj.save(MODELS["product"], tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        tensors["parts.1.steps.codebook"], MODELS["product"].parts[1].steps.codebook
    )


@hypothesis.settings(max_examples=60)
@hypothesis.given(data=st.data())
def test_a_damaged_file_is_refused(file: Path, data: st.DataObject) -> None:
    """Or it gives the same model, as where spaces of the header became other spaces."""
    whole = file.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    place = data.draw(st.integers(0, 7) | st.integers(8, end) | st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255))
    bad = whole[:place] + bytes([value]) + whole[place + 1 :]
    if data.draw(st.booleans()):
        bad = bad[:place]
    path = file.with_name("damaged.safetensors")
    path.write_bytes(bad)
    try:
        found = qj.load(path)
    except qj.InputError as error:
        assert str(path) in str(error)
    else:
        assert_same(found, MODEL)


Contents = tuple[dict[str, np.ndarray], dict[str, Any]]


def without(name: str) -> Callable[[Contents], object]:
    return lambda contents: contents[0].pop(name)


def tensor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Contents], object]:
    return lambda contents: contents[0].update({name: change(contents[0].get(name))})


def setting(**change: Any) -> Callable[[Contents], object]:
    return lambda contents: contents[1].update(change)


WRONG = {
    "missing": (without("steps.bias"), "steps.bias is missing"),
    "surplus": (tensor("steps.extra", lambda _: np.zeros(3)), "steps.extra is unknown"),
    "shape": (
        tensor("mean", lambda a: a[1:]),
        "mean is float32 (5,) instead of float32 (6,)",
    ),
    "dtype": (
        tensor("mean", lambda a: a.astype(np.float16)),
        "mean is float16 (6,) instead of float32 (6,)",
    ),
    "another config": (setting(hidden_dim=9), "steps.down is float32 (2, 2, 8, 6) instead of"),
    "unknown setting": (setting(hiden_dim=9), "did you mean 'hidden_dim'"),
    "no dim": (setting(dim=None), "dim is missing"),
    "a dim beyond all bounds": (setting(dim=10**30), "dim must be 1 to 1,048,576"),
    "a dim in words": (setting(dim="6"), "dim must be an integer, got '6'"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_file_that_others_wrote_must_fit_its_config(
    change: Callable[[Contents], object], message: str, file: Path, tmp_path: Path
) -> None:
    contents = load_file(file), dict(MODEL.config.settings)
    change(contents)
    path = tmp_path / "model.safetensors"
    safetensors.write_tree(path, contents[0], {"version": "0", "config": contents[1]})
    with pytest.raises(qj.InputError, match=re.escape(message)):
        qj.load(path)


def test_what_is_no_model_is_refused(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(qj.InputError, match="no such file"):
        qj.load(path)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(qj.InputError, match="holds tensors, but no metadata"):
        qj.load(path)
    for text in ("[1]", "{}", "no json", '{"sha256": 1}', "[" * 100_000):
        save_file({"x": np.zeros(3)}, path, {"qinco_jax": text})
        with pytest.raises(qj.InputError, match="is damaged"):
            qj.load(path)
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(qj.InputError, match="is damaged"):
        qj.load(path)
    with pytest.raises(qj.InputError, match=re.escape("load_pytorch")):
        qj.load(tmp_path / "model.pt")


SERVER = """
import sys
sys.modules["qinco_jax"] = None  # to import it fails
import jax
import numpy as np

def program(name):
    with open(f"{sys.argv[1]}/{name}.jaxprogram", "rb") as file:
        return jax.jit(jax.export.deserialize(file.read()).call)

encode, decode = program("encode"), program("decode")
x = np.load(sys.argv[2])
for num_rows in (1, 64, 65, 300):
    codes = np.asarray(encode(x[:num_rows]))
    np.savez(f"{sys.argv[1]}/{num_rows}.npz", codes=codes, x_hat=np.asarray(decode(codes)))
assert not any(name.startswith("qinco_jax.") for name in sys.modules)
"""


def test_programs_run_where_only_jax_is(tmp_path: Path) -> None:
    qj.export(MODEL, tmp_path / "programs")
    np.save(tmp_path / "x.npy", X)
    subprocess.run(
        [sys.executable, "-c", SERVER, tmp_path / "programs", tmp_path / "x.npy"],
        check=True, cwd=tmp_path,
    )  # fmt: skip
    codes = np.asarray(qj.encode(MODEL, X))
    for num_rows in (1, 64, 65, 300):
        found = np.load(tmp_path / "programs" / f"{num_rows}.npz")
        assert found["codes"].dtype == np.uint8
        np.testing.assert_array_equal(found["codes"], codes[:num_rows])
        x_hat = qj.decode(MODEL, found["codes"])
        np.testing.assert_allclose(found["x_hat"], x_hat, rtol=1e-5, atol=1e-5)


def programs(folder: Path) -> tuple[jax.export.Exported, jax.export.Exported]:
    encode, decode = (
        jax.export.deserialize((folder / f"{name}.jaxprogram").read_bytes())
        for name in ("encode", "decode")
    )
    return encode, decode


@pytest.mark.parametrize("name", ["first form, greedy", "one step", "wide codes",
                                  "coarse codebook", "product"])  # fmt: skip
def test_every_kind_of_model_is_exported(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    qj.export(model, tmp_path / "programs")
    encode, decode = programs(tmp_path / "programs")
    assert encode.platforms == decode.platforms == ("cpu", "cuda", "tpu")
    codes = qj.encode(model, X)
    found = encode.call(X)
    assert found.dtype == codes.dtype
    np.testing.assert_array_equal(found, codes)
    x_hat = jax.jit(decode.call)(codes)
    np.testing.assert_allclose(x_hat, qj.decode(model, codes), rtol=1e-5, atol=1e-5)
    about = json.loads((tmp_path / "programs" / "about.json").read_text())
    assert about["codes"] == {"shape": ["N", codes.shape[1]], "dtype": str(codes.dtype)}


def test_a_program_takes_bounded_memory(tmp_path: Path) -> None:
    """Beside copies of the rows themselves: a row's candidates alone are 14 kB here."""
    qj.export(MODEL, tmp_path / "programs", num_candidates=16, beam_size=16)
    encode, _ = programs(tmp_path / "programs")

    def temporary_bytes(num_rows: int) -> int:
        rows = jax.ShapeDtypeStruct((num_rows, 6), jnp.float32)
        return jax.jit(encode.call).lower(rows).compile().memory_analysis().temp_size_in_bytes

    growth = temporary_bytes(2**14) - temporary_bytes(2**12)
    assert growth / (2**14 - 2**12) <= 4 * X[0].nbytes


def test_export_refuses(tmp_path: Path) -> None:
    with pytest.raises(qj.InputError, match="num_candidates must be 1 to 16"):
        qj.export(MODEL, tmp_path / "programs", num_candidates=17)
    assert not list(tmp_path.iterdir())
    with pytest.raises(qj.InputError, match="exists"):
        qj.export(MODEL, tmp_path)


def test_a_published_checkpoint_is_converted(tmp_path: Path) -> None:
    source = CHECKPOINTS / "v2_qinco1mode_M4_K16_D16_golden.pt"
    assert run("convert", source, tmp_path / "model.safetensors")[0] == 0
    assert_same(qj.load(tmp_path / "model.safetensors"), qj.load_pytorch(source))


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    return result.exit_code, result.output


def test_the_command_line_converts_and_exports(file: Path, tmp_path: Path) -> None:
    folder, again, served = tmp_path / "folder", tmp_path / "m.safetensors", tmp_path / "programs"
    assert run("convert", file, folder)[0] == 0
    assert run("convert", folder, again)[0] == 0
    assert_same(qj.load(again), MODEL)
    code, output = run("export", folder, served, "--beam-size", "1", "--each")
    assert code == 0 and "encode.jaxprogram" in output
    search = {"num_candidates": 5, "beam_size": 1, "joint": False}
    assert json.loads((served / "about.json").read_text())["search"] == search
    found = programs(served)[0].call(X)
    np.testing.assert_array_equal(found, qj.encode(MODEL, X, **search))
    assert (found != qj.encode(MODEL, X)).any()
    for args, message in {
        ("convert", file, again): "exists",
        ("convert", file, tmp_path / "m.faiss"): "qinco_jax.to_faiss",
        ("convert", PAIRWISE, tmp_path / "m"): "which is not a model",
        ("convert", file, tmp_path / "m", "--db-scale", "2"): "leave out",
        ("export", tmp_path / "none", served): "not a saved model",
    }.items():
        code, output = run(*args)
        assert (code, message in output) == (2, True), output
