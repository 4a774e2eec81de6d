"""Imports run downwards only, from room to room and on module level (docs/design.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

#: From the ground up; rooms of one floor import nothing of each other.
FLOORS = (
    ("genjax.errors", "genjax.metrics", "genjax.devices"),
    ("genjax.buckets",),
    ("genjax.batch",),
    ("genjax.optimizers", "genjax.config", "genjax.values"),
    ("genjax.nn",),
    ("genjax.evaluation",),
    ("genjax.data",),
    ("genjax.model",),
    ("genjax.gradients",),
    ("genjax.fine_tuning",),
    ("genjax.interop",),
    ("genjax.decoding",),
    ("genjax.families",),
    ("genjax.pretrained",),
    ("genjax.training",),
    ("genjax.tools",),
    ("genjax.serving",),
    ("genjax.langchain",),
    ("experiments",),
)
#: Modules of a family that are made of another family's models.
COMPOSITES = {
    # The prior over the codes of a VQ-VAE.
    "genjax.families.autoregressive.vq_prior": {"vae"},
    "genjax.families.diffusion.vq_diffusion": {"vae"},
    # Texts and the codes of an autoencoder.
    "genjax.families.autoregressive.dalle": {"vae"},
    # An autoencoder with a discriminator of patches.
    "genjax.families.vae.autoencoder_kl": {"gan"},
    # A diffusion model of the codes of an autoencoder, given texts.
    "genjax.families.diffusion.latent_diffusion": {"vae"},
    "genjax.families.diffusion.pipelines": {"multimodal", "vae"},
    "genjax.families.diffusion.stable_diffusion": {"multimodal"},
    # A VAE whose posterior is a flow.
    "genjax.families.flow.flow_vae": {"vae"},
    # An RNN whose frames are restricted Boltzmann machines.
    "genjax.families.recurrent.boltzmann_machine": {"energy"},
    # Language models that learn from answers and preferences.
    "genjax.families.alignment.base": {"language"},
    "genjax.families.alignment.preference": {"language"},
    "genjax.families.alignment.reward": {"language"},
    "genjax.families.alignment.sft": {"language"},
    "genjax.families.alignment.policy": {"language"},
    "genjax.families.alignment.ppo": {"language"},
    "genjax.families.alignment.rewards": {"language"},
    "genjax.families.alignment.rollouts": {"language"},
    # Language models that see and hear.
    "genjax.families.multimodal.audio_language_model": {"language"},
    "genjax.families.multimodal.flamingo": {"language"},
    "genjax.families.multimodal.idefics_checkpoints": {"language"},
    "genjax.families.multimodal.captioner": {"language"},
    "genjax.families.multimodal.captioner_checkpoints": {"language"},
    "genjax.families.multimodal.git": {"language"},
    "genjax.families.multimodal.git_checkpoints": {"language"},
    "genjax.families.multimodal.llava": {"language"},
    "genjax.families.multimodal.llava_checkpoints": {"language"},
    # Encoders of questions and documents, and a language model that reads.
    "genjax.families.retrieval.dpr": {"language"},
    "genjax.families.retrieval.rag": {"language"},
}
# Attributes of `genjax` itself are imported when they are asked for, from any floor.
FILES = [
    path
    for room in ("genjax", "experiments")
    for path in (ROOT / room).rglob("*.py")
    if path != ROOT / "genjax/__init__.py"
]


class Import(NamedTuple):
    """An import of ours: the importing module, its line, what it imports, and whether on module level."""

    module: str
    line: int
    imported: str
    on_module_level: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.imported}"


def imports_of(path: Path) -> Iterator[Import]:
    """Imports of genjax and experiments in a file, other than those for annotations alone."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    annotations = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in annotations:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module in ("genjax", "experiments", "genjax.families"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            names = [node.module]
        for name in names:
            if name.partition(".")[0] in ("genjax", "experiments"):
                yield Import(module, node.lineno, name, node in tree.body)


def room_of(module: str) -> str | None:
    """The room that a module lies in; None for names of `genjax` itself."""
    rooms = [room for floor in FLOORS for room in floor if module == room or module.startswith(room + ".")]
    return rooms[0] if rooms else None


def floor_of(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


IMPORTS = [found for path in FILES for found in imports_of(path)]


def test_every_module_lies_in_a_room():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    assert sorted(module for module in modules if room_of(module) is None) == []


def test_imports_run_downwards():
    wrong = []
    for found in IMPORTS:
        own, other = room_of(found.module), room_of(found.imported)
        # Names of genjax itself (UserError, restore, train) are for users and for experiments.
        if (
            own != other
            and (other is None or floor_of(other) >= floor_of(own))
            and not (other is None and own == "experiments")
        ):
            wrong.append(str(found))
    assert wrong == []


def test_imports_stand_on_module_level():
    assert [
        str(found) for found in IMPORTS if not found.on_module_level and not found.module.startswith("experiments")
    ] == []


def test_a_family_imports_another_only_where_it_is_made_of_it():
    def family_of(module: str) -> str | None:
        parts = module.split(".")
        return parts[2] if parts[:2] == ["genjax", "families"] and len(parts) > 2 else None

    between: dict[str, set[str]] = {}
    for found in IMPORTS:
        other = family_of(found.imported)
        if family_of(found.module) and other not in (None, family_of(found.module)):
            between.setdefault(found.module, set()).add(other)
    assert between == COMPOSITES


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from genjax.training import Run", [("genjax.training", True)]),
        ("from genjax import training, errors", [("genjax.training", True), ("genjax.errors", True)]),
        ("def f():\n    import genjax.nn", [("genjax.nn", False)]),
        ("if TYPE_CHECKING:\n    from genjax.training import Run", []),
        ("import numpy", []),
    ],
)
def test_imports_are_found(source, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "module.py"
    path.write_text(source)
    assert [(found.imported, found.on_module_level) for found in imports_of(path)] == expected
