"""Files of vectors: what is written is read back, and every bad file is refused by name."""

import errno
import os
import pickle
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinco_jax import InputError
from qinco_jax.vectors import formats, npy

NPY_DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
FORMATS = [(".npy", np.dtype(name)) for name in NPY_DTYPES]
FORMATS += [(".npy", npy.BFLOAT16)]
FORMATS += [(ending, dtype) for ending, dtype in formats.DTYPES.items() if ending != ".bin"]
VECS = [".fvecs", ".ivecs", ".bvecs"]
BINS = [".fbin", ".ibin", ".i8bin", ".u8bin"]


def numbers(shape, dtype, seed=0):
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    return raw.view(dtype)[..., 0]  # any bits, NaN among them


def write(path, x):
    with formats.create(path, x.shape, x.dtype) as rows:
        rows[:] = x
    return path


def by_hand(path, x):
    """Writes `x` as the formats are defined, row by row."""
    if path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix in VECS:
        dim = np.array([x.shape[1]], "<i4").tobytes()
        path.write_bytes(b"".join(dim + row.tobytes() for row in x))
    else:
        path.write_bytes(np.array(x.shape, "<u4").tobytes() + x.tobytes())
    return path


def assert_same_bits(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(
        np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8)
    )


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMATS),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_round_trip(form, rows, columns, seed):
    ending, dtype = form
    x = numbers((rows, columns), dtype, seed)
    with tempfile.TemporaryDirectory() as folder:
        assert_same_bits(formats.read(by_hand(Path(folder, "hand" + ending), x)), x)
        written = write(Path(folder, "written" + ending), x)
        assert_same_bits(formats.read(written), x)
        if ending == ".npy":
            assert_same_bits(np.load(written, mmap_mode="r").view(dtype), x)
        else:
            assert written.read_bytes() == Path(folder, "hand" + ending).read_bytes()
        assert sorted(os.listdir(folder)) == ["hand" + ending, "written" + ending]


@pytest.mark.parametrize(("ending", "dtype"), FORMATS)
def test_read_is_a_map_that_cannot_be_written(tmp_path, ending, dtype):
    path = write(tmp_path / f"x{ending}", numbers((7, 5), dtype))
    before = path.read_bytes()
    path.chmod(0o444)
    rows = formats.read(str(path))
    assert isinstance(rows, np.memmap) and rows.mode == "r" and not rows.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        rows.flags.writeable = True
    with path.open("r+b") as file:  # what changes in the file changes in the array
        file.seek(-dtype.itemsize, os.SEEK_END)
        file.write(b"\x01" * dtype.itemsize)
    assert rows[-1, -1].tobytes() == b"\x01" * dtype.itemsize
    assert path.read_bytes()[: -dtype.itemsize] == before[: -dtype.itemsize]


def test_reads_ground_truth_of_big_ann(tmp_path):
    ids = np.arange(12, dtype="<i4").reshape(3, 4)
    path = by_hand(tmp_path / "truth.bin", ids)
    with path.open("ab") as file:
        file.write(np.ones((3, 4), "<f4").tobytes())
    assert_same_bits(formats.read(path), ids)
    by_hand(path, ids)  # without the distances
    with pytest.raises(InputError, match="has 56 bytes, but 3 rows of 4 columns take 104"):
        formats.read(path)


def test_reads_second_version_of_npy(tmp_path):
    x = numbers((3, 4), np.dtype("f4"))
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, x, version=(2, 0))
    assert_same_bits(formats.read(tmp_path / "x.npy"), x)


def test_refuses_places_without_vectors(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "x.txt").write_text("1 2 3")
    with pytest.raises(InputError, match=r"there is no file .*missing\.fvecs"):
        formats.read(tmp_path / "missing.fvecs")
    with pytest.raises(InputError, match=r"folder\.npy is a directory"):
        formats.read(tmp_path / "folder.npy")
    with pytest.raises(InputError, match=r"x\.txt has an unknown ending.*\.npy, \.fvecs"):
        formats.read(tmp_path / "x.txt")


def test_says_what_the_system_says(tmp_path, monkeypatch):
    path = write(tmp_path / "x.fbin", numbers((2, 3), np.dtype("f4")))

    def refuse(*_args, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(InputError, match=r"x\.fbin cannot be read \(Permission denied\)"):
        formats.read(path)


@pytest.mark.parametrize("ending", formats.ENDINGS)
def test_refuses_empty_files(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    path.touch()
    with pytest.raises(InputError, match=r"x\..* is empty"):
        formats.read(path)


@pytest.mark.parametrize(("ending", "dtype"), FORMATS)
def test_refuses_files_of_every_other_length(tmp_path, ending, dtype):
    path = by_hand(tmp_path / f"x{ending}", numbers((2, 3), dtype))
    whole = path.read_bytes()
    row = len(whole) // 2 if ending in VECS else len(whole)
    for length in set(range(1, len(whole))) - {row}:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=f"x{ending}"):
            formats.read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match=rf"has {len(whole) + 1} bytes, but . rows of 3 columns"):
        formats.read(path)


