"""A model's methods as programs.

Called outside of `jit`, each of their operations is compiled by itself, which takes ten times as long as one program.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

#: `compiler_options` of programs that run longer than it takes to optimise them (see tests/xla_flags.py).
OPTIMIZED = {"xla_backend_optimization_level": 3}


@functools.lru_cache(maxsize=32)
def _program(model: Any, name: str) -> Callable[..., Any]:
    return jax.jit(getattr(model, name), static_argnums=2 if name == "sample" else None)


class compiled:
    """A model whose methods are compiled; equal models share their programs."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return _program(self._model, name)
