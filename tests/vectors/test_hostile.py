"""Damaged and hostile files of vectors are refused, in little memory and time."""

import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_files import NUMBERS, X, every_kind

from qinco_jax import InputError
from qinco_jax.vectors import formats
from qinco_jax.vectors.shards import read_rows


def read_all(path: Path) -> int:
    """Reads what the file claims to hold, as far as 2^22 numbers; 0 if it was refused."""
    try:
        rows = read_rows(path)
        assert rows.ndim == 2 and len(rows) >= 1
        step = max(1, 2**20 // rows.shape[1])
        for begin in range(0, min(len(rows), 4 * step), step):
            np.asarray(rows[begin : begin + step])
        np.asarray(rows[-1:])
    except InputError as error:
        assert "x." in str(error) and len(str(error)) < 2000, error
        return 0
    return len(rows)


def sound(folder: Path) -> dict[str, list[bytes]]:
    """Small files of each ending, without damage."""
    x = X[:40]
    np.save(folder / "x.npy", x)
    found: dict[str, list[bytes]] = {}
    for ending in formats.NEW_ENDINGS:
        path = folder / f"sound{ending}"
        with formats.create(path, x.shape, NUMBERS.get(ending, "f4")) as rows:
            rows[:] = (9 * np.abs(x)).astype(rows.dtype)
        found[ending] = [path.read_bytes()]
    for path in every_kind(folder, x).values():
        found.setdefault(path.suffix, []).append(path.read_bytes())
    with h5py.File(folder / "latest.hdf5", "w", libver="latest") as file:
        file.create_dataset("emb", data=x, chunks=(16, 8), shuffle=True, compression="gzip")
    pieces = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    for number, kind in enumerate(pieces):  # beside other members
        with zipfile.ZipFile(folder / f"{number}.npz", "w", kind) as archive:
            archive.write(folder / "x.npy", "emb.npy")
            archive.writestr("about.txt", "vectors")
        found[".npz"].append((folder / f"{number}.npz").read_bytes())
    found[".hdf5"] += [(folder / "latest.hdf5").read_bytes(), *found.pop(".h5")]
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    return sound(tmp_path_factory.mktemp("sound"))


WORDS = [b"\xff", b"\0", b"\x80", b"\x7f", b"\xff" * 4, b"\0" * 4, b"\xff" * 8, b"[" * 8, b"9" * 8]
WORDS += [b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f", b"\0\0\0\0\1\0\0\0"]
FUZZED = [*formats.NEW_ENDINGS, ".hdf5", ".parquet", ".safetensors", ".npz"]


@pytest.mark.parametrize("ending", FUZZED)
@settings(max_examples=150)
@given(data=st.data())
def test_damage_anywhere_is_refused_or_read(
    files: dict[str, list[bytes]], ending: str, data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from(files[ending])))
    size = len(content)
    ends = st.one_of(
        st.integers(0, size - 1), st.integers(0, min(150, size - 1)),
        st.integers(max(0, size - 1200), size - 1),
    )  # fmt: skip
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(ends)
        if data.draw(st.booleans()):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        else:
            word = data.draw(st.one_of(st.sampled_from(WORDS), st.binary(min_size=1, max_size=8)))
            content[place : place + len(word)] = word
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{ending}")
        path.write_bytes(content)
        read_all(path)
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("ending", FUZZED)
@settings(max_examples=60)
@given(data=st.data())
def test_every_cut_is_refused(
    files: dict[str, list[bytes]], ending: str, data: st.DataObject
) -> None:
    content = data.draw(st.sampled_from(files[ending]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{ending}")
        path.write_bytes(content)
        whole = read_all(path)
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        assert whole == 40 and (read_all(path) == 0 or ending.endswith("vecs"))


@pytest.mark.parametrize("ending", FUZZED)
@settings(max_examples=60)
@given(content=st.binary(max_size=400), after=st.booleans())
def test_random_bytes_are_refused(
    files: dict[str, list[bytes]], ending: str, content: bytes, after: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{ending}")
        path.write_bytes(files[ending][0][:16] * after + content)
        read_all(path)


def array_of(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


def tensors(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)


HOSTILE = {
    "rows.npy": array_of("(1000000000000000000, 8)"),
    "product.npy": array_of("(4611686018427387904, 4)"),
    "negative.npy": array_of("(-1, -4)"),
    "digits.npy": array_of("(" + "9" * 5000 + ", 4)"),
    "deep.npy": array_of("(" * 9000),
    "header.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(64),
    "rows.fbin": struct.pack("<II", 2**32 - 1, 10**6) + bytes(64),
    "dim.fvecs": struct.pack("<i", 2**31 - 1) + bytes(64),
    "length.safetensors": tensors(b"{}", 2**63),
    "last.safetensors": tensors(b"{}", 2**64 - 1),
    "deep.safetensors": tensors(b'{"a":' * 10**6),
    "lists.safetensors": tensors(b"[" * 10**6),
    "digits.safetensors": tensors(
        b'{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64],"b":' + b"9" * 10**6 + b"}}"
    ),
    "shape.safetensors": tensors(
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,16],"data_offsets":[0,64]}}'
    ),
    "offsets.safetensors": tensors(
        b'{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[18446744073709551552,0]}}'
    ),
    "twice.safetensors": tensors(
        b'{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]},'
        b'"a":{"dtype":"F32","shape":[1000,1000],"data_offsets":[0,4000000]}}'
    ),
    "more.safetensors": tensors(
        b'{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64],"more":[{}]}}'
    ),
    "names.safetensors": tensors(
        b"{" + b",".join(
            b'"%d":{"dtype":"F32","shape":[0,1],"data_offsets":[0,0]}' % i for i in range(20_000)
        ) + b',"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}'
    ),
    "footer.parquet": b"PAR1" + bytes(64) + b"\xff\xff\xff\xffPAR1",
    "thrift.parquet": b"PAR1" + b"\x19\xfc\xff\xff\xff\xff\x0f" * 100 + struct.pack("<I", 700)
    + b"PAR1",
}  # fmt: skip


def write_hostile(folder: Path) -> None:
    """Files that claim the most for the fewest bytes."""
    for name, content in HOSTILE.items():
        (folder / name).write_bytes(content)
    for name in ("rows", "product", "digits"):
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(folder / f"{name}-{kind}.npz", "w", kind) as archive:
                archive.writestr("a.npy", HOSTILE[f"{name}.npy"])
    long = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**29) + bytes(2**29)
    with zipfile.ZipFile(folder / "header.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", long)
    claim = bytearray((folder / "rows-8.npz").read_bytes())
    place = claim.index(b"PK\x01\x02") + 24  # the size in the directory
    claim[place : place + 4] = struct.pack("<I", 2**32 - 2)
    (folder / "claim.npz").write_bytes(claim)
    with h5py.File(folder / "sparse.hdf5", "w") as file:
        file.create_dataset("a", (10**15, 100), "f4", chunks=(10**4, 100))
    with h5py.File(folder / "unwritten.hdf5", "w") as file:
        file.create_dataset("a", (10**15, 100), "f4")
    with h5py.File(folder / "bomb.hdf5", "w") as file:
        bomb = np.zeros((2 * 10**6, 16), np.float32)
        file.create_dataset("a", data=bomb, chunks=bomb.shape, compression="gzip")
    with h5py.File(folder / "chunk.hdf5", "w") as file:
        options = {"chunks": (2**26, 15), "compression": "gzip", "maxshape": (None, 15)}
        file.create_dataset("a", (1000, 15), "f4", **options)
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(bomb.reshape(-1)), 16)
    pq.write_table(pa.table({"a": zeros}), folder / "bomb.parquet", compression="zstd")


def test_hostile_files_take_little_memory_and_time(tmp_path: Path) -> None:
    """In a process of its own, which would be killed, or would run into its limit of memory."""
    write_hostile(tmp_path)
    ran = subprocess.run(
        [sys.executable, __file__, tmp_path], capture_output=True, text=True, timeout=500,
        check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


def main(folder: Path) -> None:
    np.asarray(read_rows(folder / "bomb.parquet")[:10])  # what is imported is there
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))
    for path in sorted(folder.iterdir()):
        begin = time.process_time()
        try:
            rows = read_rows(path)
            found = f"{len(rows)} rows"
            np.asarray(rows[:1000])
            np.asarray(rows[-1:])
        except InputError as error:
            found = str(error)[:150]
        seconds = time.process_time() - begin
        print(path.name, found, f"{seconds:.2f} s")
        assert seconds < 20
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used
    print(f"{grown / 1024:.0f} MiB more")
    assert grown < 400 * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
