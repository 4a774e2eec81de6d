"""Bidirectional encoders: pre-training by masking or by finding replaced tokens, on to other text,
and heads for tasks.
"""

from genjax.config import register
from genjax.data import EncoderText, LabelledText, LabelledTokens, QuestionAnswering
from genjax.families.language.bert import BERT, RoBERTa
from genjax.families.language.electra import ELECTRA
from genjax.families.language.encoder_tasks import (
    Classification,
    MaskedLanguageModel,
    SpanExtraction,
    Task,
    TokenClassification,
)
from genjax.families.language.networks import bert_network
from genjax.optimizers import AdamW, Linear
from genjax.training import Experiment, Training

_TINY = {"model.network.num_layers": 1, "model.network.width": 8, "model.network.num_heads": 2, "data.batch_size": 16}
_SHRUNK = {**_TINY, "data.sequence_length": 24, "data.name": "python_topics", "model.num_sampling_rounds": 2}


def _small_network(**changes: object):
    """Small enough for two CPU cores; without dropout, which takes half of the time and which short
    runs do not need.
    """
    return bert_network(4, 128, 4, max_length=128, dropout=0.0, attention_dropout=0.0, **changes)


def _adam(learning_rate: float, warmup_steps: int) -> AdamW:
    return AdamW(
        learning_rate=learning_rate,
        b2=0.98,
        weight_decay=0.01,
        clip_norm=1.0,
        schedule=Linear(warmup_steps=warmup_steps),
    )


@register(
    "bert_embedded",
    source="Devlin et al. 2019, arXiv:1810.04805, on the help texts that Python carries",
    shrunk=_SHRUNK,
)
def bert_embedded() -> Experiment:
    """A small BERT of characters with masking and next-sentence prediction;
    --data.name=file --data.dir=TEXT for others.

    python -m experiments.train --experiment=bert_embedded --workdir=runs/bert

    Goes on with another text from a checkpoint and with its tokenizer (domain adaptation),
    and states both perplexities:

    python -m experiments.train --experiment=bert_embedded --training.init_from=runs/bert --data.name=file \\
        --data.dir=TEXT \\
        --data.added_tokens=100 --workdir=runs/adapted
    python -m experiments.text --workdir=runs/adapted --before=runs/bert --other=python_topics

    With --model.pretrained=FOLDER instead, from a checkpoint of another library.  About 15 minutes of one CPU core.
    """
    task = MaskedLanguageModel(next_sentence=True)
    return Experiment(
        model=BERT(network=_small_network(), task=task, optimizer=_adam(2e-3, 200)),
        data=EncoderText(sequence_length=96, sentence_pairs=True, batch_size=32),
        training=Training(num_steps=3000, evaluate_every=500, best_metric="nll_per_token", num_samples=4),
    )


@register(
    "roberta_embedded",
    source="Liu et al. 2019, arXiv:1907.11692, on the help texts that Python carries",
    shrunk=_SHRUNK,
)
def roberta_embedded() -> Experiment:
    """A small RoBERTa of characters: masks drawn anew, no pairs of sentences.

    python -m experiments.train --experiment=roberta_embedded --workdir=runs/roberta

    About ten minutes on two CPU cores.
    """
    return Experiment(
        model=RoBERTa(network=_small_network(), optimizer=_adam(2e-3, 200)),
        data=EncoderText(sequence_length=96, batch_size=32),
        training=Training(num_steps=3000, evaluate_every=500, best_metric="nll_per_token", num_samples=4),
    )


@register(
    "electra_embedded",
    source="Clark et al. 2020, arXiv:2003.10555, on the help texts that Python carries",
    shrunk={**_SHRUNK, "model.generator.num_layers": 1, "model.generator.width": 4, "model.generator.num_heads": 2},
)
def electra_embedded() -> Experiment:
    """A small ELECTRA of characters; tasks start from its discriminator as bert_sentiment does.

    python -m experiments.train --experiment=electra_embedded --workdir=runs/electra

    About fifteen minutes on two CPU cores.
    """
    generator = bert_network(2, 64, 2, max_length=128, dropout=0.0, attention_dropout=0.0)
    return Experiment(
        model=ELECTRA(network=_small_network(), generator=generator, optimizer=_adam(1e-3, 200)),
        data=EncoderText(sequence_length=96, batch_size=32),
        training=Training(num_steps=3000, evaluate_every=500, best_metric="detection_nll", num_samples=4),
    )


