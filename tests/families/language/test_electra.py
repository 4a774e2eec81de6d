"""ELECTRA: what is replaced and labelled, counted, and its loss beside the paper's sums."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from genjax.families.language.bert import BERT
from genjax.families.language.electra import ELECTRA, ReplacedTokenDetection
from genjax.families.language.networks import bert_network
from genjax.model import GenerativeModel
from genjax.optimizers import Adam

MASK, SPECIAL = 11, (8, 9, 10)
NETWORK = bert_network(1, 8, 2, mlp_dim=16, max_length=24, init_std=0.5, dropout=0.0, attention_dropout=0.0)
MODEL = ELECTRA(
    vocab_size=12,
    sequence_length=6,
    mask_token=MASK,
    special_tokens=SPECIAL,
    network=NETWORK,
    generator=dataclasses.replace(NETWORK, width=4, mlp_dim=8),
    task=ReplacedTokenDetection(mask_rate=0.3),
    num_types=0,
    num_sampling_rounds=2,
    optimizer=Adam(learning_rate=1e-2),
)


@pytest.fixture(scope="module")
def batch():
    tokens = jax.random.randint(jax.random.key(3), (64, 20), 0, 8).at[:, 0].set(8)
    mask = jnp.arange(20)[None] < jnp.where(jnp.arange(64) % 2, 20, 11)[:, None]
    return {"tokens": jnp.where(mask, tokens, 9), "mask": mask}


@pytest.fixture(scope="module")
def state(batch):
    assert isinstance(MODEL, GenerativeModel)
    return jax.jit(MODEL.init)(jax.random.key(0), batch)


@pytest.fixture(scope="module")
def outputs(state, batch):
    @jax.jit
    def run(params):
        prepared, _ = MODEL.prepared(batch, jax.random.key(5))
        return prepared, MODEL.module().apply({"params": params}, prepared)

    return jax.tree.map(
        lambda a: a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else np.asarray(a), run(state.params)
    )


def test_masked_places_alone_are_drawn_and_what_is_drawn_right_is_not_replaced(outputs, batch):
    prepared, out = outputs
    before, after = np.asarray(batch["tokens"]), out["tokens"]
    chosen = np.zeros(before.shape, bool)
    np.put_along_axis(chosen, prepared["places"], prepared["weights"] > 0, axis=1)
    counts = np.where(np.arange(64) % 2, round(0.3 * 19), round(0.3 * 10))
    np.testing.assert_array_equal(chosen.sum(1), counts)
    assert (prepared["tokens"][chosen] == MASK).all()
    np.testing.assert_array_equal(after[~chosen], before[~chosen])
    np.testing.assert_array_equal(out["labels"], after != before)
    # Both happen: the generator, which has learnt nothing, also draws the token that was there.
    right = 1.0 - out["labels"][chosen].mean()
    probability = np.exp(-_masked_nll(prepared, out))[prepared["weights"] > 0]
    assert abs(right - probability.mean()) < 4 * np.sqrt(0.25 / chosen.sum()) and 0 < right < 1


def test_the_area_under_the_curve_is_that_of_each_text(outputs, batch):
    prepared, out = outputs
    found = MODEL.task.measures(out, prepared)["detection_auc"].value()
    for row, real in enumerate(np.asarray(batch["mask"])):
        labels = out["labels"][row, real]
        wanted = roc_auc_score(labels, out["replaced"][row, real]) if 0 < labels.sum() < labels.size else np.nan
        np.testing.assert_allclose(found[row], wanted, atol=1e-5)


def _masked_nll(prepared, out):
    logits = out["logits"].astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, prepared["targets"][:, :, None], axis=2)[:, :, 0]


def test_the_loss_is_that_of_the_paper(outputs, batch):
    prepared, out = outputs
    loss, metrics = MODEL.task.loss(out, prepared)
    weights, real = prepared["weights"], np.asarray(batch["mask"], np.float64)
    masked = (_masked_nll(prepared, out) * weights).sum() / weights.size
    score, labels = out["replaced"].astype(np.float64), out["labels"]
    detected = np.where(labels > 0, np.log1p(np.exp(-score)), np.log1p(np.exp(score)))
    np.testing.assert_allclose(loss, masked + 50.0 * (detected * real).sum() / real.size, rtol=1e-5)
    np.testing.assert_allclose(metrics["detection_nll"].value(), (detected * real).sum() / real.sum(), rtol=1e-5)
    values = MODEL.task.measures(out, prepared)
    np.testing.assert_allclose(values["replaced_share"].value(), labels.sum(1) / real.sum(1), rtol=1e-6)


def test_the_generator_learns_from_its_own_loss_alone(state, batch):
    @jax.jit
    def gradient(params):
        def detection(params):
            prepared, _ = MODEL.prepared(batch, jax.random.key(5))
            return MODEL.task.measures(MODEL.module().apply({"params": params}, prepared), prepared)[
                "detection_nll"
            ].numerator.sum()

        return jax.grad(detection)(params)

    largest = {
        name: max(float(jnp.abs(a).max()) for a in jax.tree.leaves(g)) for name, g in gradient(state.params).items()
    }
    assert largest["generator"] == largest["generator_input"] == 0.0
    assert min(largest["stack"], largest["detection"], largest["embedding"]) > 0.0


def test_tasks_start_from_the_discriminator_and_wrong_ones_are_refused(state, batch):
    plain = BERT(vocab_size=12, network=NETWORK, num_types=0, optimizer=MODEL.optimizer)
    shapes = jax.eval_shape(plain.init, jax.random.key(0), batch).params
    for name in ("embedding", "stack"):
        jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), shapes[name], state.params[name])
    with pytest.raises(ValueError, match="it is the model ELECTRA that has them"):
        dataclasses.replace(plain, task=MODEL.task, mask_token=11).init(jax.random.key(0), batch)
    with pytest.raises(ValueError, match="is replaced_token_detection"):
        dataclasses.replace(MODEL, task=plain.task)
