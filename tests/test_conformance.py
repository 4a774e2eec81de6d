"""Every registered experiment, shrunk, through the whole contract."""

import dataclasses
import enum
import functools
import shutil
from collections.abc import Callable, Iterable

import jax
import numpy as np
import pytest

import genjax
from experiments import RESULTS
from genjax import config
from genjax.config.trees import leaves
from genjax.errors import UserError
from genjax.metrics import divided
from genjax.model import TrainState
from genjax.tools import results
from genjax.training import Experiment, resolve, train
from genjax.training.checkpoints import flatten
from genjax.training.engine import Engine
from genjax.training.records import read_lines

ENTRIES = config.import_experiments()
KEY = jax.random.key(0)
SHORT = {
    "training.num_steps": 4,
    "training.steps_per_dispatch": 1,
    "training.log_every": 1,
    "training.checkpoint_every": 2,
    "training.sample_every": None,
    "training.evaluate_every": None,
    "training.best_metric": None,
    "training.num_samples": 4,
    "training.tensorboard": False,
    "training.compilation_cache": "",
    "training.mesh": "data:1",
    "evaluation.num_examples": 24,
    "data.eval_batch_size": 16,
}


@functools.cache
def shrunk(name: str, **overrides: object) -> Experiment:
    changes = {**SHORT, **ENTRIES[name].shrunk, **{k.replace("__", "."): v for k, v in overrides.items()}}
    return config.apply_overrides(ENTRIES[name].build(), changes)


@pytest.fixture(autouse=True)
def forget_compiled_programs_of_an_experiment():
    """No two experiments share a program."""
    yield
    jax.clear_caches()


def test_names_are_documented():
    recorded = results.read_results(RESULTS)
    for entry in ENTRIES.values():
        assert entry.source and results.summary(recorded, entry.name), entry.name
        assert f"--experiment={entry.name}" in (entry.build.__doc__ or ""), f"{entry.name} does not state its command"


def test_a_type_to_compute_in_that_is_none_is_refused_by_every_model_that_has_the_choice():
    paths = {(name, path) for name, entry in ENTRIES.items() for path, _, _ in leaves(entry.build().model)}
    paths = {(name, path) for name, path in paths if path.endswith("compute_dtype")}
    assert len(paths) > 100
    for name, path in paths:
        with pytest.raises(config.ConfigError, match=f"{path}: 'bf16' is not one of float32, bfloat16, float16"):
            config.override(ENTRIES[name].build().model, path, "bf16")


def components(name: str) -> set[tuple]:
    """What an experiment is made of: its model, its data, and the class of each of the model's components."""
    experiment = shrunk(name)
    model = type(experiment.model)
    found = {(model,), (type(experiment.data),)}
    for path, _, value in leaves(experiment.model):
        if "optimizer" not in path and dataclasses.is_dataclass(value):
            found.add((model, path.split(".")[-1], type(value)))
    return found


def choices(name: str) -> set[tuple]:
    """What else an experiment computes but for numbers: its model on its data, and the choices of each component."""
    experiment = shrunk(name)
    found = {(type(experiment.model), type(experiment.data))}
    for path, _, value in leaves(experiment.model):
        *way, field = path.split(".")
        if "optimizer" not in path and isinstance(value, (bool, str, enum.Enum)):
            found.add((type(functools.reduce(getattr, way, experiment.model)), field, value))
    return found


def covering(chosen: Iterable[str], parts: Callable[[str], set[tuple]]) -> list[str]:
    """The chosen experiments, and few others, so that together they have all parts that any experiment has."""
    chosen, of = sorted(chosen), {name: parts(name) for name in sorted(ENTRIES)}
    left = set().union(*of.values()).difference(*(of[name] for name in chosen))
    while left:
        chosen.append(max(of, key=lambda name: len(of[name] & left)))
        left -= of[chosen[-1]]
    return chosen


#: One experiment for each training step that somebody wrote: what sharding can change is the step.  Points compile
#: soonest.
ONE_OF_EACH_STEP = {
    type(ENTRIES[name].build().model).train_step: name
    for name in [*reversed(ENTRIES), "ddpm_moons", "edm_points", "real_nvp_two_moons"]
}.values()


def family(name: str) -> str:
    return type(ENTRIES[name].build().model).__module__.split(".")[2]


#: One experiment of each family for the quick look, those that compile soonest last.
QUICK = {
    family(name): name for name in [*sorted(ENTRIES, reverse=True), "ddpm_moons", "real_nvp_two_moons", "gpt_sentiment"]
}.values()


#: Those that are run by every `make test`.
RUN = {*ONE_OF_EACH_STEP, *QUICK}

#: With those that are run they have every component; `make test-all` runs them.  The others are other combinations of
#: the same components, or differ in choices and numbers.
RUN_OF_ALL = set(covering(RUN, components)) - RUN

#: Those that are traced whole: with those that are run they make every choice.  Of the rest the step is traced.
TRACED = set(covering({*RUN, *RUN_OF_ALL}, choices)) - RUN


def marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    return (*[pytest.mark.quick] * (name in QUICK), *[pytest.mark.exhaustive] * (name in RUN_OF_ALL))


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in sorted({*RUN, *RUN_OF_ALL})])
def test_experiment(name, tmp_path):
    # One run of each training step is made on eight devices by `jit`, and its first steps by `pmap` beside it.
    experiment = shrunk(name, training__mesh="data:8") if name in ONE_OF_EACH_STEP else shrunk(name)
    workdir = tmp_path / "run"
    train(experiment, workdir, name=name, quiet=True)
    if name in ONE_OF_EACH_STEP:
        pmap_gives([row["loss"] for row in read_lines(workdir) if row["kind"] == "train"][:2], name)
    run = genjax.restore(workdir, overrides={"training.mesh": experiment.training.mesh})
    assert run.step == 4 and run.model == resolve(experiment).model
    ended = {path: np.asarray(leaf) for path, leaf in flatten(run.state).items()}
    for path, leaf in ended.items():
        if np.issubdtype(leaf.dtype, np.floating):
            assert np.isfinite(leaf).all(), f"{path} is not finite"

    # Stopped after two steps, a run ends bit-identical.
    shutil.rmtree(workdir / "checkpoints" / "4")
    again = train(experiment, workdir, name=name, quiet=True)
    for path, leaf in flatten(again).items():
        assert np.asarray(leaf).tobytes() == ended[path].tobytes(), f"{path} differs after a resume"

    metrics = run.evaluate()
    assert metrics.pop("num_examples") > 0 and metrics
    assert all(np.isfinite(value) for value in metrics.values()), metrics

    samples = run.sample(jax.random.key(0), SHORT["training.num_samples"])
    assert len(samples) == SHORT["training.num_samples"] and np.isfinite(np.asarray(samples, np.float64)).all()
    for path in run.write_samples(samples, tmp_path / "sheet"):
        assert path.stat().st_size > 0


@pytest.mark.parametrize("name", sorted(set(ENTRIES) - RUN))
def test_experiment_of_another_size_is_a_step_on_the_contract(name, tmp_path):
    engine = Engine(resolve(shrunk(name)))
    model, data, state = engine.experiment.model, engine.experiment.data, engine.abstract_state
    batch = jax.eval_shape(data.transform, engine.pipeline.batch(0), KEY)
    _, metrics = jax.eval_shape(model.train_step, state, batch, KEY)
    assert all(m.shape == () for m in jax.tree.leaves(metrics))
    if name in TRACED:
        count = len(jax.tree.leaves(batch)[0])
        padding = jax.ShapeDtypeStruct((count,), bool)
        values = jax.eval_shape(model.evaluate, state, {**batch, "padding": padding}, KEY)
        assert values and all(value.shape == (count,) for value in jax.tree.leaves(values))
        samples = jax.eval_shape(lambda state, key: model.sample(state, key, 4), state, KEY)
        assert len(samples.shape) > 0 and samples.shape[0] == 4
        for path in data.write_samples(np.zeros(samples.shape, samples.dtype), tmp_path / "sheet"):
            assert path.stat().st_size > 0


@pytest.mark.platforms
@pytest.mark.parametrize("name", sorted(ONE_OF_EACH_STEP))
def test_all_axes_together_give_the_losses_of_one_device(name):
    one = Engine(resolve(shrunk(name)))
    try:
        many = Engine(resolve(shrunk(name, training__mesh="data:2,fsdp:2,tensor:2")))
    except UserError as refused:
        # Attention with one head has nothing that `tensor` could split.
        assert "num_heads=1 among tensor:2" in str(refused)
        many = Engine(resolve(shrunk(name, training__mesh="data:2,fsdp:4")))
    expected = two_steps(one, one.init())[1]
    np.testing.assert_allclose(two_steps(many, many.init())[1], expected, rtol=2e-5, atol=1e-6)


def two_steps(engine: Engine, state: TrainState) -> tuple[TrainState, np.ndarray]:
    """The state after two steps on the devices of `engine`, and their losses."""
    losses = []
    for inputs in engine.inputs([(0, 1), (1, 2)]):
        state, metrics = engine.advance(state, inputs)
        losses.append(divided(engine.fetch(metrics))["loss"])
    return state, np.concatenate(losses)


def pmap_gives(expected: list[float], name: str) -> None:
    """Checks that the first two steps by `pmap` on two devices have the losses of a run by `jit` on eight.

    Each device of `pmap` runs a program of one device, so that a fault of XLA's partitioner shows here as well.
    """
    two = Engine(resolve(shrunk(name, training__mesh="data:2", training__parallelism="pmap")))
    start = Engine(resolve(shrunk(name, training__mesh="data:8"))).init()
    copies, losses = two_steps(two, two.distribute(start))
    np.testing.assert_allclose(losses, expected, rtol=2e-5, atol=1e-6)
    for path, leaf in flatten(copies).items():
        first, second = np.asarray(leaf)
        assert first.tobytes() == second.tobytes(), f"{path} differs between the devices of pmap"
