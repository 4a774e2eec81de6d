"""genjax: generative models in JAX, from the paper's equations to a running, resumable, sharded experiment.

>>> import genjax
>>> run = genjax.restore("runs/vae_digits")
"""

from typing import Any

from genjax.errors import UserError

__version__ = "0.1.0"
__all__ = ["UserError", "restore", "train"]


def __getattr__(name: str) -> Any:
    # The engine is imported when it is asked for, so that a model file alone imports in a second.
    if name in __all__:
        from genjax import training

        return getattr(training, name)
    raise AttributeError(f"module 'genjax' has no attribute {name!r}")
