"""Published checkpoints give the published codes, and nothing is guessed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import jax
import numpy as np
import pytest
import torch_writer as tw
from published import (
    CHECKPOINTS,
    IVF,
    NAMES,
    OPQ,
    PAIRWISE,
    QINCO,
    QINCO2,
    assert_same,
    below,
    checkpoint,
    contents,
    load,
    weights,
)

import qinco_jax as qj
from qinco_jax.models.pytorch import pickled_modules, torch_zip
from qinco_jax.models.pytorch.safe_pickle import Record
from qinco_jax.quantizers import pairwise_decoder


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_gives_the_published_codes_and_is_saved_as_ours(
    name: str, tmp_path: Path
) -> None:
    file, model = load(name), qj.load_pytorch(checkpoint(name))
    np.testing.assert_array_equal(qj.encode(model, file.arrays["x"]), file.codes)
    in_parts = name in golden.PARTS
    expected = file.arrays["xhat_decode"] if in_parts else file.raw_reconstructions[-1]
    error = np.abs(np.asarray(qj.decode(model, file.codes)) - expected).max()
    assert error <= 1e-5 * np.abs(expected).max()
    with jax.enable_x64(True):
        qj.save(qj.load_pytorch(checkpoint(name)), tmp_path / "model")
    assert_same(qj.load(tmp_path / "model"), model)


def test_a_checkpoint_of_a_training_is_read_with_its_optimizer() -> None:
    model = qj.load_pytorch(CHECKPOINTS / f"{QINCO2}.pt")
    config = qj.QincoConfig(
        dim=16, num_steps=4, codebook_size=16, embed_dim=24, hidden_dim=32, num_blocks=2,
        num_candidates=4, beam_size=8,
    )  # fmt: skip
    assert model.config == config
    x = load(QINCO2).arrays["x"]
    one_step = qj.decode(model, qj.encode(model, x)[:, :1])
    assert (
        np.square(qj.decode(model, qj.encode(model, x)) - x).mean()
        < 0.5 * np.square(one_step - x).mean()
    )


def test_a_pairwise_decoder_gives_the_published_sums() -> None:
    decoder = qj.load_pytorch(CHECKPOINTS / f"{PAIRWISE}.pt")
    with np.load(CHECKPOINTS / f"{PAIRWISE}.npz") as file:
        arrays = dict(file)
    x_hat = pairwise_decoder.decode(decoder, arrays["codes"])
    np.testing.assert_allclose(x_hat, arrays["x_hat"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(jax.jit(pairwise_decoder.decode)(decoder, arrays["codes"]), x_hat)
    for wrong in (arrays["codes"][:, :4], np.pad(arrays["codes"], ((0, 0), (0, 1)))):
        for decode in (pairwise_decoder.decode, jax.jit(pairwise_decoder.decode)):
            with pytest.raises(qj.InputError, match=r"this decoder takes \[N, 5\]"):
                decode(decoder, wrong)
    with pytest.raises(qj.InputError, match=r"code 32 in row 0, column 0 is outside 0\.\.31"):
        pairwise_decoder.decode(decoder, np.full((1, 5), 32))


def test_a_pairwise_decoder_may_be_told_its_number_of_codes(tmp_path: Path) -> None:
    file = CHECKPOINTS / f"{PAIRWISE}.pt"
    assert_same(qj.load_pytorch(file, num_steps=4), qj.load_pytorch(file))
    found = torch_zip.read(file)
    found["codebook_MKD"] = found["codebook_MKD"][:7]
    found["combine_mvals_m"] = found["combine_mvals_m"][:, :7]
    seven = tw.save(tmp_path / "seven.pt", found)
    assert len(qj.load_pytorch(seven, num_steps=4).tables) == 7
    with pytest.raises(qj.InputError, match="pass num_steps="):
        qj.load_pytorch(seven)
    seven.unlink()
    for wrong, problem in (
        (0, "integer from 1 to 32767"),
        (True, "integer from 1 to 32767"),
        (10**5000, "integer from 1 to 32767"),
        (3, r"pairs for 3 steps are not all integers in 0\.\.7"),
    ):
        with pytest.raises(qj.InputError, match=problem):
            qj.load_pytorch(file, num_steps=wrong)
    with pytest.raises(qj.InputError, match="needs no num_steps"):
        qj.load_pytorch(checkpoint(QINCO), num_steps=4)
    for name in ("folder", "file.safetensors"):
        with pytest.raises(qj.InputError, match="PairwiseDecoder cannot be saved"):
            qj.save(qj.load_pytorch(file, num_steps=4), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_centroids_may_be_in_a_file_of_their_own(tmp_path: Path) -> None:
    whole, found = qj.load_pytorch(checkpoint(IVF)), contents(IVF)
    centroids = found["model"].pop("steps.0.ivf_centroids.weight")
    raw = centroids * found["model"]["data_std"] + found["model"]["data_mean"]
    np.save(tmp_path / "centroids.npy", raw)
    file = tw.save(tmp_path / "model.pt", found)
    model = qj.load_pytorch(file, centroids=tmp_path / "centroids.npy")
    np.testing.assert_allclose(model.codebook, whole.codebook, atol=1e-6)
    assert_same(model.replace(codebook=whole.codebook), whole)
    assert_same(qj.load_pytorch(file, centroids=raw), model)
    for wrong, problem in ((None, "pass centroids="), (raw[:-1], "shape"), (raw * np.nan, "NaN")):
        with pytest.raises(qj.InputError, match=problem):
            qj.load_pytorch(file, centroids=wrong)
    with pytest.raises(qj.InputError, match="leave yours out"):
        qj.load_pytorch(checkpoint(IVF), centroids=raw)
    with pytest.raises(qj.InputError, match="leave out centroids"):
        qj.load_pytorch(checkpoint(QINCO2), centroids=raw)


NO_SCALES = (0, 0.0, -2.0, np.nan, np.inf, 1e300, 1e-300, 10**5000, True, "abc", [1.0])


@pytest.mark.parametrize("name", [QINCO, "v1_qincolr_M4_K16_D16", "v1_ivfqinco_M4_K16_D16"])
def test_the_state_of_a_training_on_several_gpus_needs_db_scale(name: str, tmp_path: Path) -> None:
    scheduler = Record("__main__ Scheduler", {"lr": 1e-3, "losses": [0.5]})
    state = {"epoch": 3, "scheduler": scheduler, "state_dict": weights(name)}
    file = tw.save(tmp_path / "model.pt", state)
    with pytest.raises(qj.InputError, match="pass db_scale="):
        qj.load_pytorch(file)
    db_scale = load(name).sizes["db_scale"]
    model = qj.load_pytorch(file, db_scale=db_scale)
    assert_same(model, qj.load_pytorch(checkpoint(name)))
    for bad in NO_SCALES:
        with pytest.raises(qj.InputError, match="db_scale is not a number from"):
            qj.load_pytorch(file, db_scale=bad)
    with pytest.raises(qj.InputError, match="needs no db_scale"):
        qj.load_pytorch(checkpoint(name), db_scale=db_scale)


def test_one_step_is_a_model_too(tmp_path: Path) -> None:
    found, whole = contents(QINCO2), qj.load_pytorch(checkpoint(QINCO2))
    found["parameters"]["M"] = 1
    found["model"] = {k: a for k, a in found["model"].items() if k.split(".")[1:2] in ([], ["0"])}
    assert_same(qj.load_pytorch(tw.save(tmp_path / "x.pt", found)), qj.prefix(whole, 1))


SECOND: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "more than is known": (lambda f: f.update(ema={}), "'ema'.*; expected a module"),
    "no sizes": (lambda f: f.pop("data_dim"), "expected a module"),
    "an unknown setting": (lambda f: f["parameters"].update(C=1), "'C'.*; expected some of A"),
    "no K": (lambda f: f["parameters"].pop("K"), "its K is None"),
    "no B": (lambda f: f["parameters"].pop("B"), "its B is None"),
    "a B of text": (lambda f: f["parameters"].update(B="8"), "its B is '8'; expected 1 to"),
    "no A": (lambda f: f["parameters"].pop("A"), "it has .*substep.*unknown"),
    "too large an A": (lambda f: f["parameters"].update(A=17), "num_candidates = 17"),
    "another de": (lambda f: f["parameters"].update(de=20), r"shape \(24, 40\); expected \(20, 36"),
    "a QINCo with de": (lambda f: f["parameters"].update(qinco1_mode=True), "de = 16"),
    "no IVF": (lambda f: f["parameters"].update(ivf_in_use=True, ivf_K=32), "pass cen"),
    "a K_ivf of no IVF": (lambda f: f["parameters"].update(ivf_K=32), "leave out cent"),
    "more steps": (lambda f: f["parameters"].update(M=5), "lacks 'steps.4.codebook"),
    "fewer steps": (lambda f: f["parameters"].update(M=3), "'steps.3.*unknown"),
    "too many steps": (lambda f: f["parameters"].update(M=10**6), "but holds 41 arrays"),
    "too large a step": (lambda f: f["parameters"].update(dh=10**9), "its dh is 1000000000"),
    "an unknown array": (lambda f: f["model"].update(y=np.ones(3)), "'y', unknown"),
    "a missing array": (lambda f: f["model"].pop("data_std"), "lacks 'data_std'"),
    "an array of numbers": (lambda f: f["model"].update(data_std=1.0), "'data_std', a float"),
    "integers": (lambda f: f["model"].update(data_std=np.array(1)), "data_std has dtype int64"),
    "no spread": (lambda f: f["model"].update(data_std=np.array(0.0)), "positive number"),
    "NaN": (lambda f: f["model"].update(data_mean=np.full(16, np.nan)), "NaN"),
    "another shape": (lambda f: f["model"].update(data_mean=np.ones(15)), r"\(15,\); expected"),
}  # fmt: skip


@pytest.mark.parametrize("change", SECOND)
def test_nothing_is_guessed_of_the_second_program(change: str, tmp_path: Path) -> None:
    found, (apply, problem) = contents(QINCO2), SECOND[change]
    apply(found)
    with pytest.raises(qj.InputError, match=problem):
        qj.load_pytorch(tw.save(tmp_path / "model.pt", found))


FIRST: dict[str, tuple[str, Callable[[Record], Any], str]] = {
    "no db_scale": (QINCO, lambda r: r.state.pop("db_scale"), "db_scale"),
    "a db_scale of truth": (QINCO, lambda r: r.state.update(db_scale=True), "db_scale is not a nu"),
    "a db_scale below 0": (QINCO, lambda r: r.state.update(db_scale=-2.0), "negative one, as of"),
    "a db_scale beyond float32": (QINCO, lambda r: r.state.update(db_scale=1e300), "to 3.4e"),
    "another K": (QINCO, lambda r: r.state.update(K=17), r"expected \(17, 16\)"),
    "another K below": (QINCO, lambda r: below(r, "step1").update(K=17), "step1.K is 17"),
    "an unknown attribute": (QINCO, lambda r: r.state.update(rate=1), "'rate', unknown in a model"),
    "a hook": (QINCO, lambda r: r.state.update(_forward_hooks={0: None}), "hooks"),
    "a buffer": (QINCO, lambda r: r.state.update(_buffers={"b": np.ones(1)}), "buffers"),
    "an array less": (
        QINCO, lambda r: below(r, "step2", "MLPconcat")["_parameters"].update(bias=None), "lacks"
    ),
    "another list": (QINCO, lambda r: r.state["steps"].reverse(), "steps is not the list of"),
    "a module twice": (
        QINCO, lambda r: r.state["_modules"].update(step2=r.state["_modules"]["step1"]), "twice"
    ),
    "itself": (QINCO, lambda r: r.state["_modules"].update(step1=r), "twice"),
    "another class": (
        QINCO,
        lambda r: below(r, "step1", "residual_block0")["_modules"].update(
            {"1": Record("torch.nn.modules.linear Linear", {"training": True})}
        ),
        "'step1.residual_block0.1' is .*Linear.*; expected .*ReLU",
    ),
    "rows of bounded norm": (QINCO, lambda r: below(r, "codebook0").update(max_norm=1.0), "max_n"),
    "a scale of the whole": (OPQ, lambda r: r.state.update(db_scale=2), "db_scale is 2; exp"),
    "a part less": (OPQ, lambda r: r.state["_modules"].pop("sub_quantizer_0"), "expected sub"),
    "another rotation": (
        OPQ, lambda r: r.state["_parameters"].update(opq_matrix=np.eye(8)), r"\(8, 8\); expected"
    ),
    "a part of another class": (
        OPQ,
        lambda r: setattr(
            r.state["_modules"]["sub_quantizer_1"], "name", pickled_modules.LOW_RANK
        ),
        "sub_quantizer_1 is a model_qinco QINCoLR; expected",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", FIRST)
def test_nothing_is_guessed_of_the_first_program(change: str, tmp_path: Path) -> None:
    name, apply, problem = FIRST[change]
    found = contents(name)
    apply(found)
    with pytest.raises(qj.InputError, match=problem):
        qj.load_pytorch(tw.save(tmp_path / "model.pt", found))


def test_a_product_of_one_part_is_a_model_of_its_own(tmp_path: Path) -> None:
    found, rotation = contents(OPQ), np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    part = qj.load_pytorch(checkpoint(OPQ)).parts[0]
    del found.state["_modules"]["sub_quantizer_1"], found.state["sub_quantizers"][1]
    x = load(OPQ).arrays["x"][:, :8]
    for published in (None, np.float32(rotation)):
        found.state["_parameters"].pop("opq_matrix", None)
        found.state.pop("opq_matrix", None)
        if published is None:
            found.state["opq_matrix"] = None
        else:
            found.state["_parameters"]["opq_matrix"] = published
        model = qj.load_pytorch(tw.save(tmp_path / "model.pt", found))
        assert type(model) is qj.Qinco
        turned = np.eye(8, dtype=np.float32) if published is None else published
        codes = qj.encode(model, x)
        np.testing.assert_array_equal(codes, qj.encode(part, x @ turned.T))
        expected = qj.decode(part, codes) @ turned
        np.testing.assert_allclose(qj.decode(model, codes), expected, rtol=1e-5, atol=1e-5)
        path = tmp_path / f"{published is None}.safetensors"
        qj.save(model, path)
        assert_same(qj.load(path), model)


def test_what_is_written_again_is_the_same(tmp_path: Path) -> None:
    """So what the tests above refuse is refused for the change alone."""
    for name in (QINCO, OPQ, QINCO2):
        model = qj.load_pytorch(tw.save(tmp_path / "model.pt", contents(name)))
        assert_same(model, qj.load_pytorch(checkpoint(name)))
