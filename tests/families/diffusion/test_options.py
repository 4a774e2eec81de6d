"""Options of diffusion models that mean something together: what must agree does, and what cannot work is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.diffusion import samplers, targets
from genjax.families.diffusion.consistency import ConsistencyModel
from genjax.families.diffusion.ddpm import DDPM
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.discrete import D3PM
from genjax.families.diffusion.editing import image_to_image
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.grids import times
from genjax.families.diffusion.guidance import Guidance, with_classifier
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.processes import Discrete, LinearInterpolant, Trigonometric
from genjax.families.diffusion.samplers import Estimate
from genjax.families.diffusion.times import LogitNormalTime, UniformTime
from genjax.families.diffusion.vdm import VDM
from genjax.model import TrainState

MLP = ResidualMLP(hidden_dim=4, num_blocks=1)
CHAIN = Discrete(num_timesteps=4, beta_min=0.1, beta_max=0.5)


def test_ancestral_steps_have_the_variance_that_the_models_bound_has():
    output = jax.random.normal(jax.random.key(0), (3, 4))
    z, t = jnp.ones((3, 2)), jnp.array([0.75, 0.5])
    now, then = (samplers.Node(a, CHAIN.alpha(a), CHAIN.sigma(a)) for a in t)

    def step(model, variance):
        denoise = lambda z, t, _: model._estimate_of(output, CHAIN, z, jnp.full((3,), t))
        carry = samplers.Carry(z, jnp.zeros_like(z), now)
        return samplers.Ancestral(variance=variance).step(denoise, CHAIN, carry, now, then, jax.random.key(1)).z

    drawn = {}
    for variance in ("small", "large", "learned"):
        model = DDPM(data_shape=(2,), network=MLP, process=CHAIN, variance=variance)
        drawn[variance] = step(model, "model")
        np.testing.assert_allclose(drawn[variance], step(model, variance), rtol=1e-5)
    assert np.all(np.abs(drawn["large"] - drawn["small"]) > 0.01)
    assert np.all(np.abs(drawn["learned"] - drawn["small"]) > 1e-3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(DDPM):
    """A DDPM that estimates the same data always."""

    value: float = 0.0

    def estimate(self, params, z, t, condition, x0_before=None):
        return Estimate(jnp.full_like(z, self.value))


def test_the_bound_is_that_of_the_chain_which_is_sampled():
    far = Constant(value=1.5, data_shape=(2,), process=CHAIN, bound_terms=3, num_levels=3)
    bound = jax.jit(lambda model, x: model.bound_terms_of({}, {"x": x}, jax.random.key(0))["total"], static_argnums=0)
    x = jnp.array([[1.0, -1.0], [0.0, 1.0]])
    # Samples are made of estimates in [-1, 1].
    np.testing.assert_allclose(bound(far, x), bound(dataclasses.replace(far, value=1.0), x), rtol=1e-6)
    assert np.all(bound(dataclasses.replace(far, clip_x0=False), x) > bound(far, x) + 0.1)
    # Levels from 0 to 1 have bins of half the width, of which this bound knows nothing.
    with jax.debug_nans(False):
        between = jnp.array([[1.0, -1.0], [0.5, 1.0]])
        np.testing.assert_array_equal(np.isnan(bound(far, between)), [False, True])
        output, t = jnp.zeros((2, 2)), jnp.full((2,), 0.75)
        np.testing.assert_array_equal(np.isnan(far._drawn_term({"x": between}, between, t, output)), [False, True])


def test_a_self_conditioned_model_has_no_likelihood():
    fed_back = {"data_shape": (2,), "network": MLP, "self_conditioning": True}
    x = {"x": jnp.zeros((1, 2))}
    for model in (
        DDPM(**fed_back),
        DDPM(**fed_back, bound_terms=0, objective="bound"),
        EDM(**fed_back, likelihood_steps=2),
    ):
        with pytest.raises(
            ValueError, match="with self_conditioning a sample depends on the estimates of all steps before"
        ):
            model.check()
    allowed = DDPM(**fed_back, bound_terms=0)
    allowed.check()
    for call in (
        lambda: allowed.log_prob_bound(None, x, jax.random.key(0)),
        lambda: EDM(**fed_back).log_prob(None, x),
    ):
        with pytest.raises(ValueError, match="with self_conditioning"):
            call()


def test_losses_that_are_nan_for_what_the_data_are_say_so():
    batch = {"x": jnp.array([[0.0, 1.0], [0.5, 0.0]]), "label": jnp.array([0, 3])}
    trained_by_levels = (
        DDPM(data_shape=(2,), num_levels=3, objective="bound"),
        DDPM(data_shape=(2,), num_levels=3, variance="learned"),
        VDM(data_shape=(2,), num_levels=3),
    )
    for model in trained_by_levels:
        with pytest.raises(
            ValueError,
            match="none of the 3 levels that the bound has from -1 to 1; change data.preprocessing to signed",
        ):
            model.diagnose(None, batch, jax.random.key(0))
        model.diagnose(None, {"x": 2.0 * batch["x"] - 1.0}, jax.random.key(0))
        model.diagnose(None, {**batch, "log_abs_det": jnp.zeros(2)}, jax.random.key(0))
    # Its loss knows no levels, and labels are looked at where they are used.
    DDPM(data_shape=(2,), num_levels=3).diagnose(None, batch, jax.random.key(0))
    with pytest.raises(ValueError, match="between 0 and 2, not 0 and 3"):
        EDM(num_classes=3, condition_on=("label",)).diagnose(None, batch, jax.random.key(0))


def test_guidance_needs_a_condition_and_training_without_it():
    batch = {"x": jnp.ones((2, 2)), "label": jnp.array([0, 1])}
    plain = EDM(data_shape=(2,), network=MLP, guidance=Guidance(scale=1.0), sampler=samplers.Heun(num_steps=1))
    kept = dataclasses.replace(plain, condition_on=("label",), num_classes=2, condition_dropout=0.0)
    for model, message in ((plain, "this one has none"), (kept, "condition_dropout=0 never trains")):
        state = jax.eval_shape(model.init, jax.random.key(0), batch)
        draw = lambda s, k, model=model: model.sample(s, k, 2)
        for call in (lambda: jax.eval_shape(draw, state, jax.random.key(0)), lambda: model.check_start(None)):  # noqa: B023
            with pytest.raises(ValueError, match=message):
                call()
        # A weaker model needs neither.
        jax.eval_shape(draw, state.replace(extra={"weak_params": state.params}), jax.random.key(0))
        dataclasses.replace(model, guidance=Guidance()).check_start(None)
    dataclasses.replace(kept, condition_dropout=0.1).check_start(None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(Diffusion):
    """A model whose estimate is the last one plus 1."""

    def apply(self, params, z, t, condition, x0_before=None, dropout_keys=None, process=None):
        return jnp.ones_like(z) + (0.0 if x0_before is None else x0_before)


def test_a_self_conditioned_model_sees_its_last_estimate_in_half_of_training_and_in_all_steps_but_the_first():
    model = Counting(
        data_shape=(1,), network=MLP, target="x0", self_conditioning=True, sampler=samplers.DDIM(num_steps=3)
    )
    losses = lambda training: model.example_losses({}, {"x": jnp.zeros((400, 1))}, jax.random.key(0), training)[0]
    # (0 + 1)^2, or (1 + 1)^2 where it is told its first estimate.
    trained = np.asarray(losses(True))
    assert set(trained) == {1.0, 4.0} and abs(float((trained == 4.0).mean()) - 0.5) < 0.1
    np.testing.assert_array_equal(losses(False), 1.0)
    for sampler in (samplers.DDIM, samplers.Ancestral, samplers.DPMSolver):
        drawn = dataclasses.replace(model, sampler=sampler(num_steps=3)).sample(
            TrainState.create({}), jax.random.key(1), 2
        )
        np.testing.assert_allclose(drawn, 3.0, rtol=1e-4)


def test_a_chain_that_ends_in_pure_noise_has_a_velocity_there():
    process, t = Discrete(zero_terminal_snr=True), jnp.array([1.0, 0.9995, 0.999])
    x, epsilon = jnp.array([[0.3], [-0.7], [0.9]]), jnp.array([[1.0], [-2.0], [0.5]])
    z = process.alpha(t)[:, None] * x + process.sigma(t)[:, None] * epsilon
    velocity = targets.make_target("velocity", process, t, x, epsilon)
    np.testing.assert_allclose(targets.to_x0("velocity", process, t, z, velocity), x, rtol=1e-2)
    before = float(process.alpha(t[2]))
    np.testing.assert_allclose(process.derivatives(t)[0][0], -1000.0 * before, rtol=1e-3)
    np.testing.assert_allclose(process.alpha(t), [0.0, 0.5 * before, before], rtol=1e-3)
    np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1.0, rtol=1e-6)


def test_the_slope_at_the_ends_of_a_chain_is_that_beside_them():
    ends, beside = (jnp.stack(Discrete().derivatives(jnp.array(t))) for t in ([0.0, 1.0], [1e-6, 0.9999]))
    np.testing.assert_allclose(ends[:, 1], beside[:, 1], rtol=1e-2)
    np.testing.assert_allclose(ends[0, 0], beside[0, 0], rtol=1e-3)


def test_a_classifier_does_not_guide_pure_noise():
    estimate = lambda z, t, _: Estimate(jnp.zeros_like(z))
    process, z = LinearInterpolant(), jnp.ones((2, 1))
    # The small slope that a trained classifier has everywhere.
    guided = with_classifier(estimate, process, lambda z, t: 0.01 * z[:, 0], 2.0)
    assert np.all(guided(z, jnp.array(1.0), z).x0 == 0.0)
    np.testing.assert_allclose(guided(z, jnp.array(0.5), z).x0, 0.01, rtol=1e-6)


@pytest.mark.parametrize("num_timesteps", [10, 4000])
def test_spacings_in_the_noise_ratio_end_at_the_first_step_of_a_chain(num_timesteps):
    process = Discrete(num_timesteps=num_timesteps)
    for spacing in ("karras", "log_snr"):
        t = times(process, spacing, 6).t
        np.testing.assert_allclose(t[-2:], [1.0 / num_timesteps, 0.0], rtol=1e-4)
    assert process.earliest_time == 1.0 / num_timesteps and LinearInterpolant().earliest_time == 1e-3


def test_times_are_never_0_where_weights_are_no_numbers(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, minval, maxval: jnp.full(shape, minval))
    for process in (LinearInterpolant(), Trigonometric()):
        t = UniformTime().sample(jax.random.key(0), process)[None]
        for target, weighting in (("velocity", "epsilon"), ("x0", "velocity"), ("v", "velocity"), ("edm", "epsilon")):
            assert np.isfinite(targets.loss_weight(weighting, target, process, t)).all()


def test_what_would_be_ignored_or_do_nothing_is_refused():
    refused = [
        (DDPM(process=Discrete(num_timesteps=1)), "needs at least 2 steps"),
        (VDM(process=CHAIN, weighting="x0"), "leave out process, weighting"),
        (D3PM(vocab_size=3, sequence_length=2, num_steps_sampling=10), "leave num_steps_sampling out"),
        (ConsistencyModel(num_steps=2, target="v", times=LogitNormalTime()), "leave out target, times"),
    ]
    for model, message in refused:
        with pytest.raises(ValueError, match=message):
            model.check()
    model = EDM(data_shape=(2,), sampler=samplers.Heun(num_steps=4))
    state = jax.eval_shape(lambda: EDM(data_shape=(2,), network=MLP).init(jax.random.key(0), {"x": jnp.ones((1, 2))}))
    with pytest.raises(ValueError, match="less than half a step of the sampler's 4"):
        image_to_image(model, state, jax.random.key(0), jnp.ones((1, 2)), 0.1)
