"""The discrete VAE: its relaxation, its KL and its likelihood in closed form, its networks against the authors'."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax.errors import UserError
from genjax.families.vae.discrete_vae import (
    Annealing,
    DiscreteVAE,
    _Decoder,
    _Encoder,
    kl_to_uniform,
    relaxed_codes,
)  # fmt: skip
from genjax.nn.distributions import Gaussian, LogitLaplace

SMALL = DiscreteVAE(
    data_shape=(8, 8, 3),
    channels=(4, 8),
    input_kernel=3,
    embedding_dim=5,
    num_codes=6,
    temperature=Annealing(start=1.0, stop=0.5, num_steps=10),
    kl_weight=Annealing(start=0.0, stop=2.0, num_steps=10, share=0.5),
    output=LogitLaplace(low=-1.0, high=1.0),
)


@pytest.fixture(scope="module")
def batch():
    return {"x": jax.random.uniform(jax.random.key(0), (3, 8, 8, 3), minval=-1.0, maxval=1.0)}


@pytest.fixture(scope="module")
def state(batch):
    return jax.jit(SMALL.init)(jax.random.key(1), batch)


def test_the_relaxation_tends_to_the_draw_of_the_gumbel_maximum():
    logits = jnp.array([[0.5, -1.0, 1.5, 0.0]])
    noise = jax.random.gumbel(jax.random.key(0), (4000, 4))
    cold, warm = (relaxed_codes(logits, noise, tau) for tau in (1e-3, 1e3))
    np.testing.assert_allclose(cold.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(cold.argmax(-1), (logits + noise).argmax(-1))
    # Nearly all draws are one code, and each is drawn with its probability: 5 standard errors.
    assert float((cold.max(-1) > 0.999).mean()) > 0.99
    np.testing.assert_allclose(cold.mean(0), jax.nn.softmax(logits)[0], atol=5 * math.sqrt(0.25 / 4000))
    np.testing.assert_allclose(warm, 0.25, atol=5e-3)


def test_the_kl_is_that_of_the_encoder_and_does_not_depend_on_the_number_of_copies(batch, state):
    logits = np.array([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = [stats.entropy(row, np.full(3, 1 / 3)) for row in q]
    np.testing.assert_allclose(kl_to_uniform(jnp.float32(logits)), expected, atol=1e-6)
    one = {"x": batch["x"][:1]}
    of_copies = []
    for count in (1, 4):
        copies = {"x": jnp.tile(one["x"], (count, 1, 1, 1))}
        metrics = jax.jit(SMALL.loss)(state.params, copies, jax.random.key(0), jnp.int32(3))[1]
        of_copies.append(float(metrics["kl"]))
    np.testing.assert_allclose(of_copies, of_copies[0], rtol=1e-6)
    probabilities = np.asarray(jax.nn.softmax(SMALL.code_logits(state.params, one["x"])), np.float64).reshape(-1, 6)
    np.testing.assert_allclose(of_copies[0], sum(stats.entropy(q, np.full(6, 1 / 6)) for q in probabilities), rtol=1e-4)


def test_the_loss_is_the_likelihood_of_the_relaxed_codes_and_the_weighted_kl(batch, state):
    step, key = jnp.int32(2), jax.random.key(5)
    loss, metrics = jax.jit(SMALL.loss)(state.params, batch, key, step)
    logits = jax.jit(SMALL.code_logits)(state.params, batch["x"])
    noise = jnp.stack([jax.random.gumbel(jax.random.fold_in(key, i), (4, 4, 6)) for i in range(3)])
    tau = 0.5 + 0.5 * 0.5 * (1 + math.cos(0.2 * math.pi))
    weight = 2.0 - 2.0 * 0.5 * (1 + math.cos(0.4 * math.pi))
    vectors = jax.nn.softmax((logits + noise) / tau) @ state.params["codebook"]
    reconstruction = -jax.jit(SMALL.log_likelihood_given)(state.params, batch["x"], vectors).mean()
    np.testing.assert_allclose(float(metrics["temperature"]), tau, rtol=1e-6)
    expected = reconstruction + weight * kl_to_uniform(logits).sum((1, 2)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_number_is_annealed_over_its_share_of_the_run():
    at = lambda **fields: [float(Annealing(num_steps=10, **fields).at(jnp.int32(t))) for t in (0, 2, 4, 10)]
    np.testing.assert_allclose(at(start=1.0, stop=0.0, share=0.4), [1.0, 0.5, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(at(start=1.0, stop=3.0, share=0.0), 3.0)


def test_logit_laplace_is_a_density_of_the_picture_and_its_middle_is_shown():
    output = LogitLaplace(low=-1.0, high=1.0, learned_scale="fixed", scale=0.4)
    x = np.array([-1.0, -0.3, 0.0, 0.8, 1.0])
    y = 0.5 + 0.4 * x
    expected = stats.laplace.logpdf(np.log(y / (1 - y)), 0.7, 0.4) - np.log(y * (1 - y)) + math.log(0.4)
    parameters = jnp.array([[0.7]])
    np.testing.assert_allclose(output.log_prob(parameters, jnp.float32(x)), expected, rtol=1e-5)
    # Its mass, over 0 < y < 1, is 1.
    grid = np.linspace(-1.25, 1.25, 20002)[1:-1]
    density = np.exp(np.asarray(output.log_prob(parameters, jnp.float32(grid)), np.float64))
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1.0, abs=1e-3)
    draws = output.sample(jnp.full((4001, 1), 0.7), jax.random.key(0))
    middle = (1 / (1 + math.exp(-0.7)) - 0.5) / 0.4
    assert float(output.mean(parameters)[0]) == pytest.approx(middle, abs=1e-5)
    assert float(jnp.median(draws)) == pytest.approx(middle, abs=0.05)
    wide = LogitLaplace(low=-1.0, high=1.0).mean(jnp.array([[9.0, 0.0], [-9.0, 0.0]]))
    np.testing.assert_allclose(wide, [1.0, -1.0])


def test_codes_are_the_likeliest_and_evaluation_is_of_them(batch, state):
    codes = jax.jit(SMALL.encode_codes)(state, batch)
    assert codes.shape == (3, *SMALL.code_shape) == (3, 4, 4)
    np.testing.assert_array_equal(codes, jax.jit(SMALL.encode)(state, batch).argmax(-1))
    evaluate = jax.jit(SMALL.evaluate)
    metrics = evaluate(state, batch, jax.random.key(0))
    vectors = state.params["codebook"][codes]
    reconstruction = -jax.jit(SMALL.log_likelihood_given)(state.params, batch["x"], vectors)
    np.testing.assert_allclose(metrics["reconstruction"], reconstruction, rtol=1e-5)
    np.testing.assert_allclose(metrics["nll_bound"] - reconstruction, 16 * math.log(6), rtol=1e-4)
    shown = jax.jit(SMALL.reconstruct)(state, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["mean_squared_error"], jnp.square(shown - batch["x"]).mean((1, 2, 3)), rtol=1e-5)
    again = jax.jit(SMALL.sample, static_argnums=2)(state, jax.random.key(0), 3, codes=codes)
    np.testing.assert_allclose(again, shown, atol=1e-5)
    assert jnp.isnan(evaluate(state, {"x": batch["x"] + 1.5}, jax.random.key(0))["reconstruction"]).any()


def test_squared_error_is_a_choice_and_gives_gradients_to_encoder_and_codes(batch, state):
    model = dataclasses.replace(SMALL, output=Gaussian(scale=0.1))
    params = {**state.params, "decoder": _Decoder(model).init(jax.random.key(2), jnp.zeros((1, 4, 4, 5)))["params"]}
    gradient = jax.jit(jax.grad(lambda p: model.loss(p, batch, jax.random.key(0), jnp.int32(0))[0]))(params)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codes": 1}, "model.num_codes=1 must be at least 2"),
        ({"channels": (6,)}, "each a multiple of 4"),
        ({"input_kernel": 4}, "model.input_kernel=4 must be odd"),
        ({"temperature": Annealing(stop=0.0)}, "model.temperature must stay positive"),
    ],
)
def test_impossible_sizes_are_refused_in_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_codes_outside_of_the_codebook_are_refused(state):
    with pytest.raises(UserError, match="a map has the code 6, and the codebook has the codes 0 to 5"):
        SMALL.decode_codes(state, jnp.full((1, 4, 4), 6))
    with pytest.raises(UserError, match="LogitLaplace.epsilon=0.5 must lie between 0 and 0.5"):
        LogitLaplace(epsilon=0.5)


def of_torch(peer, prefix):
    """Parameters of a network of the package dall-e in our tree."""
    params, names = {}, {"input": "input", "output.conv": "output"}
    for name, value in peer.state_dict().items():
        *way, kind = name.removeprefix("blocks.").split(".")
        if way[0].startswith("group"):
            level = int(way[0][-1]) - 1
            level = level if prefix == "encoder" else 3 - level
            inner = "skip" if way[2] == "id_path" else way[3]
            at = params.setdefault(f"block_{level}_{int(way[1][-1]) - 1}", {}).setdefault(inner, {})
        else:
            at = params.setdefault(names[".".join(way)], {})
        array = value.numpy()
        at["kernel" if kind == "w" else "bias"] = jnp.asarray(array.transpose(2, 3, 1, 0) if kind == "w" else array)
    return params


def test_the_networks_are_those_of_the_authors_package():
    dall_e, torch = pytest.importorskip("dall_e"), pytest.importorskip("torch")
    torch.manual_seed(0)
    encoder, decoder = (
        dall_e.Encoder(n_hid=64, n_blk_per_group=1, vocab_size=512),
        dall_e.Decoder(n_init=16, n_hid=64, n_blk_per_group=1, vocab_size=512),
    )
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *decoder.parameters()):
            if parameter.ndim == 1:
                parameter.normal_(std=0.1)
    model = DiscreteVAE(
        data_shape=(16, 16, 3),
        channels=(64, 128, 256, 512),
        embedding_dim=16,
        num_codes=512,
        output=LogitLaplace(low=0.0, high=1.0),
    )
    assert sum(p.numel() for p in encoder.parameters()) == 1321744
    x = np.random.default_rng(0).uniform(size=(2, 16, 16, 3)).astype(np.float32)
    mapped = dall_e.map_pixels(torch.tensor(x.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(model.output.inside(x), mapped.numpy().transpose(0, 2, 3, 1), atol=1e-6)
    with torch.no_grad():
        logits = encoder(mapped)
        ours = _Encoder(model).apply({"params": of_torch(encoder, "encoder")}, jnp.asarray(model.output.inside(x)))
        np.testing.assert_allclose(ours, logits.numpy().transpose(0, 2, 3, 1), atol=1e-4)
        codes = logits.argmax(1)
        one_hot = torch.nn.functional.one_hot(codes, 512).permute(0, 3, 1, 2).float()
        found = decoder(one_hot).numpy().transpose(0, 2, 3, 1)
        shown = dall_e.unmap_pixels(torch.sigmoid(decoder(one_hot)[:, :3])).numpy().transpose(0, 2, 3, 1)
    params = of_torch(decoder, "decoder")
    first = params.pop("input")
    # Weights of one place sum to 1, so that the bias may stand in the codes' vectors.
    vectors = (first["kernel"][0, 0] + first["bias"][None])[codes.numpy()]
    parameters = _Decoder(model).apply({"params": params}, vectors)
    np.testing.assert_allclose(jnp.concatenate([parameters[..., 0], parameters[..., 1]], -1), found, atol=1e-4)
    np.testing.assert_allclose(model.output.mean(parameters), shown, atol=1e-4)
