"""QINCo and QINCo2: the model, and encode and decode over the network of a step.

Equations are those of arXiv 2401.14732 (QINCo) and arXiv 2501.03078 (QINCo2).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.config import QincoConfig
from qinco_jax.quantizers import beam, network
from qinco_jax.quantizers.batching import on_cpus
from qinco_jax.quantizers.beam import Candidates
from qinco_jax.quantizers.distances import nearest, smallest, squared_distances
from qinco_jax.quantizers.network import Projected, Step, of_codeword, of_context, projected
from qinco_jax.quantizers.packing import code_dtype
from qinco_jax.quantizers.transform import Transform, from_model_space, to_model_space

Array = jax.Array | np.ndarray

OfEntries = Callable[[jax.Array], jax.Array]
"""What belongs to the entries of a beam [B, ...] -> the same of the candidates [C, ...]."""


@flax.struct.dataclass
class Qinco:
    """A model: a pytree of arrays, and the config that it was made from.

    Attributes:
      mean: [D] float32, subtracted from every vector.
      scale: [] float32, divides it after that.
      codebook: [K, D], the plain codebook of step 1; or, behind a coarse codebook, that one
        [K_ivf, D], frozen, in model space.
      steps: `Step` of arrays with a leading axis of M - 1; behind a coarse codebook of M.
      rotation: [D, D] float32, by which vectors are multiplied last (`Transform`); `None` is the
        identity.
      config: sizes, form, transform and default search, static. `dim` and `embed_dim` are set.
    """

    mean: jax.Array
    scale: jax.Array
    codebook: jax.Array
    steps: Step
    rotation: jax.Array | None
    config: QincoConfig = flax.struct.field(pytree_node=False)

    @classmethod
    def of_arrays(
        cls,
        mean: jax.Array,
        scale: jax.Array,
        codebook: jax.Array,
        steps: Step,
        rotation: jax.Array | None = None,
        *,
        ivf: bool = False,
        **settings: Any,
    ) -> "Qinco":
        """A model whose sizes are read off its arrays.

        Args:
          mean: as the attributes of the class.
          scale: likewise.
          codebook: likewise.
          steps: likewise.
          rotation: likewise.
          ivf: whether `codebook` is a coarse codebook (IVF-QINCo): column 0 of a code is then the
            number of the nearest centroid.
          **settings: `form`, `num_candidates`, `beam_size`, `joint`, `unit_norm` and `center` of
            the config.

        Raises:
          InputError: no config has these sizes and settings.
        """
        num_steps, codebook_size, dim = steps.codebook.shape
        _, num_blocks, embed_dim, hidden_dim = steps.up.shape
        form = settings.pop("form", "qinco2")
        settings = {"num_candidates": None, "beam_size": 1, **settings}
        config = QincoConfig(
            dim=dim,
            num_steps=num_steps + (not ivf),
            codebook_size=codebook_size,
            embed_dim=embed_dim,
            hidden_dim=hidden_dim,
            num_blocks=num_blocks,
            form=form,
            projections=form != "qinco2" or steps.proj_in is not None,
            rotate=rotation is not None,
            num_centroids=codebook.shape[0] if ivf else None,
            **settings,
        )
        return cls(mean, scale, codebook, steps, rotation, config)

    @property
    def transform(self) -> Transform:
        """From vectors to model space, in which the network works."""
        return Transform(self.mean, self.scale, self.rotation, self.config.unit_norm)

    @property
    def dim(self) -> int:
        """D."""
        return self.codebook.shape[-1]

    @property
    def num_steps(self) -> int:
        """M."""
        return self.config.num_steps

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.config.codebook_size

    @property
    def ivf(self) -> bool:
        """Whether a coarse codebook precedes the M steps: columns 1 to M of a code are theirs."""
        return self.config.num_centroids is not None

    @property
    def column_sizes(self) -> tuple[int, ...]:
        """For each column of a code how many values it takes."""
        coarse = () if self.config.num_centroids is None else (self.config.num_centroids,)
        return coarse + self.num_steps * (self.codebook_size,)

    def first_columns(self, num_columns: int) -> Self:
        """The model of the first columns of its codes, 1 to all; itself if that is all."""
        if num_columns == len(self.column_sizes):
            return self
        steps = jax.tree.map(lambda leaf: leaf[: num_columns - 1], self.steps)
        config = dataclasses.replace(self.config, num_steps=num_columns - self.ivf)
        return dataclasses.replace(self, steps=steps, config=config)

    def prepare(self, compute_dtype: str = "float32") -> "Prepared":
        """What depends on the model alone, to be computed once for all rows.

        Args:
          compute_dtype: "float32" or "bfloat16", of the products with the network's matrices and
            with S, of what lies between two of them, and on accelerators of candidates' sums z in
            sums, and errors, are float32.
        """
        model, preselect = network_dtype(self, compute_dtype), self.steps.preselect
        if preselect is not None:
            preselect = preselect.astype(compute_dtype)
        model = dataclasses.replace(
            model, steps=dataclasses.replace(model.steps, preselect=preselect)
        )

        def of_step(step: Step) -> Projected:
            return projected(step, of_codeword(step, step.codebook))

        return Prepared(model, jax.vmap(of_step)(model.steps))


@dataclasses.dataclass(frozen=True)
class Search:
    """How codes are looked for: A, B, and whether the A B candidates are chosen jointly."""

    num_candidates: int
    beam_size: int
    joint: bool


def reconstructions(model: Qinco, codes: jax.Array) -> jax.Array:
    """All prefix reconstructions x_hat_1 .. x_hat_M in model space, differentiably.

    Args:
      model: of M steps.
      codes: [N, M] integers, with a coarse codebook [N, 1 + M].

    Returns:
      [M, N, D] float32, with a coarse codebook [1 + M, N, D], the centroids first.
    """
    columns = codes.astype(jnp.int32).T

    def body(x_hat: jax.Array, inputs: tuple[Step, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step, index = inputs
        codeword = step.codebook[index]  # without tables: a batch may be smaller than K
        inside = projected(step, of_codeword(step, codeword) + of_context(step, x_hat))
        x_hat = x_hat + network.evaluate(model.config.form, step, codeword, inside)
        return x_hat, x_hat

    first = model.codebook[columns[0]]
    _, rest = jax.lax.scan(body, first, (model.steps, columns[1:]))
    return jnp.concatenate([first[None], rest])


def _preselect(
    step: Step, residual: jax.Array, absent: jax.Array, search: Search
) -> tuple[jax.Array, jax.Array, OfEntries]:
    """Entry and codeword [C] of the candidates that go through the network, and an entry's values.

    Unless chosen jointly, every entry has as many candidates, in turn: then nothing is gathered.
    """
    beam_size, codebook_size = len(residual), step.codebook.shape[0]
    repeat = functools.partial(jnp.repeat, repeats=search.num_candidates, axis=0)
    parent = repeat(jnp.arange(beam_size, dtype=jnp.int32))
    if search.num_candidates == codebook_size:
        return parent, jnp.tile(jnp.arange(codebook_size, dtype=jnp.int32), beam_size), repeat
    assert step.preselect is not None
    scores = squared_distances(residual, step.preselect)
    if search.joint:
        scores = jnp.where(absent[:, None], jnp.inf, scores).reshape(-1)
        _, flat = smallest(scores, beam_size * search.num_candidates)
        parent, index = jnp.divmod(flat, codebook_size)
        return parent, index, lambda values: values[parent]
    _, index = smallest(scores, search.num_candidates)
    return parent, index.reshape(-1), repeat


def _propose(
    form: str, search: Search, inputs: tuple[Step, Projected], x: jax.Array, entries: beam.Beam
) -> Candidates:
    """The codewords that S finds nearest to the residuals (all K without S), by true distance.

    On accelerators, which wait for memory, what exists for each candidate has the dtype of the
    network's matrices, sums z and codewords too; CPUs add in float32. Errors, and the
    reconstructions of the few that are chosen, are float32.
    """
    step, tables = inputs
    dtype = jnp.float32 if on_cpus() else step.up.dtype
    residual = x[None] - entries.x_hat
    parent, index, of_entries = _preselect(step, residual, jnp.isinf(entries.error), search)
    context = projected(step, of_context(step, entries.x_hat))
    inside = Projected(
        tables.z.astype(dtype)[index] + of_entries(context.z.astype(dtype)),
        tables.up[index] + of_entries(context.up),
    )
    output = network.output(step, inside)
    f = network.implicit(form, step.codebook.astype(dtype)[index], output)
    error = jnp.sum(jnp.square(of_entries(residual) - f), axis=-1)

    def x_hat(best: jax.Array) -> jax.Array:
        f = network.implicit(form, step.codebook[index[best]], output[best])
        return entries.x_hat[parent[best]] + f

    return Candidates(parent, index, error, x_hat)


@flax.struct.dataclass
class Prepared:
    """A model with the tables of its codewords, which encode and decode blocks of rows.

    Attributes:
      model: of M steps.
      tables: what all codewords of all steps with context add: [M - 1, K, E] and [M - 1, K, H].
    """

    model: Qinco
    tables: Projected

    def encode(self, rows: jax.Array, search: Search) -> tuple[jax.Array, jax.Array]:
        """Codes [N, B, M] of vectors [N, D], best first, and their squared errors [N, B]."""
        found, model = self.beams(rows, search), self.model
        dtype = jnp.uint32 if model.ivf else code_dtype(model.codebook_size)
        return found.codes.astype(dtype), found.error * jnp.square(model.scale)

    def beams(self, rows: jax.Array, search: Search) -> beam.Beam:
        """The whole final beam of each vector [N, D]: arrays [N, B, ...] in model space."""
        model, steps = self.model, (self.model.steps, self.tables)
        propose = functools.partial(_propose, model.config.form, search)
        x = to_model_space(rows, model.transform)
        if model.ivf:
            first = self._behind_centroids(x, search)
            steps = jax.tree.map(lambda leaf: leaf[1:], steps)
        else:
            begin = functools.partial(beam.start, beam_size=search.beam_size)
            first = jax.vmap(lambda x: begin(x, model.codebook, model.num_steps))(x)
        return jax.vmap(lambda x, first: beam.search(x, first, steps, propose))(x, first)

    def _behind_centroids(self, x: jax.Array, search: Search) -> beam.Beam:
        """The beams of x [N, D], in model space, after the coarse index and step 1.

        One entry has to fill the beam, so it proposes max(A, B) candidates (QINCo2, Sec. 3.3).
        """
        model = self.model
        error, centroid = nearest(x, model.codebook)
        if model.num_steps == 0:
            return jax.vmap(functools.partial(self._centroid, beam_size=search.beam_size))(
                error, centroid
            )
        most = min(max(search.num_candidates, search.beam_size), model.codebook_size)
        wide = Search(most, 1, joint=False)
        inputs = jax.tree.map(lambda leaf: leaf[0], (model.steps, self.tables))

        def one(x: jax.Array, centroid: jax.Array) -> beam.Beam:
            root = beam.root(model.codebook[centroid], len(model.column_sizes))
            root = dataclasses.replace(root, codes=root.codes.at[0, 0].set(centroid))
            proposed = _propose(model.config.form, wide, inputs, x, root)
            return beam.expand(root, proposed, 1, search.beam_size)

        return jax.vmap(one)(x, centroid)

    def _centroid(self, error: jax.Array, centroid: jax.Array, beam_size: int) -> beam.Beam:
        """The beam of a model without steps: the centroid."""
        x_hat = self.model.codebook[centroid][None]
        first = jnp.zeros(1, jnp.int32)
        only = Candidates(first, centroid[None], error[None], lambda best: x_hat[best])
        return beam.expand(beam.root(jnp.zeros_like(x_hat[0]), 1), only, 0, beam_size)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Reconstructions [N, D] of codes with a column for each step of the model."""
        model, columns = self.model, codes.astype(jnp.int32).T

        def body(
            x_hat: jax.Array, inputs: tuple[Step, Projected, jax.Array]
        ) -> tuple[jax.Array, None]:
            step, tables, index = inputs
            context = projected(step, of_context(step, x_hat))
            inside = jax.tree.map(lambda table, part: table[index] + part, tables, context)
            f = network.evaluate(model.config.form, step, step.codebook[index], inside)
            return x_hat + f, None

        first = model.codebook[columns[0]]
        x_hat, _ = jax.lax.scan(body, first, (model.steps, self.tables, columns[1:]))
        return from_model_space(x_hat, model.transform)


Parameters = tuple[jax.Array | None, Step]


def parameters(model: Qinco) -> Parameters:
    """The trainable part of a model; its transform and a coarse codebook are frozen."""
    return None if model.ivf else model.codebook, model.steps


def with_parameters(model: Qinco, parameters: Parameters) -> Qinco:
    """The model with another trainable part."""
    codebook, steps = parameters
    codebook = model.codebook if codebook is None else codebook
    return dataclasses.replace(model, codebook=codebook, steps=steps)


def network_dtype(model: Qinco, dtype: str) -> Qinco:
    """The model with its network's matrices in `dtype`, in which their products are computed.

    Codebooks, sums and distances stay float32.
    """
    names = ("proj_in", "concat", "concat_out", "up", "down", "proj_out")
    matrices = {name: getattr(model.steps, name) for name in names}
    cast = jax.tree.map(lambda w: w.astype(dtype), matrices)
    return dataclasses.replace(model, steps=dataclasses.replace(model.steps, **cast))
