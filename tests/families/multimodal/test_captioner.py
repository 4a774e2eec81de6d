"""Captioner: probabilities by enumeration, caches, questions and padding."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.families.multimodal.captioner import Captioner
from genjax.nn.transformer import Transformer
from genjax.optimizers import SGD

START, END, WORDS = 3, 4, (0, 1, 2)
STACK = Transformer(num_layers=1, width=8, num_heads=2, mlp_dim=16, max_length=12, init_std=0.7)
MODEL = Captioner(
    data_shape=(4, 4, 1), vocab_size=5, sequence_length=4, start_token=START, end_token=END, vision=STACK,
    decoder=STACK, patch_size=2, optimizer=SGD(learning_rate=0.1),
)  # fmt: skip
PICTURES = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
#: Two questions of different length with their answers and ends.
TOKENS = jnp.array([[START, 0, 1, END, 2, END, 0], [START, 2, END, 1, 0, END, 0]])
QUESTIONS = {
    "x": PICTURES,
    "tokens": TOKENS,
    "mask": jnp.arange(7)[None] < jnp.array([[6], [6]]),
    "loss_mask": (jnp.arange(7)[None] >= jnp.array([[4], [3]])) & (jnp.arange(7)[None] < 6),
}


@pytest.fixture(scope="module")
def state():
    return jax.jit(MODEL.init)(jax.random.key(1), {"x": PICTURES, "tokens": TOKENS})


@pytest.fixture(scope="module")
def evaluate():
    return jax.jit(lambda state, batch: MODEL.evaluate(state, batch, jax.random.key(0)))


def test_the_probabilities_of_all_captions_sum_to_one_and_beams_find_the_likeliest(state, evaluate):
    # All rows of three tokens: they end, or are cut.
    words = (*WORDS, START)
    texts = [(*own, END)[:3] for n in range(4) for own in itertools.product(words, repeat=n)]
    rows = np.full((len(texts), 4), END)
    mask = np.zeros((len(texts), 4), bool)
    for row, seen, text in zip(rows, mask, texts):
        row[: 1 + len(text)], seen[: 1 + len(text)] = (START, *text), True
    x = jnp.repeat(PICTURES[:1], len(texts), axis=0)
    nll = evaluate(state, {"x": x, "tokens": jnp.asarray(rows), "mask": jnp.asarray(mask)})["nll"]
    np.testing.assert_allclose(jnp.exp(-nll).sum(), 1.0, rtol=1e-5)
    found = jax.jit(lambda s: MODEL.describe(s, PICTURES[:1], num_beams=64))(state)
    np.testing.assert_array_equal(found[0], rows[int(nll.argmin()), 1:])


def test_cached_answers_are_those_of_the_whole_network_for_questions_of_different_length(state):
    prompts, lengths = MODEL.prompts_of(QUESTIONS)
    assert lengths.tolist() == [4, 3] and MODEL.prompts_of({"tokens": TOKENS})[0].tolist() == [[START], [START]]
    found = jax.jit(lambda s, p, n: MODEL.describe(s, PICTURES, p, n, num_beams=1))(state, prompts, lengths)
    beams = jax.jit(lambda s, p, n: MODEL.describe(s, PICTURES, p, n, num_beams=2))(state, prompts, lengths)
    apply = jax.jit(lambda x, t: MODEL.module().apply({"params": state.params}, x, t))
    for i, length in enumerate(lengths.tolist()):
        row = TOKENS[i, :length].tolist()
        for _ in range(3):
            padded = jnp.asarray([row + [0] * (8 - len(row))])
            row.append(int(apply(PICTURES[i : i + 1], padded)[0, len(row) - 1].argmax()))
            if row[-1] == END:
                break
        written = found[i].tolist()
        assert written == (row[length:] + [END] * 3)[:3] and len(beams[i]) == 3


def test_an_encoder_of_questions_sees_the_picture_and_the_decoder_the_question_alone():
    forms = {"patch_bias": True, "embedding_norm": True, "head_transform": True, "project_features": True}
    post = dataclasses.replace(STACK, norm_placement="post")
    model = dataclasses.replace(MODEL, decoder=post, questions=post, **forms)
    state = jax.jit(model.init)(jax.random.key(1), QUESTIONS)
    evaluate = jax.jit(lambda batch: model.evaluate(state, batch, jax.random.key(0)))
    whole = evaluate(QUESTIONS)
    # By hand: the answer after its start, given the question without padding.
    apply = jax.jit(model.module().apply)
    for i, (question, answer) in enumerate((([START, 0, 1, END], [2, END]), ([START, 2, END], [1, 0, END]))):
        rows = jnp.array([[START, *answer[:-1]]]), None, jnp.array([question]), jnp.ones((1, len(question)), bool)
        logits = jax.nn.log_softmax(apply({"params": state.params}, PICTURES[i : i + 1], *rows))[0]
        by_hand = -sum(logits[place, token] for place, token in enumerate(answer))
        np.testing.assert_allclose(whole["nll"][i], by_hand, rtol=1e-5)
    # Another picture changes what the question's encoder says.
    assert abs(evaluate({**QUESTIONS, "x": PICTURES[::-1]})["nll"] - whole["nll"]).min() > 1e-3
    prompts, lengths = model.prompts_of(QUESTIONS)
    found = jax.jit(lambda: model.describe(state, PICTURES, prompts, lengths, num_beams=1))()
    for i, length in enumerate(lengths.tolist()):
        question, row = prompts[i : i + 1, :length], [START]
        for _ in range(3):
            inputs = jnp.array([row + [0] * (3 - len(row))]), None, question, jnp.ones((1, length), bool)
            row.append(int(apply({"params": state.params}, PICTURES[i : i + 1], *inputs)[0, len(row) - 1].argmax()))
            if row[-1] == END:
                break
        assert found[i].tolist() == (row[1:] + [END] * 3)[:3]


def test_answers_alone_count_and_neither_padding_nor_other_pictures_matter(state, evaluate):
    whole = evaluate(state, QUESTIONS)
    assert whole["num_tokens"].tolist() == [2.0, 3.0]
    apply = jax.jit(MODEL.module().apply)
    logits = jax.nn.log_softmax(apply({"params": state.params}, PICTURES, TOKENS[:, :-1]))
    by_hand = [-(logits[0, 3, 2] + logits[0, 4, END]), -(logits[1, 2, 1] + logits[1, 3, 0] + logits[1, 4, END])]
    np.testing.assert_allclose(whole["nll"], by_hand, rtol=1e-5)
    changed = evaluate(state, {**QUESTIONS, "tokens": TOKENS.at[:, 6].set(2), "x": PICTURES.at[0].add(1.0)})
    np.testing.assert_allclose(changed["nll"][1], whole["nll"][1], rtol=1e-6)
    assert abs(changed["nll"][0] - whole["nll"][0]) > 1e-3
    loss, _ = jax.jit(MODEL.loss)(state.params, QUESTIONS, jax.random.key(0))
    np.testing.assert_allclose(loss, whole["nll"].sum() / 12, rtol=1e-5)


def test_pictures_and_questions_that_do_not_fit_are_refused(state):
    for arguments, message in (
        ((PICTURES[:, :2],), r"pictures of the shape \(4, 4, 1\), and not \(2, 4, 1\)"),
        ((PICTURES, jnp.array([[START, 9]] * 2)), "the question has the token 9"),
    ):
        with pytest.raises(UserError, match=message):
            MODEL.describe(state, *arguments)


def test_the_longest_text_is_given_by_the_model_or_in_the_call(state):
    # As a model of a folder of another library.
    model = dataclasses.replace(MODEL, sequence_length=None)
    whole = MODEL.describe(state, PICTURES, num_beams=1)
    for count in (1, 2):
        found = model.describe(state, PICTURES, num_beams=1, max_new_tokens=count)
        np.testing.assert_array_equal(found, whole[:, :count])
    with pytest.raises(UserError, match="Captioner does not know how long its texts may be; give max_new_tokens"):
        model.describe(state, PICTURES)
