"""Encoder-decoder transformers on the contract, and what T5 and BART corrupt, counted."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax.families.language.bart import BART
from genjax.families.language.corruption import Denoising, Pairs, SpanCorruption, SpecialTokens, infill, span_counts
from genjax.families.language.encoder_decoder import EncoderDecoder
from genjax.families.language.networks import bart_network, t5_network, translation_network
from genjax.families.language.t5 import T5
from genjax.model import GenerativeModel
from genjax.nn.mixture_of_experts import MixtureOfExperts
from genjax.optimizers import Adam, InverseSquareRoot

START, END, PADDING, MASK = 20, 21, 22, 23
SPECIAL = SpecialTokens(START, END, PADDING, MASK, 59)
TINY = {"num_layers": 1, "width": 8, "num_heads": 2, "mlp_dim": 16, "dropout": 0.0, "init_std": 0.4}
TOKENS = {
    "vocab_size": 24,
    "sequence_length": 6,
    "start_token": START,
    "end_token": END,
    "padding_token": PADDING,
    "mask_token": MASK,
    "label_smoothing": 0.1,
    "optimizer": Adam(learning_rate=1e-2),
}
T5_STACK = t5_network(**TINY, head_dim=4, attention_dropout=0.0, mlp_dropout=0.0)
MODELS = {
    "translation": EncoderDecoder(
        **TOKENS, encoder=translation_network(**TINY, max_length=9), decoder=translation_network(**TINY, max_length=9)
    ),
    "t5": T5(**TOKENS, extra_tokens=8, encoder=T5_STACK, decoder=T5_STACK),
    "bart": BART(**TOKENS, encoder=bart_network(**TINY, max_length=9), decoder=bart_network(**TINY, max_length=9)),
}


@pytest.fixture(scope="module")
def texts():
    tokens = jax.random.randint(jax.random.key(0), (3000, 24), 0, 20).at[:, 0].set(START)
    length = jnp.where(jnp.arange(3000) % 2, 24, 15)[:, None]
    tokens = jnp.where(jnp.arange(24)[None] < length - 1, tokens, END)
    mask = jnp.arange(24)[None] < length
    return {"tokens": jnp.where(mask, tokens, PADDING), "mask": mask}


def spelled(tokens, mask):
    return [row[real].tolist() for row, real in zip(np.asarray(tokens), np.asarray(mask))]


def test_spans_are_corrupted_as_in_t5_and_can_be_put_back(texts):
    task = SpanCorruption(noise_density=0.3, mean_span_length=3.0)
    keys = jax.random.split(jax.random.key(1), 3000)
    out = jax.jit(lambda batch: task.prepare(batch, keys, SPECIAL))(texts)
    assert (out["tokens"][:, 0] == START).all()
    originals = spelled(texts["tokens"], texts["mask"])
    sources, targets = spelled(out["source"], out["source_mask"]), spelled(out["tokens"], out["mask"])
    spans, starts = [], np.zeros(22)
    for number, (text, source, target) in enumerate(zip(originals, sources, targets)):
        content = text[1:-1]
        noise = round(0.3 * len(content))
        assert source[-1] == END and target[-1] == END
        pieces, current = {}, None
        for token in target[1:-1]:
            if token > 50:
                pieces[current := token] = []
            else:
                pieces[current].append(token)
        assert list(pieces) == [59 - i for i in range(round(noise / 3))]
        assert [t for t in source if t > 50] == list(pieces)
        restored = [t for token in source[:-1] for t in (pieces[token] if token > 50 else [token])]
        assert restored == content
        assert sum(map(len, pieces.values())) == noise and all(pieces.values())
        spans += map(len, pieces.values())
        if number % 2:
            place = 0
            for token in source[:-1]:
                if token > 50:
                    starts[place : place + len(pieces[token])] += 1
                    place += len(pieces[token])
                else:
                    place += 1
    # 4 of 13 tokens are one span, and 7 of 22 are two; long texts have spans of 3.
    assert np.mean(spans) == pytest.approx(11 / 3) and span_counts(400, 0.15, 3.0) == (60, 20)
    # No place but the first, which always stays, is corrupted much more rarely than others.
    assert starts[0] == 0 and starts[3:-2].min() > 0.15 * 1500


def test_what_is_not_counted_of_a_text_is_not_counted_of_its_targets(texts):
    keys, tokens = jax.random.split(jax.random.key(1), 3000), texts["tokens"]
    counted = tokens % 3 > 0
    for task in (SpanCorruption(noise_density=0.3), Denoising(mask_rate=0.3)):
        out = jax.jit(lambda batch, task=task: task.prepare(batch, keys, SPECIAL))({**texts, "loss_mask": counted})
        targets, weights = np.asarray(out["tokens"][:, 1:]), np.asarray(out["loss_mask"][:, 1:])
        real = np.asarray(out["mask"][:, 1:])
        if isinstance(task, SpanCorruption):
            expected = (targets % 3 > 0) | (targets > 50) | (targets == END)
        else:
            expected = np.asarray(counted)
        np.testing.assert_array_equal(weights[real], expected[real])
        assert out["loss_mask"][:, 0].all() and not weights[real].all()


def test_infilling_masks_the_share_and_restores_the_rest(texts):
    task = Denoising(mask_rate=0.3, permute_sentences=False)
    keys = jax.random.split(jax.random.key(1), 3000)
    out = jax.jit(lambda batch: task.prepare(batch, keys, SPECIAL))(texts)
    originals = spelled(texts["tokens"], texts["mask"])
    sources, targets = spelled(out["source"], out["source_mask"]), spelled(out["tokens"], out["mask"])
    lengths = []
    for text, source, target in zip(originals, sources, targets):
        assert target == [START, *text]
        kept = [t for t in source if t != MASK]
        assert len(kept) == len(text) - round(0.3 * len(text))
        assert kept[0] == START and kept[-1] == END and source[0] == START and source[-1] == END
        rest = iter(text)
        assert all(token in rest for token in kept)  # in the order of the text
        lengths.append((len(text) - len(kept)) / max(source.count(MASK), 1))
    assert 2.0 < np.mean(lengths) < 3.5


@pytest.mark.parametrize("rate, mean_span, length", [(0.3, 3.0, 3), (0.15, 1.0, 24), (0.5, 0.5, 24), (0.9, 3.0, 24)])
def test_spans_without_a_place_are_joined(rate, mean_span, length):
    text = jnp.where(jnp.arange(24) < length, jnp.arange(24), PADDING + 100)
    draw = lambda key: infill(key, text, jnp.asarray(length), rate, mean_span, 99, PADDING)
    sources, masks = map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 500)))
    hidden = []
    for source, mask in zip(sources, masks):
        row = source[mask]
        kept = np.flatnonzero(row != 99)
        assert row[0] == 0 and row[-1] == length - 1
        gaps = (np.diff(row[kept]) > 1) & (np.diff(kept) == 1)
        assert not gaps.any(), "tokens are missing without a mask"
        hidden.append(length - len(kept))
    assert max(hidden) == round(rate * length) and np.mean(hidden) > 0.95 * round(rate * length)


def test_sentences_and_documents_are_reordered_and_nothing_is_lost(texts):
    keys = jax.random.split(jax.random.key(1), 3000)
    stops = (3, 7)
    permuted = Denoising(mask_rate=0.0, sentence_end_tokens=stops)
    turned = Denoising(mask_rate=0.0, permute_sentences=False, rotate=True)
    both = jax.jit(lambda batch: [task.prepare(batch, keys, SPECIAL) for task in (permuted, turned)])(texts)
    originals = spelled(texts["tokens"], texts["mask"])

    def sentences(text):
        parts = [[]]
        for token in text:
            parts[-1].append(token)
            if token in stops:
                parts.append([])
        return parts if parts[-1] else parts[:-1]

    changed = 0
    for text, source, rotated in zip(originals, *(spelled(out["source"], out["source_mask"]) for out in both)):
        inner, new = text[1:-1], rotated[1:-1]
        assert source[0] == rotated[0] == START and source[-1] == rotated[-1] == END
        assert any(inner[i:] + inner[:i] == new for i in range(len(inner)))
        old_parts = sentences(inner)
        found = source[1:-1]
        assert sorted(found) == sorted(inner)
        # Every sentence is there as a whole.
        text_of = lambda tokens: "," + ",".join(map(str, tokens)) + ","
        assert all(text_of(part) in text_of(found) for part in old_parts)
        changed += found != inner
    assert changed > 1000


@pytest.mark.parametrize("name", MODELS)
def test_the_contract_and_cached_equals_full(name, monkeypatch):
    for constant, value in (("LARGE_MEMORY", 0), ("NUM_STAGES", 2), ("FEWEST_TOKENS", 2)):  # the memory grows once
        monkeypatch.setattr(importlib.import_module("genjax.decoding.generate"), constant, value)
    model = MODELS[name]
    assert isinstance(model, GenerativeModel)
    key = jax.random.key(0)
    batch = {
        "tokens": jax.random.randint(key, (4, 8), 0, 20).at[:, 0].set(START).at[:, -1].set(END),
        "mask": jnp.arange(8)[None] < jnp.array([[8], [8], [6], [8]]),
    }
    if name == "translation":
        batch |= {"source": batch["tokens"][:, ::-1], "source_mask": batch["mask"][:, ::-1]}
    state = jax.jit(model.init)(key, batch)

    @jax.jit
    def run(state):
        step = lambda state, _: model.train_step(state, batch, jax.random.key(1))
        state, metrics = jax.lax.scan(step, state, None, length=40)
        values = model.evaluate(state, batch, key)
        source, mask = batch["tokens"], batch["mask"]
        generated = model.generate(state, key, source, mask)
        tokens = jnp.concatenate([jnp.full((4, 1), START), generated.tokens], axis=1)
        log_probs = jax.nn.log_softmax(model.logits(state, tokens[:, :-1], source, mask))
        full = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=2)[:, :, 0]
        return metrics["loss"], values, generated, full, model.sample(state, key, 2)

    loss, values, generated, full, samples = run(state)
    assert loss[-1] < 0.8 * loss[0]
    assert all(value.shape == (4,) for value in jax.tree.leaves(values))
    valid = np.arange(6)[None] < np.asarray(generated.lengths)[:, None]
    np.testing.assert_allclose(np.asarray(generated.log_probs)[valid], np.asarray(full)[valid], atol=1e-4)
    assert samples.shape == (2, 7)


def test_smoothed_loss_and_schedule_are_those_of_the_paper():
    model = MODELS["translation"]
    batch = {"tokens": jnp.array([[START, 3, 4, END]]), "source": jnp.array([[5, 6, END]])}
    state = jax.jit(model.init)(jax.random.key(0), batch)
    loss, logits = jax.jit(
        lambda p: (
            model.loss(p, batch, jax.random.key(0))[0],
            model.logits(state, batch["tokens"][:, :-1], batch["source"]),
        )
    )(state.params)
    # Cross-entropy with (1 - e) one-hot + e / V.
    targets = 0.9 * jax.nn.one_hot(batch["tokens"][:, 1:], 24) + 0.1 / 24
    np.testing.assert_allclose(loss, optax.softmax_cross_entropy(logits, targets).mean(), rtol=1e-5)
    width, warmup = 512, 4000
    schedule = InverseSquareRoot(warmup_steps=warmup).build((width * warmup) ** -0.5)
    for step in (1, 1000, 4000, 20_000):
        published = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        np.testing.assert_allclose(schedule(jnp.asarray(step - 1)), published, rtol=2e-4)


def test_bad_settings_are_one_clear_sentence():
    model = MODELS["translation"]
    with pytest.raises(ValueError, match="noise_density must lie"):
        SpanCorruption(noise_density=1.0)
    long, short = jnp.zeros((1, 20), jnp.int32), jnp.zeros((1, 3), jnp.int32)
    state = jax.eval_shape(lambda: model.init(jax.random.key(0), {"source": short, "tokens": short}))
    for call in (
        lambda state: model.init(jax.random.key(0), {"source": long, "tokens": short}),
        lambda state: model.evaluate(state, {"source": long, "tokens": short}, jax.random.key(0)),
        lambda state: model.logits(state, short, long),
        lambda state: model.encode_source(state, long),
        lambda state: model.answer_decoder(state, long),
        lambda state: model.translate(state, long),
    ):
        with pytest.raises(ValueError, match="take 20 places, but the longest context is model.encoder.max_length="):
            jax.eval_shape(call, state)
    with pytest.raises(ValueError, match="take 20 places, but the longest context is model.decoder.max_length="):
        jax.eval_shape(lambda state: model.logits(state, long, short), state)
    with pytest.raises(ValueError, match="must equal model.encoder.width"):
        dataclasses.replace(model, decoder=translation_network(1, 4, 2)).module()
    with pytest.raises(ValueError, match="the source has the token 99, which lies outside the vocabulary"):
        model.logits(None, jnp.zeros((1, 3), jnp.int32), jnp.array([[0, 99]]))
    with pytest.raises(ValueError, match="needs mask_token"):
        dataclasses.replace(MODELS["bart"], mask_token=None).init(
            jax.random.key(0), {"tokens": jnp.zeros((1, 8), jnp.int32)}
        )
    # Without sentinels of their own, spans would be told by padding, ends and letters.
    with pytest.raises(ValueError, match="up to 2 spans and the model has 0 sentinels for them: give .*extra_tokens=2"):
        dataclasses.replace(MODELS["t5"], extra_tokens=0).init(
            jax.random.key(0), {"tokens": jnp.zeros((1, 40), jnp.int32)}
        )


def test_nothing_is_learned_of_a_text_of_one_token():
    tokens = jnp.array([[START, 3, END, PADDING], [START, 3, 4, END]])
    batch = {"tokens": tokens, "mask": tokens != PADDING}
    prepare = jax.jit(lambda keys: SpanCorruption().prepare(batch, keys, SPECIAL))
    out = prepare(jax.random.split(jax.random.key(0), 2))
    assert not out["mask"][0, 1:].any() and out["mask"][1, 1:].any()


def test_experts_of_both_stacks_are_balanced_and_padding_balances_none():
    experts = MixtureOfExperts(num_experts=4, balance_weight=1.0)
    stack = dataclasses.replace(T5_STACK, experts=experts)
    tokens = jax.random.randint(jax.random.key(0), (2, 7), 0, 20)
    mask = jnp.broadcast_to(jnp.arange(7) < 5, (2, 7))
    batch = {"source": tokens[:, ::-1], "tokens": tokens, "mask": mask}
    model = dataclasses.replace(MODELS["t5"], encoder=stack, decoder=stack, objective=Pairs())
    params = jax.jit(model.init)(jax.random.key(1), batch).params
    loss = jax.jit(jax.value_and_grad(lambda p, b: model.loss(p, b, jax.random.key(2))[0]))
    # Without targets, there is nothing to learn but the balance.
    _, gradient = loss(params, {**batch, "mask": jnp.zeros_like(mask)})
    assert np.abs(gradient["encoder"]["layer_0"]["experts"]["router"]).max() > 0
    filled = {**batch, "tokens": jnp.where(mask, tokens, PADDING)}
    np.testing.assert_allclose(loss(params, batch)[0], loss(params, filled)[0], rtol=1e-6)
