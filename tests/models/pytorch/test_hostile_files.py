"""No file of PyTorch makes us do what it asks for."""

import contextlib
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_writer as tw
from hypothesis import given
from hypothesis import strategies as st
from published import CHECKPOINTS, PAIRWISE, QINCO, QINCO2, assert_same, below, contents

import qinco_jax as qj
from qinco_jax.models.pytorch import pickled_modules, safe_pickle, torch_zip

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
