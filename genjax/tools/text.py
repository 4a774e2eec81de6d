"""Measures the text that a run writes: batches go through the model, strings through genjax.evaluation.

run = genjax.restore("runs/t5")
text.measure(run, text.Options(pictures=True))["answers"]
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax import config, decoding
from genjax.config import ConfigError
from genjax.data import LabelledTokens, QuestionAnswering, TextToText, first_examples
from genjax.data.base import DecodesTokens
from genjax.data.files import read_lines
from genjax.data.text.base import TOKENIZER_FILE, DelimitedText, TokenizedData
from genjax.data.text.tokenizer import UnknownSymbolError
from genjax.errors import UserError
from genjax.evaluation import bias, memorization, text
from genjax.families.language.bert import BERT
from genjax.families.markov.ngram import NGram
from genjax.model import (
    AnswersText,
    ContinuesText,
    HasLogProb,
    HasPretrained,
    HasPseudoLogProb,
    MakesSources,
    ShowsAttention,
)
from genjax.tools.drawing import write_attention, write_embeddings
from genjax.training import Run, resolve, restore, runs
from genjax.training.checkpoints import flatten
from genjax.training.experiment import CONFIG_FILE

#: Number of tokens of a prefix, and of the continuation that a model should not reproduce.
PREFIX_TOKENS, CONTINUED_TOKENS = 32, 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measurements beside the answers to the evaluation split.

    Attributes:
      num_samples: number of samples whose diversity is measured, for models that need no source.
      num_beams: number of hypotheses of the search for answers; 1 takes the likeliest token.
      memorized: measure how much of the samples stands in the training text, and how often prefixes of training
        texts are continued literally.
      ngram: order of an n-gram model of the training text to compare masked tokens with.
      bias: file of sentence pairs, with a tab between, whose likelihoods are compared.
      before: the run, or the checkpoint, that this run was trained further from; perplexities
        before and after are compared.
      other: text of the run `before` (data.name, or a file), to see what was forgotten; by default that run's own.
      pictures: write attention maps and a map of the token embeddings into the run.
    """

    num_samples: int = 0
    num_beams: int = 1
    memorized: bool = False
    ngram: int = 0
    bias: str | None = None
    before: str | None = None
    other: str | None = None
    pictures: bool = False

    def __post_init__(self) -> None:
        config.check_at_least(self, num_samples=0, num_beams=1, ngram=0)


def measure(run: Run, options: Options | None = None) -> dict[str, Any]:
    """Measures what a run writes, each group of scores under its name.

    Sources of the evaluation split are answered, and answers are compared with the references: `answers`, `entities` or
    `spans`.  The options ask for the other groups.  Answers and pictures are written into the run's directory.

    Returns:
      `step`, `split`, the groups of scores by name, and `files`, the paths of what was written.

    Raises:
      ConfigError: the data have no references and the options ask for nothing, or the model
        cannot do what they ask for.
    """
    options, run, data = options or Options(), runs.policy_run(run), run.experiment.data
    split = run.experiment.evaluation.split
    groups: dict[str, dict[str, Any]] = {}
    files: list[Path] = []
    if isinstance(data, TextToText):
        groups["answers"], answers = answer_scores(run, split, options.num_beams)
        groups["diversity_of_answers"] = diversity(answers)
        groups["diversity_of_references"] = diversity(references_of(run, split))
        files.append(Path(run.workdir) / f"answers_{split}.txt")
        # One line for each answer, even if the answer has line breaks.
        files[0].write_text("".join(" ".join(answer.splitlines()) + "\n" for answer in answers), encoding="utf-8")
    elif isinstance(data, LabelledTokens):
        groups["entities"] = entity_scores(run, split)
    elif isinstance(data, QuestionAnswering):
        groups["spans"] = span_scores(run, split)
    if options.ngram:
        groups["masked_tokens"] = masked_scores(run, split, options.ngram)
    if options.num_samples or options.memorized:
        texts = sample_texts(run, options.num_samples or 64)
        groups["diversity"] = diversity(texts)
        if options.memorized:
            groups["memorization"] = memorized(run, texts)
            if isinstance(run.model, ContinuesText):
                groups["extraction"] = extraction(run)
    if options.bias is not None:
        groups["bias"] = bias_scores(run, options.bias)
    if options.before is not None:
        groups["perplexity"] = adaptation_scores(run, options.before, options.other)
    if options.pictures:
        files += pictures(run, split)
    elif not groups:
        raise ConfigError(
            f"{data.name} has no references; ask for one of --num_samples, --memorized, --ngram, --bias, --before, "
            "--pictures"
        )
    return {"step": run.step, "split": split, **groups, "files": list(map(str, files))}


