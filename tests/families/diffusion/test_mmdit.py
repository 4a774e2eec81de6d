"""The transformers of two streams, and the times and shifts of rectified flow."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import CaptionedImages
from genjax.errors import UserError
from genjax.families.diffusion.caption_encoder import CaptionEncoder
from genjax.families.diffusion.dit import DiT
from genjax.families.diffusion.flow_matching import FlowMatching
from genjax.families.diffusion.flux import Flux, packed, unpacked
from genjax.families.diffusion.grids import times
from genjax.families.diffusion.mmdit import MMDiT
from genjax.families.diffusion.processes import Discrete, LinearInterpolant, shifted_time
from genjax.families.diffusion.published_grids import FlowGrid, resolution_shift
from genjax.families.diffusion.samplers import DDIM, Estimate, Euler
from genjax.families.diffusion.targets import to_x0
from genjax.families.diffusion.times import CosMapTime, LogitNormalTime, ModeTime
from genjax.nn.positions import rotate_pairs
from genjax.nn.transformer import Transformer
from genjax.training import Experiment, resolve

KEY = jax.random.key(0)
SMALL = {"patch_size": 2, "hidden_dim": 16, "num_layers": 2, "num_heads": 2}
NETWORKS = {
    "mmdit": MMDiT(**SMALL, qk_norm=True, dual_layers=(0,)),
    "flux": Flux(**SMALL, num_single_layers=1, rotary_axes=(2, 2, 4)),
}


def draw(*shape):
    return jax.random.normal(jax.random.fold_in(KEY, sum(shape)), shape)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """A network's output with the gradient of one value by z, its first parameters, and others that all matter."""
    module = NETWORKS[request.param].build(3, None, jnp.float32)
    first = jax.jit(module.init)(KEY, draw(1, 4, 6, 3), jnp.ones(1), condition(1))["params"]
    leaves, tree = jax.tree.flatten(first)
    keys = jax.random.split(KEY, len(leaves))
    params = tree.unflatten([a + 0.3 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves)])

    def value(z, p, t, c):
        out = module.apply({"params": p}, z, t, c)
        return out[1, 0, 0, 0], out

    compiled = jax.jit(jax.value_and_grad(value, has_aux=True))

    def apply(p, z, t, c):
        (_, out), gradient = compiled(z, p, t, c)
        return out, gradient

    return apply, first, params


def condition(count, length=5):
    mask = jnp.arange(length)[None] < jnp.array([3, 5])[:count, None]
    return {"context": draw(count, length, 7), "vector": draw(count, 6), "context_mask": mask}


def test_padding_has_no_effect_and_every_text_and_patch_has(network):
    apply, _, params = network
    z, t, given = draw(2, 4, 6, 3), jnp.array([100.0, 700.0]), condition(2)
    out, influence = apply(params, z, t, given)
    assert out.shape == z.shape and out.dtype == jnp.float32
    for place, changes in ((4, (False, True)), (2, (True, True))):
        other = {**given, "context": given["context"].at[:, place].add(1.0)}
        difference = np.abs(apply(params, z, t, other)[0] - out).max((1, 2, 3))
        np.testing.assert_array_equal(difference > 1e-4, changes)
        np.testing.assert_array_less(difference, np.where(changes, np.inf, 1e-5))
    # Every patch sees every other, and the texts' order is told by themselves alone.
    assert np.abs(influence[1]).min() > 0 and np.abs(influence[0]).max() == 0
    full = {**given, "context_mask": jnp.ones((2, 5), bool)}
    turned = {**full, "context": full["context"][:, ::-1]}
    np.testing.assert_allclose(apply(params, z, t, turned)[0], apply(params, z, t, full)[0], atol=1e-4)
    pooled = apply(params, z, t, {**given, "vector": given["vector"] + 1.0})[0]
    assert np.abs(pooled - out).max((1, 2, 3)).min() > 1e-4


def test_a_new_network_gives_zero_and_its_blocks_change_nothing(network):
    apply, first, _ = network
    z, given = draw(2, 4, 6, 3), condition(2)
    np.testing.assert_array_equal(apply(first, z, jnp.ones(2), given)[0], 0.0)
    # A last map that is not zero sees the patches alone, whatever the texts and the time.
    output = jax.tree.map(lambda a: draw(*a.shape), first["last"]["output"])
    params = {**first, "last": {**first["last"], "output": output}}
    other = {**given, "context": given["context"] + 1.0, "vector": given["vector"] - 1.0}
    found, influence = apply(params, z, jnp.ones(2), given)
    assert np.abs(found).max() > 0.1 and np.abs(influence[1, 2:]).max() == 0
    np.testing.assert_array_equal(apply(params, z, jnp.full(2, 500.0), other)[0], found)


