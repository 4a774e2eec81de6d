"""The RNN-RBM of piano rolls (Boulanger-Lewandowski, Bengio & Vincent 2012, arXiv:1206.6392, section 4).

    p(v_1 .. v_T) = prod_t exp(-F_t(v_t)) / Z_t,    F_t(v) = -b_t.v - sum_j softplus(c_t + v W)_j
    b_t, c_t affine in u_{t-1},    u_t = recurrent(u_{t-1}, v_t)

A frame is a restricted Boltzmann machine whose biases depend on the frames before; all frames share the weights W.  By
contrastive divergence, the gradient of -log p is the gradient of

    sum_t F_t(v_t) - F_t(v*_t),    v*_t the end of k rounds of Gibbs sampling from v_t under b_t, c_t, held fixed,

and reaches the recurrent layers through the biases.  Z_t has no closed form.  Annealed importance sampling estimates it
for every frame; with few hidden bits it is a sum over their states.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree, example_keys
from genjax.errors import UserError
from genjax.families.energy.boltzmann_machine import RestrictedBoltzmannMachine
from genjax.families.recurrent.framewise import PerFrame
from genjax.families.recurrent.piano_roll import FrameNetwork, RollModel, frames_before
from genjax.gradients import gradient_step
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.dropout import fold_in
from genjax.nn.recurrent import Recurrent

#: Largest number of hidden bits whose states are all summed over in every frame; more would not fit into memory.
MOST_ENUMERATED = 12
#: Axes of the parameters of frames' machines [N] for `jax.vmap`; the machines share their weights.
_MACHINE_AXES = {"kernel": None, "visible_bias": 0, "hidden_bias": 0}


class BoltzmannNetwork(FrameNetwork):
    """Recurrent layers that give the biases of notes and hidden bits, and the weights between notes and hidden bits."""

    def setup(self) -> None:
        super().setup()
        self.kernel = self.param("kernel", nn.initializers.normal(0.01), (self.num_notes, self.num_features))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentBoltzmannMachine(RollModel, PerFrame):
    """RNN-RBM of sequences of zeros and ones.

    The model has no `log_prob`.  An evaluation gives an estimate (`nll_ais`), or with few hidden bits and
    partition=enumerated the exact `nll`.

    Attributes:
      network: the recurrent layers; the paper has a plain rnn.
      num_hidden: number of hidden bits of a frame.
      num_gibbs_steps: number k of rounds of Gibbs sampling, from the data, in a training step.
      num_sampling_steps: number of rounds of Gibbs sampling, from independent notes, for a frame of a sample.
      partition: computation of Z in evaluations: annealed (an estimate) or enumerated (exact, at most 12 hidden bits).
      num_temperatures: number of steps of annealed importance sampling.
      num_importance_chains: number of chains of annealed importance sampling for each frame.
    """

    network: Recurrent = Recurrent(cell="rnn", hidden_dim=100)
    num_hidden: int = 150
    num_gibbs_steps: int = 15
    num_sampling_steps: int = 100
    partition: Literal["annealed", "enumerated"] = "annealed"
    num_temperatures: int = 100
    num_importance_chains: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.partition == "enumerated" and self.num_hidden > MOST_ENUMERATED:
            raise UserError(
                f"num_hidden={self.num_hidden} are too many to enumerate in every frame: "
                f"have at most {MOST_ENUMERATED}, or set model.partition=annealed"
            )

    def module(self) -> BoltzmannNetwork:
        """The Linen module."""
        return self._build(BoltzmannNetwork, self.num_hidden)

    def _machine(self) -> RestrictedBoltzmannMachine:
        return RestrictedBoltzmannMachine(
            num_hidden=self.num_hidden,
            num_temperatures=self.num_temperatures,
            num_importance_chains=self.num_importance_chains,
        )

    def machines(self, params: PyTree, parameters: Array) -> PyTree:
        """The RBMs of frames with parameters [N, P]: kernel [D, H], visible_bias [N, D] and hidden_bias [N, H]."""
        notes = self.data_shape[1]
        return {
            "kernel": params["kernel"],
            "visible_bias": parameters[:, :notes],
            "hidden_bias": parameters[:, notes:],
        }

    def parameters(self, params: PyTree, x: Array, dropout_keys: Array | None = None) -> Array:
        """Biases [B, T, D + H] of all frames of x [B, T, D], each from the frames before it."""
        return self.module().apply({"params": params}, frames_before(x), None, None, dropout_keys)[0]

    def free_energy(self, machines: PyTree, v: Array) -> Array:
        """F_t(v_t) of frames [N, D] in nats, [N]."""
        one = lambda machine, v: self._machine().free_energy(machine, v[None])[0]
        return jax.vmap(one, in_axes=(_MACHINE_AXES, 0))(machines, v)

    def gibbs(self, machines: PyTree, keys: Array, v: Array, num_steps: int) -> Array:
        """Rounds of Gibbs sampling of frames v [N, D] with keys [N]."""
        one = lambda machine, key, v: self._machine().gibbs(machine, key, v[None], num_steps)[0]
        return jax.vmap(one, in_axes=(_MACHINE_AXES, 0, 0))(machines, keys, v)

    def contrast(self, machines: PyTree, v: Array, ends: Array) -> Array:
        """F_t(v_t) - F_t(v*_t) of frames v and ends of chains, [N, D] each; [N].

        If the ends are samples of the RBMs themselves, the mean of its gradient is the gradient of -log p.
        """
        return self.free_energy(machines, v) - self.free_energy(machines, jax.lax.stop_gradient(ends))

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean over examples and places of the contrast, of which only the gradient has a meaning; and metrics."""
        x, mask, keys = batch["x"], _mask(batch), example_keys(key, batch)
        v = x.reshape(-1, x.shape[-1])
        machines = self.machines(params, self.parameters(params, x, keys).reshape(len(v), -1))
        frame_keys = _frame_keys(fold_in(keys, 102), x.shape[1])
        ends = self.gibbs(jax.lax.stop_gradient(machines), frame_keys, v, self.num_gibbs_steps)
        contrast = self.contrast(machines, v, ends).reshape(mask.shape) * mask
        changed = jnp.abs(v - ends).sum(-1).reshape(mask.shape) * mask
        per_frame = {"contrast_per_frame": contrast, "notes_changed": changed}
        return contrast.mean(), {name: Ratio(value.sum(), mask.sum()) for name, value in per_frame.items()}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, contrast_per_frame (nats), notes_changed by the Gibbs chains, of a frame's."""
        return gradient_step(self.loss, self.optimizer)(state, batch, key)

    def frame_nll(self, machines: PyTree, v: Array, keys: Array) -> Metrics:
        """Nats of frames v [N, D] with keys [N], by the metric names of `evaluate`, [N]."""
        machine, free_energy = self._machine(), self.free_energy(machines, v)
        if self.partition == "enumerated":
            return {"nll": free_energy + jax.vmap(machine.log_partition, in_axes=(_MACHINE_AXES,))(machines)}
        estimate = jax.vmap(machine.estimate_log_partition, in_axes=(_MACHINE_AXES, 0, 0))
        log_partition, error = estimate(machines, _independent_bias(machines), keys)
        return {"nll_ais": free_energy + log_partition, "nll_ais_bias": error**2 / 2}

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per sequence, in nats of all frames from the first on, and `num_frames`; see `summarize`.

        enumerated: `nll`, exact.
        annealed: `nll_ais`, an estimate that is too low on average, as the logarithm of an unbiased estimate of Z_t is
        too low; `nll_ais_bias` estimates the difference from the spread of the chains' weights.
        """
        params, x, mask = state.eval_params, batch["x"], _mask(batch)
        size, length, notes = x.shape
        parameters = self.parameters(params, x).reshape(size * length, -1)
        keys = _frame_keys(example_keys(key, batch), length)
        # Real frames come first and padding last, which then takes no time.
        order = jnp.argsort(-mask.reshape(-1), stable=True)

        def part(places: Array) -> Metrics:
            machines = self.machines(params, parameters[places])
            values = lambda: self.frame_nll(machines, x.reshape(-1, notes)[places], keys[places])
            zeros = lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(values))
            return jax.lax.cond(mask.reshape(-1)[places].any(), values, zeros)

        values = jax.lax.map(part, order.reshape(length, size))
        back = jnp.argsort(order)
        sums = {name: (a.reshape(-1)[back].reshape(mask.shape) * mask).sum(1) for name, a in values.items()}
        return {**sums, "num_frames": mask.sum(1)}

    def draw(self, params: PyTree, parameters: Array, keys: Array) -> Array:
        """Draws frames [B, D] given their parameters [B, P] with one key a row, by Gibbs sampling."""
        machines = self.machines(params, parameters)
        start = jax.vmap(jax.random.bernoulli)(fold_in(keys, 0), jax.nn.sigmoid(_independent_bias(machines)))
        return self.gibbs(machines, fold_in(keys, 1), start.astype(jnp.float32), self.num_sampling_steps)


def _mask(batch: Batch) -> Array:
    """1 at frames that count, else 0, float32 [B, T]."""
    return batch["mask"].astype(jnp.float32) if "mask" in batch else jnp.ones(batch["x"].shape[:2])


def _frame_keys(keys: Array, length: int) -> Array:
    """Keys of all frames [B T] from the keys of examples [B]."""
    return jax.vmap(lambda key: jax.random.split(key, length))(keys).reshape(keys.shape[0] * length, *keys.shape[1:])


def _independent_bias(machines: PyTree) -> Array:
    """Biases [N, D] of independent notes close to an RBM's: the notes given mean hidden bits in the
    absence of notes.
    """
    return machines["visible_bias"] + jax.nn.sigmoid(machines["hidden_bias"]) @ machines["kernel"].T
