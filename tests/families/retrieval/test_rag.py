"""RAG against sums over documents and answers that are written out."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from genjax.errors import UserError
from genjax.families.language.networks import bert_network
from genjax.families.retrieval.rag import RAG
from genjax.model import TrainState
from genjax.nn.transformer import Transformer
from genjax.optimizers import SGD

V, T, B = 5, 2, 3
START, END = 3, 4
STACK = {"num_layers": 1, "width": 8, "num_heads": 2, "max_length": 32}
RNG = np.random.default_rng(0)


def model(kind: str, **changes) -> RAG:
    fields = {
        "kind": kind,
        "num_documents": 2,
        "vocab_size": V,
        "sequence_length": T,
        "start_token": START,
        "network": Transformer(**STACK, init_std=0.5),
        "retriever": bert_network(**STACK, dropout=0.0, attention_dropout=0.0, init_std=0.5),
        "temperature": 0.5,
        "optimizer": SGD(),
    }
    return RAG(**{**fields, **changes})


def ragged(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Tokens, and a mask that keeps at least one token of each row."""
    lengths = RNG.integers(1, shape[-1] + 1, shape[:-1])
    return jnp.asarray(RNG.integers(0, 3, shape), jnp.int32), jnp.asarray(np.arange(shape[-1]) < lengths[..., None])


def batch_of() -> dict[str, jax.Array]:
    source, source_mask = ragged((B, 4))
    documents, documents_mask = ragged((B, 3, 5))
    tokens = jnp.asarray(np.concatenate([np.full((B, 1), START), RNG.integers(0, 3, (B, T))], axis=1), jnp.int32)
    return {
        "source": source, "source_mask": source_mask, "documents": documents, "documents_mask": documents_mask,
        "tokens": tokens, "mask": jnp.ones(tokens.shape, bool), "relevant": jnp.array([0, 2, -1]),
    }  # fmt: skip


BATCH = batch_of()
#: The parameters of all kinds have the same shapes.
STATE = jax.jit(model("sequence").init)(jax.random.key(1), BATCH)
LOG_PROB = {kind: jax.jit(model(kind).log_prob) for kind in ("sequence", "token", "concatenation", "closed_book")}
#: Longer than every prompt with its answer.
LONGEST = 16
SCORES = jax.jit(model("sequence").scores)
ANSWER = {kind: jax.jit(model(kind).answer) for kind in ("sequence", "token")}


@jax.jit
def next_log_probs(params, tokens: jax.Array) -> jax.Array:
    """Log-probabilities of the next token after each token of a row [T], [T, V]."""
    generator = TrainState(step=STATE.step, params=params["generator"])
    return jax.nn.log_softmax(model("sequence").language_model().logits(generator, tokens[None])[0])


def after(tokens: list[int]) -> np.ndarray:
    """`next_log_probs` of a row without padding."""
    padded = jnp.asarray([*tokens, *[0] * (LONGEST - len(tokens))], jnp.int32)
    return np.asarray(next_log_probs(STATE.params, padded), np.float64)[: len(tokens)]


def by_hand(row: int) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """log p(z | x) of the two best documents, log p(y_t | x, z, y_<t) [2, T] and prompts without padding, of a row."""
    scores = np.asarray(SCORES(STATE.params, BATCH), np.float64)[row]
    places = np.argsort(-scores, kind="stable")[:2]
    kept = lambda name, *at: np.asarray(BATCH[name])[at][np.asarray(BATCH[f"{name}_mask"])[at]].tolist()
    prompts = [kept("documents", row, place) + kept("source", row) for place in places]
    answer = np.asarray(BATCH["tokens"])[row].tolist()
    return (
        scores[places] - np.logaddexp(*scores[places]),
        np.stack([answer_log_probs(p, answer) for p in prompts]),
        prompts,
    )


def answer_log_probs(prompt: list[int], answer: list[int]) -> np.ndarray:
    log_probs = after([*prompt, *answer])[len(prompt) : -1]
    return log_probs[np.arange(len(answer) - 1), answer[1:]]


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_the_likelihood_is_the_sum_over_documents_of_rows_without_padding(kind):
    ours = np.asarray(LOG_PROB[kind](STATE, BATCH))
    for row in range(B):
        log_prior, values, _ = by_hand(row)
        if kind == "sequence":
            expected = np.logaddexp(*(log_prior + values.sum(1)))
        else:
            expected = sum(np.logaddexp(*(log_prior + values[:, t])) for t in range(T))
        assert ours[row] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kind", ["sequence", "token", "concatenation", "closed_book"])
