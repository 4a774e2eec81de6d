"""Compares answers of a run of alignment with answers of the network that it started from:

    python -m experiments.alignment --workdir=runs/dpo_sentiment
    python -m experiments.alignment --workdir=runs/rl_sentiment --beta=0.5
    python -m experiments.alignment --workdir=runs/rl_sentiment --beside=runs/ppo_sentiment

Prints some answers of both, the KL divergence between them in nats an answer, and, where the data judge a text, the
share of good answers beside that of the optimum in closed form (genjax/tools/alignment.py).  All figures go to
alignment.json in the run's directory, the answers to alignment.txt, and of a policy that was trained by rewards the
curve of reward against KL to reward_kl.png, beside the curves of the runs --beside.
"""

from __future__ import annotations

import dataclasses

from experiments import command_line
from genjax.tools import alignment


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, alignment.Options())
    if given is None:
        return 0
    run, options = given
    found = alignment.compare(run, options)
    shown = "".join(
        "\n  ".join([f"{title}:", *texts]) + "\n" for title, texts in (("before", found.before), ("after", found.after))
    )
    print(shown, end="")
    print(f"KL from the start: {found.kl[0]:.4f} nats an answer (standard error {found.kl[1]:.4f})")
    if found.good_before is not None and found.good_after is not None:
        shares = ((found.good_before, "before"), (found.good_after, "after"))
        print("good answers:", ", ".join(f"{s[0]:.4f} {when} (standard error {s[1]:.4f})" for s, when in shares))
    if found.judged_before is not None and found.judged_after is not None:
        shares = (
            (found.judged_before, found.good_of_judged_before, "before"),
            (found.judged_after, found.good_of_judged_after, "after"),
        )
        print("answers that can be judged:", ", ".join(f"{s[0]:.4f} {when}, {g[0]:.4f} good" for s, g, when in shares))
    if found.best_good_of_judged is not None:
        print(f"the optimum has {found.best_good_of_judged:.4f} good ones among these")
    if found.best_good is not None:
        print(f"the optimum has {found.best_good:.4f} good answers and a KL of {found.best_kl:.4f} nats")
    picture = alignment.draw(run, found, options.beside)
    content = {**dataclasses.asdict(found), "num_answers": options.num_answers, "seed": options.seed}
    command_line.write_record(run, "alignment", content)
    (run.workdir / "alignment.txt").write_text(shown, encoding="utf-8")
    if picture is not None:
        print(picture)
    return 0


if __name__ == "__main__":
    command_line.run(main)
