"""The contrast of DPR against sums that are written out, and with accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.families.language.networks import bert_network
from genjax.families.retrieval.dpr import DPR
from genjax.gradients import value_and_gradient
from genjax.optimizers import SGD

STACK = bert_network(1, 8, 2, max_length=8, dropout=0.0, attention_dropout=0.0, init_std=0.5)
MODEL = DPR(vocab_size=6, network=STACK, optimizer=SGD(), temperature=2.0)
B, M, L = 4, 3, 5
RNG = np.random.default_rng(0)


def batch_of() -> dict[str, jax.Array]:
    documents = RNG.integers(0, 6, (B, M, L))
    lengths = RNG.integers(1, L + 1, (B, M))
    # Another question's document has the text of question 0's right one; what the mask hides differs.
    documents[2, 0], lengths[2, 0] = documents[0, 1], lengths[0, 1]
    mask = np.arange(L) < lengths[:, :, None]
    documents[2, 0] = np.where(mask[2, 0], documents[2, 0], 5 - documents[2, 0])
    # A question has one document less, and one has no right document.
    mask[3, 2] = False
    return {
        "source": jnp.asarray(RNG.integers(0, 6, (B, 4)), jnp.int32),
        "source_mask": jnp.asarray(np.arange(4) < np.array([[4], [2], [3], [1]])),
        "documents": jnp.asarray(documents, jnp.int32),
        "documents_mask": jnp.asarray(mask),
        "relevant": jnp.array([1, -1, 2, 0]),
    }


BATCH = batch_of()
PARAMS = jax.jit(MODEL.init)(jax.random.key(0), BATCH).params
EMBEDDINGS = np.asarray(jax.jit(MODEL.embeddings)(PARAMS, BATCH), np.float64)


def by_hand() -> list[float]:
    """The loss of each question that has a right document."""
    losses = []
    for question, place in ((0, 1), (2, 2), (3, 0)):
        scores = {
            (row, i): EMBEDDINGS[question, 0] @ EMBEDDINGS[row, 1 + i] / 2.0
            for row in range(B)
            for i in range(M)
            if (row, i) != (3, 2) and not (question == 0 and (row, i) == (2, 0))
        }
        losses.append(np.logaddexp.reduce(list(scores.values())) - scores[question, place])
    return losses


def test_negatives_are_all_other_documents_but_copies_of_the_right_one():
    loss, _ = jax.jit(MODEL.loss)(PARAMS, BATCH, jax.random.key(0))
    assert float(loss) == pytest.approx(np.mean(by_hand()), abs=1e-5)
    # What only fills up a batch is neither a question nor a negative.
    repeat = lambda a: jnp.concatenate([a, a[-2:]])
    filled = {**jax.tree.map(repeat, dict(BATCH)), "padding": jnp.arange(B + 2) >= B}
    again, _ = jax.jit(MODEL.loss)(PARAMS, filled, jax.random.key(0))
    assert float(again) == pytest.approx(float(loss), abs=1e-6)


def test_accumulation_keeps_the_negatives_of_the_whole_batch():
    # DPR 201, sentence-transformers 2916: accumulation added no negatives.
    step = jax.jit(value_and_gradient, static_argnums=(0, 4))
    whole, measured, _ = step(MODEL.loss, PARAMS, BATCH, jax.random.key(0), 1)
    parts, again, _ = step(MODEL.loss, PARAMS, BATCH, jax.random.key(0), 2)
    assert float(again["loss"]) == pytest.approx(float(measured["loss"]), abs=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)
    # Half of the batch alone has another loss.
    half, _ = jax.jit(MODEL.loss)(PARAMS, {name: a[:2] for name, a in BATCH.items()}, jax.random.key(0))
    assert abs(float(half) - float(measured["loss"])) > 1e-3


def test_an_evaluation_looks_at_a_questions_own_documents():
    state = jax.jit(MODEL.init)(jax.random.key(0), BATCH)
    metrics = jax.jit(MODEL.evaluate)(state, BATCH, jax.random.key(0))
    scores = np.einsum("bc,bmc->bm", EMBEDDINGS[:, 0], EMBEDDINGS[:, 1:]) / 2.0
    scores[3, 2] = -np.inf
    own = np.array([1, 0, 2, 0])
    nll = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(B), own]
    assert metrics["nll"].denominator.tolist() == [1, 0, 1, 1]
    np.testing.assert_allclose(metrics["nll"].numerator, nll * [1, 0, 1, 1], atol=1e-5)
    np.testing.assert_array_equal(metrics["recall@1"].numerator, (scores.argmax(1) == own) * [1, 0, 1, 1])


def test_two_encoders_have_parameters_of_their_own():
    state = jax.jit(MODEL.init)(jax.random.key(0), BATCH)
    rows = {"tokens": BATCH["source"], "mask": BATCH["source_mask"]}
    documents, queries = MODEL.embed(state, rows), MODEL.embed_queries(state, rows)
    np.testing.assert_allclose(queries, EMBEDDINGS[:, 0], atol=1e-5)
    assert float(jnp.abs(documents - queries).max()) > 0.1
    assert set(jax.eval_shape(DPR(vocab_size=6, network=STACK, optimizer=SGD(), shared=True).init,
                              jax.random.key(0), BATCH).params) == {"question"}  # fmt: skip


def test_bad_input_is_one_sentence():
    with pytest.raises(UserError, match="temperature=0.0 must be above 0"):
        DPR(temperature=0.0)
    with pytest.raises(UserError, match="the texts take 9"):
        MODEL.init(jax.random.key(0), {**BATCH, "source": jnp.zeros((1, 9), jnp.int32)})
