"""Data whose values a model cannot score, or cannot learn from, are refused when the experiment is resolved."""

import jax
import numpy as np
import pytest

from genjax.data import Images, Points, Videos, Waveforms
from genjax.families.autoencoder.autoencoder import Autoencoder
from genjax.families.autoregressive.made import MADE
from genjax.families.autoregressive.vq_prior import VQPrior
from genjax.families.diffusion.ddpm import DDPM
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.vdm import VDM
from genjax.families.energy.energy_based_model import EnergyBasedModel
from genjax.families.flow.dequantization import Uniform
from genjax.families.flow.glow import Glow
from genjax.families.gan.adversarial_autoencoder import AdversarialAutoencoder
from genjax.families.gan.augmentation import ADA
from genjax.families.gan.gan import GAN
from genjax.families.vae.vae import VAE
from genjax.families.vae.vq_vae import VQVAE
from genjax.nn.distributions import Bernoulli, Categorical, DiscretizedLogistic, Gaussian
from genjax.training import Experiment, resolve
from genjax.values import Support, only_of_support

NAMES = ("unit", "signed", "levels", "binarize_static", "dequantize", "dequantize_signed", "logit")
UNIT = {"unit", "binarize_static"}
DENSE = {"dequantize", "dequantize_signed", "logit"}
#: For each model, which preprocessing of pictures it can score.
SCORED = {
    "vae_bernoulli": (VAE(output=Bernoulli()), UNIT),
    "vae_gaussian": (VAE(output=Gaussian()), set(NAMES)),
    "vae_logistic": (VAE(output=DiscretizedLogistic()), UNIT),
    "vae_logistic_signed": (VAE(output=DiscretizedLogistic(low=-1.0)), {"signed"}),
    "vq_vae": (VQVAE(output=Categorical()), UNIT),
    "vq_prior": (VQPrior(vq_vae=VQVAE(output=Categorical(low=0.0, high=16.0))), {"levels"}),
    "autoencoder": (Autoencoder(output=Bernoulli()), UNIT),
    "adversarial_autoencoder": (AdversarialAutoencoder(output=Bernoulli()), UNIT),
    "made": (MADE(output=Bernoulli()), {"binarize_static"}),
    "made_of_levels": (MADE(output=Categorical(num_levels=17)), UNIT),
    "glow": (Glow(), DENSE),
    "glow_of_unit": (Glow(logit_alpha=0.05), {"dequantize"}),
    "glow_of_levels": (Glow(dequantization=Uniform()), UNIT),
    "ddpm": (DDPM(), {"signed"} | DENSE),
    "ddpm_without_bound": (DDPM(bound_terms=0), set(NAMES)),
    "vdm": (VDM(), {"signed"} | DENSE),
    "edm": (EDM(), set(NAMES)),
    "edm_likelihood": (EDM(likelihood_steps=5), DENSE),
    "energy": (EnergyBasedModel(low=-1.0, high=1.0), set(NAMES) - {"levels", "logit"}),
    "gan": (GAN(augmentation=ADA(low=-1.0, high=1.0)), set(NAMES) - {"levels", "logit"}),
}


@pytest.mark.parametrize("name", SCORED)
def test_data_that_a_model_cannot_score_are_refused_when_the_experiment_is_resolved(name):
    model, scored = SCORED[name]
    for preprocessing in NAMES:
        experiment = Experiment(model=model, data=Images(name="digits", preprocessing=preprocessing))
        if preprocessing in scored:
            resolve(experiment)
        else:
            with pytest.raises(
                ValueError, match="^the data (have values|fill the range|are [0-9]+ levels).*; change .*data"
            ):
                resolve(experiment)


def test_other_data_than_pictures_say_their_values_where_they_know_them():
    assert Waveforms(name="tones").spec()["range"] == (-1.0, 1.0)
    with pytest.raises(ValueError, match="the data fill the range from -1 to 1"):
        resolve(Experiment(model=VAE(output=Bernoulli()), data=Waveforms(name="tones")))
    with pytest.raises(ValueError, match="the data have values from -1 to 1, but Bernoulli declares 0 to 1"):
        resolve(Experiment(model=VAE(output=Bernoulli()), data=Videos()))
    # Those of points are not known before they are seen.
    resolve(Experiment(model=VAE(output=Bernoulli()), data=Points()))


@pytest.mark.parametrize("preprocessing", NAMES)
def test_the_values_that_pictures_say_are_those_that_models_see(preprocessing):
    data = Images(name="digits", preprocessing=preprocessing)
    arrays = {name: a[:50] for name, a in data.load("train").arrays().items()}
    x = np.asarray(data.transform(arrays, jax.random.key(0))["x"])
    (low, high), levels = data.spec()["range"], data.spec()["num_levels"]
    Support(name="spec", remedy="it", low=low, high=high, num_levels=levels).check(x)
    # And no wider than it must be.
    assert x.min() < low + 0.3 * (high - low) and x.max() > high - 0.3 * (high - low)


def test_augmentations_take_their_range_from_the_data():
    model = GAN(augmentation=ADA())
    for preprocessing, low in (("unit", 0.0), ("signed", -1.0)):
        filled = resolve(Experiment(model=model, data=Images(name="digits", preprocessing=preprocessing))).model
        assert (filled.augmentation.low, filled.augmentation.high) == (low, 1.0)


def test_likelihoods_of_values_outside_of_a_support_are_nan_for_their_example_alone():
    x = np.array([[0.0, 0.5], [0.0, 0.25], [2.0, 0.0]])
    half = Support(name="it", remedy="it", low=0.0, high=1.0, num_levels=3)
    every = Support(name="it", remedy="it", low=0.0, high=1.0)
    with jax.debug_nans(False):
        np.testing.assert_array_equal(only_of_support(half, np.ones(3), x), [1.0, np.nan, np.nan])
        np.testing.assert_array_equal(only_of_support(every, np.ones((2, 3)), x), [[1.0, 1.0, np.nan]] * 2)
        np.testing.assert_array_equal(only_of_support(None, np.ones(3), x), np.ones(3))
