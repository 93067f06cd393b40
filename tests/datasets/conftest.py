"""Downloads in small parts, and a server with a file."""

from collections.abc import Iterator

import pytest
import servers
from downloads import BODY, PART
from servers import Server

from qinco_jax.datasets import download
from qinco_jax.remote import failures, ranges


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Small parts, no pauses to speak of, and no proxy of this machine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures, "PAUSE_SECONDS", 0.001)
        patch.setattr(ranges, "PART_BYTES", PART)
        patch.setattr(ranges, "AHEAD_BYTES", PART)
        patch.setattr(download, "WAIT_SECONDS", 0.01)
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield


@pytest.fixture
def server() -> Iterator[Server]:
    with servers.serving(x=BODY) as running:
        yield running