def test_probabilities_of_all_answers_sum_to_one(kind):
    total = np.zeros(B)
    for answer in itertools.product(range(V), repeat=T):
        tokens = jnp.broadcast_to(jnp.array([START, *answer], jnp.int32), (B, T + 1))
        total += np.exp(np.asarray(LOG_PROB[kind](STATE, {**BATCH, "tokens": tokens})))
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_the_marginals_are_those_of_the_worked_example():
    """Priors .6 and .4, tokens .9 and .2 under one document, .3 and .9 under the other."""
    prior, values = jnp.log(jnp.array([[0.6, 0.4]])), jnp.log(jnp.array([[[0.9, 0.2], [0.3, 0.9]]]))
    of = lambda kind, v: float(jnp.exp(model(kind)._marginal(prior, v))[0])
    assert of("sequence", values) == pytest.approx(0.216, abs=1e-6)
    assert of("token", values) == pytest.approx(0.3168, abs=1e-6)
    # An answer of one token has one probability, whatever the kind.
    assert of("sequence", values[:, :, :1]) == pytest.approx(0.66, abs=1e-6)
    assert of("token", values[:, :, :1]) == pytest.approx(0.66, abs=1e-6)


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_the_gradient_reaches_the_encoder_of_questions(kind):
    rag = model(kind, shared=False)
    params = jax.jit(rag.init)(jax.random.key(2), BATCH).params

    @jax.jit
    def loss(question):
        changed = {**params, "retriever": {**params["retriever"], "question": question}}
        return rag.loss(changed, BATCH, jax.random.key(0))[0]

    question = params["retriever"]["question"]
    gradient = jax.jit(jax.grad(loss))(question)
    norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
    assert norm > 1e-3
    # Along the gradient itself; central differences of float32.
    step = 1e-2
    moved = lambda sign: jax.tree.map(lambda p, g: p + sign * step * g / norm, question, gradient)
    difference = (loss(moved(1)) - loss(moved(-1))) / (2 * step)
    assert float(difference) == pytest.approx(float(norm), rel=2e-2)


def test_documents_are_indexed_anew_as_a_function_of_the_step():
    every = model("sequence", reindex_every=2, shared=False)
    state = jax.jit(every.init)(jax.random.key(1), BATCH)
    step, loss = jax.jit(every.train_step), jax.jit(every.loss)
    before = [state.params["retriever"]]
    for number in range(3):
        key = jax.random.key(number)
        # The encoder of documents is the one of the last even step.
        want, _ = loss(state.params, BATCH, key, before[number - number % 2])
        state, metrics = step(state, BATCH, key)
        np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
        kept = before[number - number % 2]
        jax.tree.map(np.testing.assert_array_equal, state.extra["indexed"], kept)
        before.append(state.params["retriever"])
    # Questions learn, and documents have no gradient.
    jax.tree.map(np.testing.assert_array_equal, before[0]["document"], before[3]["document"])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before[0]["question"], before[3]["question"])
    assert max(jax.tree.leaves(moved)) > 1e-5


def test_attribution_is_bayes_rule():
    ours, _ = jax.jit(model("sequence").attribution)(STATE, BATCH)
    token, _ = jax.jit(model("token").attribution)(STATE, BATCH)
    for row in range(B):
        log_prior, values, _ = by_hand(row)
        joint = np.exp(log_prior[:, None] + np.cumsum(values, axis=1))
        np.testing.assert_allclose(ours[row], (joint / joint.sum(0)).T, atol=2e-5)
        joint = np.exp(log_prior[:, None] + values)
        np.testing.assert_allclose(token[row], (joint / joint.sum(0)).T, atol=2e-5)
    shares, places = model("concatenation").attribution(STATE, BATCH)
    assert shares is None and places.shape == (B, 2)


def greedy(prompts: list[list[int]], log_prior: np.ndarray) -> list[int]:
    """The likeliest token of the mixture at each step."""
    answer = [START]
    for _ in range(T):
        each = np.stack([after([*prompt, *answer])[-1] for prompt in prompts])
        answer.append(int(np.logaddexp.reduce(each + log_prior[:, None], axis=0).argmax()))
    return answer[1:]


def test_decoding_by_token_mixes_the_documents_at_each_step():
    ours = np.asarray(ANSWER["token"](STATE, BATCH))
    for row in range(B):
        log_prior, _, prompts = by_hand(row)
        assert ours[row].tolist() == greedy(prompts, log_prior)


