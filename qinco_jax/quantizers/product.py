"""PQ-QINCo: a vector is cut into sub-vectors, each quantized by a model of its own."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.config import QincoConfig
from qinco_jax.errors import InputError
from qinco_jax.quantizers import qinco
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
        if len(self.parts) < 2 or self.parts[0].unit_norm:
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


def first_columns(model: Product, num_columns: int) -> Product:
    """The product of the parts' models of the first columns of their codes.

    Raises:
      InputError: the number of columns is no multiple of P.
    """
    count, left = divmod(num_columns, len(model.parts))
    if left:
        raise InputError(
            f"codes have {num_columns} columns; a product of {len(model.parts)} parts has as many "
            "for each, so give a multiple"
        )
    parts = tuple(qinco.first_columns(part, count) for part in model.parts)
    return dataclasses.replace(model, parts=parts)


def sub_vectors(x: jax.Array, model: Product) -> list[jax.Array]:
    """The P sub-vectors [N, D / P] of vectors [N, D] of any real dtype."""
    x = x.astype(jnp.float32)
    if model.unit_norm:
        x = unit(x)
    if model.rotation is not None:
        x = matmul(x, model.rotation)
    ends = np.cumsum([part.dim for part in model.parts])
    return jnp.split(x, ends[:-1].tolist(), axis=-1)


Parts = tuple[Product, tuple[Prepared, ...]]


def prepare(model: Product) -> Parts:
    """What depends on the model alone: itself, and each part's share."""
    return model, tuple(map(qinco.prepare, model.parts))


def encode_rows(prepared: Parts, rows: jax.Array, search: Search) -> jax.Array:
    """Codes [N, P M] of a block of vectors [N, D]."""
    model, parts = prepared
    subs = sub_vectors(rows, model)
    codes = [qinco.encode_rows(part, sub, search) for part, sub in zip(parts, subs, strict=True)]
    return jnp.concatenate(codes, axis=1)


def decode_rows(prepared: Parts, codes: jax.Array) -> jax.Array:
    """Reconstructions [N, D] of a block of codes."""
    model, parts = prepared
    columns = jnp.split(codes, len(parts), axis=1)
    x_hat = jnp.concatenate(
        [qinco.decode_rows(part, own) for part, own in zip(parts, columns, strict=True)], axis=1
    )
    return x_hat if model.rotation is None else matmul(x_hat, model.rotation.T)
