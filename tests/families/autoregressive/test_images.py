"""Claims about PixelCNN and its kin: masks by the Jacobian, probabilities that sum to 1, fast and slow samplers
alike.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.autoregressive.gated_pixel_cnn import GatedPixelCNN
from genjax.families.autoregressive.image_gpt import ImageGPT
from genjax.families.autoregressive.pixel_cnn import PixelCNN
from genjax.families.autoregressive.pixel_cnn_pp import PixelCNNPP
from genjax.families.autoregressive.pixel_rnn import PixelRNN
from genjax.families.autoregressive.pixel_snail import PixelSNAIL
from genjax.families.autoregressive.vq_prior import VQPrior
from genjax.families.diffusion.vq_diffusion import VQDiffusion
from genjax.families.language.bert import EncoderNetwork
from genjax.families.language.encoder_tasks import MaskedLanguageModel
from genjax.families.vae.vq_vae import VQVAE
from genjax.model import GenerativeModel, HasLogProb, TrainState, takes
from genjax.nn.distributions import Bernoulli, Categorical
from genjax.nn.logistic_mixture import DiscretizedLogisticMixture
from genjax.nn.mixture_of_experts import MixtureOfExperts
from genjax.nn.transformer import Transformer
from genjax.nn.vision_transformer import VisionTransformer
from genjax.optimizers import AdamW
from genjax.training.checkpoints import Checkpoints
from genjax.training.warm_start import warm_start

GREY = {"data_shape": (4, 4, 1), "output_dim": 5}
COLOUR = {"data_shape": (4, 4, 3), "output_dim": 5, "class_conditional": True, "num_classes": 3}
SMALL = {"num_blocks": 1, "hidden_dim": 3, "first_size": 5}
GATED = {"num_layers": 2, "hidden_dim": 8, "first_size": 5}
MIXTURE = DiscretizedLogisticMixture(num_components=2, num_levels=4)
CODES = {"input_encoding": "one_hot", "output": Categorical(low=0.0, high=3.0, num_levels=4)}
MODELS = {
    "pixel_cnn": PixelCNN(**GREY, **SMALL, learned_positions=True),
    "pixel_cnn_colour": PixelCNN(**COLOUR, **SMALL, output=Categorical(num_levels=3)),
    "gated": GatedPixelCNN(**GREY, **GATED),
    "gated_codes": GatedPixelCNN(**GREY, **GATED, **CODES),
    "gated_colour": GatedPixelCNN(**COLOUR, **GATED, output=MIXTURE),
}
MODELS |= {
    "snail": PixelSNAIL(
        **{**COLOUR, "data_shape": (4, 4, 1)}, hidden_dim=8, num_blocks=1, num_residual=1, key_dim=4, dropout=0.5
    ),
    "gpt": ImageGPT(
        data_shape=(4, 4, 1),
        class_conditional=True,
        num_classes=3,
        transformer=Transformer(num_layers=1, width=8, num_heads=2, positions="none", dropout=0.5),
    ),
}
MODELS["plus_plus"] = PixelCNNPP(
    data_shape=(4, 4, 3),
    class_conditional=True,
    num_classes=3,
    hidden_dim=4,
    num_blocks=1,
    num_levels=2,
    output=MIXTURE,
)
MODELS["rnn"] = PixelRNN(**{**COLOUR, "data_shape": (3, 4, 1)}, hidden_dim=3, num_layers=2)
each_model = pytest.mark.parametrize("name", MODELS)


def lattice(output):
    """All values of a pixel's channel."""
    return np.linspace(getattr(output, "low", 0.0), getattr(output, "high", 1.0), getattr(output, "num_levels", 2))


