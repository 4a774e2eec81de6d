"""Continues or answers a prompt with a trained token model, and writes to the terminal token by token:

    python -m experiments.generate --workdir=runs/gpt --prompt="ROMEO:" --model.sampling.temperature=0.8
    python -m experiments.generate --workdir=runs/gpt --prompt="ROMEO:" --search=beam --num_beams=4
    python -m experiments.generate --workdir=runs/gpt --regex="[A-Z]+: .*" --watermark_seed=7
    python -m experiments.generate --workdir=runs/gpt --watermark_seed=7 --detect=text.txt
    python -m experiments.generate --workdir=runs/t5 --prompt="sum: 12 + 30"           # an encoder-decoder answers
    python -m experiments.generate --workdir=runs/bert --prompt="The [mask] of a class."  # an encoder fills masks

--model.sampling.* choose how tokens are drawn; see genjax/decoding.
"""

from __future__ import annotations

import codecs
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from experiments import command_line
from genjax import config

if TYPE_CHECKING:
    from genjax.data.text.tokenizer import Tokenizer
    from genjax.training import Run

#: Number of new tokens at most where nobody says.
MOST_NEW_TOKENS = 256

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train on tokens")
command_line.define_step()
flags.DEFINE_string(
    "prompt",
    "",
    "text to continue or to answer, or with [mask] where tokens are to be filled; without one, what begins a text",
)
flags.DEFINE_integer(
    "max_new_tokens",
    None,
    f"number of new tokens at most; by default {MOST_NEW_TOKENS}, or what the prompt leaves of the longest context",
    lower_bound=1,
)
flags.DEFINE_integer("seed", 0, "seed of the choices")
flags.DEFINE_enum("search", "sample", ["sample", "beam", "contrastive", "speculative"], "how tokens are chosen")
flags.DEFINE_integer("num_beams", 4, "hypotheses of --search=beam", lower_bound=1)
flags.DEFINE_float("length_penalty", 0.6, "exponent of the length penalty of --search=beam")
flags.DEFINE_float("contrastive_alpha", 0.6, "weight of the likeness penalty of --search=contrastive")
flags.DEFINE_string("draft_workdir", None, "run of a faster model that proposes tokens, for --search=speculative")
flags.DEFINE_string(
    "regex",
    None,
    "regular expression that the new text must match as a whole; where texts have no end, it goes on while it can",
)
flags.DEFINE_integer("watermark_seed", None, "secret of a watermark to put in, or to detect")
flags.DEFINE_float("watermark_delta", 2.0, "what the watermark adds to green logits")
flags.DEFINE_float("watermark_fraction", 0.25, "share of the vocabulary that is green")
flags.DEFINE_string("detect", None, "text file to look for the watermark in, instead of generating")


#: What a masked token is written as in a prompt.
_MASK = re.compile(r"\[mask\]|\[MASK\]|<mask>")


