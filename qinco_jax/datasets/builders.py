"""The papers' data sets as TFDS builders: blocks of rows in array_record, without TensorFlow.

`import qinco_jax.datasets.builders` registers them, so that `tfds.data_source("deep1m/500k")`,
`tfds build deep1m --imports qinco_jax.datasets.builders` and `TFDS_DATA_DIR` work as for other
sets. An example is a block of consecutive rows. The base class is `ShardBasedBuilder`, which writes
each shard as it is read; `GeneratorBasedBuilder` collects a whole split first, in memory up to 1 GB
and with TensorFlow beyond.
"""

import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from filelock import FileLock
from google.protobuf import json_format

from qinco_jax.datasets import catalog
from qinco_jax.datasets.official import FOLDER, data_folder, fetch, parts_of, verified
from qinco_jax.datasets.transfers import check_space, writing
from qinco_jax.errors import InputError
from qinco_jax.vectors import formats
from qinco_jax.vectors.stored import Stored

EXAMPLE_BYTES = 2**18
SHARD_EXAMPLES = 1024  # 256 MiB, which bounds the memory of preparation
MAX_NEIGHBORS = 1000  # kept per query

Examples = Iterator[tuple[int, dict[str, np.ndarray]]]


class Vectors(  # type: ignore[call-arg]
    tfds.core.ShardBasedBuilder, skip_registration=True
):
    """A set of `catalog.SETS`: splits train, validation, database and queries."""

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "First release.",
        "2.0.0": "Validation is the last 10,000 rows of the whole training file at every size.",
    }
    SET: str

    def __init_subclass__(cls, of: str, **kwargs: Any) -> None:
        cls.SET = of
        cls.BUILDER_CONFIGS = [
            tfds.core.BuilderConfig(name=size, description=catalog.SETS[of].described(size))
            for size in catalog.SETS[of].sizes
        ]
        super().__init_subclass__(**kwargs)

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any) -> None:
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        known = catalog.SETS[self.SET]
        numbers = tfds.features.Encoding.BYTES
        features = {
            "vectors": tfds.features.Tensor(
                shape=(None, known.dim), dtype=np.dtype(known.dtype), encoding=numbers,
                doc="consecutive rows of the published file",
            ),
            "neighbors": tfds.features.Tensor(
                shape=(None,), dtype=np.int32, encoding=numbers,
                doc="for each query in turn, equally many nearest database rows, nearest first; "
                "empty in other splits",
            ),
        }  # fmt: skip
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{known.title}. {known.note}",
            features=tfds.features.FeaturesDict(features),
            homepage=known.homepage,
            citation=known.citation,
            license=known.license,
            disable_shuffling=True,  # the order of rows matters
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Callable[[], Examples]]]:
        downloads = Path(dl_manager.download_dir) / FOLDER
        files = fetch(self.SET, self.builder_config.name, downloads)
        self.info.metadata["files"] = json.dumps(verified(files, downloads))
        parts = parts_of(catalog.SETS[self.SET], files)
        num_bytes = sum(rows.nbytes for rows in parts.values())
        check_space(Path(self.data_dir), num_bytes, "the prepared data set")
        truth = parts.pop("groundtruth", None)
        return {
            split: _shards(rows, truth if split == "queries" else None)
            for split, rows in parts.items()
        }


class Bigann1m(Vectors, of="bigann1m"):
    """BigANN's first million."""


class Deep1m(Vectors, of="deep1m"):
    """Deep1B's first million."""


class Contriever1m(Vectors, of="contriever1m"):
    """A million Contriever embeddings."""


class FbSsnpp1m(Vectors, of="fb_ssnpp1m"):
    """A million SimSearchNet++ descriptors."""


class Bigann1b(Vectors, of="bigann1b"):
    """The first rows of BigANN."""


class Deep1bSlices(Vectors, of="deep1b"):
    """The first rows of Deep1B; TFDS has another data set named deep1b."""


BUILDERS = {kind.SET: kind for kind in Vectors.__subclasses__()}


def _builder(name: str, size: str) -> Vectors:
    try:
        return BUILDERS[name](config=size, data_dir=str(data_folder()))
    except (ValueError, json_format.Error) as error:
        raise InputError(
            f"{data_folder() / BUILDERS[name].name / size} was prepared in another format than "
            "array_record or is damaged; remove it, or set TFDS_DATA_DIR to another directory"
        ) from error


