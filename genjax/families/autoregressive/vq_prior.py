"""A gated PixelCNN over the codes of a VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937, sections 3.3 and 4.1).

    -log p(x) <= -log p(x | z(x)) - log p(z(x)),    z(x) the map of codes

Samples are maps of codes drawn from p(z), decoded.  vae/coded.py says how the VQ-VAE is given.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree
from genjax.families.autoregressive.gated_pixel_cnn import GatedPixelCNN
from genjax.families.vae.coded import CodePrior
from genjax.model import TrainState
from genjax.nn.distributions import Categorical
from genjax.values import Support


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQPrior(CodePrior):
    """An autoregressive model of the codes of a fixed VQ-VAE.

    Attributes:
      prior: model of the codes, and its learning rule; its data_shape, output and encoding follow from the codes.
    """

    prior: GatedPixelCNN = GatedPixelCNN(hidden_dim=64, num_layers=8, output_dim=128)

    def support(self) -> Support:
        """The values that the VQ-VAE scores."""
        return self.vq_vae.support()

    @property
    def class_conditional(self) -> bool:
        """Whether the prior, and so the whole, is conditional on classes."""
        return self.prior.class_conditional

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return self.prior.conditions

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the prior."""
        return self.prior.num_classes

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

    def codes(self, params: PyTree, batch: Batch) -> dict[str, Array]:
        """The batch with codes [B, h, w, 1] for x."""
        codes = self.coder.encode_codes(self.vq_state(params), batch)
        return {**batch, "x": codes[..., None].astype(jnp.float32)}

    def loss(self, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Metrics]:
        """Mean -log p(z) in nats an example."""
        loss, metrics = self.code_model().loss(params["prior"], self.codes(params, batch), key, step)
        return loss, {"code_nll": loss, "bits_per_code": metrics["bits_per_dim"]}

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

    def sample(self, state: TrainState, key: Array, num_samples: int, **condition: Any) -> Array:
        """Decoded draws from the prior, shape [num_samples, *data_shape]; see `AutoregressiveModel.sample`."""
        params = state.eval_params
        prior = TrainState.create(params["prior"])
        codes = self.code_model().sample(prior, key, num_samples, **condition)[..., 0]
        return self.coder.decode_codes(self.vq_state(params), jnp.round(codes).astype(jnp.int32))
