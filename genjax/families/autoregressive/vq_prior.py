"""A learned prior over the codes of a VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937, sections 3.3 and 4.1).

    z(x) = codes of the VQ-VAE,    -log p(x) <= -log p(x | z(x)) - log p(z(x))

p(z) is a gated PixelCNN over the map of codes; samples are drawn from it and decoded.  The VQ-VAE is trained before and
given by `--training.init_from`; it stays as it is, and its codebook is among the parameters here, however it was
learned.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree
from genjax.errors import UserError
from genjax.families.autoregressive.gated_pixel_cnn import GatedPixelCNN
from genjax.families.vae.vq_vae import VQVAE
from genjax.gradients import gradient_step
from genjax.model import TrainState
from genjax.nn.distributions import Categorical


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQPrior:
    """A model of the codes of a fixed VQ-VAE.

    Parameters: encoder, decoder and codebook of the VQ-VAE, which do not change, and `prior`, which is learned.

    Attributes:
      vq_vae: the trained autoencoder.
      prior: model of the codes, and its learning rule; its data_shape, output and encoding follow from the codes.
      untrained_vq_vae: start without a trained VQ-VAE, to try a configuration out; what is learned then means nothing.
    """

    vq_vae: VQVAE = VQVAE()
    prior: GatedPixelCNN = GatedPixelCNN(hidden_dim=64, num_layers=8, output_dim=128)
    untrained_vq_vae: bool = False

    def check_start(self, source: Any) -> None:
        """Refuses to learn the codes of a VQ-VAE that was not trained.

        Args:
          source: the model of the run that the parameters are taken from, or None where there is none.

        Raises:
          UserError: it is missing, or neither a VQ-VAE nor a prior over one.
        """
        if source is None and self.untrained_vq_vae:
            return
        if not isinstance(source, (VQVAE, VQPrior)):
            what = "" if source is None else f", and {type(source).__name__} is none"
            raise UserError(
                f"a prior learns the codes of a trained VQ-VAE{what}; give its run by --training.init_from=RUN "
                "--training.init_prefix=encoder,decoder,codebook"
            )

    @property
    def coder(self) -> VQVAE:
        """The VQ-VAE with its codebook among its parameters."""
        return dataclasses.replace(self.vq_vae, codebook="gradient")

    @property
    def class_conditional(self) -> bool:
        """Whether the prior, and so the whole, is conditional on classes."""
        return self.prior.class_conditional

    def check_labels(self, label: Array) -> None:
        """Refuses labels outside of the prior's classes; see `AutoregressiveModel.check_labels`."""
        self.prior.check_labels(label)

    def code_model(self) -> GatedPixelCNN:
        """The prior over maps of codes [h, w, 1]."""
        num_codes = self.vq_vae.num_codes
        return dataclasses.replace(
            self.prior,
            data_shape=(*self.vq_vae.code_shape, 1),
            output=Categorical(low=0.0, high=num_codes - 1.0, num_levels=num_codes),
            input_encoding="one_hot",
        )

    def vq_state(self, params: PyTree) -> TrainState:
        """The VQ-VAE's state as far as coding needs it."""
        params = {name: params[name] for name in ("encoder", "decoder", "codebook")}
        return TrainState.create(jax.lax.stop_gradient(params))

    def codes(self, params: PyTree, batch: Batch) -> dict[str, Array]:
        """The batch with codes [B, h, w, 1] for x."""
        codes = self.coder.encode_codes(self.vq_state(params), batch)
        return {**batch, "x": codes[..., None].astype(jnp.float32)}

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step."""
        vq_key, prior_key = jax.random.split(key)
        params = dict(self.coder.init(vq_key, batch).params)
        params["prior"] = self.code_model().init(prior_key, self.codes(params, batch)).params
        return TrainState.create(params, self.prior.optimizer)

    def loss(self, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Metrics]:
        """Mean -log p(z) in nats an example."""
        loss, metrics = self.code_model().loss(params["prior"], self.codes(params, batch), key, step)
        return loss, {"code_nll": loss, "bits_per_code": metrics["bits_per_dim"]}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of the prior.  Metrics: loss = code_nll (nats an example), bits_per_code."""
        new, metrics = gradient_step(functools.partial(self.loss, step=state.step), self.prior.optimizer)(
            state, batch, key
        )
        # Weight decay must not reach what does not learn, nor its moving average.
        average = state.ema_params and {**state.ema_params, "prior": new.ema_params["prior"]}
        return new.replace(params={**state.params, "prior": new.params["prior"]}, ema_params=average), metrics

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example in nats: `code_nll` = -log p(z), `reconstruction` = -log p(x | z), and `nll_bound`, their sum.

        `nll_bound`, and with it `bits_per_dim_bound` of the whole, is of the data before its transform where the batch
        has `log_abs_det`; it is of levels, and so comparable, where the output of the VQ-VAE is discrete.
        """
        params = state.eval_params
        codes = self.codes(params, batch)
        model = self.code_model()
        code_nll = -model.log_likelihood(params["prior"], codes["x"], model.labels(codes))
        return {"code_nll": code_nll, **self.bound_of_whole(code_nll, params, batch, key)}

    def bound_of_whole(self, code_nll: Array, params: PyTree, batch: Batch, key: Array) -> Metrics:
        """`reconstruction`, `nll_bound` and `bits_per_dim_bound` [B] each, from what the codes take, in nats [B]."""
        reconstruction = self.coder.evaluate(self.vq_state(params), batch, key)["reconstruction"]
        bound = code_nll + reconstruction - batch.get("log_abs_det", 0.0)
        bits = bound / (math.log(2.0) * math.prod(batch["x"].shape[1:]))
        return {"nll_bound": bound, "bits_per_dim_bound": bits, "reconstruction": reconstruction}

    def sample(self, state: TrainState, key: Array, num_samples: int, **condition: Any) -> Array:
        """Decoded draws from the prior, shape [num_samples, *data_shape]; see `AutoregressiveModel.sample`."""
        params = state.eval_params
        prior = TrainState.create(params["prior"])
        codes = self.code_model().sample(prior, key, num_samples, **condition)[..., 0]
        return self.coder.decode_codes(self.vq_state(params), jnp.round(codes).astype(jnp.int32))

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """Pictures through code and back, the shape of x."""
        return self.coder.reconstruct(self.vq_state(state.eval_params), batch, key)
