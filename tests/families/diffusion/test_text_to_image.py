"""Diffusion models that read captions: what is encoded, what guidance leads away from, and what stays as it was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import CaptionedImages
from genjax.errors import UserError
from genjax.families.diffusion.caption_encoder import TEXT_PARTS, CaptionEncoder
from genjax.families.diffusion.consistency import ConsistencyDistillation
from genjax.families.diffusion.dit import DiT
from genjax.families.diffusion.flow_matching import FlowMatching
from genjax.families.diffusion.guidance import Guidance
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.reflow import Reflow
from genjax.families.diffusion.samplers import Euler, Heun
from genjax.families.diffusion.vdm import VDM
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW
from genjax.training import Experiment, resolve
from genjax.training.checkpoints import flatten

STACK = Transformer(num_layers=2, width=8, num_heads=2, causal=False, max_length=20)
MODEL = FlowMatching(
    network=DiT(patch_size=8, hidden_dim=8, num_layers=1, num_heads=2),
    condition_on=("text",),
    text=CaptionEncoder(stack=STACK),
    sampler=Euler(num_steps=2, variable="time"),
    optimizer=AdamW(learning_rate=1e-2, weight_decay=0.1, ema_decay=0.9),
)
DATA = CaptionedImages(num_made=16, num_held_out=4, batch_size=4, preprocessing="signed")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model():
    return resolve(Experiment(model=MODEL, data=DATA)).model


@pytest.fixture(scope="module")
def batch():
    return DATA.transform(DATA.load("train").gather(np.arange(4)), KEY)


@pytest.fixture(scope="module")
def state(model, batch):
    """A state whose every parameter matters: output maps start at zero."""
    state = jax.jit(model.init)(KEY, batch)
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(KEY, len(leaves))
    noisy = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)]
    return state.with_params(tree.unflatten(noisy))


def outputs(model, state, condition):
    z = jax.random.normal(KEY, (len(condition["tokens"]), 32, 32, 3))
    return model.apply(state.params, z, jnp.full(len(z), 0.5), condition)


def given(*texts):
    return {name: jnp.asarray(rows) for name, rows in DATA.prompts(texts).items()}


def test_captions_are_read_word_by_word_and_padding_is_not(model, state):
    texts = ("a small red circle", "a small red square", "a large red circle left of a small blue cross")
    condition = given(*texts, "a small blue cross left of a large red circle")
    found = outputs(model, state, condition)
    same = outputs(model, state, jax.tree.map(lambda a: a[jnp.array([0, 0, 0, 0])], condition))
    np.testing.assert_allclose(found[0], same[0], atol=1e-5)
    first = lambda i: jax.tree.map(lambda a: a[i : i + 1], condition)
    alone = [outputs(model, state, first(i))[0] for i in range(4)]
    for i in range(4):
        for j in range(i):
            assert np.abs(alone[i] - alone[j]).max() > 1e-4
    # What stands in the padding has no effect, unless the encoder reads it as Stable Diffusion's does.
    other = {**first(0), "tokens": jnp.where(first(0)["mask"], first(0)["tokens"], 3)}
    np.testing.assert_allclose(outputs(model, state, other)[0], alone[0], atol=1e-6)
    seen = dataclasses.replace(model, text=dataclasses.replace(model.text, hide_padding=False))
    assert np.abs(outputs(seen, state, other)[0] - outputs(seen, state, first(0))[0]).max() > 1e-4


def test_a_dropped_caption_is_the_empty_prompt_encoded(model, state, batch):
    condition = model.condition(batch)
    empty = model.without(condition)
    np.testing.assert_array_equal(empty["tokens"], given(*[""] * 4)["tokens"])
    np.testing.assert_array_equal(empty["mask"], given(*[""] * 4)["mask"])
    some = model.without(condition, jnp.array([True, False, False, True]))
    np.testing.assert_array_equal(some["tokens"][1:3], condition["tokens"][1:3])
    context = model.with_context(state.params, empty)["context"]
    assert np.abs(context).min() > 0
    # Every example dropped: the loss is the loss of captions without words.
    always = dataclasses.replace(model, condition_dropout=1.0)
    loss = lambda m, b: m.loss(state.params, b, KEY, 0)[0]
    np.testing.assert_allclose(loss(always, batch), loss(always, {**batch, **given(*[""] * 4)}), rtol=1e-6)


def test_guidance_leads_away_from_the_negative_prompt(model, state):
    guided = dataclasses.replace(model, guidance=Guidance(scale=1.5))
    condition, negative = given("a small red circle"), given("a large blue cross")
    z, t = jax.random.normal(KEY, (1, 32, 32, 3)), jnp.asarray(0.5)
    estimate = lambda c: model.estimate(state.params, z, t[None], c).x0
    for away, options in ((given(""), {}), (negative, {"empty": negative})):
        found = guided.denoiser(state.params, condition, **options)(z, t, jnp.zeros_like(z)).x0
        expected = estimate(condition) + 1.5 * (estimate(condition) - estimate(away))
        np.testing.assert_allclose(found, expected, atol=1e-4)
    draw = jax.jit(lambda state, **c: guided.sample(state, KEY, 1, **c))
    one = draw(state, **condition)
    other = draw(state, **condition, negative_tokens=negative["tokens"], negative_mask=negative["mask"])
    assert np.abs(one - other).max() > 1e-4
    np.testing.assert_allclose(draw(state), draw(state, **given("")), atol=1e-6)
    with pytest.raises(UserError, match="guidance leads away from, and guidance.scale is 0"):
        model.sample(state, KEY, 1, **condition, negative_tokens=negative["tokens"])


def test_a_frozen_encoder_stays_to_the_last_bit(model, state, batch):
    frozen = dataclasses.replace(model, text=dataclasses.replace(model.text, frozen=True))
    start = frozen.init(KEY, batch)
    step = jax.jit(frozen.train_step)
    after = step(step(start, batch, KEY)[0], batch, KEY)[0]
    for tree in (after.params, after.eval_params):
        for name in TEXT_PARTS:
            jax.tree.map(np.testing.assert_array_equal, tree[name], start.params[name])
        assert np.abs(tree["patches"]["kernel"] - start.params["patches"]["kernel"]).max() > 1e-3
    # The encoder stands in the state once: no moments and no average.
    of_text = [name for name in flatten(after) if set(name.split("/")) & set(TEXT_PARTS)]
    assert of_text and all(name.startswith("params/") for name in of_text)
    # The network learns what it would learn beside an encoder that is trained; Adam moves each number by itself.
    one, beside = step(start, batch, KEY)[0], jax.jit(model.train_step)(model.init(KEY, batch), batch, KEY)[0]
    for name in set(start.params) - set(TEXT_PARTS):
        close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
        jax.tree.map(close, [one.params[name], one.ema_params[name]], [beside.params[name], beside.ema_params[name]])
    trained = jax.grad(lambda p: model.loss(p, batch, KEY, 0)[0])(state.params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(trained["text_stack"]["layer_1"]["mlp"]))


DISTILLED = ConsistencyDistillation(
    network=MODEL.network, condition_on=("text",), text=MODEL.text, optimizer=MODEL.optimizer, num_steps=2,
    target_decay=0.75,
)  # fmt: skip
REFLOWED = Reflow(
    network=MODEL.network, condition_on=("text",), text=MODEL.text, optimizer=MODEL.optimizer,
    teacher_sampler=Heun(num_steps=1, variable="time"),
)  # fmt: skip


@pytest.mark.parametrize("student", [DISTILLED, REFLOWED], ids=["distillation", "reflow"])
def test_students_and_teachers_share_a_frozen_encoder_and_learn_what_copies_of_it_would_give(student, state, batch):
    model = resolve(Experiment(model=student, data=DATA)).model
    frozen = dataclasses.replace(model, text=dataclasses.replace(model.text, frozen=True))
    taken = state.params
    start, beside = (jax.jit(m.init)(KEY, batch).replace(params=taken) for m in (frozen, model))
    of_text = [name for name in flatten(start) if set(name.split("/")) & set(TEXT_PARTS)]
    assert of_text and all(name.startswith("params/") for name in of_text)
    # The step before anything has moved has one loss and one update, whether teacher and target have encoders of their
    # own or the student's.
    after, metrics = jax.jit(frozen.train_step)(start, batch, KEY)
    other, expected = jax.jit(model.train_step)(beside, batch, KEY)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    for name in set(taken) - set(TEXT_PARTS):
        for tree, wanted in ((after.params, other.params), *zip(after.extra.values(), other.extra.values())):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tree[name], wanted[name])
    # The teacher reads captions by the encoder that the run started from, also where it lies in the parameters alone.
    evaluate = lambda m, s: jax.jit(m.evaluate)(s, batch, KEY)["loss"]
    whole = {name: {**taken, **copy} for name, copy in after.extra.items()}
    np.testing.assert_allclose(evaluate(frozen, after), evaluate(model, after.replace(extra=whole)), rtol=1e-5)


def test_the_features_before_the_last_block_and_at_the_end_token(model, state):
    condition = given("a small red circle")
    encoder = dataclasses.replace(model.text, skip_layers=1, pooled=True, stack=dataclasses.replace(STACK, causal=True))
    found = encoder.encode(state.params, condition["tokens"], condition["mask"])
    params = {name: part for name, part in state.params["text_stack"].items() if name != "layer_1"}
    shorter = dataclasses.replace(encoder, skip_layers=0, stack=dataclasses.replace(encoder.stack, num_layers=1))
    expected = shorter.encode({**state.params, "text_stack": params}, condition["tokens"], condition["mask"])
    np.testing.assert_allclose(found["context"], expected["context"], atol=1e-6)
    np.testing.assert_allclose(found["vector"], found["context"][:, 5], atol=1e-6)  # start, four words, end


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": ResidualMLP()}, "condition_on=context: ResidualMLP takes label, vector, image"),
        ({"condition_on": ("text", "context")}, "condition_on=text makes the context that the network attends to"),
        ({"text": CaptionEncoder()}, "a model that reads text needs data with captions.*choose --data=pairs"),
        (
            {"text": CaptionEncoder(vocab_size=9, sequence_length=4, end_token=1, skip_layers=2)},
            "model.text.skip_layers=2 leaves none of the 2 blocks",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(change, message, model, batch):
    changed = dataclasses.replace(model, **change)
    with pytest.raises(UserError, match=message):
        changed.check()
        changed.init(KEY, batch)
    with pytest.raises(UserError, match="a VDM has no place for an encoder of captions"):
        VDM(network=model.network, condition_on=("text",), text=model.text).check()
    with pytest.raises(UserError, match="condition_on=text, but the batch has only x"):
        model.condition({"x": batch["x"]})
