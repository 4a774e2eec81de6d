"""Retrieval: encoders of questions and documents, and language models that read what was retrieved."""

from genjax.config import register
from genjax.data import KnowledgeQuestions
from genjax.families.language.networks import bert_network, llama_network
from genjax.families.retrieval.dpr import DPR
from genjax.families.retrieval.rag import RAG
from genjax.optimizers import AdamW, Linear
from genjax.training import Experiment, Training

_TINY_STACK = {"num_layers": 1, "width": 8, "num_heads": 2}


def _encoder(num_layers: int = 1):
    """An encoder that is small enough for two CPU cores."""
    return bert_network(num_layers, 64, 4, max_length=32, dropout=0.0, attention_dropout=0.0, init_std=0.05)


@register(
    "dpr_facts",
    source="Karpukhin et al. 2020, arXiv:2004.04906, on made facts",
    shrunk={
        **{f"model.network.{name}": value for name, value in _TINY_STACK.items()},
        "data.num_made": 64,
        "data.num_documents": 3,
        "data.batch_size": 16,
    },
)
def dpr_facts() -> Experiment:
    """A dense retriever of questions about facts, with the other documents of the batch as negatives.

    python -m experiments.train --experiment=dpr_facts --workdir=runs/dpr_facts

    Documents of one's own are indexed and searched by experiments.retrieve.
    """
    return Experiment(
        model=DPR(
            network=_encoder(),
            pooling="mean",
            normalize=True,
            temperature=0.05,
            optimizer=AdamW(learning_rate=2e-3, clip_norm=1.0, schedule=Linear(warmup_steps=50)),
        ),
        data=KnowledgeQuestions(batch_size=64),
        training=Training(num_steps=1000, evaluate_every=250, best_metric="nll", num_samples=4),
    )


@register(
    "rag_facts",
    source="Lewis et al. 2020, arXiv:2005.11401, on made facts that change after training",
    shrunk={
        **{f"model.{part}.{name}": value for part in ("network", "retriever") for name, value in _TINY_STACK.items()},
        "model.num_documents": 2,
        "data.num_made": 64,
        "data.num_documents": 3,
        "data.batch_size": 16,
    },
)
def rag_facts() -> Experiment:
    """A retriever and a reader, trained together on facts that are drawn anew for each example.

    python -m experiments.train --experiment=rag_facts --workdir=runs/rag_facts

    --evaluation.split=validation asks for the facts of the first world, test for the facts after all have changed.
    Beside it: --model.kind=closed_book --data.facts=fixed, which learns the facts by heart; --data.facts=fixed, which
    has the documents but no reason to read them; --model.kind=token, concatenation and fusion.
    """
    return Experiment(
        model=RAG(
            network=llama_network(2, 128, 4, max_length=96, init_std=0.05),
            retriever=_encoder(),
            optimizer=AdamW(learning_rate=1e-3, b2=0.99, clip_norm=1.0, schedule=Linear(warmup_steps=100)),
        ),
        data=KnowledgeQuestions(batch_size=64),
        training=Training(num_steps=500, evaluate_every=250, best_metric="nll", num_samples=4),
    )
