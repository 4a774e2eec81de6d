"""Recurrent layers: vanilla RNN, GRU, LSTM, and the linear recurrences minGRU, minLSTM, LRU and S4D, stacked.

    rnn       h' = tanh(W x + U h + b)                                                        (Elman 1990)
    gru       r, z = sigmoid(..),  n = tanh(W x + b + r (U h + c)),  h' = (1 - z) n + z h      (Cho et al. 2014)
    lstm      i, f, o = sigmoid(..), g = tanh(..),  c' = f c + i g,  h' = o tanh(c')           (Gers et al. 2000)
    min_gru   z = sigmoid(W x),  h' = (1 - z) h + z V x                                       (Feng et al. 2024)
    min_lstm  f, i = sigmoid(..),  h' = (f h + i V x) / (f + i)                               (Feng et al. 2024)
    lru       s' = lambda s + sqrt(1 - |lambda|^2) B x,  h = Re(C s) + D x, lambda complex     (Orvieto et al. 2023)
    s4d       s_n' = exp(dt a_n) s_n + (exp(dt a_n) - 1) / a_n u,  a_n = -1/2 + i pi n at first,
              h = gelu(2 Re sum_n c_n s_n + d u), with N states for each feature of u = W x   (Gu et al. 2022, S4D-Lin)

With norms (Ba et al. 2016, eqs. 4 and 20 to 25), where LN(a) = g (a - mean) / std and each norm has its own gain g:
    rnn       h' = tanh(LN(W x + U h) + b)
    gru       r, z = sigmoid(LN(W x) + LN(U h) + b),  n = tanh(LN(V x) + b + r (LN(Y h) + c))
    lstm      i, f, g, o from LN(W x) + LN(U h) + b, where b has the forget gate's first bias;  h' = o tanh(LN(c') + d)

With variational dropout (Gal & Ghahramani 2016, eq. 7) U h becomes U (m h), m one scaled mask of a sequence and layer.

The last four are h' = a h + b with a and b known beforehand, so all steps are computed at once by an associative scan.
The products with inputs are taken out of the loop, and the LSTM has a backward pass of its own, whose weight gradient
is one matrix product after the loop.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array, PyTree
from genjax.errors import UserError
from genjax.nn.dropout import dropout, fold_in, keep_mask

LINEAR = ("min_gru", "min_lstm", "lru", "s4d")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recurrent:
    """Configuration of a stack.

    Attributes:
      cell: which recurrence.
      num_layers: number of layers.
      hidden_dim: features H of a layer's state.
      bidirectional: a second layer reads from the end; the outputs of both are concatenated.
      dropout: rate of dropout of the layers' outputs, except the last.
      variational_dropout: one dropout mask for all times; in an rnn, gru or lstm also on the states that enter the
        recurrent product (Gal & Ghahramani 2016).
      zoneout: probability that a unit of an rnn, gru or lstm keeps its state (Krueger et al. 2017).
      peepholes: gates of an lstm see the cell (Gers & Schmidhuber 2000).
      layer_norm: norms of the products that enter rnn, gru or lstm gates, and of an lstm's cell (Ba et al. 2016).
      forget_bias: first value of the forget gate's bias of an lstm.
      residual: layers read a normalised input and add their output to it; a first linear map brings the input to H
        features.
      mlp_dim: hidden width of a two-layer map after each residual layer; 0 for none.
      state_dim: complex states N of each feature of an s4d.
      parallel: whether linear recurrences are computed by an associative scan or step by step.
    """

    cell: Literal["rnn", "gru", "lstm", "min_gru", "min_lstm", "lru", "s4d"] = "lstm"
    num_layers: int = 1
    hidden_dim: int = 128
    bidirectional: bool = False
    dropout: float = 0.0
    variational_dropout: bool = False
    zoneout: float = 0.0
    peepholes: bool = False
    layer_norm: bool = False
    forget_bias: float = 1.0
    residual: bool = False
    mlp_dim: int = 0
    state_dim: int = 16
    parallel: bool = True

    def __post_init__(self) -> None:
        needed = {"peepholes": ("lstm",), "zoneout": ("rnn", "gru", "lstm"), "layer_norm": ("rnn", "gru", "lstm")}
        for name, cells in needed.items():
            if getattr(self, name) and self.cell not in cells:
                raise UserError(f"recurrent layers with cell={self.cell} have no {name}; it is for {', '.join(cells)}")
        if self.mlp_dim and not self.residual:
            raise UserError(
                f"mlp_dim={self.mlp_dim} of recurrent layers needs residual ones: set residual=true as well"
            )

    def init_carry(self, batch: int) -> PyTree:
        """States before the first step; every array has the batch as first axis."""
        directions = 2 if self.bidirectional else 1
        return tuple(tuple(self.init_state(batch) for _ in range(directions)) for _ in range(self.num_layers))

    def init_state(self, batch: int) -> PyTree:
        """A layer's first state: (h, c) of an lstm, real and imaginary part of an lru or s4d, else h; zeros [B, H].

        The states of an s4d are [B, H N]; the N states of a feature stand side by side.
        """
        zeros = jnp.zeros((batch, self.hidden_dim * (self.state_dim if self.cell == "s4d" else 1)))
        return (zeros, zeros) if self.cell in ("lstm", "lru", "s4d") else zeros


# ----------------------------------------------------------------------------------------------------------------------
# Recurrences as functions of arrays; time is the first axis


def linear_scan(a: Array, b: Array, start: Array, parallel: bool = True) -> Array:
    """h_t = a_t h_{t-1} + b_t for t = 0 .. T - 1, shapes [T, ...], real or complex, from h_{-1} = start [...]."""
    if not parallel:

        def step(h: Array, ab: tuple[Array, Array]) -> tuple[Array, Array]:
            h = ab[0] * h + ab[1]
            return h, h

        return jax.lax.scan(step, start, (a, b))[1]
    b = b.at[0].add(a[0] * start)
    combine = lambda first, second: (first[0] * second[0], second[0] * first[1] + second[1])
    return jax.lax.associative_scan(combine, (a, b))[1]


@jax.custom_vjp
def lstm_scan(x: Array, weight: Array, h: Array, c: Array) -> tuple[Array, tuple[Array, Array]]:
    """An LSTM over time.

    Args:
      x: products of the inputs with their weights, and biases, gates i, f, g, o side by side, [T, B, 4 H].
      weight: recurrent weights [H, 4 H].
      h, c: first state, [B, H].

    Returns:
      Outputs [T, B, H] and the last state.
    """
    outputs, last, _ = _lstm_forward(x, weight, h, c)
    return outputs, last


def _lstm_forward(x, weight, h, c):
    def step(carry, x):
        h, c = carry
        i, f, g, o = jnp.split(x + h @ weight, 4, axis=-1)
        i, f, o, g = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o), jnp.tanh(g)
        new_c = f * c + i * g
        new_h = o * jnp.tanh(new_c)
        return (new_h, new_c), (new_h, c, jnp.concatenate([i, f, g, o], axis=-1))

    last, (outputs, cells, gates) = jax.lax.scan(step, (h, c), x)
    return outputs, last, (cells, gates)


def _lstm_scan_forward(x, weight, h, c):
    outputs, last, (cells, gates) = _lstm_forward(x, weight, h, c)
    return (outputs, last), (weight, h, outputs, cells, gates)


def _lstm_scan_backward(saved, cotangents):
    weight, h, outputs, cells, gates = saved
    d_outputs, (d_h, d_c) = cotangents
    transposed = weight.T

    def step(carry, inputs):
        d_h, d_c = carry
        d_output, c, gates = inputs
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        tanh_c = jnp.tanh(f * c + i * g)
        d_h = d_h + d_output
        d_c = d_c + d_h * o * (1.0 - tanh_c**2)
        d_gates = jnp.concatenate(
            [
                d_c * g * i * (1.0 - i),
                d_c * c * f * (1.0 - f),
                d_c * i * (1.0 - g**2),
                d_h * tanh_c * o * (1.0 - o),
            ],
            axis=-1,
        )
        return (d_gates @ transposed, d_c * f), d_gates

    (d_h, d_c), d_x = jax.lax.scan(step, (d_h, d_c), (d_outputs, cells, gates), reverse=True)
    before = jnp.concatenate([h[None], outputs[:-1]])
    d_weight = before.reshape(-1, before.shape[-1]).T @ d_x.reshape(-1, d_x.shape[-1])
    return d_x, d_weight, d_h, d_c


lstm_scan.defvjp(_lstm_scan_forward, _lstm_scan_backward)


# ----------------------------------------------------------------------------------------------------------------------
# Modules


class RecurrentLayer(nn.Module):
    """One direction of one layer."""

    config: Recurrent
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: PyTree,
        mask: Array | None = None,
        dropout_keys: Array | None = None,
        resets: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """x [B, T, C] -> outputs [B, T, H] and the last state.

        Where mask [B, T] is False the state does not change; where resets [B, T] is True the step starts from a zero
        state.
        """
        x = x.astype(self.dtype)
        kind = self.config.cell
        if kind in LINEAR:
            return self._linear(x, state, mask, resets)
        return self._gated(x, state, mask, dropout_keys, resets)

    def _input(self, x: Array, gates: int, name: str = "input", **options: Any) -> Array:
        return nn.Dense(gates * self.config.hidden_dim, dtype=self.dtype, name=name, **options)(x)

    def _linear(self, x: Array, state: PyTree, mask: Array | None, resets: Array | None) -> tuple[Array, PyTree]:
        config, size = self.config, self.config.hidden_dim
        hold = None if mask is None else mask.astype(bool)[:, :, None]
        if config.cell == "lru":
            nu = self.param("nu_log", _ring, (size,))
            theta = self.param(
                "theta_log",
                lambda key, shape: jnp.log(jax.random.uniform(key, shape, minval=1e-3, maxval=0.3)),
                (size,),
            )
            eigenvalues = jnp.exp(-jnp.exp(nu) + 1j * jnp.exp(theta))
            scale = jnp.sqrt(1.0 - jnp.exp(-2.0 * jnp.exp(nu)))
            real, imaginary = jnp.split(self._input(x, 2).astype(jnp.float32), 2, axis=-1)
            b = scale.reshape(1, 1, -1) * jax.lax.complex(real, imaginary)
            a = jnp.broadcast_to(eigenvalues.reshape(1, 1, -1), b.shape)
            start = jax.lax.complex(*state)
        elif config.cell == "s4d":
            u = self._input(x, 1).astype(jnp.float32)
            a, b, c = self._diagonal_states(u)
            start = jax.lax.complex(*state)
        else:
            candidate = self._input(x, 1, "candidate")
            gates = self._input(x, 1 if config.cell == "min_gru" else 2, "gates")
            if config.cell == "min_gru":
                take = jax.nn.sigmoid(gates)
            else:
                f, i = jnp.split(gates, 2, axis=-1)
                # i / (f + i) of sigmoids, from their logarithms, so that neither underflows.
                take = jax.nn.sigmoid(jax.nn.log_sigmoid(i) - jax.nn.log_sigmoid(f))
            a, b = (1.0 - take).astype(jnp.float32), (take * candidate).astype(jnp.float32)
            start = state
        if hold is not None:
            a, b = jnp.where(hold, a, 1.0), jnp.where(hold, b, 0.0)
        if resets is not None:
            a = jnp.where(resets[:, :, None], 0.0, a)
        h = linear_scan(a.swapaxes(0, 1), b.swapaxes(0, 1), start, config.parallel).swapaxes(0, 1)
        if config.cell == "lru":
            parts = jnp.concatenate([h.real, h.imag], axis=-1).astype(self.dtype)
            out = nn.Dense(size, dtype=self.dtype, name="output")(parts) + nn.Dense(
                size, use_bias=False, dtype=self.dtype, name="skip"
            )(x)
            return out, (h[:, -1].real, h[:, -1].imag)
        if config.cell == "s4d":
            skip = self.param("skip", nn.initializers.normal(1.0), (size,))
            states = h.reshape(*h.shape[:2], size, config.state_dim)
            out = 2.0 * jnp.einsum("bthn,hn->bth", states, c).real + skip[None, None] * u
            return jax.nn.gelu(out).astype(self.dtype), (h[:, -1].real, h[:, -1].imag)
        return h.astype(self.dtype), h[:, -1]

    def _diagonal_states(self, u: Array) -> tuple[Array, Array, Array]:
        """Factors a and additions b of the states of an s4d [B, T, H N], and their weights c [H, N], complex.

        The step dt is one of each feature, at first log-uniform between .001 and .1 (Gu et al. 2022, section 4).
        """
        size, count = self.config.hidden_dim, self.config.state_dim
        log_uniform = lambda key, shape: jax.random.uniform(key, shape, minval=jnp.log(1e-3), maxval=jnp.log(0.1))
        step = jnp.exp(self.param("log_step", log_uniform, (size,)))[:, None]
        log_real = self.param("log_real", nn.initializers.constant(jnp.log(0.5)), (size, count))
        frequencies = lambda _, shape: jnp.broadcast_to(jnp.pi * jnp.arange(count, dtype=jnp.float32), shape)
        imaginary = self.param("imaginary", frequencies, (size, count))
        rates = jax.lax.complex(-jnp.exp(log_real), imaginary)
        decay = jnp.exp(step * rates)
        weights = self.param("weights", nn.initializers.normal(0.5**0.5), (2, size, count))
        # Zero-order hold: the effect of an input that is constant over a step.
        b = ((decay - 1.0) / rates)[None, None] * u[..., None]  # [B, T, H, N]
        b = b.reshape(*u.shape[:2], size * count)
        return jnp.broadcast_to(decay.reshape(1, 1, -1), b.shape), b, jax.lax.complex(weights[0], weights[1])

    def _gated(
        self, x: Array, state: PyTree, mask: Array | None, dropout_keys: Array | None, resets: Array | None
    ) -> tuple[Array, PyTree]:
        config, size = self.config, self.config.hidden_dim
        gates = {"rnn": 1, "gru": 3, "lstm": 4}[config.cell]

        def first_bias(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
            zeros = jnp.zeros(shape, dtype)
            return zeros.at[size : 2 * size].set(config.forget_bias) if config.cell == "lstm" else zeros

        # Time first before the product, which makes four times as many features.
        x = x.swapaxes(0, 1)
        weight = self.param("recurrent", _orthogonal_blocks(gates), (size, gates * size)).astype(self.dtype)
        norms: dict[str, Array] = {}
        if config.layer_norm:
            x = self._input(x, gates, use_bias=False)
            shapes = {"recurrent_norm": gates * size}
            if config.cell != "rnn":
                shapes["input_norm"] = gates * size
            if config.cell == "lstm":
                shapes["cell_norm"] = size
                norms["cell_bias"] = self.param("cell_bias", nn.initializers.zeros, (size,))
            norms |= {name: self.param(name, nn.initializers.ones, (n,)) for name, n in shapes.items()}
            norms["bias"] = self.param("bias", first_bias, (gates * size,)).astype(self.dtype)
            if config.cell != "rnn":
                x = self._normalise(x, norms["input_norm"]) + norms["bias"].reshape(1, 1, -1)
        else:
            x = self._input(x, gates, bias_init=first_bias)
        peep = self.param("peepholes", nn.initializers.zeros, (3, size)) if config.peepholes else None
        bias = self.param("recurrent_bias", nn.initializers.zeros, (size,)) if config.cell == "gru" else None
        state = jax.tree.map(lambda a: a.astype(self.dtype), state)
        held = None
        if config.variational_dropout and config.dropout and dropout_keys is not None:
            # One mask of the states, scaled, for every time.
            held = dropout(jnp.ones((x.shape[1], size), self.dtype), config.dropout, fold_in(dropout_keys, 1))
        plain = config.cell == "lstm" and not norms and peep is None and config.zoneout == 0.0
        if plain and mask is None and resets is None and held is None:
            outputs, last = lstm_scan(x, weight, *state)
            return outputs.swapaxes(0, 1), jax.tree.map(lambda a: a.astype(jnp.float32), last)

        length = x.shape[0]
        kept = None
        if config.zoneout and dropout_keys is not None:
            # Which units keep their state, for every time and both of h and c.
            kept = ~keep_mask(dropout_keys, config.zoneout, (length, 2, size)).swapaxes(0, 1)

        def step(state: PyTree, inputs: tuple[Array, ...]) -> tuple[PyTree, Array]:
            x, real, kept, reset = inputs
            if reset is not None:
                state = jax.tree.map(lambda a: jnp.where(reset[:, None], 0.0, a), state)
            h = state[0] if config.cell == "lstm" else state
            recurrent = (h if held is None else h * held) @ weight
            if norms and config.cell == "rnn":
                x, recurrent = self._normalise(x + recurrent, norms["recurrent_norm"]), norms["bias"][None]
            elif norms:
                recurrent = self._normalise(recurrent, norms["recurrent_norm"])
            new = self._cell(x, recurrent, state, peep, bias, norms)
            if config.zoneout:
                pair = (new, state) if config.cell == "lstm" else ((new,), (state,))
                mixed = []
                for place, (n, old) in enumerate(zip(*pair)):
                    if kept is None:
                        mixed.append(config.zoneout * old + (1.0 - config.zoneout) * n)
                    else:
                        mixed.append(jnp.where(kept[:, place], old, n))
                new = tuple(mixed) if config.cell == "lstm" else mixed[0]
            if real is not None:
                new = jax.tree.map(lambda n, old: jnp.where(real[:, None], n, old), new, state)
            return new, new[0] if config.cell == "lstm" else new

        real = None if mask is None else mask.astype(bool).T
        last, outputs = jax.lax.scan(step, state, (x, real, kept, None if resets is None else resets.T))
        return outputs.swapaxes(0, 1), jax.tree.map(lambda a: a.astype(jnp.float32), last)

    def _normalise(self, x: Array, gain: Array) -> Array:
        """LN of products [..., gates H]; in a gru, the gates and the candidate are normalised separately."""
        split = [2 * self.config.hidden_dim] if self.config.cell == "gru" else []
        parts = zip(jnp.split(x, split, axis=-1), jnp.split(gain, split))
        return jnp.concatenate([_layer_norm(part, own) for part, own in parts], axis=-1)

    def _cell(
        self, x: Array, recurrent: Array, state: PyTree, peep: Array | None, bias: Array | None, norms: dict[str, Array]
    ) -> PyTree:
        match self.config.cell:
            case "rnn":
                return jnp.tanh(x + recurrent)
            case "gru":
                (xr, xz, xn), (ur, uz, un) = (jnp.split(a, 3, axis=-1) for a in (x, recurrent))
                r, z = jax.nn.sigmoid(xr + ur), jax.nn.sigmoid(xz + uz)
                n = jnp.tanh(xn + r * (un + bias[None].astype(un.dtype)))
                return (1.0 - z) * n + z * state
        _, c = state
        i, f, g, o = jnp.split(x + recurrent, 4, axis=-1)
        if peep is not None:
            i, f = i + peep[:1] * c, f + peep[1:2] * c
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        if peep is not None:
            o = o + peep[2:] * c
        shown = _layer_norm(c, norms["cell_norm"]) + norms["cell_bias"][None].astype(c.dtype) if norms else c
        return jax.nn.sigmoid(o) * jnp.tanh(shown), c


def _ring(key: Array, shape: tuple[int, ...]) -> Array:
    """log(-log |lambda|) of eigenvalues that are uniform on the ring from .9 to .999 (Orvieto et
    al. 2023, lemma 3.2).
    """
    return jnp.log(-0.5 * jnp.log(jax.random.uniform(key, shape, minval=0.81, maxval=0.998)))


def _layer_norm(x: Array, gain: Array) -> Array:
    x32 = x.astype(jnp.float32)
    x32 = x32 - x32.mean(-1, keepdims=True)
    variance = (x32**2).mean(-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(variance + 1e-6) * gain.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def _orthogonal_blocks(count: int) -> Any:
    """Initialiser of [H, count H]: every square block orthogonal."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        keys = jax.random.split(key, count)
        block = nn.initializers.orthogonal()
        return jnp.concatenate([block(k, (shape[0], shape[0]), dtype) for k in keys], axis=1)

    return init


