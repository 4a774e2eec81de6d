"""Recurrent models of piano rolls (Boulanger-Lewandowski et al. 2012, arXiv:1206.6392); for the RNN-RBM see
boltzmann_machine.py.

    p(v_1 .. v_T) = prod_t p(v_t | h_t),    h_t = recurrent(h_{t-1}, v_{t-1}),    v_0 = 0

The notes of a frame are independent given h_t (`bernoulli`), or each note is given the notes below it
(`nade`, the RNN-NADE of the paper, with the distribution of Larochelle & Murray 2011):

    p(v_i = 1 | v_<i) = sigmoid(b_i(t) + V_i sigmoid(c(t) + sum_{j<i} W_j v_j)),   b(t), c(t) linear in h_t
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, ComputeDtype, PyTree
from genjax.errors import UserError, filled
from genjax.families.recurrent.framewise import FramewiseModel
from genjax.model import TrainState
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.recurrent import Recurrent, RecurrentStack
from genjax.optimizers import Adam, Optimizer


def bernoulli_nll(logits: Array, x: Array) -> Array:
    """-log p of zeros and ones in nats, elementwise."""
    return jax.nn.softplus(logits) - x * logits


class FrameNetwork(nn.Module):
    """Recurrent layers, and an affine map from their state to a frame's parameters: D for notes, P - D for features."""

    num_notes: int
    config: Recurrent
    num_features: int = 0
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.stack = RecurrentStack(self.config, self.dtype)
        # Few notes sound, so initial probabilities are small.
        bias_init = nn.initializers.constant(-2.0)
        self.head = nn.Dense(self.num_notes + self.num_features, dtype=self.dtype, bias_init=bias_init)

    def __call__(
        self, frames: Array, carry: PyTree | None = None, mask: Array | None = None, dropout_keys: Array | None = None
    ) -> tuple[Array, PyTree]:
        """Frames before, [B, T, D] -> parameters of the frames after, [B, T, P], and the states."""
        x = dropout(frames, self.input_dropout, fold_in(dropout_keys, 100))
        h, carry = self.stack(x, carry, mask, dropout_keys)
        h = dropout(h, self.output_dropout, fold_in(dropout_keys, 101))
        return self.head(h).astype(jnp.float32), carry


