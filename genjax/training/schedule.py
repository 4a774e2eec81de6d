"""What is due after which step; it depends on the step alone, so that a resumed run makes the same dispatches."""

from __future__ import annotations

from collections.abc import Iterator

from genjax.training.experiment import Training


def dispatches(start: int, training: Training) -> Iterator[tuple[int, int]]:
    """Yields the (start, stop) steps of each compiled call: at most `steps_per_dispatch`, ending where something is
    due.
    """
    periods = [training.steps_per_dispatch, training.log_every, training.checkpoint_every]
    periods += [p for p in (training.evaluate_every, training.sample_every) if p is not None]
    while start < training.num_steps:
        stop = min(min((start // p + 1) * p for p in periods), training.num_steps)
        yield start, stop
        start = stop


def events(step: int, training: Training, stopping: bool = False) -> set[str]:
    """Names of what is due after a step: evaluate, save, draw.

    A run that is asked to stop only saves; the rest is done when the run is resumed.
    """
    last = step == training.num_steps
    every = lambda period: period is not None and step % period == 0
    evaluates = training.evaluate_every is not None and (last or every(training.evaluate_every))
    due = {
        "evaluate": evaluates and not stopping,
        "save": stopping
        or last
        or every(training.checkpoint_every)
        or (evaluates and training.best_metric is not None),
        "draw": (last or every(training.sample_every)) and not stopping,
    }
    return {name for name, is_due in due.items() if is_due}
