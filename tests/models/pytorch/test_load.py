"""Published checkpoints give the published codes, and no file makes us do what it asks for."""

import contextlib
import functools
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import jax
import numpy as np
import pytest
import torch_writer as tw
from hypothesis import given
from hypothesis import strategies as st

import qinco_jax as qj
from qinco_jax.models.pytorch import pickled_modules, safe_pickle, torch_zip
from qinco_jax.models.pytorch.safe_pickle import Record
from qinco_jax.quantizers import pairwise_decoder

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
load = functools.cache(golden.load)

NAMES = sorted(path.stem.removesuffix("_golden") for path in CHECKPOINTS.glob("*_golden.pt"))
QINCO, QINCO2 = "v1_qinco_M4_K16_D16", "v2_A4_B8_de24_M4_K16_D16"
IVF, OPQ = "v2_ivf32_A4_B8_de24_M4_K16_D16", "v1_pqqinco_opq"
PAIRWISE = "v2_pairwise_decoder_ivf32_M4_K16_D16"


def checkpoint(name: str) -> Path:
    return CHECKPOINTS / f"{name}_golden.pt"


def contents(name: str) -> Any:
    """What is in a checkpoint, to be changed and written again."""
    return torch_zip.read(checkpoint(name), pickled_modules.CLASSES)


def weights(name: str) -> dict[str, np.ndarray]:
    """The published state dict of a golden file."""
    arrays = load(name).arrays.items()
    return {key.removeprefix("weight/"): a for key, a in arrays if key.startswith("weight/")}


def assert_same(model: Any, other: Any) -> None:
    assert jax.tree.structure(model) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, model, other)


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


def below(module: Record, *path: str) -> dict[str, Any]:
    """The state of a module's module."""
    for step in path:
        module = module.state["_modules"][step]
    return module.state


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


