"""Data sets: how raw examples become batches of a step, and how samples become something to look at."""

from genjax.data.base import ArrayExamples, Data, DataError, Examples
from genjax.data.evidence import Evidence
from genjax.data.images import Images, write_grid
from genjax.data.molecules import Molecules
from genjax.data.music import PianoRolls
from genjax.data.pipeline import Pipeline, evaluation_batches
from genjax.data.points import Points
from genjax.data.sequences import TimeSeries, TokenPairs
from genjax.data.text import Text

__all__ = [
    "ArrayExamples",
    "Data",
    "DataError",
    "Evidence",
    "Examples",
    "Images",
    "Molecules",
    "PianoRolls",
    "Pipeline",
    "Points",
    "Text",
    "TimeSeries",
    "TokenPairs",
    "evaluation_batches",
    "write_grid",
]