# ----------------------------------------------------------------------------------------------------------------------
# Answers, tags, spans


def references_of(run: Run, split: str) -> list[Any]:
    """The references of the examples that an evaluation of a split reads, in their order."""
    references = run.experiment.data.references(split)
    return [references[i] for i in first_examples(len(references), run.experiment.evaluation.num_examples)]


def answer_scores(run: Run, split: str, num_beams: int = 1) -> tuple[dict[str, Any], list[str]]:
    """Exact match, BLEU, chrF and ROUGE of the answers to the sources of a split, and the answers.

    For the mixture: exact match of each task, and ROUGE of summaries only, as its other answers are no sentences.
    """
    data, model = run.experiment.data, run.model
    if not isinstance(model, AnswersText):
        raise ConfigError(f"{type(model).__name__} does not write answers to sources")

    def answer(state, batch, key):
        del key
        return model.translate(state, batch["source"], batch["source_mask"], num_beams=num_beams)

    rows, examples = run.engine.map(answer, run.state, split)
    answers = [data.decode(row).strip() for row in rows]
    tasks = examples["task"].tolist() if "task" in examples else []
    references = references_of(run, split)
    scores: dict[str, Any] = {"num_examples": len(answers), "literal_match": text.literal_match(answers, references)}
    for number in sorted(set(tasks)):
        own = [i for i, task in enumerate(tasks) if task == number]
        found, wanted = [answers[i] for i in own], [references[i] for i in own]
        scores[f"literal_match_{data.distinct_tasks[number]}"] = text.literal_match(found, wanted)
        if data.distinct_tasks[number] == "summary":
            scores |= {f"{name}_summary": value for name, value in text.rouge_scores(found, wanted).items()}
    if not tasks:
        scores |= text.translation_scores(answers, references, lowercase=data.lowercase)
        scores |= text.rouge_scores(answers, references)
    return scores, answers


def entity_scores(run: Run, split: str) -> dict[str, float]:
    """F1 of the entities of a split."""
    data, model = run.experiment.data, run.model
    likeliest, examples = run.engine.map(
        lambda s, b, _: model.predict(s, b)["token_classes"].argmax(-1), run.state, split
    )
    labels = examples["token_labels"]
    return text.entity_scores(data.tags(labels, likeliest), data.tags(labels, labels))


def span_scores(run: Run, split: str) -> dict[str, Any]:
    """Exact match and F1 of the answers to a split's questions; an answer is the likeliest
    over all windows of the text.

    `evaluation.num_examples` counts questions; all windows of a question are read.
    """
    data, model = run.experiment.data, run.model
    likeliest = lambda s, b, _: model.task.likeliest_answers(model.predict(s, b), b)
    references = data.references(split)
    chosen = np.sort(first_examples(len(references), run.experiment.evaluation.num_examples))
    examples = data.load(split)
    question = examples.gather(np.arange(len(examples)))["question"]
    windows = np.flatnonzero(np.isin(question, chosen))
    found, examples = run.engine.map(likeliest, run.state, split, indices=windows)
    answers = data.answers(split, examples["question"], examples["shift"], *found)
    return {"num_questions": len(answers), **text.answer_scores(answers, [references[i] for i in chosen])}


