"""Continues or answers a prompt with a trained token model, and prints the text token by token:

    python -m experiments.generate --workdir=runs/gpt --prompt="ROMEO:" --model.sampling.temperature=0.8
    python -m experiments.generate --workdir=runs/gpt --prompt="ROMEO:" --search=beam --num_beams=4
    python -m experiments.generate --workdir=runs/gpt --regex="[A-Z]+: .*" --watermark_seed=7
    python -m experiments.generate --workdir=runs/gpt --watermark_seed=7 --detect=text.txt
    python -m experiments.generate --workdir=runs/instructions --chat                  # turn by turn, in the terminal
    python -m experiments.generate --workdir=runs/t5 --prompt="sum: 12 + 30"           # an encoder-decoder answers
    python -m experiments.generate --workdir=runs/llava --image=scene.png --prompt="what colour is the circle?"
    python -m experiments.generate --workdir=runs/flamingo --image=a.png,b.png --prompt="<image> first <image> ..."
    python -m experiments.generate --workdir=runs/spoken_digits --audio=seven.wav     # writes down what it hears
    python -m experiments.generate --workdir=runs/bert --prompt="The [mask] of a class."  # an encoder fills masks

--model.sampling.* set how tokens are drawn; see genjax/decoding.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from experiments import command_line
from genjax.config import ConfigError
from genjax.data.files import read_utf8
from genjax.tools import prompts
from genjax.training import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(prompts.Options):
    """What is continued, and how.

    Attributes:
      prompt: text to continue or to answer, with [mask] in the places to fill in; if empty, a new text is begun.
      chat: talk to the run: each line of the input is a turn of the user, and the answer follows; an empty line ends.
      system: with --chat, a turn of the system before all others.
      detect: text file to search for the watermark, instead of generating.
    """

    prompt: str = ""
    chat: bool = False
    system: str = ""
    detect: str | None = None


def talk(run: Run, options: Options) -> None:
    """A chat in the terminal."""
    messages = [{"role": "system", "content": options.system}] if options.system else []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        messages.append({"role": "user", "content": line})
        answer = ""
        for text in prompts.generate(run, messages, options):
            print(text, end="", flush=True)
            answer += text
        print(flush=True)
        messages.append({"role": "assistant", "content": answer})


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, Options())
    if given is None:
        return 0
    run, options = given
    if options.detect is not None:
        file = Path(options.detect).expanduser()
        if not file.is_file():
            raise ConfigError(f"--detect={options.detect} is not a file")
        found = prompts.detect(run, read_utf8(file), options)
        print(
            f"z-score {found.z_score:.2f} in {found.num_tokens} tokens; "
            f"text without the watermark has as much with probability {found.p_value:.2g}"
        )
        return 0
    if options.chat:
        talk(run, options)
        return 0
    for text in prompts.generate(run, options.prompt, options):
        print(text, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    command_line.run(main)
