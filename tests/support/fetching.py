"""Fetches a file in a process of its own, for `test_download`: ADDRESS FOLDER [SIZE].

With a size as mount(8) knows it, a disk of that size is mounted on the folder, and made larger
after the first failure.
"""

import subprocess
import sys
import types
from pathlib import Path

package = types.ModuleType("qinco_jax")  # without what the real one loads, which takes seconds
package.__path__ = [str(Path(__file__).parents[2] / "qinco_jax")]
sys.modules["qinco_jax"] = package

from qinco_jax.datasets import download  # noqa: E402
from qinco_jax.errors import InputError  # noqa: E402

address, folder, *small = sys.argv[1:]
if small:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={small[0]}", "none", folder], check=True)
remote = download.Remote("x", (address,))
try:
    download.fetch(remote, Path(folder), lambda done, total: print(done, flush=True))
except InputError as error:
    print(error)
    subprocess.run(["mount", "-o", "remount,size=8m", folder], check=True)
    download.fetch(remote, Path(folder), lambda done, total: None)
print(download.verify(remote, Path(folder)))
