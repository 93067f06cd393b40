"""The named sets: their files, sources, formats and licenses."""

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from qinco_jax.errors import InputError, unknown

EMBEDDED = "sift-photos"  # comes with the package
MIRROR = "QINCO_DATA_URL"
"""The environment variable for the address of a mirror with the layout of the download directory.
The sizes, rows and checksums of its files are not compared with the published ones."""
VALIDATION_ROWS = 10_000  # the last rows of the training file, at any size (QINCo, Sec. 4.1)

_QINCO = "https://dl.fbaipublicfiles.com/QINCo/datasets/"
_BIG_ANN = "https://dl.fbaipublicfiles.com/billion-scale-ann-benchmarks/bigann/"
_YANDEX = "https://storage.yandexcloud.net/yandex-research/ann-datasets/DEEP/"
_TEXMEX = "ftp://ftp.irisa.fr/local/texmex/corpus/"
_ANN = "http://ann-benchmarks.com/"


def mirror() -> str:
    """The address of the mirror, or an empty string."""
    return os.environ.get(MIRROR, "").rstrip("/")


class File(NamedTuple):
    """A published file of vectors.

    Attributes:
      path: its path below the download directory.
      address: where it is published; decompressed if it ends in `.gz`.
      rows: N, where published.
      size: in bytes, where it does not follow from the rows.
      sha256: hexadecimal, where published.
    """

    path: str
    address: str
    rows: int | None = None
    size: int | None = None
    sha256: str | None = None

    @property
    def source(self) -> str:
        """The address to download from: the published one or the mirror's."""
        if not mirror():
            return self.address
        path = PurePosixPath(self.path).with_name(PurePosixPath(self.address).name)
        return f"{mirror()}/{path}"


class NamedSet(NamedTuple):
    """A published set of vectors.

    Attributes:
      title: what the vectors are.
      dim: D.
      dtype: of the numbers.
      homepage: of the publisher.
      license: as the publisher states it; the publisher's page is authoritative.
      citation: BibTeX.
      sizes: the number of training vectors, or of database vectors if `slices`, by name; `None` is
        all. The first is the default.
      files: for each part, the files that hold it; the first that can be downloaded is used.
      slices: whether `sizes` are of the database; training then takes as many, at most 10 million.
      note: what users should know about the data.
    """

    title: str
    dim: int
    dtype: str
    homepage: str
    license: str
    citation: str
    sizes: Mapping[str, int | None]
    files: Mapping[str, tuple[File, ...]]
    slices: bool = False
    note: str = ""

    def rows(self, part: str, size: str) -> int | None:
        """Rows to take from the file of a part at a size; `None` is all.

        They are the first rows; for training, the last `VALIDATION_ROWS` of the file are included.
        """
        asked = self.sizes[size]
        if part == "database":
            return asked if self.slices else None
        if part != "train" or asked is None:
            return None
        return (min(asked, 10_000_000) if self.slices else asked) + VALIDATION_ROWS

    def described(self, size: str) -> str:
        """What a size means, in words."""
        rows = self.sizes[size]
        if rows is None:
            return "all rows"
        return f"{rows:,} rows of the database" if self.slices else f"{rows:,} training rows"


_SIZES = {"10m": 10_000_000, "500k": 500_000}
_SLICES = {f"{n}m": n * 1_000_000 for n in (10, 1, 2, 5, 20, 50, 100, 200, 500)} | {"1b": 10**9}
_TRAIN_ROWS = 10_010_000
_MILLION, _QUERIES = 1_000_000, 10_000

_SIFT = """@inproceedings{jegou2011searching,
  title={Searching in one billion vectors: re-rank with source coding},
  author={J{\\'e}gou, Herv{\\'e} and Tavenard, Romain and Douze, Matthijs and Amsaleg, Laurent},
  booktitle={ICASSP}, year={2011}}"""
_DEEP = """@inproceedings{babenko2016efficient,
  title={Efficient indexing of billion-scale datasets of deep descriptors},
  author={Babenko, Artem and Lempitsky, Victor},
  booktitle={CVPR}, year={2016}}"""
