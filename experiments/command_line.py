"""What all commands share: flags of an experiment, and errors that are printed as one sentence."""

from __future__ import annotations

import dataclasses
import inspect
import logging as stdlib_logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from absl import flags, logging

from genjax import buckets, config, errors
from genjax.errors import FULL_DISK, Interrupted, UserError

if TYPE_CHECKING:
    from genjax.training import Run

Options = TypeVar("Options")

_FIELDS_ARE_FLAGS = (
    "Every field of the experiment is a flag, --name=value; --help=model.optimizer prints one part alone."
)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs an entry point on the command line.

    A `UserError`, or a disk that is full, ends in one sentence and exit status 1; any other error is a
    defect and keeps its traceback.
    """
    logging.use_absl_handler()
    logging.set_verbosity(logging.ERROR)
    logging.get_absl_logger().addFilter(_is_not_of_orbax)
    stdlib_logging.getLogger("jax._src.callback").addFilter(_is_no_user_error)
    stdlib_logging.getLogger("genjax").setLevel(stdlib_logging.WARNING)
    try:
        status = main(sys.argv)
        # What a tool wrote beside a run in a bucket.
        for address in buckets.push_all():
            print(f"uploaded {address}")
        sys.stdout.flush()
    except (flags.Error, UserError) as error:
        _fail(error)
    except Interrupted as stopped:
        print(stopped, flush=True)
        sys.exit(128 + stopped.signal)
    except BrokenPipeError:
        # The reader (`head`, say) has closed the pipe; the rest of the buffer is dropped.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if (told := errors.of_callback(error)) is not None:
            _fail(told)
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            _fail(OSError(f"{error.filename or 'a file'} could not be written: {error.strerror}"))
        if not _is_one_of_several():
            raise
        traceback.print_exc()
        _leave(1)
    sys.exit(status or 0)


def _is_one_of_several() -> bool:
    """Whether this process has joined others, by what is imported already."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _leave(status: int) -> NoReturn:
    """Ends the process; one of several at once, as JAX would first wait for the others, which wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _is_one_of_several():
        os._exit(status)
    sys.exit(status)


def _is_not_of_orbax(record: stdlib_logging.LogRecord) -> bool:
    """Filters out tracebacks that orbax logs: it raises the same errors, which are printed as one sentence."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _is_no_user_error(record: stdlib_logging.LogRecord) -> bool:
    """Filters out tracebacks that JAX logs of functions that a compiled program calls; see `errors.of_callback`."""
    return record.exc_info is None or not isinstance(record.exc_info[1], UserError)


def _fail(error: Exception) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    _leave(1)


def command(name: str) -> str:
    """How a command is called where this process was called: by `genjax`, which a plain installation has, or by
    Python.
    """
    program = Path(vars(sys.modules["__main__"]).get("__file__") or "").stem
    return f"genjax {name}" if program == "genjax" else f"python -m experiments.{name}"