def test_decoding_by_sequence_scores_the_answer_of_each_document_under_all_documents():
    ours = np.asarray(ANSWER["sequence"](STATE, BATCH))
    for row in range(B):
        log_prior, _, prompts = by_hand(row)
        candidates = [greedy([prompt], np.zeros(1)) for prompt in prompts]
        scores = []
        for candidate in candidates:
            values = [answer_log_probs(prompt, [START, *candidate]).sum() for prompt in prompts]
            scores.append(np.logaddexp(*(log_prior + values)))
        assert ours[row].tolist() == candidates[int(np.argmax(scores))]


def test_beams_over_the_mixture_find_the_likeliest_answer():
    """With as many beams as tokens a search for two tokens leaves no answer out."""
    rag = model("token")

    @jax.jit
    def search(state):
        decoder = rag.mixed_decoder(state, rag.retrieve(state.params, BATCH))
        return decoding.beam_search(decoder, jnp.full((B, 1), START, jnp.int32), T, num_beams=V, end_token=None).tokens[
            :, 0
        ]

    answers = list(itertools.product(range(V), repeat=T))
    rows = [jnp.broadcast_to(jnp.array([START, *answer], jnp.int32), (B, T + 1)) for answer in answers]
    scores = np.stack([np.asarray(LOG_PROB["token"](STATE, {**BATCH, "tokens": row})) for row in rows])
    assert [tuple(row) for row in np.asarray(search(STATE)).tolist()] == [answers[i] for i in scores.argmax(0)]


@pytest.fixture(scope="module")
def fused():
    """RAG with fusion in the decoder, its state, and the T5 that it reads with, with its own parameters."""
    rag = model("fusion", retriever=bert_network(**STACK, dropout=0.0, attention_dropout=0.0))
    state = jax.jit(rag.init)(jax.random.key(3), BATCH)
    return rag, state, rag.encoder_decoder(), {"params": state.params["generator"]}


def test_fusion_attends_to_documents_that_are_encoded_one_at_a_time(fused):
    rag, state, reader, variables = fused
    ours = np.asarray(jax.jit(rag.log_prob)(state, BATCH))
    kept = lambda name, *at: np.asarray(BATCH[name])[at][np.asarray(BATCH[f"{name}_mask"])[at]]
    scores, answers = np.asarray(rag.scores(state.params, BATCH)), BATCH["tokens"]
    for row in range(B):
        places = np.argsort(-scores[row], kind="stable")[:2]
        texts = [np.concatenate([kept("documents", row, place), kept("source", row)]) for place in places]
        # One call of the encoder for each document, without padding; its features stand one behind the other.
        parts = [reader.module().apply(variables, jnp.asarray(text)[None], method="encode") for text in texts]
        context = jnp.concatenate(parts, axis=1)
        logits, _ = reader.module().apply(variables, answers[row : row + 1, :-1], context, method="decode")
        log_probs = np.asarray(jax.nn.log_softmax(logits[0]))
        expected = log_probs[np.arange(T), np.asarray(answers)[row, 1:]].sum()
        assert ours[row] == pytest.approx(expected, abs=2e-5)


def test_fusion_of_one_document_is_t5(fused):
    rag, state, reader, variables = fused
    alone = dataclasses.replace(rag, num_documents=1)
    found = alone.retrieve(state.params, BATCH)
    mask = jnp.arange(found.prompts.shape[1])[None] < found.lengths[:, None]
    pairs = {"source": found.prompts, "source_mask": mask, "tokens": BATCH["tokens"], "mask": BATCH["mask"]}
    expected = reader.token_log_probs(variables["params"], pairs).sum(1)
    np.testing.assert_allclose(alone.log_prob(state, BATCH), expected, atol=2e-5)
    own = TrainState(step=state.step, params=variables["params"])
    greedy = reader.generate(
        own, jax.random.key(0), found.prompts, mask, sampling=decoding.Sampling(temperature=0.0), end_token=None
    )
    assert alone.answer(state, BATCH).tolist() == greedy.tokens.tolist()


