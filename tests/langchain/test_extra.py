"""Without langchain-core the classes are refused in one sentence."""

import importlib
import sys

import pytest

from genjax.errors import UserError


def test_a_missing_package_is_told_with_its_command(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("genjax.langchain")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "langchain_core", None)
    with pytest.raises(UserError, match=r"need the package langchain-core: pip install 'genjax\[langchain\]'"):
        importlib.import_module("genjax.langchain")
