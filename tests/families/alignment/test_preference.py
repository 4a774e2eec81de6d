"""Steps of preference optimisation: equal at step 0, independent of padding, microbatches and devices."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config
from genjax.batch import DEVICE_AXIS
from genjax.families.alignment.preference import PreferenceOptimization, chosen_and_rejected, mismatched
from genjax.families.alignment.preference_losses import DPO, IPO, KTO, ORPO, SimPO
from genjax.families.alignment.reference import answer_log_probs, reference_params
from genjax.families.language.encoder_decoder import EncoderDecoder
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import translation_network
from genjax.nn.lora import LoRA
from genjax.nn.transformer import Transformer
from genjax.optimizers import SGD

KEY = jax.random.key(0)
TINY = Transformer(num_layers=1, width=8, num_heads=2, mlp_dim=16, max_length=16, init_std=0.5, dropout=0.3)
NETWORK = GPT(vocab_size=7, sequence_length=9, end_token=6, network=TINY, optimizer=SGD(learning_rate=0.1))
POLICY = PreferenceOptimization(policy=NETWORK, untrained_policy=True)
STACK = translation_network(1, 8, 2, mlp_dim=16, max_length=16, init_std=0.5)
ANSWERER = PreferenceOptimization(
    policy=EncoderDecoder(
        vocab_size=7, sequence_length=9, end_token=6, encoder=STACK, decoder=STACK, optimizer=SGD(learning_rate=0.1)
    ),
    untrained_policy=True,
)
METHODS = {"dpo": DPO(beta=0.5), "kto": KTO(beta=0.5), "orpo": ORPO(), "ipo": IPO(), "simpo": SimPO()}


def rows(rng, prompts):
    """Rows of prompts with answers of 1 to 4 tokens and their ends."""
    answers = [np.append(rng.integers(1, 6, rng.integers(1, 5)), 6) for _ in prompts]
    tokens = np.full((len(prompts), 10), 6, np.int32)
    mask, loss_mask = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
    for i, (prompt, answer) in enumerate(zip(prompts, answers)):
        size = len(prompt) + len(answer)
        tokens[i, :size] = np.concatenate([prompt, answer])
        mask[i, :size] = True
        loss_mask[i, len(prompt) : size] = True
    return {"tokens": tokens, "mask": mask, "loss_mask": loss_mask}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 6, rng.integers(1, 5)) for _ in range(8)]
    other = rows(rng, prompts)
    arrays = {
        **rows(rng, prompts),
        "rejected": other["tokens"],
        "rejected_mask": other["mask"],
        "rejected_loss_mask": other["loss_mask"],
    }
    return {name: jnp.asarray(a) for name, a in arrays.items()}


@pytest.fixture(scope="module")
def state(batch):
    return jax.jit(dataclasses.replace(POLICY, method=METHODS["kto"]).init)(KEY, batch)


def with_sources(batch):
    chosen, rejected = chosen_and_rejected(batch)
    source = jnp.where(chosen["loss_mask"], 0, chosen["tokens"])
    return {**batch, "source": source, "source_mask": chosen["mask"] & ~chosen["loss_mask"]}


@pytest.mark.parametrize(
    ("model", "dtype"),
    [(POLICY, "float32"), (POLICY, "bfloat16"), (ANSWERER, "float32")],
    ids=["gpt", "bfloat16", "encoder_decoder"],
)
def test_policy_and_reference_are_equal_at_step_0_with_dropout_on(model, dtype, batch):
    # eric-mitchell/direct-preference-optimization 34, trl 744.
    batch = with_sources(batch) if model is ANSWERER else batch
    policy = dataclasses.replace(model.policy, compute_dtype=dtype)
    model = dataclasses.replace(model, method=DPO(beta=0.5), policy=policy)
    first = jax.jit(model.init)(KEY, batch)
    step = jax.jit(model.train_step)
    new, metrics = step(first, batch, KEY)
    np.testing.assert_allclose(metrics["loss"], np.log(2.0), rtol=1e-6)
    assert metrics["margin"] == 0.0 and metrics["chosen_reward"] == 0.0 and metrics["accuracy"] == 0.5
    # The gradient is -beta / 2 times that of the difference of log-probabilities.
    score = lambda params: [answer_log_probs(policy, params, r)[0] for r in chosen_and_rejected(batch)]
    difference = lambda params: (lambda a, b: 0.25 * (a - b).mean())(*score(params))
    expected = jax.tree.map(lambda p, g: p + 0.1 * g, first.params, jax.jit(jax.grad(difference))(first.params))
    tolerance = 1e-6 if dtype == "float32" else 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), new.params, expected)
    _, later = step(new, batch, KEY)
    assert later["margin"] > 0


def moved(state):
    """A state whose policy has left its reference."""
    noise = lambda a: a + 0.05 * jax.random.normal(jax.random.key(a.size), a.shape)
    return state.replace(params=jax.tree.map(noise, state.params), step=state.step + 1)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_steps_depend_neither_on_microbatches_nor_on_devices_nor_on_padding(name, batch, state):
    def step(accumulation_steps):
        optimizer = SGD(learning_rate=0.1, accumulation_steps=accumulation_steps)
        policy = dataclasses.replace(NETWORK, optimizer=optimizer)
        return dataclasses.replace(POLICY, method=METHODS[name], policy=policy).train_step

    here, one = moved(state), jax.jit(step(1))
    whole, metrics = one(here, batch, KEY)
    parts = jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), batch)
    devices = jax.devices()[:2]
    on_devices = jax.pmap(step(2), DEVICE_AXIS, in_axes=(None, 0, None), devices=devices)(here, parts, KEY)
    noise = jax.random.randint(KEY, batch["tokens"].shape, 0, 7)
    # What stands behind an answer is not read, whether it is the end token, as here, or any other.
    masked = {**batch, "tokens": jnp.where(batch["mask"], batch["tokens"], noise)}
    masked["rejected"] = jnp.where(batch["rejected_mask"], batch["rejected"], noise)
    for new, other in (
        jax.jit(step(4))(here, batch, KEY),
        jax.tree.map(lambda a: a[0], on_devices),
        one(here, masked, KEY),
    ):
        np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=1e-5)
        np.testing.assert_allclose(other["margin"], metrics["margin"], atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), new.params, whole.params)


def test_each_method_weighs_answers_by_their_own_lengths_whatever_the_row(batch, state):
    # ms-swift PR 10167: the method that was asked for was ignored; PR 9925: IPO divided by the length of the row.
    here = moved(state)
    wide = {name: jnp.pad(a, ((0, 0), (0, 3))) for name, a in batch.items()}
    score = jax.jit(lambda params, rows: answer_log_probs(NETWORK, params, rows))
    ours, reference = here.params, reference_params(here)[0]
    (chosen, length), (rejected, other_length) = (score(ours, rows) for rows in chosen_and_rejected(batch))
    before = [score(reference, rows)[0] for rows in chosen_and_rejected(batch)]
    means = [(chosen - before[0]) / length, (rejected - before[1]) / other_length]
    expected = {
        "ipo": (means[0] - means[1] - 1 / (2 * METHODS["ipo"].beta)) ** 2,
        "dpo": np.log1p(np.exp(-0.5 * (chosen - before[0] - rejected + before[1]))),
    }
    for name, values in expected.items():
        found = jax.jit(dataclasses.replace(POLICY, method=METHODS[name]).evaluate)(here, wide, KEY)
        np.testing.assert_allclose(found["loss"], values, rtol=2e-4)
    assert len(set(map(int, length))) > 1 and np.abs(expected["ipo"] - expected["dpo"]).min() > 1e-3


def test_mismatched_rows_are_prompts_with_the_answers_of_the_next(batch):
    # trl 1911, PR 1380, PR 2153: a drift of matched pairs, of one or two examples, or that depends on the batch's parts
    # is no estimate of the divergence.
    chosen, _ = chosen_and_rejected(batch)
    partner = (jnp.arange(8) + 1) % 8
    found = jax.tree.map(np.asarray, mismatched(chosen, partner))
    for i in range(8):
        rows = {name: np.asarray(a) for name, a in chosen.items()}
        prompt = rows["tokens"][i][rows["mask"][i] & ~rows["loss_mask"][i]]
        answer = rows["tokens"][partner[i]][rows["loss_mask"][partner[i]]]
        expected = np.concatenate([prompt, answer])[:10]
        assert (found["tokens"][i][found["mask"][i]] == expected).all()
        assert (
            found["loss_mask"][i].sum() == len(expected) - len(prompt)
            and not found["loss_mask"][i][: len(prompt)].any()
        )


def test_the_drift_of_kto_is_the_mean_over_mismatched_answers_and_padding_is_nobodys_partner(batch, state):
    model, here = dataclasses.replace(POLICY, method=METHODS["kto"]), moved(state)
    evaluate = jax.jit(model.evaluate)
    reference = reference_params(here)[0]
    partner = (jnp.arange(8) + 1) % 8
    score = jax.jit(lambda params, rows: answer_log_probs(NETWORK, params, rows)[0])
    others = [mismatched(rows, partner) for rows in chosen_and_rejected(batch)]
    drift = np.mean([np.mean(score(here.params, rows) - score(reference, rows)) for rows in others])
    own = [score(here.params, rows) - score(reference, rows) for rows in chosen_and_rejected(batch)]
    sigma = lambda x: 1 / (1 + np.exp(-np.asarray(x)))
    z = max(drift, 0.0)
    values = evaluate(here, batch, KEY)
    np.testing.assert_allclose(
        values["loss"], 0.5 * (1 - sigma(0.5 * (own[0] - z)) + 1 - sigma(0.5 * (z - own[1]))), rtol=1e-5
    )
    padded = {name: jnp.concatenate([a, a[-1:], a[-1:], a[-1:]]) for name, a in batch.items()}
    padded["padding"] = jnp.arange(11) >= 8
    again = jax.jit(model.evaluate)(here, padded, KEY)
    np.testing.assert_allclose(again["loss"][:8], values["loss"], rtol=1e-5)


def test_the_drift_of_kto_has_one_expectation_in_batches_of_every_size(batch, state):
    # trl 1911: the estimate depended on how many examples a batch has.
    model, here = dataclasses.replace(POLICY, method=METHODS["kto"]), moved(state)
    few, reference = {name: a[:4] for name, a in batch.items()}, reference_params(here)[0]
    parts = lambda rows, i: (
        np.asarray(rows["tokens"])[i][np.asarray(rows["mask"])[i] & (np.asarray(rows["loss_mask"])[i] == is_answer)]
        for is_answer in (False, True)
    )
    score = jax.jit(lambda params, rows: answer_log_probs(NETWORK, params, rows)[0])
    # Every prompt with every answer to another prompt, written out.
    written = {"tokens": np.zeros((24, 10), np.int32), "mask": np.zeros((24, 10), bool)}
    written["loss_mask"] = written["mask"].copy()
    mismatches = [(rows, i, j) for rows in chosen_and_rejected(few) for i, j in itertools.permutations(range(4), 2)]
    for row, (rows, i, j) in enumerate(mismatches):
        (prompt, _), (_, answer) = parts(rows, i), parts(rows, j)
        size = len(prompt) + len(answer)
        written["tokens"][row, :size] = np.concatenate([prompt, answer])
        written["mask"][row, :size] = True
        written["loss_mask"][row, len(prompt) : size] = True
    expected = float((score(here.params, written) - score(reference, written)).mean())

    @jax.jit
    @jax.vmap
    def drift(index):
        own = model._with_mismatched({name: a[index] for name, a in few.items()})
        return model._scores(here.params, reference, own)["drift"].mean()

    for size in (2, 3, 4):
        found = np.asarray(drift(jnp.asarray(list(itertools.permutations(range(4), size)))))
        np.testing.assert_allclose(found.mean(), expected, atol=1e-5)
        # As it is held at 0 from below, it lies above the larger of 0 and this.
        assert np.maximum(found, 0.0).mean() >= max(expected, 0.0) - 1e-5 and found.std() > 1e-2


@pytest.mark.parametrize("change", [{"lora": LoRA(rank=2)}, {"frozen": ("embedding",)}], ids=["lora", "frozen"])
def test_low_rank_updates_and_frozen_parts_keep_a_copy_of_what_is_trained_alone(change, batch):
    policy = dataclasses.replace(NETWORK, **change)
    model = dataclasses.replace(POLICY, method=DPO(beta=0.5), policy=policy)
    start = jax.jit(model.init)(KEY, batch)
    step = jax.jit(model.train_step)
    new, metrics = step(start, batch, KEY)
    new, later = step(new, batch, KEY)
    np.testing.assert_allclose(metrics["loss"], np.log(2.0), rtol=1e-6)
    kept = set(new.extra["reference"])
    assert kept == ({"lora"} if "lora" in change else {"stack"})
    jax.tree.map(np.testing.assert_array_equal, new.params["embedding"], start.params["embedding"])
    jax.tree.map(np.testing.assert_array_equal, reference_params(new)[0], start.params)
    assert later["margin"] > 0


def test_methods_without_a_reference_keep_none(batch):
    for name in ("orpo", "simpo"):
        model = dataclasses.replace(POLICY, method=METHODS[name], untrained_policy=False)
        model.check_start(None)
        assert jax.eval_shape(model.init, KEY, batch).extra == {}


def test_bad_settings_are_one_clear_sentence(batch):
    start = dataclasses.replace(POLICY, untrained_policy=False)
    with pytest.raises(ValueError, match="DPO keeps near the policy that it starts from: give --training.init_from"):
        start.check_start(None)
    start.check_start(GPT())
    one = jax.tree.map(lambda a: a[:1], batch)
    with pytest.raises(ValueError, match="a batch of 1 has none; give data.batch_size"):
        dataclasses.replace(POLICY, method=KTO()).init(KEY, one)
    with pytest.raises(ValueError, match="need pairs of answers, chosen and rejected"):
        POLICY.init(KEY, {"tokens": batch["tokens"]})
    for method, message in (
        (lambda: DPO(beta=0.0), "model.method.beta=0.0 must be positive"),
        (lambda: KTO(beta=-1.0), "model.method.beta=-1.0 must be positive"),
        (lambda: DPO(label_smoothing=0.5), r"label_smoothing=0.5 must lie in \[0, 0.5\)"),
        (lambda: SimPO(gamma=-0.1), "model.method.gamma=-0.1 must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            method()


@pytest.mark.parametrize(
    ("start", "names"),
    [
        ("gpt_reviews", "dpo_sentiment kto_sentiment simpo_sentiment orpo_sentiment rl_sentiment ppo_sentiment"),
        ("gpt_sums", "rl_sums"),
    ],
)
def test_experiments_have_the_network_of_the_run_that_they_start_from(start, names):
    network_of = lambda model: dataclasses.replace(getattr(model, "policy", model).network, dropout=0.0)
    network = network_of(config.find_experiment(start).build().model)
    for name in names.split():
        assert network_of(config.find_experiment(name).build().model) == network, name
