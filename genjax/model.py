"""The contract of every generative model in genjax; read this file first.

Training is a pure function of a configuration and a seed:

    batch_t = data(seed, t)
    key_t   = fold_in(key(seed), t)
    state'  = model.train_step(state, batch_t, key_t)

A model is a frozen dataclass of hyper-parameters that holds no arrays.  It is therefore its own
configuration, hashable, and a static argument of `jit`.  All arrays live in a `TrainState`.

A batch is a flat dict of arrays whose first axis is the batch axis.  Continuous models and image models learn the array
`x`, token models learn `tokens`; `label`, `mask` and other arrays accompany it.  In evaluations `padding` [B] is True
at examples that only fill up the last batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree
from genjax.values import Support


class TrainState(flax.struct.PyTreeNode):
    """Everything that must survive a restart, as one pytree.

    Attributes:
      step: int32 scalar, the number of completed updates.
      params: learned parameters.
      opt_state: state of the optimizer, or a dict of them, one a network.
      ema_params: exponential moving average of `params`, or of those of them that are averaged, or None.
      learned: what a family learns beside `params`, by name (batch statistics, codebooks); a run that starts from
        another run takes both.
      extra: what else a family keeps, by name (positions in a stream, buffers, chains).
    """

    step: Array
    params: PyTree
    opt_state: PyTree = ()
    ema_params: PyTree = None
    learned: dict[str, PyTree] = flax.struct.field(default_factory=dict)
    extra: dict[str, PyTree] = flax.struct.field(default_factory=dict)

    @classmethod
    def create(
        cls,
        params: PyTree,
        optimizer: Any = None,
        extra: dict[str, PyTree] | None = None,
        learned: dict[str, PyTree] | None = None,
        trained: PyTree = None,
    ) -> TrainState:
        """Returns the state before the first update.

        Args:
          params: learned parameters.
          optimizer: an `optimizers.Optimizer`; or, for families that train several networks, a dict of optimizers
            whose keys are keys of `params`; or None.
          extra, learned: entries of `TrainState.extra` and `TrainState.learned`, which the family defines.
          trained: the part of the tree `params` that one optimizer trains, which alone has moments and averages; None
            for all.
        """
        opt_state: PyTree = ()
        ema: PyTree = None
        if isinstance(optimizer, Mapping):
            opt_state = {name: each.build().init(params[name]) for name, each in optimizer.items()}
            ema = {name: params[name] for name, each in optimizer.items() if each.ema_decay is not None} or None
        elif optimizer is not None:
            own = params if trained is None else trained
            opt_state = optimizer.build().init(own)
            ema = own if optimizer.ema_decay is not None else None
        # A copy, because the step donates its state and one buffer cannot be donated twice.
        ema = jax.tree.map(jnp.copy, ema)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=opt_state,
            ema_params=ema,
            learned=learned or {},
            extra=extra or {},
        )

    def with_params(self, params: PyTree) -> TrainState:
        """The state with other parameters, which `eval_params` then returns: no average takes their place.

        Inside a training step this lets a model evaluate or sample with the parameters of the step itself
        (`state.params`, or the argument of a loss) and not with their moving average.
        """
        return self.replace(params=params, ema_params=None)

    @property
    def eval_params(self) -> PyTree:
        """The parameters to evaluate and sample with: averaged ones where they are kept."""
        return self.params if self.ema_params is None else _with_averages(self.params, self.ema_params)


def _with_averages(params: PyTree, averages: PyTree) -> PyTree:
    """Parameters with averages in the places of those that have one."""
    if not isinstance(averages, Mapping):
        return averages
    return {**params, **{name: _with_averages(params[name], average) for name, average in averages.items()}}


def copies_of_start(state: TrainState, names: Iterable[str]) -> dict[str, PyTree]:
    """Values of `state.extra` that are copies of the parameters a run starts from, by name.

    Parameters of another run replace the parameters after `init`, so the first step makes the copies of them again.  A
    copy may hold some of the parameters only: subtrees of nested dicts.
    """
    first = state.step == 0

    def renew(copy: PyTree, params: PyTree) -> PyTree:
        if isinstance(copy, Mapping):
            return {name: renew(value, params[name]) for name, value in copy.items()}
        return jax.tree.map(lambda c, p: jnp.where(first, p, c), copy, params)

    return {name: renew(state.extra[name], state.params) for name in names}


@runtime_checkable
class GenerativeModel(Protocol):
    """What the engine asks of a model.  All four methods are pure and traceable."""

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        `batch` tells the shapes; models with a data-dependent start read its values too.
        """

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Each metric is a float scalar or a `Ratio` of two scalars; one metric is `loss`."""

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Metrics of a batch: an array [B] with a value per example, or a `Ratio` of two such arrays.

        The engine leaves out padding and averages.  The last batch is filled up with copies of its last example, so
        that all batches have one size; `padding` [B] is True at these copies (see `batch.counted_examples`).  If a
        model's value for one example depends on other examples of the batch (a contrast, a mean over the batch, a
        pairing), it must leave padding out, so that values are the same with and without padding.
        """

    def sample(self, state: TrainState, key: Array, num_samples: int, **condition: Any) -> Array:
        """Draws `num_samples` examples, shape [num_samples, ...], in the form of the arrays in a batch."""


