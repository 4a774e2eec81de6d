"""A fixed VQ-VAE and a learned prior over its codes (van den Oord et al. 2017, arXiv:1711.00937).

    z(x) = codes of the VQ-VAE,    -log p(x) <= -log p(x | z(x)) - log p(z(x))

Other families define p(z): a gated PixelCNN (autoregressive/vq_prior.py), a transformer of text and codes
(autoregressive/dalle.py), masked diffusion (diffusion/vq_diffusion.py).  The VQ-VAE, or a discrete VAE in its place, is
trained before and given by `--training.init_from`; its codebook is among the parameters here, however it was learned.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import Any

import jax

from genjax.batch import Array, Batch, Metrics, PyTree
from genjax.errors import UserError
from genjax.families.vae.discrete_vae import DiscreteVAE
from genjax.families.vae.vq_vae import VQVAE
from genjax.gradients import gradient_step
from genjax.model import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodePrior(abc.ABC):
    """A model of the codes of a fixed VQ-VAE.

    Parameters: encoder, decoder and codebook of the VQ-VAE, which do not change, and `prior`, which is learned.  A
    subclass has the field `prior`, a model of the codes with its optimizer.

    Attributes:
      vq_vae: the trained autoencoder, a VQ-VAE or a discrete VAE.
      untrained_vq_vae: start without a trained VQ-VAE, to try a configuration out; the result is meaningless.
    """

    vq_vae: VQVAE | DiscreteVAE = VQVAE()
    untrained_vq_vae: bool = False

    def check_start(self, source: Any) -> None:
        """Refuses to learn the codes of a VQ-VAE that was not trained.

        Args:
          source: the model of the run `training.init_from`, or None.

        Raises:
          UserError: it is missing, or neither such an autoencoder nor a prior over one, or another than `vq_vae`.
        """
        if source is None and self.untrained_vq_vae:
            return
        if not isinstance(source, (VQVAE, DiscreteVAE, CodePrior)):
            what = "" if source is None else f", and {type(source).__name__} is none"
            raise UserError(
                f"a prior learns the codes of a trained VQ-VAE{what}; give its run by --training.init_from=RUN "
                "--training.init_prefix=encoder,decoder,codebook"
            )
        theirs = source.vq_vae if isinstance(source, CodePrior) else source
        if type(theirs) is not type(self.vq_vae):
            raise UserError(
                f"model.vq_vae is a {type(self.vq_vae).__name__}, and the run training.init_from holds a "
                f"{type(theirs).__name__}"
            )
        if theirs.num_codes != self.vq_vae.num_codes:
            raise UserError(
                f"model.vq_vae.num_codes={self.vq_vae.num_codes}, and the codebook of training.init_from has "
                f"{theirs.num_codes} codes"
            )

    @property
    def coder(self) -> VQVAE | DiscreteVAE:
        """The autoencoder with its codebook among its parameters."""
        if isinstance(self.vq_vae, DiscreteVAE):
            return self.vq_vae
        return dataclasses.replace(self.vq_vae, codebook="gradient")

    @abc.abstractmethod
    def code_model(self) -> Any:
        """The prior, with the sizes that follow from the codes."""

    @abc.abstractmethod
    def codes(self, params: PyTree, batch: Batch) -> Batch:
        """The prior's batch: codes in place of x."""

    @abc.abstractmethod
    def loss(self, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Metrics]:
        """Mean of -log p(z), or of its bound, in nats, and metrics."""

    def vq_state(self, params: PyTree) -> TrainState:
        """The VQ-VAE's state as far as coding needs it."""
        params = {name: params[name] for name in ("encoder", "decoder", "codebook")}
        return TrainState.create(jax.lax.stop_gradient(params))

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step."""
        vq_key, prior_key = jax.random.split(key)
        params = dict(self.coder.init(vq_key, batch).params)
        params["prior"] = self.code_model().init(prior_key, self.codes(params, batch)).params
        return TrainState.create(params, self.prior.optimizer)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of the prior.  Metrics: loss, and the metrics that `loss` returns."""
        new, metrics = gradient_step(functools.partial(self.loss, step=state.step), self.prior.optimizer)(
            state, batch, key
        )
        # Weight decay and the moving average must not change the fixed VQ-VAE.
        average = state.ema_params and {**state.ema_params, "prior": new.ema_params["prior"]}
        return new.replace(params={**state.params, "prior": new.params["prior"]}, ema_params=average), metrics

    def bound_of_whole(self, code_nll: Array, params: PyTree, batch: Batch, key: Array) -> Metrics:
        """`reconstruction`, `nll_bound` and `bits_per_dim_bound` [B] each, from the nats of the codes [B]."""
        reconstruction = self.coder.evaluate(self.vq_state(params), batch, key)["reconstruction"]
        bound = code_nll + reconstruction - batch.get("log_abs_det", 0.0)
        bits = bound / (math.log(2.0) * math.prod(batch["x"].shape[1:]))
        return {"nll_bound": bound, "bits_per_dim_bound": bits, "reconstruction": reconstruction}

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """Pictures through code and back, the shape of x."""
        return self.coder.reconstruct(self.vq_state(state.eval_params), batch, key)
