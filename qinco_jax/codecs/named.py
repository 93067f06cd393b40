"""Codecs by name, ready to be trained and compared: `opq`, `rq:B=32`, `unq`, `small@16:A=4:B=8`.

NAME[@BYTES][:moved][:A=..][:B=..][:joint|:each][:float32|:bfloat16]. Without @BYTES a codec is
trained for every rate it is measured at; with it, one model of that size is cut to a prefix for
each rate. A and B are the search's candidates and beam, the last is the `compute_dtype` that it is
measured in.
`moved` trains PQ, OPQ, RQ or LSQ on vectors moved towards their neighbours, as recipes with `mix`
train our models. NAME is a baseline, a preset, or the folder of a trained model.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qinco_jax import numbers, optional
from qinco_jax.codecs import faiss as faiss_codecs
from qinco_jax.codecs import ours
from qinco_jax.codecs.codec import AtRate, Codec, Contender
from qinco_jax.codecs.unq import unq
from qinco_jax.codecs.unq.train import train as train_unq
from qinco_jax.config import MAX_BEAM, MAX_CODEBOOK, MAX_STEPS, PRESETS, QincoConfig, named
from qinco_jax.errors import InputError, unknown
from qinco_jax.models import disk, orbax
from qinco_jax.quantizers import precision
from qinco_jax.quantizers.coding import Model
from qinco_jax.training.loop import Advance, Log
from qinco_jax.training.recipe import MIX, RECIPES, Recipe, of_preset
from qinco_jax.training.train import train as train_model
from qinco_jax.vectors.stored import Vectors

MOVED = ":moved"
LETTERS = {"A": ("num_candidates", MAX_CODEBOOK), "B": ("beam_size", MAX_BEAM)}
ALTERNATIVES = ("joint", "each"), precision.COMPUTE_DTYPES
OPTIONS = "A=NUMBER", "B=NUMBER", "joint", "each", *precision.COMPUTE_DTYPES, MOVED[1:]
NAMES = (*faiss_codecs.NAMES, "unq", *PRESETS)


class Spec(NamedTuple):
    """A parsed specification; `search` has the arguments that its options give."""

    text: str
    name: str
    bytes: float | None
    search: Mapping[str, Any]
    moved: bool

    @property
    def model(self) -> str:
        """The specification without its search options."""
        return self.text.partition(":")[0] + MOVED * self.moved


def contenders(
    texts: Sequence[str], rates: Sequence[float], dim: int, settings: Sequence[str] = ()
) -> list[Contender]:
    """The codecs of specifications, each at those of the rates that it has.

    Args:
      texts: specifications.
      rates: bytes to measure at.
      dim: D of the vectors.
      settings: `NAME=VALUE`, sizes and recipes of this library's models.

    Raises:
      InputError: an unknown codec or setting, or a codec that has none of the rates.
    """
    specs = [parse(text) for text in texts]
    _replaced(settings)
    every = {spec.text: _of_spec(spec, rates, dim, settings) for spec in specs}
    without = [
        f"{spec.text} takes {_rates_of(spec, dim)} bytes" for spec in specs if not every[spec.text]
    ]
    if without:
        asked = ", ".join(f"{rate:g}" for rate in rates)
        raise InputError(f"{', '.join(without)}, not {asked}")
    return [contender for spec in specs for contender in every[spec.text]]


def parse(text: str) -> Spec:
    """Parses a specification.

    Raises:
      InputError: an unknown codec or option.
    """
    model, *options = re.split(":(?!//)", text)  # not that of s3://
    name, at, size = model.partition("@")
    if name not in NAMES and not (disk.place_of(name) / orbax.METADATA).exists():
        if "/" in name:
            raise InputError(f"there is no model in the folder {name}; check its path")
        raise InputError(f"{unknown('codec', name, NAMES)} (or the folder of a model)")
    search: dict[str, Any] = {}
    moved = MOVED[1:] in options and name in faiss_codecs.MOVABLE
    seen = set[str]()
    for option in options:
        key, _, value = option.partition("=")
        kind = next((kind for kind in ALTERNATIVES if key in kind), (key,))[0]
        if kind in seen:
            raise InputError(f"{text!r} has {option!r} after another such option; leave one out")
        seen.add(kind)
        if moved and option == MOVED[1:]:
            continue
        if option in ("joint", "each"):
            search["joint"] = option == "joint"
        elif option in precision.COMPUTE_DTYPES:
            search["compute_dtype"] = option
        elif key in LETTERS:
            argument, most = LETTERS[key]
            what = f"the {key} of {text!r}"
            search[argument] = numbers.integer(numbers.parsed(value), what, 1, most)
        else:
            known = OPTIONS if name in faiss_codecs.MOVABLE else OPTIONS[:-1]
            raise InputError(f"{text!r} has an {unknown('option', option, known)}")
    allowed = {"beam_size"} if name == "rq" else set() if _is_baseline(name) else set(search)
    if set(search) - allowed or (at and _is_baseline(name)):
        raise InputError(f"{text!r} has an option that {name} does not take; leave it out")
    if at and not size.replace(".", "", 1).isdecimal():
        raise InputError(f"{text!r} needs a number of bytes after the @, such as {name}@16")
    return Spec(text, name, float(size) if at else None, search, moved)


def _is_baseline(name: str) -> bool:
    return name in faiss_codecs.NAMES or name == "unq"


def _of_spec(
    spec: Spec, rates: Sequence[float], dim: int, settings: Sequence[str]
) -> list[Contender]:
    if _is_baseline(spec.name):
        return _of_baseline(spec, rates, dim)
    if spec.name not in PRESETS:
        return _of_model(spec, rates, dim)
    if spec.bytes is not None:
        config, _ = sized(spec.name, spec.bytes, settings)
        possible = _prefix_rates(config, rates)
        return [_of_preset(spec, spec.bytes, possible, dim, settings)] if possible else []
    return [_of_preset(spec, rate, (rate,), dim, settings) for rate in rates]


def _rates_of(spec: Spec, dim: int) -> str:
    """The rates that a codec has, as text for a message."""
    fixed = faiss_codecs.rates(spec.name, dim)
    if fixed:
        return ", ".join(map(str, fixed))
    if _is_baseline(spec.name):
        return f"1 to {dim} whole"
    most = disk.load(spec.name).config.bits / 8 if spec.bytes is None else spec.bytes
    return f"whole steps up to {most:g}"


def _of_baseline(spec: Spec, rates: Sequence[float], dim: int) -> list[Contender]:
    if spec.name in faiss_codecs.NAMES:
        optional.faiss(faiss_codecs.NAMED)  # fails before training, which may take hours
    possible = faiss_codecs.rates(spec.name, dim) or range(1, dim + 1)
    facts = {**spec.search, "mix": MIX} if spec.moved else spec.search
    return [
        Contender(
            spec.text, spec.model, rate, (rate,), facts,
            functools.partial(_train_baseline, spec, int(rate)),
        )
        for rate in rates if rate in possible
    ]  # fmt: skip


def _train_baseline(
    spec: Spec, num_bytes: int, x: Vectors, seed: int, run_dir: Path, advance: Advance
) -> AtRate:
    if spec.name == "unq":
        codec = unq.codec(train_unq(x, num_bytes, seed=seed, log=_log(advance)))
    else:
        mix = MIX * spec.moved
        codec = faiss_codecs.train(spec.name, x, num_bytes, seed=seed, mix=mix, **spec.search)
    return lambda rate: codec


def _log(advance: Advance) -> Log:
    """A log of training that shows progress."""
    return lambda record: advance(record["vectors"], record["num_vectors"])


def _of_preset(
    spec: Spec, num_bytes: float, rates: tuple[float, ...], dim: int, settings: Sequence[str]
) -> Contender:
    config, recipe = sized(spec.name, num_bytes, settings)
    config.for_dim(dim)  # fails before training, which may take hours
    if config.opq:
        optional.faiss("rotations by OPQ")

    def train(x: Vectors, seed: int, run_dir: Path, advance: Advance) -> AtRate:
        model = train_model(
            x, config, recipe, seed=seed, run_dir=run_dir, log=_log(advance), advance=advance
        )
        return functools.partial(_at_rate, model, spec.search)

    facts = {
        **_search_facts(config, spec.search),
        "settings": {"config": config.settings, "recipe": dataclasses.asdict(recipe)},
    }
    return Contender(spec.text, spec.model, num_bytes, rates, facts, train)


def _of_model(spec: Spec, rates: Sequence[float], dim: int) -> list[Contender]:
    model = disk.load(spec.name)
    config = model.config
    if config.dim != dim:
        raise InputError(
            f"{spec.name} is a model of {config.dim} dimensions, the vectors have {dim}"
        )
    possible = _prefix_rates(config, rates)
    facts = {
        **_search_facts(config, spec.search),
        "settings": {"config": config.settings},
    }

    def train(x: Vectors, seed: int, run_dir: Path, advance: Advance) -> AtRate:
        return functools.partial(_at_rate, model, spec.search)

    if not possible:
        return []
    return [Contender(spec.text, spec.model, config.bits / 8, possible, facts, train)]


def _prefix_rates(config: QincoConfig, rates: Sequence[float]) -> tuple[float, ...]:
    """The rates at which a prefix of a model is a whole number of steps."""
    return tuple(rate for rate in rates if 1 <= _steps_at(config, rate) <= config.num_steps)


def _steps_at(config: QincoConfig, rate: float) -> int:
    """The number of steps that a model of `rate` bytes has, 0 if it is not whole."""
    steps = (8 * rate - config.coarse_bits) / config.step_bits
    return int(steps) if steps.is_integer() else 0


def _search_facts(config: QincoConfig, search: Mapping[str, Any]) -> dict[str, Any]:
    names = ("num_candidates", "beam_size", "joint")
    return {name: search.get(name, getattr(config, name)) for name in names}


def _at_rate(model: Model, search: Mapping[str, Any], rate: float) -> Codec:
    return ours.of_qinco(model, _steps_at(model.config, rate), **search)


def sized(
    preset: str, num_bytes: float, settings: Sequence[str], recipe_name: str | None = None
) -> tuple[QincoConfig, Recipe]:
    """The config and the recipe of a preset at a rate, with settings replaced.

    Args:
      preset: a key of `PRESETS`.
      num_bytes: of a code; a whole number of steps.
      settings: `NAME=VALUE` of fields of either.
      recipe_name: a key of `RECIPES`; `None` takes the preset's own (`of_preset`).

    Raises:
      InputError: an unknown preset, recipe or setting, or bytes that are not a whole number of
        steps.
    """
    config = named(PRESETS, preset, "preset")
    recipe = named(RECIPES, recipe_name, "recipe") if recipe_name else of_preset(preset)
    sizes, changes = _replaced(settings)
    config, recipe = dataclasses.replace(config, **sizes), dataclasses.replace(recipe, **changes)
    num_steps = _steps_at(config, num_bytes)
    if not 1 <= num_steps <= MAX_STEPS:
        behind = f" behind a coarse index of {config.coarse_bits} bits" * bool(config.coarse_bits)
        raise InputError(
            f"{num_bytes:g} bytes are not a whole number, 1 to {MAX_STEPS}, of steps of "
            f"{config.step_bits:g} bits{behind}"
        )
    return dataclasses.replace(config, num_steps=num_steps), recipe


def _replaced(settings: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the config, and of the recipe, that `NAME=VALUE` replace."""
    config_names, recipe_names = (
        {field.name for field in dataclasses.fields(kind)} for kind in (QincoConfig, Recipe)
    )
    sizes: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"the setting {setting!r} has no value; give {setting}=VALUE")
        if name == "num_steps":
            raise InputError(f"{setting} follows from the bytes of a code; give those instead")
        if name not in config_names | recipe_names:
            raise InputError(unknown("setting", name, sorted(config_names | recipe_names)))
        (sizes if name in config_names else changes)[name] = value_of(text)
    return sizes, changes


def value_of(text: str) -> Any:
    """The value of a setting `NAME=VALUE`."""
    try:
        return numbers.parsed(json.loads(text))
    except ValueError:
        return None if text == "None" else text