# Optional capabilities, asked for by `isinstance`: capabilities for the engine first, then capabilities for tools.


@runtime_checkable
class HasPretrained(Protocol):
    """A model that can start from a checkpoint of another library, named by its field `pretrained`."""

    pretrained: str | None

    def with_pretrained_sizes(self) -> GenerativeModel:
        """The model with the sizes of the checkpoint; the model itself where `pretrained` is None."""

    def pretrained_params(self, params: PyTree) -> PyTree:
        """The checkpoint's values in the tree of `params` and on its devices; new ones for what the
        checkpoint lacks.
        """


@runtime_checkable
class ChecksStart(Protocol):
    """A model that needs certain parameters to start from, such as a student that is distilled from a teacher."""

    def check_start(self, source: GenerativeModel | None) -> None:
        """Raises UserError if a run cannot start from the parameters of `source`.

        `source` is the model of the run `training.init_from`; None if `training.init_from` is None.
        """


@runtime_checkable
class HasPolicy(Protocol):
    """A model that trains a policy, another model, by what that writes; the state has the policy's parameters."""

    policy: Any


class PartSources(NamedTuple):
    """Where frozen parts of a model come from.

    Attributes:
      model_of: the model of the run in a working directory; raises UserError if it does not know all tokens.
      described: the model of the run in a working directory, whatever tokens it knows.
      token_bytes: the text of each token of the data, as bytes; empty for special tokens.
      params_of: (working directory, tree of arrays) -> the run's averaged parameters, in the tree; None while models
        are described only.
    """

    model_of: Callable[[str], GenerativeModel]
    token_bytes: Callable[[], list[bytes]]
    described: Callable[[str], GenerativeModel]
    params_of: Callable[[str, PyTree], PyTree] | None = None


@runtime_checkable
class HasParts(Protocol):
    """A model with frozen parts that are not learned: networks of other runs, or tables of the data's tokens.

    The parts stand in `TrainState.extra` by name.  They are made at the first start of a run, after `init`, which fills
    their places with zeros; a resumed run has them in its checkpoint, and needs their sources no longer.
    """

    @property
    def part_runs(self) -> tuple[str, ...]:
        """Working directories of the runs that parts are taken from; their tokenizers must be that of the data."""

    def like_parts(self, earlier: GenerativeModel) -> GenerativeModel:
        """The model with the descriptions of parts that `earlier`, the model of its saved configuration, has."""

    def with_parts(self, sources: PartSources) -> GenerativeModel:
        """The model with descriptions of its parts, such as the models of runs, where they are None."""

    def make_parts(self, sources: PartSources) -> dict[str, PyTree]:
        """Values of `TrainState.extra`, by name."""


@runtime_checkable
class StartsFromParts(HasParts, Protocol):
    """A model whose parameters start as those of networks of other runs or libraries, each in its place."""

    def start_params(self, params: PyTree, sources: PartSources) -> PyTree:
        """New parameters, on their devices, with what is taken in place of what `init` drew."""


