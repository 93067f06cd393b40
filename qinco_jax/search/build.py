"""`build`: lists, decoders and the reading of distances, fitted on training vectors."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from qinco_jax import numbers
from qinco_jax.config import named
from qinco_jax.errors import InputError
from qinco_jax.quantizers import additive, coding, precision
from qinco_jax.quantizers.coarse import train_centroids
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.pairwise_decoder import PairwiseDecoder
from qinco_jax.quantizers.rq import sample_rows
from qinco_jax.quantizers.transform import approximated
from qinco_jax.search import distance, pairwise, scan, trial
from qinco_jax.search.distance import Measured, Reading, in_space
from qinco_jax.search.index import Index
from qinco_jax.search.pairwise import Pairs
from qinco_jax.search.trial import FEWEST_ROWS
from qinco_jax.seeds import ROW_ORDER, seed_for
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, Vectors, lazily, spans

METRICS = "l2", "ip", "cosine"
FITTED_ROWS = 100_000  # that decoders are fitted on
TRIED_ROWS = 10_000  # that readings are compared on
PULLS = 0.0, 0.5, 1.0
BLOCK_ROWS = 16384
MOST_LISTS, ROWS_PER_LIST = 4096, 39


@precision.in_32_bits
def build(
    model: Model,
    x_train: Vectors,
    num_lists: int | None = None,
    metric: str = "l2",
    *,
    seed: int = 0,
    max_rows: int = FITTED_ROWS,
    pairs: PairwiseDecoder | None = None,
) -> Index:
    """An index without vectors, whose lists and decoders are fitted; `Index.add` fills it.

    The lists of a model with a coarse codebook (IVF-QINCo) are its centroids, and its codes
    describe what is left over of them; of other models they are k-means centroids, which only say
    where to look. The additive decoder is fitted by least squares on the model's codes (QINCo2,
    Sec. 3.4), and how distances are read off a code is chosen by trial on rows held back. Tables
    for pairs of codes are fitted where rows are many for their K * K cells, and kept if they find
    more.

    Args:
      model: any `Qinco` or `Product`.
      x_train: [N, D] vectors like those to be added.
      num_lists: L; `None` means one for 39 training vectors, at most 4,096. Not for models with a
        coarse codebook.
      metric: "l2", "ip" (inner product) or "cosine".
      seed: of the sample and the k-means.
      max_rows: rows that are encoded to fit the decoders, drawn at random.
      pairs: a published decoder of the model's codes (`load_pytorch`); `None` fits one.

    Raises:
      InputError: invalid vectors, too few of them, an unknown metric, a model with `unit_norm` and
        another metric than cosine, or a model with codebooks too large for an additive decoder.
    """
    x_train = _checked(model, x_train, metric)
    max_rows = numbers.integer(max_rows, "max_rows", FEWEST_ROWS)
    seed = numbers.seed(seed)
    if pairs is not None:
        pairwise.check_fits(pairs, model, metric)
    is_residual = model.config.num_centroids is not None
    x = checks.finite(sample_rows(x_train, max_rows, seed), what="x_train")
    origin = distance.origin_of(metric, x)
    list_vectors = in_space(_list_vectors(model, x_train, num_lists, metric, seed), metric, origin)
    order = np.random.default_rng(seed_for(seed, ROW_ORDER))
    x = order.permutation(x)  # the last ones try the readings
    codes = np.asarray(coding.encode(model, x))
    rows = codes[:, 1:] if is_residual else codes

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for span in spans(len(x), BLOCK_ROWS):
            targets = in_space(x[span], metric, origin)
            base = list_vectors[codes[span, 0]] if is_residual else np.float32(0)
            yield rows[span], targets - base

    tables = additive.fit(blocks(), rows.shape[1], model.codebook_size, model.dim)
    some = slice(max(0, len(x) - TRIED_ROWS), len(x))
    measured = _measured(model, tables, list_vectors, x[some], codes[some], metric, origin)
    reading = choose(metric, measured, origin)
    lists = scan.new(list_vectors, tables, reading, is_residual)
    made = {"train_vectors": len(x_train), "fitted_vectors": len(x), "seed": seed}
    index = Index(model, list_vectors, tables, reading, lists, made=made)
    if pairs is None:
        lists_of_rows = codes[:, 0] if is_residual else None
        index.pairs = _pairs(index, len(x), blocks(), lists_of_rows, measured, seed)
    else:
        index.pairs = pairwise.alone(pairs, list_vectors)
    return index


def _checked(model: Model, x_train: Vectors, metric: str) -> Rows:
    """The training vectors, if they, the model and the metric go together."""
    if not isinstance(model, Model):
        raise InputError(f"a {type(model).__name__} is not a model; call build(model, x_train)")
    x_train = lazily(checks.vectors(x_train, model.dim, "x_train"))
    named({name: name for name in METRICS}, metric, "metric")
    if model.config.unit_norm and metric != "cosine":
        raise InputError(
            f"the model keeps angles, not lengths (unit_norm), so {metric} cannot be read off its "
            'codes; build the index with metric="cosine"'
        )
    if x_train.ndim != 2 or len(x_train) < FEWEST_ROWS:
        raise InputError(
            f"x_train has shape {x_train.shape}; give at least {FEWEST_ROWS} vectors [N, D]"
        )
    return x_train


def _measured(
    model: Model,
    tables: np.ndarray,
    list_vectors: np.ndarray,
    x: np.ndarray,
    codes: np.ndarray,
    metric: str,
    origin: np.ndarray,
) -> Measured:
    """Vectors [N, D] and their two reconstructions, from the additive decoder and the network."""
    is_residual = model.config.num_centroids is not None
    rough = additive.decode(tables, codes[:, int(is_residual) :])
    if is_residual:
        rough += list_vectors[codes[:, 0]]
    x_hat = np.asarray(coding.decode(model, codes))
    if metric == "l2":
        x_hat = x_hat - origin
    return Measured(in_space(x, metric, origin), x_hat, rough)


def _pairs(
    index: Index,
    num_rows: int,
    blocks: Iterator[tuple[np.ndarray, np.ndarray]],
    lists: np.ndarray | None,
    measured: Measured,
    seed: int,
) -> Pairs | None:
    """Pairs above the additive decoder, if they find more of the rows held back than it does."""
    columns, size, dim = index.tables.shape
    num_held = min(TRIED_ROWS, num_rows // 5)
    if num_rows - num_held < pairwise.LEAST_ROWS * size**2:
        return None
    codes, left = np.empty((num_rows, 1 + columns), np.int32), np.empty((num_rows, dim), np.float32)
    for span, (part, targets) in zip(spans(num_rows, BLOCK_ROWS), blocks, strict=True):
        codes[span, 0] = (
            scan.nearest_lists(index.lists, index.list_vectors, targets)
            if lists is None
            else lists[span]
        )
        codes[span, 1:] = part
        left[span] = targets - additive.decode(index.tables, part)
    is_residual = lists is not None
    found = pairwise.fit(
        codes, left, index.tables, index.list_vectors, is_residual, num_held=num_held, seed=seed
    )
    if found is None:
        return None
    held = Measured(*(part[-num_held:] for part in measured))
    x_hat = np.asarray(found.decode(jnp.asarray(codes[-num_held:])))
    before = trial.recall(index.reading, held)
    return found if trial.recall(index.reading, held, x_hat) > before else None


def _list_vectors(
    model: Model, x_train: Rows, num_lists: int | None, metric: str, seed: int
) -> np.ndarray:
    """The vectors of the lists [L, D] float32: the model's centroids, or new ones."""
    own = model.config.num_centroids
    if own is not None:
        if num_lists not in (None, own):
            raise InputError(
                f"the lists are the model's {own} centroids; leave out num_lists = {num_lists}"
            )
        every = np.arange(own)[:, None]
        return np.asarray(coding.decode(model, every))
    if num_lists is None:
        num_lists = max(1, min(MOST_LISTS, len(x_train) // ROWS_PER_LIST))
    num_lists = numbers.integer(num_lists, "num_lists", 1)
    if num_lists > len(x_train):
        raise InputError(
            f"num_lists = {num_lists} exceeds the {len(x_train)} training vectors; lower it or "
            "give more vectors"
        )
    rows = x_train
    if metric == "cosine":
        sampled = sample_rows(x_train, 256 * num_lists, seed)
        rows = approximated(checks.finite(sampled, what="x_train"), unit_norm=True)
    return train_centroids(rows, num_lists, seed=seed)


def choose(metric: str, rows: Measured, origin: np.ndarray) -> Reading:
    """The reading that finds most on rows of which the last ones ask for the others.

    First by the network's reconstructions; then how much the scan's look-ups should heed the byte.
    """
    best = trial.choose(metric, rows, origin)
    if best.kind != "scale":
        return best
    pulled = [distance.fit(metric, best.kind, rows, origin, pull) for pull in PULLS]
    return max(pulled, key=lambda reading: trial.recall(reading, rows))
