"""Measurements of `speed.py` beside others: our function and theirs in turn, in one process."""

import functools
import importlib

import click
import jax
import numpy as np
import peers
import timing
import workload

from qinco_jax.quantizers import coding, kmeans, rq


def others(grid, seconds):
    """The same models run by others (`peers`)."""
    if importable("faiss"):
        yield faiss_encode(seconds)
        yield faiss_decode(seconds)
    for num_candidates, beam_size in ((4, 8),) if grid == "small" else ((4, 8), (16, 32)):
        search = workload.search(num_candidates, beam_size)
        yield without_tables("plain JAX", peers.plain_jax, search, seconds)
        if importable("torch"):
            yield without_tables("eager PyTorch", peers.torch_eager, search, seconds)


def importable(name):
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:
        click.echo(f"{name} cannot be imported, what needs it is left out: {error}")
        return False
    return True


def faiss_encode(seconds, name="qinco L=2"):
    config = workload.sized(name)
    model, x = workload.random_model(config), workload.vectors(config.dim)
    search = workload.search(config.codebook_size, 1)
    ours = functools.partial(coding.encode, model, **search)
    theirs, _ = peers.faiss_qinco(model)
    found = timing.side_by_side(ours, theirs, x, seconds, **workload.search_counts(search))
    found["equal"] = equal(ours, theirs, x[:256])
    return {"peer": "faiss.QINCo", "task": "encode", **workload.fields(name, search=search)} | found


def faiss_decode(seconds, name="qinco L=2"):
    config = workload.sized(name)
    model, codes = workload.random_model(config), workload.codes(config)
    ours, theirs = functools.partial(coding.decode, model), peers.faiss_qinco(model)[1]
    found = timing.side_by_side(ours, theirs, codes, seconds, **workload.row_counts(4))
    found["max_difference"] = float(np.abs(ours(codes[:1024]) - theirs(codes[:1024])).max())
    return {"peer": "faiss.QINCo", "task": "decode", **workload.fields(name)} | found


def without_tables(peer, make, search, seconds, name="qinco2-S"):
    """Encoding beside PyTorch or JAX that compute the equations as they stand."""
    config = workload.sized(name)
    model, x = workload.random_model(config), workload.vectors(config.dim)
    candidates = search["num_candidates"] * search["beam_size"]
    ours = functools.partial(coding.encode, model, **search)

    def make_encode(block):
        encode, _ = make(model, block)
        return lambda x: encode(x, search["num_candidates"], search["beam_size"])

    logs = (11, 13, 15) if jax.default_backend() == "cpu" else (16, 18, 20)
    blocks = [2**log for log in logs]
    theirs, block = fastest(make_encode, blocks, x[: max(64, blocks[-1] // candidates)])
    found = timing.side_by_side(ours, theirs, x, seconds, **workload.search_counts(search))
    found |= {"peer_block": block, "equal": equal(ours, theirs, x[:256])}
    return {"peer": peer, "task": "encode", **workload.fields(name, search=search)} | found


def fastest(make, sizes, rows):
    """Of the functions made for blocks of some sizes the one whose warm call is fastest."""
    made = [make(size) for size in sizes]
    seconds = [min(timing.call_seconds(run, rows) for _ in range(3)) for run in made]
    best = int(np.argmin(seconds))
    return made[best], sizes[best]


def equal(ours, theirs, x):
    """The share of equal codes."""
    return float((np.asarray(ours(x)) == np.asarray(theirs(x))).mean())


def residual(grid, seconds):
    """RQ beside Faiss's, computed directly and with its tables of products."""
    if not importable("faiss"):
        return
    model, x = workload.random_rq(128), workload.vectors(128)
    for beam_size in (1, 5) if grid == "small" else (1, 5, 32):
        ours = functools.partial(rq.encode, model, beam_size=beam_size)
        flops = workload.rq_flops(model, beam_size)
        for tables in (False, True):
            theirs, _ = peers.faiss_rq(model, beam_size, tables)
            counts = workload.row_counts(beam_size)
            found = timing.side_by_side(ours, theirs, x, seconds, **counts)
            found["gflops"] = found["vectors_per_s"] * flops / 1e9
            found["equal"] = equal(ours, theirs, x[:1024])
            yield {
                "peer": "Faiss RQ, use_beam_LUT" if tables else "Faiss RQ", "task": "encode",
                "model": "RQ", "dim": 128, "num_steps": 8, "codebook_size": 256,
                "beam_size": beam_size, "dtype": "float32", **found,
            }  # fmt: skip


def clusters(grid, seconds, num_rows=65_536, num_clusters=256, num_iters=10):
    """k-means beside Faiss's, of as many iterations on the same rows."""
    del grid
    if not importable("faiss"):
        return
    import faiss

    def ours(x):
        return kmeans.kmeans(jax.random.key(0), x, num_clusters, num_iters)

    def theirs(x):
        found = faiss.Kmeans(128, num_clusters, niter=num_iters, max_points_per_centroid=len(x))
        found.train(x)
        return found.centroids

    x = workload.vectors(128)[:num_rows]
    found = timing.side_by_side(ours, theirs, x, seconds, start=len(x))
    found["gflops"] = found["vectors_per_s"] * 2 * num_iters * num_clusters * 128 / 1e9
    for name, run in (("mse", ours), ("peer_mse", theirs)):
        found[name] = float(faiss.knn(x, np.asarray(run(x)), 1)[0].mean())
    yield {
        "peer": "Faiss k-means", "model": "k-means", "dim": 128, "codebook_size": num_clusters,
        "num_iters": num_iters, "dtype": "float32", **found,
    }  # fmt: skip
