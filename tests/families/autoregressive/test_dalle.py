"""DALL-E: its transformer by enumeration, by gradients and beside a GPT; its cached draws; the fixed autoencoder."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.decoding.sampling import Sampling
from genjax.errors import UserError
from genjax.families.autoregressive.dalle import DALLE, LogitGuidance
from genjax.families.autoregressive.text_and_codes import TextAndCodes
from genjax.families.language.gpt import GPT
from genjax.families.vae.discrete_vae import Annealing, DiscreteVAE
from genjax.families.vae.vq_vae import VQVAE
from genjax.model import GenerativeModel, HasGuidance
from genjax.nn.distributions import LogitLaplace
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW

#: Wide initial weights, so that what a place sees moves its logits.
NETWORK = Transformer(num_layers=3, width=8, num_heads=2, max_length=16, init_std=0.6)
SPARSE = TextAndCodes(
    vocab_size=4,
    sequence_length=4,
    start_token=0,
    end_token=1,
    num_codes=3,
    code_shape=(2, 2),
    network=NETWORK,
    convolution_size=3,
)
DENSE = dataclasses.replace(
    SPARSE, code_attention="dense", network=dataclasses.replace(NETWORK, positions="rotary", norm="rms", num_layers=2)
)
FORMS = {"sparse": SPARSE, "dense": DENSE}


@functools.cache
def params_of(form):
    batch = {"tokens": jnp.zeros((1, 4), jnp.int32)}
    return jax.jit(FORMS[form].init)(jax.random.key(3), batch).params


def all_texts():
    """Every text of at most three tokens behind the start, with its mask; a text of three needs no end."""
    for length in range(4):
        for words in itertools.product((0, 2, 3), repeat=length):
            tokens = [0, *words, 1][:4]
            yield tokens + [1] * (4 - len(tokens)), [True] * len(tokens) + [False] * (4 - len(tokens))


@pytest.mark.parametrize("form", FORMS)
def test_all_texts_and_all_maps_of_codes_have_the_probability_one(form):
    texts, maps = list(all_texts()), list(itertools.product(range(3), repeat=4))
    assert (len(texts), len(maps)) == (40, 81)
    rows = [(*text, codes) for text in texts for codes in maps]
    tokens, mask, codes = (jnp.array(column) for column in zip(*rows, strict=True))
    batch = {"tokens": tokens, "mask": mask, "codes": codes.reshape(-1, 2, 2)}
    text, given = jax.jit(FORMS[form].log_prob)(params_of(form), batch)
    given = np.asarray(given, np.float64).reshape(40, 81)
    np.testing.assert_allclose(np.exp(given).sum(1), 1.0, rtol=1e-5)
    # The text comes first, and its probability does not depend on the picture.
    text = np.asarray(text, np.float64).reshape(40, 81)
    np.testing.assert_allclose(text, text[:, :1] + np.zeros((1, 81)), atol=1e-5)
    assert np.exp(text[:, 0]).sum() == pytest.approx(1.0, rel=1e-5)
    assert np.ptp(given) > 1.0 and np.ptp(text[:, 0]) > 0.5


def reached(masks):
    """Which inputs the outputs of a stack of layers depend on."""
    whole = np.eye(len(masks[0]), dtype=bool)
    for mask in masks:
        whole = (mask.astype(int) @ whole.astype(int)) > 0
    return whole


@pytest.mark.parametrize("num_layers", [1, 3])
def test_gradients_are_zero_by_what_may_not_be_seen_and_by_nothing_else(num_layers):
    # Four rows of two, so that rows, columns and squares leave codes out.
    model = dataclasses.replace(
        SPARSE, code_shape=(4, 2), network=dataclasses.replace(NETWORK, num_layers=num_layers), convolution_size=1
    )
    total, module = 4 + 8 - 1, model.module()
    run = lambda net, x: net.stack(x, layer_biases=net._biases(None, total)).x
    batch = {"tokens": jnp.zeros((1, 4), jnp.int32)}
    params = model.init(jax.random.key(0), batch).params
    weights = jax.random.normal(jax.random.key(1), (8,))
    outputs = lambda x: nn.apply(run, module)({"params": params}, x[None])[0] @ weights
    gradient = jax.jit(jax.jacrev(outputs))(jax.random.normal(jax.random.key(2), (total, 8)))
    np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, reached(model.masks()))


def test_a_code_changes_no_logits_before_it_and_padding_is_seen_by_codes_alone():
    model, params = SPARSE, params_of("sparse")
    tokens, mask = jnp.array([[0, 2, 1, 1]]), jnp.array([[True, True, True, False]])
    logits = jax.jit(lambda p, *inputs: model.module().apply({"params": p}, *inputs))
    text, codes = logits(params, tokens, mask, jnp.array([[0, 1, 2, 0]]))
    other_text, other_codes = logits(params, tokens, mask, jnp.array([[0, 2, 2, 0]]))
    np.testing.assert_array_equal(other_text, text)
    np.testing.assert_array_equal(other_codes[:, :2], codes[:, :2])
    assert (np.abs(other_codes[:, 2:] - codes[:, 2:]).max(-1) > 1e-4).all()
    moved = {**params, "text_padding": params["text_padding"] + jnp.eye(4, 8)}
    padded_text, padded_codes = logits(moved, tokens, mask, jnp.array([[0, 1, 2, 0]]))
    np.testing.assert_array_equal(padded_text, text)
    assert (np.abs(padded_codes - codes).max(-1) > 1e-4).all()
    # What stands at padding is not read.
    same = logits(params, tokens.at[0, 3].set(3), mask, jnp.array([[0, 1, 2, 0]]))
    np.testing.assert_array_equal(same[1], codes)


@pytest.mark.parametrize("form", FORMS)
def test_the_text_alone_is_a_gpt(form):
    model, params = FORMS[form], params_of(form)
    gpt = GPT(vocab_size=4, sequence_length=3, network=model.stack, tie_embeddings=False)
    theirs = {"embedding": params["text_embedding"], "stack": params["stack"], "head": params["text_head"]}
    tokens, mask = (jnp.array(column) for column in zip(*list(all_texts())[::5], strict=True))
    batch = {"tokens": tokens, "mask": mask, "codes": jnp.zeros((len(tokens), 2, 2), jnp.int32)}
    state = gpt.init(jax.random.key(0), batch).with_params(theirs)
    np.testing.assert_allclose(model.log_prob(params, batch)[0], gpt.log_prob(state, batch), rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_cached_logits_and_draws_are_those_of_whole_passes(form):
    model, params = FORMS[form], params_of(form)
    tokens, mask = (jnp.array(column) for column in zip(*list(all_texts())[10:14], strict=True))
    codes = jnp.array([[0, 1, 2, 0], [2, 2, 1, 0], [1, 0, 0, 1], [0, 0, 2, 2]])

    @jax.jit
    def both(params):
        module = model.module()
        apply = lambda method, *inputs: module.apply({"params": params}, *inputs, method=method)
        whole = apply(None, tokens, mask, codes)
        text, first, cache = apply("read_text", tokens, mask, model.stack.init_cache(4, 7))
        found = [first]
        for place in range(3):
            logits, cache = apply("read_code", codes[:, place], jnp.int32(place), cache)
            found.append(logits)
        return whole, (text[:, :-1], jnp.stack(found, 1))

    whole, cached = both(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-5), whole, cached)
    draw = jax.jit(
        lambda cached, **options: model.draw_codes(params, jax.random.key(5), tokens, mask, cached=cached, **options),
        static_argnames=("cached", "scale", "sampling"),
    )
    options = {"scale": 1.5, "sampling": Sampling(temperature=0.8, top_k=2)}
    np.testing.assert_array_equal(draw(True, **options), draw(False, **options))


def test_draws_have_the_probabilities_of_the_model_and_guidance_those_of_extrapolated_logits():
    model = dataclasses.replace(SPARSE, code_shape=(1, 2))
    params = jax.jit(model.init)(jax.random.key(7), {"tokens": jnp.zeros((1, 4), jnp.int32)}).params
    count = 4000
    tokens = jnp.broadcast_to(jnp.array([[0, 2, 3, 1]]), (count, 4))
    mask = jnp.ones_like(tokens, bool)
    maps = jnp.array(list(itertools.product(range(3), repeat=2)))
    apply = jax.jit(lambda t, m: model.module().apply({"params": params}, t, m, maps)[1])
    texts = [tokens[:9], jnp.broadcast_to(model.empty_text()[0][None], (9, 4))]
    masks = [mask[:9], jnp.broadcast_to(model.empty_text()[1][None], (9, 4))]
    given, empty = (np.asarray(apply(t, m), np.float64) for t, m in zip(texts, masks))
    error = 5 * np.sqrt(0.25 / count)
    draw = jax.jit(
        lambda scale: model.draw_codes(params, jax.random.key(0), tokens, mask, scale=scale), static_argnums=0
    )
    for scale in (0.0, 2.0):
        logits = given + scale * (given - empty)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = np.exp(np.take_along_axis(log_probs, np.asarray(maps)[..., None], -1)[..., 0].sum(1))
        drawn = np.asarray(draw(scale)).reshape(count, 2) @ [3, 1]
        np.testing.assert_allclose(np.bincount(drawn, minlength=9) / count, expected, atol=error)
    # Texts that are drawn are cut at their end, and as frequent as the model says.
    tokens, mask = jax.jit(lambda: model.draw_texts(params, jax.random.key(1), count))()
    rows = {tuple(t): (m, i) for i, (t, m) in enumerate(all_texts())}
    found = [rows[tuple(row)] for row in np.asarray(tokens).tolist()]
    assert all(m == row for (m, _), row in zip(found, np.asarray(mask).tolist(), strict=True))
    texts, masks = (jnp.array(column) for column in zip(*all_texts(), strict=True))
    batch = {"tokens": texts, "mask": masks, "codes": jnp.zeros((40, 1, 2), jnp.int32)}
    expected = np.exp(jax.jit(model.log_prob)(params, batch)[0])
    share = np.bincount([i for _, i in found], minlength=40) / count
    np.testing.assert_allclose(share, expected, atol=error)


def test_the_loss_weighs_means_over_all_tokens_and_dropped_texts_do_not_count():
    params = params_of("sparse")
    tokens, mask = (jnp.array(column) for column in zip(*list(all_texts())[:8], strict=True))
    batch = {"tokens": tokens, "mask": mask, "codes": jax.random.randint(jax.random.key(0), (8, 2, 2), 0, 3)}
    key = jax.random.key(1)
    for rate in (0.0, 0.5):
        seen = SPARSE.with_dropped_texts(batch, key, rate)
        kept = np.array((seen["tokens"] == tokens).all(1) & (np.asarray(seen["loss_mask"]) > 0).any(1))
        assert rate or kept.all()
        loss, metrics = SPARSE.loss(params, seen, key)
        text, codes = SPARSE.nll(params, seen)
        counted = np.asarray(mask)[:, 1:] & kept[:, None]
        of_text = np.asarray(text)[counted].mean()
        np.testing.assert_allclose(loss, of_text / 8 + 7 / 8 * np.asarray(codes).mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["text_nll_per_token"].value(), of_text, rtol=1e-5)
    assert 0 < kept.sum() < 8
    empty, empty_mask = SPARSE.empty_text()
    np.testing.assert_array_equal(seen["tokens"][~kept], np.tile(empty, (int((~kept).sum()), 1)))
    assert empty.tolist() == [0, 1, 1, 1] and empty_mask.tolist() == [True, True, False, False]


AUTOENCODER = DiscreteVAE(
    data_shape=(4, 4, 3),
    channels=(4, 4),
    input_kernel=1,
    embedding_dim=4,
    num_codes=3,
    temperature=Annealing(num_steps=1),
    kl_weight=Annealing(num_steps=1),
    output=LogitLaplace(low=-1.0, high=1.0),
)
MODEL = DALLE(
    vq_vae=AUTOENCODER,
    prior=dataclasses.replace(
        SPARSE, num_codes=None, code_shape=None, optimizer=AdamW(weight_decay=1.0, ema_decay=0.5)
    ),
    condition_dropout=0.5,
)


def test_the_autoencoder_stays_and_the_nats_of_text_and_picture_stand_apart():
    assert isinstance(MODEL, GenerativeModel) and isinstance(MODEL, HasGuidance)
    tokens, mask = (jnp.array(column) for column in zip(*list(all_texts())[:4], strict=True))
    x = jax.random.uniform(jax.random.key(0), (4, 4, 4, 3), minval=-1.0, maxval=1.0)
    batch = {"x": x, "tokens": tokens, "mask": mask}
    state = jax.jit(MODEL.init)(jax.random.key(1), batch)
    new, metrics = jax.jit(MODEL.train_step)(state, batch, jax.random.key(2))
    for name in ("encoder", "decoder", "codebook"):
        for tree in (new.params, new.ema_params):
            jax.tree.map(np.testing.assert_array_equal, tree[name], state.params[name])
    assert (new.params["prior"]["text_padding"] != state.params["prior"]["text_padding"]).any()
    assert set(metrics) >= {"loss", "text_nll_per_token", "code_nll_per_code"}
    found = jax.jit(MODEL.evaluate)(new, batch, jax.random.key(0))
    of_codes = jax.jit(lambda params: MODEL.code_model().log_prob(params["prior"], MODEL.codes(params, batch)))
    text, given = of_codes(new.eval_params)
    np.testing.assert_allclose(found["text_nll"], -text, rtol=1e-5)
    np.testing.assert_allclose(found["code_nll"], -given, rtol=1e-5)
    np.testing.assert_allclose(found["code_nll_per_code"], found["code_nll"] / 4, rtol=1e-6)
    np.testing.assert_allclose(found["nll_bound"], found["code_nll"] + found["reconstruction"], rtol=1e-5)
    guided = MODEL.with_guidance_scale(1.0)
    assert guided.guidance_scale == 1.0
    pictures = jax.jit(guided.sample, static_argnums=2)(new, jax.random.key(0), 4, tokens=tokens, mask=mask)
    assert pictures.shape == x.shape
    # Every sample is the picture of some map of codes.
    decoded = jax.jit(AUTOENCODER.decode_codes)(MODEL.vq_state(new.params), all_maps())
    distance = jnp.abs(pictures[:, None] - decoded[None]).max((2, 3, 4)).min(1)
    np.testing.assert_allclose(distance, 0.0, atol=1e-5)


def all_maps():
    return jnp.array(list(itertools.product(range(3), repeat=4))).reshape(-1, 2, 2)


def test_what_a_user_can_mend_is_one_sentence():
    unguided = dataclasses.replace(MODEL, condition_dropout=0.0)
    long = np.zeros((1, 5), np.int32)
    for call, message in (
        (lambda: MODEL.check_start(None), "learns the codes of a trained VQ-VAE; give its run by"),
        (lambda: MODEL.check_start(GPT()), "and GPT is none; give its run by"),
        (
            lambda: MODEL.check_start(VQVAE()),
            "model.vq_vae is a DiscreteVAE, and the run training.init_from holds a VQ",
        ),
        (
            lambda: MODEL.check_start(dataclasses.replace(AUTOENCODER, num_codes=5)),
            "model.vq_vae.num_codes=3, and the codebook of training.init_from has 5 codes",
        ),
        (lambda: unguided.with_guidance_scale(1.0), "which condition_dropout=0 never trains"),
        (
            lambda: dataclasses.replace(unguided, guidance=LogitGuidance(scale=1.0)).check_start(AUTOENCODER),
            "which condition_dropout=0 never trains",
        ),
        (lambda: MODEL.check_condition(tokens=long), "a text has 5 tokens, and the model has places for 4"),
        (lambda: MODEL.check_condition(tokens=long[:, :4] + 9), "the text has the token 9, which lies outside the voc"),
        (lambda: MODEL.check_condition(negative_tokens=long[:, :4]), "guidance.scale is 0"),
        (lambda: SPARSE.init(jax.random.key(0), {"x": long}), "the batch has only x; choose --data=pairs"),
        (
            lambda: dataclasses.replace(DENSE, network=dataclasses.replace(DENSE.network, max_length=6)).init(
                jax.random.key(0), {"tokens": long[:, :4]}
            ),
            "the texts and codes take 7 places, but the longest context is model.prior.network.max_length=6",
        ),
        (lambda: dataclasses.replace(SPARSE, convolution_size=4), "convolution_size=4 must be odd"),
        (lambda: dataclasses.replace(SPARSE, text_weight=-1.0), "text_weight and code_weight must not be negative"),
        (lambda: dataclasses.replace(MODEL, condition_dropout=1.0), "must be at least 0 and below 1"),
        (lambda: dataclasses.replace(MODEL, sampling=Sampling(repetition_penalty=2.0)), "codes repeat: leave it at 1"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    MODEL.check_start(AUTOENCODER)
    MODEL.check_start(MODEL)
    dataclasses.replace(MODEL, untrained_vq_vae=True).check_start(None)