@pytest.mark.parametrize("network", ["mmdit"], indirect=True)
def test_a_network_in_bfloat16_is_nearly_the_same(network):
    apply, _, params = network
    z, t, given = draw(2, 4, 6, 3), jnp.array([100.0, 700.0]), condition(2)
    short = NETWORKS["mmdit"].build(3, None, jnp.bfloat16)
    found, expected = jax.jit(short.apply)({"params": params}, z, t, given), apply(params, z, t, given)[0]
    assert found.dtype == jnp.float32
    assert 1e-5 < float(jnp.abs(found - expected).max() / jnp.abs(expected).max()) < 0.1


def test_the_places_of_a_picture_are_the_middle_of_the_largest():
    large = dataclasses.replace(NETWORKS["mmdit"], max_grid=8, base_grid=4)
    table = large.places((8, 8)).reshape(8, 8, 16)
    np.testing.assert_array_equal(large.places((2, 4)).reshape(2, 4, 16), table[3:5, 2:6])
    # Columns first, sines before cosines; 8 places lie over a length of 4.
    angles = 3 * 0.5 * 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(table[0, 3, :8], np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-6)
    np.testing.assert_array_equal(table[3, 0, 8:], table[0, 3, :8])
    corner = dataclasses.replace(large, max_grid=None)
    np.testing.assert_array_equal(dataclasses.replace(large, max_grid=4).places((4, 4)), corner.places((4, 4)))
    with pytest.raises(UserError, match="a grid of 2 x 9 patches is larger than network.max_grid=8"):
        large.places((2, 9))


def test_rotary_places_count_by_their_differences_and_texts_by_none():
    flux = dataclasses.replace(NETWORKS["flux"], rotary_axes=(2, 2, 4))
    cos, sin = (a.reshape(2, 5, 6, 4) for a in flux.angles((2, 5, 6)))
    q, k = draw(1, 1, 1, 8), draw(1, 1, 2, 8)[:, :, :1]

    def product(a, b):
        turn = lambda x, place: rotate_pairs(x, cos[place][None], sin[place][None])
        return float((turn(q, a) * turn(k, b)).sum())

    np.testing.assert_allclose(product((0, 1, 2), (1, 3, 2)), product((0, 0, 3), (1, 2, 3)), rtol=1e-5)
    assert abs(product((0, 1, 2), (1, 3, 2)) - product((0, 1, 2), (1, 3, 3))) > 1e-3
    np.testing.assert_allclose(product((0, 0, 0), (0, 0, 0)), float((q * k).sum()), rtol=1e-5)
    x = draw(2, 4, 6, 3)
    tokens = packed(x, (2, 2))
    np.testing.assert_array_equal(tokens[0, 4].reshape(3, 2, 2), x[0, 2:4, 2:4].transpose(2, 0, 1))
    np.testing.assert_array_equal(unpacked(tokens, (4, 6), (2, 2)), x)


@pytest.mark.parametrize(
    ("network", "change", "message"),
    [
        (NETWORKS["mmdit"], {"vector": None}, "see the pooled text, which is missing; give model.text.pooled=true"),
        (NETWORKS["mmdit"], {"context": None}, "reads texts as a second stream; give condition_on=text"),
        (dataclasses.replace(NETWORKS["flux"], context_dim=8), {}, "context has 7 channels, and Flux reads 8"),
        (dataclasses.replace(NETWORKS["flux"], rotary_axes=(2, 2, 2)), {}, "rotary_axes=2,2,2 must be .* sum to the 8"),
        (dataclasses.replace(NETWORKS["mmdit"], num_heads=3), {}, "num_heads=3 must divide network.hidden_dim=16"),
        (dataclasses.replace(NETWORKS["mmdit"], dual_layers=(2,)), {}, "names block 2, and there are 2 from 0"),
        (
            dataclasses.replace(NETWORKS["mmdit"], patch_size=4),
            {},
            r"patches of \(4, 4\) do not divide data of \(4, 6\)",
        ),
        (DiT(**SMALL, cross_attention=False), {"vector": None}, "without cross_attention sees a text as one vector"),
    ],
)
def test_what_does_not_fit_is_one_sentence(network, change, message):
    given = {name: value for name, value in {**condition(1), **change}.items() if value is not None}
    with pytest.raises(UserError, match=message):
        jax.eval_shape(network.build(3, None, jnp.float32).init, KEY, draw(1, 4, 6, 3), jnp.ones(1), given)


