"""Memory does not grow with the number of rows, measured in a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import oracle
import pytest

import qinco_jax as qj
from qinco_jax.training import feed

PROGRAM = textwrap.dedent(
    r"""
    import re, sys
    from pathlib import Path
    import numpy as np
    import oracle
    import qinco_jax as qj

    def peak():  # not ru_maxrss, which a process inherits from its parent
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])

    def run(function, x):
        before = peak()
        out = function(model, x)
        print(peak() - before - x.nbytes - out.nbytes)  # pages of a mapped input count, too
        return out

    config = qj.QincoConfig(
        dim=128, num_steps=2, codebook_size=16, embed_dim=8, hidden_dim=8, num_blocks=1,
        num_candidates=2, beam_size=2,
    )
    model = oracle.random_model(config)
    x = np.load(sys.argv[1], mmap_mode="r")
    codes = run(qj.encode, x)
    run(qj.decode, np.asarray(codes))
    """
)
LIMIT = 2**28  # half of what the vectors take as float32


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_vectors_take_no_memory_beyond_input_and_output(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    x = np.lib.format.open_memmap(file, "w+", np.uint8, (1_000_000, 128))
    x[:] = np.random.default_rng(0).integers(0, 8, x.shape, np.uint8)
    x.flush()
    here, root = Path(oracle.__file__).parent, Path(qj.__file__).parents[1]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{root}{os.pathsep}{here}"}
    command = [sys.executable, "-c", PROGRAM, str(file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for_encode, for_decode = map(int, done.stdout.split())
    assert for_encode < LIMIT
    assert for_decode < LIMIT


TRAINING = textwrap.dedent(
    r"""
    import re, sys
    from pathlib import Path
    import numpy as np
    import qinco_jax as qj

    def anonymous(_=None):  # memory of our own, not the file's pages
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])

    config = qj.QincoConfig(
        num_steps=2, codebook_size=16, hidden_dim=8, num_candidates=2, beam_size=2
    )
    few = np.zeros((25_000, 128), np.float16)
    qj.train(few, config, num_epochs=1, epoch_rows=20_000)  # compiles all there is to compile
    before, seen = anonymous(), []
    x = np.load(sys.argv[1], mmap_mode="r")
    qj.train(x, config, num_epochs=1, epoch_rows=20_000, log=lambda _: seen.append(anonymous()))
    print(max(seen) - before)
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_training_vectors_are_never_copied_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    x = np.lib.format.open_memmap(file, "w+", np.float16, (4_000_000, 128))
    x.reshape(4000, 1000, 128)[:] = np.random.default_rng(0).normal(size=(1000, 128))
    x.flush()
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(qj.__file__).parents[1])}
    command = [sys.executable, "-c", TRAINING, str(file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * feed.POOL_BYTES + 2**26 < x.nbytes / 4
