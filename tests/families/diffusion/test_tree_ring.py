"""The Tree-Ring watermark against the distribution that its paper states, and the way back to the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, ncx2

from genjax.errors import UserError
from genjax.families.diffusion import ode
from genjax.families.diffusion.processes import Karras, VariancePreserving
from genjax.families.diffusion.samplers import Estimate
from genjax.families.diffusion.tree_ring import TreeRing

MARK = TreeRing(seed=3, radius=3, channel=1)


@pytest.fixture(scope="module")
def noise():
    return jax.random.normal(jax.random.key(0), (3000, 12, 9, 2))


def test_the_key_replaces_its_frequencies_and_no_others(noise):
    marked = MARK.mark(noise[:4])
    assert marked.dtype == noise.dtype and np.isrealobj(marked)
    np.testing.assert_array_equal(marked[..., 0], noise[:4, ..., 0])
    before, after = (np.fft.fft2(np.asarray(z[..., 1], np.float64), norm="ortho") for z in (noise[:4], marked))
    rings = np.zeros((12, 9))
    for row in range(-3, 4):
        for column in range(-3, 4):
            distance = np.hypot(row, column)
            if 0 < distance <= 3:
                rings[row, column] = round(distance)
    np.testing.assert_allclose(after[:, rings == 0], before[:, rings == 0], atol=1e-5)
    for ring in (1, 2, 3):
        values = after[:, rings == ring]
        np.testing.assert_allclose(values, np.broadcast_to(values[0, 0].real, values.shape), atol=1e-5)
    assert (rings > 0).sum() == 2 * len(MARK.frequencies())
    np.testing.assert_allclose(MARK.score(marked)[0], 0.0, atol=1e-5)
    np.testing.assert_allclose(MARK.mark(80.0 * noise[:4], 80.0), 80.0 * marked, atol=1e-3)


def test_unmarked_noise_is_as_far_from_the_key_as_the_paper_says(noise):
    frequencies = MARK.frequencies()
    spectrum = np.fft.fft2(np.asarray(noise[..., 1], np.float64), norm="ortho")[:, frequencies[:, 0], frequencies[:, 1]]
    key = np.asarray(MARK.key(), np.float64)
    # With the true deviation, 1, the distribution is exact; with the estimated one it is nearly so.
    exact = 2.0 * (np.abs(spectrum - key) ** 2).sum(1)
    assert kstest(exact, ncx2(2 * len(key), 2.0 * (key**2).sum()).cdf).pvalue > 0.01
    p_values = MARK.p_values(noise)
    assert abs(p_values.mean() - 0.5) < 0.06 and (p_values < 1e-2).mean() < 0.02
    assert (MARK.p_values(MARK.mark(noise[:50])) < 1e-5).all()
    # Another key does not find the mark.
    assert np.median(TreeRing(seed=4, radius=3, channel=1).p_values(MARK.mark(noise[:500]))) > 0.1


def test_noise_without_room_for_the_rings_is_refused():
    for shape, words in (
        ((6, 12, 2), "radius=3 must be less than half"),
        ((12, 12, 1), "channel=1 does not exist; the noise has 1"),
        ((12,), "height, width and channels"),
    ):
        with pytest.raises(UserError, match=words):
            MARK.check(shape)
    with pytest.raises(UserError, match="radius must be at least 1"):
        TreeRing(radius=0)


@pytest.mark.parametrize("process", [VariancePreserving(), Karras()])
def test_the_noise_of_gaussian_data_is_found_again(process):
    """Of data N(0, s^2) the ODE only scales: z_T / sqrt(alpha_T^2 s^2 + sigma_T^2) = z_0 / its own deviation."""
    scale = jnp.array([[0.5, 2.0]])

    def denoise(z, t, x0_before):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return Estimate(alpha * scale**2 * z / ((alpha * scale) ** 2 + sigma**2))

    deviation = lambda t: jnp.sqrt((process.alpha(t) * scale) ** 2 + process.sigma(t) ** 2)
    x = jnp.array([[0.3, -1.7], [1.1, 2.5]])
    first = jnp.asarray(process.earliest_time)
    wanted = process.alpha(first) * x * deviation(jnp.asarray(process.t_max)) / deviation(first)
    np.testing.assert_allclose(ode.encode(denoise, process, x, 40), wanted, rtol=2e-3)
