"""Flags, overrides, choices and JSON come from the annotations of dataclasses alone."""

import dataclasses
import enum
import re
from typing import ClassVar, Literal

import pytest
from absl import flags

from genjax import config, optimizers
from genjax.config import ConfigError

pytestmark = pytest.mark.quick


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """An encoder.

    Attributes:
      hidden_dims: widths of the
        hidden layers.
    """

    hidden_dims: tuple[int, ...] = (4, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolutional:
    channels: int = 8
    hidden_dims: tuple[int, ...] = (1,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model.

    Attributes:
      latent_dim, beta: two numbers: one of dimensions,
        one a weight.
      name: free.
    """

    renamed: ClassVar[dict[str, str]] = {"old_beta": "beta"}

    latent_dim: int = 3
    beta: float = 1.0
    parts: tuple[Literal["top", "bottom"], ...] = ()
    window: tuple[int, float] = (3, 0.5)
    limit: float | None = None
    activation: Literal["relu", "tanh"] = "relu"
    color: Color = Color.RED
    centered: bool = False
    resident: bool | None = None
    name: str = "x"
    network: Encoder | Convolutional = Encoder()
    prior: Encoder | None = None
    optimizer: optimizers.Optimizer = optimizers.Adam(learning_rate=3e-4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    model: Model = Model()


def from_command_line(*arguments):
    return config.from_flags(["program", *arguments], Whole())[0]


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("--model.latent_dim=7", "latent_dim", 7),
        ("--model.latent_dim=1e3", "latent_dim", 1000),
        ("--model.beta=4", "beta", 4.0),
        ("--model.window=5,0.25", "window", (5, 0.25)),
        ("--model.limit=0.5", "limit", 0.5),
        ("--model.limit=none", "limit", None),
        ("--model.activation=tanh", "activation", "tanh"),
        ("--model.color=blue", "color", Color.BLUE),
        ("--model.centered", "centered", True),
        ("--nomodel.centered", "centered", False),
        ("--model.centered=true", "centered", True),
        ("--model.resident", "resident", True),
        ("--nomodel.resident", "resident", False),
        ("--model.resident=none", "resident", None),
        ("--model.parts=bottom,top", "parts", ("bottom", "top")),
        ("--model.name=a=b", "name", "a=b"),
        ("--model.network=convolutional", "network", Convolutional(hidden_dims=(4, 4))),
        ("--model.prior=encoder", "prior", Encoder()),
    ],
)
def test_a_flag_sets_its_field(argument, field, value):
    model = from_command_line(argument).model
    if argument == "--model.network=convolutional":
        value = Convolutional()
    assert getattr(model, field) == value
    assert dataclasses.replace(model, **{field: getattr(Model(), field)}) == Model()


def test_flags_reach_the_fields_of_what_was_chosen_in_any_order():
    model = from_command_line(
        "--model.optimizer.schedule.final_scale=0.1",
        "--model.optimizer.schedule=cosine",
        "--model.optimizer=lion",
        "--model.optimizer.b1=0.5",
        "--model.network.hidden_dims=9,9,9",
    ).model
    # The learning rate was set on purpose, so it stays.
    assert model.optimizer == optimizers.Lion(learning_rate=3e-4, b1=0.5, schedule=optimizers.Cosine(final_scale=0.1))
    assert model.network == Encoder(hidden_dims=(9, 9, 9))


def test_a_part_says_which_fields_it_has_of_the_part_that_it_replaces(caplog):
    from_command_line("--model.optimizer=lion", "--model.optimizer.b1=0.5")
    assert caplog.messages == ["model.optimizer=lion keeps learning_rate=0.0003 of adam"]
    caplog.clear()
    from_command_line("--model.optimizer=lion", "--model.optimizer.learning_rate=0.1", "--model.network=encoder")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.latnt_dim=3", "no flag --model.latnt_dim; did you mean model.latent_dim"),
        ("--model.latent_dim=3.5", "--model.latent_dim=3.5: '3.5' is not an integer"),
        ("--model.latent_dim=1e400", "'1e400' is not an integer"),
        ("--model.beta=nan", "'nan' is not a number"),
        ("--model.beta=high", "'high' is not a number"),
        ("--model.window=5", "'5' is not 2 values separated by commas: an integer, a number"),
        ("--model.window=5,0.5,1", "is not 2 values separated by commas"),
        ("--model.activation=sine", "one of relu, tanh"),
        ("--model.color=green", "one of red, blue"),
        ("--model.network.hidden_dims=4,a", "is not integers separated by commas"),
        ("--model.optimizer=adma", "did you mean adam"),
        (
            "--model.optimizer.schedule.num_steps=3",
            "schedule.num_steps needs --model.optimizer.schedule=cosine or linear or piecewise, which is constant here",
        ),
        ("--model.prior.hidden_dims=3", "--model.prior.hidden_dims needs --model.prior=encoder, which is none here"),
        ("--model.prior.dims=3", "no flag --model.prior.dims; did you mean model.network.hidden_dims"),
        ("--model.lr=1", "no flag --model.lr; did you mean model.optimizer.learning_rate"),
        ("--learning_rate=1", "did you mean model.optimizer.learning_rate"),
        ("--dims=3", "did you mean model.network.hidden_dims"),
        ("--model=gan", "--model takes no value: it is Model here, and --model.NAME=VALUE sets its fields"),
        ("--model.old_beta=1", "--model.old_beta is called --model.beta now"),
        ("--model.parts=middle", "'middle' is not any of top, bottom, separated by commas"),
        ("stray", "unexpected argument 'stray'"),
    ],
)
def test_a_wrong_flag_is_an_error_that_names_field_value_and_type(argument, message):
    with pytest.raises((flags.Error, ConfigError), match=message):
        from_command_line(argument)


def test_overrides_from_python_check_types_too():
    assert config.override(Whole(), "model.latent_dim", 5).model.latent_dim == 5
    with pytest.raises(ConfigError, match="model.latent_dim: 0.5 is not an integer"):
        config.override(Whole(), "model.latent_dim", 0.5)
    with pytest.raises(ConfigError, match="no field 'latent_dims'.*did you mean latent_dim"):
        config.override(Whole(), "model.latent_dims", 5)
    with pytest.raises(ConfigError, match="beta is 1.0 and has no fields"):
        config.override(Whole(), "model.beta.gamma", 5)


@dataclasses.dataclass(frozen=True)
class Interval:
    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ConfigError(f"low={self.low} is not below high={self.high}")


@dataclasses.dataclass(frozen=True)
class WithInterval:
    interval: Interval = Interval()


def test_fields_that_depend_on_each_other_change_at_once():
    for order in (["interval.low", "interval.high"], ["interval.high", "interval.low"]):
        wanted = {"interval.low": -5, "interval.high": -4}
        changed = config.apply_overrides(WithInterval(), {path: wanted[path] for path in order})
        assert changed.interval == Interval(-5, -4)
        arguments = ["program", *(f"--{path}={wanted[path]}" for path in order)]
        assert config.from_flags(arguments, WithInterval())[0] == changed
    with pytest.raises(ConfigError, match="low=2 is not below high=1"):
        config.apply_overrides(WithInterval(), {"interval.low": 2})


def test_json_round_trip_and_differences():
    changed = config.apply_overrides(
        Whole(),
        {
            "model.network": "convolutional",
            "model.network.channels": 5,
            "model.color": Color.BLUE,
            "model.window": (1, 2.0),
            "model.optimizer.schedule": "linear",
        },
    )
    assert config.from_json(config.to_json(changed)) == changed
    told = " ".join(config.differences(Whole(), changed))
    assert "model.network (Encoder, now Convolutional)" in told and "model.window ((3, 0.5), now (1, 2.0))" in told
    assert not config.differences(changed, changed)


def test_saved_configurations_may_have_the_earlier_name_of_a_field():
    saved = config.to_json(Whole(model=Model(beta=4.0)))
    saved["model"]["old_beta"] = saved["model"].pop("beta")
    assert config.from_json(saved).model.beta == 4.0
    with pytest.raises(ConfigError, match="Model has no field 'old_beta'.*it is called beta now"):
        config.override(Whole(), "model.old_beta", 4.0)


def test_saved_configurations_of_classes_that_are_gone_are_refused():
    saved = config.to_json(Whole())
    with pytest.raises(ConfigError, match="does not exist here"):
        config.from_json({**saved, "class": saved["class"].replace("Whole", "Gone")})
    with pytest.raises(ConfigError, match="fields that Whole does not know: extra"):
        config.from_json({**saved, "extra": 1})


def test_none_is_filled_by_name_at_any_depth():
    filled = config.fill_none(
        Whole(model=Model(optimizer=optimizers.Adam(schedule=optimizers.Cosine()))), {"num_steps": 9, "limit": 2.0}
    )
    assert filled.model.optimizer.schedule.num_steps == 9 and filled.model.limit == 2.0
    kept = config.fill_none(Whole(model=Model(limit=1.0)), {"limit": 2.0})
    assert kept.model.limit == 1.0


def test_help_carries_the_docstring_of_the_field():
    values = flags.FlagValues()
    config.define_flags(Whole(), values)
    assert (
        values["model.network.hidden_dims"].help
        == "widths of the hidden layers (integers separated by commas; here 4,4)"
    )
    # A line of the docstring may name two fields, and a text may have a colon.
    for name, kind in (("latent_dim", "an integer; here 3"), ("beta", "a number; here 1.0")):
        assert values[f"model.{name}"].help == f"two numbers: one of dimensions, one a weight ({kind})"
    assert values["model.name"].help == "free (text; here x)"


def test_the_help_of_one_part_has_the_fields_below_it_alone():
    shown = config.help_text(config.override(Whole(), "model.optimizer", "lion"), "model.optimizer")
    paths = re.findall(r"^  --([\w.]+): ", shown, re.MULTILINE)
    assert {"model.optimizer", "model.optimizer.b1", "model.optimizer.learning_rate"} <= set(paths)
    assert all(path.startswith("model.optimizer") for path in paths) and "here lion" in shown
    assert config.help_text(Whole()).startswith("model (Model)\n  --model.latent_dim: two numbers")
    with pytest.raises(ConfigError, match=r"no field 'model.netwrk'; did you mean model.network\?"):
        config.help_text(Whole(), "model.netwrk")


def test_an_experiment_in_a_file_of_its_own_is_found(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def small():\n    return 1\n")
    assert config.find_experiment(f"{path}:small").build() == 1
    with pytest.raises(ConfigError, match="no function 'smal'.*small"):
        config.find_experiment(f"{path}:smal")
    with pytest.raises(ConfigError, match="there is no file"):
        config.find_experiment(f"{tmp_path / 'none.py'}:small")


def test_two_functions_cannot_register_one_name(monkeypatch):
    monkeypatch.setattr(config.registry, "_registry", {})
    register = config.register("mine", source="", expected="")
    register(from_command_line)
    # As when a module is imported again.
    register(from_command_line)
    with pytest.raises(ConfigError, match="two experiments are registered under the name 'mine'"):
        register(test_two_functions_cannot_register_one_name)


def test_an_unknown_experiment_is_answered_with_close_names(monkeypatch):
    entry = config.Entry("vae_digits", lambda: None, "", "", {})
    monkeypatch.setattr(config, "import_experiments", lambda: {"vae_digits": entry})
    with pytest.raises(ConfigError, match="did you mean vae_digits"):
        config.find_experiment("vae_digit")