@register(
    "bert_base",
    source="BERT-base, 110M parameters (Devlin et al. 2019)",
    shrunk={**_SHRUNK, "data.tokenizer": "bytes", "model.compute_dtype": "float32",
            "model.network.scan_layers": False, "model.network.remat": False},
)  # fmt: skip
def bert_base() -> Experiment:
    """BERT-base in bfloat16 on text files of the user, sharded over eight devices.

    python -m experiments.train --experiment=bert_base --data.dir=FOLDER --workdir=runs/bert_base \\
        --training.mesh=data:4,fsdp:2

    Days on eight accelerators.  A run that starts anywhere: --model.network.num_layers=2 --model.network.width=64
    --model.network.num_heads=2 --data.name=python_topics --data.sequence_length=64 --data.batch_size=8 \\
    --training.mesh=none
    """
    return Experiment(
        model=BERT(
            network=bert_network(scan_layers=True, remat=True), compute_dtype="bfloat16", optimizer=_adam(1e-4, 10_000)
        ),
        data=EncoderText(
            name="file", tokenizer="bpe", vocab_size=30_000, sequence_length=512, sentence_pairs=True, batch_size=256
        ),
        training=Training(num_steps=1_000_000, evaluate_every=10_000, num_samples=4),
    )


def _fine_tuned(task: Task, data: LabelledText | LabelledTokens | QuestionAnswering, best_metric: str) -> Experiment:
    return Experiment(
        model=BERT(network=_small_network(), task=task, optimizer=_adam(1e-3, 100)),
        data=data,
        training=Training(num_steps=1000, evaluate_every=250, best_metric=best_metric, best_mode="max", num_samples=8),
    )


@register(
    "bert_sentiment",
    source="Devlin et al. 2019, section 4.1, on made reviews with negations",
    shrunk={**_TINY, "data.sequence_length": 48},
)
def bert_sentiment() -> Experiment:
    """Classes of texts; --data.name=table --data.dir=FOLDER for train.tsv, dev.tsv and test.tsv of text and label.

    python -m experiments.train --experiment=bert_sentiment --workdir=runs/sentiment

    To start from a pre-trained encoder: --training.init_from=runs/bert --training.init_prefix=embedding,stack, which
    takes its tokenizer too.  Three minutes on two CPU cores.
    """
    return _fine_tuned(Classification(), LabelledText(batch_size=32), "accuracy")


@register(
    "bert_entities",
    source="Devlin et al. 2019, section 5.3, on made sentences with persons and places",
    shrunk={**_TINY, "data.sequence_length": 48},
)
def bert_entities() -> Experiment:
    """Tags of words; --data.name=columns --data.dir=FOLDER for CoNLL files train.txt, dev.txt and test.txt.

    python -m experiments.train --experiment=bert_entities --workdir=runs/entities

    Starts from a pre-trained encoder as bert_sentiment does.  Three minutes on two CPU cores.
    """
    return _fine_tuned(TokenClassification(), LabelledTokens(batch_size=32), "accuracy")


@register(
    "bert_questions",
    source="Devlin et al. 2019, section 4.2, on made texts of facts",
    shrunk={**_TINY, "data.sequence_length": 96},
)
def bert_questions() -> Experiment:
    """Spans that answer questions; --data.name=squad --data.dir=FOLDER for SQuAD files, long texts in windows.

    python -m experiments.train --experiment=bert_questions --workdir=runs/questions

    Starts from a pre-trained encoder as bert_sentiment does.  Five minutes on two CPU cores.
    """
    return _fine_tuned(SpanExtraction(), QuestionAnswering(batch_size=32), "exact_match")
