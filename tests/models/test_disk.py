"""Folders of models: what comes back, what damage does, and what earlier versions wrote."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import qinco_jax as qj

OLD = Path(__file__).parent / "old"
every_old = pytest.mark.parametrize("name", ["plain", "unit_norm"])


def unpacked(name: str, folder: Path) -> Path:
    """The model, the file and the unfinished run that the code of 2026-11-23 wrote."""
    shutil.unpack_archive(OLD / f"{name}.zip", folder)
    return folder


@every_old
@pytest.mark.parametrize("model", ["model", "model.safetensors"])
def test_an_older_model_gives_the_same_codes(name: str, model: str, tmp_path: Path) -> None:
    old = unpacked(name, tmp_path)
    found = qj.load(old / model)
    assert found.config.unit_norm == (name == "unit_norm")
    np.testing.assert_array_equal(
        qj.encode(found, np.load(old / "x.npy")), np.load(old / "codes.npy")
    )


@every_old
def test_damage_in_any_file_of_an_older_model_is_refused(name: str, tmp_path: Path) -> None:
    old = unpacked(name, tmp_path)
    files = [path for path in (old / "model").rglob("*") if path.is_file()]
    for file in (*files, old / "model.safetensors"):
        whole = file.read_bytes()
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(qj.InputError, match=f"{file} is damaged.*backup or train it again"):
            qj.load(old / file.relative_to(old).parts[0])
        if "arrays" in file.parts:
            file.unlink()
            with pytest.raises(qj.InputError, match=f"{file} is missing.*backup or train"):
                qj.load(old / "model")
        file.write_bytes(whole)
    qj.load(old / "model")
