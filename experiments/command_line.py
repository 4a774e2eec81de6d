"""What the entry points share: flags of an experiment, and errors as one sentence."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import logging as stdlib_logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import app, flags, logging

from genjax import config
from genjax.errors import Interrupted, UserError

if TYPE_CHECKING:
    from genjax.training import Run


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs an entry point on the command line.

    A `UserError`, or a disk that is full, ends in one sentence and exit status 1; any other error is a defect and keeps its
    traceback.
    """
    logging.use_absl_handler()
    logging.set_verbosity(logging.ERROR)
    logging.get_absl_logger().addFilter(_is_not_of_orbax)
    stdlib_logging.getLogger("genjax").setLevel(stdlib_logging.WARNING)
    try:
        status = main(sys.argv)
        sys.stdout.flush()
    except (flags.Error, UserError) as error:
        _fail(error)
    except Interrupted as stopped:
        print(stopped, flush=True)
        sys.exit(128 + stopped.signal)
    except BrokenPipeError:
        # The reader, as `head`, has seen enough; what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _fail(OSError(f"{error.filename or 'a file'} could not be written: {error.strerror}"))
    sys.exit(status or 0)


def _is_not_of_orbax(record: stdlib_logging.LogRecord) -> bool:
    """Orbax logs the traceback of what it also raises, and that we say in one sentence."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _fail(error: Exception) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    sys.exit(1)


class _StepParser(flags.ArgumentParser):
    """Reads the number of a checkpoint, or best."""

    syntactic_help = "a number of steps, or best"

    def parse(self, argument: str | int) -> int | str:
        if argument == "best" or isinstance(argument, int):
            return argument
        if argument.isdigit():
            return int(argument)
        raise UserError(f"{argument!r} is neither a number of steps nor best")


def define_step(
    name: str = "step",
    description: str = "which checkpoint: a number of steps, or best by training.best_metric; by default the latest sound one",
) -> None:
    """Defines the flag of an entry point that names a checkpoint of the run."""
    flags.DEFINE(_StepParser(), name, None, description, module_name=sys._getframe(1).f_globals["__name__"])


def first_flags(arguments: list[str], names: dict[str, bool]) -> dict[str, str]:
    """Reads flags that decide which other flags exist, before absl parses.

    Args:
      arguments: the command line.
      names: flags to look for, and whether a value may also be the argument after; else it stands behind an equals sign.

    Returns:
      The values of those found, "" where there is none.
    """
    found = {}
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name in names:
            follows = names[name] and not following.startswith("-")
            found[name] = value if equals else following if follows else ""
    return found


def named_first(arguments: list[str], flag: str) -> list[str]:
    """The command line with a first argument that is no flag written as `--flag=argument`."""
    if len(arguments) > 1 and not arguments[1].startswith("-"):
        return [arguments[0], f"--{flag}={arguments[1]}", *arguments[2:]]
    return arguments


def print_help(usage: str, experiment: Any = None, section: str = "") -> None:
    """Prints what a command does, its flags, and the fields of an experiment; those at the path `section` alone if given.

    Raises:
      ConfigError: there is no field at `section`.
    """
    if section:
        if experiment is None:
            raise config.ConfigError(f"--help={section} shows fields of an experiment; name the experiment or run too")
        print(config.help_text(experiment, section))
        return
    print(inspect.cleandoc(usage))
    print("\nthe command")
    for name, module_flags in flags.FLAGS.flags_by_module_dict().items():
        if name.startswith("experiments") or name == sys.argv[0]:
            for flag in sorted(module_flags, key=lambda f: f.name):
                print(config.flag_line(flag.name, flag.help))
    if experiment is not None:
        print(f"\n{config.help_text(experiment)}")


def parse_app_flags() -> None:
    """Lets libraries that read absl flags (Grain's workers) see them as parsed."""
    if not flags.FLAGS.is_parsed():
        app.parse_flags_with_usage([sys.argv[0]])


def restore_from_flags(arguments: list[str], usage: str) -> Run | None:
    """Parses a command line that names a run by --workdir or its first argument, and restores it with the fields that flags change.

    Returns:
      The run, or None where only help was asked for.

    Raises:
      ConfigError: --workdir is missing or holds no run.
    """
    from genjax.training import runs as runs

    arguments = named_first(arguments, "workdir")
    first = first_flags(arguments, {"workdir": True, "help": False, "h": False})
    help_section = first.get("help", first.get("h"))
    if "workdir" not in first:
        if help_section is not None:
            print_help(usage, section=help_section)
            return None
        raise config.ConfigError("--workdir is missing; it is the directory of a run of experiments.train")
    workdir = Path(first["workdir"]).expanduser()
    name, experiment, batch = runs.load_config(workdir)
    experiment = runs.on_this_machine(experiment)
    if help_section is not None:
        print_help(usage, config.with_choices(experiment, arguments), help_section)
        return None
    experiment = config.flag_overrides(experiment, arguments)
    return runs.open_run(workdir, name, experiment, batch, flags.FLAGS.step)


def guided_by_step(run: Run, step: int | str | None) -> Run:
    """The run of a diffusion model with the parameters of another of its checkpoints as the weaker model of its guidance.

    Raises:
      ConfigError: the model is none of diffusion, or has no weight of guidance.
    """
    if step is None:
        return run
    from genjax.families.diffusion.diffusion import Diffusion
    from genjax.training import runs as runs

    if not isinstance(run.model, Diffusion):
        raise config.ConfigError(f"--weak_step guides diffusion models; {run.name} has {type(run.model).__name__}")
    if run.model.guidance.scale == 0.0:
        raise config.ConfigError("--weak_step needs the weight of the guidance: --model.guidance.scale=1")
    weak = runs.restore(run.workdir, step).state.eval_params
    return dataclasses.replace(run, state=run.state.replace(extra={**run.state.extra, "weak_params": weak}))


def _takes(model: Any, condition: str) -> bool:
    """Whether `model.sample` takes a condition; models that take any name say themselves which they do not know."""
    parameters = inspect.signature(model.sample).parameters.values()
    return any(p.name == condition or p.kind is p.VAR_KEYWORD for p in parameters)


def has_exact_log_prob(model: Any) -> bool:
    """Whether the likelihood is exact; otherwise `log_prob_bound` is the one to ask for, as of flows that dequantise."""
    from genjax.model import HasLogProb

    return isinstance(model, HasLogProb) and getattr(model, "dequantization", None) is None


def takes_labels(model: Any) -> bool:
    """Whether samples of a model are conditional on classes: its `check_labels` says so."""
    from genjax.model import ChecksLabels

    if not isinstance(model, ChecksLabels):
        return False
    try:
        # Before it is resolved a model does not know how many classes there are.
        config.fill_none(model, {"num_classes": 1}).check_labels(np.zeros(1, np.int32))
    except ValueError:
        return False
    return True


def labels_for(model: Any, classes: list[str], count: int, names: Sequence[str] = ()) -> np.ndarray:
    """Classes of the samples, in turn, int32 [count].

    Args:
      model: the model.
      classes: names of classes, or numbers.
      count: number of samples.
      names: names of the classes of the data in the order of their numbers.  Where all of `classes` are among them they are names.

    Raises:
      ConfigError: they are neither names nor numbers, or the model does not take classes.
    """
    number = {name: i for i, name in enumerate(names)}
    try:
        chosen = [number[c] for c in classes] if set(classes) <= set(number) else [int(c) for c in classes]
        label = np.resize(np.array(chosen, np.int32), count)
    except (ValueError, OverflowError):
        known = f" or names out of {', '.join(names)}" if names else ""
        raise config.ConfigError(f"--label={','.join(classes)} is not a list of class numbers{known}") from None
    if not _takes(model, "label"):
        raise config.ConfigError(f"{type(model).__name__} is not conditional on classes; leave --label out")
    from genjax.model import ChecksLabels

    # Inside of the compiled sampler their values are not known.
    if isinstance(model, ChecksLabels):
        model.check_labels(label)
    return label


def condition_for(model: Any, data: Any, given: list[str], count: int) -> np.ndarray:
    """The condition of samples that are drawn given numbers in the units of the data, float32 [count, K].

    Raises:
      ConfigError: they are no numbers, the data have no condition, or the model does not take one.
    """
    if not _takes(model, "condition"):
        raise config.ConfigError(f"{type(model).__name__} is not conditional on columns; leave --condition out")
    if not hasattr(data, "condition"):
        raise config.ConfigError(f"the data {data.name} have no condition; leave --condition out")
    try:
        values = [float(number) for number in given]
    except ValueError:
        raise config.ConfigError(f"--condition={','.join(given)} is not a list of numbers") from None
    return np.tile(data.condition(values), (count, 1))


def check_finite(samples: np.ndarray, name: str) -> None:
    """Raises ConfigError where samples are not numbers."""
    if np.issubdtype(samples.dtype, np.floating) and not np.isfinite(samples).all():
        raise config.ConfigError(
            f"{name} are not finite: the run has diverged, or an adaptive solver ran out of steps "
            "(--model.sampler.num_steps)"
        )
