"""Draws samples from a trained run and writes them as pictures, text, sound or whatever suits their domain:

    python -m experiments.sample --workdir=runs/vae --num_samples=64 --seed=1

A translator, of text or of pictures, translates the first --num_samples sources of the evaluation split, and shows each
translation with its source and its target.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import command_line
from genjax import config
from genjax.tools import conditions

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
command_line.define_step()
command_line.define_step("weak_step", "an early checkpoint that guides a diffusion model, by model.guidance.scale")
flags.DEFINE_integer("num_samples", 64, "number of samples", lower_bound=1)
flags.DEFINE_integer("seed", 0, "seed of the samples")
flags.DEFINE_string("output", None, "path of the picture without its suffix; <workdir>/samples/... unless given")
flags.DEFINE_list(
    "label", None, "classes of the samples, in turn, by name or number, for a model conditional on classes"
)
flags.DEFINE_list("condition", None, "a number for each column that the others are modelled given, in the data's units")
flags.DEFINE_boolean("reconstruct", False, "show examples of the evaluation split beside their reconstructions instead")


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    run = conditions.guided_by_step(run, flags.FLAGS.weak_step)
    import jax

    from genjax.tools.answers import examples_to_answer

    values = flags.FLAGS
    condition, batch = {}, None
    if values.label is not None:
        names = run.experiment.data.label_names()
        condition["label"] = conditions.labels_for(run.model, values.label, values.num_samples, names)
    if values.condition is not None:
        data = run.experiment.data
        condition["condition"] = conditions.condition_for(run.model, data, values.condition, values.num_samples)
    if values.reconstruct:
        if not hasattr(run.model, "reconstruct"):
            raise config.ConfigError(f"{type(run.model).__name__} does not reconstruct; leave --reconstruct out")
        samples = run.engine.reconstruct(run.state, values.num_samples, run.experiment.evaluation.split)
        kind = "reconstructions"
    else:
        key = jax.random.key(values.seed)
        batch = examples_to_answer(run, values.num_samples, key)
        if batch is not None:
            condition |= {name: batch[name] for name in ("source", "source_mask") if name in batch}
        samples = run.sample(key, values.num_samples, **condition)
        kind = "samples"
    conditions.check_finite(samples, f"{kind} of {run.workdir}")
    default = Path(run.workdir) / "samples" / f"{kind}_{run.step:08d}_seed{values.seed}"
    stem = Path(values.output).expanduser() if values.output else default
    stem.parent.mkdir(parents=True, exist_ok=True)
    if batch is None:
        paths = run.write_samples(samples, stem)
    else:
        paths = run.experiment.data.write_answers(batch, samples, stem)
        if paths[0].suffix == ".txt":
            print(paths[0].read_text(encoding="utf-8"))
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    command_line.run(main)
