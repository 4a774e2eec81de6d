"""A step of policy optimisation with small networks: what is drawn, what is scored, and what may not matter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from genjax.batch import DEVICE_AXIS
from genjax.errors import UserError
from genjax.families.alignment.grpo import GRPO, GSPO
from genjax.families.alignment.ppo import CRITIC, PPO
from genjax.families.alignment.rewards import Length
from genjax.families.alignment.rloo import RLOO
from genjax.families.alignment.rollouts import answer_log_probs, roll_out
from genjax.families.language.encoder_decoder import EncoderDecoder
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import translation_network
from genjax.model import TrainState
from genjax.nn.lora import LoRA
from genjax.nn.transformer import Transformer
from genjax.optimizers import SGD, Adam

KEY = jax.random.key(0)
END, SIZE = 1, 5
NETWORK = Transformer(
    num_layers=1, width=8, num_heads=2, max_length=16, dropout=0.5, attention_dropout=0.5, init_std=0.5
)
POLICY = GPT(vocab_size=6, end_token=END, start_token=0, network=NETWORK, optimizer=SGD(learning_rate=0.1))
SIDE = translation_network(1, 8, 2, max_length=16, init_std=0.5)
TRANSLATOR = EncoderDecoder(
    vocab_size=6, end_token=END, start_token=0, encoder=SIDE, decoder=SIDE, sequence_length=SIZE,
    optimizer=SGD(learning_rate=0.1),
)  # fmt: skip
LENGTHS = np.array([4, 1, 2, 3, 4, 2, 1, 3])
PROMPTS = np.random.default_rng(0).integers(2, 6, size=(8, 4)).astype(np.int32)
MASK = np.arange(4)[None] < LENGTHS[:, None]
BATCH = {"prompt": jnp.asarray(PROMPTS), "prompt_mask": jnp.asarray(MASK)}
SOURCES = {"source": BATCH["prompt"], "source_mask": BATCH["prompt_mask"]}


def model(kind=RLOO, **fields):
    fields = {
        "policy": POLICY,
        "num_rollouts": 4,
        "max_new_tokens": SIZE,
        "reward": Length(longest=4, buffer=3),
        **fields,
    }
    return kind(**fields)


#: Shared, so that it is compiled once.
LEARNS = model(PPO, num_epochs=2, value_optimizer=SGD(learning_rate=0.1))


def batch_of(method):
    return BATCH if isinstance(method.policy, GPT) else SOURCES


@functools.cache
def compiled(function):
    return jax.jit(function)


@functools.cache
def first(method):
    return jax.jit(method.init)(KEY, batch_of(method))


@functools.cache
def step(method, key=KEY):
    return compiled(method.train_step)(first(method), batch_of(method), key)


@functools.cache
def experience_of(method):
    return jax.jit(method.experience)(first(method), batch_of(method), KEY)[0]


def close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), **tolerance)


# ----------------------------------------------------------------------------------------------------------------------
# Rollouts


@pytest.mark.parametrize("policy, batch", [(POLICY, BATCH), (TRANSLATOR, SOURCES)], ids=["gpt", "encoder_decoder"])
def test_answers_have_the_log_probs_that_they_were_drawn_with(policy, batch):
    # OpenRLHF #217, trl #469 and #6800, NeMo-Aligner #68: left padding without positions; trl #4159: the temperature
    # was missing in the ratio; prime-rl PR 1525: log-probabilities one place off.
    policy = dataclasses.replace(policy, sampling=decoding.Sampling(temperature=0.7))
    params = first(model(policy=policy)).params

    def both(params):
        state = TrainState(step=jnp.zeros((), jnp.int32), params=params)
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(KEY, i // 2), i % 2))(jnp.arange(16))
        prompts, mask = (jnp.repeat(a, 2, axis=0) for a in (BATCH["prompt"], BATCH["prompt_mask"]))
        options = {"sampling": policy.sampling, "end_token": END}
        if isinstance(policy, GPT):
            decoder, options["lengths"] = policy.token_decoder(state), mask.sum(1)
        else:
            decoder, prompts = policy.answer_decoder(state, prompts, mask), jnp.zeros((16, 1), jnp.int32)
        out = decoding.generate(decoder, keys, prompts, SIZE, **options)
        rollouts = roll_out(policy, params, batch, KEY, 2, SIZE)
        return out, rollouts, answer_log_probs(policy, params, rollouts.rows, rollouts.prompt_lengths, SIZE)

    out, rollouts, found = jax.jit(both)(params)
    np.testing.assert_array_equal(rollouts.tokens, out.tokens)
    np.testing.assert_array_equal(rollouts.ended, (np.asarray(out.tokens) == END).any(1))
    assert len(np.unique(np.asarray(out.tokens), axis=0)) > 8
    np.testing.assert_allclose(np.where(rollouts.mask, found, 0.0), out.log_probs, atol=1e-5)


PLACES = {"learned": {}, "rotary": {"window": 3, "num_kv_heads": 1, "scan_layers": True}, "alibi": {}, "t5": {}}


@pytest.mark.parametrize("positions", PLACES)
def test_a_prompt_that_is_read_once_gives_its_answers_what_rows_of_their_own_give(positions):
    network = dataclasses.replace(NETWORK, num_layers=2, positions=positions, **PLACES[positions])
    policy = dataclasses.replace(POLICY, network=network)
    draws = np.random.default_rng(1).integers(2, 6, (8, SIZE))
    prompts, lengths = decoding.repeat_rows((BATCH["prompt"][:4], jnp.asarray(LENGTHS[:4])), 2)
    rows = decoding.joined(prompts, lengths, jnp.asarray(draws), jnp.asarray([5, 1, 2, 3, 4, 5, 5, 2]))
    params = jax.jit(policy.init)(KEY, {"tokens": rows["tokens"]}).params
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(8, SIZE))) * decoding.of_answers(
        rows["loss_mask"][:, 1:], lengths, SIZE
    )

    def scored(params, group):
        return (answer_log_probs(policy, params, rows, lengths, SIZE, group) * weights).sum(1)

    found, expected = (
        jax.jit(lambda p: (scored(p, group), jax.grad(lambda p: scored(p, group).sum())(p)))(params)  # noqa: B023
        for group in (2, 1)
    )
    close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_source_that_is_read_once_gives_its_answers_what_rows_of_their_own_give():
    params, rows = first(model(policy=TRANSLATOR)).params, experience_of(model(policy=TRANSLATOR))
    arguments = (rows["rows"], rows["prompt_lengths"], SIZE)
    score = lambda group: jax.jit(lambda p: answer_log_probs(TRANSLATOR, p, *arguments, group))(params)
    close(score(4), score(1), atol=1e-5)


def test_a_hole_between_prompt_and_answer_changes_log_probs():
    answers, lengths = jnp.full((8, 2), 3), jnp.full((8,), 2)
    rows = decoding.joined(BATCH["prompt"], jnp.asarray(LENGTHS), answers, lengths)
    np.testing.assert_array_equal(rows["loss_mask"].sum(1), 2)
    np.testing.assert_array_equal(rows["mask"].sum(1), LENGTHS + 2)
    hole = {"tokens": jnp.concatenate([BATCH["prompt"], answers], 1)}
    score = compiled(POLICY.token_log_probs)
    joined = decoding.of_answers(score(first(LEARNS).params, rows), jnp.asarray(LENGTHS), 2)
    apart = score(first(LEARNS).params, hole)[:, -2:]
    full = LENGTHS == 4
    np.testing.assert_allclose(joined[full], apart[full], atol=1e-5)
    assert np.abs(joined - apart)[~full].mean() > 0.05


def test_padding_that_is_the_end_token_or_anything_else_changes_nothing():
    # trl #1623, PR 3091, alignment-handbook #127: pad == eos; and nothing under a mask matters.
    for filler in (END, 5):
        prompt = jnp.where(BATCH["prompt_mask"], BATCH["prompt"], filler)
        found = compiled(LEARNS.train_step)(first(LEARNS), {**BATCH, "prompt": prompt}, KEY)
        close(found, step(LEARNS), atol=0, rtol=0)


def test_nothing_behind_the_end_of_an_answer_matters():
    experience = dict(experience_of(LEARNS))
    mask, rows = experience["mask"], experience["rows"]
    experience["weights"] = LEARNS.weights(mask)
    critic = first(LEARNS).extra[CRITIC]

    @jax.jit
    def gradients(params, experience):
        of_policy = jax.value_and_grad(lambda p: LEARNS.loss(p, experience, None)[0])(params)
        return of_policy, jax.value_and_grad(lambda c: LEARNS.value_loss(c, params, experience)[0])(critic)

    expected = gradients(first(LEARNS).params, experience)
    assert not mask.all() and not rows["mask"].all()
    for name in ("old_log_probs", "reference_log_probs", "advantages", "old_values", "returns"):
        experience[name] = jnp.where(mask, experience[name], 50.0)
    experience["rows"] = {**rows, "tokens": jnp.where(rows["mask"], rows["tokens"], 5)}
    close(gradients(first(LEARNS).params, experience), expected, atol=1e-7)


# ----------------------------------------------------------------------------------------------------------------------
# Steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ratio_is_one_and_the_kl_zero_at_the_first_epoch_with_dropout_in_the_network(dtype):
    # trl #454: ratio not 1 in the first epoch; trl #744: not 0 at the first step, by dropout.
    policy = dataclasses.replace(POLICY, compute_dtype=dtype, optimizer=SGD(learning_rate=0.0))
    method = model(policy=policy, num_epochs=2)
    other = first(method).replace(params=jax.tree.map(lambda a: a + 0.1, first(method).params))
    after, metrics = compiled(method.train_step)(other, BATCH, KEY)
    assert abs(float(metrics["kl"])) <= 1e-5
    assert abs(metrics["approximate_kl"].value()) <= 1e-5 and metrics["clip_fraction"].value() == 0.0
    # The reference is a copy of what the run starts from, which came after `init`.
    close(after.extra["reference"], other.params, atol=0)


def test_values_begin_with_the_network_that_the_run_starts_from():
    other = first(LEARNS).replace(params=jax.tree.map(lambda a: a + 0.1, first(LEARNS).params))
    close(LEARNS.started(other).extra[CRITIC]["trunk"], other.params, atol=0)
    later = LEARNS.started(other.replace(step=other.step + 1))
    close(later.extra[CRITIC], other.extra[CRITIC], atol=0)


def test_microbatches_and_devices_give_the_step_of_the_whole_batch():
    # trl #3021 and #3187, open-instruct PR 1137: normalisation under accumulation.  Groups never lie on two devices.
    expected, metrics = step(LEARNS)
    optimizer = SGD(learning_rate=0.1, accumulation_steps=4)
    parts = dataclasses.replace(LEARNS, policy=dataclasses.replace(POLICY, optimizer=optimizer))
    batch = {name: a.reshape(2, 4, *a.shape[1:]) for name, a in BATCH.items()}
    state, found = jax.pmap(parts.train_step, DEVICE_AXIS, in_axes=(None, 0, None))(first(LEARNS), batch, KEY)
    close(jax.tree.map(lambda a: a[0], state), expected, atol=2e-6)
    close(jax.tree.map(lambda a: a[0], found), metrics, atol=2e-5)


def test_low_rank_updates_learn_and_the_network_and_the_reference_do_not():
    policy = dataclasses.replace(POLICY, lora=LoRA(rank=2), optimizer=SGD(learning_rate=0.1, ema_decay=0.5))
    fields = {
        "scale": "batch",
        "normalization": "tokens",
        "kl": "token_k3",
        "num_minibatches": 2,
        "mask_truncated": True,
    }
    method = model(GRPO, policy=policy, **fields)
    before, (after, _) = first(method), step(method)
    trained = policy.trained_params(before.params)
    assert set(trained) == {"lora"}
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (trained, policy.trained_params(after.params)))))
    close({**after.params, "lora": 0}, {**before.params, "lora": 0}, atol=0)
    close(after.extra["reference"], trained, atol=0)
    # The moving average is of the updates alone; the decay of the first step is .1.
    learned = policy.trained_params(after.params)
    close(after.ema_params, jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, trained, learned), atol=1e-7)
    # A value network has updates of its own, of the network that both share.
    assert set(jax.eval_shape(model(PPO, policy=policy).init, KEY, BATCH).extra[CRITIC]["trunk"]) == {"lora"}


def test_an_encoder_decoder_with_a_frozen_encoder_learns_short_answers():
    policy = dataclasses.replace(TRANSLATOR, optimizer=Adam(learning_rate=0.03), frozen=("encoder",))
    method = model(policy=policy, beta=0.0, num_rollouts=8)
    state, rewards = first(method), []
    for i in range(15):
        state, metrics = compiled(method.train_step)(state, SOURCES, jax.random.key(i))
        rewards.append(float(metrics["reward"]))
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2
    close(state.params["encoder"], first(method).params["encoder"], atol=0)


def test_a_value_network_of_an_encoder_decoder_is_a_copy_of_both_its_stacks():
    method = model(PPO, policy=TRANSLATOR)
    state, metrics = jax.eval_shape(method.train_step, jax.eval_shape(method.init, KEY, SOURCES), SOURCES, KEY)
    assert {"encoder", "decoder"} <= set(state.extra[CRITIC]["trunk"]) and "value_loss" in metrics


def test_dynamic_sampling_learns_from_the_first_prompt_of_a_block_whose_answers_differ():
    method = model(GRPO, oversampling=3)
    rewards = np.array([[1, 1], [0, 1], [1, 0], [0, 0], [1, 1], [2, 2], [0, 0], [0, 0], [3, 1]])
    np.testing.assert_array_equal(method.kept_prompts(rewards), [1, 3, 8])
    with pytest.raises(UserError, match="no multiple of model.oversampling=3"):
        jax.eval_shape(method.train_step, first(method), BATCH, KEY)


# ----------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    "kind, fields, words",
    [
        (RLOO, {"beta": -0.1}, "model.beta=-0.1 must not be negative"),
        (GRPO, {"num_rollouts": 1}, "compares the answers to a prompt and needs at least 2"),
        (RLOO, {"num_minibatches": 0}, "model.num_minibatches=0 must be at least 1"),
        (GSPO, {"clip_high": 0.0}, "model.clip_high=0.0 must be positive"),
        (PPO, {"trace_decay": 1.5}, "model.trace_decay=1.5 must lie between 0 and 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, fields, words):
    with pytest.raises(UserError, match=words):
        model(kind, **fields)


@pytest.mark.parametrize(
    "sampling, words",
    [({"temperature": 0.0}, "draws the likeliest answer always"), ({"top_p": 0.9}, "by the mass that was cut off")],
)
def test_answers_that_are_not_drawn_from_the_policy_are_refused(sampling, words):
    # trl #6789: log-probabilities of top-p and top-k over another support.
    method = model(policy=dataclasses.replace(POLICY, sampling=decoding.Sampling(**sampling)))
    with pytest.raises(UserError, match=words):
        method.train_step(None, BATCH, KEY)


def test_a_prompt_as_long_as_the_context_is_refused():
    with pytest.raises(UserError, match="prompts of 13 tokens leave no room for answers of 5"):
        model().init(KEY, {"prompt": jnp.zeros((2, 13), jnp.int32)})


def test_a_start_without_a_policy_is_refused():
    with pytest.raises(UserError, match="RLOO needs a trained policy: give --training.init_from"):
        model().check_start(None)
    model().check_start(POLICY)


def test_a_reward_that_is_no_number_names_its_prompt():
    class Broken(Length):
        def __call__(self, part, rollouts, batch):
            return jnp.where(rollouts.prompts[:, 0] == PROMPTS[3, 0], jnp.inf, 0.0)

    first_bad = int(np.flatnonzero(PROMPTS[:, 0] == PROMPTS[3, 0])[0])
    tokens = " ".join(map(str, PROMPTS[first_bad][MASK[first_bad]]))
    words = f"prompt {first_bad} of the batch, whose tokens are {tokens}, is inf"
    with pytest.raises(UserError, match=words):
        model(reward=Broken()).diagnose(first(LEARNS), BATCH, KEY)


def test_minibatches_must_divide_the_answers():
    with pytest.raises(UserError, match="the 32 answers of a step on a device cannot be divided"):
        jax.eval_shape(model(num_minibatches=5).train_step, first(LEARNS), BATCH, KEY)
