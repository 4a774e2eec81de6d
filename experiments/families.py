"""Trains one model of every family on the same pictures, and writes one report of all of them:

    python -m experiments.families --pictures=digits --seeds=3 --workers=2 --output=families

Every family that has a likelihood states it, exact, as a bound or as an estimate: in bits a dimension of digits with 17
levels (--pictures=digits), in nats of binary ones (--pictures=binary_digits).  Every family that draws states the
Frechet distance of its samples in the features of feature_net_digits beside that of training pictures, precision,
recall, the share that was copied from training pictures, parameters, and CPU seconds to train and to draw.  Started
again it goes on where it was; --systems=glow,vae runs some of them.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments import command_line
from genjax import config
from genjax.config import ConfigError, check_at_least
from genjax.tools import report, report_pages, sweep
from genjax.tools.sweep import SweptRun


@dataclasses.dataclass(frozen=True)
class System:
    """One model of a comparison.

    Attributes:
      name: what the table calls it, and its directory.
      experiment: the experiment that it is.
      flags: fields in which it differs, as the command line has them.
      first: a system that is trained before it, whose run it starts from.
    """

    name: str
    experiment: str
    flags: str = ""
    first: System | None = None


_LEVELS = "--data.name=digits --data.preprocessing=unit --model.output=categorical --model.output.num_levels=17"
_LOGISTIC = "--data.preprocessing=unit --model.output=discretized_logistic --model.output.num_levels=17"
_GAUSSIAN = "--model.component=gaussian --data.preprocessing=dequantize"
_ONE = "--model.num_components=1 --model.component.covariance=full"
_BINARY = "--data.name=digits --data.preprocessing=binarize_static"
_STEPS = "--training.num_steps="

FEATURES = System("feature_net", "feature_net_digits")
_CODES = System("vq_vae", "vq_vae_digits", "--model.codebook=gradient " + _LOGISTIC.partition(" ")[2])
_PARTS = "--training.init_prefix=encoder,decoder,codebook"

#: The systems of each comparison, by --pictures.
SYSTEMS = {
    "digits": (
        System("normal distribution", "bernoulli_mixture_digits", f"{_GAUSSIAN} {_ONE}"),
        System("mixture of 20 Gaussians", "bernoulli_mixture_digits", f"{_GAUSSIAN} --model.num_components=20"),
        System("VAE", "vae_digits", f"{_LOGISTIC} {_STEPS}8000"),
        System("IWAE (k = 5)", "iwae_mnist", f"--data.name=digits {_LOGISTIC} {_STEPS}8000"),
        System("VAE with IAF posterior", "iaf_vae_digits", f"{_LOGISTIC} {_STEPS}8000"),
        System("VQ-VAE with prior", "vq_prior_digits", _PARTS, first=_CODES),
        System("NICE", "nice_mnist", f"--data.name=digits {_STEPS}8000"),
        System("RealNVP", "real_nvp_digits"),
        System("MAF", "maf_digits"),
        System("Glow", "glow_digits"),
        System("Glow with variational noise", "glow_variational_digits"),
        System("gated PixelCNN", "gated_pixel_cnn_digits"),
        System("PixelSNAIL", "pixel_snail_mnist", f"{_LEVELS} {_STEPS}1500"),
        System("GPT of pixels", "image_gpt_mnist", f"{_LEVELS} {_STEPS}3000"),
        System("variational diffusion", "vdm_digits"),
        System("flow matching", "flow_matching_mnist", f"--data.name=digits {_STEPS}3000"),
        System("EDM", "edm_digits"),
        System("consistency model", "consistency_digits"),
        System("energy-based model", "ebm_digits"),
        System("DCGAN", "dcgan_digits"),
        System("InfoGAN", "info_gan_digits", f"{_STEPS}8000"),
        System("BiGAN", "bigan_digits", f"{_STEPS}8000"),
        System("VAE-GAN", "vae_gan_digits"),
        System("adversarial autoencoder", "adversarial_autoencoder_digits", f"{_STEPS}8000"),
    ),
    "binary_digits": (
        System("mixture of 64 Bernoullis", "bernoulli_mixture_digits"),
        System("restricted Boltzmann machine", "rbm_digits"),
        System("FVSBN", "fvsbn_mnist", f"{_BINARY} {_STEPS}4000"),
        System("NADE", "nade_mnist", f"{_BINARY} {_STEPS}4000"),
        System("MADE", "made_mnist", f"{_BINARY} {_STEPS}4000"),
        System("PixelCNN", "pixel_cnn_mnist", f"{_BINARY} {_STEPS}3000"),
        System("PixelRNN", "pixel_rnn_mnist", f"{_BINARY} {_STEPS}1500"),
        System("PixelSNAIL", "pixel_snail_mnist", f"{_BINARY} {_STEPS}1500"),
        System("GPT of pixels", "image_gpt_mnist", f"{_BINARY} {_STEPS}3000"),
        System("VAE", "vae_digits", f"--data.preprocessing=binarize_static {_STEPS}8000"),
        System("IWAE (k = 5)", "iwae_mnist", f"{_BINARY} {_STEPS}8000"),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared.

    Attributes:
      pictures: digits with 17 levels, or binary ones.
      systems: parts of the names of systems; empty for all.
      seeds: number of seeds of each.
      workers: number of runs side by side.
      num_steps: in place of each system's own number of steps, to try the command out.
      num_samples: number of samples of each run.
      output: folder of the runs and of the report.
    """

    pictures: Literal["digits", "binary_digits"] = "digits"
    systems: tuple[str, ...] = ()
    seeds: int = 3
    workers: int = 1
    num_steps: int | None = None
    num_samples: int = 1000
    output: str = "families"

    def __post_init__(self) -> None:
        check_at_least(self, seeds=1, workers=1, num_samples=8)