# ----------------------------------------------------------------------------------------------------------------------
# Masked tokens beside an n-gram's


def masked_scores(run: Run, split: str, order: int) -> dict[str, float]:
    """Nats of the masked tokens, by the model from both sides and by an n-gram of the training text from the left."""
    data, model = run.experiment.data, run.model
    if not isinstance(model, BERT) or not model.task.masked:
        raise ConfigError("--ngram needs a run of BERT or RoBERTa with masked tokens")
    size = data.spec()["vocab_size"]
    ngram = NGram([data.make_tokenizer().encode(t) for t in data.documents("train")], size, order)

    def predict(state, batch, key):
        prepared, _ = model.prepared(batch, key)
        measures = model.task.measures(model.predict(state, prepared), prepared)
        return prepared["places"], prepared["weights"], measures

    (places, weights, measures), examples = run.engine.map(predict, run.state, split)
    theirs = 0.0
    for row, where, weight in zip(examples["tokens"], places, weights):
        theirs -= (ngram.token_log_prob(row)[where] * weight).sum()
    count = weights.sum(dtype=np.float64)
    hits = measures["masked_accuracy"].numerator.sum(dtype=np.float64)
    return {
        "num_tokens": float(count),
        "masked_nll_per_token": float(measures["nll"].sum(dtype=np.float64) / count),
        f"{order}_gram_nll_per_token": float(theirs / count),
        "masked_accuracy": float(hits / count),
    }


# ----------------------------------------------------------------------------------------------------------------------
# Samples


def sample_texts(run: Run, num_samples: int) -> list[str]:
    """Samples as text."""
    data = run.experiment.data
    if not isinstance(data, DecodesTokens):
        raise ConfigError(f"samples of {data.name} are no text")
    seed = run.experiment.evaluation.seed
    return [data.decode(row) for row in run.sample(jax.random.key(seed), num_samples)]


def diversity(texts: list[str]) -> dict[str, float]:
    """distinct-n, repetition and self-BLEU."""
    return text.diversity_scores(texts)


def _codes(texts: list[str]) -> list[np.ndarray]:
    return [np.frombuffer(t.encode("utf-32-le"), np.uint32).astype(np.int64) for t in texts]


def memorized(run: Run, texts: list[str]) -> dict[str, float]:
    """Lengths, in characters, of the longest parts of samples that stand in the training
    text; the same for unseen text.

    If all samples are empty, only their number is returned.
    """
    data = run.experiment.data
    if not isinstance(data, TokenizedData):
        raise ConfigError(f"{data.name} has no training text to compare samples with")
    num_empty = sum(not t for t in texts)
    if num_empty == len(texts):
        return {"num_samples": len(texts), "num_empty_samples": num_empty}
    corpus = _codes(["\n".join(data.documents("train"))])[0]
    length = max(round(float(np.mean([len(t) for t in texts]))), 1)
    unseen = "\n".join(data.documents("test"))
    held_out = [unseen[i : i + length] for i in range(0, len(unseen) - length, length)][: len(texts)]
    scores = _memorization_of(texts, corpus)
    if held_out:
        scores |= {f"{name}_of_unseen_text": value for name, value in _memorization_of(held_out, corpus).items()}
    return scores


def _memorization_of(texts: list[str], corpus: np.ndarray) -> dict[str, float]:
    """Scores of texts against the characters of a corpus."""
    return memorization.memorization_scores(memorization.longest_matches(_codes(texts), corpus))


