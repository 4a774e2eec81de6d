"""Heads on a GPT, and runs that start from another run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config
from genjax.data import Text
from genjax.families.language.encoder_tasks import (
    Classification,
    MaskedLanguageModel,
    SpanExtraction,
    TokenClassification,
)
from genjax.families.language.gpt import GPT
from genjax.families.language.gpt_tasks import GPTForTask
from genjax.model import GenerativeModel
from genjax.nn.lora import LoRA
from genjax.nn.mixture_of_experts import MixtureOfExperts
from genjax.nn.transformer import Transformer
from genjax.optimizers import Adam
from genjax.training import Evaluation, Experiment, Training, resolve, train
from genjax.training.runs import restore

TINY = Transformer(num_layers=1, width=8, num_heads=2, mlp_dim=16, max_length=16, positions="rotary", init_std=0.3)
MODEL = GPTForTask(
    vocab_size=5, sequence_length=6, network=TINY, task=Classification(num_classes=3, dropout=0.0),
    optimizer=Adam(learning_rate=2e-2),
)  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(0), (12, 6), 0, 5)
MASK = jnp.arange(6)[None] < jnp.arange(12)[:, None] % 4 + 3
LAST = jnp.take_along_axis(TOKENS, MASK.sum(1)[:, None] - 1, axis=1)[:, 0]
TARGETS = {
    Classification: {"label": LAST % 3},
    TokenClassification: {"token_labels": TOKENS % 3},
    SpanExtraction: {"span": jnp.stack([TOKENS.argmax(1) % 3, TOKENS.argmax(1) % 3], 1)},
}


@pytest.mark.parametrize(
    "task",
    [MODEL.task, TokenClassification(num_classes=3, dropout=0.0), SpanExtraction()],
    ids=lambda t: type(t).__name__,
)
def test_heads_learn_and_padding_does_not_count(task):
    model = dataclasses.replace(MODEL, task=task)
    assert isinstance(model, GenerativeModel)
    batch = {"tokens": TOKENS, "mask": MASK, **TARGETS[type(task)]}
    state = jax.jit(model.init)(jax.random.key(1), batch)
    step, first = jax.jit(model.train_step), None
    for t in range(40):
        state, metrics = step(state, batch, jax.random.key(t))
        first = metrics["loss"] if first is None else first
    assert metrics["loss"] < 0.6 * first and state.step == 40
    values = model.evaluate(state, batch, jax.random.key(0))
    assert all(v.shape == (12,) for v in jax.tree.leaves(values))
    noise = jax.random.randint(jax.random.key(2), TOKENS.shape, 0, 5)
    changed = {**batch, "tokens": jnp.where(MASK, TOKENS, noise)}
    changed = model.evaluate(state, changed, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), changed, values)
    assert len(model.sample(state, jax.random.key(3), 4)) == 4


def test_the_loss_of_experts_has_their_balance():
    experts = MixtureOfExperts(num_experts=2, num_selected=1, balance_weight=1.0)
    model = dataclasses.replace(MODEL, network=dataclasses.replace(TINY, experts=experts))
    batch = {"tokens": TOKENS, "mask": MASK, **TARGETS[Classification]}
    state = jax.jit(model.init)(jax.random.key(1), batch)
    loss, metrics = jax.jit(model.loss)(state.params, batch, jax.random.key(0))
    # The router's loss alone is at least 1 where shares and probabilities agree.
    assert metrics["auxiliary"] > 0.5
    with_room = dataclasses.replace(experts, balance_weight=0.0, router_z_weight=0.0)
    plain = dataclasses.replace(model, network=dataclasses.replace(TINY, experts=with_room))
    np.testing.assert_allclose(
        loss, jax.jit(plain.loss)(state.params, batch, jax.random.key(0))[0] + metrics["auxiliary"], rtol=1e-5
    )
    assert "auxiliary" not in jax.eval_shape(model.predict, state, batch)


def test_what_a_causal_network_cannot_learn_is_said():
    with pytest.raises(ValueError, match="needs an encoder"):
        dataclasses.replace(MODEL, task=MaskedLanguageModel()).init(jax.random.key(0), {"tokens": TOKENS})
    with pytest.raises(ValueError, match="longest context"):
        MODEL.init(jax.random.key(0), {"tokens": jnp.zeros((1, 17), jnp.int32)})
    with pytest.raises(ValueError, match="BERT has the same tasks"):
        dataclasses.replace(MODEL, network=dataclasses.replace(TINY, causal=False))
    with pytest.raises(ValueError, match="is no parameter: the network has embedding, heads, stack"):
        dataclasses.replace(MODEL, frozen=("stak",)).init(jax.random.key(0), {"tokens": TOKENS, "label": LAST})


def test_heads_that_are_frozen_stay_beside_low_rank_updates():
    model = dataclasses.replace(MODEL, lora=LoRA(rank=2), frozen=("heads",))
    state = jax.eval_shape(model.init, jax.random.key(0), {"tokens": TOKENS, "label": LAST})
    moments = {path for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state) if len(path) > 2}
    assert not any("heads" in str(path) for path in moments) and any("lora" in str(path) for path in moments)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run of two steps on text, and its experiment."""
    quick = Training(num_steps=2, num_samples=1, tensorboard=False, compilation_cache="")
    experiment = Experiment(
        model=GPT(network=TINY, optimizer=Adam(learning_rate=1e-2)),
        data=Text(sequence_length=8, batch_size=8),
        training=quick,
        evaluation=Evaluation(num_examples=8),
    )
    workdir = tmp_path_factory.mktemp("pretrained")
    train(experiment, workdir, name="pretrained")
    return experiment, workdir


