"""Training is one function of configuration and seed, on any devices and processes."""

import dataclasses
import json
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genjax
from genjax.config import ConfigError
from genjax.data import Points, evaluation_batches
from genjax.gradients import gradient_step
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.optimizers import SGD
from genjax.training import Experiment, Training, resolve, train
from genjax.training.engine import Engine, parse_mesh
from genjax.training.local_store import damage
from tests.training.tiny_runs import TINY, flags, logged_losses, losses, started, tiny


@pytest.fixture(scope="module")
def single():
    return losses(tiny(training__mesh="data:1"))


@pytest.mark.parametrize("mesh", ["data:2", "data:8", "data:2,fsdp:4", "fsdp:2,tensor:4", "data:2,fsdp:2,tensor:2"])
def test_a_mesh_gives_the_losses_of_one_device(single, mesh):
    np.testing.assert_allclose(losses(tiny(training__mesh=mesh)), single, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_pmap_gives_the_losses_of_one_device(single, count):
    experiment = tiny(training__mesh=f"data:{count}", training__parallelism="pmap")
    np.testing.assert_allclose(losses(experiment), single, rtol=1e-5)


def test_batches_read_by_the_host_give_the_losses_of_a_resident_set(single):
    np.testing.assert_allclose(losses(tiny(training__mesh="data:2", data__resident=False)), single, rtol=1e-5)
    pmapped = tiny(training__mesh="data:4", data__resident=False, training__parallelism="pmap")
    np.testing.assert_allclose(losses(pmapped), single, rtol=1e-5)


def test_accumulated_gradients_give_the_losses_of_the_whole_batch(single):
    experiment = tiny(training__mesh="data:1", model__optimizer__accumulation_steps=4)
    np.testing.assert_allclose(losses(experiment), single, rtol=1e-5)


def test_parameters_are_sharded_as_the_mesh_says():
    engine = Engine(resolve(tiny(training__mesh="data:2,fsdp:2,tensor:2", model__network__hidden_dims=(64, 64))))
    kernel = engine.init().params["encoder"]["MLP_0"]["Dense_0"]["kernel"]
    assert kernel.shape == (64, 64)
    # One axis is split by both: see nn/sharding.py.
    assert kernel.addressable_shards[0].data.shape == (64, 16)


def test_a_run_goes_on_on_another_mesh(tmp_path):
    undisturbed = train(tiny(training__mesh="data:1"), tmp_path / "one", quiet=True)
    first = tiny(training__mesh="data:2,fsdp:2", training__num_steps=20)
    # A constant schedule, so that a run that was shorter at first ends the same.
    train(first, tmp_path / "two", quiet=True)
    ended = train(tiny(training__mesh="fsdp:8"), tmp_path / "two", quiet=True)
    for a, b in zip(jax.tree.leaves(undisturbed.params), jax.tree.leaves(ended.params)):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-5)


def test_evaluation_does_not_depend_on_devices_or_batches():
    results = []
    for mesh, size in [("data:1", 500), ("data:8", 37)]:
        engine = Engine(resolve(tiny(training__mesh=mesh, data__eval_batch_size=size)))
        results.append(engine.evaluate(engine.init(), "test"))
    assert results[0]["num_examples"] == results[1]["num_examples"] == 179
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """A model whose metric is a quotient of sums that differ between examples: of x where y is above 1/2."""

    optimizer: SGD = SGD()

    def parts(self, batch):
        counted = (batch["x"][:, 1] > 0.5).astype(jnp.float32)
        return batch["x"][:, 0] * counted, counted

    def init(self, key, batch):
        return TrainState.create(jnp.zeros(()), self.optimizer)

    def train_step(self, state, batch, key):
        def loss(params, batch, key):
            values, counted = self.parts(batch)
            return params * values.mean(), {"share": Ratio(values.sum(), counted.sum())}

        return gradient_step(loss, self.optimizer)(state, batch, key)

    def evaluate(self, state, batch, key):
        return {"share": Ratio(*self.parts(batch))}

    def sample(self, state, key, num_samples):
        return jnp.zeros((num_samples, 2))


