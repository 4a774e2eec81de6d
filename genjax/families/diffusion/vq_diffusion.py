"""Masked diffusion as the prior over the codes of a VQ-VAE (Gu et al. 2022, VQ-Diffusion,
arXiv:2111.14822, without text).

    z(x) = codes of the VQ-VAE,    -log p(x) <= -log p(x | z(x)) + bound of -log p(z(x))

The codes are a sequence of tokens, row by row, and p(z) is a `MaskedDiffusion` of them.  Train a VQ-VAE, and give its
run by `--training.init_from` with `--training.init_prefix=encoder,decoder,codebook` (vae/coded.py).
"""

from __future__ import annotations

import dataclasses
import math

from genjax.batch import Array, Batch, Metrics, PyTree
from genjax.families.diffusion.discrete import MaskedDiffusion
from genjax.families.vae.coded import CodePrior
from genjax.model import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQDiffusion(CodePrior):
    """A fixed VQ-VAE, and a masked diffusion model that learns its codes.

    Attributes:
      prior: masked diffusion or D3PM, with its optimizer; its vocab_size and sequence_length follow from the codes.
    """

    prior: MaskedDiffusion = MaskedDiffusion()

    def code_model(self) -> MaskedDiffusion:
        """The prior over sequences of codes [h w]."""
        length = math.prod(self.vq_vae.code_shape)
        return dataclasses.replace(self.prior, vocab_size=self.vq_vae.num_codes, sequence_length=length)

    def codes(self, params: PyTree, batch: Batch) -> dict[str, Array]:
        """Codes of a batch as `tokens` [B, h w], with its `example_index`."""
        codes = self.coder.encode_codes(self.vq_state(params), batch)
        index = {"example_index": batch["example_index"]} if "example_index" in batch else {}
        return {"tokens": codes.reshape(codes.shape[0], -1), **index}

    def loss(self, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Metrics]:
        """Mean bound of -log p(z) in nats a code."""
        del step
        loss, _ = self.code_model().loss(params["prior"], self.codes(params, batch), key)
        return loss, {"bits_per_code_bound": loss / math.log(2.0)}

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example in nats: `code_nll_bound`, `reconstruction` = -log p(x | z), and their sum `nll_bound`."""
        params = state.eval_params
        prior = TrainState.create(params["prior"])
        code_nll = -self.code_model().log_prob_bound(prior, self.codes(params, batch), key)
        return {"code_nll_bound": code_nll, **self.bound_of_whole(code_nll, params, batch, key)}

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Decoded draws from the prior, shape [num_samples, *data_shape]."""
        params = state.eval_params
        tokens = self.code_model().sample(TrainState.create(params["prior"]), key, num_samples)
        codes = tokens.reshape(num_samples, *self.vq_vae.code_shape)
        return self.coder.decode_codes(self.vq_state(params), codes)
