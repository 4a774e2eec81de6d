"""BERT and RoBERTa of the library transformers, with their heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genjax.families.language.encoder_tasks import (
    Classification,
    MaskedLanguageModel,
    SentenceEmbedding,
    SpanExtraction,
    Task,
    TokenClassification,
)
from genjax.families.language.networks import bert_network
from genjax.interop.architecture import (
    THEIR_ACTIVATIONS,
    Architecture,
    Config,
    UnsupportedError,
    activation,
    layer_paths,
    num_labels,
    number,
    require,
)
from genjax.interop.bindings import Bindings, embedding, linear, merge, norm, same

if TYPE_CHECKING:
    from genjax.families.language.bert import BERT

_HEADS = (
    "MaskedLM",
    "ForPreTraining",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "Model",
)


def _task(config: Config, kind: str) -> Task:
    """The task of the class that wrote the checkpoint."""
    name = (config.get("architectures") or ["Model"])[0].removeprefix(kind)
    dropout = config.get("classifier_dropout")
    dropout = config.get("hidden_dropout_prob", 0.1) if dropout is None else dropout
    match name:
        case "ForPreTraining":
            return MaskedLanguageModel(next_sentence=True)
        case "ForMaskedLM":
            return MaskedLanguageModel()
        case "ForSequenceClassification":
            return Classification(num_classes=num_labels(config), dropout=dropout)
        case "ForTokenClassification":
            return TokenClassification(num_classes=num_labels(config), dropout=dropout)
        case "ForQuestionAnswering":
            return SpanExtraction()
        case "Model":
            return SentenceEmbedding()
    raise UnsupportedError(f"config.json was written by {kind}{name}; known heads are {', '.join(_HEADS)}")


def _read(config: Config, kind: str) -> dict[str, Any]:
    require(config, "position_embedding_type", "absolute", "absolute", None)
    require(config, "is_decoder", False, False)
    offset = 0 if kind == "Bert" else (config.get("pad_token_id", 1) or 0) + 1
    return {
        "vocab_size": number(config, "vocab_size"),
        "network": bert_network(
            number(config, "num_hidden_layers"),
            number(config, "hidden_size"),
            number(config, "num_attention_heads"),
            mlp_dim=config.get("intermediate_size", 3072),
            activation=activation(config.get("hidden_act", "gelu")),
            norm_epsilon=config.get("layer_norm_eps", 1e-12),
            max_length=config.get("max_position_embeddings", 512) - offset,
            dropout=config.get("hidden_dropout_prob", 0.1),
            attention_dropout=config.get("attention_probs_dropout_prob", 0.1),
            init_std=config.get("initializer_range", 0.02),
        ),
        "task": _task(config, kind),
        "pooler": (config.get("architectures") or ["Model"])[0].endswith(("Model", "ForPreTraining")),
        "num_types": config.get("type_vocab_size", 2),
        "position_offset": offset,
        "skip_padding": kind == "Roberta",
    }


def _write(model: BERT, kind: str) -> dict[str, Any]:
    network, task = model.network, model.task
    labels: dict[str, Any] = {}
    match task:
        case MaskedLanguageModel():
            name = "ForPreTraining" if task.next_sentence else "ForMaskedLM"
        case Classification() | TokenClassification():
            name = f"For{'Sequence' if isinstance(task, Classification) else 'Token'}Classification"
            labels["id2label"] = {str(i): f"LABEL_{i}" for i in range(task.num_classes or 2)}
            labels["label2id"] = {label: int(i) for i, label in labels["id2label"].items()}
        case SpanExtraction():
            name = "ForQuestionAnswering"
        case _:
            name = "Model"
    if network.size_of_head * network.num_heads != network.width or network.num_kv_heads not in (
        None,
        network.num_heads,
    ):
        raise UnsupportedError(f"transformers' {kind} has heads of width / num_heads features and no shared ones")
    return {
        "architectures": [kind + name],
        "model_type": kind.lower(),
        "vocab_size": model.vocab_size,
        "hidden_size": network.width,
        "num_hidden_layers": network.num_layers,
        "num_attention_heads": network.num_heads,
        "intermediate_size": network.size_of_mlp,
        "hidden_act": THEIR_ACTIVATIONS[network.activation],
        "hidden_dropout_prob": network.dropout,
        "attention_probs_dropout_prob": network.attention_dropout,
        "max_position_embeddings": network.max_length + model.position_offset,
        "type_vocab_size": model.num_types,
        "initializer_range": network.init_std or 0.02,
        "layer_norm_eps": network.norm_epsilon,
        "pad_token_id": max(model.position_offset - 1, 0),
        "tie_word_embeddings": True,
        **labels,
    }


def _body(model: BERT, prefix: str) -> Bindings:
    table = f"{prefix}embeddings"
    parts = [
        embedding("embedding/token", f"{table}.word_embeddings"),
        embedding("embedding/position", f"{table}.position_embeddings"),
        norm("embedding/embedding_norm", f"{table}.LayerNorm"),
        linear("pooler", f"{prefix}pooler.dense"),
    ]
    if model.num_types:
        parts.append(embedding("embedding/type", f"{table}.token_type_embeddings"))
    for i, layer in layer_paths(model.network):
        theirs = f"{prefix}encoder.layer.{i}"
        parts += [
            *(linear(f"{layer}/attention/{n}", f"{theirs}.attention.self.{n}") for n in ("query", "key", "value")),
            linear(f"{layer}/attention/output", f"{theirs}.attention.output.dense"),
            norm(f"{layer}/attention_norm", f"{theirs}.attention.output.LayerNorm"),
            linear(f"{layer}/mlp/up", f"{theirs}.intermediate.dense"),
            linear(f"{layer}/mlp/down", f"{theirs}.output.dense"),
            norm(f"{layer}/mlp_norm", f"{theirs}.output.LayerNorm"),
        ]
    return merge(*parts)


def _bert_bindings(model: BERT) -> Bindings:
    heads = merge(
        linear("heads/masked_tokens/transform", "cls.predictions.transform.dense"),
        norm("heads/masked_tokens/norm", "cls.predictions.transform.LayerNorm"),
        same("heads/masked_tokens/bias", "cls.predictions.bias", aliases=("cls.predictions.decoder.bias",)),
        linear("heads/next_sentence", "cls.seq_relationship"),
        linear("heads/classes", "classifier"),
        linear("heads/token_classes", "classifier"),
        linear("heads/span", "qa_outputs"),
    )
    return merge(_body(model, "bert."), heads)


def _roberta_bindings(model: BERT) -> Bindings:
    heads = merge(
        linear("heads/masked_tokens/transform", "lm_head.dense"),
        norm("heads/masked_tokens/norm", "lm_head.layer_norm"),
        same("heads/masked_tokens/bias", "lm_head.bias", aliases=("lm_head.decoder.bias",)),
        linear("heads/classes", "classifier.out_proj"),
        linear("heads/token_classes", "classifier"),
        linear("heads/span", "qa_outputs"),
    )
    if isinstance(model.task, Classification):
        # RoBERTa's classifier has an additional layer in place of BERT's pooler.
        heads |= linear("pooler", "classifier.dense")
    return merge(_body(model, "roberta."), heads)


BERT_ARCHITECTURE = Architecture(
    model_type="bert",
    read=lambda config, names: _read(config, "Bert"),
    write=lambda model: _write(model, "Bert"),
    bind=_bert_bindings,
    prefix="bert.",
    buffers=r"position_ids$",
    copies=("cls.predictions.decoder.weight",),
    heads=r"cls\.|classifier\.|qa_outputs\.|(bert\.)?pooler\.",
    head_paths=("heads/", "pooler/"),
    own=("task", "pooler"),
    bare=lambda model: isinstance(model.task, SentenceEmbedding),
)
ROBERTA_ARCHITECTURE = Architecture(
    model_type="roberta",
    read=lambda config, names: _read(config, "Roberta"),
    write=lambda model: _write(model, "Roberta"),
    bind=_roberta_bindings,
    prefix="roberta.",
    buffers=r"position_ids$",
    copies=("lm_head.decoder.weight",),
    heads=r"lm_head\.|classifier\.|qa_outputs\.|(roberta\.)?pooler\.",
    head_paths=("heads/", "pooler/"),
    own=("task", "pooler"),
    bare=lambda model: isinstance(model.task, SentenceEmbedding),
)