@pytest.mark.parametrize(("accumulation", "parallelism", "mesh"), [(1, "jit", "data:1"), (2, "pmap", "data:2")])
def test_quotients_are_of_all_that_was_seen(accumulation, parallelism, mesh, tmp_path):
    experiment = Experiment(
        model=Share(optimizer=SGD(accumulation_steps=accumulation)),
        data=Points(name="two_moons", batch_size=8, num_train=64, num_held_out=20, eval_batch_size=6),
        training=Training(
            num_steps=4, log_every=4, num_samples=1, parallelism=parallelism, mesh=mesh, tensorboard=False,
            compilation_cache="",
        ),
    )  # fmt: skip
    state = train(experiment, tmp_path, quiet=True)
    engine = Engine(resolve(experiment))
    seen = {"train": [engine.pipeline.batch(step)["x"] for step in range(4)]}
    seen["test"] = [next(iter(evaluation_batches(engine.experiment.data, "test", 20)))[0]["x"]]
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    for name, share in (("train", line["share"]), ("test", engine.evaluate(state, "test")["share"])):
        x = np.concatenate(seen[name])
        np.testing.assert_allclose(share, x[x[:, 1] > 0.5, 0].mean(), rtol=1e-5, err_msg=name)


def _by_hand(index: int, port: int) -> tuple[dict[str, str], list[str]]:
    address = f"--training.coordinator_address=localhost:{port}"
    return {}, [address, "--training.num_processes=2", f"--training.process_id={index}"]


def _by_slurm(index: int, port: int) -> tuple[dict[str, str], list[str]]:
    # JAX makes the port of the job's number: 65535 - 2^12 + 1 + id mod 2^12.
    job = {"SLURM_JOB_ID": port, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": 2, "SLURM_STEP_NUM_NODES": 1}
    place = {"SLURM_PROCID": index, "SLURM_LOCALID": index}
    return {name: str(value) for name, value in {**job, **place}.items()}, ["--training.distributed"]


# Along the axis tensor, both processes hold the same examples.
@pytest.mark.parametrize(("launch", "mesh"), [(_by_hand, "data:4"), (_by_slurm, "tensor:4")])
def test_two_processes_give_the_losses_of_one(launch, mesh, tmp_path):
    source = str(tmp_path / "source")
    train(tiny(training__mesh="data:1", training__num_steps=5, training__seed=1), source, quiet=True)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    placed = (f"--training.init_from={source}", f"--training.mesh={mesh}", *flags({**TINY, "training.num_steps": 50}))
    outputs = [tmp_path / f"output_{i}" for i in range(2)]
    processes = []
    for i, output in enumerate(outputs):
        changes, arguments = launch(i, port)
        processes.append(started(tmp_path / "two", *placed, *arguments, output=output, num_devices=2, changes=changes))
    for process in processes:
        process.join(timeout=600)
    assert [p.exitcode for p in processes] == [0, 0], [output.read_text() for output in outputs]
    train(tiny(training__mesh="data:1", training__init_from=source), tmp_path / "one", quiet=True)
    np.testing.assert_allclose(logged_losses(tmp_path / "two"), logged_losses(tmp_path / "one"), rtol=1e-5)
    # Each process made the digests of what it wrote, and the first gathered them.
    checkpoint = tmp_path / "two" / "checkpoints" / "50"
    assert damage(checkpoint) is None and list(checkpoint.glob("digests*")) == [checkpoint / "digests.json"]
    genjax.restore(tmp_path / "two")


@pytest.mark.parametrize(
    ("text", "message"),
    [("rows:2", "not of the form"), ("data:0", "not of the form"), ("data:16", "needs 16 devices, but there are 8")],
)
def test_a_mesh_that_cannot_be_is_an_error(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_mesh(text, 8)


def test_a_batch_that_cannot_be_divided_is_an_error():
    with pytest.raises(ConfigError, match=r"data.batch_size=30 cannot be divided among 8 devices"):
        Engine(resolve(tiny(data__batch_size=30)))
