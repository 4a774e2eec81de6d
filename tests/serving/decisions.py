"""A network learns when to call a tool, and is asked through the interface with tool_choice="auto":

    python -m tests.serving.decisions --workdir=runs/decisions

Made chats offer some of three tools, and ask for something that a tool could do, or for a greeting.  The right turn is
a call where its tool is offered, "I have no tool for it." where it is not, and the greeting.  Questions of the test
split are trained on in no chat.  Greedy answers are counted: whether a call was made where it had to be, and whether
the whole turn was right.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from genjax import config, training
from genjax.data.text.tasks import split_of
from genjax.serving.batching import Limits
from genjax.serving.local import LocalTexts
from genjax.training import runs

#: A tool: its argument, and the ways to ask for it.
TOOLS = {
    "weather": ("city", ("what is the weather in {} ?", "is it cold in {} ?")),
    "play": ("song", ("play {} .", "I want to hear {} .")),
    "call": ("person", ("ring up {} .", "let me speak to {} .")),
}
GREETINGS = ("say hello to {} .", "greet {} .")
NAMES = [first + last for first in ("Ba", "Do", "Ki", "Lu", "Me", "Na", "Po", "Ra", "Su", "Ti") for last in
         ("lan", "men", "ros", "sta", "vik", "zor")]  # fmt: skip
REFUSAL = "I have no tool for it."
#: ChatML that begins with the names of the tools.
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool.function.name + ' ' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def described(name: str) -> dict[str, Any]:
    """A tool as a request describes it."""
    argument = TOOLS[name][0]
    schema = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


@dataclasses.dataclass(frozen=True)
class Asked:
    """A chat of one turn.

    Attributes:
      offered: names of the tools that are offered, one at least.
      question: what the user says.
      answer: the right turn.
      called: the tool that must be called, and its arguments; None where none may be.
    """

    offered: tuple[str, ...]
    question: str
    answer: str
    called: tuple[str, dict[str, str]] | None

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools as a request describes them."""
        return [described(name) for name in self.offered]


def every_chat() -> Iterator[Asked]:
    """All chats."""
    offers = [offer for size in (1, 2, 3) for offer in itertools.permutations(TOOLS, size)]
    for name, offer in itertools.product(NAMES, offers):
        for greeting in GREETINGS:
            yield Asked(offer, greeting.format(name), f"hello {name} !", None)
        for tool, (argument, questions) in TOOLS.items():
            called = (tool, {argument: name}) if tool in offer else None
            answer = REFUSAL if called is None else json.dumps({"name": tool, "arguments": called[1]})
            for question in questions:
                yield Asked(offer, question.format(name), answer, called)


def write(folder: Path) -> None:
    """The training and validation chats and the template, as files of `data.name=chats`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    order = np.random.default_rng(0)
    for split, most in (("train", 8000), ("validation", 400), ("test", 400)):
        lines = [
            json.dumps(
                {"prompt": each.question, "completion": each.answer, "tools": list(map(described, each.offered))}
            )
            for each in every_chat()
            if split_of(each.question) == split
        ]
        lines = [lines[i] for i in order.permutation(len(lines))[:most]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def learn(workdir: Path, num_steps: int) -> None:
    """Trains a small GPT of the experiment `instructions` on the chats."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        changes = {
            "model.network.num_layers": 2,
            "model.network.width": 96,
            "data.name": "chats",
            "data.dir": folder,
            "data.chat_template": f"{folder}/template.jinja",
            "data.vocab_size": 400,
            "data.sequence_length": 63,
            "training.num_steps": num_steps,
            "training.evaluate_every": None,
            "training.best_metric": None,
            "training.num_samples": 1,
        }
        experiment = config.apply_overrides(config.find_experiment("instructions").build(), changes)
        training.train(experiment, workdir, name="instructions")


def judged(texts: LocalTexts, asked: list[Asked]) -> dict[str, float]:
    """Shares of right decisions and turns."""
    call_wanted = np.array([each.called is not None for each in asked])
    call_made, whole = np.zeros(len(asked), bool), np.zeros(len(asked), bool)
    for place, each in enumerate(asked):
        fields = {
            "messages": [{"role": "user", "content": each.question}],
            "tools": each.tools,
            "tool_choice": "auto",
            "temperature": 0,
            "max_tokens": 32,
        }
        message = texts.whole(fields, chat=True)["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        call_made[place] = bool(calls)
        if calls:
            function = calls[0]["function"]
            whole[place] = (function["name"], json.loads(function["arguments"])) == each.called
        else:
            whole[place] = each.called is None and message["content"] == each.answer
    right = call_made == call_wanted
    share = lambda values: round(float(values.mean()), 4)
    return {
        "chats": len(asked),
        "of these a call is right in": share(call_wanted),
        "right decisions": share(right),
        "right where a call is": share(right[call_wanted]),
        "right where none is": share(right[~call_wanted]),
        "right turns, whole": share(whole),
        "right calls, with their arguments": share(whole[call_wanted]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="run to make, or to judge where it is there")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--chats", type=int, default=600, help="chats of the test split to judge")
    options = parser.parse_args()
    config.add_package("experiments.configs")
    if not options.workdir.is_dir():
        learn(options.workdir, options.steps)
    test = [each for each in every_chat() if split_of(each.question) == "test"]
    chosen = np.random.default_rng(1).permutation(len(test))[: options.chats]
    texts = LocalTexts(runs.restore(options.workdir), Limits(slots=1))
    try:
        print(json.dumps(judged(texts, [test[i] for i in chosen])), flush=True)
    finally:
        texts.close()


if __name__ == "__main__":
    main()