def chosen(options: Options) -> list[System]:
    """The systems that the options ask for.

    Raises:
      ConfigError: no system is called so.
    """
    found = list(SYSTEMS[options.pictures])
    for part in options.systems:
        if not any(part.lower() in system.name.lower() for system in found):
            raise ConfigError(
                f"--systems={part} is in no name; those of {options.pictures} are {', '.join(s.name for s in found)}"
            )
    if options.systems:
        found = [s for s in found if any(part.lower() in s.name.lower() for part in options.systems)]
    return found


def runs_of(system: System, options: Options, folder: Path, seeds: int) -> list[tuple[SweptRun, list[str]]]:
    """The runs of a system and their command lines, one a seed."""
    flags = shlex.split(system.flags)
    if options.num_steps is not None:
        flags = [*(flag for flag in flags if not flag.startswith(_STEPS)), f"{_STEPS}{options.num_steps}"]
    experiment = config.find_experiment(system.experiment).build()
    (experiment,) = config.from_flags(["families", *flags], experiment)
    shared = sweep.Options(seeds=seeds)
    found = []
    for run in sweep.runs_of(experiment, shared, folder / _directory(system)):
        first = [] if system.first is None else [f"--training.init_from={_first_run(system.first, folder)}"]
        found.append((run, *sweep.commands(system.experiment, [run], [*flags, *first])))
    return found


def _directory(system: System) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in system.name).split())


def _first_run(system: System, folder: Path) -> Path:
    """Directory of the run of a system with the first seed."""
    return folder / _directory(system) / "seed=0"


def main(arguments: list[str]) -> int:
    options = command_line.options_only(arguments, __doc__, Options())
    if options is None:
        return 0
    folder, systems = Path(options.output).expanduser(), chosen(options)
    runs = folder / "runs"
    before = [*dict.fromkeys(s.first for s in systems if s.first is not None), FEATURES]
    failed = _train([pair for s in before for pair in runs_of(s, options, runs, 1)], options.workers)
    own = {system.name: runs_of(system, options, runs, options.seeds) for system in systems}
    failed += [] if failed else _train([pair for pairs in own.values() for pair in pairs], options.workers)
    broken = {run.workdir for run in failed}
    trained = {name: [run for run, _ in pairs if run.workdir not in broken] for name, pairs in own.items()}
    for path in _report(trained, options, folder):
        print(path)
    for run in failed:
        print(f"failed: {run.workdir} (see {run.workdir / sweep.OUTPUT_FILE})")
    return 1 if failed else 0


def _train(pairs: Sequence[tuple[SweptRun, list[str]]], workers: int) -> list[SweptRun]:
    return sweep.run_all([run for run, _ in pairs], [line for _, line in pairs], workers)


def _report(trained: dict[str, list[SweptRun]], options: Options, folder: Path) -> list[Path]:
    """Measures the runs that have ended, and writes the report."""
    from genjax.tools import comparison
    from genjax.training import restore

    features = str(_first_run(FEATURES, folder / "runs"))
    records = {}
    for name, runs in trained.items():
        records[name] = []
        for run in runs:
            if run.is_finished():
                print(f"measuring {run.workdir}", flush=True)
                records[name].append(comparison.measure(restore(run.workdir), features, options.num_samples))
    if not any(records.values()):
        return []
    found = report.collect([str(run.workdir) for runs in trained.values() for run in runs])
    return report_pages.write(dataclasses.replace(found, tables=[comparison.table(records)]), folder)


if __name__ == "__main__":
    command_line.run(main)