SYSTEM = tw.name("posix system")
COMMAND = tw.Raw(tw.Writer().value(("touch canary",)))
NEW = tw.name("model_qinco QINCo") + b")\x81"
LAUGHS = b")" + b"q\x00h\x00\x86" * 64
HOSTILE: dict[str, bytes] = {
    "reduce": SYSTEM + COMMAND + b"R",
    "nested": b"](}X\x01\x00\x00\x00a" + SYSTEM + COMMAND + b"Rse",
    "in a persistent id": SYSTEM + COMMAND + b"RQ",
    "a name as a persistent id": SYSTEM + b"Q",
    "a persistent id of text": b"P0\n",
    "os": tw.name("os system") + COMMAND + b"R",
    "eval": tw.name("builtins eval") + COMMAND + b"R",
    "getattr": tw.name("__builtin__ getattr") + COMMAND + b"R",
    "a path into an allowed name": tw.name("collections OrderedDict.__init__") + b")R",
    "a path out of an allowed module": tw.name("torch.serialization os.system") + COMMAND + b"R",
    "a state with functions": NEW + b"}X\x0c\x00\x00\x00__setstate__" + SYSTEM + b"sb",
    "a state of a name": tw.name("model_qinco QINCo") + b"}b",
    "two states": NEW + b"}b}b",
    "a state of a dict": b"}}X\x09\x00\x00\x00__class__Nsb",
    "a class that is called": tw.name("model_qinco QINCo") + b")R",
    "an object of a function": tw.name("collections OrderedDict") + b")\x81",
    "an object with arguments": tw.name("model_qinco QINCo") + COMMAND + b"\x81",
    "a call of a value": b"})R",
    "arguments that are none": tw.name("collections OrderedDict") + b"NR",
    "arguments that do not fit": tw.name("collections OrderedDict") + COMMAND + b"R",
    "inst": b"(X\x0c\x00\x00\x00touch canaryiposix\nsystem\n",
    "obj": b"(" + SYSTEM + b"X\x0c\x00\x00\x00touch canaryo",
    "newobj_ex": SYSTEM + COMMAND + b"}\x92",
    "ext1": b"\x82\x01" + COMMAND + b"R",
    "ext4": b"\x84\xff\xff\xff\x7f" + COMMAND + b"R",
    "copyreg": tw.name("copy_reg add_extension") + COMMAND + b"R",
    "stack_global": b"\x8c\x05posix\x8c\x06system\x93" + COMMAND + b"R",
    "encode of a codec": tw.call("_codecs encode", "x", "zlib_codec"),
    "a key of tuples": b"}" + LAUGHS + b"Ns",
    "a key of a large number": b"}\x8a\x0a" + b"\x01" * 10 + b"Ns",
    "too many instructions": b"N0" * 600_000,
    "a memo far away": b"Nr\xff\xff\xff\x7fj\xfe\xff\xff\x7f",
    "a long integer": b"\x8b\xff\xff\xff\x7f\x01",
    "long decimals": b"L" + b"9" * 10_000 + b"L\n",
    "a long text": b"X\xff\xff\xff\x7fx",
    "an empty stack": b"0",
    "no mark": b"Nt",
    "a mark left": b"N(",
    "another protocol": b"\x80\x04N",
    "a set of tensors": tw.call("__builtin__ set", [1]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hidden = contents(QINCO2)
    for part in ("logger", "model", "parameters"):
        hidden[part] = tw.Raw(HOSTILE[name])
        with pytest.raises(qj.InputError):
            qj.load_pytorch(tw.save(tmp_path / "model.pt", hidden))
        hidden = contents(QINCO2)
    with pytest.raises(qj.InputError):
        qj.load_pytorch(tw.save(tmp_path / "model.pt", tw.Raw(HOSTILE[name])))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_what_a_pickle_cannot_do_is_what_python_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ordinary unpickler runs the first of the hostile ones: so they are real attacks."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\x02" + HOSTILE["reduce"] + b".")
    assert (tmp_path / "canary").exists()


STRANGE: dict[str, bytes] = {
    "tuples of tuples": b")" + b"q\x00h\x00\x86" * 10_000,
    "lists of lists": b"](" * 50_000 + b"e" * 50_000,
    "depth": b"N" + b"\x85" * 100_000,
    "itself": b"]q\x00h\x00a",
    "a module": NEW,
    "a module in itself": NEW + b"q\x00}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x00ssb",
    "modules in modules": b"".join(
        NEW + b"}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00a" for _ in range(10_000)
    ) + NEW + b"}b" + b"ssb" * 10_000,
    "two of each": NEW + b"}b" + b"".join(
        b"q\x000" + NEW
        + b"}X\x08\x00\x00\x00_modules}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00usb"
        for _ in range(1000)
    ).replace(b"q\x000", b"q\x00"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_a_pickle_that_would_take_for_ever_is_refused(name: str, tmp_path: Path) -> None:
    hidden = contents(QINCO2)
    for part in ("model", "parameters"):
        with pytest.raises(qj.InputError):
            qj.load_pytorch(tw.save(tmp_path / "model.pt", {**hidden, part: tw.Raw(STRANGE[name])}))
    with pytest.raises(qj.InputError):
        qj.load_pytorch(tw.save(tmp_path / "model.pt", tw.Raw(STRANGE[name])))


HUGE = tw.Raw(b"\x8a\x08" + struct.pack("<q", 2**62))
TENSORS: dict[str, tuple[Any, Any, Any]] = {
    "beyond": (13, (4,), (1,)),
    "far beyond": (0, (10**9,), (1,)),
    "huge": (0, (HUGE, HUGE), (HUGE, 1)),
    "huge and empty": (0, (HUGE, 0), (1, 1)),
    "huge steps": (0, (2, 2), (HUGE, 1)),
    "huge offset": (HUGE, (1,), (1,)),
    "expanded": (0, (10**6, 16), (0, 1)),
    "overlapping": (0, (8, 8), (1, 1)),
    "backwards": (15, (16,), (-1,)),
    "negative offset": (-1, (4,), (1,)),
    "negative shape": (0, (-4,), (1,)),
    "too few strides": (0, (4, 4), (1,)),
    "many dimensions": (0, (1,) * 100, (1,) * 100),
    "a shape of texts": (0, ("4",), (1,)),
    "a shape of truths": (0, (True,), (1,)),
    "a list for a shape": (0, [4], (1,)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_must_lie_in_its_storage(name: str, tmp_path: Path) -> None:
    found, writer = contents(QINCO2), tw.Writer()
    storage = writer.storage(np.ones(16, np.float32).tobytes(), 16)
    found["optimizer"] = {"state": writer.view(storage, 0, (4, 4), (1, 4))}
    qj.load_pytorch(tw.save(tmp_path / "model.pt", found, writer))
    writer = tw.Writer()
    storage = writer.storage(np.ones(16, np.float32).tobytes(), 16)
    found["optimizer"] = {"state": writer.view(storage, *TENSORS[name])}
    with pytest.raises(qj.InputError, match="damaged"):
        qj.load_pytorch(tw.save(tmp_path / "model.pt", found, writer))


def test_tensors_share_no_numbers(tmp_path: Path) -> None:
    """Else a small file could take much memory: each of them is copied."""
    found, numbers = contents(QINCO2), np.ones(16, np.float32).tobytes()
    for second, good in (((8, (8,), (1,)), True), ((7, (9,), (1,)), False)):
        writer = tw.Writer()
        storage = writer.storage(numbers, 16)
        halves = [writer.view(storage, *where) for where in ((0, (8,), (1,)), second)]
        file = tw.save(tmp_path / "model.pt", {**found, "optimizer": halves}, writer)
        if good:
            qj.load_pytorch(file)
        else:
            with pytest.raises(qj.InputError, match="tensors that share numbers"):
                qj.load_pytorch(file)


@pytest.mark.parametrize("name", [QINCO, QINCO2])
def test_a_tensor_has_one_name(name: str, tmp_path: Path) -> None:
    found, writer, place = contents(name), tw.Writer(), struct.pack("<I", 10**6)
    table = writer.tensor(np.ones((16, 16), np.float32))
    twice = tw.Raw(table + b"r" + place), tw.Raw(b"j" + place)
    for step, same in enumerate(twice, 1):
        if name == QINCO:
            below(found, f"step{step}", "codebook")["_parameters"]["weight"] = same
        else:
            found["model"][f"steps.{step}.codebook.weight"] = same
    with pytest.raises(qj.InputError, match="a tensor under several names"):
        qj.load_pytorch(tw.save(tmp_path / "model.pt", found, writer))


@pytest.mark.parametrize(
    ("kind", "size"),
    [("FloatStorage", 15), ("FloatStorage", -16), ("DoubleStorage", 16), ("HalfStorage", 16)],
)
def test_a_storage_has_the_size_that_it_states(kind: str, size: int, tmp_path: Path) -> None:
    writer = tw.Writer()
    storage = writer.storage(bytes(64), size, kind)
    with pytest.raises(qj.InputError, match="64 bytes where its size says otherwise"):
        qj.load_pytorch(tw.save(tmp_path / "model.pt", {"a": storage}, writer))


ENTRIES = {"data.pkl": b"\x80\x02N.", "version": b"3\n"}
ARCHIVES: dict[str, tuple[dict[str, bytes], str]] = {
    "no pickle": ({"version": b"3"}, "not one of torch.save"),
    "TorchScript": ({**ENTRIES, "code/a.py": b"", "constants.pkl": b""}, "nothing refers to"),
    "another storage": ({**ENTRIES, "data/0": bytes(8)}, "nothing refers to: 'data/0'"),
    "two folders": ({**ENTRIES, "../y/data.pkl": b""}, "one folder|nothing refers"),
    "no version": ({"data.pkl": ENTRIES["data.pkl"]}, "version"),
    "a new version": ({**ENTRIES, "version": b"9\n"}, "version b'9"),
    "big-endian": ({**ENTRIES, "byteorder": b"big"}, "little-endian"),
    "a long pickle": ({**ENTRIES, "data.pkl": b"N" * (2**24 + 1)}, "more than the 16777216"),
    "nothing": (ENTRIES, "holds a NoneType; expected a module QINCo"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    entries, problem = ARCHIVES[name]
    with pytest.raises(qj.InputError, match=problem):
        qj.load_pytorch(tw.archive(tmp_path / "model.pt", entries))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = tw.archive(tmp_path / "a.pt", {"data.pkl": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(qj.InputError, match="compressed, which"):
        qj.load_pytorch(bomb)
    data = bytearray(tw.archive(tmp_path / "b.pt", ENTRIES).read_bytes())
    for stated in (b"\x50\x4b\x01\x02", b"\x50\x4b\x03\x04"):  # sizes that are not there
        place = data.index(stated) + (20 if stated[2] == 1 else 18)
        data[place : place + 8] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "b.pt").write_bytes(data)
    with pytest.raises(qj.InputError, match=r"overlaps|cut off"):
        qj.load_pytorch(tmp_path / "b.pt")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_that_share_bytes_or_names_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", ENTRIES["data.pkl"])
        archive.writestr("x/data/0", bytes(64))
        archive.filelist += archive.filelist[1:] * 1000  # the directory names one entry often
    with pytest.raises(qj.InputError, match="overlaps"):
        qj.load_pytorch(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", ENTRIES["data.pkl"])
        archive.writestr("x/data.pkl", ENTRIES["data.pkl"])
    with pytest.raises(qj.InputError, match="no name twice"):
        qj.load_pytorch(file)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "begins with b''; expected the zip archive"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "before its version 1.6"),
        (b"pickle".ljust(257, b"\0") + b"ustar  \0" + bytes(512), "before its version 1.6"),
        (b"PK\x03\x04" + bytes(100), "it is damaged"),
        (b"\x93NUMPY" + bytes(100), "expected the zip archive"),
    ],
)
def test_other_formats_are_named(data: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(qj.InputError, match=problem):
        qj.load_pytorch(tmp_path / "a.pt")
    for path in (tmp_path, tmp_path / "b.pt"):
        with pytest.raises(qj.InputError, match="no such file"):
            qj.load_pytorch(path)


def try_to_read(path: Path, data: bytes) -> Any:
    """What a file holds, or `None` where it is refused as it should be."""
    path.write_bytes(data)
    try:
        return qj.load_pytorch(path, num_steps=4)
    except qj.InputError:
        return None


@given(st.data())
def test_a_damaged_file_is_refused_or_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.pt"
    good = (CHECKPOINTS / f"{PAIRWISE}.pt").read_bytes()
    whole = qj.load_pytorch(CHECKPOINTS / f"{PAIRWISE}.pt", num_steps=4)
    assert try_to_read(path, good[: data.draw(st.integers(0, len(good) - 1))]) is None
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        near_end = data.draw(st.booleans())
        place = data.draw(st.integers(len(bad) - 2000 if near_end else 0, len(bad) - 1))
        bad[place] = data.draw(st.integers(0, 255))
    found = try_to_read(path, bytes(bad))
    if found is not None:  # the checksums do not cover the padding
        assert_same(found, whole)


@given(st.data())
def test_any_instructions_are_refused_or_read(data: st.DataObject) -> None:
    names = [tw.name(name) for name in (*torch_zip.FUNCTIONS, *pickled_modules.CLASSES)]
    opcodes = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    pieces = st.sampled_from([*names, *opcodes, b"}", b"(", b"q\x00", b"h\x00", b"N", b")"])
    instructions = b"".join(data.draw(st.lists(pieces | st.binary(max_size=4), max_size=40)))
    vocabulary = safe_pickle.Vocabulary(
        torch_zip.FUNCTIONS, pickled_modules.CLASSES, torch_zip.DTYPES, lambda identity: None
    )
    with contextlib.suppress(qj.InputError):
        safe_pickle.read(b"\x80\x02" + instructions + b".", vocabulary)
