"""How long work in shards takes when workers are slow, or are lost: a simulation.

    python experiments/stragglers.py --out experiments/results/stragglers

Writes OUT.jsonl and OUT.png. Nothing is encoded: this is a model of `qinco encode` or `qinco index
build --shards` on many machines, from the rate that was measured on one.

W workers take shards from one queue. A shard takes a worker

    start + rows * seconds_per_row * (slowness of the worker) * (slowness of this shard)

seconds, where both kinds of slowness are lognormal with mean 1: machines differ for good, and each
shard by chance (other work, the network). Workers are lost at random, at a rate an hour of work,
and are back after `restart` seconds with nothing of their shard, which goes to the end of the
queue. A run ends when all shards are done. "ideal" is the time of the same rows without any of
this. The rate of failures is what no one chooses; the number of shards is.
"""

import heapq
import itertools

import click
import numpy as np

from qinco_jax.evaluate import results, style

ROWS, WORKERS = 1_000_000_000, 64
SECONDS_PER_ROW = 1 / 998  # results/speed.jsonl: `small`, 8 bytes of 128 dimensions, 2 cores
START = 5.0  # a shard: its rows are opened, its codes are checked, renamed and announced
RESTART = 60.0  # until another worker has taken a lost one's place, with model and programs
SPREADS = {"worker": 0.15, "shard": 0.10}  # sigma of the logarithm
FAILURES = 0.0, 0.001, 0.01, 0.1, 1.0, 10.0  # an hour of each worker
PER_WORKER = 1, 2, 4, 8, 16, 32, 64, 128, 256  # shards
RUNS, MOST = 20, 20.0  # of each point; runs are cut at this many times the ideal


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--out", required=True, help="of .jsonl and .png")
@click.option("--workers", default=WORKERS, show_default=True)
@click.option("--runs", default=RUNS, show_default=True, help="of each point, with its own seed")
def main(out, workers, runs):
    rows = []
    for per_worker, rate in itertools.product(PER_WORKER, FAILURES):
        found = [simulate(workers, per_worker * workers, rate, seed) for seed in range(runs)]
        rows.append(summary(workers, per_worker, rate, found))
    results.write(rows, f"{out}.jsonl")
    plot(rows, f"{out}.png")
    click.echo(table(rows, "mean"))
    click.echo("")
    for rate in FAILURES:
        some = [row for row in rows if row["failures_per_hour"] == rate]
        best = min(some, key=lambda row: row["mean"])
        click.echo(
            f"{rate:g} failures an hour of a worker: {best['per_worker']} shards a worker, of "
            f"{best['shard_minutes']:.2g} minutes, take {best['mean']:.2f} times the ideal; by "
            f"sqrt(2 start / rate) {youngs(rate, best['ideal_hours']):.3g} shards a worker"
        )


def youngs(rate, hours):
    """Shards a worker by Young's rule: what is lost at a failure balances the start of shards.

    A shard of t seconds costs START / t of the time to start, and a failure half a shard, which is
    rate t / 2: together least at t = sqrt(2 START / rate).
    """
    return 1.0 if rate == 0 else max(1.0, 3600 * hours / np.sqrt(2 * START * 3600 / rate))


def simulate(workers, num_shards, failures_per_hour, seed):
    """One run: its seconds, those spent on shards that were lost, and the losses.

    Args:
      workers: W.
      num_shards: that the rows are divided into.
      failures_per_hour: of a worker at work.
      seed: of everything that is random.
    """
    rng = np.random.default_rng([seed, workers, num_shards])
    slow = lognormal(rng, SPREADS["worker"], workers)
    work = ROWS / num_shards * SECONDS_PER_ROW * lognormal(rng, SPREADS["shard"], num_shards)
    rng = np.random.default_rng([seed, 1])
    most = MOST * ideal(workers)
    waiting, idle = list(range(num_shards))[::-1], [(0.0, worker) for worker in range(workers)]
    ends, lost, losses, last = [], 0.0, 0, 0.0
    heapq.heapify(idle)
    while waiting or ends:
        if not waiting or not idle or (ends and ends[0][0] <= idle[0][0]):
            if not ends:
                break
            now, worker, shard, begun, done = heapq.heappop(ends)
            if done:
                last = max(last, now)
                heapq.heappush(idle, (now, worker))
            else:
                lost, losses = lost + now - begun, losses + 1
                waiting.insert(0, shard)
                heapq.heappush(idle, (now + RESTART, worker))
            if now > most:
                return most, lost, losses
            continue
        now, worker = heapq.heappop(idle)
        shard = waiting.pop()
        takes = START + work[shard] * slow[worker]
        lives = rng.exponential(3600 / failures_per_hour) if failures_per_hour else np.inf
        heapq.heappush(ends, (now + min(takes, lives), worker, shard, now, takes <= lives))
    return last, lost, losses


