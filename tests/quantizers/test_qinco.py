"""Encode and decode: against the equations, and by identities that hold for every model."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st

import qinco_jax as qj
from qinco_jax.quantizers import beam, coding, preselector, qinco, rq

small = functools.partial(
    qj.QincoConfig, dim=6, num_steps=3, codebook_size=16, hidden_dim=8, beam_size=4
)
CONFIGS = {
    "first form, greedy": small(form="qinco", num_candidates=None, beam_size=1),
    "first form": small(form="qinco", num_candidates=5, num_blocks=1),
    "second form": small(embed_dim=10, num_candidates=5),
    "second form, bare": small(projections=False, num_candidates=None),
    "low rank": small(form="qinco-lr", num_candidates=5),
    "behind centroids": small(embed_dim=10, num_candidates=5, num_centroids=40),
    "first form behind centroids": small(form="qinco", num_candidates=None, num_centroids=40),
}
MODELS = {name: oracle.random_model(config) for name, config in CONFIGS.items()}
X = oracle.random_vectors(300, 6)
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
both_forms = pytest.mark.parametrize(
    "model", [MODELS["first form"], MODELS["second form"]], ids=["first", "second"]
)
MODEL = MODELS["second form"]
CODES = np.asarray(qj.encode(MODEL, X))


def errors(model: qj.Qinco, x: np.ndarray, codes: jax.Array) -> np.ndarray:
    """Squared error of each row."""
    return np.sum((np.asarray(qj.decode(model, codes)) - x) ** 2, axis=-1)


@functools.partial(jax.jit, static_argnames="search")
def beams(model: qj.Qinco, x: np.ndarray, search: qinco.Search) -> beam.Beam:
    return model.prepare().beams(x, search)


def assert_as_good(model: qj.Qinco, x: np.ndarray, codes: jax.Array, expected: jax.Array) -> None:
    """The codes are those expected, but for rows with ties up to rounding."""
    assert codes.shape == expected.shape
    differ = np.any(np.asarray(codes) != np.asarray(expected), axis=1)
    assert differ.mean() < 0.02 or differ.sum() < 2
    if differ.any():
        reached, goal = (errors(model, x[differ], some[differ]) for some in (codes, expected))
        np.testing.assert_allclose(reached, goal, rtol=1e-4, atol=1e-4)


@st.composite
def random_configs(draw: st.DrawFn) -> qj.QincoConfig:
    size = draw(st.integers(4, 16))
    form = draw(st.sampled_from(["qinco", "qinco-lr", "qinco2"]))
    dim, projections = draw(st.integers(1, 8)), draw(st.booleans())
    return qj.QincoConfig(
        dim=dim,
        num_steps=draw(st.integers(1, 4)),
        codebook_size=size,
        embed_dim=draw(st.integers(1, 8)) if form == "qinco2" and projections else None,
        hidden_dim=draw(st.integers(1, 8)),
        num_blocks=draw(st.integers(1, 3)),
        num_candidates=draw(st.none() | st.integers(1, size)),
        beam_size=draw(st.sampled_from([1, 2, 5, 20])),  # 20 exceeds every K
        joint=draw(st.booleans()),
        form=form,
        projections=projections or form != "qinco2",
        num_centroids=draw(st.none() | st.sampled_from([3, 300])),
    )


seeds = st.integers(0, 2**31)


@hypothesis.given(random_configs(), seeds)
def test_codes_are_the_oracles(config: qj.QincoConfig, seed: int) -> None:
    model = oracle.random_model(config, seed)
    x = oracle.random_vectors(4, model.dim)
    config = model.config
    search = config.num_candidates or config.codebook_size, config.beam_size, config.joint
    expected = np.array([oracle.encode(model, row, *search)[0] for row in x])
    assert_as_good(model, x, qj.encode(model, x), expected)


@hypothesis.given(random_configs(), seeds, st.integers(1, 5))
def test_reconstructions_are_the_oracles(
    config: qj.QincoConfig, seed: int, num_columns: int
) -> None:
    model = oracle.random_model(config, seed)
    sizes = model.column_sizes[:num_columns]
    codes = np.random.default_rng(0).integers(sizes, size=(4, len(sizes)))
    expected = np.array([oracle.decode(model, row) for row in codes])
    np.testing.assert_allclose(qj.decode(model, codes), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [CONFIGS["first form"], CONFIGS["second form"]])
def test_untrained_model_is_the_residual_quantizer(config: qj.QincoConfig) -> None:
    rq = qj.rq.train(X, config.num_steps, config.codebook_size)
    model = qj.train(X, config, num_epochs=0)
    codes = qj.encode(model, X)  # A > B - 1: pre-selection by the same codebooks loses nothing
    assert_as_good(model, X, codes, qj.rq.encode(rq, X, beam_size=config.beam_size))
    np.testing.assert_allclose(qj.decode(model, codes), qj.rq.decode(rq, codes), atol=1e-5)


@both_forms
def test_all_candidates_and_beam_one_is_exhaustive_greedy_search(model: qj.Qinco) -> None:
    x, size = X[:50], len(model.codebook)
    codes = np.zeros((len(x), 0), np.int32)
    for _ in range(model.num_steps):
        longer = [np.pad(codes, ((0, 0), (0, 1)), constant_values=i) for i in range(size)]
        reached = [errors(model, x, some) for some in longer]
        codes = np.stack(longer)[np.argmin(reached, axis=0), np.arange(len(x))]
    assert_as_good(model, x, qj.encode(model, x, num_candidates=size, beam_size=1), codes)


@both_forms
def test_larger_beam_is_not_worse_on_average(model: qj.Qinco) -> None:
    mean = [errors(model, X, qj.encode(model, X, beam_size=b)).mean() for b in (1, 4, 20)]
    assert mean[0] > mean[1] > mean[2]


def test_more_candidates_are_not_worse_on_average() -> None:
    mean = [errors(MODEL, X, qj.encode(MODEL, X, num_candidates=a)).mean() for a in (1, 16)]
    assert mean[0] > mean[1]


def test_beam_larger_than_the_codebook_holds_distinct_codes_best_first() -> None:
    found = beams(MODEL, X[:50], qinco.Search(5, 20, joint=False))
    assert all(len(np.unique(codes, axis=0)) == 20 for codes in np.asarray(found.codes))
    assert np.all(np.diff(found.error, axis=1) >= 0)
    assert np.all(np.isfinite(found.error))


@every_model
def test_decode_gives_the_encoders_own_reconstruction(model: qj.Qinco) -> None:
    search = coding.search_of(model, None, None, None)
    found = beams(model, X, search)
    x_hat = found.x_hat[:, 0] * model.scale + model.mean[None]
    codes = qj.encode(model, X)
    np.testing.assert_array_equal(codes, found.codes[:, 0])
    np.testing.assert_allclose(qj.decode(model, codes), x_hat, rtol=1e-5, atol=1e-5)
    error = found.error[:, 0] * model.scale**2
    np.testing.assert_allclose(errors(model, X, codes), error, rtol=1e-4, atol=1e-4)


@every_model
def test_prefix_model_decodes_first_columns_and_greedily_finds_them(model: qj.Qinco) -> None:
    codes, shorter = qj.encode(model, X, beam_size=1), qj.prefix(model, 2)
    first = codes[:, : len(shorter.column_sizes)]
    np.testing.assert_array_equal(qj.encode(shorter, X, beam_size=1), first)
    np.testing.assert_array_equal(qj.decode(shorter, first), qj.decode(model, first))


def test_prefix_model_with_a_beam_is_better_at_its_rate() -> None:
    shorter = qj.prefix(MODEL, 2)
    own, cut = errors(shorter, X, qj.encode(shorter, X)), errors(MODEL, X, CODES[:, :2])
    assert own.mean() < cut.mean()


def test_joint_candidates_are_not_worse_on_average() -> None:
    each, joint = (
        errors(MODEL, X, qj.encode(MODEL, X, num_candidates=2, joint=joint)).mean()
        for joint in (False, True)
    )
    assert joint < each


@both_forms
def test_fitted_preselector_proposes_the_models_own_codes(model: qj.Qinco) -> None:
    bare = model.replace(
        steps=model.steps.replace(preselect=None),
        config=dataclasses.replace(model.config, num_candidates=None),
    )
    x = oracle.random_vectors(2000, 6, seed=1)
    fitted = qj.fit_preselector(bare, x, num_candidates=4)
    assert fitted.config.num_candidates == 4
    best = errors(model, X, qj.encode(bare, X, beam_size=1)).mean()
    found = errors(model, X, qj.encode(fitted, X, beam_size=1)).mean()
    without = errors(model, X, qj.encode(model, X, num_candidates=4, beam_size=1)).mean()
    assert found < min(without, 1.1 * best)


def test_fitted_preselector_is_the_mean_of_what_is_coded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputed for the codewords that are used often, where the prior counts little."""
    monkeypatch.setattr(preselector, "ROWS", 250)  # for each codeword: all rows are used
    x = oracle.random_vectors(4000, 6, seed=1)
    fitted = qj.fit_preselector(MODEL, x, num_candidates=4)
    codes = np.asarray(qj.encode(MODEL, x, num_candidates=16, beam_size=1))
    for m in range(1, MODEL.num_steps):
        x_hat = np.asarray(qj.decode(MODEL, codes[:, :m]))
        residual = (x - x_hat) / np.asarray(MODEL.scale)
        for i in range(16):
            taken = residual[codes[:, m] == i]
            if len(taken) >= 100:
                expected = taken.mean(axis=0)
                np.testing.assert_allclose(fitted.steps.preselect[m - 1, i], expected, atol=0.05)


