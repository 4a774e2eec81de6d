"""Samples that are drawn in the course of a training."""

import jax
import jax.numpy as jnp

from genjax.data import Points
from genjax.families.diffusion import ode
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.samplers import Estimate
from genjax.training import Experiment, Training, train

MLP = ResidualMLP(hidden_dim=16, num_blocks=1)


class AlreadyTrained(EDM):
    """The exact denoiser of N(0, 1), whose steps change nothing."""

    def init_params(self, key, batch):
        return {"nothing": jnp.zeros(())}

    def estimate(self, params, z, t, condition, x0_before=None):
        return Estimate(z / (1.0 + jnp.square(t)[:, None]))

    def train_step(self, state, batch, key):
        return state.replace(step=state.step + 1), {"loss": jnp.zeros(())}


def test_a_sampler_that_gives_up_on_schedule_costs_a_warning_and_no_run(tmp_path, capsys):
    experiment = Experiment(
        model=AlreadyTrained(data_shape=(2,), network=MLP, sampler=ode.AdaptiveODE(num_steps=1)),
        data=Points(name="two_moons", num_train=16, num_held_out=8, batch_size=8),
        training=Training(
            num_steps=2, sample_every=1, evaluate_every=None, num_samples=4, tensorboard=False, compilation_cache=""
        ),
    )
    with jax.debug_nans(False):
        train(experiment, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert [line.partition(": ")[0] for line in lines] == ["step 1", "step 2"]
    assert all("the samples are not finite and are not written" in line for line in lines)
    assert not list((tmp_path / "samples").iterdir())
