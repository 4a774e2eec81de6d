"""Commands, registered experiments, and the numbers that they reached."""

from pathlib import Path

#: Recorded numbers of experiments, which `genjax.tools.results` reads.
RESULTS = Path(__file__).parent / "results.jsonl"