def extraction(run: Run, num_prefixes: int = 200) -> dict[str, float]:
    """Share of training texts, and of unseen texts, whose likeliest continuation is the text's own."""
    data, model = run.experiment.data, run.model
    size = PREFIX_TOKENS + CONTINUED_TOKENS

    @jax.jit
    def go_on(state, prompts):
        sampling = decoding.Sampling(temperature=0.0)
        return model.generate(state, jax.random.key(0), prompts, CONTINUED_TOKENS, sampling=sampling).tokens

    scores = {}
    for split, suffix in (("train", ""), (run.experiment.evaluation.split, "_of_unseen_text")):
        ids = np.concatenate([data.make_tokenizer().encode(t) for t in data.documents(split)])
        if len(ids) < size:
            raise ConfigError(f"the split {split} has {len(ids)} tokens, fewer than the {size} that extraction needs")
        starts = np.linspace(0, len(ids) - size, num_prefixes).astype(int)
        rows = np.stack([ids[s : s + size] for s in starts]).astype(np.int32)
        found = np.asarray(go_on(run.state, rows[:, :PREFIX_TOKENS]))
        own = memorization.extraction_scores(found, rows[:, PREFIX_TOKENS:])
        scores |= {name + suffix: value for name, value in own.items()}
    return scores


# ----------------------------------------------------------------------------------------------------------------------
# Preferences and perplexities


def read_pairs(path: str | Path) -> list[bias.SentencePair]:
    """Reads a list of sentence pairs.

    Raises:
      UserError: there is no such file, it is not UTF-8, or it is no list of pairs.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"there is no list of sentence pairs {file}")
    return bias.sentence_pairs(read_lines(file), str(file))


def bias_scores(run: Run, path: str) -> dict[str, float]:
    """Which sentence of each pair is likelier; by pseudo-likelihood where tokens are masked (Salazar et al. 2020)."""
    data, model = run.experiment.data, run.model
    if not isinstance(data, TokenizedData) or not isinstance(model, HasPseudoLogProb | HasLogProb):
        raise ConfigError(f"{type(model).__name__} on {data.name} has no likelihood of sentences")
    pairs = read_pairs(path)
    tokenizer = data.make_tokenizer()
    rows = [tokenizer.encode(sentence) for pair in pairs for sentence in (pair.first, pair.second)]
    spec = data.spec()
    end = [spec["separator_token"]] if isinstance(data, DelimitedText) else []
    rows = [np.concatenate([[spec["start_token"]], row, end]).astype(np.int32) for row in rows]
    length = max(map(len, rows))
    tokens = np.stack([np.pad(row, (0, length - len(row)), constant_values=spec["start_token"]) for row in rows])
    batch = {"tokens": tokens, "mask": np.arange(length)[None] < np.array([len(row) for row in rows])[:, None]}
    score = model.pseudo_log_prob if isinstance(model, HasPseudoLogProb) else model.log_prob
    values = np.asarray(jax.jit(score)(run.state, batch), np.float64)
    return bias.preference_scores(values[::2], values[1::2], [pair.kind for pair in pairs])


def adaptation_scores(run: Run, before: str, other: str | None) -> dict[str, Any]:
    """Perplexity of a run and of the run or checkpoint that it started from, on the texts of both.

    Each model has its own tokenizer.  Perplexity is per token; if tokens were added, it is per character, since the two
    models' tokens differ.  A text with characters that a tokenizer does not have has probability 0.
    """
    earlier = _earlier(run, before)
    split = run.experiment.evaluation.split
    own, theirs = run.experiment.data, earlier.experiment.data
    if other is not None:
        is_file = Path(other).expanduser().exists()
        theirs = dataclasses.replace(theirs, name="file" if is_file else other, dir=other if is_file else theirs.dir)
    elif earlier.workdir != Path(before).expanduser():
        raise ConfigError(f"{before} does not say what text it was trained on; name one by --other=FILE or a data.name")
    same = own.make_tokenizer().to_json() == earlier.experiment.data.make_tokenizer().to_json()
    scores: dict[str, Any] = {"per": "token" if same else "character"}
    for place, each in (("before", earlier), ("after", run)):
        for name, data in (("new_text", own), ("old_text", theirs)):
            data = data.with_tokenizer(each.experiment.data.tokenizer_file)
            try:
                metrics = type(each.engine)(dataclasses.replace(each.experiment, data=data)).evaluate(each.state, split)
            except UnknownSymbolError:
                metrics = {"perplexity": math.inf, "bits_per_character": math.inf}
            if "perplexity" not in metrics or not (same or "bits_per_character" in metrics):
                raise ConfigError(f"{type(each.model).__name__} has no perplexity of a {scores['per']}")
            scores[f"{place}_{name}"] = float(metrics["perplexity"] if same else 2.0 ** metrics["bits_per_character"])
    scores["gained_on_new_text"] = 1.0 - scores["after_new_text"] / scores["before_new_text"]
    scores["forgotten_of_old_text"] = scores["after_old_text"] / scores["before_old_text"] - 1.0
    return scores


def _earlier(run: Run, before: str) -> Run:
    """The origin of a run: another run, or another library's checkpoint in the form that the run would start from."""
    folder, model = Path(before).expanduser(), run.model
    config_file = folder / CONFIG_FILE
    if not config_file.is_file() or "model_type" not in json.loads(config_file.read_text(encoding="utf-8")):
        return restore(before)
    if not isinstance(model, HasPretrained):
        raise ConfigError(f"{type(model).__name__} starts from no checkpoint of another library, which {before} is")
    experiment = dataclasses.replace(
        run.experiment,
        model=dataclasses.replace(model, pretrained=before),
        data=run.experiment.data.with_tokenizer(folder / TOKENIZER_FILE),
        training=dataclasses.replace(run.experiment.training, init_from=None),
    )
    experiment = resolve(experiment)
    engine = type(run.engine)(experiment)
    state = engine.init()
    state = state.replace(params=experiment.model.pretrained_params(state.params), ema_params=None)
    return dataclasses.replace(run, experiment=experiment, state=state, engine=engine)


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def token_embeddings(params: Any) -> np.ndarray | None:
    """The table of tokens [V, C] among parameters; it is found by its name, not by its shape."""
    return next((np.asarray(a) for path, a in flatten(params).items() if path.endswith("token/embedding")), None)