def test_captions_reach_a_dit_without_cross_attention_by_their_pooled_features():
    stack = Transformer(num_layers=1, width=8, num_heads=2, causal=False, max_length=20)
    data = CaptionedImages(num_made=8, num_held_out=4, batch_size=4, preprocessing="signed")
    network = DiT(patch_size=8, hidden_dim=8, num_layers=1, num_heads=2, cross_attention=False)
    model = FlowMatching(network=network, condition_on=("text",), text=CaptionEncoder(stack=stack, pooled=True))
    model = resolve(Experiment(model=model, data=data)).model
    batch = data.transform(data.load("train").gather(np.arange(4)), KEY)
    params = jax.jit(model.init_params)(KEY, batch)
    assert "vector" in params["ConditionEmbedding_0"] and "cross_attention" not in params["block_0"]


# ----------------------------------------------------------------------------------------------------------------------
# Times


def logit_normal(t):
    return np.array([0.5 * (1.0 + math.erf((math.log(a / (1.0 - a)) - 0.4) / (0.8 * 2**0.5))) for a in t])


def mode(t):
    # t falls in u, so that P(t < a) = 1 - u(a), found by a table.
    u = np.linspace(1.0, 0.0, 100001)
    return 1.0 - np.interp(t, 1.0 - u - 0.7 * (np.cos(0.5 * np.pi * u) ** 2 - 1.0 + u), u)


def cosmap(t):
    # The integral of the density of the paper.
    grid = np.linspace(0.0, 1.0, 100001)
    density = 2.0 / (np.pi - 2.0 * np.pi * grid + 2.0 * np.pi * grid**2)
    total = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1])) / 100000])
    np.testing.assert_allclose(total[-1], 1.0, rtol=1e-6)
    return np.interp(t, grid, total)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("distribution", "below"),
    [(LogitNormalTime(mean=0.4, scale=0.8), logit_normal), (ModeTime(scale=0.7), mode), (CosMapTime(), cosmap)],
)
def test_times_have_the_densities_of_the_paper(distribution, below, shift):
    distribution = dataclasses.replace(distribution, shift=shift)
    keys = jax.random.split(KEY, 20000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: distribution.sample(k, LinearInterpolant())))(keys))
    assert drawn.min() > 0.0 and drawn.max() <= 1.0
    grid = np.linspace(0.02, 0.98, 49)
    found = (drawn[:, None] < grid).mean(0)
    # A time below t before the shift is one below s t / (1 + (s - 1) t) after it.
    expected = below(grid / (grid + shift * (1.0 - grid)))
    # Kolmogorov's statistic, which exceeds 1.95 once in a thousand.
    assert np.abs(found - expected).max() * 20000**0.5 < 1.95


def test_shifts():
    t = jnp.linspace(0.05, 0.95, 7)
    np.testing.assert_allclose(shifted_time(shifted_time(t, 3.0), 1 / 3), t, rtol=1e-5)
    ratio = lambda t: t / (1.0 - t)
    np.testing.assert_allclose(ratio(shifted_time(t, 3.0)), 3.0 * ratio(t), rtol=1e-5)
    assert resolution_shift(256) == math.exp(0.5) and resolution_shift(4096, exponential=False) == 1.15
    node = Euler(num_steps=4, variable="time", shift=2.0).grid(LinearInterpolant())
    np.testing.assert_allclose(node.t, [1.0, 6 / 7, 2 / 3, 0.4, 0.0], rtol=1e-6)
    with pytest.raises(UserError, match="shift=2.0 moves times of the spacings uniform and quadratic, and not of kar"):
        times(LinearInterpolant(), "karras", 4, shift=2.0)
    with pytest.raises(UserError, match="shift=0.0 of times must be above 0"):
        shifted_time(t, 0.0)
    with pytest.raises(UserError, match=r"times.scale=2.0 must lie between -1 and 1.7519"):
        ModeTime(scale=2.0).sample(KEY, LinearInterpolant())
    with pytest.raises(UserError, match="a flow grid has the times of the linear interpolant"):
        DDIM(published=FlowGrid()).on_grid(Discrete())


def test_the_steps_of_a_flow_grid_are_euler_steps():
    # Of the velocity 0.3 z, whose Euler steps are a product.
    sampler = DDIM(num_steps=5, published=FlowGrid(shift=3.0, last="even"))
    process = sampler.on_grid(LinearInterpolant())

    def denoise(z, t, before):
        return Estimate(to_x0("velocity", process, jnp.broadcast_to(t, (1,)), z, 0.3 * z, 1.0))

    found = sampler.run(denoise, process, jnp.ones((1, 2)), KEY)
    t = np.append(3 * np.linspace(1, 0.2, 5) / (1 + 2 * np.linspace(1, 0.2, 5)), 0.0)
    np.testing.assert_allclose(found, np.full((1, 2), np.prod(1.0 + 0.3 * np.diff(t))), rtol=1e-5)