def first_flags(arguments: list[str], names: dict[str, bool]) -> dict[str, str]:
    """Reads flags that decide which other flags exist, before absl parses.

    Args:
      arguments: the command line.
      names: flags to look for, and whether a value may also be the argument after; else it
        stands behind an equals sign.

    Returns:
      The values of the flags that were found, "" for a flag without a value.
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


def flags_besides(arguments: list[str], names: set[str]) -> list[str]:
    """The flags of a command line, without those of the given names and their values."""
    kept, skip = [], False
    for argument, following in zip(arguments[1:], [*arguments[2:], "-"], strict=True):
        if skip:
            skip = False
            continue
        name, equals, _ = argument.lstrip("-").partition("=")
        if name not in names:
            kept.append(argument)
        else:
            skip = not equals and not following.startswith("-")
    return kept


def print_help(usage: str, *options: Any, experiment: Any = None, section: str = "") -> None:
    """Prints what a command does, its flags, and the fields of an experiment; those at the
    path `section` alone if given.

    Args:
      usage: what the command does.
      options: dataclasses whose fields are the flags of the command.
      experiment: the experiment whose fields are flags too.
      section: a path in the experiment.

    Raises:
      ConfigError: there is no field at `section`.
    """
    if section:
        if experiment is None:
            raise config.ConfigError(f"--help={section} shows fields of an experiment; name the experiment or run too")
        print(config.help_text(experiment, section))
        return
    print(inspect.cleandoc(usage))
    print(f"\nthe command\n{config.options_help(*options)}")
    if experiment is not None:
        print(f"\n{config.help_text(experiment)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The run and the checkpoint that a command takes.

    Attributes:
      workdir: directory of a run of experiments.train; it may also be given as the first argument.
      step: step of the checkpoint, or best for the best by training.best_metric; by default
        the latest sound checkpoint.
    """

    workdir: str | None = None
    step: int | Literal["best"] | None = None


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of a command that has none of its own."""


def run_and_options(arguments: list[str], usage: str, options: Options) -> tuple[Run, Options] | None:
    """Restores the run that a command line names, and reads what it says of the command's options.

    Flags are --workdir and --step, the fields of the options, and the fields of the run's experiment.
    The first argument may be the working directory alone.  A field `weak_step` of options is the tool's
    to use (`tools.conditions`).

    Args:
      arguments: the command line with the program's name first.
      usage: what the command does, which --help prints.
      options: the options with their defaults, a frozen dataclass.

    Returns:
      The run, with the fields that flags change, and the options; or None where only help was asked for.

    Raises:
      ConfigError: --workdir is missing or holds no run, or a flag does not exist or does not fit.
    """
    from genjax.training import runs

    arguments = named_first(arguments, "workdir")
    first = first_flags(arguments, {"workdir": True, "help": False, "h": False})
    help_section = first.get("help", first.get("h"))
    if "workdir" not in first:
        if help_section is not None:
            print_help(usage, Place(), options, section=help_section)
            return None
        raise config.ConfigError("--workdir is missing; it is the directory of a run of experiments.train")
    workdir = buckets.workdir(first["workdir"])
    name, experiment, batch = runs.load_config(workdir)
    experiment = runs.on_this_machine(experiment)
    if help_section is not None:
        experiment = config.with_choices(experiment, arguments)
        print_help(usage, Place(), options, experiment=experiment, section=help_section)
        return None
    place, options, experiment = config.from_flags(arguments, Place(), options, experiment)
    return runs.open_run(workdir, name, experiment, batch, place.step), options


def opened_and_options(arguments: list[str], usage: str, options: Options) -> tuple[Run, Options] | None:
    """As `run_and_options`, where --workdir may also be a folder of the library transformers or a GGUF file."""
    from genjax.tools import opened
    from genjax.training import Training, host

    named = named_first(arguments, "workdir")
    cache = "training.compilation_cache"
    first = first_flags(named, {"workdir": True, cache: True, "help": False, "h": False})
    if "workdir" not in first or not opened.is_of_another_library(first["workdir"]):
        return run_and_options(arguments, usage, options)
    if "help" in first or "h" in first:
        print_help(usage, Place(), options, section=first.get("help", first.get("h", "")))
        return None
    read: list[Options] = []

    def changed(experiment: Any) -> Any:
        place, own, experiment = config.from_flags(named, Place(), options, experiment)
        if place.step is not None:
            raise config.ConfigError(f"--step chooses a checkpoint of a run, and {place.workdir} has one model alone")
        read.append(own)
        return experiment

    # Before the first array is made, as for a run.
    host.initialize(Training(compilation_cache=first.get(cache, Training.compilation_cache)))
    return opened.opened_pretrained(first["workdir"], changed), read[0]


def experiment_and_options(arguments: list[str], usage: str, *options: Any) -> tuple[Any, ...] | None:
    """Reads the experiment that a command line names, and what it says of the experiment and of the command's options.

    Flags are the fields of the options, of which `experiment` is one, and the fields of the experiment.  The first
    argument may be the name of the experiment alone.

    Args:
      arguments: the command line with the program's name first.
      usage: what the command does, which --help prints where no experiment is named.
      *options: options with their defaults, frozen dataclasses.

    Returns:
      The registered entry, the experiment, and the options in their order; or None where only help was asked for.

    Raises:
      ConfigError: --experiment is missing, or a flag does not exist or does not fit.
    """
    arguments = named_first(arguments, "experiment")
    first = first_flags(arguments, {"experiment": True, "help": False, "h": False})
    help_section = first.get("help", first.get("h"))
    if "experiment" not in first:
        if help_section is not None:
            print_help(usage, *options, section=help_section)
            return None
        raise config.ConfigError(
            "--experiment is missing; experiments.train --list prints the names, e.g. --experiment=vae_digits"
        )
    entry = config.find_experiment(first["experiment"])
    experiment = entry.build()
    if help_section is not None:
        experiment = config.with_choices(experiment, arguments)
        usage = f"{entry.name}: {inspect.cleandoc(entry.build.__doc__ or '')}\n\n{_FIELDS_ARE_FLAGS}"
        print_help(usage, *options, experiment=experiment, section=help_section)
        return None
    *options, experiment = config.from_flags(arguments, *options, experiment)
    return entry, experiment, *options


def write_record(run: Run, name: str, record: Any) -> None:
    """Writes what a command measured into the run's directory, as `name`.json, and prints where."""
    from genjax.training.records import write_json

    path = run.workdir / f"{name}.json"
    write_json(path, record)
    print(f"written to {path}")


def options_only(arguments: list[str], usage: str, options: Options, first: str | None = None) -> Options | None:
    """Reads the options of a command that takes no run; None where only help was asked for.

    Args:
      arguments: the command line with the program's name first.
      usage: what the command does, which --help prints.
      options: the options with their defaults, a frozen dataclass.
      first: the option that the first argument may give alone.

    Raises:
      ConfigError: a flag does not exist or does not fit.
    """
    if first_flags(arguments, {"help": False, "h": False}):
        print_help(usage, options)
        return None
    if first is not None:
        arguments = named_first(arguments, first)
    return config.from_flags(arguments, options)[0]
