"""Calls with few vectors: `encode` and `decode` beside the same under the caller's own `jit`.

    python experiments/calls.py --out FILE

Of a qinco2-S of 8 bytes with random weights and A = 4, B = 8. The two are called in turn; a time is
the median of all calls, and nothing is compiled in between. Nothing else should run on the machine.
"""

import functools
import time
from pathlib import Path

import click
import jax
import numpy as np
import workload

from qinco_jax.evaluate import machine, results
from qinco_jax.quantizers import coding

NUM_ROWS = 1, 8, 10, 64, 100, 512
LEAST = 20  # calls of each


def medians(functions, rows, seconds):
    """Milliseconds of a call of each function, called in turn."""
    taken = [[] for _ in functions]
    for function in functions:
        jax.block_until_ready(function(rows))
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(taken[0]) < LEAST:
        for function, own in zip(functions, taken, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(rows))
            own.append(time.perf_counter() - start)
    return [1000 * float(np.median(own)) for own in taken]


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--seconds", default=2.0, show_default=True, help="of a measurement, about")
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(seconds, out):
    config, search = workload.sized("qinco2-S"), workload.search(4, 8)
    model, rows = workload.random_model(config), []
    tasks = {
        "encode": (functools.partial(coding.encode, model, **search), workload.vectors(config.dim)),
        "decode": (functools.partial(coding.decode, model), workload.codes(config)),
    }
    for task, (run, given) in tasks.items():
        for num_rows in NUM_ROWS:
            ours, jitted = medians((run, jax.jit(run)), given[:num_rows], seconds)
            row = {"task": task, "num_rows": num_rows, "ms": ours, "jitted_ms": jitted}
            rows.append(row | machine.facts())
            click.echo(
                f"{task} {num_rows:4} rows: {ours:8.3f} ms, under jit {jitted:8.3f} ms, "
                f"{ours / jitted:.2f} times"
            )
    results.write(rows, out)


if __name__ == "__main__":
    main()
