"""Packages that only some functions need."""

from typing import Any

from qinco_jax.errors import InputError


def faiss(wanted: str) -> Any:
    """The module `faiss`.

    Args:
      wanted: what is to be had with it, for the message.

    Raises:
      InputError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise InputError(f"{wanted} need Faiss; pip install 'qinco_jax[faiss]'") from error
    return faiss
