"""Continues a prompt with a trained token model, and writes to the terminal token by token:

    python -m experiments.generate --workdir=runs/gpt --prompt="ROMEO:" --model.sampling.temperature=0.8
    python -m experiments.generate --workdir=runs/gpt --prompt="ROMEO:" --search=beam --num_beams=4
    python -m experiments.generate --workdir=runs/gpt --regex="[A-Z]+: .*" --watermark_seed=7
    python -m experiments.generate --workdir=runs/gpt --watermark_seed=7 --detect=text.txt

--model.sampling.* choose how tokens are drawn; see genjax/decoding.
"""

from __future__ import annotations

import codecs
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from experiments import command_line
from genjax import config

if TYPE_CHECKING:
    from genjax.data.tokenization import Tokenizer
    from genjax.training import Run

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train on tokens")
flags.DEFINE_integer("step", None, "which checkpoint, by default the latest sound one")
flags.DEFINE_string("prompt", "", "text to continue; without one, what begins a text")
flags.DEFINE_integer("max_new_tokens", 256, "number of new tokens at most", lower_bound=1)
flags.DEFINE_integer("seed", 0, "seed of the choices")
flags.DEFINE_enum("search", "sample", ["sample", "beam", "contrastive", "speculative"], "how tokens are chosen")
flags.DEFINE_integer("num_beams", 4, "hypotheses of --search=beam", lower_bound=1)
flags.DEFINE_float("length_penalty", 0.6, "exponent of the length penalty of --search=beam")
flags.DEFINE_float("contrastive_alpha", 0.6, "weight of the likeness penalty of --search=contrastive")
flags.DEFINE_string("draft_workdir", None, "run of a faster model that proposes tokens, for --search=speculative")
flags.DEFINE_string("regex", None, "regular expression that the new text must match as a whole")
flags.DEFINE_integer("watermark_seed", None, "secret of a watermark to put in, or to detect")
flags.DEFINE_float("watermark_delta", 2.0, "what the watermark adds to green logits")
flags.DEFINE_float("watermark_fraction", 0.25, "share of the vocabulary that is green")
flags.DEFINE_string("detect", None, "text file to look for the watermark in, instead of generating")


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
    if not hasattr(data, "make_tokenizer") or not hasattr(model, "decoder") or not hasattr(model, "sampling"):
        raise config.ConfigError(
            f"{run.workdir} holds a {type(model).__name__} of {type(data).__name__}, which continues no text"
        )
    size = data.spec()["vocab_size"]
    if size != model.vocab_size:
        raise config.ConfigError(
            f"the tokenizer in {run.workdir} makes {size} tokens and the checkpoint has {model.vocab_size}: it does not "
            "belong to the checkpoint"
        )
    return data.make_tokenizer()


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

    mark = watermark_from_flags()
    if mark is None:
        raise config.ConfigError("--detect needs the secret of the watermark: --watermark_seed=NUMBER")
    file = Path(path).expanduser()
    if not file.is_file():
        raise config.ConfigError(f"--detect={path} is not a file")
    tokens = tokenizer.encode(file.read_text(encoding="utf-8"))
    if len(tokens) < 2:
        raise config.ConfigError(f"{path} has {len(tokens)} tokens, and the watermark needs at least two")
    z = float(mark.z_score(jnp.asarray(tokens)[None], run.model.vocab_size)[0])
    print(f"z-score {z:.2f} in {len(tokens)} tokens; text without the watermark has as much with probability "
          f"{0.5 * math.erfc(z / math.sqrt(2)):.2g}")  # fmt: skip


def continuation(run: Run, tokenizer: Tokenizer, prompt: Any) -> Iterable[int]:
    """The new tokens of a prompt [P]; one at a time where the search allows it."""
    import jax
    import jax.numpy as jnp

    from genjax import decoding
    from genjax.training.run import restore

    values, model = flags.FLAGS, run.model
    decoder, end, key = model.decoder(run.state), model.end_token, jax.random.key(values.seed)
    constraint = None
    if values.regex is not None:
        texts = [piece.decode(errors="replace") for piece in tokenizer.pieces]
        constraint = decoding.from_regular_expression(values.regex, texts + [""] * (model.vocab_size - len(texts)))
    if values.search == "sample":
        options = {"sampling": model.sampling, "constraint": constraint, "watermark": watermark_from_flags()}
        return decoding.stream(decoder, key, prompt, values.max_new_tokens, end_token=end, **options)
    if constraint is not None or values.watermark_seed is not None:
        raise config.ConfigError("--regex and --watermark_seed go with --search=sample")
    rows, size = jnp.asarray(prompt)[None], values.max_new_tokens
    if values.search == "beam":
        options = {
            "num_beams": values.num_beams,
            "alpha": values.length_penalty,
            "end_token": -1 if end is None else end,
        }
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
        proposing = draft.model.decoder(draft.state)
        out, _ = jax.jit(lambda rows: decoding.speculative(decoder, proposing, key, rows, size, **options))(rows)
    return out.tokens[0, : int(out.lengths[0])].tolist()


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    import numpy as np

    values, tokenizer = flags.FLAGS, tokenizer_of(run)
    if values.detect is not None:
        detect(run, tokenizer, values.detect)
        return 0
    prompt, start = tokenizer.encode(values.prompt), run.model.start_token or 0
    # Where documents have a start of their own, so has the prompt.
    if not len(prompt) or start >= tokenizer.vocab_size:
        prompt = np.concatenate([[start], prompt])
    tokens = continuation(run, tokenizer, prompt.astype(np.int32))
    for text in pieces_as_text(tokens, tokenizer.pieces):
        sys.stdout.write(text)
        sys.stdout.flush()
    print()
    return 0


if __name__ == "__main__":
    command_line.run(main)
