"""Encoding and decoding straight from the equations: one vector, Python loops, float64."""

from collections.abc import Callable, Iterable
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np

import qinco_jax as qj

Entry = tuple[tuple[int, ...], np.ndarray]
"""A partial code and its reconstruction [D] in model space."""

Propose = Callable[[list[Entry]], Iterable[Entry]]
"""A step: the beam so far -> the extensions of its entries that are candidates."""


def search(
    x: np.ndarray, codebook: np.ndarray, steps: list[Propose], beam_size: int, start_size: int
) -> Entry:
    """Beam search for x in model space, [D]; the best entry of the last beam.

    It starts from the `start_size` nearest codewords, 1 of a coarse codebook.
    """

    def best(entries: Iterable[Entry]) -> list[Entry]:
        return sorted(entries, key=lambda entry: np.sum((x - entry[1]) ** 2))[:beam_size]

    beam = best(((i,), codeword) for i, codeword in enumerate(codebook))
    beam = beam[:start_size]
    for propose in steps:
        beam = best(propose(beam))
    return beam[0]


def encode(
    model: qj.Qinco, x: np.ndarray, num_candidates: int, beam_size: int, joint: bool = False
) -> Entry:
    """Codes of one vector x [D] and their reconstruction in model space."""
    model = in_float64(model)
    x = to_model_space(model, x)

    def of_step(m: int) -> Propose:
        def score(x_hat: np.ndarray, i: int) -> float:
            return np.sum((x - x_hat - model.steps.preselect[m, i]) ** 2)

        def propose(beam: list[Entry]) -> Iterable[Entry]:
            groups = [[(*entry, i) for i in range(model.codebook_size)] for entry in beam]
            count = num_candidates
            if model.ivf and m == 0:
                count = max(num_candidates, beam_size)
            elif joint:
                groups, count = [list(chain(*groups))], num_candidates * beam_size
            if num_candidates < model.codebook_size:
                groups = [sorted(group, key=lambda c: score(*c[1:]))[:count] for group in groups]
            for codes, x_hat, i in chain(*groups):
                yield (*codes, i), x_hat + network(model, m, i, x_hat)

        return propose

    steps = [of_step(m) for m in range(len(model.steps.codebook))]
    return search(x, model.codebook, steps, beam_size, 1 if model.ivf else beam_size)


def decode(model: qj.Qinco, codes: np.ndarray) -> np.ndarray:
    """The reconstruction [D] of one code [m] in the space of the vectors."""
    model = in_float64(model)
    x_hat = model.codebook[codes[0]]
    for m, index in enumerate(codes[1:]):
        x_hat = x_hat + network(model, m, index, x_hat)
    return from_model_space(model, x_hat)


def to_model_space(model: qj.Qinco, x: np.ndarray) -> np.ndarray:
    """One vector x [D] in model space of a model in float64."""
    x = np.float64(x)
    if model.config.unit_norm and x.any():
        x = x / np.linalg.norm(x)
    x = (x - model.mean) / model.scale
    return x if model.rotation is None else np.array([x @ axis for axis in model.rotation.T])


def from_model_space(model: qj.Qinco, z: np.ndarray) -> np.ndarray:
    """The vector [D] of z [D] in model space."""
    if model.rotation is not None:
        z = sum(length * axis for length, axis in zip(z, model.rotation.T, strict=True))
    return z * model.scale + model.mean


def network(model: qj.Qinco, m: int, index: int, x_hat: np.ndarray) -> np.ndarray:
    """f(c, x_hat) [D] of step m with context, counted from 0."""
    step = jax.tree.map(lambda leaf: leaf[m], model.steps)
    c = step.codebook[index]
    z = c if step.proj_in is None else c @ step.proj_in
    mixed = np.concatenate([z, x_hat]) @ step.concat
    z = z + (mixed + step.bias if step.concat_out is None else mixed @ step.concat_out)
    for up, down in zip(step.up, step.down, strict=True):
        z = z + np.maximum(z @ up, 0) @ down
    f = z if step.proj_out is None else z @ step.proj_out
    return c + f if model.config.form == "qinco2" else f


def in_float64(model: qj.Qinco) -> qj.Qinco:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model)


def random_model(config: qj.QincoConfig, seed: int = 0) -> qj.Qinco:
    """A model whose arrays are all random, for vectors around 3 that vary by 2."""
    rng = np.random.default_rng(seed)

    # The network is strong enough to matter and weak enough to serve.
    def normal(shape: tuple[int, ...], scale: float) -> jax.Array:
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    books = normal((config.num_steps, config.codebook_size, config.dim), 0.8)
    mean, scale = normal((config.dim,), 0.1) + 3.0, jnp.float32(2.0)
    if config.unit_norm:  # unit vectors lie about these
        mean, scale = mean / 9.0, jnp.float32(0.3)
    rotation = None
    if config.rotate:
        rotation = jnp.asarray(np.linalg.qr(rng.normal(size=2 * (config.dim,)))[0], jnp.float32)
    if not config.center:
        mean = jnp.zeros_like(mean)
    start = qj.rq.RQ(books, mean, scale, rotation, config.unit_norm, config.center)
    coarse = None
    if config.num_centroids is not None:
        coarse = normal((config.num_centroids, config.dim), 0.8)
    model = jax.eval_shape(lambda: qj.init(jax.random.key(seed), config, start, coarse))
    codebook, rest = (books[0], books[1:]) if coarse is None else (coarse, books)
    arrays = {"codebook": rest, "preselect": rest}
    arrays = {
        name: None if leaf is None else arrays[name] if name in arrays
        else normal(leaf.shape, 0.5 / np.sqrt(max(1, leaf.shape[-2])))
        for name, leaf in vars(model.steps).items()
    }  # fmt: skip
    return model.replace(
        mean=mean, scale=scale, rotation=rotation, codebook=codebook,
        steps=model.steps.replace(**arrays),
    )  # fmt: skip


def random_product(config: qj.QincoConfig, seed: int = 0) -> qj.Product:
    """A product of such models, with a random rotation if the config has one."""
    parts = [random_model(config.part, seed + number) for number in range(config.num_parts)]
    rotation = None
    if config.opq:
        matrix = np.random.default_rng(seed).normal(size=2 * (config.dim,))
        rotation = jnp.asarray(np.linalg.qr(matrix)[0], jnp.float32)
    return qj.Product(tuple(parts), rotation, config.unit_norm)


def random_vectors(num_rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """[N, D] float32, such as a random model is for."""
    return np.float32(3 + 2 * np.random.default_rng(seed).normal(size=(num_rows, dim)))


def half_scale(x: np.ndarray, x_hat: np.ndarray) -> np.ndarray:
    """sqrt(cos(x, x_hat)) |x| / |x_hat| of vectors and reconstructions [N, D], [N]."""
    lengths, own = np.linalg.norm(x, axis=1), np.linalg.norm(x_hat, axis=1)
    cosines = (x * x_hat).sum(1) / (lengths * own)
    return np.sqrt(np.maximum(cosines, 0)) * lengths / own