def pieces_as_text(tokens: Iterable[int], pieces: Sequence[bytes]) -> Iterator[str]:
    """Text of tokens as they come; bytes of one character wait for each other, and tokens without text are silent."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        yield decoder.decode(pieces[token] if token < len(pieces) else b"")
    yield decoder.decode(b"", True)


def tokenizer_of(run: Run) -> Tokenizer:
    """The tokenizer of a run.

    Raises:
      ConfigError: its data are no tokens with text, or the tokenizer is not that of the checkpoint.
    """
    data, model = run.experiment.data, run.model
    writes = hasattr(model, "likeliest") or hasattr(model, "generator") or callable(getattr(model, "decoder", None))
    if not hasattr(data, "make_tokenizer") or not writes:
        raise config.ConfigError(
            f"{run.workdir} holds a {type(model).__name__} of {type(data).__name__}, which continues no text"
        )
    size, tokenizer = data.spec()["vocab_size"], data.make_tokenizer()
    # The table of another library's checkpoint may be longer than its tokenizer.
    if size > model.vocab_size or (size < model.vocab_size and tokenizer.kind != "file"):
        raise config.ConfigError(
            f"the tokenizer in {run.workdir} makes {size} tokens and the checkpoint has {model.vocab_size}: it does not "
            "belong to the checkpoint"
        )
    return tokenizer


def watermark_from_flags() -> Any:
    """The watermark that the flags describe, or None."""
    from genjax.decoding import Watermark

    values = flags.FLAGS
    if values.watermark_seed is None:
        return None
    return Watermark(seed=values.watermark_seed, green_fraction=values.watermark_fraction, delta=values.watermark_delta)


def detect(run: Run, tokenizer: Tokenizer, path: str) -> None:
    """Prints the z-score of a text file, and how often text without the watermark has one as large."""
    import jax.numpy as jnp

    from genjax.data.files import read_utf8

    mark = watermark_from_flags()
    if mark is None:
        raise config.ConfigError("--detect needs the secret of the watermark: --watermark_seed=NUMBER")
    file = Path(path).expanduser()
    if not file.is_file():
        raise config.ConfigError(f"--detect={path} is not a file")
    tokens = tokenizer.encode(read_utf8(file))
    if len(tokens) < 2:
        raise config.ConfigError(f"{path} has {len(tokens)} tokens, and the watermark needs at least two")
    z = float(mark.z_score(jnp.asarray(tokens)[None], run.model.vocab_size)[0])
    print(f"z-score {z:.2f} in {len(tokens)} tokens; text without the watermark has as much with probability "
          f"{0.5 * math.erfc(z / math.sqrt(2)):.2g}")  # fmt: skip


def fill_masks(run: Run, tokenizer: Tokenizer, text: str) -> Iterator[str]:
    """Lines: the text with its masked tokens filled, and the likeliest tokens at each of them with their probabilities."""
    import jax
    import jax.numpy as jnp
    import numpy as np

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


def start_of(run: Run, tokenizer: Tokenizer, text: str) -> tuple[Any, Any]:
    """How the model goes on, and the tokens [P] from which: those of a prompt, or the beginning of the answer to it."""
    import numpy as np

    model = run.model
    if hasattr(model, "generator"):
        source = np.array([run.experiment.data.source_ids(text)], np.int32)
        return model.generator(run.state, source), np.array([model.special_tokens().start], np.int32)
    prompt, start = np.append(tokenizer.frame[0], tokenizer.encode(text)), model.start_token or 0
    # Where documents have a start of their own, so has the prompt.
    own = start >= tokenizer.vocab_size or (tokenizer.kind != "file" and start in tokenizer.special.values())
    if not len(prompt) or own:
        prompt = np.append(start, prompt)
    return model.decoder(run.state), prompt.astype(np.int32)


def pieces_of(tokenizer: Tokenizer) -> list[bytes]:
    """What is written of each token: its text in UTF-8, perhaps a part of a character, and nothing of special ones."""
    special = set(tokenizer.special.values())
    return [b"" if i in special else piece for i, piece in enumerate(tokenizer.pieces)]


def num_new_tokens(prompt: Any, *decoders: Any) -> int:
    """Number of new tokens at most after a prompt [P]: what the flag says, or what the contexts of the models leave."""
    asked = flags.FLAGS.max_new_tokens
    if asked is not None:
        return asked
    rooms = [decoder.max_length - len(prompt) for decoder in decoders if decoder.max_length is not None]
    # At least one, so that a prompt that fills the context is refused by what the context has place for.
    return max(1, min(rooms + [MOST_NEW_TOKENS]))


def continuation(run: Run, tokenizer: Tokenizer, decoder: Any, prompt: Any) -> Iterable[int]:
    """The new tokens of a prompt [P]; one at a time where the search allows it."""
    import jax
    import jax.numpy as jnp

    from genjax import decoding
    from genjax.training.runs import restore

    values, model = flags.FLAGS, run.model
    end, key = model.end_token, jax.random.key(values.seed)
    rows, size = jnp.asarray(prompt)[None], num_new_tokens(prompt, decoder)
    if values.search == "sample":
        constraint = None
        if values.regex is not None:
            pieces = pieces_of(tokenizer)
            missing = getattr(model, "num_tokens", model.vocab_size) - len(pieces)
            constraint = decoding.from_regular_expression(values.regex, pieces + [b""] * missing)
        options = {"sampling": model.sampling, "constraint": constraint, "watermark": watermark_from_flags()}
        return decoding.stream(decoder, key, prompt, size, end_token=end, **options)
    if values.regex is not None or values.watermark_seed is not None:
        raise config.ConfigError("--regex and --watermark_seed go with --search=sample")
    if values.search == "beam":
        options = {"num_beams": values.num_beams, "alpha": values.length_penalty, "end_token": end}
        beams = jax.jit(lambda rows: decoding.beam_search(decoder, rows, size, **options))(rows)
        return beams.tokens[0, 0, : int(beams.lengths[0, 0])].tolist()
    if values.search == "contrastive":
        search = lambda rows: decoding.contrastive_search(  # noqa: E731
            decoder, rows, size, alpha=values.contrastive_alpha, end_token=end
        )
        out = jax.jit(search)(rows)
    else:
        if values.draft_workdir is None:
            raise config.ConfigError("--search=speculative needs a faster model: --draft_workdir=RUN")
        draft = restore(values.draft_workdir)
        if tokenizer_of(draft).to_json() != tokenizer.to_json():
            raise config.ConfigError(f"{values.draft_workdir} has another tokenizer than {values.workdir}")
        options = {"sampling": model.sampling, "end_token": end}
        proposing, _ = start_of(draft, tokenizer, values.prompt)
        size = num_new_tokens(prompt, decoder, proposing)
        search = lambda rows: decoding.speculative(decoder, proposing, key, rows, size, **options)[0]  # noqa: E731
        out = jax.jit(search)(rows)
    return out.tokens[0, : int(out.lengths[0])].tolist()


def main(arguments: list[str]) -> int:
    from genjax.decoding import end_tokens

    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    values, tokenizer = flags.FLAGS, tokenizer_of(run)
    if values.detect is not None:
        detect(run, tokenizer, values.detect)
        return 0
    if hasattr(run.model, "likeliest"):
        print(*fill_masks(run, tokenizer, values.prompt), sep="\n")
        return 0
    tokens = continuation(run, tokenizer, *start_of(run, tokenizer, values.prompt))
    ends = end_tokens(run.model.end_token)
    for text in pieces_as_text((token for token in tokens if token not in ends), pieces_of(tokenizer)):
        sys.stdout.write(text)
        sys.stdout.flush()
    print()
    return 0


if __name__ == "__main__":
    command_line.run(main)