_CONTRIEVER = """@article{izacard2022unsupervised,
  title={Unsupervised dense information retrieval with contrastive learning},
  author={Izacard, Gautier and Caron, Mathilde and Hosseini, Lucas and Riedel, Sebastian and
    Bojanowski, Piotr and Joulin, Armand and Grave, Edouard},
  journal={TMLR}, year={2022}}"""
_BIG = """@inproceedings{simhadri2022results,
  title={Results of the {NeurIPS'21} challenge on billion-scale approximate nearest neighbor
    search},
  author={Simhadri, Harsha Vardhan and others},
  booktitle={NeurIPS Competitions and Demonstrations Track}, year={2022}}"""
_GLOVE = """@inproceedings{pennington2014glove,
  title={{GloVe}: Global vectors for word representation},
  author={Pennington, Jeffrey and Socher, Richard and Manning, Christopher},
  booktitle={EMNLP}, year={2014}}"""

_BIGANN_TRAIN = File(
    "bigann/bigann_learn_10M10k.bvecs", _QINCO + "bigann/bigann_learn_10M10k.bvecs", _TRAIN_ROWS
)
_BIGANN_QUERIES = (
    File("bigann/query.public.10K.u8bin", _BIG_ANN + "query.public.10K.u8bin", _QUERIES),
    File("bigann/bigann_query.bvecs", _TEXMEX + "bigann_query.bvecs.gz", _QUERIES),
)
_DEEP_TRAIN = File("deep1b/learn10M10k.fvecs", _QINCO + "deep1b/learn10M10k.fvecs", _TRAIN_ROWS)
_DEEP_QUERIES = (File("deep1b/query.public.10K.fbin", _YANDEX + "query.public.10K.fbin", _QUERIES),)
_CUT_NOTE = (
    "The published file has no training vectors. Every tenth row of its database (9, 19, 29, ...) "
    "is moved to the training vectors; the other rows are renumbered, and the lists of neighbors "
    "are shortened to match. Results are not comparable with the papers'."
)
_SLICE_NOTE = (
    "Only the first rows are downloaded. Training takes as many rows as the database has, at most "
    "10 million, from the papers' training file; validation takes the last rows of that file. The "
    "ground truth is computed when needed."
)


def _published_in(folder: str, name: str, rows: int | None = None) -> File:
    return File(f"{folder}/{name}", f"{_QINCO}{folder}/{name}", rows)


def _ann_benchmarks(
    name: str, title: str, dim: int, citation: str,
    size: int | None = None, sha256: str | None = None,
) -> NamedSet:  # fmt: skip
    file = File(f"ann-benchmarks/{name}", _ANN + name, None, size, sha256)
    return NamedSet(
        title, dim, "float32", "http://ann-benchmarks.com", "see the publisher", citation,
        {"all": None}, {"all": (file,)}, note=_CUT_NOTE,
    )  # fmt: skip