def randomised(params, scale=0.5):
    """Parameters drawn anew, so that none is zero."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [jnp.asarray(scale * rng.normal(size=a.shape), jnp.float32) for a in leaves])


@functools.cache
def prepared(name):
    """Model, a state with random parameters, a batch."""
    model = MODELS[name]
    x = np.random.default_rng(0).choice(lattice(model.output), (3, *model.data_shape))
    batch = {"x": jnp.asarray(x, jnp.float32), "label": jnp.arange(3)}
    state = jax.jit(model.init)(jax.random.key(0), batch)
    # Many gates in a row would saturate.
    scale = 0.15 if name == "plus_plus" else 0.5
    return model, state.replace(params=randomised(state.params, scale)), batch


@each_model
def test_contract(name):
    model, state, batch = prepared(name)
    assert isinstance(model, GenerativeModel) and isinstance(model, HasLogProb)
    train_step = jax.jit(model.train_step)
    new, metrics = train_step(state, batch, jax.random.key(1))
    assert int(new.step) == 1 and np.isfinite(metrics["loss"])
    # Whatever drops units does so with the key.
    assert (train_step(state, batch, jax.random.key(2))[1]["loss"] != metrics["loss"]) == (model.dropout_rate() > 0)
    unchanged = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, new.params)
    assert not any(jax.tree.leaves(unchanged)), unchanged


@pytest.mark.parametrize(
    ("name", "conditional"),
    [(name, MODELS[name].class_conditional) for name in MODELS] + [(name, False) for name in ("snail", "gpt", "rnn")],
)
def test_features_ignore_pixels_at_or_after_their_place(name, conditional):
    model, state, batch = prepared(name)
    # Parameters that serve a class are left over where there is none.
    model = dataclasses.replace(model, class_conditional=conditional)
    if model.input_encoding == "one_hot":
        row, pixel = model.networks("full")

        def features(encoded):
            context = row.apply({"params": state.params["row"]}, encoded, None, None)
            return pixel.apply({"params": state.params["pixel"]}, encoded, context, None, None)

        x = model.encoded(batch["x"])
    else:
        features = lambda x: model.hidden(state.params, x, model.labels(batch))
        x = batch["x"]
    h, w, _ = model.data_shape
    # Examples do not meet, so that the gradients of their sum are those of each.
    jacobian = jax.jit(jax.jacrev(lambda x: features(x).sum((0, -1)).reshape(h * w)))(x)  # [H W, B, H, W, C]
    influence = np.abs(jacobian).sum((1, -1)).reshape(h * w, h * w)
    np.testing.assert_array_equal(np.triu(influence), 0.0)
    if name.startswith(("gated", "snail", "gpt", "plus_plus", "rnn")):
        # No blind spot: every pixel sees all before it.
        assert np.all(influence[np.tril_indices(h * w, -1)] > 0)


@each_model
def test_channels_ignore_themselves_and_later_channels(name):
    model, state, batch = prepared(name)
    label = model.labels({"label": batch["label"][:1]})
    if isinstance(model.output, DiscretizedLogisticMixture):
        pytest.skip("the mixture couples channels inside the distribution")
    head = lambda x: model.parameters(state.params, x, label)[0].sum(-1)[1, 1]
    jacobian = np.abs(jax.jit(jax.jacrev(head))(batch["x"][:1])[:, 0, 1, 1])
    np.testing.assert_array_equal(np.triu(jacobian), 0.0)
    assert np.all(jacobian[np.tril_indices(model.data_shape[-1], -1)] > 0)


@each_model
def test_fast_sampler_draws_what_the_slow_one_draws(name):
    """Given some channels of pixels, at another temperature than 1."""
    model, state, batch = prepared(name)
    known = jax.random.bernoulli(jax.random.key(4), 0.3, batch["x"].shape)
    complete = jax.jit(model.complete, static_argnames="cached")
    arguments = (state, jax.random.key(3), batch["x"], known, model.labels(batch), jnp.float32(0.7))
    fast, slow = (complete(*arguments, cached=cached) for cached in (True, False))
    np.testing.assert_allclose(fast, slow, atol=1e-6)
    np.testing.assert_array_equal(fast[known], batch["x"][known])
    distance = np.abs(np.asarray(fast)[..., None] - lattice(model.output)).min(-1)
    assert distance.max() < 1e-5 and len(np.unique(np.round(fast[~known], 4))) > 1


TERNARY = DiscretizedLogisticMixture(num_components=2, num_levels=3)
SPACES = {
    "pixel_cnn": {"data_shape": (3, 3, 1)},
    "pixel_cnn_colour": {"data_shape": (1, 2, 3)},
    "gated": {"data_shape": (3, 3, 1)},
    "gated_colour": {"data_shape": (1, 2, 3), "output": TERNARY},
    "snail": {"data_shape": (3, 3, 1)},
    "gpt": {"data_shape": (3, 3, 1)},
    "plus_plus": {"data_shape": (2, 2, 2), "output": TERNARY},
    "plus_plus_three_levels": {
        "data_shape": (4, 4, 1),
        "num_levels": 3,
        "output": Bernoulli(),
        "class_conditional": False,
    },
    "rnn": {"data_shape": (3, 3, 1)},
}


@pytest.mark.parametrize("name", SPACES)
def test_probabilities_of_all_pictures_sum_to_one(name):
    model = dataclasses.replace(MODELS[name.removesuffix("_three_levels")], **SPACES[name])
    size = int(np.prod(model.data_shape))
    pictures = np.array(list(itertools.product(lattice(model.output), repeat=size)), np.float32)
    batch = {"x": jnp.asarray(pictures.reshape(-1, *model.data_shape)), "label": jnp.ones(len(pictures), jnp.int32)}
    params = jax.eval_shape(model.init, jax.random.key(0), batch).params
    state = TrainState.create(randomised(params))
    log_prob = np.asarray(jax.jit(model.log_prob)(state, batch), np.float64)
    assert np.log(np.exp(log_prob).sum()) == pytest.approx(0.0, abs=1e-4)
    assert np.ptp(log_prob) > 1.0  # far from uniform, for which no network is needed


def completions(joint, given, known, temperature):
    """Probabilities of all x by the chain rule from their joint [L, ..., L], where known values [D] are `given`."""
    total = 1.0
    for d in range(joint.ndim):
        before = joint.sum(tuple(range(d + 1, joint.ndim)))
        if known[d]:
            conditional = np.eye(joint.shape[d])[given[d]]
        else:
            conditional = (before / before.sum(-1, keepdims=True)) ** (1.0 / temperature)
            conditional = conditional / conditional.sum(-1, keepdims=True)
        total = total * np.broadcast_to(conditional, before.shape).reshape(*before.shape, *[1] * (joint.ndim - d - 1))
    return total


@pytest.mark.parametrize(
    ("name", "shape", "output", "known", "temperature"),
    [
        ("pixel_cnn_colour", (1, 2, 2), Categorical(num_levels=3), (True, False, False, True), 1.0),
        ("pixel_cnn_colour", (1, 1, 3), Bernoulli(), (False, True, False), 0.6),
        ("gated_colour", (1, 1, 3), dataclasses.replace(TERNARY, low=-1.0), (True, False, False), 1.0),
        ("gated_colour", (1, 1, 3), TERNARY, (False, True, False), 0.5),
        ("gated_colour", (1, 1, 3), TERNARY, (False, False, False), 2.0),
    ],
)
def test_completions_have_the_frequencies_of_the_enumerated_joint(name, shape, output, known, temperature):
    features = 5 if len(known) == 4 else 8
    model = dataclasses.replace(
        MODELS[name], data_shape=shape, output=output, output_dim=features, class_conditional=False
    )
    values, size, draws = lattice(output), len(known), 4000
    pictures = jnp.asarray(np.array(list(itertools.product(values, repeat=size))), jnp.float32).reshape(-1, *shape)
    params = jax.eval_shape(model.init, jax.random.key(0), {"x": pictures}).params
    state = TrainState.create(randomised(params, 1.0))
    joint = np.exp(jax.jit(model.log_prob)(state, {"x": pictures})).reshape(*[len(values)] * size)
    given = [0, 1, 0, 1][:size]
    expected = completions(joint.astype(np.float64), given, known, temperature)
    x = jnp.broadcast_to(values[np.array(given)].reshape(1, *shape), (draws, *shape)).astype(jnp.float32)
    got = jax.jit(model.complete)(state, jax.random.key(1), x, jnp.array(known).reshape(shape), None, temperature)
    level = np.abs(np.asarray(got).reshape(draws, size, 1) - values).argmin(-1)
    frequency = np.zeros_like(expected)
    np.add.at(frequency, tuple(level.T), 1.0 / draws)
    np.testing.assert_array_less(np.abs(frequency - expected), 4.5 * np.sqrt(expected / draws) + 1e-9)


def test_the_unit_of_the_values_does_not_matter():
    output = Categorical(num_levels=256)
    unit = dataclasses.replace(MODELS["pixel_cnn_colour"], data_shape=(1, 2, 3), output=output, class_conditional=False)
    byte = dataclasses.replace(unit, output=Categorical(high=255.0, num_levels=256))
    levels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 1, 2, 3)), jnp.float32)
    params = jax.eval_shape(unit.init, jax.random.key(0), {"x": levels / 255.0}).params
    state = TrainState.create(randomised(params))
    in_unit, in_bytes = (
        jax.jit(lambda s, x, m=m: (m.log_prob(s, {"x": x}), m.sample(s, jax.random.key(1), 3)))(state, x)
        for m, x in ((unit, levels / 255.0), (byte, levels))
    )
    np.testing.assert_allclose(in_bytes[0], in_unit[0], rtol=1e-5)
    np.testing.assert_allclose(in_bytes[1] / 255.0, in_unit[1], atol=1e-5)


def test_completion_keeps_the_upper_half():
    model, state, batch = prepared("gated_colour")
    again = jax.jit(model.reconstruct)(state, batch, jax.random.key(0))
    np.testing.assert_allclose(again[:, :2], batch["x"][:, :2], atol=1e-6)
    assert np.any(np.abs(again[:, 2:] - batch["x"][:, 2:]) > 0.1)


def test_parameters_of_the_output_are_float32_where_the_network_computes_in_bfloat16():
    model, state, batch = prepared("gated_colour")
    low = dataclasses.replace(model, compute_dtype="bfloat16")
    parameters = jax.jit(low.parameters)(state.params, batch["x"], batch["label"])
    assert (parameters != parameters.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.5


def test_class_changes_the_density():
    model, state, batch = prepared("gated_colour")
    x = jnp.broadcast_to(batch["x"][:1], batch["x"].shape)
    assert np.ptp(jax.jit(model.log_prob)(state, {**batch, "x": x})) > 1e-3


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="pictures"):
        PixelCNN(data_shape=(4,)).init(jax.random.key(0), {"x": jnp.zeros((2, 4))})


def test_experts_are_refused_where_nothing_would_balance_them():
    transformer = Transformer(num_layers=1, width=8, num_heads=2, positions="none", experts=MixtureOfExperts())
    with pytest.raises(ValueError, match="balance loss that a mixture of experts needs"):
        jax.eval_shape(dataclasses.replace(MODELS["gpt"], transformer=transformer).init, jax.random.key(0),
                       {"x": jnp.zeros((2, 4, 4, 1)), "label": jnp.zeros(2, int)})  # fmt: skip
    for network in (
        VisionTransformer(transformer, 2),
        EncoderNetwork(5, dataclasses.replace(transformer, causal=False), MaskedLanguageModel()),
    ):
        with pytest.raises(ValueError, match="balance loss"):
            jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((2, 4, 4, 1)))


def test_the_tools_see_that_a_prior_over_codes_is_conditional():
    conditional = VQPrior(prior=GatedPixelCNN(class_conditional=True, num_classes=3))
    assert takes(conditional, "label")
    assert not takes(VQPrior(), "label") and not takes(VQDiffusion(), "label")


def test_a_prior_over_codes_learns_alone_and_adds_its_bits(tmp_path):
    model = VQPrior(
        vq_vae=VQVAE(data_shape=(8, 8, 1), channels=(4,), num_codes=5, embedding_dim=3),
        prior=GatedPixelCNN(num_layers=2, hidden_dim=4, first_size=3, output_dim=4),
    )
    assert isinstance(model, GenerativeModel)
    batch = {"x": jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))}
    state = jax.jit(model.init)(jax.random.key(0), batch)
    # Codes that are moving averages lie beside the parameters of the run that they are taken from.
    vq_state = jax.jit(model.vq_vae.init)(jax.random.key(1), batch)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, vq_state)
    checkpoints.close()
    params = warm_start(state.params, str(tmp_path), ("encoder", "decoder", "codebook"))
    np.testing.assert_array_equal(params["codebook"], vq_state.learned["codebook"])
    state = state.replace(params=params)
    codes = jax.jit(model.codes)(params, batch)["x"][..., 0]
    np.testing.assert_array_equal(codes, jax.jit(model.vq_vae.encode_codes)(vq_state, batch))
    new, _ = jax.jit(model.train_step)(state, batch, jax.random.key(1))
    same = {
        n: all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), state.params[n], p)))
        for n, p in new.params.items()
    }
    assert same == {"encoder": True, "decoder": True, "codebook": True, "prior": False}
    # Nor does weight decay reach the average of what does not learn.
    prior = dataclasses.replace(model.prior, optimizer=AdamW(weight_decay=1.0, ema_decay=0.5))
    averaging = dataclasses.replace(model, prior=prior)
    averaged, _ = jax.jit(averaging.train_step)(
        TrainState.create(params, averaging.prior.optimizer), batch, jax.random.key(1)
    )
    np.testing.assert_array_equal(averaged.eval_params["codebook"], params["codebook"])
    metrics = jax.jit(model.evaluate)(new, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["nll_bound"], metrics["code_nll"] + metrics["reconstruction"], rtol=1e-6)
    assert np.all(metrics["code_nll"] < 3 * 16 * np.log(5))
    assert jax.jit(model.sample, static_argnums=2)(new, jax.random.key(0), 3).shape == (3, 8, 8, 1)
