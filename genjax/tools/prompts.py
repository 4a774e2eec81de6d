"""Text of a trained token model: prompts continued, answered or filled in, and watermarks looked for.

    run = genjax.restore("runs/gpt")
    print("".join(prompts.generate(run, "ROMEO:", prompts.Options(search="beam"))))

The model's field `sampling` sets how tokens are drawn; see genjax/decoding.
"""

from __future__ import annotations

import codecs
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax import config, decoding
from genjax.data.base import HasTokenizer, RendersChats
from genjax.data.text.tokenizer import Tokenizer
from genjax.model import AnswersText, ContinuesText, DescribesPictures, FillsMasks, HasExtraTokens
from genjax.tools import attachments
from genjax.training import Run, runs

#: Largest number of new tokens, by default.
MOST_NEW_TOKENS = 256

#: A prompt: a text, or a chat whose messages have role and content.
Prompt = str | Sequence[Mapping[str, Any]]

#: Ways to write a masked token in a prompt.
_MASK = re.compile(r"\[mask\]|\[MASK\]|<mask>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a prompt is continued or answered.

    Attributes:
      max_new_tokens: largest number of new tokens; by default 256, or the rest of the longest context if that is less.
      seed: seed of the choices.
      search: method by which tokens are chosen.
      num_beams: number of hypotheses of --search=beam.
      length_penalty: exponent of the length penalty of --search=beam.
      contrastive_alpha: weight of the likeness penalty of --search=contrastive.
      draft_workdir: run of a faster model that proposes tokens, for --search=speculative.
      regex: regular expression that the new text must match as a whole; without an end token the text goes on as
        long as the expression allows.
      watermark_seed: secret number of a watermark to put in, or to detect.
      watermark_delta: number that the watermark adds to logits of green tokens.
      watermark_fraction: share of the vocabulary that is green.
      image: file of a picture that the prompt is about, for a run that writes about pictures; or of several, each
        written <image> in the prompt, for a run of texts with pictures between them.
      audio: WAV file with what is said, for a run that writes down what it hears; a prompt is then the beginning of
        its text.
    """

    max_new_tokens: int | None = None
    seed: int = 0
    search: Literal["sample", "beam", "contrastive", "speculative"] = "sample"
    num_beams: int = 4
    length_penalty: float = 0.6
    contrastive_alpha: float = 0.6
    draft_workdir: str | None = None
    regex: str | None = None
    watermark_seed: int | None = None
    watermark_delta: float = 2.0
    watermark_fraction: float = 0.25
    image: tuple[str, ...] | None = None
    audio: str | None = None

    def __post_init__(self) -> None:
        config.check_at_least(self, max_new_tokens=1, num_beams=1)
        config.check_named(self, "image", "audio")

    def watermark(self) -> decoding.Watermark | None:
        """The watermark, or None without a seed."""
        if self.watermark_seed is None:
            return None
        return decoding.Watermark(
            seed=self.watermark_seed, green_fraction=self.watermark_fraction, delta=self.watermark_delta
        )


@dataclasses.dataclass(frozen=True)
class Detection:
    """Evidence of a watermark in a text.

    Attributes:
      num_tokens: number of tokens of the text.
      z_score: excess of green tokens over chance, in standard deviations.
      p_value: probability of a score at least as large in a text without the watermark.
    """

    num_tokens: int
    z_score: float
    p_value: float


def generate(run: Run, prompt: Prompt = "", options: Options | None = None) -> Iterator[str]:
    """The new text of a prompt, piece after piece as it comes.

    An encoder-decoder answers the prompt.  An encoder fills the places [mask]: it yields the whole text, and a line for
    each mask with the likeliest tokens and their probabilities.

    Args:
      run: a run of a token model.
      prompt: the text; if empty, a new text is begun.  Or a chat, whose next turn is written: its messages with role
        and content.
      options: settings of the continuation.

    Raises:
      ConfigError: the run continues no text, or options do not go together.
    """
    options, run = options or Options(), runs.policy_run(run)
    tokenizer = tokenizer_of(run)
    attachments.check_files(run, options.image, options.audio)
    if isinstance(run.model, FillsMasks):
        return iter(["\n".join(fill_masks(run, tokenizer, prompt))])
    tokens = continuation(run, tokenizer, prompt, options)
    ends = ends_of(run, prompt)
    texts = pieces_as_text((token for token in tokens if token not in ends), pieces_of(tokenizer))
    return without_first_blank(texts) if isinstance(run.model, DescribesPictures) else texts


def detect(run: Run, text: str, options: Options) -> Detection:
    """Looks for the watermark of the options in a text.

    Raises:
      ConfigError: the options have no secret, or the text has fewer than two tokens.
    """
    mark = options.watermark()
    if mark is None:
        raise config.ConfigError("--detect needs the secret of the watermark: --watermark_seed=NUMBER")
    run = runs.policy_run(run)
    tokens = tokenizer_of(run).encode(text)
    if len(tokens) < 2:
        raise config.ConfigError(f"the text has {len(tokens)} tokens, and the watermark needs at least two")
    z = float(mark.z_score(jnp.asarray(tokens)[None], run.model.vocab_size)[0])
    return Detection(len(tokens), z, 0.5 * math.erfc(z / math.sqrt(2)))


def pieces_as_text(tokens: Iterable[int], pieces: Sequence[bytes]) -> Iterator[str]:
    """Yields the text of tokens as they come; a character is yielded with its last byte, other
    tokens give an empty string.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        yield decoder.decode(pieces[token] if token < len(pieces) else b"")
    yield decoder.decode(b"", True)


def without_first_blank(texts: Iterable[str]) -> Iterator[str]:
    """Texts that follow each other, without the blank before the first word: captions and answers begin with it."""
    begun = False
    for text in texts:
        text = text if begun else text.lstrip()
        begun = begun or bool(text)
        yield text


def tokenizer_of(run: Run) -> Tokenizer:
    """The tokenizer of a run.

    Raises:
      ConfigError: the data are no tokens with text, or the tokenizer does not belong to the checkpoint.
    """
    data, model = run.experiment.data, run.model
    writes = FillsMasks | AnswersText | ContinuesText | DescribesPictures
    if not isinstance(data, HasTokenizer) or not isinstance(model, writes):
        raise config.ConfigError(
            f"{run.workdir} holds a {type(model).__name__} of {type(data).__name__}, which continues no text"
        )
    size, tokenizer = data.spec()["vocab_size"], data.make_tokenizer()
    # The embedding table of another library's checkpoint may be longer than its tokenizer.
    if size > model.vocab_size or (size < model.vocab_size and tokenizer.kind != "file"):
        raise config.ConfigError(
            f"the tokenizer in {run.workdir} makes {size} tokens and the checkpoint has {model.vocab_size}: "
            "it does not belong to the checkpoint"
        )
    return tokenizer


def fill_masks(run: Run, tokenizer: Tokenizer, text: str) -> Iterator[str]:
    """Lines of text: the prompt with its masks filled in, and for each mask the likeliest tokens and probabilities."""
    data, model = run.experiment.data, run.model
    first, *others = (tokenizer.encode(part) for part in _MASK.split(text))
    if not others:
        raise config.ConfigError(
            f"{type(model).__name__} fills masked tokens: write [mask] in --prompt where one stands"
        )
    ids = np.concatenate([first, *(np.append(model.mask_token, part) for part in others)])
    batch = {"tokens": jnp.asarray([[data.start_token, *ids, data.separator_token]], jnp.int32)}
    filled = jax.jit(lambda state, batch: model.fill(state, jax.random.key(0), batch, temperature=0.0))(
        run.state, batch
    )
    yield data.decode(np.asarray(filled[0]))
    tokens, log_probs = (np.asarray(a[0]) for a in jax.jit(model.likeliest)(run.state, batch))
    for place in np.flatnonzero(np.asarray(batch["tokens"][0]) == model.mask_token):
        rows = zip(tokens[place], np.exp(log_probs[place]))
        yield "  " + "  ".join(f"{data.decode(np.array([token]))!r} {probability:.3f}" for token, probability in rows)


def ends_of(run: Run, prompt: Prompt) -> tuple[int, ...]:
    """The tokens that end the new text: the model's, and in a chat the end of a turn."""
    ends, data = decoding.end_tokens(run.model.end_token), run.experiment.data
    if isinstance(prompt, str) or not isinstance(data, RendersChats):
        return ends
    return tuple(dict.fromkeys((*ends, data.end_of_turn())))


def start_of(run: Run, tokenizer: Tokenizer, text: Prompt, options: Options) -> tuple[Any, np.ndarray]:
    """The decoder, and the tokens [P] that it continues: the prompt's tokens, or the first token of an answer to it.

    Raises:
      ConfigError: a chat is to be continued by a run that has no template for chats, or there is no picture or sound to
        write about.
    """
    model = run.model
    if isinstance(text, str) and isinstance(model, DescribesPictures):
        x, tokens = attachments.prompt_about(run, text, options.image, options.audio)
        decoder, starts, _ = model.reader(run.state, x, jnp.asarray(tokens)[None], None)
        return decoder, np.asarray(starts[0])
    if isinstance(text, str) and isinstance(model, AnswersText):
        source = np.array([run.experiment.data.source_ids(text)], np.int32)
        return model.answer_decoder(run.state, source), np.array([model.answer_start], np.int32)
    tokens = tokens_of(run, tokenizer, text)
    return model.token_decoder(run.state), tokens


def tokens_of(run: Run, tokenizer: Tokenizer, text: Prompt, **settings: Any) -> np.ndarray:
    """The tokens [P] that a model continues.

    Args:
      run: a run of a model that continues texts.
      tokenizer: its tokenizer.
      text: a text, or a chat, whose next turn is begun.
      **settings: what the template of a chat reads, such as `tools`.

    Raises:
      ConfigError: a chat is to be continued by a run that has no template for chats.
    """
    model, data = run.model, run.experiment.data
    if not isinstance(text, str):
        if not isinstance(data, RendersChats) or isinstance(model, AnswersText):
            raise config.ConfigError(
                f"{run.workdir} holds a {type(model).__name__} of {type(data).__name__}, "
                "which was not trained on chats; give a run whose data have a template (data.name=chats)"
            )
        return data.prompt_ids(text, **settings)
    prompt, start = np.append(tokenizer.frame[0], tokenizer.encode(text)), model.start_token or 0
    # If documents begin with a start token, so does the prompt.
    own = start >= tokenizer.vocab_size or (tokenizer.kind != "file" and start in tokenizer.special.values())
    if not len(prompt) or own:
        prompt = np.append(start, prompt)
    return prompt.astype(np.int32)


def constraint_of(run: Run, tokenizer: Tokenizer, pattern: str) -> decoding.Automaton:
    """The automaton of a regular expression over the tokens of a model.

    Raises:
      UserError: as `decoding.from_regular_expression` does.
    """
    pieces, model = pieces_of(tokenizer), run.model
    added = model.extra_tokens if isinstance(model, HasExtraTokens) else 0
    missing = model.vocab_size + added - len(pieces)
    return decoding.from_regular_expression(pattern, pieces + [b""] * missing)


def pieces_of(tokenizer: Tokenizer) -> list[bytes]:
    """The output of each token: its text in UTF-8, perhaps a part of a character; empty for special ones and marks."""
    special = {*tokenizer.special.values(), *tokenizer.control_tokens.values()}
    return [b"" if i in special else piece for i, piece in enumerate(tokenizer.pieces)]


def num_new_tokens(options: Options, prompt: np.ndarray, *decoders: Any) -> int:
    """Largest number of new tokens after a prompt [P]: as in the options, or the rest of the models' contexts."""
    if options.max_new_tokens is not None:
        return options.max_new_tokens
    rooms = [decoder.max_length - len(prompt) for decoder in decoders if decoder.max_length is not None]
    # At least one, so that a prompt that fills the context is refused with a message about the context's length.
    return max(1, min(rooms + [MOST_NEW_TOKENS]))


def continuation(run: Run, tokenizer: Tokenizer, text: Prompt, options: Options) -> Iterable[int]:
    """Yields the new tokens of a prompt, one at a time if the search allows it."""
    model = run.model
    decoder, prompt = start_of(run, tokenizer, text, options)
    end, key = ends_of(run, text) or None, jax.random.key(options.seed)
    rows, size = jnp.asarray(prompt)[None], num_new_tokens(options, prompt, decoder)
    if options.search == "sample":
        constraint = None
        if options.regex is not None:
            constraint = constraint_of(run, tokenizer, options.regex)
        return decoding.stream(
            decoder,
            key,
            prompt,
            size,
            end_token=end,
            sampling=model.sampling,
            constraint=constraint,
            watermark=options.watermark(),
        )
    if options.regex is not None or options.watermark_seed is not None:
        raise config.ConfigError("--regex and --watermark_seed go with --search=sample")
    if options.search == "beam":
        beam = {"num_beams": options.num_beams, "alpha": options.length_penalty, "end_token": end}
        search = decoding.compiled(decoding.beam_search, decoder, static_argnums=2, static_argnames=tuple(beam))
        beams = search(rows, size, **beam)
        return beams.tokens[0, 0, : int(beams.lengths[0, 0])].tolist()
    if options.search == "contrastive":
        names = ("alpha", "end_token")
        search = decoding.compiled(decoding.contrastive_search, decoder, static_argnums=2, static_argnames=names)
        out = search(rows, size, alpha=options.contrastive_alpha, end_token=end)
    else:
        if options.draft_workdir is None:
            raise config.ConfigError("--search=speculative needs a faster model: --draft_workdir=RUN")
        draft = runs.restore(options.draft_workdir)
        if tokenizer_of(draft).to_json() != tokenizer.to_json():
            raise config.ConfigError(f"{options.draft_workdir} has another tokenizer than {run.workdir}")
        drawn = {"sampling": model.sampling, "end_token": end}
        proposing, _ = start_of(draft, tokenizer, text, options)
        size = num_new_tokens(options, prompt, decoder, proposing)
        draft_of = proposing.with_weights or (lambda _: proposing)
        write = lambda target, weights, rows: decoding.speculative(target, draft_of(weights), key, rows, size, **drawn)
        # Both runs may have been restored on other devices.
        out, _ = decoding.compiled(write, decoder)(jax.device_get(proposing.weights), rows)
    return out.tokens[0, : int(out.lengths[0])].tolist()
