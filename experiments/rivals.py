"""What `nearest.py` measures beside our search: the published pipeline, and Faiss's indexes."""

import faiss
import numpy as np

import qinco_jax as qj
from qinco_jax.quantizers import additive
from qinco_jax.search import distance, scan
from qinco_jax.vectors.stored import spans

BLOCK_ROWS = 65536
ROTATION = 20, 16384  # iterations and rows of OPQ, whose defaults take minutes
UNIT = 1e-3  # how far a squared length may be from 1


class Published:
    """The pipeline of QINCo and QINCo2, with the lists, codes and additive tables of our index.

    Faiss's IVF-RQ scans, by residuals behind a model's own centroids; the network decodes the best
    codes, and these are sorted by L2. By cosine, all vectors must have the length 1.
    """

    def __init__(self, index, codes):
        self.model, self.codes = index.model, codes
        self.origin = np.asarray(index.reading.origin)
        tables, vectors = index.tables, index.list_vectors
        steps, size, dim = tables.shape
        quantizer = faiss.IndexFlatL2(dim)
        quantizer.add(vectors)
        bits = (size - 1).bit_length()
        self.index = faiss.IndexIVFResidualQuantizer(
            quantizer, dim, len(vectors), steps, bits, faiss.METRIC_L2,
            faiss.AdditiveQuantizer.ST_norm_qint8,
        )  # fmt: skip
        self.quantizer = quantizer  # Faiss keeps a pointer
        is_residual = index.lists.by_residual
        self.index.by_residual = is_residual
        faiss.copy_array_to_vector(tables.ravel(), self.index.rq.codebooks)
        owner = owners(index)
        rows = np.ascontiguousarray(codes[:, is_residual:], np.int32)
        rough = additive.decode(tables, rows)  # Faiss takes each list's vector off the query
        norms = np.ascontiguousarray(np.square(rough).sum(axis=1), np.float32)
        self.index.rq.train_norm(len(norms), faiss.swig_ptr(norms))
        self.index.rq.is_trained = self.index.is_trained = True
        packed = np.zeros((len(codes), self.index.code_size), np.uint8)
        self.index.rq.pack_codes(
            len(codes), faiss.swig_ptr(rows), faiss.swig_ptr(packed), -1, faiss.swig_ptr(norms)
        )
        scan.add(self.index, owner, packed, np.arange(len(codes)))

    def search(self, queries, k, num_probes, num_reranked):
        """Ids [Q, k]."""
        self.index.nprobe = num_probes
        _, ids = self.index.search(queries - self.origin, max(k, num_reranked))
        if not num_reranked:
            return ids[:, :k]
        flat = np.where(ids < 0, 0, ids).ravel()
        x_hat = np.asarray(qj.decode(self.model, self.codes[flat])).reshape(*ids.shape, -1)
        found = np.square(queries[:, None] - x_hat).sum(axis=2)
        found[ids < 0] = np.inf
        return np.take_along_axis(ids, np.argsort(found, axis=1)[:, :k], axis=1)


def owners(index):
    """The list [N] of each vector of an index whose ids are 0 to N - 1."""
    found = np.zeros(len(index), np.int64)
    for number in range(len(index.list_vectors)):
        found[scan.entries(index.lists, number)[0]] = number
    return found


def is_by_l2(index, x):
    """Whether the published pipeline can search these vectors: by L2, or by cosine at length 1."""
    if index.metric != "cosine":
        return index.metric == "l2"
    squares = np.square(np.asarray(x[:1000], np.float32)).sum(axis=1)
    return index.model.config.unit_norm or bool((abs(squares - 1) < UNIT).all())


class OfFaiss:
    """One of Faiss's own indexes, filled; by cosine its vectors are divided by their length."""

    def __init__(self, factory, metric, x_train, x):
        kind = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
        self.index = faiss.index_factory(x.shape[1], factory, kind)
        self.inverted = faiss.extract_index_ivf(self.index)
        if isinstance(self.index, faiss.IndexPreTransform):
            rotation = faiss.downcast_VectorTransform(self.index.chain.at(0))
            rotation.niter, rotation.max_train_points = ROTATION
        zero = np.zeros(x.shape[1], np.float32)
        self.index.train(distance.in_space(x_train, metric, zero))
        for span in spans(len(x), BLOCK_ROWS):
            self.index.add(distance.in_space(x[span], metric, zero))

    def search(self, queries, k, num_probes):
        """Ids [Q, k]."""
        self.inverted.nprobe = num_probes
        return self.index.search(queries, k)[1]


def factories(dim, num_lists, num_bytes):
    """Faiss's names of indexes that keep so many bytes of a vector.

    Where the bytes do not divide the dimensions, a product quantizer gets a rotation (OPQ) to as
    many as they do. A residual quantizer has one byte for the norm.
    """

    def product(parts):
        wide = -(-dim // parts) * parts
        return f"OPQ{parts}_{wide}," if wide > dim else ""

    lists, parts = f"IVF{num_lists}", 2 * num_bytes
    return {
        "Faiss IVF-PQ": f"{product(num_bytes)}{lists},PQ{num_bytes}x8",
        "Faiss PQ fast-scan": f"{product(parts)}{lists},PQ{parts}x4fsr",
        "Faiss IVF-RQ": f"{lists},RQ{num_bytes - 1}x8_Nqint8",
    }