def lognormal(rng, sigma, count):
    """Factors of mean 1."""
    return rng.lognormal(-(sigma**2) / 2, sigma, count)


def ideal(workers):
    """Seconds of the rows without starts, differences and failures."""
    return ROWS * SECONDS_PER_ROW / workers


def summary(workers, per_worker, rate, found):
    """One row of the results; times are multiples of the ideal one."""
    seconds, lost, losses = np.array(found).T
    times = seconds / ideal(workers)
    return {
        "workers": workers, "rows": ROWS, "seconds_per_row": SECONDS_PER_ROW,
        "per_worker": per_worker, "shards": per_worker * workers,
        "rows_of_a_shard": ROWS // (per_worker * workers),
        "shard_minutes": ideal(workers) / per_worker / 60, "failures_per_hour": rate,
        "ideal_hours": ideal(workers) / 3600, "mean": float(times.mean()),
        "p95": float(np.quantile(times, 0.95)),
        "lost_share": float((lost / (seconds * workers)).mean()),
        "losses": float(losses.mean()), "cut": int((times >= MOST).sum()), "runs": len(found),
        "start_s": START, "restart_s": RESTART, **{f"sigma_{k}": v for k, v in SPREADS.items()},
    }  # fmt: skip


def table(rows, what):
    """Multiples of the ideal time, by shards a worker and failures, in Markdown."""
    lines = [
        "| shards a worker | minutes each | "
        + " | ".join(f"{rate:g} failures/h" for rate in FAILURES) + " |",
        "|--:|--:|" + "--:|" * len(FAILURES),
    ]  # fmt: skip
    for per_worker in PER_WORKER:
        own = [row for row in rows if row["per_worker"] == per_worker]
        cells = (f"over {MOST:g}" if row["cut"] else f"{row[what]:.2f}" for row in own)
        lines.append(f"| {per_worker} | {own[0]['shard_minutes']:.2g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows, path):
    """Left by the number of shards, a line a rate; right by the rate, a line a number."""
    from matplotlib.figure import Figure

    with style.plot_style():
        figure = Figure(figsize=(style.WIDTH, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        rates = {f"{rate:g}": rate for rate in FAILURES}
        for (name, rate), look in zip(rates.items(), style.looks(rates).values(), strict=True):
            own = [row for row in rows if row["failures_per_hour"] == rate and not row["cut"]]
            left.plot([row["per_worker"] for row in own], [row["mean"] for row in own],
                      label=name, **look)  # fmt: skip
        numbers = {str(count): count for count in (1, 4, 16, 64, 256)}
        for (name, count), look in zip(numbers.items(), style.looks(numbers).values(), strict=True):
            own = [
                row for row in rows
                if row["per_worker"] == count and row["failures_per_hour"] and not row["cut"]
            ]  # fmt: skip
            right.plot([row["failures_per_hour"] for row in own], [row["mean"] for row in own],
                       label=name, **look)  # fmt: skip
        left.set(xlabel="shards a worker", ylabel="time, in multiples of the ideal")
        right.set(xlabel="failures an hour of a worker")
        for axis, title in ((left, "failures an hour"), (right, "shards a worker")):
            for which in "xy":
                style.log_axis(axis, which)
            axis.legend(title=title, ncols=2)
        style.save(figure, path)


if __name__ == "__main__":
    main()
