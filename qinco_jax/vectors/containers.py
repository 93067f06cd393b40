"""Vectors in files that can hold several tables: HDF5, Parquet, safetensors and `.npz`."""

from collections.abc import Mapping

from qinco_jax.errors import InputError
from qinco_jax.remote.paths import AnyPath
from qinco_jax.vectors import formats, hdf5, npz, parquet, safetensors
from qinco_jax.vectors.stored import Rows
from qinco_jax.vectors.tables import Table

READERS = {
    ending: module.tables
    for module in (hdf5, parquet, safetensors, npz)
    for ending in module.ENDINGS
}
ENDINGS = tuple(READERS)
SHOWN_NAMES = 20


def read(path: AnyPath, name: str | None = None) -> Rows:
    """Opens vectors, or a ground truth's ids, in a file that can hold several tables.

    Args:
      path: a file with one of `ENDINGS`.
      name: of the dataset, column, tensor or array; `None` takes the only one that can hold
        vectors.

    Returns:
      [N, D] with N >= 1 and 1 <= D <= 10^6, integers or floats; a read-only map of the file, a
      `Stored`, which several threads may read, or from a compressed `.npz` an array in memory.

    Raises:
      InputError: the file is missing or damaged, it has no vectors of that name, or no name was
        given and there are several.
    """
    found = tables(path)
    usable = [key for key, table in found.items() if table.open is not None]
    if name is None and len(usable) == 1:
        (name,) = usable
    table = found.get(name or "")
    if table is None or table.open is None:
        shown = [f"{key} ({table.what})" for key, table in found.items()]
        listed = ", ".join(shown[:SHOWN_NAMES]) or "nothing"
        more = f" and {len(shown) - SHOWN_NAMES} more" if len(shown) > SHOWN_NAMES else ""
        if not usable:
            raise InputError(
                f"found no vectors in {path}, which holds {listed}{more}; save them there as "
                "[N, D] numbers"
            )
        problem = f"no vectors named {name!r}" if name else "no single table of vectors"
        raise InputError(
            f"found {problem} in {path}, which holds {listed}{more}; name [N, D] numbers in it, "
            f"for example {path}::{usable[0]}"
        )
    return table.open()


def tables(path: AnyPath) -> Mapping[str, Table]:
    """The tables in a file by name.

    Raises:
      InputError: the file is missing, empty or damaged.
    """
    formats.check_file(path, ENDINGS)
    return READERS[path.suffix](path)
