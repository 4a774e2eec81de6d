"""The networks of diffusion models: sizes of the papers, memory and precision, and a classifier of noisy data that
guides.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config
from genjax.families.diffusion.discrete import MaskedDiffusion
from genjax.families.diffusion.guidance import with_classifier
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.noisy_classifier import NoisyClassifier
from genjax.families.diffusion.processes import Karras
from genjax.families.diffusion.samplers import Estimate, Heun
from genjax.families.diffusion.unet import UNet, _ResidualBlock, _resized
from genjax.families.diffusion.vq_diffusion import VQDiffusion
from genjax.families.vae.vq_vae import VQVAE
from genjax.optimizers import Adam

ENTRIES = config.import_experiments()


def millions(model):
    """Parameters of a model, without making them."""
    batch = {"x": jnp.zeros((1, *model.data_shape)), "label": jnp.zeros((1,), jnp.int32)}
    shapes = jax.eval_shape(model.init_params, jax.random.key(0), batch)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / 1e6


def test_the_unet_of_cifar_10_has_the_size_of_the_paper():
    model = dataclasses.replace(ENTRIES["ddpm_cifar10"].build().model, data_shape=(32, 32, 3))
    assert abs(millions(model) / 35.7 - 1) < 0.01


@pytest.mark.parametrize(("name", "expected"), [("dit_b4_imagenet", 130), ("dit_xl2_imagenet", 675)])
def test_the_transformers_of_imagenet_have_the_sizes_of_the_paper(name, expected):
    model = ENTRIES[name].build().model

    def of_depth(depth):
        network = dataclasses.replace(model.network, num_layers=depth, remat=False)
        return millions(dataclasses.replace(model, data_shape=(32, 32, 4), num_classes=1000, network=network))

    first, second = of_depth(1), of_depth(2)
    assert abs((first + (model.network.num_layers - 1) * (second - first)) / expected - 1) < 0.01


def test_edm_on_cifar_10_has_the_rates_of_the_paper():
    experiment = ENTRIES["edm_cifar10"].build()
    batch, optimizer = experiment.data.batch_size, experiment.model.optimizer
    assert batch == 512 and optimizer.clip_norm is None and experiment.model.network.num_heads == 1
    np.testing.assert_allclose(math.log(0.5) / math.log(optimizer.ema_decay) * batch, 500e3, rtol=1e-6)
    np.testing.assert_allclose(optimizer.schedule.warmup_steps * batch, 10e6, rtol=1e-3)
    np.testing.assert_allclose(experiment.training.num_steps * batch, 200e6, rtol=1e-3)


TINY = UNet(channels=4, channel_multipliers=(1,), num_blocks=1, attention_levels=(0,), num_heads=2)


def test_a_unet_that_computes_again_or_in_bfloat16_gives_the_same():
    x, time = jax.random.normal(jax.random.key(0), (2, 4, 2)), jnp.array([10.0, 700.0])
    plain, again = (dataclasses.replace(TINY, remat=remat).build(2, None, jnp.float32) for remat in (False, True))
    short = TINY.build(2, None, jnp.bfloat16)
    shapes = jax.eval_shape(plain.init, jax.random.key(0), x, time, {})["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), jnp.float32), shapes)

    def loss(params, module):
        return jnp.square(module.apply({"params": params}, x, time, {})).mean()

    assert "remat" in str(jax.make_jaxpr(lambda p: loss(p, again))(params))
    gradients = [jax.jit(jax.grad(loss), static_argnums=1)(params, module) for module in (plain, again)]
    for ours, expected in zip(jax.tree.leaves(gradients[1]), jax.tree.leaves(gradients[0]), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-3 * float(jnp.abs(expected).max()) + 1e-5)
    values = [jax.jit(module.apply)({"params": params}, x, time, {}) for module in (plain, short)]
    assert values[1].dtype == jnp.float32
    assert 1e-5 < float(jnp.abs(values[1] - values[0]).max() / jnp.abs(values[0]).max()) < 0.1


def test_blocks_that_resample_and_heads_of_a_width():
    network = dataclasses.replace(TINY, channel_multipliers=(1, 2), resample_blocks=True, head_channels=4)
    assert [network.heads_for(w) for w in (4, 8)] == [1, 2] and TINY.heads_for(16) == 2
    x = jax.random.normal(jax.random.key(0), (1, 5, 4, 8))
    init = network.build(2, None, jnp.float32).init_with_output
    y, variables = jax.eval_shape(init, jax.random.key(0), x, jnp.ones(1), {})
    # Both resample inside of a residual block, which sees the time.
    assert y.shape == (1, 5, 4, 2) and all("adapt" in variables["params"][name] for name in ("halve_0", "double_1"))
    # New blocks add nothing yet: what is left is the resampling itself.
    columns = x.reshape(1, 5, 2, 2, 8).mean(3)
    # The last of five rows is alone.
    half = jnp.concatenate([columns[:, :4].reshape(1, 2, 2, 2, 8).mean(2), columns[:, 4:]], axis=1)
    for places, expected in (
        ((3, 2), half),
        ((10, 8), x.repeat(2, 1).repeat(2, 2)),
        ((9, 8), x.repeat(2, 1).repeat(2, 2)[:, :9]),
    ):
        block = _ResidualBlock(8, network, jnp.float32, places)
        y, _ = jax.jit(block.init_with_output)(jax.random.key(1), x, jnp.ones((1, 16)), None)
        assert y.shape[1:3] == places
        np.testing.assert_allclose(y[:, : expected.shape[1]], expected, atol=1e-6)
    np.testing.assert_allclose(_resized(jnp.ones((1, 7, 7, 1)), (4, 4)), 1.0)
    with pytest.raises(ValueError, match="head_channels=3 does not divide the width 4"):
        init = dataclasses.replace(TINY, head_channels=3).build(2, None, jnp.float32).init
        jax.eval_shape(init, jax.random.key(0), x, jnp.ones(1), {})


def test_a_classifier_of_noisy_data_learns_the_posterior_of_the_classes_and_guides_to_them():
    # Classes at -1 and 1 with deviation 0.3: log p(1 | z) - log p(0 | z) = 2 z / (0.09 + sigma^2).
    model = NoisyClassifier(
        data_shape=(1,), num_classes=2, network=ResidualMLP(hidden_dim=32, num_blocks=1), sigma_data=1.0,
        process=Karras(t_max=20.0), sampler=Heun(num_steps=20), optimizer=Adam(learning_rate=3e-3),
    )  # fmt: skip

    def batch_of(key):
        keys = jax.random.split(key)
        label = jax.random.randint(keys[0], (256,), 0, 2)
        return {"x": (2.0 * label - 1.0)[:, None] + 0.3 * jax.random.normal(keys[1], (256, 1)), "label": label}

    def body(state, key):
        return model.train_step(state, batch_of(key), jax.random.fold_in(key, 1))

    @jax.jit
    def run(key):
        state = jax.lax.scan(body, model.init(key, batch_of(key)), jax.random.split(key, 400))[0]
        return state, model.evaluate(state, batch_of(jax.random.fold_in(key, 1)), key), model.sample(state, key, 10)

    state, metrics, own = run(jax.random.key(0))
    z, sigma = jnp.array([[-1.2], [-0.3], [0.4], [1.0]]), 1.0
    logits = model.class_logits(state.params, z, jnp.full((4,), sigma))
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], 2 * z[:, 0] / (0.09 + sigma**2), atol=0.5)

    with pytest.raises(ValueError, match="between 0 and 1"):
        model.check_labels(np.array([0, 2]))

    def mixture(z, t, x0):
        mean = lambda c: (0.09 * z + t**2 * c) / (0.09 + t**2)
        share = jax.nn.sigmoid(2 * z / (0.09 + t**2))
        return Estimate(share * mean(1.0) + (1.0 - share) * mean(-1.0))

    @jax.jit
    def guided(key, label):
        denoise = with_classifier(mixture, model.process, model.log_likelihood(state, label))
        z = model.process.prior_scale * jax.random.normal(key, (len(label), 1))
        return model.sampler.run(denoise, model.process, z, key)

    label = jnp.arange(1000) % 2
    samples = guided(jax.random.key(1), label)[:, 0]
    assert float(((samples > 0) == (label == 1)).mean()) > 0.93
    np.testing.assert_allclose(samples[1::2].mean(), 1.0, atol=0.2)
    assert metrics["accuracy_clean"].mean() > 0.98 > metrics["accuracy"].mean() > 0.6
    assert own[1::2].min() > own[::2].max()
    with pytest.raises(ValueError, match="no labels"):
        model.init(jax.random.key(0), {"x": jnp.ones((2, 1))})


def test_the_codes_of_a_vq_vae_have_a_masked_diffusion_for_their_prior():
    model = VQDiffusion(
        vq_vae=VQVAE(data_shape=(4, 4, 1), channels=(4,), num_codes=5, embedding_dim=3, codebook="gradient"),
        prior=MaskedDiffusion(hidden_dim=8, num_layers=1, num_heads=2, num_steps_sampling=3, num_bound_samples=4),
    )
    batch = {"x": jax.random.uniform(jax.random.key(0), (4, 4, 4, 1)), "label": jnp.arange(4)}

    def run(key):
        state = model.init(key, batch)
        new, metrics = model.train_step(state, batch, key)
        codes = model.codes(state.params, batch)["tokens"]
        return new.params, metrics, model.evaluate(new, batch, key), model.sample(new, key, 3), codes

    _, metrics, values, samples, codes = jax.eval_shape(run, jax.random.key(1))
    assert codes.shape == (4, 4) and samples.shape == (3, 4, 4, 1) and metrics["loss"].shape == ()
    assert all(value.shape == (4,) for value in values.values())
    values = jax.jit(lambda k: model.evaluate(model.init(k, batch), batch, k))(jax.random.key(1))
    np.testing.assert_allclose(values["nll_bound"], values["code_nll_bound"] + values["reconstruction"], rtol=1e-5)
    assert np.isfinite(values["nll_bound"]).all() and np.all(values["code_nll_bound"] > 0)
