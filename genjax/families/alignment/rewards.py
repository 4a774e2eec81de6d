"""Rewards of answers: frozen dataclasses whose call maps answers to a number each, inside the compiled step.

A reward that reads text, or another network, has a part: arrays that the first start of a run makes from the data's
tokenizer or from another run, and that stand in the state from then on (see `genjax.model.HasParts`).
"""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax import decoding
from genjax.batch import Array, Batch, PyTree
from genjax.errors import UserError
from genjax.families.alignment.rollouts import Rollouts
from genjax.families.language.bert import BERT
from genjax.families.language.gpt_tasks import GPTForTask
from genjax.model import PartSources, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward(abc.ABC):
    """Base of all rewards.

    Attributes:
      filled: names of the fields that `with_parts` fills.
    """

    filled: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def __call__(self, part: PyTree, rollouts: Rollouts, batch: Batch) -> Array:
        """Reward of each answer, float32 [R].

        Args:
          part: the reward's arrays in the state.
          rollouts: the answers.
          batch: the batch, with a row for each answer.
        """

    @property
    def runs(self) -> tuple[str, ...]:
        """Working directories of the runs whose networks it takes."""
        return ()

    def with_parts(self, sources: PartSources) -> Reward:
        """The reward with the sizes of its part."""
        del sources
        return self

    def like(self, earlier: Reward) -> Reward:
        """The reward with the sizes that `earlier` has, the same reward of a saved configuration."""
        names = self.filled if type(earlier) is type(self) else ()
        missing = {name: getattr(earlier, name) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    def empty_part(self) -> PyTree:
        """Zeros of the shapes of the part."""
        return {}

    def make_part(self, sources: PartSources) -> PyTree:
        """The part, as host arrays."""
        del sources
        return {}


def answers_of(batch: Batch) -> tuple[Array, Array]:
    """The right answers of a batch with their end tokens, [B, A], and their mask.

    Raises:
      UserError: the data have no answers.
    """
    if "answer" in batch:
        return batch["answer"], batch["answer_mask"].astype(bool)
    if "source" in batch and "tokens" in batch:
        tokens = batch["tokens"][:, 1:]
        return tokens, batch["mask"][:, 1:].astype(bool) if "mask" in batch else jnp.ones_like(tokens, bool)
    raise UserError("the reward exact_match compares answers with the data's, and these data have none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactMatch(Reward):
    """1 if all tokens of an answer are the tokens of the data's answer, its end included; else 0."""

    def __call__(self, part: PyTree, rollouts: Rollouts, batch: Batch) -> Array:
        right, mask = answers_of(batch)
        size = max(right.shape[1], rollouts.tokens.shape[1])
        pad = lambda a: jnp.pad(a, ((0, 0), (0, size - a.shape[1])))
        same = (pad(right) == pad(rollouts.tokens)) | ~pad(mask)
        return (same.all(1) & (mask.sum(1) == rollouts.lengths)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length(Reward):
    """Punishes long answers softly (DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 13).

    0 up to `longest` - `buffer` tokens, then falling in a line to -1 at `longest` tokens, and -1 beyond.

    Attributes:
      longest: number of tokens from which the reward is -1.
      buffer: number of tokens over which it falls.
    """

    longest: int = 32
    buffer: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.longest:
            raise UserError(f"reward.buffer={self.buffer} must lie between 1 and reward.longest={self.longest}")

    def __call__(self, part: PyTree, rollouts: Rollouts, batch: Batch) -> Array:
        free = self.longest - self.buffer
        return -jnp.clip((rollouts.lengths - free) / self.buffer, 0.0, 1.0).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regex(Reward):
    """1 if the whole text of an answer matches a pattern and the answer has ended; else 0.

    The pattern is compiled to a table over tokens, which is looked up on the device.

    Attributes:
      pattern: regular expression that the whole answer must match; its signs stand in decoding/regular_expression.py.
      num_states: number of the table's states; None takes the pattern's.
      num_kinds: number of the table's kinds of tokens; None takes the tokenizer's.
      num_tokens: number of tokens of the vocabulary; None takes the data's.
    """

    filled: ClassVar[tuple[str, ...]] = ("num_states", "num_kinds", "num_tokens")

    pattern: str = ".*"
    num_states: int | None = None
    num_kinds: int | None = None
    num_tokens: int | None = None

    def __call__(self, part: PyTree, rollouts: Rollouts, batch: Batch) -> Array:
        table, kinds = part["table"], part["kinds"][rollouts.tokens]
        # The end token is no text.
        read = jnp.arange(rollouts.tokens.shape[1])[None] < (rollouts.lengths - rollouts.ended)[:, None]

        def advance(state: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
            kind, real = place
            after = jnp.where(state < 0, -1, table[jnp.maximum(state, 0), kind])
            return jnp.where(real, after, state), None

        start = jnp.zeros(rollouts.lengths.shape, table.dtype) + part["start"]
        state, _ = jax.lax.scan(advance, start, (kinds.T, read.T))
        accepted = (state >= 0) & part["accepting"][jnp.maximum(state, 0)]
        return (accepted & rollouts.ended).astype(jnp.float32)

    def _automaton(self, sources: PartSources) -> decoding.Automaton:
        return decoding.from_regular_expression(self.pattern, sources.token_bytes())

    def with_parts(self, sources: PartSources) -> Reward:
        automaton = self._automaton(sources)
        states, kinds = automaton.table.shape
        return dataclasses.replace(self, num_states=states, num_kinds=kinds, num_tokens=automaton.num_tokens)

    def empty_part(self) -> PyTree:
        if self.num_states is None or self.num_kinds is None or self.num_tokens is None:
            raise UserError("the reward regex has no table; resolve the experiment")
        integers = lambda *shape: jnp.zeros(shape, jnp.int32)
        table = integers(self.num_states, self.num_kinds)
        accepting = jnp.zeros((self.num_states,), bool)
        return {"table": table, "kinds": integers(self.num_tokens), "accepting": accepting, "start": integers()}

    def make_part(self, sources: PartSources) -> PyTree:
        found = self._automaton(sources)
        start = np.int32(found.start)
        return {"table": found.table, "kinds": found.kinds, "accepting": found.accepting, "start": start}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier(Reward):
    """What a trained classifier or reward model of another run says about prompt and answer.

    The run's tokenizer must be the policy's.  An optimum of a learned reward is not one of what it was trained to
    judge: measure that apart.

    Attributes:
      run: working directory of the run of a GPTForTask or BERT.
      label: number of the class whose probability is the reward; None for a reward model, which gives a score.
      output: whether the reward of a class is its probability, or its log-odds against all other classes.
      network: the run's model; None takes it from the run.
    """

    filled: ClassVar[tuple[str, ...]] = ("network",)

    run: str | None = None
    label: int | None = None
    output: Literal["probability", "log_odds"] = "probability"
    network: GPTForTask | BERT | None = None

    @property
    def runs(self) -> tuple[str, ...]:
        return () if self.run is None else (self.run,)

    def with_parts(self, sources: PartSources) -> Reward:
        if self.network is not None:
            return self
        if self.run is None:
            raise UserError("the reward classifier needs a run: give --model.reward.run, the workdir of a classifier")
        network = sources.model_of(self.run)
        if not isinstance(network, GPTForTask | BERT):
            raise UserError(f"model.reward.run={self.run} is a run of {type(network).__name__}, which rates no texts")
        return dataclasses.replace(self, network=network)

    def empty_part(self) -> PyTree:
        if self.network is None:
            raise UserError("the reward classifier has no network; resolve the experiment")
        batch = {"tokens": jax.ShapeDtypeStruct((1, 1), jnp.int32), "label": jax.ShapeDtypeStruct((1,), jnp.int32)}
        state = jax.eval_shape(self.network.init, jax.eval_shape(lambda: jax.random.key(0)), batch)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state.eval_params)

    def make_part(self, sources: PartSources) -> PyTree:
        return sources.params_of(self.run, self.empty_part())

    def __call__(self, part: PyTree, rollouts: Rollouts, batch: Batch) -> Array:
        rows = decoding.joined(rollouts.prompts, rollouts.prompt_lengths, rollouts.tokens, rollouts.lengths)
        inputs = {"tokens": rows["tokens"], "mask": rows["mask"]}
        state = TrainState(step=jnp.zeros((), jnp.int32), params=part)
        outputs = self.network.predict(state, inputs)
        if "score" in outputs:
            return outputs["score"].astype(jnp.float32)
        logits = outputs["classes"].astype(jnp.float32)
        if self.label is None or not 0 <= self.label < logits.shape[-1]:
            raise UserError(
                f"model.reward.label={self.label} must be the number of one of the classifier's {logits.shape[-1]} "
                "classes"
            )
        log_probs = jax.nn.log_softmax(logits)
        if self.output == "probability":
            return jnp.exp(log_probs[:, self.label])
        others = jnp.delete(log_probs, self.label, axis=1, assume_unique_indices=True)
        return log_probs[:, self.label] - jax.nn.logsumexp(others, axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Python(Reward):
    """What a function of the user's says about texts.

    The function gets prompts and answers as lists of texts, and the rows of the batch as a dict of host arrays, and
    returns a finite number for each answer.  It is called from the compiled step, on one process alone, and must be a
    function of its arguments: otherwise a run that is killed and resumed ends elsewhere.

    Attributes:
      function: file.py:name of the function.
      num_tokens: number of tokens of the vocabulary; None takes the data's.
      longest_token: largest number of bytes of a token; None takes the data's.
    """

    filled: ClassVar[tuple[str, ...]] = ("num_tokens", "longest_token")

    function: str = ""
    num_tokens: int | None = None
    longest_token: int | None = None

    def with_parts(self, sources: PartSources) -> Reward:
        self._function()
        pieces = sources.token_bytes()
        return dataclasses.replace(self, num_tokens=len(pieces), longest_token=max(1, *map(len, pieces)))

    def _function(self) -> Callable[[list[str], list[str], dict[str, np.ndarray]], Sequence[float]]:
        file, _, name = self.function.rpartition(":")
        path = Path(file).expanduser()
        if not file or not path.is_file():
            raise UserError(f"model.reward.function={self.function} must be file.py:name of a function in a file")
        spec = importlib.util.spec_from_file_location(f"genjax_reward_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UserError(f"{path}, which model.reward.function names, cannot be loaded: {_told(error)}") from None
        if not callable(getattr(module, name, None)):
            raise UserError(f"{path} has no function {name}, which model.reward.function names")
        return getattr(module, name)

    def empty_part(self) -> PyTree:
        if self.num_tokens is None or self.longest_token is None:
            raise UserError("the reward python has no texts of tokens; resolve the experiment")
        return {
            "bytes": jnp.zeros((self.num_tokens, self.longest_token), jnp.uint8),
            "sizes": jnp.zeros((self.num_tokens,), jnp.int32),
        }

    def make_part(self, sources: PartSources) -> PyTree:
        pieces = sources.token_bytes()
        sizes = np.array([len(piece) for piece in pieces], np.int32)
        table = np.zeros((len(pieces), max(1, sizes.max())), np.uint8)
        for row, piece in zip(table, pieces):
            row[: len(piece)] = np.frombuffer(piece, np.uint8)
        return {"bytes": table, "sizes": sizes}

    def __call__(self, part: PyTree, rollouts: Rollouts, batch: Batch) -> Array:
        if jax.process_count() > 1:
            raise UserError("the reward python runs in one process alone; use another reward on several processes")
        function = self._function()

        def call(
            table: Any, sizes: Any, prompts: Any, prompt_lengths: Any, tokens: Any, lengths: Any, rows: Any
        ) -> Any:
            table, sizes = np.asarray(table), np.asarray(sizes)

            def texts(ids: Any, counts: Any) -> list[str]:
                pieces = lambda row, count: (table[i, : sizes[i]].tobytes() for i in row[:count])
                return [b"".join(pieces(*r)).decode(errors="replace") for r in zip(np.asarray(ids), np.asarray(counts))]

            asked, answered = texts(prompts, prompt_lengths), texts(tokens, lengths)
            try:
                values = np.asarray(function(asked, answered, jax.tree.map(np.asarray, rows)), np.float32)
            except Exception as error:
                raise UserError(f"model.reward.function={self.function} has failed: {_told(error)}") from None
            if values.shape != (len(tokens),):
                raise UserError(
                    f"{self.function} returned {values.shape} numbers for {len(tokens)} answers; "
                    "it must return one for each"
                )
            for i in np.flatnonzero(~np.isfinite(values)):
                raise UserError(
                    f"{self.function} returned {values[i]} for the answer {answered[i]!r} to the prompt {asked[i]!r}; "
                    "a reward must be a finite number"
                )
            return values

        shape = jax.ShapeDtypeStruct(rollouts.lengths.shape, jnp.float32)
        arguments = (rollouts.prompts, rollouts.prompt_lengths, rollouts.tokens, rollouts.lengths, dict(batch))
        return jax.pure_callback(call, shape, part["bytes"], part["sizes"], *arguments)


def _told(error: Exception) -> str:
    """What an error of a user's file says, and where."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return said  # with its place
    *_, place = traceback.extract_tb(error.__traceback__)
    return f"{said} ({place.filename}, line {place.lineno})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightedSum(Reward):
    """first + weight second.

    Attributes:
      first: a reward.
      second: another reward.
      weight: factor on the second.
    """

    first: Reward = ExactMatch()
    second: Reward = Length()
    weight: float = 1.0

    @property
    def runs(self) -> tuple[str, ...]:
        return (*self.first.runs, *self.second.runs)

    def _of_both(self, function: Callable[[Reward], Any]) -> dict[str, Any]:
        return {"first": function(self.first), "second": function(self.second)}

    def with_parts(self, sources: PartSources) -> Reward:
        return dataclasses.replace(self, **self._of_both(lambda reward: reward.with_parts(sources)))

    def like(self, earlier: Reward) -> Reward:
        if not isinstance(earlier, WeightedSum):
            return self
        return dataclasses.replace(self, first=self.first.like(earlier.first), second=self.second.like(earlier.second))

    def empty_part(self) -> PyTree:
        return self._of_both(lambda reward: reward.empty_part())

    def make_part(self, sources: PartSources) -> PyTree:
        return self._of_both(lambda reward: reward.make_part(sources))

    def __call__(self, part: PyTree, rollouts: Rollouts, batch: Batch) -> Array:
        first = self.first(part["first"], rollouts, batch)
        return first + self.weight * self.second(part["second"], rollouts, batch)
