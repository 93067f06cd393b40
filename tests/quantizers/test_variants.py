"""Behind centroids (IVF), of sub-vectors (PQ), of low rank: trained, saved, packed, refused."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import oracle
import pytest

import qinco_jax as qj
from qinco_jax.codecs import named, ours
from qinco_jax.evaluate import metrics
from qinco_jax.quantizers import packing, qinco, rq
from qinco_jax.training import run_folder, step

small = functools.partial(
    qj.QincoConfig, num_steps=3, codebook_size=16, hidden_dim=8, num_blocks=1, beam_size=4,
    num_candidates=4,
)  # fmt: skip
CONFIGS = {
    "low rank": small(form="qinco-lr"),
    "behind centroids": small(form="qinco", num_centroids=20),
    "second form behind many": small(num_centroids=300, embed_dim=10, rotate=True),
    "sub-vectors": small(form="qinco", num_parts=4, num_steps=2),
    "rotated sub-vectors": small(num_parts=2, embed_dim=10, opq=True),
    "sub-vectors of unit vectors": small(num_parts=2, unit_norm=True),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
RNG = np.random.default_rng(0)
X = np.float32(3 * np.sin(RNG.normal(size=(3000, 2)) @ RNG.normal(size=(2, 8))) + 1)
SUBS = small(dim=8, num_parts=2, opq=True)
PRODUCT = oracle.random_product(SUBS)
IVF = oracle.random_model(small(dim=8, num_centroids=300))


def mse(model: qj.Qinco | qj.Product, x: np.ndarray, unit_norm: bool) -> float:
    goal = x / np.linalg.norm(x, axis=1, keepdims=True) if unit_norm else x
    return float(np.square(goal - np.asarray(qj.decode(model, qj.encode(model, x)))).sum(1).mean())


@every_config
def test_a_variant_trains_resumes_saves_and_is_measured(
    config: qj.QincoConfig, tmp_path: Path
) -> None:
    if config.opq:
        pytest.importorskip("faiss")
    options = {"num_epochs": 10, "batch_size": 256, "num_updates": 2, "num_val": 300}
    model = qj.train(X, config, run_dir=tmp_path / "run", **options)
    start = run_folder.start_of(tmp_path / "run", model)
    assert start is not None
    assert mse(model, X, config.unit_norm) < 0.99 * mse(start, X, config.unit_norm)
    found = qj.load(tmp_path / "run" / "model")
    jax.tree.map(np.testing.assert_array_equal, found, model)
    assert found.config == model.config == config.for_dim(8)
    again = qj.train(X, config, run_dir=tmp_path / "run", **options)
    jax.tree.map(np.testing.assert_array_equal, again, model)
    for m in (1, config.num_steps):
        codec = ours.of_qinco(model, m)
        assert codec.bits == config.coarse_bits + m * config.step_bits
        score = metrics.measure(codec, X[:500], [])
        cut = qj.prefix(model, m)
        np.testing.assert_allclose(score.mse.value, mse(cut, X[:500], config.unit_norm), rtol=1e-4)


def test_the_coarse_codebook_is_the_given_one_and_stays_frozen() -> None:
    centroids = qj.train_centroids(X, 30, seed=1)
    model = qj.train(X, small(), centroids=centroids, num_epochs=2, batch_size=256, num_updates=1)
    assert isinstance(model, qj.Qinco)
    np.testing.assert_allclose(
        np.asarray(model.codebook) * model.scale + model.mean[None], centroids, atol=1e-5
    )
    found = np.asarray(qj.encode(model, X))
    assert (found.dtype, found.shape) == (np.uint32, (3000, 4))
    nearest = np.square(X[:, None] - centroids[None]).sum(-1).argmin(1)
    np.testing.assert_array_equal(found[:, 0], nearest)
    np.testing.assert_allclose(qj.decode(model, found[:, :1]), centroids[nearest], atol=1e-5)


def test_the_untrained_model_behind_centroids_is_residual_quantization_of_what_is_left() -> None:
    config = small(num_centroids=20, beam_size=1)
    model = qj.train(X, config, num_epochs=0)
    left = (X - np.asarray(model.mean)) / model.scale
    left = left - np.asarray(model.codebook)[np.asarray(qj.encode(model, X))[:, 0]]
    quantizer = rq.RQ(model.steps.codebook, np.zeros(8, np.float32), np.float32(1))
    expected = np.square(left - rq.decode(quantizer, rq.encode(quantizer, left, beam_size=1)))
    found = mse(model, X, False) / float(model.scale) ** 2
    np.testing.assert_allclose(found, expected.sum(1).mean(), rtol=1e-4)


def test_an_unused_codeword_behind_centroids_is_drawn_anew_and_no_centroid() -> None:
    model = oracle.random_model(small(dim=8, num_centroids=20))
    state = step.init_state(model, qj.Recipe())
    used = np.full((3, 16), 100, np.int32)
    used[1, 5] = 0
    state = state.replace(usage=jax.numpy.asarray(used))
    after = step.end_epoch(state, np.float32(1), jax.random.key(0), qj.Recipe(), 16_384).model
    moved = np.any(np.asarray(after.steps.codebook != model.steps.codebook), axis=-1)
    np.testing.assert_array_equal(moved, used == 0)
    np.testing.assert_array_equal(after.codebook, model.codebook)


def test_parts_are_coded_alone() -> None:
    rotated = X @ np.asarray(PRODUCT.rotation)
    found = np.asarray(qj.encode(PRODUCT, X))
    for number, part in enumerate(PRODUCT.parts):
        alone = qj.encode(part, rotated[:, 4 * number : 4 * number + 4])
        assert (found[:, 3 * number : 3 * number + 3] == np.asarray(alone)).mean() > 0.999
    x_hat = [qj.decode(part, found[:, 3 * n : 3 * n + 3]) for n, part in enumerate(PRODUCT.parts)]
    expected = np.concatenate(x_hat, axis=1) @ np.asarray(PRODUCT.rotation).T
    np.testing.assert_allclose(qj.decode(PRODUCT, found), expected, rtol=1e-4, atol=1e-4)
    cut = found.reshape(-1, 2, 3)[:, :, :2].reshape(-1, 4)
    np.testing.assert_array_equal(qj.decode(qj.prefix(PRODUCT, 2), cut), qj.decode(PRODUCT, cut))


@pytest.mark.parametrize("model", [PRODUCT, IVF], ids=["product", "ivf"])
def test_transformations_change_nothing(model: qj.Qinco | qj.Product) -> None:
    found = np.asarray(qj.encode(model, X[:300]))
    np.testing.assert_array_equal(jax.jit(qj.encode)(model, X[:300]), found)
    np.testing.assert_array_equal(jax.vmap(functools.partial(qj.encode, model))(X[:3]), found[:3])
    np.testing.assert_array_equal(qj.encode(model, X[5]), found[5])
    x_hat = qj.decode(model, found)
    np.testing.assert_allclose(jax.jit(qj.decode)(model, found), x_hat, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(qj.decode(model, found[5]), x_hat[5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "num_centroids", "num_parts"),
    [*itertools.product((16, 19, 256), (None, 200, 70_000), (1,)), (16, None, 2), (19, None, 2)],
)
def test_files_of_codes_hold_every_column(
    size: int, num_centroids: int | None, num_parts: int
) -> None:
    config = small(codebook_size=size, num_centroids=num_centroids, num_parts=num_parts)
    sizes = [num_centroids] * (num_centroids is not None) + [size] * 3 * num_parts
    some = np.random.default_rng(2).integers(sizes, size=(50, len(sizes))).astype(np.uint32)
    some[0], some[1] = 0, np.array(sizes) - 1
    rows = packing.to_rows(some, config)
    assert (rows.shape[1], rows.dtype) == packing.row_shape(config)
    np.testing.assert_array_equal(packing.from_rows(rows, config), some)
    if size == 256:
        assert 8 * rows.shape[1] == config.bits


def test_rates_count_the_coarse_index() -> None:
    settings = ("num_centroids=70000", "codebook_size=256")
    config, _ = named.sized("small", 11, settings)
    assert (config.num_steps, config.bits) == (8, 88)
    with pytest.raises(qj.InputError, match="coarse index of 24 bits"):
        named.sized("small", 3, settings)
    config, _ = named.sized("small", 8, ("num_parts=2",))
    assert (config.num_steps, config.bits) == (4, 64)


@pytest.mark.parametrize("num_centroids", [7, 9000])
def test_centroids_are_the_means_of_what_is_nearest(num_centroids: int) -> None:
    rng = np.random.default_rng(0)  # of its own, so that it does not matter which tests ran before
    x = np.float32(rng.normal(size=(20_000, 4)))
    centroids = qj.train_centroids(x, num_centroids, num_iters=25, max_rows=len(x))
    assert centroids.shape == (num_centroids, 4)
    model = oracle.random_model(small(dim=4, num_centroids=num_centroids))
    model = model.replace(codebook=centroids, mean=0 * model.mean, scale=np.float32(1))
    owner = np.asarray(qj.encode(qj.prefix(model, 1), x))[:, 0]
    counts = np.bincount(owner, minlength=num_centroids)
    error = np.square(x - centroids[owner]).sum(1).mean()
    start = x[rng.choice(len(x), num_centroids, replace=False)]
    model = model.replace(codebook=start)
    drawn = start[np.asarray(qj.encode(qj.prefix(model, 1), x))[:, 0]]
    assert error < 0.8 * np.square(x - drawn).sum(1).mean()
    assert (counts == 0).mean() < 0.01
    if num_centroids == 7:  # converged
        sums = np.zeros((7, 4))
        np.add.at(sums, owner, x)
        np.testing.assert_allclose(centroids, sums / counts[:, None], atol=0.02)


@pytest.mark.parametrize("num_centroids", [30, 9000])
def test_where_vectors_lie_and_how_large_they_are_changes_no_cluster(num_centroids: int) -> None:
    x = np.float32(np.random.default_rng(0).normal(size=(12_000, 4)))
    near = qj.train_centroids(x, num_centroids, num_iters=3)
    far = (qj.train_centroids(1e4 * x + 1e6, num_centroids, num_iters=3) - 1e6) / 1e4

    def error(centroids: np.ndarray) -> float:
        """Of all rows: a rounding may move a cluster from one far row to another."""
        blocks = (np.square(rows[:, None] - centroids) for rows in np.split(x, 60))
        return np.mean([block.sum(-1).min(1).mean() for block in blocks])

    np.testing.assert_allclose(error(far), error(near), rtol=0.05)


def test_a_preselector_is_fitted_to_every_part() -> None:
    bare = [part.replace(steps=part.steps.replace(preselect=None)) for part in PRODUCT.parts]
    fitted = qj.fit_preselector(PRODUCT.replace(parts=tuple(bare)), X, num_candidates=8)
    every = [
        part.replace(config=dataclasses.replace(part.config, num_candidates=16)) for part in bare
    ]
    exact = mse(PRODUCT.replace(parts=tuple(every)), X, False)
    assert mse(fitted, X, False) < 1.2 * exact


def test_packed_prefixes_of_sub_vectors_are_known_by_their_width() -> None:
    some = np.random.default_rng(3).integers(16, size=(50, 4)).astype(np.uint8)
    rows = packing.pack(some, 16)
    np.testing.assert_array_equal(packing.from_rows(rows, PRODUCT.config), some)


def test_empty_clusters_are_refilled() -> None:
    x = np.repeat(np.float32([[0, 0], [9, 9]]), [990, 10], axis=0)
    x[:990] += np.float32(np.random.default_rng(4).normal(size=(990, 2)))
    x[5:400] = x[5]  # rows that are drawn twice leave clusters empty
    centroids = qj.train_centroids(x, 40, num_iters=20)
    owner = np.square(x[:, None] - centroids[None]).sum(-1).argmin(1)
    assert len(np.unique(owner)) >= 38


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "half a step of sub-vectors": (lambda: qj.decode(PRODUCT, np.zeros((4, 3), int)), "multiple"),
    "other dimensions": (lambda: qj.encode(PRODUCT, X[:, :7]), "7 dimensions"),
    "a coarse index too large": (
        lambda: qj.decode(IVF, np.array([[300, 0, 0, 0]])), r"code 300 .* outside 0..299",
    ),
    "a code of the first column in the second": (
        lambda: qj.decode(IVF, np.array([[299, 17, 0, 0]])), r"code 17 .* outside 0..15",
    ),
    "one centroid": (lambda: small(num_centroids=1), "num_centroids must be 2"),
    "sub-vectors behind centroids": (
        lambda: small(num_centroids=9, num_parts=2), "does not go with num_parts",
    ),
    "opq of one part": (lambda: small(opq=True), "set num_parts"),
    "unequal sub-vectors": (lambda: small(num_parts=3).for_dim(8), "8 dimensions cannot be cut"),
    "other centroids": (
        lambda: qj.train(X, small(num_centroids=9), centroids=X[:8]), "num_centroids = 9",
    ),
    "centroids of other dimensions": (
        lambda: qj.train(X, small(), centroids=X[:8, :5]), "5 dimensions",
    ),
    "more centroids than rows": (lambda: qj.train_centroids(X[:5], 6), "as many centroids as rows"),
    "fewer rows than centroids": (
        lambda: qj.train_centroids(X, 50, max_rows=20), "at most 20 rows",
    ),
    "more centroids than training vectors": (
        lambda: qj.train(X[:500], small(num_centroids=600)), "num_centroids = 600 exceeds",
    ),
    "centroids of vectors that are divided": (
        lambda: qj.train(X, small(unit_norm=True), centroids=9 * X[:20]), "--unit-norm",
    ),
    "a product of one": (lambda: qj.Product(PRODUCT.parts[:1]).config, "at least two parts"),
    "too many parts": (lambda: small(num_parts=2000), "num_parts must be 1 to 1,024"),
    "a coarse index that no file holds": (
        lambda: packing.to_rows(np.array([[300, 0, 0, 0]]), IVF.config), "code 300",
    ),
    "a rotation from few vectors": (
        lambda: qj.train(X[:200], small(num_parts=2, opq=True)), "256 training vectors|Faiss",
    ),
    "a codec of unequal parts": (
        lambda: named.contenders(["small"], [8], 127, ["num_parts=2"]), "cannot be cut",
    ),
    "centroids of NaN": (
        lambda: qj.train(X, small(), centroids=np.full((9, 8), np.nan)), "row 0 of the centroids",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(qj.InputError, match=message):
        call()


def test_a_part_of_another_size_has_no_config() -> None:
    other = oracle.random_model(small(dim=4, hidden_dim=9))
    model = qj.Product((PRODUCT.parts[0], other))
    with pytest.raises(qj.InputError, match="differ in their sizes"):
        _ = model.config
    assert qinco.parameters(IVF)[0] is None
