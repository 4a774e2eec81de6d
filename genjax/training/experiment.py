"""An experiment: a model, its data, and how it is trained and evaluated, as one frozen tree."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from genjax import buckets, config
from genjax.config import ConfigError
from genjax.data import Data, DataError
from genjax.data.base import HasTokenizer
from genjax.data.text.base import TokenizedData
from genjax.data.text.tokenizer import UnknownSymbolError
from genjax.interop import gguf
from genjax.model import GenerativeModel, HasParts, HasPolicy, HasPretrained, HasSupport, HasVocabulary, PartSources
from genjax.training.records import version

CONFIG_FILE = "config.json"
#: Names of the splits that every data set has; some have more, and a text is also read as several, as in
#: `validation+test`.
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How long, where, and with what records a model is trained.

    Attributes:
      num_steps: number of updates.
      seed: decides initial parameters, order of the data and all noise.
      parallelism: jit over a mesh, or pmap, the simple data-parallel mode of the same step.
      mesh: sizes of the axes data, fsdp and tensor, as in data:4,fsdp:2; by default all devices on data.
      steps_per_dispatch: number of steps in one compiled call; more steps save dispatch time of small models.
      log_every: steps between two lines of metrics.
      checkpoint_every: steps between two checkpoints; the last step always makes one.
      evaluate_every: steps between two evaluations on evaluation.validation_split, or none for no evaluations.
      sample_every: steps between two sheets of samples, or none; the last step makes a sheet in any case.
      num_samples: number of samples on a sheet.
      prompts: texts of the samples on a sheet, in turn, for a model that reads text; by default the first captions of
        evaluation.validation_split.
      pictures: further pictures beside each sheet: curves of the metrics; walk between latents, as a GIF; classes, a
        row of samples for each class.
      keep_checkpoints: number of latest checkpoints that are kept; at least two, as a kill may spoil the last.
      best_metric: evaluation metric whose best checkpoint is kept too (`--step=best` of the tools), or none.  Each
        evaluation then makes a checkpoint.  A resumed run keeps its best checkpoint even without this flag.
      best_mode: whether the best value is the smallest or the largest.
      init_from: working directory of another run whose parameters to start from.
      init_prefix: take only parameters of init_from whose path starts with one of the prefixes, such as encoder or
        decoder/Dense_0; empty for all.
      tensorboard: write TensorBoard event files.
      compilation_cache: directory of compiled programs kept between runs; empty for none.
      profile_steps: number of steps, after the first dispatches, in a profiler trace; 0 for no trace.
      hang_timeout: seconds without progress after which a run prints the stacks of all threads and ends (the first
        step, which is compiled, may take ten times as long); none for an hour in runs of several processes, and for no
        limit in a run of one.
      debug_nans: let JAX stop at the operation that made a NaN; slow.
      distributed: join the other processes of a SLURM, Open MPI or Kubernetes job, or of a TPU pod; JAX finds them.
      coordinator_address: host:port of process 0 of a run of several processes that JAX does not find.
      num_processes: number of processes of the run, with coordinator_address.
      process_id: number of this process from 0, with coordinator_address.
    """

    num_steps: int = 1000
    seed: int = 0
    parallelism: Literal["jit", "pmap"] = "jit"
    mesh: str | None = None
    steps_per_dispatch: int = 1
    log_every: int = 100
    checkpoint_every: int = 1000
    evaluate_every: int | None = None
    sample_every: int | None = None
    num_samples: int = 64
    prompts: tuple[str, ...] = ()
    pictures: tuple[Literal["curves", "walk", "classes"], ...] = ()
    keep_checkpoints: int = 3
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"
    init_from: str | None = None
    init_prefix: tuple[str, ...] = ()
    tensorboard: bool = True
    compilation_cache: str = "~/.cache/genjax/compiled"
    profile_steps: int = 0
    hang_timeout: float | None = None
    debug_nans: bool = False
    distributed: bool = False
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "num_steps",
            "steps_per_dispatch",
            "log_every",
            "checkpoint_every",
            "num_samples",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name}={getattr(self, name)} must be at least 1")
        for name in ("evaluate_every", "sample_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"training.{name}={getattr(self, name)} must be at least 1, or none")
        if self.hang_timeout is not None and self.hang_timeout <= 0:
            raise ConfigError(f"training.hang_timeout={self.hang_timeout} must be positive, or none")
        _check_seed("training.seed", self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The examples that an evaluation reads.

    Attributes:
      split: split to report, which `experiments.evaluate` reads.
      validation_split: split that is evaluated during training.
      num_examples: largest number of examples, the first in a fixed random order of the split; or none for all.
      seed: decides the noise of estimators.
    """

    split: str = "test"
    validation_split: str = "validation"
    num_examples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("split", "validation_split"):
            for part in getattr(self, name).split("+"):
                # A set may have splits of other names; one that is nearly a name of these would be found out too late.
                if part not in SPLITS and part.isalpha() and difflib.get_close_matches(part, SPLITS, cutoff=0.7):
                    raise ConfigError(
                        f"evaluation.{name}={getattr(self, name)} is no split; splits are {', '.join(SPLITS)}"
                    )
        if self.num_examples is not None and self.num_examples < 1:
            raise ConfigError(f"evaluation.num_examples={self.num_examples} must be at least 1, or none")
        _check_seed("evaluation.seed", self.seed)


def _check_seed(path: str, seed: int) -> None:
    # NumPy takes no negative seeds, and JAX keeps 32 bits.
    if not 0 <= seed < 2**32:
        raise ConfigError(f"{path}={seed} must lie between 0 and {2**32 - 1}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A model, its data, and how it is trained and evaluated.

    Attributes:
      model: the generative model.
      data: the data set.
      training: how it is trained.
      evaluation: how it is evaluated.
    """

    model: GenerativeModel
    data: Data
    training: Training = Training()
    evaluation: Evaluation = Evaluation()


def resolve(
    experiment: Experiment, spec: dict[str, Any] | None = None, earlier: GenerativeModel | None = None
) -> Experiment:
    """Fills the fields that were left None: shapes from the data set, lengths of schedules from the run.

    A run that starts from a checkpoint gets the checkpoint's tokenizer and sizes; if tokens were added to the
    tokenizer, the model gets more rows.  A model with parts of other runs gets their descriptions.

    Args:
      experiment: as the flags give it.
      spec: takes the place of what `Data.spec` reads of the data set.
      earlier: the resolved model of the run that is resumed, whose parts need their sources no longer; or None.

    Raises:
      ConfigError: the data set cannot be read, or has no field that the model needs.
      DataError: the data's tokenizer is not the checkpoint's.
    """
    model, data, training = experiment.model, experiment.data, experiment.training
    pretrained = model.pretrained if isinstance(model, HasPretrained) else None
    if pretrained is not None:
        pretrained = gguf.folder_of(pretrained)
        model, data = model.with_pretrained_sizes(), data.starting_from(pretrained)
    if training.init_from is not None and _takes_embeddings(training.init_prefix):
        data = data.starting_from(training.init_from)
    if isinstance(model, HasParts):
        for run in model.part_runs:
            data = data.starting_from(run)
    spec = _spec_of(data) if spec is None else spec
    low, high = spec.get("range") or (None, None)
    model = config.fill_none(model, {**spec, "low": low, "high": high, "num_steps": training.num_steps})
    support = model.support() if isinstance(model, HasSupport) else None
    if support is not None:
        support.check_spec(spec)
    known = model.vocab_size if isinstance(model, HasVocabulary) else None
    used = spec.get("vocab_size")
    if known is not None and used is not None and used > known:
        if pretrained is None or not data.knows_tokens_of(pretrained):
            raise ConfigError(
                f"the data have {used} tokens, and the model knows {known} (model.vocab_size, or the size of "
                "model.pretrained); use the tokenizer that belongs to the model: --data.tokenizer_file=FILE"
            )
        if isinstance(model, HasPolicy):
            model = dataclasses.replace(model, policy=dataclasses.replace(model.policy, vocab_size=used))
        else:
            model = dataclasses.replace(model, vocab_size=used)
    if isinstance(model, HasParts):
        model = (model if earlier is None else model.like_parts(earlier)).with_parts(part_sources(data))
    return dataclasses.replace(experiment, model=model, data=data)


def _spec_of(data: Data) -> dict[str, Any]:
    """What the data tell of themselves; a tokenizer that does not know their words is named.

    Raises:
      DataError: the data set cannot be read.
    """
    try:
        return data.spec()
    except UnknownSymbolError as error:
        if not isinstance(data, TokenizedData) or data.tokenizer_file is None:
            raise
        raise DataError(f"the tokenizer {data.tokenizer_file} does not fit the data: {error}") from None


def part_sources(data: Data) -> PartSources:
    """What describes the frozen parts of models for these data; it reads no checkpoint."""
    return PartSources(
        model_of=lambda run: _model_of(run, data),
        token_bytes=lambda: _token_bytes(data),
        described=lambda run: load_config(run)[1].model,
    )


def _model_of(run: str, data: Data) -> GenerativeModel:
    model = load_config(run)[1].model
    known = model.vocab_size if isinstance(model, HasVocabulary) else None
    used = data.spec().get("vocab_size")
    if known is not None and used is not None and used > known:
        raise ConfigError(f"the data have {used} tokens, and the network of the run {run} knows {known}")
    return model


def _token_bytes(data: Data) -> list[bytes]:
    if not isinstance(data, HasTokenizer):
        raise ConfigError(f"{type(data).__name__} ({data.name}) has no tokenizer, and the model's reward reads text")
    tokenizer, spec = data.make_tokenizer(), data.spec()
    special = {spec[name] for name in spec if name.endswith("_token")} | set(tokenizer.special.values())
    pieces = [b"" if i in special else piece for i, piece in enumerate(tokenizer.pieces)]
    return [*pieces, *(b"" for _ in range(spec["vocab_size"] - len(pieces)))]


def check_tokens_known(model: GenerativeModel, data: Data) -> None:
    """Raises ConfigError if data have tokens outside a model's vocabulary, for which compiled code would give NaN."""
    known = model.vocab_size if isinstance(model, HasVocabulary) else None
    used = None if known is None else data.spec().get("vocab_size")
    if used is not None and used > known:
        raise ConfigError(
            f"the data have {used} tokens, and the model knows {known}; evaluate it on data such as it was trained on "
            "(several documents have an end token, which one text has not)"
        )


def _takes_embeddings(prefixes: tuple[str, ...]) -> bool:
    """Whether parameters below these paths depend on tokens, so that the data must have the checkpoint's tokenizer."""
    return not prefixes or any("embedding" in prefix or prefix.startswith("token") for prefix in prefixes)


def save_config(
    path: Path,
    name: str,
    experiment: Experiment,
    batch: dict[str, Any],
    fingerprint: str | None = None,
    flags: Sequence[str] = (),
) -> None:
    """Writes the resolved experiment beside its checkpoints, with shapes and types of a training batch.

    `fingerprint` is `Pipeline.fingerprint` of the training data; `flags` are the fields that the command line gave.
    """
    content = {
        "name": name,
        "flags": list(flags),
        "version": version(),
        "experiment": config.to_json(experiment),
        "batch": batch,
        "fingerprint": fingerprint,
    }
    temporary = path / (CONFIG_FILE + ".new")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path / CONFIG_FILE)


def load_config(workdir: str | Path) -> tuple[str, Experiment, dict[str, Any]]:
    """Reads what `save_config` wrote: name, experiment, and the batch's shapes and types.

    Raises:
      ConfigError: there is no readable configuration.
    """
    path = buckets.workdir(workdir) / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"{buckets.shown(workdir)} holds no {CONFIG_FILE}: it is not the --workdir of a run of experiments.train"
        )
    try:
        content = json.loads(path.read_text())
        name, batch = content["name"], content["batch"]
        tree = content["experiment"]
    except (ValueError, KeyError):
        raise ConfigError(f"{path} is damaged and cannot be read; run experiments.train with the same flags") from None
    return name, config.from_json(tree), batch


