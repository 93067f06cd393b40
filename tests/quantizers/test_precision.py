"""bfloat16: where it computes, what it changes, and when it is the default."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import qinco_jax as qj
from qinco_jax.quantizers import precision, qinco
from qinco_jax.training import step

D, E, H, K = 6, 10, 24, 16
CONFIG = qj.QincoConfig(
    num_steps=3, codebook_size=K, embed_dim=E, hidden_dim=H, num_candidates=5, beam_size=4
)
X = np.float32(np.random.default_rng(0).normal(size=(4000, D)) * np.linspace(0.5, 2, D))
MODEL = oracle.random_model(CONFIG.for_dim(D))
ROWS = jax.ShapeDtypeStruct((7, D), jnp.float32)
CODES = jax.ShapeDtypeStruct((7, 3), jnp.uint8)
PRODUCT = re.compile(r"dot_general .*: \(tensor<(.*?)>, tensor<(.*?)>\)")
every_dtype = pytest.mark.parametrize("compute_dtype", precision.COMPUTE_DTYPES)

Program = tuple[Callable[..., Any], tuple[Any, ...]]


def programs(compute_dtype: str) -> dict[str, Program]:
    """Encode, decode and a step of training, and their arguments."""
    recipe = qj.Recipe(compute_dtype=compute_dtype, num_updates=1)
    state = jax.eval_shape(lambda: qj.init_state(MODEL, recipe))
    return {
        "encode": (lambda model, x: qj.encode(model, x, compute_dtype=compute_dtype),
                   (MODEL, ROWS)),
        "decode": (lambda model, codes: qj.decode(model, codes, compute_dtype=compute_dtype),
                   (MODEL, CODES)),
        "train_step": (lambda state, x: step.train_step(state, x, recipe, 10), (state, ROWS)),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["encode", "decode", "train_step"])
def test_bfloat16_leaves_no_float32_product_of_the_network(name: str) -> None:
    """The program is read as JAX lowers it: compilers for CPUs may widen products again."""
    products = {}
    for compute_dtype in precision.COMPUTE_DTYPES:
        function, arguments = programs(compute_dtype)[name]
        products[compute_dtype] = PRODUCT.findall(jax.jit(function).lower(*arguments).as_text())
    assert all(a.endswith("f32") and b.endswith("f32") for a, b in products["float32"])
    kept = [pair for pair in products["bfloat16"] if not all(a.endswith("bf16") for a in pair)]
    distances = [(f"7x{D}xf32", f"{D}x{K}xf32")]  # of the first step, which are true errors
    assert kept == (distances if name != "decode" else [])
    assert len(products["bfloat16"]) == len(products["float32"]) >= 9


@every_dtype
@pytest.mark.parametrize("name", ["encode", "decode", "train_step"])
def test_programs_compile_to_what_tpus_take(name: str, compute_dtype: str) -> None:
    function, arguments = programs(compute_dtype)[name]
    exported = jax.export.export(jax.jit(function), platforms=["tpu"])(*arguments)
    assert exported.platforms == ("tpu",)


@pytest.fixture(scope="module")
def trained() -> qj.Qinco:
    return qj.train(X, CONFIG, num_epochs=3, batch_size=64, num_updates=2)


def test_the_error_of_bfloat16_is_that_of_float32(trained: qj.Qinco) -> None:
    mse, found = {}, {}
    for compute_dtype in precision.COMPUTE_DTYPES:
        codes, errors = qj.encode(trained, X, output="errors", compute_dtype=compute_dtype)
        x_hat = qj.decode(trained, codes, compute_dtype=compute_dtype)
        assert errors.dtype == x_hat.dtype == jnp.float32
        found[compute_dtype], mse[compute_dtype] = x_hat, np.square(X - x_hat).sum(1).mean()
        np.testing.assert_allclose(errors.mean(), mse[compute_dtype], rtol=2e-3)
    assert mse["bfloat16"] == pytest.approx(mse["float32"], rel=1e-3)
    assert not np.array_equal(found["bfloat16"], found["float32"])


@pytest.mark.parametrize("form", ["qinco-lr", "centroids", "product"])
def test_every_kind_of_model_takes_bfloat16(form: str) -> None:
    kinds = {"centroids": {"num_centroids": 20}, "product": {"num_parts": 2}}
    sizes = kinds.get(form, {"form": form, "embed_dim": None})
    config = qj.QincoConfig(**{"dim": D, "num_steps": 2, "codebook_size": K, "hidden_dim": 8,
                               "num_candidates": None, **sizes})  # fmt: skip
    model = (oracle.random_product if form == "product" else oracle.random_model)(config)
    codes = qj.encode(model, X[:50], compute_dtype="bfloat16")
    half, full = (qj.decode(model, codes, compute_dtype=d) for d in ("bfloat16", "float32"))
    difference = np.linalg.norm(half - full) / np.linalg.norm(full)
    assert 0 < difference < 0.02


def test_gradients_of_bfloat16_point_where_those_of_float32_do(trained: qj.Qinco) -> None:
    codes = qj.encode(trained, X[:256])

    def gradient(compute_dtype: str) -> Any:
        def loss(parameters: qinco.Parameters) -> jax.Array:
            model = qinco.with_parameters(trained, parameters)
            return step.loss(model, X[:256], codes, compute_dtype)[0]

        return jax.jit(jax.grad(loss))(qinco.parameters(trained))

    def assert_close(half: jax.Array, full: jax.Array) -> None:
        assert half.dtype == jnp.float32
        assert np.linalg.norm(half - full) < 0.02 * np.linalg.norm(full)

    jax.tree.map(assert_close, gradient("bfloat16"), gradient("float32"))


def test_an_unknown_dtype_is_refused() -> None:
    codes = np.zeros((1, 3), np.uint8)
    for call in (
        lambda: qj.encode(MODEL, X, compute_dtype="float16"),
        lambda: qj.decode(MODEL, codes, compute_dtype="float16"),
        lambda: qj.Recipe(compute_dtype="float16"),
    ):
        with pytest.raises(
            qj.InputError, match="unknown compute dtype 'float16'; did you mean 'bfloat16'"
        ):
            call()


@pytest.mark.parametrize(
    ("flags", "gain", "fastest"),
    [("fma avx512_bf16", 1.5, "bfloat16"), ("fma avx512_bf16", 1.0, "float32"),
     ("fma avx512f", 1.5, "float32")],
)  # fmt: skip
def test_the_default_on_cpus_is_float32_even_where_bfloat16_is_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, gain: float, fastest: str
) -> None:
    assert 0.01 < precision._measured() < 100
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(precision, "_cpu_flags", precision._cpu_flags.__wrapped__)
    monkeypatch.setattr(precision, "_measured", lambda: gain)
    with jax.default_matmul_precision("default"):
        assert (precision.fastest(), precision.resolve(None)) == (fastest, "float32")


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [("gpu", "9.0", "bfloat16"), ("gpu", "8.0", "bfloat16"), ("gpu", "7.5", "float32"),
     ("gpu", "gfx90a", "float32"), ("tpu", None, "bfloat16")],
)  # fmt: skip
def test_the_default_on_accelerators_is_what_they_multiply_faster(
    monkeypatch: pytest.MonkeyPatch, platform: str, capability: str | None, expected: str
) -> None:
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    with jax.default_matmul_precision("default"):
        assert precision.resolve(None) == precision.fastest() == expected
    with jax.default_matmul_precision("highest"):  # JAX's own way of asking for it
        assert precision.resolve(None) == "float32"


def test_importing_starts_no_device() -> None:
    """Else `jax.distributed` and settings of devices would come too late."""
    code = "import qinco_jax; from jax._src import xla_bridge; assert not xla_bridge._backends"
    subprocess.run([sys.executable, "-c", code], check=True)
