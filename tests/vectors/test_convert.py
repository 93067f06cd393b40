"""Files of vectors converted to another kind: every number stays, or it is refused."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from vector_files import NUMBERS, X, lists_of, same, write_parquet

from qinco_jax import InputError
from qinco_jax.cli import main as cli
from qinco_jax.vectors import npy
from qinco_jax.vectors.convert import ENDINGS, convert
from qinco_jax.vectors.shards import read_rows


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "u1", "bfloat16"])
def test_conversion_keeps_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, dtype: str
) -> None:
    monkeypatch.setattr("qinco_jax.vectors.convert.BLOCK_BYTES", 2000)
    x = np.random.default_rng(0).integers(0, 100, (300, 8)).astype(np.dtype(dtype))
    np.save(tmp_path / "x.npy", x)
    done: list[tuple[int, int]] = []
    target = tmp_path / f"y{ending}"
    if dtype == "bfloat16" and ending in (".hdf5", ".h5", ".parquet"):
        with pytest.raises(InputError, match="cannot hold bfloat16"):
            convert(tmp_path / "x.npy", target)
        assert len(list(tmp_path.iterdir())) == 1
        return
    convert(tmp_path / "x.npy", target, progress=lambda *at: done.append(at))
    assert len(done) >= 2 and done[-1] == (300, 300)
    same(read_rows(target), x.astype(NUMBERS.get(ending, x.dtype)))
    convert(target, tmp_path / "back.npy", np.dtype(dtype))
    same(read_rows(tmp_path / "back.npy"), x)
    with pytest.raises(InputError, match="exists"):
        convert(tmp_path / "x.npy", target)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("x", "target", "dtype", "bad"),
    [
        ([[1.0], [2.5]], "y.bvecs", None, "row 1 .* 2.5"),
        ([[0.0], [np.nan]], "y.u8bin", None, "row 1 .* nan"),
        ([[255.0], [256.0]], "y.npy", "uint8", "row 1 .* 256"),
        ([[-1.0], [2.0]], "y.npy", "uint8", "row 0 .* -1"),
        (np.array([[1], [2**63]], np.uint64), "y.npy", "int64", "row 1"),
        (np.array([[1], [2**24 + 1]], np.int32), "y.fvecs", None, "row 1"),
        (np.array([[1], [2**63 - 1]]), "y.npy", "float64", "row 1"),
        (np.array([[2.0**63], [1]]), "y.npy", "int64", "row 0"),
        (np.array([[0.1], [1]]), "y.fvecs", None, "row 0 .* 0.1"),
        (np.array([[0.1], [1e6]]), "y.npy", "float16", "row 1 .* 1000000"),
    ],
)
def test_what_would_change_is_refused(
    tmp_path: Path, x: object, target: str, dtype: str | None, bad: str
) -> None:
    np.save(tmp_path / "x.npy", np.asarray(x))
    with pytest.raises(InputError, match=bad):
        convert(tmp_path / "x.npy", tmp_path / target, dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_floats_are_rounded_where_that_is_asked_for(tmp_path: Path) -> None:
    x = np.array([[0.1, np.nan], [np.inf, -0.0]])
    np.save(tmp_path / "x.npy", x)
    for dtype in ("float16", "bfloat16", "float32"):
        convert(tmp_path / "x.npy", tmp_path / f"{dtype}.safetensors", dtype)
        found = read_rows(tmp_path / f"{dtype}.safetensors")
        expected = x.astype(np.dtype(dtype))
        np.testing.assert_array_equal(np.float32(found), np.float32(expected))


def test_the_command_converts(tmp_path: Path) -> None:
    for i, part in enumerate(np.split(X, 3)):
        write_parquet(tmp_path / f"x-{i}.parquet", emb=lists_of(part), ids=np.arange(100))
    source, target = f"{tmp_path}/x-*.parquet::emb", tmp_path / "y.safetensors"

    def command(*options: str) -> Result:
        return CliRunner().invoke(cli.main, ["data", "convert", source, str(target), *options])

    assert command("--dtype", "bfloat16").exit_code == 0
    same(read_rows(target), X.astype(npy.BFLOAT16))
    ran = command()
    assert ran.exit_code == 2 and ran.output.strip().endswith("remove it first")
