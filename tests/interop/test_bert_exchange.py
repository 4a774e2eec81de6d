"""BERT and RoBERTa of the library transformers, tiny and random, beside ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.exchange import VOCAB, build, check_gradients, check_round_trip, close, padded, torch, transformers

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
    "pad_token_id": 1,
}


def config(kind, **changes):
    length = {"Bert": 16, "Roberta": 18}[kind]
    types = {"Bert": 2, "Roberta": 1}[kind]
    return getattr(transformers, f"{kind}Config")(
        **{**SIZES, "max_position_embeddings": length, "type_vocab_size": types, **changes}
    )


@pytest.mark.parametrize(
    "kind, cls, side", [("Bert", "BertForPreTraining", "left"), ("Roberta", "RobertaForMaskedLM", "right")]
)
def test_pretraining_logits_loss_and_gradients(kind, cls, side, tmp_path):
    theirs, pretrained = build(cls, config(kind), tmp_path / "theirs")
    tokens, mask = padded(side)
    targets = np.random.default_rng(1).integers(5, VOCAB, tokens.shape)
    chosen = mask & (np.arange(7)[None] % 3 != 2)
    types = (np.arange(7)[None] > 2) * np.ones((2, 1), int) if kind == "Bert" else np.zeros((2, 7), int)
    label = np.array([0, 1])
    inputs = {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(mask),
        "token_type_ids": torch.tensor(types),
    }
    extra = {"next_sentence_label": torch.tensor(label)} if kind == "Bert" else {}
    out = theirs(**inputs, labels=torch.tensor(np.where(chosen, targets, -100)), **extra, output_hidden_states=True)
    out.loss.backward()

    model = pretrained.model
    places = jnp.tile(jnp.arange(7), (2, 1))
    batch = {"tokens": tokens, "mask": mask, "types": types, "label": label}
    batch |= {"places": places, "targets": targets, "weights": chosen.astype(np.float32) * chosen.size / chosen.sum()}
    batch = {name: jnp.asarray(a) for name, a in batch.items()}

    @jax.jit
    def ours(params):
        def loss(params):
            outputs = model.module().apply({"params": params}, batch)
            return model.task.loss(outputs, batch)[0], outputs

        hidden = model.module().apply({"params": params}, batch, method="encode")[0]
        return hidden, *jax.value_and_grad(loss, has_aux=True)(params)

    hidden, (loss, outputs), gradients = ours(pretrained.params)
    close(hidden[mask], out.hidden_states[-1][torch.tensor(mask)])
    logits = out.prediction_logits if kind == "Bert" else out.logits
    close(outputs["logits"][mask], logits[torch.tensor(mask)])
    if kind == "Bert":
        close(outputs["next_sentence"], out.seq_relationship_logits)
    close(loss, out.loss)
    check_gradients(model, gradients, theirs)
    check_round_trip(pretrained, theirs, tmp_path / "ours")


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
@pytest.mark.parametrize(
    "head", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model"]
)
def test_heads(kind, head, tmp_path):
    theirs, pretrained = build(
        kind + head, config(kind, num_labels=2 if head == "ForQuestionAnswering" else 3), tmp_path / "theirs"
    )
    tokens, mask = padded("right")
    batch = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}
    with torch.no_grad():
        out = theirs(torch.tensor(tokens), torch.tensor(mask))
    predict = jax.jit(pretrained.model.predict)(pretrained.state, batch)
    if head == "ForSequenceClassification":
        close(predict["classes"], out.logits)
    elif head == "ForTokenClassification":
        close(predict["token_classes"][mask], out.logits[torch.tensor(mask)])
    elif head == "ForQuestionAnswering":
        for i, logits in enumerate((out.start_logits, out.end_logits)):
            close(predict["span"][:, i][mask], logits[torch.tensor(mask)])
    else:
        mean = (out.last_hidden_state * torch.tensor(mask)[:, :, None]).sum(1) / torch.tensor(mask).sum(1, keepdim=True)
        close(predict["embedding"], torch.nn.functional.normalize(mean))
    check_round_trip(pretrained, theirs, tmp_path / "ours")
