"""Plans beside counts by hand, for a small perceptron in a file of the user's on eight host devices."""

import dataclasses
import importlib.util
import json
import re
import textwrap

import pytest

from experiments import plan as command
from genjax import config
from genjax.errors import UserError
from genjax.tools import plan
from genjax.tools.plan import programs
from genjax.tools.plan.chips import CHIPS
from genjax.training import Experiment

#: Examples, inputs (8 x 8 pixels) and hidden features.
B, D, H = 64, 64, 256

PERCEPTRON = """
    import dataclasses
    import jax, jax.numpy as jnp
    from genjax.data import Images
    from genjax.gradients import gradient_step
    from genjax.model import TrainState
    from genjax.optimizers import Adam, Optimizer
    from genjax.training import Experiment, Training

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Perceptron:
        hidden: int = 256
        optimizer: Optimizer = Adam()

        def init(self, key, batch):
            first, second = jax.random.split(key)
            params = {
                "in": jax.random.normal(first, (64, self.hidden)),
                "out": jax.random.normal(second, (self.hidden, 64)),
            }
            return TrainState.create(params, self.optimizer)

        def errors(self, params, batch):
            return ((jnp.tanh(batch["x"] @ params["in"]) @ params["out"] - batch["x"]) ** 2).mean(1)

        def train_step(self, state, batch, key):
            loss = lambda params, batch, key: (self.errors(params, batch).mean(), {})
            return gradient_step(loss, self.optimizer)(state, batch, key)

        def evaluate(self, state, batch, key):
            return {"loss": self.errors(state.eval_params, batch)}

        def sample(self, state, key, num_samples):
            hidden = jnp.tanh(jax.random.normal(key, (num_samples, 64)) @ state.eval_params["in"])
            return hidden @ state.eval_params["out"]

    def perceptron() -> Experiment:
        data = Images(flatten=True, batch_size=64, eval_batch_size=32)
        return Experiment(model=Perceptron(), data=data, training=Training(num_samples=16))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("user") / "my_file.py"
    path.write_text(textwrap.dedent(PERCEPTRON))
    return f"{path}:perceptron"


def experiment_of(file: str, **overrides: object) -> Experiment:
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return config.apply_overrides(config.find_experiment(file).build(), changes)


@pytest.fixture(scope="module")
def sharded(file) -> plan.Plan:
    experiment = experiment_of(file, training__mesh="data:4,fsdp:2")
    return plan.plan(experiment, plan.Options(topology="host:8", chip="v5e"), "perceptron")


def test_bytes_of_a_perceptron_are_those_by_hand(sharded):
    count = 2 * D * H
    assert sharded.num_parameters == count and sharded.num_devices == 8
    assert sharded.parameters == 4 * count / 2
    # Two moments, and counters of a few bytes.
    assert 0 <= sharded.optimizer - 2 * 4 * count / 2 <= 16
    assert sharded.programs["step"].inputs == B / 8 * (D + 4)
    assert sharded.programs["evaluation"].inputs == 32 / 8 * (D + 4 + 4)
    step = sharded.programs["step"]
    state = sharded.parameters + sharded.optimizer + sharded.other_state
    assert step.peak >= state + step.inputs + step.temporaries


def test_operations_of_a_perceptron_are_those_by_hand(sharded):
    product = 2 * B * D * H
    costs = {name: p.costs.products for name, p in sharded.programs.items()}
    # Two products forward; their weights' gradients, and the hidden layer's.
    assert sharded.model_flops == 5 * product
    assert costs["step"] == 5 * product / 8
    assert costs["evaluation"] == 2 * (2 * 32 * D * H) / 8
    assert costs["sampler"] <= 2 * (2 * 16 * D * H)
    assert sharded.recomputation == 1.0


def test_a_step_whose_kernels_hide_products_has_the_models_own(sharded):
    step = sharded.programs["step"]
    hiding = dataclasses.replace(step, costs=dataclasses.replace(step.costs, products=10.0, unnoted_kernels=2))
    found = {"step": hiding}
    (told,) = programs._with_hidden_products(found, 1e12, CHIPS["v5p"])
    assert told.startswith("operations of 2 kernels that note none: 10 of a step were counted")
    assert found["step"].costs.products == 1e12 and found["step"].bound.products == 1e12 / CHIPS["v5p"].flops
    # Without kernels, or where as much was counted, nothing is hidden.
    assert programs._with_hidden_products({"step": step}, 1e30, None) == []
    assert programs._with_hidden_products(found, 1e12, None) == []


def test_gradients_of_a_perceptron_are_summed_over_all_devices(sharded):
    reduced = [c for c in sharded.programs["step"].costs.collectives if c.kind in ("all-reduce", "reduce-scatter")]
    assert {axis for c in reduced for axis in c.axes.split("+")} == {"data", "fsdp"}
    # Each gradient at least once whole or in halves, in float32.
    assert sum(c.num_bytes for c in reduced) >= 4 * 2 * D * H / 2


def test_the_bound_is_the_largest_of_three_times(sharded):
    chip = {"flops": 197e12, "bandwidth": 819e9, "link": 200e9}
    step = sharded.programs["step"]
    bound = step.bound
    assert bound.products == step.costs.products / chip["flops"]
    assert bound.memory == step.costs.traffic / chip["bandwidth"]
    assert bound.network == pytest.approx(sum(c.received for c in step.costs.collectives) / chip["link"])
    assert bound.seconds == max(bound.products, bound.memory, bound.network)
    assert sharded.mfu == pytest.approx(sharded.model_flops / (bound.seconds * 8 * chip["flops"]))
    assert sharded.fits


def test_a_plan_on_the_host_says_what_it_cannot_know(file, capsys):
    assert command.main(["plan", file, "--topology=host:2", "--training.mesh=data:2", "--programs=step"]) == 0
    printed = capsys.readouterr().out
    assert "perceptron on host:2, mesh data:2, batch 64 on 2 devices" in printed
    assert "not known here: the rates and the memory of the chips: give --chip" in printed and "MFU" not in printed


def test_a_plan_as_json_holds_what_follows_from_it(sharded):
    content = json.loads(json.dumps(sharded.to_json()))
    assert content["fits"] is True and content["mesh"] == {"data": 4, "fsdp": 2}
    assert content["programs"]["step"]["bound"]["binding"] in ("products", "memory", "network")
    assert {"parameters", "optimizer", "model_flops", "mfu", "recomputation"} <= set(content)


def test_recorded_plans_are_a_table_with_one_row_a_run(sharded, tmp_path):
    path = tmp_path / "plans.jsonl"
    other = dataclasses.replace(sharded, batch_size=32)
    for each, version in ((sharded, "old"), (other, "new"), (sharded, "new")):
        plan.record(each, version, path)
    lines = plan.markdown(plan.recorded(path)).splitlines()
    assert len(lines) == 4 and {line.split(" | ")[-1] for line in lines[2:]} == {"new |"}
    bound = sharded.programs["step"].bound
    cells = lines[3].strip("| ").split(" | ")
    assert cells[:3] == ["perceptron", "host:8", "data:4,fsdp:2, 64"] and cells[4] == "1.00"
    assert f"**{bound.seconds * 1e3:.3g} ms**" in cells[5]
    evaluation, sampler = cells[7].split("; ")
    assert all(re.fullmatch(r"[\d.]+ [KM]?i?B [\d.e-]+ ms", each) for each in (evaluation, sampler)), cells[7]


def test_a_search_lists_what_fits_the_best_bound_first(file):
    options = plan.Options(topology="host:2", chip="v5e", batch_sizes=(64, 65))
    found = list(plan.search(experiment_of(file), options))
    # A batch of 65 cannot be halved, so it runs on no axis of the batch.
    assert {(p.batch_size, tuple(p.mesh)) for p in found} >= {(64, ("data",)), (64, ("fsdp",))}
    bounds = [p.programs["step"].bound.seconds / p.batch_size for p in plan.best_first(found)]
    assert bounds == sorted(bounds) and bounds


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({}, {"topology": "v5q:2x2"}, "there is no topology 'v5q:2x2'"),
        ({}, {"topology": "v5e"}, "has no shape"),
        ({}, {"topology": "host:8", "chip": "h300"}, "there is no chip 'h300'"),
        ({}, {"topology": "host:64"}, "JAX has started with 8 host devices"),
        ({"training__mesh": "data:16"}, {"topology": "host:8"}, "needs 16 devices, but there are 8"),
        (
            {"data__batch_size": 63, "training__mesh": "data:2"},
            {"topology": "host:8"},
            "cannot be divided among 2 devices",
        ),
        ({"training__parallelism": "pmap"}, {"topology": "host:8"}, "leave training.parallelism=pmap out"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(changes, options, sentence, file):
    with pytest.raises(UserError, match=sentence):
        plan.plan(experiment_of(file, **changes), plan.Options(**options))


def test_published_experiments_are_outlined_without_their_data():
    for name, shape in {
        "gpt2_124m": {"tokens": (480, 1025)},
        "bert_base": {"tokens": (256, 512)},
        "edm_cifar10": {"x": (512, 32, 32, 3)},
        "stylegan2_ffhq": {"x": (32, 1024, 1024, 3)},
        "dit_xl2_imagenet": {"x": (256, 32, 32, 4)},
    }.items():
        resolved, batch = plan.outlined(config.find_experiment(name).build())
        assert {key: batch[key].shape for key in shape} == shape, name
        assert resolved.training.num_steps


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_a_tpu_without_its_compiler_is_one_sentence(file):
    with pytest.raises(UserError, match="pip install libtpu; --topology=host:8 --chip=v5e plans without it"):
        plan.plan(experiment_of(file), plan.Options(topology="v5e:2x4"))
