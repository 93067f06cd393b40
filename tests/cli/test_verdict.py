"""What `qinco train` says at its end of what it made."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import qinco_jax as qj
from qinco_jax.cli import main as cli
from qinco_jax.cli import verdict
from qinco_jax.codecs import ours
from qinco_jax.training.run_folder import Fitting, Mixing

SIZES = ["codebook_size=16", "hidden_dim=16", "beam_size=4", "mix=0", "num_epochs=2",
         "learning_rate=0.2"]  # fmt: skip


def test_an_untrained_model_is_no_gain(tmp_path: Path) -> None:
    """Not beside a weaker quantizer either: the one that it is counts among those compared."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(16, 8))[rng.integers(16, size=1000)]
    np.save(tmp_path / "x.npy", np.float32(centers + 0.01 * rng.normal(size=(1000, 8))))
    settings = [text for size in SIZES for text in ("--set", size)]
    command = ["train", "--dataset", str(tmp_path / "x.npy"), "--bytes", "2", *settings]
    for _ in range(2):  # the second time by the finished run
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONWARNINGS", "ignore")
            ran = CliRunner().invoke(cli.main, [*command, "--out", str(tmp_path / "run")])
        assert ran.exit_code == 0, ran.output
        said = "no epoch improved on the start, so this model is the start"
        assert ran.stdout.count(", before training") == 1
        assert said in ran.stdout and "less" not in ran.stdout.partition(said)[2].partition("|")[0]
    model = qj.load(tmp_path / "run")
    assert isinstance(model, qj.Qinco) and not np.any(model.steps.proj_out)


def test_a_model_that_goes_on_and_gains_nothing_is_the_given_one() -> None:
    rows = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    plain = qj.rq.train(rows, 2, 16)
    codec = ours.of_rq(plain, 2, 4)
    said = verdict.of_nothing_gained(codec, [codec], rows, seen=False, continued=True)
    assert "this model is the model of --init; on 300 validation vectors" in said


@pytest.mark.parametrize(
    "errors, said",
    [
        ([(False, 0.1)], ""),
        ([(True, 0.5)], "RQ leaves 50% of the variance of validation vectors, so training began"),
        ([(True, 0.3), (False, 0.1)], "leaves 30% of the variance of validation vectors in 1 of 2"),
    ],
)
def test_codebooks_fitted_together_are_told(errors: list[tuple[bool, float]], said: str) -> None:
    found = verdict.of_fitting([Fitting(together, error, 1.0) for together, error in errors])
    assert found.count(said) == 1 if said else not found


def test_why_vectors_were_moved_is_two_sentences() -> None:
    moved, left = Mixing(0.7, 1.0, 1.5, 1.47), Mixing(0.0, 1.0, 1.05, None)
    assert verdict.of_mixing([moved], 900) == (
        "900 vectors are few: residual k-means has an error 50% higher on vectors that it was not "
        "trained on. So training moved each vector towards its neighbours, which changes that "
        "error by -2.0% and helps networks more (mix 0.7; --set mix=0 trains on the vectors as "
        "they are)"
    )
    assert "are few in 1 of 2 parts:" in verdict.of_mixing([left, moved], 900)
    assert not verdict.of_mixing([left], 900)
