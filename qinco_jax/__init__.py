"""Neural residual quantization in JAX: QINCo and QINCo2.

A codec is a pair of pure functions over a pytree: `encode` turns vectors into codes, `decode` turns
codes, or their first columns, back into vectors. `train` makes the pytree.

`__init__.pyi` lists the public names. Each is imported at its first use, so that the command line
minds Ctrl-C before it imports JAX, which takes seconds.
"""

import lazy_loader

from qinco_jax.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
