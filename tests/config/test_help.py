"""What `experiments.train --help` and `--list` print, over all experiments and all that their fields can be."""

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest

from experiments import RESULTS, train
from experiments.listing import listing
from genjax import config, optimizers
from genjax.config.annotations import (
    choices,
    format_value,
    is_dataclass_type,
    parse,
    type_hints,
    type_name,
    union_members,
)
from genjax.config.command_line import field_help
from genjax.config.trees import leaves
from genjax.data import Text
from genjax.data.text.pairs import TextToText
from genjax.families.autoencoder.denoising import Corruption
from genjax.families.diffusion.dit import DiT
from genjax.families.diffusion.unet import UNet
from genjax.families.gan.adversarial_autoencoder import CodePrior
from genjax.families.gan.translation import ResNetTranslator, Translator, UNetTranslator
from genjax.nn.distributions import OutputDistribution
from genjax.nn.encoder_decoder import Network
from genjax.nn.lora import LoRA
from genjax.nn.positions import RotaryScaling
from genjax.tools import results

pytestmark = pytest.mark.quick

ENTRIES = config.import_experiments()
RECORDED = results.read_results(RESULTS)


def reachable() -> list[type]:
    """The dataclasses that registered experiments consist of, and those that a flag can choose."""
    found = {}

    def visit(cls: type) -> None:
        if cls not in found:
            found[cls] = None
            for field in dataclasses.fields(cls):
                for choice in choices(type_hints(cls)[field.name]).values():
                    visit(choice)

    def walk(value: object) -> None:
        if dataclasses.is_dataclass(value):
            visit(type(value))
            for field in dataclasses.fields(value):
                walk(getattr(value, field.name))

    for entry in ENTRIES.values():
        walk(entry.build())
    return sorted(found, key=lambda cls: (cls.__module__, cls.__name__))


CLASSES = reachable()
FIELDS = [(cls, field.name, type_hints(cls)[field.name]) for cls in CLASSES for field in dataclasses.fields(cls)]


def test_every_field_has_a_help_text():
    # A word is no text, as "width" of what, nor is a symbol of the paper, nor a word on where to look.
    texts = {f"{cls.__name__}.{name}": field_help(cls, name) for cls, name, _ in FIELDS}
    missing = [name for name, text in texts.items() if len(text.split()) < 2 or re.match(r"see\b|its |\.\.\.", text)]
    assert len(FIELDS) > 1600 and not missing


def test_every_type_prints_in_plain_words():
    flags = {hint for _, _, hint in FIELDS if not (isinstance(hint, type) and getattr(hint, "_is_protocol", False))}
    for hint in flags:
        told = type_name(hint)
        assert not re.search(r"[\[\]<>|]|typing|genjax|Ellipsis|None|\b(int|float|bool|str|tuple)\b|of one of", told), (
            told
        )


def test_values_print_as_flags_read_them():
    for path, hint, value in (leaf for entry in ENTRIES.values() for leaf in leaves(entry.build())):
        if not choices(hint) and value != "":
            assert parse(hint, format_value(value)) == value, path


def test_abstract_bases_are_no_choices():
    offered = {cls for _, _, hint in FIELDS for cls in choices(hint).values()}
    for cls in offered:
        for name, method in inspect.getmembers(cls, inspect.isfunction):
            if "NotImplementedError" in method.__code__.co_names:
                left_out = inspect.getsource(method).rstrip().endswith("raise NotImplementedError")
                assert not left_out, f"{cls.__name__} does not define {name}"
    assert len(offered) > 80 and not offered & {
        CodePrior, Corruption, Network, OutputDistribution, RotaryScaling, Translator,
    }  # fmt: skip
    base = ENTRIES["vae_digits"].build()
    with pytest.raises(config.ConfigError, match="'output_distribution' is not one of bernoulli, gaussian"):
        config.override(base, "model.output", "output_distribution")


def test_no_two_choices_of_a_field_have_one_name():
    def concrete(cls: type) -> set[type]:
        below = set().union(*map(concrete, cls.__subclasses__()))
        return below if inspect.isabstract(cls) or cls.__name__.startswith("_") else below | {cls}

    for cls, name, hint in FIELDS:
        members = [member for member in union_members(hint) if is_dataclass_type(member)]
        assert set(choices(hint).values()) == set().union(*map(concrete, members)), f"{cls.__name__}.{name}"