SETS: Mapping[str, NamedSet] = {
    "bigann1m": NamedSet(
        "SIFT descriptors of images, the first million of BigANN", 128, "uint8",
        "http://corpus-texmex.irisa.fr", "CC0", _SIFT, _SIZES,
        {
            "train": (_BIGANN_TRAIN,),
            "database": (_published_in("bigann", "bigann1M.bvecs", _MILLION),),
            "queries": _BIGANN_QUERIES,
            "groundtruth": (_published_in("bigann", "gnd/idx_1M.ivecs"),),
        },
    ),
    "deep1m": NamedSet(
        "features of images from a deep network, of unit length, the first million of Deep1B",
        96, "float32", "https://research.yandex.com/blog/benchmarks-for-billion-scale-similarity-search",
        "CC BY 4.0", _DEEP, _SIZES,
        {
            "train": (_DEEP_TRAIN,),
            "database": (_published_in("deep1b", "base1M.fvecs", _MILLION),),
            "queries": _DEEP_QUERIES,
            "groundtruth": (_published_in("deep1b", "deep1M_groundtruth.ivecs"),),
        },
    ),
    "contriever1m": NamedSet(
        "Contriever embeddings of passages of Wikipedia", 768, "float16",
        "https://github.com/facebookresearch/contriever", "CC BY-NC 4.0", _CONTRIEVER,
        {**_SIZES, "20m": None},
        {
            "train": (_published_in("ContrieverEmb", "training_set.npy"),),
            "database": (_published_in("ContrieverEmb", "database1M.npy", _MILLION),),
            "queries": (_published_in("ContrieverEmb", "queries.npy"),),
            "groundtruth": (_published_in("ContrieverEmb", "ground_truth1M.npy"),),
        },
    ),
    "fb_ssnpp1m": NamedSet(
        "SimSearchNet++ descriptors for finding copies of images", 256, "uint8",
        "https://big-ann-benchmarks.com", "CC BY-NC 4.0", _BIG, _SIZES,
        {
            "train": (_published_in("FB_ssnpp", "training_set10010k.npy", _TRAIN_ROWS),),
            "database": (_published_in("FB_ssnpp", "database1M.npy", _MILLION),),
            "queries": (_published_in("FB_ssnpp", "queries.npy"),),
            "groundtruth": (_published_in("FB_ssnpp", "ground_truth1M.npy"),),
        },
    ),
    "bigann1b": NamedSet(
        "SIFT descriptors of images, BigANN's first rows", 128, "uint8",
        "http://corpus-texmex.irisa.fr", "CC0", _SIFT, _SLICES,
        {
            "train": (_BIGANN_TRAIN,),
            "database": (File("bigann/base.1B.u8bin", _BIG_ANN + "base.1B.u8bin", 10**9),),
            "queries": _BIGANN_QUERIES,
        },
        slices=True, note=_SLICE_NOTE,
    ),
    "deep1b": NamedSet(
        "features of images from a deep network, of unit length, Deep1B's first rows",
        96, "float32", "https://research.yandex.com/blog/benchmarks-for-billion-scale-similarity-search",
        "CC BY 4.0", _DEEP, _SLICES,
        {
            "train": (_DEEP_TRAIN,),
            "database": (File("deep1b/base.1B.fbin", _YANDEX + "base.1B.fbin", 10**9),),
            "queries": _DEEP_QUERIES,
        },
        slices=True, note=_SLICE_NOTE,
    ),
    "sift1m": _ann_benchmarks(
        "sift-128-euclidean.hdf5", "SIFT descriptors of images (the file of TFDS's sift1m)",
        128, _SIFT, size=525_128_288,
        sha256="dd6f0a6ed6b7ebb8934680f861a33ed01ff33991eaee4fd60914d854a0ca5984",
    ),
    "glove100": _ann_benchmarks(
        "glove-100-angular.hdf5", "GloVe vectors of words (the file of TFDS's glove100_angular)",
        100, _GLOVE,
    ),
    "deep10m_angular": _ann_benchmarks(
        "deep-image-96-angular.hdf5",
        "features of images from a deep network (the file of TFDS's deep1b)", 96, _DEEP,
    ),
}  # fmt: skip
"""Named sets; `NAME/SIZE` names a size."""


def named(text: str) -> tuple[str, NamedSet, str]:
    """Finds a set and its size by `NAME` or `NAME/SIZE`.

    Returns:
      The name, the set and the size.

    Raises:
      InputError: there is no such set or size.
    """
    name, _, size = text.partition("/")
    if name == EMBEDDED:
        raise InputError(f"{EMBEDDED} comes with the package, so it has no files and no sizes")
    if name not in SETS:
        raise InputError(unknown("data set", name, [EMBEDDED, *SETS]))
    known = SETS[name]
    size = size or next(iter(known.sizes))
    if size not in known.sizes:
        raise InputError(
            f"{name} has no size {size!r}; choose one of "
            f"{', '.join(f'{name}/{other}' for other in known.sizes)}"
        )
    return name, known, size