def test_a_preselector_is_fitted_to_a_sample_of_many_rows() -> None:
    x = oracle.random_vectors(3000, 6, seed=1)
    sample = rq.sample_rows(x, preselector.ROWS * 16, seed=0)
    assert len(sample) < len(x)
    found, expected = (qj.fit_preselector(MODEL, rows, num_candidates=4) for rows in (x, sample))
    np.testing.assert_array_equal(found.steps.preselect, expected.steps.preselect)


@pytest.mark.parametrize(
    ("x", "num_candidates", "message"),
    [
        (X[0], 4, "expected [N, D]"),
        (X[:0], 4, "at least one vector"),
        (X, 16, "num_candidates must be 1 to 15, got 16"),
        (X[:, :5], 4, "5 dimensions"),
    ],
)
def test_preselector_refuses(x: np.ndarray, num_candidates: int, message: str) -> None:
    with pytest.raises(qj.InputError, match=re.escape(message)):
        qj.fit_preselector(MODEL, x, num_candidates=num_candidates)


def test_a_preselector_suits_few_codewords() -> None:
    assert qj.fit_preselector(MODEL, X).config.num_candidates == 15


def test_64_bit_mode_changes_no_k_means_and_no_preselector() -> None:
    def found() -> list[Any]:
        plain = qj.rq.train(X, 2, 16, beam_size=2)
        config = qj.QincoConfig(num_steps=2, codebook_size=16, hidden_dim=4, num_candidates=4)
        begun = qj.init(jax.random.key(0), config, plain)
        return jax.tree.leaves(
            (plain, begun, qj.train_centroids(X, 9), qj.fit_preselector(MODEL, X))
        )

    expected = found()
    with jax.enable_x64(True):
        for one, other in zip(found(), expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_rows", [0, 1, 7, 100, 700, 8191, 8192, 8193])
def test_number_of_rows_changes_nothing_and_compiles_nothing(
    num_rows: int, compilations: list[str]
) -> None:
    x = np.resize(X, (num_rows, X.shape[1]))
    compilations.clear()
    codes = qj.encode(MODEL, x)
    x_hat = qj.decode(MODEL, codes)
    assert compilations == []
    np.testing.assert_array_equal(codes, np.resize(CODES, (num_rows, CODES.shape[1])))
    assert x_hat.shape == x.shape


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Fills with an event per compilation, after a call with rows of each size of block."""
    for num_rows in (1, 8, 112, 768, 8192):
        qj.decode(MODEL, qj.encode(MODEL, np.resize(X, (num_rows, X.shape[1]))))
    events: list[str] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if "compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def test_one_vector_is_a_row() -> None:
    np.testing.assert_array_equal(qj.encode(MODEL, X[3]), CODES[3])
    np.testing.assert_array_equal(qj.decode(MODEL, CODES[3]), qj.decode(MODEL, CODES)[3])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "float16", "float64", "bfloat16"])
def test_every_real_dtype_is_its_float32(dtype: str) -> None:
    x = np.clip(10 * X, 0, 127).astype(jnp.dtype(dtype))
    model = MODEL.replace(mean=10 * MODEL.mean, scale=10 * MODEL.scale)
    expected = qj.encode(model, x.astype(np.float32))
    np.testing.assert_array_equal(qj.encode(model, x), expected)
    np.testing.assert_array_equal(qj.encode(model, jnp.asarray(x)), expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64"])
def test_codes_of_every_integer_dtype_decode_alike(dtype: str) -> None:
    expected = qj.decode(MODEL, CODES)
    np.testing.assert_array_equal(qj.decode(MODEL, CODES.astype(dtype)), expected)
    np.testing.assert_array_equal(qj.decode(MODEL, jnp.asarray(CODES.astype(dtype))), expected)


@pytest.mark.parametrize(("size", "dtype"), [(256, "uint8"), (512, "uint16")])
def test_codes_are_as_narrow_as_the_codebook_allows(size: int, dtype: str) -> None:
    model = oracle.random_model(small(codebook_size=size, num_candidates=4, num_steps=2))
    codes = np.asarray(qj.encode(model, X))
    assert codes.dtype == dtype
    assert codes.max() >= 0.9 * size
    assert (qj.decode(model, codes).shape, codes.shape) == (X.shape, (len(X), 2))


@pytest.mark.parametrize(
    ("wrap", "num_rows"),
    [(jax.jit, 0), (jax.jit, 300), (jax.vmap, 3), (lambda f: jax.jit(jax.vmap(f)), 300)],
    ids=["jit of no rows", "jit", "vmap", "jit of vmap"],
)
def test_transformations_change_nothing(wrap: Callable[..., Any], num_rows: int) -> None:
    x, codes = X[:num_rows], CODES[:num_rows]
    np.testing.assert_array_equal(wrap(functools.partial(qj.encode, MODEL))(x), codes)
    x_hat = wrap(functools.partial(qj.decode, MODEL))(codes)
    np.testing.assert_allclose(x_hat, qj.decode(MODEL, codes), rtol=1e-5, atol=1e-5)


def test_vmap_over_batches_and_models() -> None:
    batches = X.reshape(3, 100, -1)
    models = [oracle.random_model(CONFIGS["second form"], seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    found = jax.jit(jax.vmap(qj.encode))(stacked, batches)
    expected = [qj.encode(model, batch) for model, batch in zip(models, batches, strict=True)]
    for model, batch, ours, alone in zip(models, batches, found, expected, strict=True):
        assert_as_good(model, batch, ours, alone)


@both_forms
def test_decode_is_differentiable(model: qj.Qinco) -> None:
    codes = qj.encode(model, X)
    gradient = jax.jit(jax.grad(lambda model: jnp.sum(qj.decode(model, codes))))(model)
    standardized = (qj.decode(model, codes) - model.mean[None]) / model.scale
    np.testing.assert_allclose(gradient.mean, len(X))
    np.testing.assert_allclose(gradient.scale, np.sum(standardized), rtol=1e-3)
    for name, leaf in vars(gradient.steps).items():
        assert leaf is None or bool(jnp.any(leaf != 0)) == (name != "preselect")


@pytest.mark.parametrize("dtype", [">f4", ">i2", "i8", "f8", "longdouble"])
def test_every_real_dtype_gives_the_codes_of_its_values(dtype: str) -> None:
    x = np.round(20 * X)
    np.testing.assert_array_equal(qj.encode(MODEL, x.astype(dtype)), qj.encode(MODEL, x))
    codes = np.asarray(qj.encode(MODEL, x))
    np.testing.assert_array_equal(
        qj.decode(MODEL, codes.astype(">i4")), qj.decode(MODEL, codes.astype(np.int64))
    )


def test_a_model_of_numpy_arrays_may_be_closed_over() -> None:
    model = jax.tree.map(np.asarray, MODEL)
    codes = jax.jit(lambda x: qj.encode(model, x))(X)
    np.testing.assert_array_equal(codes, qj.encode(MODEL, X))
    x_hat = jax.jit(lambda codes: qj.decode(model, codes))(codes)
    np.testing.assert_allclose(x_hat, qj.decode(MODEL, codes), rtol=1e-5, atol=1e-5)


GREEDY = MODELS["first form, greedy"]


def test_integers_of_numpy_are_integers() -> None:
    given = {"beam_size": np.int64(2), "num_candidates": np.uint8(4)}
    expected = qj.encode(MODEL, X, beam_size=2, num_candidates=4)
    np.testing.assert_array_equal(qj.encode(MODEL, X, **given), expected)


@every_model
@pytest.mark.parametrize("wrap", [lambda call: call, jax.jit], ids=["eager", "jit"])
def test_64_bit_mode_changes_nothing(model: qj.Qinco, wrap: Callable[..., Any]) -> None:
    codes = np.asarray(qj.encode(model, X))
    with jax.enable_x64(True):
        found = wrap(qj.encode)(model, np.float64(X))
        x_hat = wrap(qj.decode)(model, np.int64(codes))
        _, errors = qj.encode(model, np.float64(X), output="errors")
    assert errors.dtype == np.float32
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(x_hat, qj.decode(model, codes), rtol=1e-5, atol=1e-5)
    assert (found.dtype, x_hat.dtype) == (codes.dtype, np.float32)


BAD = X.copy()
BAD[5, 2] = np.nan
INFINITE = np.where(np.isnan(BAD), np.inf, BAD)
WRONG = {
    "more dimensions": (lambda: qj.encode(MODEL, X[:, :5]), "5 dimensions"),
    "three axes": (lambda: qj.encode(MODEL, X[None]), "shape"),
    "no axes": (lambda: qj.encode(MODEL, X[0, 0]), "shape"),
    "booleans": (lambda: qj.encode(MODEL, X > 0), "bool"),
    "complex": (lambda: qj.encode(MODEL, X.astype(np.complex64)), "complex64"),
    "strings": (lambda: qj.encode(MODEL, X.astype(str)), "integers or floats"),
    "NaN": (lambda: qj.encode(MODEL, BAD), "row 5 "),
    "NaN on the device": (lambda: qj.encode(MODEL, jnp.asarray(BAD)), "row 5 "),
    "NaN in one vector": (lambda: qj.encode(MODEL, BAD[5]), "NaN"),
    "NaN late": (lambda: qj.encode(MODEL, np.concatenate([X] * 30 + [BAD])), "row 9005 "),
    "NaN in bfloat16": (lambda: qj.encode(MODEL, BAD.astype(jnp.bfloat16)), "row 5 "),
    "Inf": (lambda: qj.encode(MODEL, INFINITE), "row 5 "),
    "A above K": (lambda: qj.encode(MODEL, X, num_candidates=17), "num_candidates"),
    "A of 0": (lambda: qj.encode(MODEL, X, num_candidates=0), "num_candidates"),
    "A without S": (lambda: qj.encode(GREEDY, X, num_candidates=3), "pre-selection"),
    "B of 0": (lambda: qj.encode(MODEL, X, beam_size=0), "beam_size"),
    "B of 4.0": (lambda: qj.encode(MODEL, X, beam_size=4.0), "beam_size must be an integer"),
    "arguments swapped": (lambda: qj.encode(X, MODEL), r"call encode\(model, x\)"),
    "codes before the model": (lambda: qj.decode(CODES, MODEL), r"call decode\(model, codes\)"),
    "beyond float32's squares": (lambda: qj.encode(MODEL, 1e21 + X), r"row 0 .* 1e\+21"),
    "beyond float32's digits": (lambda: qj.encode(MODEL, 1e9 + X), r"row 0 .* 1e\+09, and float32"),
    "large integers": (lambda: qj.encode(MODEL, np.full((4, 6), 2**31 - 1)), r"row 0 .*up to"),
    "beyond float32": (
        lambda: qj.encode(MODEL, np.float64(1e300) * X),
        r"row 0 .*, which is beyond float32",
    ),
    "zero in float32": (
        lambda: qj.encode(MODEL, np.float64(1e-200) * X),
        r"row 0 .*which is zero in float32",
    ),
    "code K": (lambda: qj.decode(MODEL, np.full((4, 3), 16)), "code 16 in row 0, column 0"),
    "code -1": (lambda: qj.decode(MODEL, np.array([[0, 0, 0], [1, -1, 0]])), "code -1 in row 1"),
    "too many columns": (lambda: qj.decode(MODEL, np.zeros((4, 4), int)), "4 columns"),
    "no columns": (lambda: qj.decode(MODEL, np.zeros((4, 0), int)), "0 columns"),
    "float codes": (lambda: qj.decode(MODEL, np.zeros((4, 3))), "integers"),
    "codes with three axes": (lambda: qj.decode(MODEL, CODES[None]), "shape"),
    "rows of two lengths": (lambda: qj.encode(MODEL, [[1, 2], [3]]), "different lengths"),
    "joint in words": (lambda: qj.encode(MODEL, X, joint="yes"), "joint must be true or false"),
    "B of truth": (lambda: qj.encode(MODEL, X, beam_size=True), "must be an integer, got True"),
    "B without end": (lambda: qj.encode(MODEL, X, beam_size=10**12), "must be 1 to 16,384"),
    "an A below 0": (lambda: qj.encode(MODEL, X, num_candidates=-1), "must be 1 to 16, got -1"),
    "masked": (lambda: qj.encode(MODEL, np.ma.masked_array(X, X > 1)), "mask of x would be"),
    "an empty list": (lambda: qj.decode(MODEL, []), "codes are an empty list"),
    "a seed that is a key": (
        lambda: qj.train_centroids(X, 4, seed=jax.random.key(0)), "seed must be an integer",
    ),
    "prefix of 0 steps": (lambda: qj.prefix(MODEL, 0), "num_steps"),
    "prefix of M + 1 steps": (lambda: qj.prefix(MODEL, 4), "num_steps"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(qj.InputError, match=message):
        call()