def _beginnings(segment_ids: Array | None) -> Array | None:
    """True where a segment begins, except at the beginning of a row, [B, T] -> bool [B, T]."""
    if segment_ids is None:
        return None
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(changes, ((0, 0), (1, 0)))


class RecurrentStack(nn.Module):
    """Layers on top of each other; parameters `layer_0_forward`, `layer_0_backward`, ..."""

    config: Recurrent
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        carry: PyTree | None = None,
        mask: Array | None = None,
        dropout_keys: Array | None = None,
        segment_ids: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """Runs the layers.

        Args:
          x: inputs [B, T, C].
          carry: states before, as `Recurrent.init_carry` makes them; None for zeros.
          mask: False at padding, where states stay, [B, T]; None for none.
          dropout_keys: one key an example, or None in evaluation.
          segment_ids: numbers of packed documents, [B, T]; None if a row is one document.  The first document of a row
            begins with `carry`, the others begin with zero states.

        Returns:
          Outputs [B, T, H] (2 H if bidirectional), and the states after.
        """
        config = self.config
        carry = config.init_carry(x.shape[0]) if carry is None else carry
        after = []
        if config.residual:
            x = nn.Dense(config.hidden_dim, dtype=self.dtype, name="embed")(x)
        for i, states in enumerate(carry):
            keys = fold_in(dropout_keys, i)
            inputs = nn.LayerNorm(dtype=self.dtype, name=f"layer_{i}_norm")(x) if config.residual else x
            forward, last = RecurrentLayer(config, self.dtype, name=f"layer_{i}_forward")(
                inputs, states[0], mask, fold_in(keys, 1), _beginnings(segment_ids)
            )
            lasts = [last]
            if config.bidirectional:
                flip = lambda a: None if a is None else jnp.flip(a, axis=1)
                backward, last = RecurrentLayer(config, self.dtype, name=f"layer_{i}_backward")(
                    flip(inputs), states[1], flip(mask), fold_in(keys, 2), _beginnings(flip(segment_ids))
                )
                forward = jnp.concatenate([forward, flip(backward)], axis=-1)
                lasts.append(last)
            after.append(tuple(lasts))
            if config.residual:
                x = x + nn.Dense(config.hidden_dim, dtype=self.dtype, name=f"layer_{i}_out")(forward)
                if config.mlp_dim:
                    h = nn.LayerNorm(dtype=self.dtype, name=f"layer_{i}_mlp_norm")(x)
                    h = jax.nn.gelu(nn.Dense(config.mlp_dim, dtype=self.dtype, name=f"layer_{i}_up")(h))
                    x = x + nn.Dense(config.hidden_dim, dtype=self.dtype, name=f"layer_{i}_down")(h)
            else:
                x = forward
            if i + 1 < config.num_layers:
                x = dropout(x, config.dropout, fold_in(keys, 0), (1,) if config.variational_dropout else ())
        return x, tuple(after)