def load(name: str, size: str) -> dict[str, np.ndarray | Stored]:
    """The parts of a set, which is downloaded and prepared if necessary.

    Returns:
      train and database as `Stored` [N, D]; validation, queries and groundtruth as arrays.

    Raises:
      InputError: a download failed, a file differs from the published one, or the prepared files
        are damaged.
    """
    builder = _prepared(name, size)
    parts: dict[str, np.ndarray | Stored] = {}
    for split in builder.info.splits:
        records = _Records(builder, split)
        parts[split] = Stored([records], records.rows)
    parts["validation"], queries = np.asarray(parts["validation"]), np.asarray(parts["queries"])
    parts["queries"] = queries
    truth = np.concatenate([each["neighbors"] for each in builder.as_data_source("queries")])
    if truth.size:
        parts["groundtruth"] = truth.reshape(len(queries), -1)
    _check_rows(parts, name, size, builder)
    return parts


def _prepared(name: str, size: str) -> Vectors:
    """The builder of a prepared set; one process prepares it while others wait."""
    builder = _builder(name, size)
    if builder.is_prepared():
        return builder
    folder = Path(builder.data_path).parent
    with writing(folder, None):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(data_folder() / f".{name}-{size}.lock"):
            builder = _builder(name, size)
            if not builder.is_prepared():
                for left in folder.glob("incomplete.*"):  # from a killed process
                    shutil.rmtree(left)
                builder.download_and_prepare()
    return builder


def _check_rows(
    parts: Mapping[str, np.ndarray | Stored], name: str, size: str, builder: Vectors
) -> None:
    """Refuses a set prepared from a mirror with other files, unless a mirror is still set."""
    for part in () if catalog.mirror() else ("train", "database"):
        known = catalog.SETS[name]
        expected = known.rows(part, size) or known.files[part][0].rows
        found = len(parts[part]) + (len(parts["validation"]) if part == "train" else 0)
        if expected is not None and found != expected:
            raise InputError(
                f"{builder.data_path} was prepared from a mirror: its {part} part has {found} rows "
                f"instead of {expected}; remove it, or set {catalog.MIRROR}"
            )


def prepared_in(name: str, size: str) -> Path | None:
    """The directory of a prepared set, or `None`."""
    logger = logging.getLogger("absl")  # TFDS warns of each size that is not there
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        builder = _builder(name, size)
        return Path(builder.data_path) if builder.is_prepared() else None
    finally:
        logger.setLevel(level)


def read_through(name: str, size: str) -> dict[str, int]:
    """Reads all of a prepared set; checksums in its files reveal damage.

    Returns:
      The rows of each split.

    Raises:
      InputError: a file is damaged.
    """
    rows = {}
    builder = _builder(name, size)
    for split in builder.info.splits:
        records = _Records(builder, split)
        for begin in range(0, records.shape[0], records.rows):
            records[begin : begin + records.rows]
        rows[split] = records.shape[0]
    return rows


class _Records:
    """A prepared split as rows; all examples but the last have equally many."""

    def __init__(self, builder: Vectors, split: str) -> None:
        self._folder = builder.data_path
        self._source = builder.as_data_source(split)
        first, last = (self._read(range(i, i + 1)) for i in (0, len(self._source) - 1))
        self.rows, self.dtype = len(first), first.dtype
        self.shape = (self.rows * (len(self._source) - 1) + len(last), first.shape[1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        end = min(rows.stop, self.shape[0])
        first = rows.start // self.rows
        whole = self._read(range(first, -(-end // self.rows)))
        return whole[rows.start - first * self.rows : end - first * self.rows]

    def _read(self, examples: range) -> np.ndarray:
        try:
            return np.concatenate(
                [example["vectors"] for example in self._source.__getitems__(examples)]
            )
        except RuntimeError as error:  # raised by array_record
            raise InputError(
                f"a file in {self._folder} is damaged ({str(error).splitlines()[0]}); remove that "
                "directory to prepare the data set again"
            ) from error


def _shards(rows: np.ndarray, neighbors: np.ndarray | None) -> list[Callable[[], Examples]]:
    per_example = max(1, EXAMPLE_BYTES // rows[0].nbytes)
    per_shard = per_example * SHARD_EXAMPLES
    return [
        functools.partial(_examples, rows, neighbors, begin, per_example, per_shard)
        for begin in range(0, len(rows), per_shard)
    ]


def _examples(
    rows: np.ndarray, neighbors: np.ndarray | None, begin: int, per_example: int, per_shard: int
) -> Examples:
    for at in range(begin, min(begin + per_shard, len(rows)), per_example):
        block = np.array(rows[at : at + per_example])
        near = np.empty((0,), np.int32)
        if neighbors is not None:
            near = neighbors[at : at + per_example, :MAX_NEIGHBORS].astype(np.int32).ravel()
        yield at // per_example, {"vectors": block, "neighbors": near}
    formats.release_pages(rows)
