"""QINCo and QINCo2: the network of a step, written once, and encode and decode over it.

Equations are those of arXiv 2401.14732 (QINCo) and arXiv 2501.03078 (QINCo2).
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax import beam, checks
from qinco_jax.beam import Candidates
from qinco_jax.codes import code_dtype
from qinco_jax.config import QincoConfig
from qinco_jax.data.stored import Vectors
from qinco_jax.distances import along_last, matmul, smallest, squared_distances
from qinco_jax.errors import InputError
from qinco_jax.rows import block_rows, map_rows
from qinco_jax.rq import RQ
from qinco_jax.transform import Transform, denormalise, normalise

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class Step:
    """Parameters of a step m >= 2: f(c, x_hat) for codeword c [D] and context x_hat [D].

        z = c P_in;   z = z + [z, x_hat] W + b;   z = z + relu(z U_l) V_l for l = 1..L
        f = c + z P_out  (form "qinco2")   or   f = z  (form "qinco")

    Vectors are rows, so a matrix maps its first axis to its second. In a `Qinco` every array has a
    further leading axis of M - 1 steps.

    Attributes:
      codebook: [K, D], the base codewords.
      preselect: [K, D], the plain codebook S that proposes candidates; `None` without one.
      proj_in: P_in [D, E]; `None` is the identity.
      concat: W [E + D, E].
      bias: b [E].
      up: U [L, E, H].
      down: V [L, H, E].
      proj_out: P_out [E, D]; `None` is the identity.
    """

    codebook: jax.Array
    preselect: jax.Array | None
    proj_in: jax.Array | None
    concat: jax.Array
    bias: jax.Array
    up: jax.Array
    down: jax.Array
    proj_out: jax.Array | None


@flax.struct.dataclass
class Qinco:
    """A model: a pytree of arrays, and the search that it encodes with by default.

    Attributes:
      mean: [D] float32, subtracted from every vector.
      scale: [] float32, divides it after that.
      codebook: [K, D], the plain codebook of step 1.
      steps: `Step` of arrays with a leading axis of M - 1.
      form: "qinco" or "qinco2", static.
      num_candidates: A, static; `None` means all K.
      beam_size: B, static.
      joint: whether candidates are chosen jointly over the beam, static.
      rotation: [D, D] float32, by which vectors are multiplied last (`Transform`); `None` is the
        identity.
      normalize: whether vectors are divided by their length before all, static; then the model
        approximates x / |x|.
      center: whether `mean` is the training vectors', static; else it is 0.
    """

    mean: jax.Array
    scale: jax.Array
    codebook: jax.Array
    steps: Step
    form: str = flax.struct.field(pytree_node=False, default="qinco2")
    num_candidates: int | None = flax.struct.field(pytree_node=False, default=None)
    beam_size: int = flax.struct.field(pytree_node=False, default=1)
    joint: bool = flax.struct.field(pytree_node=False, default=False)
    rotation: jax.Array | None = None
    normalize: bool = flax.struct.field(pytree_node=False, default=False)
    center: bool = flax.struct.field(pytree_node=False, default=True)

    @property
    def transform(self) -> Transform:
        """From vectors to the normalised space, in which the network works."""
        return Transform(self.mean, self.scale, self.rotation, self.normalize)

    @property
    def num_steps(self) -> int:
        """M."""
        return self.steps.codebook.shape[0] + 1

    @property
    def config(self) -> QincoConfig:
        """The sizes, read off the arrays."""
        _, num_blocks, embed_dim, hidden_dim = self.steps.up.shape
        codebook_size, dim = self.codebook.shape
        return QincoConfig(
            dim=dim,
            num_steps=self.num_steps,
            codebook_size=codebook_size,
            embed_dim=embed_dim,
            hidden_dim=hidden_dim,
            num_blocks=num_blocks,
            num_candidates=self.num_candidates,
            beam_size=self.beam_size,
            joint=self.joint,
            form=self.form,
            projections=self.form == "qinco" or self.steps.proj_in is not None,
            normalize=self.normalize,
            center=self.center,
            rotate=self.rotation is not None,
        )


def init(key: jax.Array, config: QincoConfig, rq: RQ) -> Qinco:
    """The untrained model, which encodes and decodes exactly as the residual quantizer `rq`.

    W, b and, without projections, V start at zero, P_out as well: then f = c. The remaining
    matrices are He-uniform, V at a tenth of it.

    Args:
      key: PRNG key of the matrices.
      config: sizes and transform; M, K, D and the transform must be those of `rq`.
      rq: codebooks [M, K, D] and transform to start from.

    Raises:
      InputError: `config` and `rq` differ in M, K, D or transform.
    """
    rest, codebook_size, dim = rq.codebooks[1:].shape
    config = config.for_dim(dim)
    embed_dim, hidden_dim, num_blocks = config.embed_dim, config.hidden_dim, config.num_blocks
    assert embed_dim is not None
    if (rest + 1, codebook_size) != (config.num_steps, config.codebook_size):
        raise InputError(
            f"the residual quantizer has {rest + 1} steps of {codebook_size} codewords, the config "
            f"{config.num_steps} of {config.codebook_size}"
        )
    transform = {
        "normalize": rq.normalize, "center": rq.center, "rotate": rq.rotation is not None
    }  # fmt: skip
    if transform != config.transform:
        raise InputError(
            f"the residual quantizer transforms vectors with {transform}, the config with "
            f"{config.transform}"
        )
    keys = jax.random.split(key, 3)

    def he_uniform(key: jax.Array, *shape: int) -> jax.Array:
        bound = np.sqrt(6.0 / shape[-2])
        return jax.random.uniform(key, (rest, *shape), jnp.float32, -bound, bound)

    projected = config.has_projections
    down_scale = 0.1 if projected else 0.0
    steps = Step(
        codebook=rq.codebooks[1:],
        preselect=None if config.num_candidates is None else rq.codebooks[1:],
        proj_in=he_uniform(keys[0], dim, embed_dim) if projected else None,
        concat=jnp.zeros((rest, embed_dim + dim, embed_dim)),
        bias=jnp.zeros((rest, embed_dim)),
        up=he_uniform(keys[1], num_blocks, embed_dim, hidden_dim),
        down=down_scale * he_uniform(keys[2], num_blocks, hidden_dim, embed_dim),
        proj_out=jnp.zeros((rest, embed_dim, dim)) if projected else None,
    )
    return Qinco(
        rq.mean, rq.scale, rq.codebooks[0], steps,
        config.form, config.num_candidates, config.beam_size, config.joint,
        rq.rotation, rq.normalize, rq.center,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Search:
    """How codes are looked for: A, B, and whether the A B candidates are chosen jointly."""

    num_candidates: int
    beam_size: int
    joint: bool


def encode(
    model: Qinco,
    x: Vectors,
    *,
    num_candidates: int | None = None,
    beam_size: int | None = None,
    joint: bool | None = None,
) -> jax.Array:
    """Codes of vectors, by beam search with pre-selection (QINCo2, Sec. 3).

    The model normalises, centers and rotates the vectors itself, as it was trained to.

    Pure; works under `jit`, `vmap` and on batches sharded over a mesh. Outside `jit` any number of
    rows is encoded in bounded memory, without compiling again for another number.

    Args:
      model: of M steps and K codewords each.
      x: [N, D] or [D], numpy or jax or a `Stored`, any real dtype; N may be 0.
      num_candidates: A, 1 to K; K sends all codewords through the network. `None` means the
        model's own.
      beam_size: B, at least 1; 1 is greedy. `None` means the model's own.
      joint: whether a step's A B candidates are the best of all B K, instead of the paper's best A
        of each partial code; the error is smaller at the same A and B. `None` means the model's
        own.

    Returns:
      [N, M] or [M], uint8 for K <= 256, else uint16.

    Raises:
      InputError: wrong shape, dtype, A or B; NaN or Inf (outside `jit`).
    """
    x = checks.vectors(x, model.mean.shape[-1])
    search = search_of(model, num_candidates, beam_size, joint)
    if x.ndim == 1:
        return encode(model, x[None], **dataclasses.asdict(search))[0]
    candidates = search.num_candidates * search.beam_size
    scores = search.beam_size * model.codebook.shape[0]
    rows = block_rows(max(candidates, scores // 64))
    return map_rows(
        _with_tables, _encode_rows, model, x, rows=rows, options=(search,), check=checks.finite
    )


def decode(model: Qinco, codes: Array) -> jax.Array:
    """Reconstructions of codes or of their first columns.

    Args:
      model: of M steps and K codewords each.
      codes: [N, m] or [m] integers, 1 <= m <= M, numpy or jax; N may be 0.

    Returns:
      [N, D] or [D] float32, x_hat_m in the space of the vectors. A model that normalises gives
      approximations of x / |x|: codes do not keep the lengths of vectors.

    Raises:
      InputError: wrong shape or dtype; codes outside 0..K-1 (outside `jit`).
    """
    codes = checks.codes(codes, model.num_steps)
    if codes.ndim == 1:
        return decode(model, codes[None])[0]
    check = functools.partial(checks.codes_below, model.codebook.shape[0])
    model = prefix(model, codes.shape[1])
    return map_rows(_with_tables, _decode_rows, model, codes, rows=block_rows(2), check=check)


def prefix(model: Qinco, num_steps: int) -> Qinco:
    """The model of the first `num_steps` steps: a lower rate, 1 <= num_steps <= M.

    It decodes the first columns of the model's codes. Its own codes are those columns when B = 1;
    with a wider beam they may differ, and reconstruct better at this rate.

    Raises:
      InputError: `num_steps` out of range.
    """
    if not 1 <= num_steps <= model.num_steps:
        raise InputError(f"num_steps must be 1 to {model.num_steps}, got {num_steps}")
    return dataclasses.replace(
        model, steps=jax.tree.map(lambda leaf: leaf[: num_steps - 1], model.steps)
    )


def reconstructions(model: Qinco, codes: jax.Array) -> jax.Array:
    """All prefix reconstructions x_hat_1 .. x_hat_M in the normalised space, differentiably.

    Args:
      model: of M steps.
      codes: [N, M] integers.

    Returns:
      [M, N, D] float32.
    """
    columns = codes.astype(jnp.int32).T

    def body(x_hat: jax.Array, inputs: tuple[Step, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step, index = inputs
        codeword = step.codebook[index]  # without tables: a batch may be smaller than K
        inside = _part(step, _of_codeword(step, codeword) + _of_context(step, x_hat))
        x_hat = x_hat + _network(model.form, step, codeword, inside)
        return x_hat, x_hat

    first = model.codebook[columns[0]]
    _, rest = jax.lax.scan(body, first, (model.steps, columns[1:]))
    return jnp.concatenate([first[None], rest])


@flax.struct.dataclass
class _Part:
    """What a codeword, or a context, adds to z after W, and to z U_1: [..., E] and [..., H]."""

    z: jax.Array
    up: jax.Array


def _of_codeword(step: Step, codeword: jax.Array) -> jax.Array:
    """What a codeword [..., D] adds to z after W, [..., E], the bias included."""
    z = codeword if step.proj_in is None else matmul(codeword, step.proj_in)
    return z + matmul(z, step.concat[: z.shape[-1]]) + along_last(step.bias, z)


def _of_context(step: Step, x_hat: jax.Array) -> jax.Array:
    """What a context [..., D] adds to z after W, [..., E]."""
    return matmul(x_hat, step.concat[-x_hat.shape[-1] :])


def _part(step: Step, z: jax.Array) -> _Part:
    return _Part(z, matmul(z, step.up[0]))


def _tables(model: Qinco) -> _Part:
    """The parts of all codewords of all steps: [M - 1, K, E] and [M - 1, K, H]."""

    def of_step(step: Step) -> _Part:
        return _part(step, _of_codeword(step, step.codebook))

    return jax.vmap(of_step)(model.steps)


def _network(form: str, step: Step, codeword: jax.Array, inside: _Part) -> jax.Array:
    """f_m [C, D] for codewords [C, D], from the sum `inside` of their and their contexts' parts.

    So a candidate starts with the second product of the first block.
    """
    z = inside.z + matmul(jax.nn.relu(inside.up), step.down[0])
    for up, down in zip(step.up[1:], step.down[1:], strict=True):
        z = z + matmul(jax.nn.relu(matmul(z, up)), down)
    f = z if step.proj_out is None else matmul(z, step.proj_out)
    return f + codeword if form == "qinco2" else f


def mean_codewords(form: str, step: Step, x_hat: jax.Array) -> jax.Array:
    """The mean of f(c, x_hat) over contexts [C, D], for each codeword of a step: [K, D]."""
    codewords = _part(step, _of_codeword(step, step.codebook))

    def add(total: jax.Array, x_hat: jax.Array) -> tuple[jax.Array, None]:
        context = _part(step, _of_context(step, x_hat[None]))
        inside = jax.tree.map(jnp.add, codewords, context)
        return total + _network(form, step, step.codebook, inside), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(step.codebook), x_hat)
    return total / x_hat.shape[0]


def _preselect(
    step: Step, residual: jax.Array, absent: jax.Array, search: Search
) -> tuple[jax.Array, jax.Array]:
    """Entry and codeword [C] of the candidates that go through the network."""
    beam_size, codebook_size = len(residual), step.codebook.shape[0]
    if search.num_candidates == codebook_size:
        return jnp.divmod(jnp.arange(beam_size * codebook_size), codebook_size)
    assert step.preselect is not None
    scores = squared_distances(residual, step.preselect)
    if search.joint:
        scores = jnp.where(absent[:, None], jnp.inf, scores).reshape(-1)
        _, flat = smallest(scores, beam_size * search.num_candidates)
        return jnp.divmod(flat, codebook_size)
    _, index = smallest(scores, search.num_candidates)
    return jnp.repeat(jnp.arange(beam_size), search.num_candidates), index.reshape(-1)


def _propose(
    form: str, search: Search, inputs: tuple[Step, _Part], x: jax.Array, entries: beam.Beam
) -> Candidates:
    """The codewords that S finds nearest to the residuals (all K without S), by true distance."""
    step, tables = inputs
    residual = x[None] - entries.x_hat
    parent, index = _preselect(step, residual, jnp.isinf(entries.error), search)
    context = _part(step, _of_context(step, entries.x_hat))
    inside = jax.tree.map(lambda table, of_entry: table[index] + of_entry[parent], tables, context)
    f = _network(form, step, step.codebook[index], inside)
    error = jnp.sum(jnp.square(residual[parent] - f), axis=-1)
    return Candidates(parent, index, error, lambda best: entries.x_hat[parent[best]] + f[best])


def _with_tables(model: Qinco) -> tuple[Qinco, _Part]:
    return model, _tables(model)


def _encode_rows(prepared: tuple[Qinco, _Part], rows: jax.Array, search: Search) -> jax.Array:
    found = beams(prepared, rows, search)
    return found.codes[:, 0].astype(code_dtype(prepared[0].codebook.shape[0]))


def beams(prepared: tuple[Qinco, _Part], rows: jax.Array, search: Search) -> beam.Beam:
    """The whole final beam of each row [N, D]: arrays [N, B, ...]."""
    model, tables = prepared
    one = functools.partial(
        beam.search,
        codebook=model.codebook,
        steps=(model.steps, tables),
        propose=functools.partial(_propose, model.form, search),
        beam_size=search.beam_size,
    )
    return jax.vmap(one)(normalise(rows, model.transform))


def _decode_rows(prepared: tuple[Qinco, _Part], codes: jax.Array) -> jax.Array:
    model, tables = prepared
    columns = codes.astype(jnp.int32).T

    def body(x_hat: jax.Array, inputs: tuple[Step, _Part, jax.Array]) -> tuple[jax.Array, None]:
        step, tables, index = inputs
        context = _part(step, _of_context(step, x_hat))
        inside = jax.tree.map(lambda table, part: table[index] + part, tables, context)
        return x_hat + _network(model.form, step, step.codebook[index], inside), None

    first = model.codebook[columns[0]]
    x_hat, _ = jax.lax.scan(body, first, (model.steps, tables, columns[1:]))
    return denormalise(x_hat, model.transform)


def search_of(
    model: Qinco, num_candidates: int | None, beam_size: int | None, joint: bool | None
) -> Search:
    """The search to encode with, where `None` means the model's own.

    Raises:
      InputError: A or B out of range, or pre-selection with a model that has none.
    """
    codebook_size = model.codebook.shape[0]
    if num_candidates is None:
        num_candidates = model.num_candidates or codebook_size
    if beam_size is None:
        beam_size = model.beam_size
    if not 1 <= num_candidates <= codebook_size:
        raise InputError(f"num_candidates must be 1 to {codebook_size}, got {num_candidates}")
    if num_candidates < codebook_size and model.steps.preselect is None:
        raise InputError(
            f"num_candidates = {num_candidates} needs a model trained with pre-selection; leave "
            f"it out for this one"
        )
    if beam_size < 1:
        raise InputError(f"beam_size must be at least 1, got {beam_size}")
    joint = model.joint if joint is None else joint
    return Search(num_candidates, beam_size, joint and num_candidates < codebook_size)


def parameters(model: Qinco) -> tuple[jax.Array, Step]:
    """The trainable part of a model; its transform is frozen."""
    return model.codebook, model.steps


def with_parameters(model: Qinco, parameters: tuple[jax.Array, Step]) -> Qinco:
    """The model with another trainable part."""
    codebook, steps = parameters
    return dataclasses.replace(model, codebook=codebook, steps=steps)


def network_dtype(model: Qinco, dtype: jnp.dtype) -> Qinco:
    """The model with its network's matrices in `dtype`, in which their products are computed.

    Codebooks, sums and distances stay float32.
    """
    names = ("proj_in", "concat", "up", "down", "proj_out")
    matrices = {name: getattr(model.steps, name) for name in names}
    cast = jax.tree.map(lambda w: w.astype(dtype), matrices)
    return dataclasses.replace(model, steps=dataclasses.replace(model.steps, **cast))