@pytest.mark.parametrize(
    ("hint", "cls", "name", "earlier"),
    [
        (LoRA | None, LoRA, "lora", "lo_ra"),
        (optimizers.Optimizer, optimizers.AdamW, "adamw", "adam_w"),
        (optimizers.Optimizer, optimizers.RMSProp, "rmsprop", "rms_prop"),
        (UNet | DiT, UNet, "unet", "u_net"),
        (UNet | DiT, DiT, "dit", "di_t"),
        (Translator, UNetTranslator, "unet_translator", "u_net_translator"),
        (Translator, ResNetTranslator, "resnet_translator", "res_net_translator"),
    ],
)
def test_acronyms_are_one_word_and_their_earlier_spelling_is_still_read(hint, cls, name, earlier):
    holder = dataclasses.make_dataclass("Holder", [("part", hint, None)], frozen=True)
    assert choices(hint)[name] is cls and earlier not in choices(hint)
    for spelling in (name, earlier):
        assert config.override(holder(), "part", spelling).part == cls()


def test_configurations_saved_before_parts_of_diffusion_were_renamed_are_read():
    experiment = config.find_experiment("flow_matching_points").build()
    saved = config.to_json(experiment)
    model = saved["model"]
    model["process"]["class"] = model["process"]["class"].replace("LinearInterpolant", "Straight")
    model["weighting"] = "target"
    model["sampler"]["to_data"] = model["sampler"].pop("denoise_to_zero")
    assert config.from_json(saved) == experiment
    with pytest.raises(config.ConfigError, match="model.process: straight is called linear now"):
        config.override(experiment, "model.process", "straight")


def test_configurations_saved_before_the_fields_of_texts_were_renamed_are_read():
    for data in (Text(vocab_size=300, pack_separately=True), TextToText(vocab_size=300)):
        saved = config.to_json(data)
        saved["vocabulary"] = saved.pop("vocab_size")
        if "pack_separately" in saved:
            saved["separate_documents"] = saved.pop("pack_separately")
        assert config.from_json(saved) == data


def test_help_of_an_experiment_begins_with_its_command_and_goes_by_parts(capsys):
    assert train.main(["train", "ddpm_moons", "--help"]) == 0
    shown = capsys.readouterr().out
    command = next(line for line in shown.splitlines() if "experiments.train" in line)
    assert shown.startswith("ddpm_moons: ") and "--experiment=ddpm_moons" in command and "vae_digits" not in shown
    assert re.findall(r"^\w.* \(\w+\)$", shown, re.MULTILINE) == [
        "model (DDPM)", "data (Points)", "training (Training)", "evaluation (Evaluation)",
    ]  # fmt: skip
    flags = re.findall(r"^  --([\w.]+): ", shown, re.MULTILINE)
    paths = [path for path, *_ in leaves(ENTRIES["ddpm_moons"].build())]
    assert flags == ["experiment", "list", "workdir", *paths]
    assert max(map(len, shown.splitlines())) <= 120


def test_a_reader_that_stops_early_is_no_error():
    # `true` reads nothing.
    command = f"{sys.executable} -m experiments.train --help | true"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_help_of_a_part_has_the_choices_of_the_command_line(capsys):
    assert train.main(["train", "--experiment=vae_digits", "--help=model.optimizer", "--model.optimizer=sgd"]) == 0
    shown = capsys.readouterr().out
    assert "--model.optimizer.nesterov" in shown and "--model.latent_dim" not in shown and "--workdir" not in shown
    with pytest.raises(config.ConfigError, match="name the experiment or run too"):
        train.main(["train", "--help=model"])


def test_the_list_has_a_line_an_experiment_by_family(capsys):
    assert train.main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    families = [line for line in lines if line and not line.startswith(" ")]
    assert sorted(listed) == sorted(ENTRIES) and families == sorted(set(families)) and "monte_carlo" in families
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("arguments", [["--list=markov"], ["--list", "markov"]])
def test_the_list_of_a_family_tells_all(arguments, capsys):
    assert train.main(["train", *arguments]) == 0
    shown = capsys.readouterr().out
    family = {n for n, e in ENTRIES.items() if ".markov." in type(e.build().model).__module__ or "markov" in n}
    assert set(re.findall(r"^  (\w+)$", shown, re.MULTILINE)) == family
    assert all(ENTRIES[name].source in shown and results.summary(RECORDED, name) in shown for name in family)


def test_the_list_knows_data_sets_and_parts_of_names():
    assert "reached" in listing("two_moons") and "ddpm_moons" in listing("two_moons")
    assert "score_sde_points" in listing("sde") and "vae_digits" not in listing("sde")
    with pytest.raises(config.ConfigError, match="called 'difusion'; did you mean diffusion"):
        listing("difusion")