@pytest.mark.parametrize("change", ["whole", "lora", "frozen"])
def test_fine_tuning_starts_from_the_checkpoint_and_moves_what_it_should(pretrained, change, tmp_path):
    experiment, workdir = pretrained
    overrides = {"training.init_from": str(workdir), "training.seed": 7, "training.num_steps": 1}
    if change == "lora":
        model = dataclasses.replace(experiment.model, lora=LoRA(rank=2))
        overrides["training.init_prefix"] = ("embedding", "stack")
    elif change == "frozen":
        averaged = Adam(learning_rate=1e-2, ema_decay=0.5)
        model = dataclasses.replace(experiment.model, frozen=("embedding", "stack/final_norm"), optimizer=averaged)
    else:
        model = experiment.model
    tuned = config.apply_overrides(dataclasses.replace(experiment, model=model), overrides)
    train(tuned, tmp_path, name="tuned")
    state = restore(tmp_path).state
    before, after = restore(workdir).state.params, state.params
    same = {name: jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before[name], after[name]))
            for name in ("embedding", "stack")}  # fmt: skip
    expected = {"whole": (False, False), "lora": (True, True), "frozen": (True, False)}[change]
    assert (same["embedding"], same["stack"]) == expected
    # One Adam step moves no weight further than the learning rate: these are the old run's weights, not new ones.
    distance = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before["stack"], after["stack"])
    assert max(jax.tree.leaves(distance)) < 0.011
    if change == "frozen":
        # Averages, which trained parameters alone have, begin at the old run's weights too.
        assert set(state.ema_params["stack"]) == set(before["stack"]) - {"final_norm"}
        distance = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, state.eval_params)
        assert max(jax.tree.leaves(distance)) < 0.011
    if change == "lora":
        assert any(bool((leaf != 0).any()) for leaf in jax.tree.leaves(after["lora"]))


def test_a_pretrained_network_gets_a_head(pretrained):
    from genjax.training.warm_start import warm_start

    model = dataclasses.replace(MODEL, vocab_size=resolve(pretrained[0]).model.vocab_size)
    params = model.init(jax.random.key(0), {"tokens": TOKENS}).params
    taken = warm_start(params, str(pretrained[1]), ("embedding", "stack"))
    source = restore(pretrained[1]).state.params
    jax.tree.map(np.testing.assert_array_equal, taken["stack"], source["stack"])
    jax.tree.map(np.testing.assert_array_equal, taken["heads"], params["heads"])
