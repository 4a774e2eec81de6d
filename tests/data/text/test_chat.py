"""Chats as rows: what is learned of them, packing, files, and bad input."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import Chat
from genjax.data.base import DataError
from genjax.data.text import instructions
from genjax.data.text.labelled import made_examples
from genjax.families.language.gpt import GPT
from genjax.nn.tokens import token_nll, token_weights
from genjax.nn.transformer import Transformer

pytest.importorskip("jinja2")
BYTES = Chat(tokenizer="bytes", sequence_length=160)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def chats_of(count, length=3):
    turn = lambda i: [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "y" * (1 + i % length)}]
    return [{"messages": turn(i)} for i in range(count)]


def test_made_instructions_are_answered_by_a_program_that_reads_their_turns_alone():
    texts = {}
    for split in ("train", "test"):
        chats = made_examples(split, "instructions", instructions.make_chat, lambda chat: chat[0]["content"])
        texts[split] = {chat[0]["content"] for chat in chats}
        for chat in chats[:300]:
            for place in range(1, len(chat), 2):
                assert instructions.solve(chat[:place]) == chat[place]["content"]
    assert not texts["train"] & texts["test"] and len(texts["train"]) > 2000
    turn = lambda text: [{"role": "user", "content": text}]
    assert instructions.solve(turn("walk left twice after run")) == "RUN LEFT WALK LEFT WALK"
    with pytest.raises(ValueError, match="no instruction of the grammar"):
        instructions.solve(turn("fly"))


@pytest.mark.parametrize("learn", ["answers", "everything"])
def test_rows_hold_chats_and_learn_answers_with_their_ends(learn):
    # trl 4147: labels of a prompt without its generation prompt were shifted.
    data = dataclasses.replace(BYTES, learn=learn)
    arrays = data.load("train").arrays()
    spec = data.spec()
    assert spec["end_token"] == data.separator_token == 257 and spec["sequence_length"] == 160
    chat = data.conversations("train")[0]["messages"]
    tokens, mask, loss_mask = (arrays[name][0] for name in ("tokens", "mask", "loss_mask"))
    expected = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat)
    assert data.decode(tokens) == expected
    assert (tokens[~mask] == data.padding_token).all()
    if learn == "everything":
        assert (loss_mask == mask).all()
    else:
        answers = "".join(m["content"] + "<|im_end|>" for m in chat if m["role"] == "assistant")
        assert data.decode(tokens[loss_mask]) == answers
    # What a model is asked to answer is what it saw in training.
    prompt = data.prompt_ids(chat[:1])
    assert (tokens[: len(prompt)] == prompt).all() and loss_mask[len(prompt)]


def test_packed_chats_lose_nothing_and_see_only_themselves(tmp_path):
    # trl 1230, 3067: packed samples saw each other.
    file = write(tmp_path / "chats.jsonl", chats_of(60))
    plain = Chat(name="chats", dir=file, tokenizer="bytes", sequence_length=99)
    packed = dataclasses.replace(plain, packed=True)
    rows, alone = packed.load("train").arrays(), plain.load("train").arrays()
    assert rows["mask"].sum() == alone["mask"].sum() and rows["loss_mask"].sum() == alone["loss_mask"].sum()
    assert len(rows["tokens"]) < len(alone["tokens"]) and rows["segment_ids"].max() >= 2
    # Chats have one order in a row; each is there once.
    text = lambda arrays: sorted("".join(map(packed.decode, arrays["tokens"])).split("<|im_start|>user\n"))
    assert text(rows) == text(alone)
    network = Transformer(num_layers=1, width=8, num_heads=2, mlp_dim=16, max_length=100, init_std=0.5)
    model = GPT(vocab_size=260, network=network)
    params = model.init(jax.random.key(0), {"tokens": jnp.zeros((1, 3), jnp.int32)}).params

    @jax.jit
    def total(batch):
        logits = model._target_logits(params, batch)
        return (token_nll(logits, batch["tokens"][:, 1:]) * token_weights(batch)).sum()

    np.testing.assert_allclose(total(rows), total(alone), rtol=1e-5)


def test_files_of_messages_prompts_and_tools_are_read_and_divided(tmp_path):
    prompts = [{"prompt": f"p{i}", "completion": "c"} for i in range(40)]
    data = Chat(name="chats", dir=write(tmp_path / "all.jsonl", prompts), tokenizer="bytes")
    parts = {split: data.conversations(split) for split in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 40 and len(parts["train"]) > 20
    assert parts["train"][0]["messages"][1] == {"role": "assistant", "content": "c"}
    write(tmp_path / "train.jsonl", chats_of(3))
    folder = dataclasses.replace(data, dir=str(tmp_path))
    assert len(folder.conversations("train")) == 3
    with pytest.raises(DataError, match="validation"):
        folder.conversations("validation")


@pytest.mark.parametrize(
    ("rows", "length", "message"),
    [
        ([{"messages": [{"role": "user", "content": "a"}]}], 20, "line 1 of .* has no turn of the assistant"),
        ([{"text": "a"}], 20, "line 1 of .* has neither messages nor prompt and completion; it has text"),
        ([{"messages": [{"content": "a"}]}], 20, "line 1 of .* has a message without role and content"),
        ([{"messages": 3}], 20, "must have a text, or a list of messages"),
        ([["a"]], 20, "line 1 of .* is not like {.messages"),
        ([{"prompt": "a", "completion": ""}], 20, "line 1 of .* has an empty answer of the assistant"),
        ([], 20, "has no lines for the split train"),
        (chats_of(5), 8, r"none of the 5 chats of chats \(train\) has a token to learn within data.sequence_length=8"),
    ],
)
def test_bad_files_are_one_clear_sentence(rows, length, message, tmp_path):
    write(tmp_path / "train.jsonl", rows)
    data = Chat(name="chats", dir=str(tmp_path), tokenizer="bytes", sequence_length=length)
    with pytest.raises(DataError, match=message):
        data.load_split("train")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [30, 45, 70])
def test_a_chat_is_cut_at_its_end_before_it_is_padded_and_no_row_is_padding(length, packed, tmp_path):
    # trl 3382: rows were padded first, and truncation that keeps the end then left rows of padding alone.
    sizes = np.random.default_rng(length).integers(1, 60, (40, 2))
    said = lambda count, letter: letter * int(count)
    chats = [
        [{"role": "user", "content": said(q, "q")}, {"role": "assistant", "content": said(a, "a")}] for q, a in sizes
    ]
    write(tmp_path / "train.jsonl", [{"messages": chat} for chat in chats])
    data = Chat(name="chats", dir=str(tmp_path), tokenizer="bytes", sequence_length=length, packed=packed)
    arrays = data.load_split("train").arrays()
    assert arrays["mask"][:, 0].all() and (arrays["loss_mask"] & arrays["mask"])[:, 1:].any(1).all()
    # A control token is one token, and so is each of these letters.
    heads = [f"<user\n{said(q, 'q')}>\n<assistant\n" for q, _ in sizes]
    wholes = [f"{head}{said(a, 'a')}>\n"[: length + 1] for head, (_, a) in zip(heads, sizes)]
    expected = [whole for head, whole in zip(heads, wholes) if len(whole) > len(head)]
    assert 0 < len(expected) < len(chats)
    plain = lambda row: data.decode(row).replace("<|im_start|>", "<").replace("<|im_end|>", ">")
    found = []
    for tokens, mask, segments in zip(arrays["tokens"], arrays["mask"], arrays.get("segment_ids", arrays["mask"])):
        found += [plain(tokens[segments == part]) for part in np.unique(segments[mask])]
    assert sorted(found) == sorted(expected)


def test_chats_without_a_token_to_learn_are_counted_and_left_out(tmp_path, caplog):
    # huggingface/trl 3927, 6668 and PR 6320: all labels of such rows are masked, the loss is 0, and the run seems to
    # succeed.
    long = {"messages": [{"role": "user", "content": "x" * 90}, {"role": "assistant", "content": "y"}]}
    write(tmp_path / "train.jsonl", [*chats_of(4), long])
    data = Chat(name="chats", dir=str(tmp_path), tokenizer="bytes", sequence_length=40)
    assert data.load_split("train").arrays()["loss_mask"].any(1).all() and len(data.load_split("train")) == 4
    assert "1 of 5 chats of chats (train) have no token to learn within data.sequence_length=40" in caplog.text


def test_a_run_keeps_its_template(tmp_path):
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}A:{{ m.content }}<|im_end|>{% "
        "endgeneration %}{% else %}Q:{{ m.content }}{% endif %}{% endfor %}"
    )
    data = dataclasses.replace(BYTES, chat_template=str(template))
    # A tokenizer that is trained on the chats, as the template writes them, needs the template first.
    trained = dataclasses.replace(data, name="instructions", dir=None, tokenizer="words")
    assert trained.documents("train")[0].startswith("Q:")
    assert trained.decode(trained.prompt_ids([{"role": "user", "content": "walk"}])).replace(" ", "").startswith("Q:")
    (tmp_path / "run").mkdir()
    data.save(tmp_path / "run")
    template.unlink()
    again = data.beside(tmp_path / "run")
    ids = again.prompt_ids([{"role": "user", "content": "hi"}])
    assert again.decode(ids) == "Q:hi" and again.end_of_turn() == 257
    assert "chat_template.jinja" in again.protocol()
