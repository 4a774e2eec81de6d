"""What commands share: their flags are the fields of their options, of the place of a run, and of its experiment."""

import dataclasses
import importlib
import pkgutil
from typing import Literal

import pytest
from absl import flags

from experiments import command_line
from experiments.__main__ import commands
from genjax import config, tools
from genjax.config.annotations import format_value, parse
from genjax.config.command_line import field_help
from genjax.config.trees import leaves
from genjax.training import resolve
from genjax.training.checkpoints import Checkpoints
from genjax.training.engine import Engine
from genjax.training.experiment import save_config
from tests.experiments.commands import call
from tests.training.tiny_runs import tiny


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a command.

    Attributes:
      num_columns: columns of the picture.
      levels: masses of intervals.
      method: how they are found.
      exact: whether to search.
    """

    num_columns: int = 8
    levels: tuple[float, ...] = (0.5, 0.9)
    method: Literal["grid", "beam"] = "grid"
    exact: bool = False

    def __post_init__(self):
        config.check_at_least(self, num_columns=1)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    engine = Engine(resolve(tiny(training__mesh="data:1")))
    path = tmp_path_factory.mktemp("run")
    save_config(path, "vae_digits", engine.experiment, engine.batch_spec)
    checkpoints = Checkpoints(path)
    checkpoints.save(0, engine.init())
    checkpoints.close()
    return path


def test_a_run_is_restored_with_the_options_and_the_fields_that_flags_give(workdir):
    before = set(flags.FLAGS)
    arguments = ["program", str(workdir), "--levels=0.1,0.2", "--exact", "--evaluation.num_examples=7", "--step", "0"]
    run, options = command_line.run_and_options(arguments, "usage", Options())
    assert run.step == 0 and run.experiment.evaluation.num_examples == 7
    assert options == Options(levels=(0.1, 0.2), exact=True)
    # Nothing is left behind for the next command of the process.
    assert set(flags.FLAGS) == before
    assert command_line.run_and_options(["program", f"--workdir={workdir}"], "usage", Options())[1] == Options()


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ("--num_colums=3", "no flag --num_colums; did you mean num_columns"),
        ("--model.lr=3", "did you mean model.optimizer.learning_rate"),
        ("--num_columns=0", "num_columns=0 must be at least 1"),
        ("--num_columns=x", "'x' is not an integer"),
        ("--method=search", "'search' is not one of grid, beam"),
        ("--step=last", "'last' is not an integer, best or none"),
        ("extra", "unexpected argument 'extra'"),
    ],
)
def test_flags_that_do_not_fit_are_refused_with_the_nearest(workdir, argument, error):
    with pytest.raises((config.ConfigError, flags.Error), match=error):
        command_line.run_and_options(["program", f"--workdir={workdir}", argument], "usage", Options())


def test_help_tells_the_command_and_with_a_run_its_fields(workdir, capsys):
    assert command_line.run_and_options(["program", "--help"], "What it does.", Options()) is None
    shown = capsys.readouterr().out
    assert shown.startswith("What it does.") and "--model" not in shown
    assert "--num_columns: columns of the picture (an integer; here 8)" in shown
    assert [line.split(":")[0] for line in shown.splitlines() if line.startswith("  --")] == [
        "  --exact", "  --levels", "  --method", "  --num_columns", "  --step", "  --workdir",
    ]  # fmt: skip
    assert command_line.run_and_options(["program", str(workdir), "--help=model.optimizer"], "usage", Options()) is None
    shown = capsys.readouterr().out
    assert "--model.optimizer.learning_rate" in shown and "--num_columns" not in shown
    assert command_line.options_only(["program", "-h"], "What it does.", Options()) is None
    assert "--num_columns" in capsys.readouterr().out


def test_a_command_without_a_run_has_its_options_alone():
    assert command_line.options_only(["program", "--method", "beam"], "usage", Options()) == Options(method="beam")
    with pytest.raises(config.ConfigError, match="did you mean levels"):
        command_line.options_only(["program", "--level=1"], "usage", Options())
    assert command_line.options_only(["program", "beam"], "usage", Options(), first="method") == Options(method="beam")


def test_all_commands_stand_in_one_process_and_one_after_the_other_runs(workdir):
    before = set(flags.FLAGS)
    modules = {name: importlib.import_module(f"experiments.{name}") for name in commands()}
    assert len(modules) >= 16 and all(callable(module.main) for module in modules.values())
    arguments = [f"--workdir={workdir}", "--training.mesh=data:1", "--evaluation.num_examples=8"]
    evaluated = call("evaluate", *arguments)
    assert evaluated.returncode == 0 and "8 examples" in evaluated.stdout, evaluated.stderr
    drawn = call("sample", *arguments, "--num_samples=4", "--seed=3", f"--output={workdir}/four")
    assert drawn.returncode == 0 and drawn.stdout.split() == [f"{workdir}/four.png"], drawn.stderr
    wrong = call("evaluate", *arguments, "--num_samples=4")
    assert wrong.returncode == 1 and "no flag --num_samples" in wrong.stderr
    assert set(flags.FLAGS) == before


def options_of_commands():
    """Every dataclass of options that a module of the tools or a command has."""
    names = [f"genjax.tools.{info.name}" for info in pkgutil.iter_modules(tools.__path__)]
    found = {command_line.Place}
    for name in [*names, *(f"experiments.{name}" for name in commands())]:
        module = importlib.import_module(name)
        found |= {each for each in [vars(module).get("Options")] if dataclasses.is_dataclass(each)}
    return sorted(found, key=lambda cls: cls.__module__)


def test_every_option_has_a_help_text_and_a_default_that_its_flag_reads():
    for cls in options_of_commands():
        for path, hint, value in leaves(cls()):
            assert len(field_help(cls, path).split()) >= 2, f"{cls.__module__}: {path}"
            assert value == "" or parse(hint, format_value(value)) == value, f"{cls.__module__}: {path}"