@pytest.mark.parametrize("ending", [*BINS, ".bin"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (1, 2**31)])
def test_refuses_headers_without_vectors(tmp_path, ending, shape):
    path = tmp_path / f"x{ending}"
    path.write_bytes(np.array(shape, "<u4").tobytes())
    wrong = "has no rows" if shape == (0, 3) else f"{shape[0]} rows of {shape[1]} columns"
    with pytest.raises(InputError, match=wrong):
        formats.read(path)


@pytest.mark.parametrize("ending", VECS)
@pytest.mark.parametrize("dim", [0, -1, -(2**31), 10**6 + 1, 2**31 - 1])
def test_refuses_absurd_dimensions(tmp_path, ending, dim):
    path = tmp_path / f"x{ending}"
    path.write_bytes(np.array([dim, 5, 5, 5], "<i4").tobytes())
    with pytest.raises(InputError, match=rf"rows of {dim} columns.*another format"):
        formats.read(path)


@pytest.mark.parametrize("ending", VECS)
@pytest.mark.parametrize("row", [1, 6])
def test_refuses_rows_of_another_dimension(tmp_path, ending, row):
    dtype = formats.DTYPES[ending]
    path = by_hand(tmp_path / f"x{ending}", numbers((7, 4), dtype))
    content = bytearray(path.read_bytes())
    content[row * (4 + 4 * dtype.itemsize)] = 3
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"row {row} of .*x{ending} has dimension 3, but .* 4"):
        formats.read(path)


def test_finds_another_dimension_in_a_late_part(tmp_path):
    records = np.zeros(2**20 + 5, [("dim", "<i4"), ("row", "u1")])
    records["dim"] = 1
    records["dim"][-2] = 2
    records.tofile(tmp_path / "x.bvecs")
    with pytest.raises(InputError, match=f"row {2**20 + 3} of"):
        formats.read(tmp_path / "x.bvecs")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3), "array of shape"),
        (np.zeros((2, 3, 4)), "array of shape"),
        (np.zeros(()), "array of shape"),
        (np.zeros((0, 3)), "has no rows"),
        (np.zeros((3, 0)), "3 rows of 0 columns"),
        (np.full((2, 2), None), "Python objects"),
        (np.array([[1, 2], [3]], object), "Python objects, as NumPy makes of rows that differ"),
        (np.zeros((2, 2), "f4,i4"), "f0"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.zeros((2, 2), bool), "bool"),
        (np.zeros((2, 2), "M8[s]"), "M8"),
        (np.zeros((2, 2), "V3"), "V3"),
        (np.zeros((2, 2), "U3"), "U3"),
        pytest.param(
            np.zeros((2, 2), np.longdouble),
            "float|longdouble",
            marks=pytest.mark.skipif(
                np.dtype(np.longdouble).itemsize == 8, reason="longdouble is double here"
            ),
        ),
    ],
)
def test_refuses_other_arrays(tmp_path, x, message):
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match=rf"x\.npy.*({message})"):
        formats.read(tmp_path / "x.npy")


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 127), byte=st.integers(0, 255))
def test_damaged_npy_headers_raise_nothing_else(place, byte):
    with tempfile.TemporaryDirectory() as folder:
        path = by_hand(Path(folder, "x.npy"), numbers((5, 6), np.dtype("f4")))
        content = bytearray(path.read_bytes())
        content[place] = byte
        path.write_bytes(content)
        try:
            assert formats.read(path).size == 30
        except InputError as error:
            assert "x.npy" in str(error)


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"PK\x03\x04" + b"\0" * 60, "it begins like a .npz file, so name it so if it is one"),
        (pickle.dumps([[1.0, 2.0]]), "it begins like a .pkl file"),
        (b"\x93NUMPY\x09\x00" + b"\0" * 60, "fetch or write it again"),
    ],
)
def test_refuses_what_is_no_npy(tmp_path, content, remedy):
    (tmp_path / "x.npy").write_bytes(content)
    wrong = rf"x\.npy is not a \.npy file or its header is damaged; {remedy}"
    with pytest.raises(InputError, match=wrong):
        formats.read(tmp_path / "x.npy")


def refused(path, message, shape=(2, 3), dtype="f4"):
    """Checks that `create` refuses on entry and leaves the folder as it was."""
    before = set(path.parent.iterdir()) if path.parent.is_dir() else None
    with pytest.raises(InputError, match=message), formats.create(path, shape, dtype):
        pytest.fail("the block was entered")
    assert before is None or set(path.parent.iterdir()) == before


