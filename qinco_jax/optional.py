"""Optional packages."""

import os
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
        raise InputError(f"{wanted} need Faiss; pip install 'qinco_jax[search]'") from error
    return faiss


def ray(wanted: str) -> Any:
    """The module `ray`, which from now on reports no statistics.

    Args:
      wanted: what needs it, for the message: a plural.

    Raises:
      InputError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    try:
        import ray
    except ImportError as error:
        raise InputError(f"{wanted} need Ray; pip install 'qinco_jax[ray]'") from error
    return ray
