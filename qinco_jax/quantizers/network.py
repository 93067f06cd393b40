"""The network of a step, written once: the implicit codewords f(c, x_hat).

Equations are those of arXiv 2401.14732 (QINCo) and arXiv 2501.03078 (QINCo2).
"""

import flax.struct
import jax
import jax.numpy as jnp

from qinco_jax.quantizers.distances import along_last, matmul


@flax.struct.dataclass
class Step:
    """Parameters of a step with context: f(c, x_hat) for codeword c [D] and context x_hat [D].

        z = c P_in;   z = z + [z, x_hat] W + b;   z = z + relu(z U_l) V_l for l = 1..L
        f = c + z P_out  (form "qinco2")   or   f = z  (forms "qinco" and "qinco-lr")

    Form "qinco-lr" has W as the product of two matrices, and no b. Vectors are rows, so a matrix
    maps its first axis to its second. In a `Qinco` every array has a further leading axis of
    M - 1 steps, or of M behind a coarse codebook.

    Attributes:
      codebook: [K, D], the base codewords.
      preselect: [K, D], the plain codebook S that proposes candidates; `None` without one.
      proj_in: P_in [D, E]; `None` is the identity.
      concat: W [E + D, E], or its first factor [E + D, H].
      bias: b [E]; `None` where W has factors.
      up: U [L, E, H].
      down: V [L, H, E].
      proj_out: P_out [E, D]; `None` is the identity.
      concat_out: the second factor of W [H, E]; `None` without one.
    """

    codebook: jax.Array
    preselect: jax.Array | None
    proj_in: jax.Array | None
    concat: jax.Array
    bias: jax.Array | None
    up: jax.Array
    down: jax.Array
    proj_out: jax.Array | None
    concat_out: jax.Array | None = None


@flax.struct.dataclass
class Projected:
    """What a codeword, or a context, adds to z after W, and to z U_1: [..., E] and [..., H]."""

    z: jax.Array
    up: jax.Array


def of_codeword(step: Step, codeword: jax.Array) -> jax.Array:
    """What a codeword [..., D] adds to z after W, [..., E], the bias included."""
    z = codeword if step.proj_in is None else matmul(codeword, step.proj_in)
    z = z + _mix(step, z, step.concat[: z.shape[-1]])
    return z if step.bias is None else z + along_last(step.bias, z)


def of_context(step: Step, x_hat: jax.Array) -> jax.Array:
    """What a context [..., D] adds to z after W, [..., E]."""
    return _mix(step, x_hat, step.concat[-x_hat.shape[-1] :])


def _mix(step: Step, part: jax.Array, rows: jax.Array) -> jax.Array:
    """A part of the input of W times its rows of W."""
    mixed = matmul(part, rows)
    return mixed if step.concat_out is None else matmul(mixed, step.concat_out)


def projected(step: Step, z: jax.Array) -> Projected:
    """What is carried of a sum z [..., E]: itself and its product with U_1, in the dtype of U."""
    return Projected(z, matmul(z, step.up[0]).astype(step.up.dtype))


def evaluate(form: str, step: Step, codeword: jax.Array, inside: Projected) -> jax.Array:
    """f_m [C, D] float32 for codewords [C, D], from the sum `inside` of their and contexts' parts.

    So a candidate starts with the second product of the first block.
    """
    return implicit(form, codeword, output(step, inside))


def output(step: Step, inside: Projected) -> jax.Array:
    """The network's last sum z times P_out, if any, [C, D]; both have the dtype of `inside.z`."""
    z = inside.z
    for number, down in enumerate(step.down):
        up = inside.up if number == 0 else matmul(z, step.up[number]).astype(down.dtype)
        z = z + matmul(jax.nn.relu(up), down).astype(z.dtype)
    return z if step.proj_out is None else matmul(z, step.proj_out).astype(z.dtype)


def implicit(form: str, codeword: jax.Array, output: jax.Array) -> jax.Array:
    """f_m [C, D] float32 of codewords [C, D] and the network's `output` for them."""
    output = output.astype(jnp.float32)
    return output + codeword.astype(jnp.float32) if form == "qinco2" else output


def mean_codewords(form: str, step: Step, x_hat: jax.Array) -> jax.Array:
    """The mean of f(c, x_hat) over contexts [C, D], for each codeword of a step: [K, D]."""
    codewords = projected(step, of_codeword(step, step.codebook))

    def add(total: jax.Array, x_hat: jax.Array) -> tuple[jax.Array, None]:
        context = projected(step, of_context(step, x_hat[None]))
        inside = jax.tree.map(jnp.add, codewords, context)
        return total + evaluate(form, step, step.codebook, inside), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(step.codebook), x_hat)
    return total / x_hat.shape[0]