def test_fusion_writes_the_likeliest_token_after_what_it_wrote(fused):
    rag, state, _, _ = fused
    written = np.asarray(jax.jit(rag.answer)(state, BATCH))
    score = jax.jit(rag.log_prob)
    for place in range(T):
        # Of all tokens at a place after the written ones before it, the written one is the likeliest.
        known = [np.concatenate([np.full((B, 1), START), written[:, :place]], axis=1)] * V
        rows = [np.concatenate([each, np.full((B, 1), token)], axis=1) for token, each in enumerate(known)]
        rows = [np.pad(each, ((0, 0), (0, T - place - 1))) for each in rows]
        mask = np.broadcast_to(np.arange(T + 1) <= place + 1, (B, T + 1))
        values = [np.asarray(score(state, {**BATCH, "tokens": jnp.asarray(each), "mask": mask})) for each in rows]
        assert np.argmax(values, axis=0).tolist() == written[:, place].tolist()


def test_fusion_does_not_read_a_masked_document(fused):
    rag, state, _, _ = fused
    every = dataclasses.replace(rag, num_documents=3)
    hidden = {**BATCH, "documents_mask": BATCH["documents_mask"].at[:, 1].set(False)}
    other = {**hidden, "documents": BATCH["documents"].at[:, 1].set(2)}
    score = jax.jit(every.log_prob)
    values = np.asarray(score(state, hidden))
    np.testing.assert_allclose(values, score(state, other), atol=1e-6)
    rest = {**BATCH, **{name: BATCH[name][:, np.array([0, 2])] for name in ("documents", "documents_mask")}}
    np.testing.assert_allclose(values, rag.log_prob(state, rest), atol=1e-5)
    # The document matters where it is shown.
    assert np.abs(values - np.asarray(score(state, BATCH))).max() > 1e-3


@pytest.mark.parametrize("kind", ["sequence", "token", "concatenation", "closed_book"])
def test_what_a_mask_hides_changes_nothing(kind):
    hidden = dict(BATCH)
    for name, mask in (("source", "source_mask"), ("documents", "documents_mask")):
        hidden[name] = jnp.where(BATCH[mask], BATCH[name], 2 - BATCH[name])
    short = {**BATCH, "mask": BATCH["mask"].at[:, -1].set(False)}
    other = {**hidden, "mask": short["mask"], "tokens": BATCH["tokens"].at[:, -1].set(0)}
    np.testing.assert_allclose(LOG_PROB[kind](STATE, short), LOG_PROB[kind](STATE, other), atol=1e-6)


def test_a_missing_document_is_not_read():
    mask = BATCH["documents_mask"].at[:, 2].set(False)
    first_two = {**BATCH, "documents": BATCH["documents"][:, :2], "documents_mask": mask[:, :2]}
    missing = {**BATCH, "documents_mask": mask}
    expected = jax.jit(model("sequence").log_prob)(STATE, first_two)
    np.testing.assert_allclose(LOG_PROB["sequence"](STATE, missing), expected, atol=1e-6)
    # Even where fewer are there than the model reads.
    three = jax.jit(model("sequence", num_documents=3).log_prob)
    np.testing.assert_allclose(three(STATE, missing), expected, atol=1e-5)


def test_measures_of_an_evaluation():
    written = ANSWER["sequence"](STATE, BATCH)
    tokens = jnp.concatenate([BATCH["tokens"][:, :1], written], axis=1).at[0, 1].add(1) % V
    metrics = jax.jit(model("sequence").evaluate)(STATE, {**BATCH, "tokens": tokens}, jax.random.key(0))
    assert metrics["exact_match"].tolist() == [0.0, 1.0, 1.0]
    places = np.argsort(-np.asarray(SCORES(STATE.params, BATCH)), axis=1)[:, :2]
    assert metrics["recall"].denominator.tolist() == [1, 1, 0]
    assert metrics["recall"].numerator.tolist()[:2] == [float(0 in places[0]), float(2 in places[1])]


def test_bad_input_is_one_sentence():
    with pytest.raises(UserError, match="num_documents=0 must be at least 1"):
        model("sequence", num_documents=0)
    with pytest.raises(UserError, match="num_documents=4 documents shall be read, and a question has 3"):
        model("sequence", num_documents=4).init(jax.random.key(0), BATCH)
    # The data of an evaluation may have fewer than those of the training.
    with pytest.raises(UserError, match="num_documents=4 documents shall be read, and a question has 3"):
        model("sequence", num_documents=4).retrieve(STATE.params, BATCH)
    with pytest.raises(UserError, match="documents, question and answer take"):
        model("concatenation", network=Transformer(**{**STACK, "max_length": 8})).init(jax.random.key(0), BATCH)
