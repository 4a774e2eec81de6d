"""Compares the likelihood of a trained run with a normal distribution, and with the likelihood of other data:

    python -m experiments.likelihood --workdir=runs/maf_mnist --ood=black,uniform,inverted,shuffled

Prints the log-likelihood of the evaluation split.  Beside it stands the log-likelihood under a full-covariance normal
distribution that is fitted to the training split, if the model is a density in the same space.  Prints how well the
likelihood tells the split from the sets --ood (area under the ROC curve; below 0.5 the other set is likelier).  Of
two-dimensional data it draws the density and prints its integral.  Pictures of other sets are converted to the levels,
the size and the channels of the run's pictures.
"""

from __future__ import annotations

import dataclasses

from experiments import command_line
from genjax.tools import likelihood


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, likelihood.Options())
    if given is None:
        return 0
    run, options = given
    found = likelihood.compare(run, options)
    print(
        f"{run.name}, step {run.step}: {type(run.model).__name__} on {run.experiment.data.name}, split {found.split}, "
        f"{found.num_examples} examples"
    )
    for name, row in found.likelihoods.items():
        unit = "nats" if row.exact else "nats (bound)"
        print(f"  {name:<24} log-likelihood {row.log_likelihood:10.4f} {unit:<12}   {row.bits_per_dim:8.4f} bits/dim")
    if found.picture is not None:
        print(f"  the density integrates to {found.integral:.5f} over the square of the picture\n{found.picture}")
    for name, area in found.roc_auc.items():
        print(f"  against {name:<16} ROC-AUC {area:.4f}   their mean {found.bits_per_dim[name]:8.4f} bits/dim")
    record = dataclasses.asdict(found) | {"picture": None if found.picture is None else str(found.picture)}
    command_line.write_record(run, f"likelihood_{found.split}", record)
    return 0


if __name__ == "__main__":
    command_line.run(main)
