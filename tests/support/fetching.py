"""Fetches a file in a process of its own, in small parts, for `test_download`: ADDRESS FOLDER."""

import sys
import types
from pathlib import Path

package = types.ModuleType("qinco_jax")  # without what the real one loads, which takes seconds
package.__path__ = [str(Path(__file__).parents[2] / "qinco_jax")]
sys.modules["qinco_jax"] = package

from qinco_jax.datasets import download  # noqa: E402
from qinco_jax.remote import ranges  # noqa: E402

ranges.PART_BYTES, ranges.AHEAD_BYTES = 10_000, 10_000
address, folder = sys.argv[1:]
remote = download.Remote("x", (address,))
download.fetch(remote, Path(folder), lambda done, total: print(done, flush=True))
print(download.verify(remote, Path(folder)))
