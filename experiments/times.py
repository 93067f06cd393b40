"""QINCo's time table: microseconds to encode and to decode a vector, all codecs at 8 bytes.

    python experiments/times.py --dataset NAME --scale full

The paper, the model of L = 2 on BigANN1M with 32 threads of a CPU, encode / decode: OPQ 1.5 / 1.0,
RQ 8.3 / 1.3, UNQ 18.8 / 13.0, QINCo 823 / 8.3; QINCo's encoding on a V100 28.4.

Ours: not run yet on that set. `speed.py` compares our models with Faiss's on random vectors.

Times do not depend on what a model has learned: ours are as they start, and the others are trained
on few vectors. They do depend on the number of vectors, which is small at small scale.
"""

import tempfile
from pathlib import Path

import click
import costs
import numpy as np
import scale
import timing

from qinco_jax.codecs import named
from qinco_jax.evaluate import machine, results
from qinco_jax.training.loop import unseen

RATE, TRAIN_ROWS, ROWS = 8, 20_000, {"small": 512, "full": 16_384}
CODECS = {
    "pq": (), "opq": (), "rq": (), "rq:B=32": (), "lsq": (), "unq": (),
    "qinco1 L=2": ("num_blocks=2",), "qinco1": (), "small": (), "qinco2-S": (), "qinco2-M": (),
    "qinco2-L": (), "qinco2-S:A=16:B=32:each": (),
}  # fmt: skip


def codec_of(task, text, settings):
    """The codec, hardly trained."""
    if text == "unq":
        return costs.trained(text, costs.BASE["full"], np.asarray(task.data.train, np.float32))
    given = ("num_epochs=0", *settings, *task.settings)
    x = task.data.train
    (contender,) = named.contenders([text], [RATE], x.shape[1], given)
    with tempfile.TemporaryDirectory() as place:
        return contender.train(x, 0, Path(place) / "model", unseen)(RATE)


@scale.command(__doc__, train_rows=TRAIN_ROWS)
@click.option("--codecs", help="others, with commas")
def main(task, codecs):
    names = codecs.split(",") if codecs else CODECS
    database = task.data.train if task.data.database is None else task.data.database
    x = np.asarray(database[: ROWS["small" if task.small else "full"]], np.float32)
    rows, facts = [], machine.facts()
    for name in names:
        codec = codec_of(task, name.partition(" ")[0], CODECS.get(name, ()))
        found = {"codec": name, "bytes": RATE, **timing.of_codec(codec, x), "rows": len(x)}
        rows.append({**found, "model_bytes": codec.size, "dataset": task.data.name, **facts})
        results.write(rows, task.folder / "times.jsonl")
    click.echo(scale.costs_table(rows))


if __name__ == "__main__":
    main()