def pictures(run: Run, split: str) -> list[Path]:
    """Attention of the first example, head by head, and the token embeddings in the plane of most variance."""
    data, model = run.experiment.data, run.model
    if not isinstance(model, ShowsAttention) or not isinstance(data, TokenizedData):
        raise ConfigError(f"{type(model).__name__} shows no attention")
    batch = data.load(split).gather(np.arange(1))
    batch = {name: jnp.asarray(a) for name, a in data.transform(batch, jax.random.key(0)).items()}
    folder = Path(run.workdir) / "pictures"
    folder.mkdir(exist_ok=True)
    pieces = data.make_tokenizer().pieces
    names = lambda ids: [pieces[i].decode(errors="replace") if i < len(pieces) else "·" for i in ids]
    if isinstance(model, MakesSources) and "source" not in batch:
        raise ConfigError(f"{type(model).__name__} on {data.name} has no fixed pairs whose attention could be shown")
    # Without padding, which would fill most of the picture.
    real = {name: np.asarray(batch[name][0]) for name in ("mask", "source_mask") if name in batch}
    tokens = np.asarray(batch["tokens"][0])[: real["mask"].sum() if "mask" in real else None]
    columns = names(np.asarray(batch["source"][0])[real["source_mask"]]) if "source" in batch else None
    layers = model.attention_weights(run.state, batch)
    paths = []
    for kind, index in (("self", 0), ("cross", 1)):
        chosen = [np.asarray(layer[index][0]) for layer in layers if layer[index] is not None]
        if chosen:
            own = names(tokens[: chosen[0].shape[1]])
            others = own if kind == "self" else columns
            chosen = [layer[:, : len(own), : len(others)] for layer in chosen]
            paths += write_attention(chosen, own, others, folder / f"attention_{kind}")
    table = token_embeddings(run.state.eval_params)
    if table is not None:
        paths.append(write_embeddings(table[: len(pieces)], names(range(len(pieces))), folder / "embeddings.png"))
    return paths
