"""What clients of `qinco serve --ray` see while its processes are killed.

    python experiments/shards_load.py --out experiments/results/shards_load.jsonl

The embedded set under an untrained model of the preset `small`, which costs what a trained one
does, in 4 shards of 2 replicas each. Clients send requests of one vector, each its next one after
its last answer, and compare every answer with that of the shards in this process. Before, while a
replica of each shard in turn is killed with SIGKILL, and after all are back. Needs the extras
`serve` and `ray`.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

import qinco_jax as qj
from qinco_jax.cluster import shards
from qinco_jax.evaluate import machine, results

K, HOST = 10, "127.0.0.1"
BACK_SECONDS = 120


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--out", required=True, help="file of json lines")
@click.option("--rows", default=20_000, show_default=True, help="vectors of the index")
@click.option("--count", default=4, show_default=True, help="shards")
@click.option("--replicas", default=2, show_default=True, help="of each")
@click.option("--clients", default=4, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="of each phase; between kills: 6")
def main(out, rows, count, replicas, clients, seconds):
    with tempfile.TemporaryDirectory() as folder:
        index, x = built(Path(folder), rows, count)
        truth = qj.search.sharded(index).search(x, K)
        arguments = ["serve", index, "--ray", "--replicas", replicas, "--port", 0]
        process = subprocess.Popen(
            [sys.executable, "-m", "qinco_jax", *map(str, arguments)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            found = re.search(r"http://\S+:(\d+)", process.stdout.readline())
            if not found:
                raise SystemExit("the server did not start; its reason is above")
            port = int(found[1])
            found = asyncio.run(phases(port, x, truth, clients, seconds, count, replicas))
        finally:
            process.terminate()
            process.wait(60)
    shape = {"vectors": rows, "dim": x.shape[1], "shards": count, "replicas": replicas}
    facts = {**shape, "clients": clients, **machine.facts()}
    click.echo("phase  | kills | requests | requests/s | p50 ms | p99 ms | refused | wrong")
    for row in found:
        click.echo("{:6} | {:5} | {:8} | {:10} | {:6} | {:6} | {:7} | {}".format(*row.values()))
    known = Path(out).read_text().splitlines() if Path(out).exists() else []
    results.write([*map(json.loads, known), *({**row, **facts} for row in found)], Path(out))
    if any(row["wrong"] for row in found):
        raise SystemExit("some answers were wrong")


def built(folder, rows, count):
    """The folder of an index in shards, and queries [256, D]."""
    data = qj.datasets.load("sift-photos")
    np.save(folder / "train.npy", data.train[:20_000])
    np.save(folder / "database.npy", data.database[:rows])
    model = qj.train(data.train[:20_000], qj.PRESETS["small"], qj.RECIPES["small"], num_epochs=0)
    settings = {"num_lists": 128, "metric": "l2", "max_rows": 5_000}
    shards.build(folder / "index", model, str(folder), count, made={}, **settings)
    return folder / "index", np.asarray(data.queries[:256], np.float32)


async def phases(port, x, truth, clients, seconds, count, replicas):
    """One row a phase: before the kills, while they last, and after."""
    found = [await load(port, x, truth, clients, "before", seconds)]
    kills = asyncio.create_task(kill(count))
    found.append(await load(port, x, truth, clients, "kills", kills))
    until = time.monotonic() + BACK_SECONDS
    while len(replicas_of("")) < count * replicas and time.monotonic() < until:
        await asyncio.sleep(0.5)
    await asyncio.sleep(10)  # until the last is ready
    found.append(await load(port, x, truth, clients, "after", seconds))
    return found


def replicas_of(name):
    """The processes of replicas that Ray Serve runs of a shard."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:  # it has ended
            continue
        if text.startswith(b"ray::ServeReplica:qinco") and name.encode() in text:
            found.append(int(path.parent.name))
    return found


async def kill(count):
    """Kills a replica of each shard, one every 6 seconds; returns how many."""
    for number in range(count):
        os.kill(min(replicas_of(f"shard-{number:05}")), signal.SIGKILL)
        await asyncio.sleep(6)
    return count


async def load(port, x, truth, clients, phase, until):
    """What some clients see for some seconds, or until a task ends."""
    begin = time.perf_counter()
    task = until if isinstance(until, asyncio.Task) else asyncio.create_task(asyncio.sleep(until))
    seen = await asyncio.gather(*(client(port, x, truth, n, task) for n in range(clients)))
    took, killed = time.perf_counter() - begin, task.result() or 0
    times, refused, wrong = (sum((one[place] for one in seen), start) for place, start in
                             ((0, []), (1, 0), (2, 0)))  # fmt: skip
    p50, p99 = 1e3 * np.quantile(times, [0.5, 0.99])
    return {
        "phase": phase, "kills": killed, "requests": len(times),
        "requests_per_s": round(len(times) / took, 1), "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1), "refused": refused, "wrong": wrong,
    }  # fmt: skip


async def client(port, x, truth, first, task):
    """Seconds of each answer of one client, and how many were refused or wrong."""
    reader, writer = await asyncio.open_connection(HOST, port)
    head = (
        f"POST /search?k={K} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/octet-stream"
        f"\r\ncontent-length: {x[0].nbytes}\r\n\r\n"
    ).encode()
    times, refused, wrong, number = [], 0, 0, 31 * first
    while not task.done():
        row, sent = number % len(x), time.perf_counter()
        writer.write(head + x[row].tobytes())
        answer = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer)[1]))
        if answer.startswith(b"HTTP/1.1 200"):
            times.append(time.perf_counter() - sent)
            wrong += not right(body, *(part[row] for part in truth))
        else:
            refused += 1
        number += 1
    writer.close()
    return times, refused, wrong


def right(body, distances, ids):
    """Whether an answer is the expected one; vectors at one distance may change places."""
    own, near = np.frombuffer(body, "<i8", K), np.frombuffer(body, "<f4", K, 8 * K)
    same = np.isclose(distances[:, None], near, rtol=1e-4).sum(axis=0) > 1
    return np.allclose(near, distances, rtol=1e-4) and ((own == ids) | same).all()


if __name__ == "__main__":
    main()
