"""How many requests a second a server answers and how long each takes, with batches and without.

    python experiments/serve_load.py --out experiments/results/serve_load.jsonl
    python experiments/serve_load.py INDEX --out FILE

Two servers of one index run beside each other on loopback: as `qinco serve` is by default, and with
each request searched by itself. 1, 8 and 64 clients in this process send requests of one vector,
each its next one after its last answer, to one server and the other in turn. Without INDEX, it is
the database of the embedded set under an untrained model of the preset `small`, which costs what a
trained one does. Needs the extra `serve`.
"""

import asyncio
import contextlib
import multiprocessing
import re
import tempfile
import time
import urllib.request
from pathlib import Path

import click
import numpy as np

import qinco_jax as qj
from qinco_jax.evaluate import machine, results
from qinco_jax.search import disk
from qinco_jax.search.searcher import QUERY_BLOCK
from qinco_jax.serve import app, server

CLIENTS = 1, 8, 64
BLOCKS = {"batches": QUERY_BLOCK, "one by one": 1}
ROUNDS = 3
HOST = "127.0.0.1"


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("index", required=False)
@click.option("--out", required=True, help="file of json lines")
@click.option("--seconds", default=4.0, show_default=True, help="of each measurement, three times")
def main(index, out, seconds):
    rows, facts = [], machine.facts()
    with contextlib.ExitStack() as stack:
        if index is None:
            index = small_index(stack.enter_context(tempfile.TemporaryDirectory()) + "/index")
        loaded = qj.search.load(index)
        x = np.random.default_rng(0).normal(size=(1024, loaded.model.dim)).astype(np.float32)
        x = loaded.reconstruct(loaded.ids()[:1024]) + 1e-3 * x[: len(loaded)]
        shape = {"vectors": len(loaded), "dim": loaded.model.dim}
        ports = {mode: stack.enter_context(running(index, size)) for mode, size in BLOCKS.items()}
        click.echo("searched    | clients | requests/s | p50 ms | p99 ms | requests a batch")
        for clients in CLIENTS:
            found = {mode: [] for mode in BLOCKS}
            for _ in range(ROUNDS):
                for mode, port in ports.items():
                    found[mode].append(asyncio.run(load(port, x, clients, seconds)))
            for mode, measured in found.items():
                median = {
                    name: round(np.median([m[name] for m in measured]), 2) for name in measured[0]
                }
                rows.append({"searched": mode, "clients": clients, **median, **shape, **facts})
                click.echo("{:11} | {:7} | {:10} | {:6} | {:6} | {}".format(
                    mode, clients, *median.values()
                ))  # fmt: skip
    results.write(rows, Path(out))


def small_index(path):
    """The folder of an index of the embedded set."""
    data = qj.datasets.load("sift-photos")
    model = qj.train(data.train[:20_000], qj.PRESETS["small"], qj.RECIPES["small"], num_epochs=0)
    index = qj.search.build(model, data.train[:20_000])
    index.add(data.database)
    disk.save(index, path)
    return path


@contextlib.contextmanager
def running(index, block_rows):
    """The port of a server in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(index, block_rows, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def serve(index, block_rows, pipe):
    with server.listen_at(HOST, 0) as bound:
        service = app.application(qj.search.load(index), block_rows=block_rows)
        server.run(service, bound, lambda: pipe.send(bound.getsockname()[1]))


async def load(port, x, clients, seconds):
    """What some clients see in some seconds, after one second that does not count."""
    before, begin = batches(port), time.perf_counter()
    times = await asyncio.gather(
        *(client(port, x[n % len(x) :], begin + 1, begin + 1 + seconds) for n in range(clients))
    )
    after = batches(port)
    times = np.concatenate(times)
    p50, p99 = 1e3 * np.quantile(times, [0.5, 0.99])
    num_requests, num_batches = np.subtract(after, before)
    return {
        "requests_per_s": len(times) / seconds,
        "p50_ms": p50,
        "p99_ms": p99,
        "batch_requests": num_requests / num_batches,
    }


async def client(port, x, begin, end):
    """Seconds of each request that one client begins and ends between two times."""
    reader, writer = await asyncio.open_connection(HOST, port)
    head = (
        f"POST /search?k=10 HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/octet-stream\r\n"
        f"content-length: {x[0].nbytes}\r\n\r\n"
    ).encode()
    times, number = [], 0
    while (sent := time.perf_counter()) < end:
        writer.write(head + x[number % len(x)].tobytes())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer)[1]))
        number += 1
        if begin <= sent and (ended := time.perf_counter()) <= end:
            times.append(ended - sent)
    writer.close()
    return times


def batches(port):
    """How many requests and batches a server has searched."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics") as answer:
        text = answer.read().decode()
    return [
        float(re.search(rf"^qinco_batch_requests_{name} (.*)$", text, re.MULTILINE)[1])
        for name in ("sum", "count")
    ]


if __name__ == "__main__":
    main()