class RollNetwork(FrameNetwork):
    """Notes of a frame: independent if num_features is 0, else each given the notes before it (NADE)."""

    def setup(self) -> None:
        super().setup()
        if self.num_features:
            init = nn.initializers.normal(0.05)
            self.note_in = self.param("note_in", init, (self.num_notes, self.num_features))
            self.note_out = self.param("note_out", init, (self.num_notes, self.num_features))

    def nll(self, parameters: Array, x: Array) -> Array:
        """-log p of frames [..., D] in nats, [...]."""
        if not self.num_features:
            return bernoulli_nll(parameters, x).sum(-1)
        biases, start = parameters[..., : self.num_notes], parameters[..., self.num_notes :]

        @jax.checkpoint
        def note(a: Array, inputs: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
            bias, v, w_in, w_out = inputs
            logit = bias + jax.nn.sigmoid(a) @ w_out
            return a + jnp.expand_dims(v, -1) * w_in.reshape(*[1] * (a.ndim - 1), -1), bernoulli_nll(logit, v)

        xs = (jnp.moveaxis(biases, -1, 0), jnp.moveaxis(x, -1, 0), self.note_in, self.note_out)
        return jax.lax.scan(note, start, xs)[1].sum(0)

    def draw(self, parameters: Array, keys: Array) -> Array:
        """Draws frames [B, D] given parameters [B, P] with one key a row."""
        uniform = jax.vmap(lambda k: jax.random.uniform(k, (self.num_notes,)))(keys)
        if not self.num_features:
            return (uniform < jax.nn.sigmoid(parameters)).astype(jnp.float32)

        def note(a: Array, inputs: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
            bias, u, w_in, w_out = inputs
            v = (u < jax.nn.sigmoid(bias + jax.nn.sigmoid(a) @ w_out)).astype(jnp.float32)
            return a + v[:, None] * w_in[None], v

        biases, start = parameters[:, : self.num_notes], parameters[:, self.num_notes :]
        return jax.lax.scan(note, start, (biases.T, uniform.T, self.note_in, self.note_out))[1].T


def frames_before(x: Array) -> Array:
    """Frames [B, T, D], each one place later, the first zeros."""
    return jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RollModel(abc.ABC):
    """A distribution of each frame whose parameters come from the frames before, by recurrent layers.

    Attributes:
      data_shape: frames and notes (T, D); None takes the data set's.
      network: the recurrent layers.
      input_dropout: rate of dropout of the input frames.
      output_dropout: rate of dropout of the output map's input.
      compute_dtype: type that the recurrent layers compute in.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    network: Recurrent = Recurrent(cell="lstm", hidden_dim=200)
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam(learning_rate=1e-3, clip_norm=1.0)

    def __post_init__(self) -> None:
        if self.network.bidirectional:
            raise UserError(
                "a model of what comes next cannot read from the end: set model.network.bidirectional=false"
            )

    @abc.abstractmethod
    def module(self) -> FrameNetwork:
        """The Linen module."""

    @abc.abstractmethod
    def draw(self, params: PyTree, parameters: Array, keys: Array) -> Array:
        """Draws frames [B, D] given their parameters [B, P] with one key a row."""

    def _build(self, network: type[FrameNetwork], num_features: int) -> FrameNetwork:
        return network(
            filled(self, "data_shape")[1],
            self.network,
            num_features,
            self.input_dropout,
            self.output_dropout,
            jnp.dtype(self.compute_dtype),
        )

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the frames have another number of notes than `data_shape` says.
        """
        x, module = batch["x"], self.module()
        if x.shape[-1] != self.data_shape[-1]:
            raise UserError(f"frames have {x.shape[-1]} notes, but model.data_shape is {self.data_shape}")
        return TrainState.create(module.init(key, x[:1, :1])["params"], self.optimizer)

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Draws pieces frame by frame, [num_samples, T, D]."""
        module, params = self.module(), state.eval_params
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(num_samples))

        def frame(carry: tuple[Array, PyTree], step: Array) -> tuple[tuple[Array, PyTree], Array]:
            v, states = carry
            parameters, states = module.apply({"params": params}, v[:, None], states)
            v = self.draw(params, parameters[:, 0], fold_in(keys, step))
            return (v, states), v

        start = (jnp.zeros((num_samples, self.data_shape[1])), self.network.init_carry(num_samples))
        _, frames = jax.lax.scan(frame, start, jnp.arange(self.data_shape[0]))
        return frames.swapaxes(0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PianoRollModel(RollModel, FramewiseModel):
    """Recurrent model of sequences of zeros and ones.

    Attributes:
      output: whether notes of a frame are independent (bernoulli) or each given the notes below it (nade).
      nade_dim: number of hidden features of nade.
    """

    output: Literal["bernoulli", "nade"] = "bernoulli"
    nade_dim: int = 100

    def module(self) -> RollNetwork:
        """The Linen module."""
        return self._build(RollNetwork, self.nade_dim if self.output == "nade" else 0)

    def draw(self, params: PyTree, parameters: Array, keys: Array) -> Array:
        """Draws frames [B, D] given their parameters [B, P] with one key a row."""
        return self.module().apply({"params": params}, parameters, keys, method="draw")

    def _nll(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> tuple[Array, Array]:
        """Nats of each frame, 0 at padding, and which frames count; [B, T] each."""
        x = batch["x"]
        # The forward pass needs no mask, because padding is at the end.
        both = lambda m: m.nll(m(frames_before(x), None, None, dropout_keys)[0], x)
        nll = self.module().apply({"params": params}, method=both)
        mask = batch["mask"].astype(jnp.float32) if "mask" in batch else jnp.ones_like(nll)
        return nll * mask, mask
