"""A run as an LLM of LangChain: texts that are continued, and answers of a model that reads documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from genjax.config import ConfigError
from genjax.data.text.collection import Document
from genjax.langchain.requests import Asking, run_at, texts_at, told
from genjax.tools import prompts, reading
from genjax.tools.retrieval import Found

#: Prompts of a request.
_MOST_PROMPTS = 64


class GenjaxLLM(BaseLLM, Asking):
    """An LLM over a run, or over a folder of a model of the library transformers.

        llm = GenjaxLLM(model="runs/gpt", max_tokens=32, seed=0)
        llm.invoke("ROMEO:")

    A run that reads documents (RAG) takes a prompt of lines: a document each, and the question in the last one.  It
    answers as `experiments.retrieve` does with these documents; settings of drawing do not go with it.
    """

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Its settings are plain values."""
        return True

    @property
    def _llm_type(self) -> str:
        return "genjax"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.identity()

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        model, fields = self._request(stop, kwargs)
        if reading.reads_documents(run_at(model)):
            self._check_reader(model, fields)
            answers = [[Generation(text=_read(model, prompt))] for prompt in prompts]
            return LLMResult(generations=answers, llm_output={"model_name": model})
        generations: list[list[Generation]] = []
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        for first in range(0, len(prompts), _MOST_PROMPTS):
            asked = {"prompt": prompts[first : first + _MOST_PROMPTS], **fields}
            answer = self.trying(lambda asked=asked: texts_at(model).whole(asked, chat=False, timeout=self.timeout))
            found = [Generation(text=each["text"], generation_info=told(each)) for each in answer["choices"]]
            generations += [found[i : i + fields["n"]] for i in range(0, len(found), fields["n"])]
            usage = {name: usage[name] + answer["usage"][name] for name in usage}
        return LLMResult(generations=generations, llm_output={"model_name": model, "token_usage": usage})

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        model, fields = self._request(stop, kwargs)
        if fields["n"] > 1:
            raise ConfigError(f"n={fields['n']} texts cannot be streamed together; stream one, or call generate")
        if reading.reads_documents(run_at(model)):
            self._check_reader(model, fields)
            yield GenerationChunk(text=_read(model, prompt))
            return
        for part in texts_at(model).stream({"prompt": prompt, **fields}, chat=False, timeout=self.timeout):
            choice = part["choices"][0]
            chunk = GenerationChunk(text=choice["text"], generation_info=told(choice) or None)
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _request(self, stop: list[str] | None, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The model that is asked, and the request but its prompt."""
        model, fields = self.fields(stop, given)
        if fields.pop("logprobs", None):
            # Completions have a number where chats have a flag and a number.
            fields["logprobs"] = fields.pop("top_logprobs", 0)
        return model, fields

    def _check_reader(self, model: str, fields: dict[str, Any]) -> None:
        drawn = sorted(name for name, value in fields.items() if (name, value) not in (("n", 1), ("stop", [])))
        if fields.get("temperature") == 0:
            drawn.remove("temperature")
        drawn = [name for name in drawn if name not in ("seed", "max_tokens")]
        if drawn:
            raise ConfigError(f"{model} reads documents and gives its likeliest answer; leave out {', '.join(drawn)}")

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        run = run_at(self.model)
        if reading.reads_documents(run):
            return run.experiment.data.make_tokenizer().encode(text).tolist()
        return prompts.tokenizer_of(texts_at(self.model).texts.run).encode(text).tolist()


def _read(model: str, prompt: str) -> str:
    """The answer to the last line of a prompt from the documents in the lines before it.

    Raises:
      ConfigError: there are no lines before it, or more than the run reads.
    """
    *documents, question = [line.strip() for line in prompt.splitlines() if line.strip()] or [""]
    if not documents:
        raise ConfigError(
            f"{model} reads documents: a prompt has a document in each line, and the question in the last line"
        )
    found = [Found(Document(str(i), text), 0.0, i) for i, text in enumerate(documents)]
    return reading.answer_from(run_at(model), question, found).text