def load_fingerprint(workdir: Path) -> str | None:
    """The fingerprint of the training data that `save_config` wrote, or None."""
    path = workdir / CONFIG_FILE
    return json.loads(path.read_text()).get("fingerprint") if path.is_file() else None


#: Fields that do not influence the state of a run, so that a run may be resumed with other values.
_FREE_FIELDS = (
    "training.",
    "evaluation.",
    "data.dir",
    "data.source_dir",
    # Not the path but the tokenizer itself is compared with the run's.
    "data.tokenizer_file",
    "data.tokenizer_sample",
    "data.eval_batch_size",
    "data.resident",
    "data.num_workers",
    "data.skip_corrupt",
    "data.skip_unreadable",
)


def _is_of_another(workdir: Path, names: tuple[str, str]) -> ConfigError:
    saved, now = names
    return ConfigError(
        f"{buckets.shown(workdir)} holds a run of the experiment {saved}, and this one is {now}: give another --workdir"
    )


def check_same_kind(workdir: Path, names: tuple[str, str], saved: Experiment, experiment: Experiment) -> None:
    """Raises ConfigError if `workdir` holds an experiment of another name with another kind of model or data."""
    kinds = [(type(e.model), type(e.data)) for e in (saved, experiment)]
    if names[0] != names[1] and kinds[0] != kinds[1]:
        raise _is_of_another(workdir, names)


def check_resumable(workdir: Path, names: tuple[str, str], saved: Experiment, experiment: Experiment) -> None:
    """Raises ConfigError with the differing fields if `workdir` holds another experiment than `experiment`."""
    differing = [
        d
        for d in config.differences(saved, experiment)
        if not d.startswith(_FREE_FIELDS) or d.startswith("training.seed")
    ]
    if differing and names[0] != names[1]:
        raise _is_of_another(workdir, names)
    if differing:
        shown = "; ".join(differing[:5]) + (f"; and {len(differing) - 5} more" if len(differing) > 5 else "")
        raise ConfigError(
            f"{buckets.shown(workdir)} holds a run of another configuration; it differs in {shown}: "
            "give another --workdir, or the flags of that run"
        )
