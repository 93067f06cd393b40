"""Optional packages."""

from typing import Any

from qinco_jax.errors import InputError


def faiss(wanted: str) -> Any:
    """The module `faiss`.

    Args:
      wanted: what needs it, for the message: a plural.

    Raises:
      InputError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise InputError(f"{wanted} need Faiss; pip install 'qinco_jax[faiss]'") from error
    return faiss
