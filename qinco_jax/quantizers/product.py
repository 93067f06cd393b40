"""PQ-QINCo: a vector is cut into sub-vectors, each quantized by a model of its own."""

import dataclasses
from typing import Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.config import QincoConfig
from qinco_jax.errors import InputError
from qinco_jax.quantizers.distances import matmul
from qinco_jax.quantizers.qinco import Prepared, Qinco, Search
from qinco_jax.quantizers.transform import unit


@flax.struct.dataclass
class Product:
    """P models for the P consecutive sub-vectors of x R, alike in their sizes.

    Codes are [N, P M], those of the first part first. `encode`, `decode`, `prefix`, `save` and
    `load` take it as they take a `Qinco`.

    Attributes:
      parts: P models of D / P dimensions.
      rotation: R [D, D] float32, orthogonal, such as optimized product quantization finds; `None`
        is the identity.
      unit_norm: whether vectors are divided by their length before, static.
    """

    parts: tuple[Qinco, ...]
    rotation: jax.Array | None = None
    unit_norm: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def dim(self) -> int:
        """D."""
        return sum(part.dim for part in self.parts)

    @property
    def num_steps(self) -> int:
        """M, of each part."""
        return self.parts[0].num_steps

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.parts[0].codebook_size

    @property
    def column_sizes(self) -> tuple[int, ...]:
        """For each column of a code how many values it takes."""
        return tuple(size for part in self.parts for size in part.column_sizes)

    @property
    def config(self) -> QincoConfig:
        """The sizes, read off the arrays.

        Raises:
          InputError: the parts differ in theirs, have unit_norm, or there is only one.
        """
        configs = {part.config for part in self.parts}
        if len(configs) > 1:
            raise InputError(f"the parts of a product differ in their sizes: {configs}")
        if len(self.parts) < 2 or self.parts[0].config.unit_norm:
            raise InputError(
                "a product has at least two parts, without unit_norm; use the model of a single "
                "part as it is, and set unit_norm of the product"
            )
        return dataclasses.replace(
            self.parts[0].config,
            dim=self.dim,
            num_parts=len(self.parts),
            opq=self.rotation is not None,
            unit_norm=self.unit_norm,
        )

    def first_columns(self, num_columns: int) -> Self:
        """The product of the parts' models of the first columns of their codes.

        Raises:
          InputError: the number of columns is not a multiple of P.
        """
        if num_columns == len(self.column_sizes):
            return self
        count, left = divmod(num_columns, len(self.parts))
        if left:
            raise InputError(
                f"codes have {num_columns} columns; a product of {len(self.parts)} parts has as "
                "many for each, so give a multiple"
            )
        parts = tuple(part.first_columns(count) for part in self.parts)
        return dataclasses.replace(self, parts=parts)

    def prepare(self, compute_dtype: str = "float32") -> "PreparedProduct":
        """What depends on the model alone, to be computed once for all rows; as of `Qinco`."""
        return PreparedProduct(self, tuple(part.prepare(compute_dtype) for part in self.parts))


def sub_vectors(x: jax.Array, model: Product) -> list[jax.Array]:
    """The P sub-vectors [N, D / P] of vectors [N, D] of any real dtype."""
    x = x.astype(jnp.float32)
    if model.unit_norm:
        x = unit(x)
    if model.rotation is not None:
        x = matmul(x, model.rotation)
    ends = np.cumsum([part.dim for part in model.parts])
    return jnp.split(x, ends[:-1].tolist(), axis=-1)


@flax.struct.dataclass
class PreparedProduct:
    """A product with its prepared parts, which encode and decode blocks of rows."""

    model: Product
    parts: tuple[Prepared, ...]

    def encode(self, rows: jax.Array, search: Search) -> tuple[jax.Array, jax.Array]:
        """Codes [N, B, P M] of vectors [N, D] and their squared errors [N, B].

        The n-th code joins the n-th best codes of all parts.
        """
        subs = sub_vectors(rows, self.model)
        found = [part.encode(sub, search) for part, sub in zip(self.parts, subs, strict=True)]
        codes, errors = zip(*found, strict=True)
        return jnp.concatenate(codes, axis=-1), sum(errors, jnp.float32(0))

    def decode(self, codes: jax.Array) -> jax.Array:
        """Reconstructions [N, D] of codes [N, P M]."""
        columns = jnp.split(codes, len(self.parts), axis=1)
        parts = [part.decode(own) for part, own in zip(self.parts, columns, strict=True)]
        x_hat, rotation = jnp.concatenate(parts, axis=1), self.model.rotation
        return x_hat if rotation is None else matmul(x_hat, rotation.T)