@runtime_checkable
class HasSupport(Protocol):
    """A model that cannot score, or cannot learn from, every value of x."""

    def support(self) -> Support | None:
        """The values of x that it can score and learn from; None for all."""


@runtime_checkable
class TakesConditions(Protocol):
    """A model whose samples can be drawn given conditions, such as a class or a source."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes: `label` (classes), `condition` (columns),
        `source` (to answer), ...
        """


def takes(model: GenerativeModel, condition: str) -> bool:
    """Whether samples of a model can be drawn given the condition of this name."""
    return isinstance(model, TakesConditions) and condition in model.conditions


@runtime_checkable
class HasGuidance(Protocol):
    """A model whose samples are led away from the model without its conditions."""

    @property
    def guidance_scale(self) -> float:
        """Weight of the guidance; 0 samples from the model itself."""

    def with_guidance_scale(self, scale: float) -> GenerativeModel:
        """The model with another weight; raises UserError if it was never trained without its conditions."""


@runtime_checkable
class ChecksSteps(Protocol):
    def check_steps(self, num_steps: int) -> None:
        """Raises UserError if a run of `num_steps` steps is too short, for instance for the draws of chains."""


@runtime_checkable
class ChecksCondition(Protocol):
    def check_condition(self, **condition: Any) -> None:
        """Called with the conditions of `sample`, outside compiled code, which cannot see values.

        Raises UserError if a value is not one that the model knows, such as a token outside its vocabulary.
        """


@runtime_checkable
class HasClasses(Protocol):
    """A model that can be conditional on classes; `takes(model, "label")` tells whether it is."""

    num_classes: int | None

    def check_labels(self, label: Array) -> None:
        """Raises UserError if the model is not conditional on classes, or one of these [N] does not exist."""


@runtime_checkable
class HasDataShape(Protocol):
    """A model of examples x [B, *data_shape]; None until the experiment is resolved."""

    data_shape: tuple[int, ...] | None


@runtime_checkable
class HasTextShapes(Protocol):
    """A model whose batches hold encoded texts, of shapes that it knows without a batch."""

    @property
    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one example's arrays, by their names in a batch."""


@runtime_checkable
class HasVocabulary(Protocol):
    """A model of tokens, which are the integers below `vocab_size`."""

    vocab_size: int | None


@runtime_checkable
class HasExtraTokens(HasVocabulary, Protocol):
    """A model with `extra_tokens` of its own behind the vocabulary."""

    extra_tokens: int


@runtime_checkable
class Summarizes(Protocol):
    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds metrics that follow from the means of `evaluate`, such as perplexity from nats a token."""


@runtime_checkable
class UsesMeshAxes(Protocol):
    @property
    def mesh_axes(self) -> tuple[str, ...]:
        """Those of the mesh axes `expert` and `sequence` that the model can split its experts and sequences over."""


@runtime_checkable
class HasWarnings(Protocol):
    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Sentences for the user about means of training metrics (since the last line of the log) that look wrong."""


@runtime_checkable
class CanDiagnose(Protocol):
    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Looks for the cause of a loss that was not finite: runs the forward pass of the
        state before, outside of `jit`.

        Raises UserError with the layer or the input that is to blame, as a part of a sentence.
        """


@runtime_checkable
class Reconstructs(Protocol):
    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """The model's reconstruction of each example, such as its decoded code, shape of x."""


@runtime_checkable
class HasLogProb(Protocol):
    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """Exact log-density or log-probability of each example in nats, shape [B]."""


