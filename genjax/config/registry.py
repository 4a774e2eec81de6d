"""Names of experiments: the registry, and experiments in files outside the project."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genjax.config.annotations import ConfigError, suggestion


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered experiment.

    Attributes:
      name: value of `--experiment` for it.
      build: returns the experiment with its defaults.
      source: the paper, or the origin of the set-up.
      expected: the numbers that it is expected to reach, with their units; "" where they stand in a file of results.
      shrunk: overrides by path that make it run in seconds on embedded data, for tests.
    """

    name: str
    build: Callable[[], Any]
    source: str
    expected: str
    shrunk: Mapping[str, Any]


_registry: dict[str, Entry] = {}
_packages: list[str] = []


def register(
    name: str, *, source: str, expected: str = "", shrunk: Mapping[str, Any] | None = None
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers a function that returns an experiment; its docstring states command, run time and numbers.

    Args:
      name: what `--experiment` takes, unique.
      source: citation.
      expected: expected result in a few words, of an experiment outside the project.
      shrunk: overrides by path that make the experiment run in seconds on embedded data.

    Raises:
      ConfigError: another function has the name already.
    """

    def decorate(build: Callable[[], Any]) -> Callable[[], Any]:
        known = _registry.get(name)
        # A module that is imported again registers the same function again.
        if known and (known.build.__module__, known.build.__qualname__) != (build.__module__, build.__qualname__):
            raise ConfigError(f"two experiments are registered under the name {name!r}")
        _registry[name] = Entry(name, build, source, expected, shrunk or {})
        return build

    return decorate


def add_package(name: str) -> None:
    """Tells of a package whose modules register experiments; they are imported when an experiment
    is asked for by name.
    """
    if name not in _packages:
        _packages.append(name)


def import_experiments() -> dict[str, Entry]:
    """Imports every module of the packages given to `add_package`, and returns what is registered, by name."""
    for package in _packages:
        for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{info.name}")
    return dict(sorted(_registry.items()))


def load_file(path: str | Path) -> types.ModuleType:
    """Imports a Python file that lies outside the project, once."""
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; an experiment of your own is given as path/to/file.py:function")
    # The module's name is made of the path, so that annotations resolve and files of the same name do not collide.
    name = f"genjax_experiment_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{path} is no Python file: its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def find_experiment(name: str) -> Entry:
    """The experiment registered under a name, or the experiment of `path/to/file.py:function`.

    Raises:
      ConfigError: there is no experiment of that name; the message has the closest names.
    """
    if ".py" in name:
        path, _, function = name.partition(":")
        module = load_file(path)
        candidates = [
            n for n, v in vars(module).items() if isinstance(v, types.FunctionType) and v.__module__ == module.__name__
        ]
        if function not in candidates:
            raise ConfigError(
                f"{path} has no function {function or '(none named)'!r}; give path/to/file.py:function, "
                f"with one of {', '.join(candidates) or '(no function is defined there)'}"
            )
        build = getattr(module, function)
        registered = next((e for e in _registry.values() if e.build is build), None)
        return registered or Entry(name, build, "", "", {})
    entries = import_experiments()
    if name not in entries:
        raise ConfigError(f"there is no experiment {name!r}; --list prints them all{suggestion(name, entries)}")
    return entries[name]
