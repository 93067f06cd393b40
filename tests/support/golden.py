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

FOLDER = Path(__file__).parents[1] / "golden"
PARTS = sorted(path.stem for path in FOLDER.glob("*pqqinco*.npz"))
NAMES = sorted({path.stem for path in FOLDER.glob("*.npz")} - {*PARTS})

# Field of `Step` -> published name; "T" marks linear weights, which are published as [out, in].
FIRST_PROGRAM = {
    "codebook": "step{m}.codebook.weight",
    "concat": "T step{m}.MLPconcat.weight",
    "bias": "step{m}.MLPconcat.bias",
    "up": "T step{m}.residual_block{l}.0.weight",
    "down": "T step{m}.residual_block{l}.2.weight",
}
LOW_RANK = {
    **FIRST_PROGRAM,
    "concat": "T step{m}.MLPconcat.0.weight",
    "concat_out": "T step{m}.MLPconcat.1.weight",
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
    def ivf(self) -> bool:
        """Whether a coarse codebook comes first."""
        return bool(self.sizes.get("ivf_in_use")) or "K_IVF" in self.sizes

    @property
    def low_rank(self) -> bool:
        """Whether W has two factors."""
        return self.sizes.get("cls") == "QINCoLR"

    @property
    def model(self) -> qj.Qinco:
        codebook, steps = self.parameters("weight/")
        if codebook is None:
            name = "steps.0.ivf_centroids.weight" if self.second else "codebook0.weight"
            codebook = jnp.asarray(self.arrays["weight/" + name])
        if not self.second:
            mean, scale = jnp.zeros(codebook.shape[1]), jnp.float32(self.sizes["db_scale"])
            form = "qinco-lr" if self.low_rank else "qinco"
            return qj.Qinco.of_arrays(mean, scale, codebook, steps, form=form, ivf=self.ivf)
        mean, scale = self.arrays["weight/data_mean"], self.arrays["weight/data_std"]
        form = "qinco" if self.sizes["qinco1_mode"] else "qinco2"
        return qj.Qinco.of_arrays(
            jnp.asarray(mean), jnp.asarray(scale), codebook, steps,
            form=form, num_candidates=self.sizes["A"] or None, beam_size=self.sizes["B"],
            ivf=self.ivf,
        )  # fmt: skip

    @property
    def codes(self) -> np.ndarray:
        """[64, M]."""
        return self.arrays["codes"].T if self.second else self.arrays["codes"]

    @property
    def reconstructions(self) -> np.ndarray:
        """x_hat_1 .. x_hat_M in model space, [M, 64, D]; the centroids first, if any."""
        return self.arrays["prefix_xhat_norm" if self.second else "prefix_xhat"]

    @property
    def raw_reconstructions(self) -> np.ndarray:
        """The same in the space of the vectors."""
        if self.second:
            return self.arrays["prefix_xhat"]
        return self.arrays["prefix_xhat"] * np.float32(self.sizes["db_scale"])

    @property
    def step_losses(self) -> np.ndarray:
        """Mean squared error of each reconstruction, [M]."""
        if self.second:
            return np.nan_to_num(self.arrays["step_mse_loss"])
        return self.arrays["train_losses"] / self.arrays["x"].size

    @property
    def coarse_loss(self) -> float:
        """A constant of the first program's loss: the error of a coarse codebook."""
        return float(self.step_losses[0]) if self.ivf and not self.second else 0.0

    @property
    def preselection_losses(self) -> np.ndarray:
        """The same of what pre-selection proposes, [M]; 0 for a step without it."""
        if not self.second:
            return np.zeros_like(self.step_losses)
        return np.nan_to_num(self.arrays["step_loss_substep"])

    def parameters(self, kind: str) -> tuple[jax.Array | None, qj.Step]:
        """The trainable arrays under "weight/", "grad/" or "after5/", in our layout."""
        names = SECOND_PROGRAM if self.second else LOW_RANK if self.low_rank else FIRST_PROGRAM
        first = "steps.0.codebook.weight" if self.second else "codebook0.weight"
        fields = dict.fromkeys(field.name for field in dataclasses.fields(qj.Step))
        fields |= {field: self._stacked(kind, name) for field, name in names.items()}
        codebook = None if self.ivf else jnp.asarray(self.arrays[kind + first])
        return codebook, qj.Step(**fields)

    def _stacked(self, kind: str, name: str) -> jax.Array | None:
        """All steps' arrays of one name, and all blocks' where the name has a block."""
        transposed, name = name.startswith("T "), kind + name.removeprefix("T ")
        if name.format(m=1, l=0) not in self.arrays:
            return None
        num_blocks = self.sizes["L"] if "{l}" in name else 1
        first = 0 if self.ivf and not self.second else 1
        last = self.sizes["M"] - 1 + (self.ivf and self.second)
        arrays = np.stack(
            [
                [self.arrays[name.format(m=m, l=block)] for block in range(num_blocks)]
                for m in range(first, last + 1)
            ]
        )
        arrays = arrays.swapaxes(-1, -2) if transposed else arrays
        return jnp.asarray(arrays if "{l}" in name else arrays[:, 0])


def product(file: Golden) -> qj.Product:
    """The model of a file of sub-quantizers."""
    parts = []
    for number, sizes in enumerate(file.sizes["sub"]):
        name = f"weight/sub_quantizer_{number}."
        arrays = {
            "weight/" + key.removeprefix(name): array
            for key, array in file.arrays.items() if key.startswith(name)
        }  # fmt: skip
        parts.append(Golden(arrays, sizes).model)
    rotation = file.arrays.get("weight/opq_matrix")
    return qj.Product(tuple(parts), None if rotation is None else jnp.asarray(rotation.T))


def load(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = dict(file)
    return Golden(arrays, json.loads(str(arrays.pop("hparams_json"))))
