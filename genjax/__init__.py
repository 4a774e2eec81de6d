"""genjax: generative models in JAX, from the paper's equations to a running, resumable, sharded experiment.

>>> import genjax
>>> run = genjax.restore("runs/vae_digits")
"""

import importlib
from typing import Any

from genjax.errors import UserError

__version__ = "0.1.0"
__all__ = ["UserError", "load_pretrained", "restore", "save_pretrained", "train"]

#: Where each name that is imported when it is first asked for lives.
_LAZY = {
    "load_pretrained": "genjax.pretrained",
    "restore": "genjax.training",
    "save_pretrained": "genjax.pretrained",
    "train": "genjax.training",
}


def __getattr__(name: str) -> Any:
    # The engine and the models are imported when they are asked for, so that a model file alone imports in a second.
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'genjax' has no attribute {name!r}")
