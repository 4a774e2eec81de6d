"""A step whose update is skipped leaves the whole state, of families that renew more than what an optimizer does."""

import chex
import jax
import jax.numpy as jnp
import pytest

from genjax.families.autoencoder.autoencoder import Autoencoder
from genjax.families.energy.boltzmann_machine import RestrictedBoltzmannMachine
from genjax.families.energy.energy_based_model import EnergyBasedModel
from genjax.families.gan.augmentation import ADA
from genjax.families.gan.dcgan import DCGANNetwork
from genjax.families.gan.gan import GAN
from genjax.families.gan.turns import Turns
from genjax.families.markov.hidden_markov_model import HiddenMarkovModel
from genjax.families.vae.vq_vae import VQVAE
from genjax.model import TrainState
from genjax.nn.emissions import Gaussian
from genjax.nn.encoder_decoder import MLPNetwork
from genjax.optimizers import SGD

SKIPPING = SGD(learning_rate=0.1, skip_nonfinite=True)
AVERAGING = SGD(learning_rate=0.1, skip_nonfinite=True, ema_decay=0.5)
BOTH = {"generator_optimizer": AVERAGING, "discriminator_optimizer": SKIPPING}
PICTURE = (8, 8, 1)
CODES = {"data_shape": PICTURE, "channels": (2,), "embedding_dim": 2, "num_codes": 9, "restart_below": 3.0}
MODELS = {
    # All codes are used so rarely that they restart.
    "vq_vae": VQVAE(**CODES, optimizer=AVERAGING),
    "vq_vae_gradient": VQVAE(**CODES, codebook="gradient", optimizer=SKIPPING),
    "autoencoder": Autoencoder(
        data_shape=PICTURE, latent_dim=2, network=MLPNetwork(hidden_dims=(3,)), optimizer=AVERAGING
    ),
    "energy": EnergyBasedModel(hidden_dims=(2,), buffer_size=6, num_langevin_steps=1, low=0.0, optimizer=SKIPPING),
    "rbm": RestrictedBoltzmannMachine(num_hidden=3, num_chains=5, data_shape=PICTURE, optimizer=SKIPPING),
    "gan": GAN(
        data_shape=PICTURE,
        latent_dim=2,
        network=DCGANNetwork(base_channels=2),
        objective="relativistic_average",
        augmentation=ADA(groups=("color",), images_to_one=60, initial_probability=0.5),
        **BOTH,
    ),
    "hidden_markov_model": HiddenMarkovModel(
        num_states=2, emission=Gaussian(), algorithm="gradient", optimizer=SKIPPING
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_skipped_step_leaves_the_whole_state(name):
    model, key = MODELS[name], jax.random.key(1)
    shape = (4, 3) if name == "hidden_markov_model" else PICTURE
    x = jax.random.uniform(jax.random.key(0), (4, *shape))
    batch = {"x": x}
    state = jax.jit(model.init)(jax.random.key(0), batch)
    with jax.debug_nans(False):
        step = jax.jit(model.train_step)
        bad, metrics = step(state, jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), batch), key)
        good, _ = step(state, batch, key)
    assert metrics["skipped"] == 1.0 and int(bad.step) == 1
    chex.assert_trees_all_equal(bad.replace(step=state.step), state)
    if state.learned or state.extra:
        with pytest.raises(AssertionError):
            chex.assert_trees_all_equal((good.learned, good.extra), (state.learned, state.extra))


def test_turns_leave_what_a_skipped_update_would_have_changed():
    optimizers = {"generator": AVERAGING, "discriminator": SKIPPING}
    state = TrainState.create(
        {"generator": jnp.ones(2), "discriminator": jnp.ones(2)}, optimizers, {"pool": jnp.ones(3)}
    )
    batch = {"x": jnp.ones((4, 2))}

    def step(scales):
        turns = Turns(state, optimizers)
        for name, scale in scales.items():
            loss = lambda p, b, k, s=scale: (s * (p[None] * b["x"]).mean(), {})
            turns.update(name, loss, batch, jax.random.key(0))
        return turns.finish(loss="generator", extra={"pool": jnp.zeros(3)})[0]

    with jax.debug_nans(False):
        for name in ("generator", "discriminator"):
            new = step({"generator": 1.0, "discriminator": 1.0, name: jnp.nan})
            chex.assert_trees_all_equal(new.extra, state.extra)
            kept = jax.tree.map(lambda a, b: bool((a == b).all()), new.params, state.params)
            assert kept == {"generator": name == "generator", "discriminator": name == "discriminator"}
            assert bool((new.ema_params["generator"] == 1.0).all()) == (name == "generator")
    assert float(step({"generator": 1.0, "discriminator": 1.0}).extra["pool"].sum()) == 0.0
