"""A set of a few vectors."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, num_rows in (("train", 2000), ("database", 200), ("queries", 20)):
        rows = rng.normal(size=(num_rows, 8)) * np.linspace(1, 3, 8)
        np.save(tmp_path / f"{name}.npy", np.float32(rows))
    return tmp_path
