"""The sizes of a model: `QincoConfig`, validated, and the papers' presets. No JAX here."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from qinco_jax.errors import InputError, unknown
from qinco_jax.numbers import integer, truth

T = TypeVar("T")

MAX_CODEBOOK = 65_536  # codes are 16-bit integers at most
MAX_BEAM = 16_384  # B K, by which entries of a beam are numbered, is a 32-bit integer
MAX_STEPS = 1024
MAX_WIDTH = 2**20
MAX_NUMBERS = 2**36  # of a model; JAX ends the process where bytes exceed 63 bits
RANGES = {
    "dim": (1, MAX_WIDTH),
    "num_steps": (1, MAX_STEPS),
    "codebook_size": (2, MAX_CODEBOOK),
    "embed_dim": (1, MAX_WIDTH),
    "hidden_dim": (1, MAX_WIDTH),
    "num_blocks": (1, 1024),
    "num_candidates": (1, MAX_CODEBOOK),
    "beam_size": (1, MAX_BEAM),
    "num_centroids": (2, 2**24),
    "num_parts": (1, 1024),
}
OPTIONAL = "dim", "embed_dim", "num_candidates", "num_centroids"
FLAGS = "joint", "projections", "unit_norm", "center", "rotate", "opq"
OLD_NAMES = {"normalize": "unit_norm"}  # in files that version 0.1 wrote before 2026-11-26
FORMS = ("qinco", "qinco-lr", "qinco2")


def refuses_unknown(kind: type[T]) -> type[T]:
    """Makes a dataclass refuse unknown settings with the nearest known name."""
    init = kind.__init__
    known = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(self: T, *args: Any, **settings: Any) -> None:
        for name in settings:
            if name not in known:
                raise InputError(unknown(f"setting of {kind.__name__}", name, known))
        init(self, *args, **settings)

    kind.__init__ = checked  # type: ignore[method-assign, assignment]
    return kind


@refuses_unknown
@dataclasses.dataclass(frozen=True)
class QincoConfig:
    """Sizes of a QINCo or QINCo2 model; what is known before any vector is seen.

    Attributes:
      dim: D, dimensions of a vector; `None` takes the training vectors'.
      num_steps: M, quantization steps, one code each; 0 for a coarse codebook alone.
      codebook_size: K, codewords per step, at most 65,536.
      embed_dim: E, width of the embedding; `None` means E = D, which only form "qinco2" may change.
      hidden_dim: H, width inside a residual block; of form "qinco-lr" also the rank of W.
      num_blocks: L, residual blocks per step.
      num_candidates: A, codewords per beam entry that pre-selection sends through the network
        (QINCo2, Sec. 3); `None` means no pre-selection: all K.
      beam_size: B, partial codes kept after each step; 1 is greedy encoding.
      joint: whether a step's A B candidates are the best of all B K (ours), instead of the best A
        of each partial code (QINCo2).
      form: "qinco" (arXiv 2401.14732), "qinco-lr" (there in the appendix, for large D) or "qinco2"
        (arXiv 2501.03078), the network of a step.
      projections: whether form "qinco2" has P_in and P_out. Imported models with E = D have
        none: their published program leaves both out.
      unit_norm: whether vectors are divided by their L2 norm before all; the model then
        approximates x / |x|, and lengths are lost. A vector of zeros stays one.
      center: whether the mean of the training vectors is subtracted.
      rotate: whether vectors are rotated to the principal components of the training vectors,
        which changes no distance.
      num_centroids: K_ivf, centroids of a frozen coarse codebook before step 1, at most 2^24: the
        nearest one is column 0 of a code (IVF-QINCo); `None` means none.
      num_parts: P, sub-vectors of D / P dimensions that a model each quantizes in M steps
        (PQ-QINCo).
      opq: whether a rotation that suits the sub-vectors (optimized product quantization) precedes.

    Raises:
      InputError: a size that is not an integer or is out of its range (`RANGES`), an unknown form,
        settings that exclude each other, or a model too large for any machine.
    """

    dim: int | None = None
    num_steps: int = 8
    codebook_size: int = 256
    embed_dim: int | None = None
    hidden_dim: int = 256
    num_blocks: int = 2
    num_candidates: int | None = 16
    beam_size: int = 32
    joint: bool = False
    form: str = "qinco2"
    projections: bool = True
    unit_norm: bool = False
    center: bool = True
    rotate: bool = False
    num_centroids: int | None = None
    num_parts: int = 1
    opq: bool = False

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if name == "num_steps" and self.num_centroids is not None:
                least = 0
            if value is not None or name not in OPTIONAL:
                object.__setattr__(self, name, integer(value, name, least, most))
        for name in FLAGS:
            object.__setattr__(self, name, truth(getattr(self, name), name))
        if self.num_candidates is not None and self.num_candidates > self.codebook_size:
            raise InputError(
                f"num_candidates = {self.num_candidates} exceeds codebook_size = "
                f"{self.codebook_size}; use at most that, or None for no pre-selection"
            )
        if self.form not in FORMS:
            raise InputError(unknown("form", str(self.form), FORMS))
        width = None if self.dim is None else self.dim // self.num_parts
        if not self.has_projections and self.embed_dim not in (None, width):
            raise InputError(
                f"embed_dim must be left out where there are no projections (form {self.form!r}): "
                f"E = D there, got {self.embed_dim}"
            )
        self._check_variants()
        if self.dim is not None:
            self._check_whole(self.dim)

    def _check_whole(self, dim: int) -> None:
        width = dim // self.num_parts
        embed_dim = self.embed_dim or width
        network = 2 * self.num_blocks * self.hidden_dim + embed_dim + 3 * width
        of_step = embed_dim * network + 2 * self.codebook_size * width
        total = self.num_parts * self.num_steps * of_step + dim * (self.num_centroids or 0)
        if total > MAX_NUMBERS:
            raise InputError(
                f"these sizes make a model of {total:.2g} numbers, but at most {MAX_NUMBERS:.2g} "
                "are possible; lower embed_dim, hidden_dim, num_blocks or the like"
            )

    def _check_variants(self) -> None:
        if self.num_parts == 1:
            if self.opq:
                raise InputError("opq rotates for sub-vectors; set num_parts, or rotate instead")
            return
        if self.dim is not None and self.dim % self.num_parts:
            raise InputError(
                f"{self.dim} dimensions cannot be cut into {self.num_parts} equal sub-vectors; "
                "choose a num_parts that divides them"
            )
        for name in ("num_centroids", "rotate"):
            if getattr(self, name):
                raise InputError(f"{name} does not go with num_parts = {self.num_parts}")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "QincoConfig":
        """The config of `settings` as a file keeps them; older files say `normalize`."""
        return cls(**{OLD_NAMES.get(name, name): value for name, value in settings.items()})

    def for_dim(self, dim: int) -> "QincoConfig":
        """Returns the config with `dim` and `embed_dim` filled in for vectors of `dim` dimensions.

        Raises:
          InputError: the config already names another dim.
        """
        if self.dim not in (None, dim):
            raise InputError(f"the config is for {self.dim}-dimensional vectors, got {dim}")
        embed_dim = self.embed_dim or dim // self.num_parts
        return dataclasses.replace(self, dim=dim, embed_dim=embed_dim)

    @property
    def part(self) -> "QincoConfig":
        """The config of the model of one sub-vector."""
        dim = None if self.dim is None else self.dim // self.num_parts
        return dataclasses.replace(self, dim=dim, num_parts=1, opq=False, unit_norm=False)

    @property
    def has_projections(self) -> bool:
        """Whether the network has P_in and P_out."""
        return self.form == "qinco2" and self.projections

    @property
    def transform(self) -> dict[str, bool]:
        """What `rq.train` is called with, for the transform of the vectors."""
        return {"unit_norm": self.unit_norm, "center": self.center, "rotate": self.rotate}

    @property
    def settings(self) -> dict[str, Any]:
        """The fields as files keep them: those of transform and variants only where unusual.

        So files written before these fields existed still match and resume.
        """
        settings = dataclasses.asdict(self)
        for name in (*self.transform, "num_centroids", "num_parts", "opq"):
            if settings[name] == getattr(QincoConfig, name):
                del settings[name]
        return settings

    @property
    def coarse_bits(self) -> int:
        """Bits of the coarse index: whole bytes, as files of codes and Faiss keep it; or 0."""
        if self.num_centroids is None:
            return 0
        return 8 * -(-(self.num_centroids - 1).bit_length() // 8)

    @property
    def step_bits(self) -> float:
        """Bits that each of the M steps adds, P log2(K), exact for powers of two."""
        return self.num_parts * math.log2(self.codebook_size)

    @property
    def bits(self) -> float:
        """Bits per vector: those of the coarse index and of all steps."""
        return self.coarse_bits + self.num_steps * self.step_bits


_SEARCH: Mapping[str, Any] = {"num_candidates": 2, "beam_size": 64, "joint": True}
PRESETS: Mapping[str, QincoConfig] = {
    "small": QincoConfig(embed_dim=128, num_candidates=2, beam_size=32, joint=True),
    "qinco1": QincoConfig(form="qinco", num_blocks=16, num_candidates=None, beam_size=1),
    "qinco2-S": QincoConfig(embed_dim=128, hidden_dim=256, num_blocks=2, **_SEARCH),
    "qinco2-M": QincoConfig(embed_dim=384, hidden_dim=384, num_blocks=4, **_SEARCH),
    "qinco2-L": QincoConfig(embed_dim=384, hidden_dim=384, num_blocks=16, **_SEARCH),
}
"""Sizes by name (QINCo, Sec. 5.1; QINCo2, Sec. 4); change them with `dataclasses.replace`.

The paper's search for QINCo2 is A = 16, B = 32, not joint: a greater error, in three times the time
(`experiments/search.py`). `RECIPES` train the papers' models with it.
"""


def named(table: Mapping[str, T], name: str, what: str) -> T:
    """Looks `name` up in `table`, a mapping of `what`.

    Raises:
      InputError: no such name; the message lists those that there are.
    """
    if name not in table:
        raise InputError(unknown(what, name, table))
    return table[name]
