"""Measures the molecules that a trained run generates, by the metrics of MOSES:

python -m experiments.molecules --workdir=runs/gpt_molecules --num_samples=30000
"""

from __future__ import annotations

from experiments import command_line
from genjax.tools import molecules


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, molecules.Options())
    if given is None:
        return 0
    run, options = given
    record, samples = molecules.measure(run, options)
    print(f"protocol: {record['protocol']}")
    for name, value in record.items():
        if name != "protocol":
            print(f"  {name:<22} {value:.4f}")
    if "fcd" not in record:
        print("  fcd                    not computed: fcd-torch is not installed (pip install 'genjax[molecules]')")
    name = f"molecules_{run.step:08d}"
    command_line.write_record(run, name, record)
    (run.workdir / f"{name}.smi").write_text("".join(f"{sample}\n" for sample in samples))
    return 0


if __name__ == "__main__":
    command_line.run(main)
