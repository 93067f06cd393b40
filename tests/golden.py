"""Reference vectors in tests/golden: small models of the two published programs on toy data.

The files hold what the published programs computed, under the published programs' names.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import qinco_jax as qj

FOLDER = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))

# Field of `Step` -> published name; "T" marks linear weights, which are published as [out, in].
FIRST_PROGRAM = {
    "codebook": "step{m}.codebook.weight",
    "concat": "T step{m}.MLPconcat.weight",
    "bias": "step{m}.MLPconcat.bias",
    "up": "T step{m}.residual_block{l}.0.weight",
    "down": "T step{m}.residual_block{l}.2.weight",
}
SECOND_PROGRAM = {
    "codebook": "steps.{m}.codebook.weight",
    "preselect": "steps.{m}.substep.codebook.weight",
    "proj_in": "T steps.{m}.in_proj.weight",
    "concat": "T steps.{m}.concat.mlp.weight",
    "bias": "steps.{m}.concat.mlp.bias",
    "up": "T steps.{m}.residual_blocks.{l}.up_proj.weight",
    "down": "T steps.{m}.residual_blocks.{l}.down_proj.weight",
    "proj_out": "T steps.{m}.out_proj.weight",
}


@dataclasses.dataclass(frozen=True)
class Golden:
    """One file: what went in and what the published program made of it.

    Attributes:
      arrays: all arrays by their published names.
      sizes: the published hyper-parameters.
    """

    arrays: Mapping[str, np.ndarray]
    sizes: Mapping[str, object]

    @property
    def second(self) -> bool:
        """Whether it is from the second program (QINCo2)."""
        return "A" in self.sizes

    @property
    def model(self) -> qj.Qinco:
        codebook, steps = self.parameters("weight/")
        if not self.second:
            mean, scale = jnp.zeros(codebook.shape[1]), jnp.float32(self.sizes["db_scale"])
            return qj.Qinco(mean, scale, codebook, steps, "qinco")
        mean, scale = self.arrays["weight/data_mean"], self.arrays["weight/data_std"]
        form = "qinco" if self.sizes["qinco1_mode"] else "qinco2"
        search = self.sizes["A"] or None, self.sizes["B"]
        return qj.Qinco(jnp.asarray(mean), jnp.asarray(scale), codebook, steps, form, *search)

    @property
    def codes(self) -> np.ndarray:
        """[64, M]."""
        return self.arrays["codes"].T if self.second else self.arrays["codes"]

    @property
    def reconstructions(self) -> np.ndarray:
        """x_hat_1 .. x_hat_M in the normalised space, [M, 64, D]."""
        return self.arrays["prefix_xhat_norm" if self.second else "prefix_xhat"]

    @property
    def raw_reconstructions(self) -> np.ndarray:
        """The same in the space of the vectors."""
        if self.second:
            return self.arrays["prefix_xhat"]
        return self.arrays["prefix_xhat"] * np.float32(self.sizes["db_scale"])

    @property
    def step_losses(self) -> np.ndarray:
        """Mean squared error of x_hat_m for every step, [M]."""
        if self.second:
            return self.arrays["step_mse_loss"]
        return self.arrays["train_losses"] / self.arrays["x"].size

    @property
    def preselection_losses(self) -> np.ndarray:
        """The same of what pre-selection proposes, [M]; 0 for a step without it."""
        if not self.second:
            return np.zeros_like(self.step_losses)
        return np.nan_to_num(self.arrays["step_loss_substep"])

    def parameters(self, kind: str) -> tuple[jax.Array, qj.Step]:
        """The trainable arrays under "weight/", "grad/" or "after5/", in our layout."""
        names = SECOND_PROGRAM if self.second else FIRST_PROGRAM
        first = "steps.0.codebook.weight" if self.second else "codebook0.weight"
        fields = dict.fromkeys(field.name for field in dataclasses.fields(qj.Step))
        fields |= {field: self._stacked(kind, name) for field, name in names.items()}
        return jnp.asarray(self.arrays[kind + first]), qj.Step(**fields)

    def _stacked(self, kind: str, name: str) -> jax.Array | None:
        """All steps' arrays of one name, and all blocks' where the name has a block."""
        transposed, name = name.startswith("T "), kind + name.removeprefix("T ")
        if name.format(m=1, l=0) not in self.arrays:
            return None
        num_steps, num_blocks = self.sizes["M"], self.sizes["L"] if "{l}" in name else 1
        arrays = np.stack(
            [
                [self.arrays[name.format(m=m, l=block)] for block in range(num_blocks)]
                for m in range(1, num_steps)
            ]
        )
        arrays = arrays.swapaxes(-1, -2) if transposed else arrays
        return jnp.asarray(arrays if "{l}" in name else arrays[:, 0])


def load(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = dict(file)
    return Golden(arrays, json.loads(str(arrays.pop("hparams_json"))))
