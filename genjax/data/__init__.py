"""Data sets: how raw examples become batches of a step, and how samples become something to look at."""

from genjax.data.base import ArrayExamples, Data, DataError, Examples
from genjax.data.images import Images, write_grid
from genjax.data.pipeline import Pipeline, evaluation_batches
from genjax.data.points import Points

__all__ = [
    "ArrayExamples",
    "Data",
    "DataError",
    "Examples",
    "Images",
    "Pipeline",
    "Points",
    "evaluation_batches",
    "write_grid",
]
