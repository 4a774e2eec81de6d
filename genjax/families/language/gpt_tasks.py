"""Classification, token labels and spans by a GPT (Radford et al. 2018, section 3.2): heads on a causal transformer.

    h = transformer(x),   p(y | x) = softmax(W h_T)   with T the last token before padding

Token labels and spans read every h_t.  The tasks, and the arrays that a batch must have, are described in
encoder_tasks.py.  The network's parameters have the paths of `GPT`, so that a run can start from a run that was trained
on text:

    --training.init_from=RUN --training.init_prefix=embedding,stack

and from a checkpoint of another library as `GPT` does, by --model.pretrained=FOLDER.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, example_keys
from genjax.errors import UserError, filled
from genjax.families.language.checkpoints.gpt import ARCHITECTURES
from genjax.families.language.encoder_tasks import Classification, Heads, Outputs, Task, Vocabulary, token_mask
from genjax.fine_tuning import FineTuned
from genjax.interop.huggingface import FromPretrained
from genjax.model import TrainState
from genjax.nn.lora import LoRA
from genjax.nn.tokens import seen_tokens, summarize
from genjax.nn.transformer import TokenEmbedding, Transformer, TransformerStack
from genjax.optimizers import AdamW, Linear, Optimizer


class CausalTaskNetwork(nn.Module):
    """Embeddings and stack of a GPT, and the heads of a task."""

    vocab_size: int
    config: Transformer
    task: Task
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.embedding = TokenEmbedding(self.vocab_size, self.config, dtype=self.dtype)
        self.stack = TransformerStack(self.config, self.dtype)
        self.heads = Heads(self.task.linear, self.task.masked, self.config, self.dtype, self.task.head_bias)

    def __call__(self, batch: Batch, dropout_keys: Array | None = None) -> Outputs:
        """The task's outputs; in training of experts also their `auxiliary` loss [B]."""
        # Padding is at the end, where no token sees it; but it would influence the balance of experts.
        seen = token_mask(batch) if "mask" not in batch else seen_tokens(batch)
        counted = seen if self.config.experts is not None else None
        out = self.stack(self.embedding(batch["tokens"]), key_mask=counted, dropout_keys=dropout_keys)
        hidden = out.x  # [B, T, C]
        last = jnp.maximum(seen.sum(1) - 1, 0)
        pooled = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        outputs = self.task.outputs(self.heads, self.embedding, hidden, pooled, batch, dropout_keys)
        learns_experts = self.config.experts is not None and dropout_keys is not None
        return {**outputs, "auxiliary": out.auxiliary} if learns_experts else outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTForTask(FromPretrained, FineTuned):
    """Decoder-only transformer with the head of a task.

    Attributes:
      vocab_size: number of tokens; None takes the data set's.
      sequence_length: length T of the random texts for which `sample` draws predictions if none are given.
      padding_token: token that fills rows, for other libraries, which look for it; None takes the data set's.
      network: the transformer stack; its `max_length` is the longest text.
      task: the task: classification, token_classification or span_extraction.
      lora: train low-rank updates of the linear maps and the head, and nothing else, or None.
      frozen: beginnings of the paths of parameters that are not trained, such as embedding or stack/layer_0.
      pretrained: folder of a checkpoint of the library transformers to start from, which then gives the sizes, or None.
      compute_dtype: type that the network computes in; parameters, logits and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    architectures = ARCHITECTURES

    vocab_size: int | None = None
    sequence_length: int | None = None
    padding_token: int | None = None
    network: Transformer = Transformer()
    task: Task = Classification()
    lora: LoRA | None = None
    frozen: tuple[str, ...] = ()
    compute_dtype: ComputeDtype = "float32"
    pretrained: str | None = None
    optimizer: Optimizer = AdamW(learning_rate=3e-4, weight_decay=0.01, clip_norm=1.0, schedule=Linear(warmup_steps=50))

    @property
    def heads(self) -> tuple[str, ...]:
        """Trained together with low-rank updates."""
        return ("heads",)

    def __post_init__(self) -> None:
        if not self.network.causal:
            raise UserError("model.network.causal=false makes an encoder; the model BERT has the same tasks")

    def module(self) -> CausalTaskNetwork:
        """The Linen module."""
        return CausalTaskNetwork(filled(self, "vocab_size"), self.network, self.task, jnp.dtype(self.compute_dtype))

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the task hides tokens, which a causal model cannot restore, or examples
            are longer than the context.
        """
        if self.task.masked:
            raise UserError(f"the task {type(self.task).__name__} needs an encoder; a GPT learns text by the model GPT")
        length = batch["tokens"].shape[1]
        if length > self.network.max_length:
            raise UserError(
                f"examples have {length} tokens, but model.network.max_length={self.network.max_length} is the longest "
                "context"
            )
        network_key, update_key = jax.random.split(key)
        params = self.module().init(network_key, {"tokens": batch["tokens"][:1]})["params"]
        return self.start(update_key, params)

    def _outputs(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> Outputs:
        return self.module().apply({"params": self.merged_params(params)}, batch, dropout_keys)

    def _prepared(self, batch: Batch, key: Array) -> Batch:
        return self.task.prepare(batch, example_keys(key, batch), Vocabulary(self.vocab_size, 0, ()))

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """The task's loss, mean over examples, and metrics."""
        prepared = self._prepared(batch, key)
        outputs = self._outputs(params, prepared, example_keys(key, prepared))
        loss, metrics = self.task.loss(outputs, prepared)
        if "auxiliary" in outputs:
            metrics = {**metrics, "auxiliary": outputs["auxiliary"].mean()}
            loss = loss + metrics["auxiliary"]
        return loss, metrics

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """The task's measures per example, [B] each."""
        prepared = self._prepared(batch, key)
        return self.task.measures(self._outputs(state.eval_params, prepared), prepared)

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds nll_per_token (nats), bits_per_token and perplexity where tokens were labelled."""
        return summarize(means) if "num_tokens" in means else means

    def predict(self, state: TrainState, batch: Batch) -> Outputs:
        """Logits of the task's heads."""
        return self._outputs(state.eval_params, batch)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("tokens",)

    def sample(self, state: TrainState, key: Array, num_samples: int, tokens: Array | None = None) -> Array:
        """Draws from the task's predictions for `tokens` [num_samples, T], or for random tokens."""
        if tokens is None:
            shape = (num_samples, filled(self, "sequence_length"))
            tokens = jax.random.randint(jax.random.fold_in(key, 1), shape, 0, self.vocab_size)
        return self.task.draw(key, self.predict(state, {"tokens": tokens}))
