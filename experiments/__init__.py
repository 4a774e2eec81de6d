"""Commands, registered experiments, and the numbers that they reached."""

from pathlib import Path

from genjax import config

#: Recorded numbers of experiments, which `genjax.tools.results` reads.
RESULTS = Path(__file__).parent / "results.jsonl"
#: Recorded plans of experiments at full size, which `experiments.plan --record` writes.
PLANS = Path(__file__).parent / "plans.jsonl"

config.add_package(f"{__name__}.configs")