@runtime_checkable
class HasLogProbBound(Protocol):
    def log_prob_bound(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """A lower bound on the log-probability of each example in nats, shape [B]."""


@runtime_checkable
class Dequantizes(Protocol):
    """A model that can add noise to x with levels; if it does, only a bound of the likelihood is known."""

    dequantization: Any | None


@runtime_checkable
class HasTokenLogProbs(Protocol):
    """A token model that scores each target of a batch; `nn.tokens.token_weights` says which targets count."""

    def token_log_probs(self, params: PyTree, batch: Batch, temperature: float = 1.0) -> Array:
        """log p(target | all before it) in nats, float32 [B, T], of `params` themselves and without dropout.

        Args:
          params: parameters of the model: `state.params`, averaged ones, or those of a reference.
          batch: `tokens` [B, T + 1] whose targets are tokens[:, 1:], and what else the model reads of it.
          temperature: number by which logits are divided, as a sampler with this temperature does.
        """


@runtime_checkable
class HasPseudoLogProb(Protocol):
    def pseudo_log_prob(self, state: TrainState, batch: Batch) -> Array:
        """Sum over tokens of log p(token | all others) in nats, shape [B]."""


@runtime_checkable
class HasLatents(Protocol):
    def encode(self, state: TrainState, batch: Batch) -> Array:
        """Returns the latent code of each example, shape [B, latent_dim] (the posterior mean where there is one)."""

    def decode(self, state: TrainState, latents: Array, **condition: Any) -> Array:
        """Returns the mean of the output distribution for each latent, shape [B, *data_shape]."""


@runtime_checkable
class HasCodeMaps(Protocol):
    def code_maps(self, state: TrainState, batch: Batch) -> Array:
        """Returns the map of codes of each example, shape [B, h, w, D] (the posterior mean where there is one)."""


@runtime_checkable
class DecodesNoise(Protocol):
    """A model whose samples are decoded standard normal latents."""

    latent_dim: int

    def decode(self, state: TrainState, latents: Array, **condition: Any) -> Array:
        """The example that each latent [B, latent_dim] stands for, shape [B, *data_shape]."""


@runtime_checkable
class HasCodeVariables(Protocol):
    """A model whose code has variables of several kinds."""

    num_variables: int

    def traverse(self, state: TrainState, key: Array, variable: int, num_rows: int, num_values: int) -> Array:
        """Samples that differ along columns in one variable, shape [num_rows, num_columns, *data_shape]."""


@runtime_checkable
class HasFeatures(Protocol):
    """A classifier whose features measure and make pictures, with `channels` of each level."""

    channels: tuple[int, ...]

    def network(self) -> Any:
        """The classifier's Linen module."""

    def features(self, state: TrainState, x: Array) -> tuple[Array, Array]:
        """Features [B, D] and logits [B, K] of pictures [B, H, W, C]."""


@runtime_checkable
class HasStates(Protocol):
    def decode_states(self, state: TrainState, batch: Batch) -> tuple[Array, Array]:
        """The likeliest path of hidden states [B, T], and its log-probability with the frames in nats [B]."""


@runtime_checkable
class HasComponents(Protocol):
    def responsibilities(self, state: TrainState, batch: Batch) -> Array:
        """Probability of each component of a mixture given x, shape [B, K]."""


@runtime_checkable
class HasModes(Protocol):
    def modes(self, state: TrainState) -> Any:
        """For each mode of linear dynamics, the share that is left after a frame, and the
        period in frames, shape [K, 2].
        """


@runtime_checkable
class HasDraws(Protocol):
    def draws(self, state: TrainState) -> Any:
        """The draws of all chains, as a `monte_carlo.Draws`."""


@runtime_checkable
class Forecasts(Protocol):
    def forecast(self, state: TrainState, key: Array, past: Array, num_steps: int, num_samples: int) -> Array:
        """Futures of series [B, T, D], shape [num_samples, B, num_steps, D]."""


@runtime_checkable
class ContinuesText(HasVocabulary, Protocol):
    """A model that continues a prompt; for `Sampling`, `Decoder` and `Generation` see `genjax.decoding`."""

    start_token: int | None
    end_token: int | None
    sampling: Any

    def token_decoder(self, state: TrainState) -> Any:
        """The `Decoder` with which functions of `genjax.decoding` run the model."""

    def generate(self, state: TrainState, key: Array, prompts: Array, max_new_tokens: int, **options: Any) -> Any:
        """A `Generation` of at most `max_new_tokens` tokens after each of prompts [B, P]."""


@runtime_checkable
class AnswersText(HasVocabulary, Protocol):
    """A model that writes an answer to a source."""

    end_token: int | None

    @property
    def answer_start(self) -> int:
        """The token that every answer begins with."""

    def answer_decoder(self, state: TrainState, source: Array, source_mask: Array | None = None) -> Any:
        """The `Decoder` with which functions of `genjax.decoding` write answers to sources [B, S]."""

    def translate(self, state: TrainState, source: Array, source_mask: Array | None, num_beams: int) -> Array:
        """The likeliest answer to each source [B, S] that a search with `num_beams` beams finds, shape [B, T]."""


@runtime_checkable
class MakesSources(Protocol):
    def with_source(self, batch: Batch, key: Array) -> Batch:
        """The batch with `source`, `source_mask` and `tokens`: the batch's own pairs, or pairs
        that the model makes of text.
        """


@runtime_checkable
class FollowsHints(Protocol):
    """A model whose samples follow pictures, the condition `hint`."""

    def hints(self, batch: Batch) -> Array:
        """The hints [B, H, W, C] of a batch: its own, or those that the model makes of its pictures."""


@runtime_checkable
class FillsMasks(HasVocabulary, Protocol):
    """A model that fills in tokens in the places of `mask_token`."""

    mask_token: int | None

    def fill(self, state: TrainState, key: Array, batch: Batch, temperature: float) -> Array:
        """Tokens with their masks filled, [B, T]."""

    def likeliest(self, state: TrainState, batch: Batch, top_k: int = 5) -> tuple[Array, Array]:
        """The likeliest tokens at every place and their log-probabilities, shape [B, T, top_k] each."""


@runtime_checkable
class ShowsAttention(Protocol):
    def attention_weights(self, state: TrainState, batch: Batch) -> list[tuple[Array, Array | None]]:
        """For each layer, attention to the own tokens [B, H, T, T], and attention to a source's
        tokens [B, H, T, S] or None.
        """


@runtime_checkable
class EmbedsTexts(Protocol):
    def embed(self, state: TrainState, batch: Batch) -> Array:
        """A vector for each text (a document, where queries are embedded otherwise) of `tokens` with `mask`, [B, C]."""


@runtime_checkable
class EmbedsQueries(EmbedsTexts, Protocol):
    def embed_queries(self, state: TrainState, batch: Batch) -> Array:
        """A vector for each query, to compare with vectors of documents, shape [B, C]."""


@runtime_checkable
class EmbedsTokens(EmbedsTexts, Protocol):
    def embed_tokens(self, state: TrainState, batch: Batch, queries: bool = False) -> Array:
        """A vector of length 1 for each token of documents, or of queries, `tokens` with `mask`, [B, T, C]."""


@runtime_checkable
class ReadsDocuments(Protocol):
    """A model that answers questions `source` [B, S] from their `documents` [B, M, L]."""

    def answer(self, state: TrainState, batch: Batch) -> Array:
        """The likeliest answer to each question, [B, T]."""

    def attribution(self, state: TrainState, batch: Batch) -> tuple[Array | None, Array]:
        """Probabilities [B, T, K] of the documents read for each token of the answers `tokens` [B, T + 1], or None
        where they are not told apart; and the places [B, K] of these documents among the question's.
        """


@runtime_checkable
class DescribesPictures(HasVocabulary, Protocol):
    """A model that writes captions of pictures, or answers to questions about them.

    Attributes:
      needs_pictures: whether there is no text without a picture.
    """

    needs_pictures: bool
    end_token: int | None
    sampling: Any

    def reader(self, state: TrainState, x: Array | None, prompts: Array, lengths: Array | None) -> Any:
        """The `Decoder` with which functions of `genjax.decoding` write about pictures [B, H, W, C], what it continues
        after prompts [B, P], and the lengths of that [B] or None.
        """

    def prompts_of(self, batch: Batch) -> tuple[Array, Array]:
        """The start token and the question of each row of `tokens`, [B, P] padded on the right, and lengths [B]."""

    def describe(
        self,
        state: TrainState,
        x: Array,
        prompts: Array | None = None,
        prompt_lengths: Array | None = None,
        num_beams: int | None = None,
    ) -> Array:
        """The likeliest text about each picture [B, H, W, C] after its prompt [B, P], tokens [B, N]."""


@runtime_checkable
class MergesUpdates(Protocol):
    def merged_params(self, params: PyTree) -> PyTree:
        """The network's own parameters, with low-rank updates added where there are any."""