def test_create_refuses_places(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    path.write_text("mine")
    (tmp_path / "dangling.npy").symlink_to("nowhere")
    refused(path, r"x\.npy exists; choose another")
    refused(tmp_path / "dangling.npy", "exists")
    refused(tmp_path / "no" / "x.npy", r"there is no directory .*no for x\.npy")
    refused(path / "x.npy", "there is no directory")
    refused(tmp_path / "x.bin", r"unknown ending.*\.u8bin$")
    refused(tmp_path / "x", "unknown ending")
    refused(tmp_path / ("x" * 240 + ".npy"), "File name too long")
    assert path.read_text() == "mine"

    def refuse(*_args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)  # root may write everywhere
    refused(tmp_path / "y.npy", rf"y\.npy cannot be written.*{tmp_path} \(Permission denied\)")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a directory that takes no files")
def test_create_refuses_a_directory_that_takes_no_files():
    refused(Path("/proc/x.npy"), r"/proc/x\.npy cannot be written")


@pytest.mark.parametrize("ending", sorted(formats.DTYPES.keys() - {".bin"}))
def test_create_refuses_what_the_format_cannot_hold(tmp_path, ending):
    refused(tmp_path / f"x{ending}", "not float64; convert .* ending .npy", dtype="f8")


@pytest.mark.parametrize("dtype", ["O", "c8", "?", "f4,i4", ">f4", "U3"])
def test_create_refuses_what_are_no_vectors(tmp_path, dtype):
    refused(tmp_path / "x.npy", r"numbers of .*x\.npy are dtype.*convert", dtype=dtype)


@pytest.mark.parametrize("ending", [".npy", ".fvecs", ".fbin"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (-1, 3), (3,), (2, 3, 4), (1, 10**6 + 1)])
def test_create_refuses_shapes(tmp_path, ending, shape):
    refused(tmp_path / f"x{ending}", "cannot have shape", shape)


def test_create_refuses_rows_that_a_header_cannot_count(tmp_path):
    refused(tmp_path / "x.fbin", f"cannot have {2**32} rows", (2**32, 1))


@pytest.mark.parametrize(("ending", "dtype"), FORMATS)
def test_exception_leaves_nothing(tmp_path, ending, dtype):
    for error in (RuntimeError, OSError, KeyboardInterrupt):
        path = tmp_path / f"x{ending}"
        with pytest.raises(error), formats.create(path, (4, 3), dtype) as rows:
            rows[0] = 1
            (partial,) = tmp_path.iterdir()
            assert partial.name.startswith(f".x{ending}.") and partial.suffix == ".partial"
            raise error
        assert not list(tmp_path.iterdir())


def test_space_is_reserved_at_once(tmp_path):
    with formats.create(tmp_path / "x.npy", (2**12, 2**8), "u1") as rows:
        assert rows.shape == (2**12, 2**8) and not rows.any()
        (partial,) = tmp_path.iterdir()
        assert partial.stat().st_blocks * 512 >= 2**20
    assert formats.read(tmp_path / "x.npy").shape == (2**12, 2**8)


def test_numpy_integers_make_a_shape(tmp_path):
    with formats.create(tmp_path / "x.npy", (np.int64(2), np.int32(3)), np.float32):
        pass
    assert np.load(tmp_path / "x.npy").shape == (2, 3)


@pytest.mark.parametrize("ending", [".npy", ".fvecs", ".fbin"])
def test_more_than_the_disk_has(tmp_path, ending):
    shape = (2**32 - 1, 10**6)
    size = shape[0] * (shape[1] + (ending == ".fvecs")) * 4
    size += {".npy": 128, ".fvecs": 0, ".fbin": 8}[ending]
    refused(tmp_path / f"x{ending}", f"takes {size} bytes in the directory .*No space left", shape)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(tmp_path, monkeypatch, code):
    def full(*_args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    refused(tmp_path / "x.fbin", rf"takes 32 bytes in the directory {tmp_path} .*choose another")


def test_file_beyond_the_allowed_size(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        refused(tmp_path / "x.fvecs", "takes 1600000 bytes .*File too large", (10**5, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_filesystems_that_cannot_reserve(tmp_path, monkeypatch, code):
    def unsupported(*_args):
        raise OSError(code, os.strerror(code))

    if code is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    x = numbers((5, 6), np.dtype("f4"))
    assert_same_bits(formats.read(write(tmp_path / "x.fbin", x)), x)


def test_failure_at_the_end_leaves_nothing(tmp_path, monkeypatch):
    def fail(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match=r"x\.npy cannot be written.*No space left"):
        write(tmp_path / "x.npy", np.zeros((2, 2)))
    assert not list(tmp_path.iterdir())
