"""Writes down what is said in sound files; without a file it measures a split:

    python -m experiments.transcribe --workdir=runs/spoken_digits --audio=seven.wav
    python -m experiments.transcribe --workdir=runs/spoken_digits

Texts are measured by exact match, of each speaker too, and by word errors.
"""

from __future__ import annotations

from experiments import command_line
from genjax.tools import transcripts


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, transcripts.Options())
    if given is None:
        return 0
    run, options = given
    if options.audio is not None:
        for file in options.audio:
            text = transcripts.transcribe_file(run, file, options.num_beams)
            print(f"{file}: {text}" if len(options.audio) > 1 else text)
        return 0
    record = transcripts.measure(run, options.num_beams)
    print(f"{run.name}, step {run.step}: {record['num_examples']} clips of {record['split']}")
    for name, value in record["scores"].items():
        print(f"  {name:<28}{value:>10.4f}")
    command_line.write_record(run, f"transcripts_{record['split']}", record)
    return 0


if __name__ == "__main__":
    command_line.run(main)
