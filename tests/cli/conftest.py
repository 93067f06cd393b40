"""What tests of the command line share."""

from pathlib import Path

import numpy as np
import pytest
from small_run import SMALL, qinco


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of vectors and a finished run on them."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    for name, num_rows in (("train", 1000), ("database", 300), ("queries", 40)):
        rows = rng.normal(size=(num_rows, 8)) * np.linspace(1, 3, 8)
        np.save(folder / f"{name}.npy", np.float16(rows))
    ran = qinco("train", "--dataset", folder, "--out", folder / "run", *SMALL)
    assert ran.exit_code == 0, ran.output
    return folder
