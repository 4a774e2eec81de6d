"""Folders as the library transformers writes them: a tiny random model and the tokenizer.json that belongs to it."""

from __future__ import annotations

from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
library = pytest.importorskip("tokenizers")

CORPUS = ["Each value has a type and each type has a value.", "The list of names, in order: a name is a word."] * 4
_SIZES = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
_BART_SIZES = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
}


def byte_level(marks: list[str]):
    """Byte-level BPE."""
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": marks, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(CORPUS, library.trainers.BpeTrainer(vocab_size=280, **options))
    return tokenizer


def word_piece():
    """Lower-cased words and their parts."""
    tokenizer = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = library.decoders.WordPiece()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    options = {"special_tokens": marks, "show_progress": False}
    tokenizer.train_from_iterator(CORPUS, library.trainers.WordPieceTrainer(vocab_size=60, **options))
    tokenizer.post_processor = library.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def sentence_pieces():
    """Unigram pieces with sentinels above them."""
    tokenizer = library.Tokenizer(library.models.Unigram())
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace()
    tokenizer.decoder = library.decoders.Metaspace()
    options = {"special_tokens": ["<pad>", "</s>", "<unk>"], "unk_token": "<unk>", "show_progress": False}
    tokenizer.train_from_iterator(CORPUS, library.trainers.UnigramTrainer(vocab_size=50, **options))
    tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in range(9, -1, -1)])
    end = {"single": "$A </s>", "pair": "$A </s> $B </s>", "special_tokens": [("</s>", 1)]}
    tokenizer.post_processor = library.processors.TemplateProcessing(**end)
    return tokenizer


def gpt2():
    """GPT-2 and its tokenizer."""
    tokenizer = byte_level(["<|endoftext|>"])
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=280, **sizes)), tokenizer


def bert():
    """BERT and its tokenizer."""
    tokenizer = word_piece()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=64, **sizes)
    return transformers.BertForPreTraining(config), tokenizer


def t5():
    """T5 in form 1.1, whose table is longer than its tokenizer, and its tokenizer."""
    tokenizer = sentence_pieces()
    form = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
    config = transformers.T5Config(vocab_size=tokenizer.get_vocab_size() + 4, **_SIZES, **form)
    return transformers.T5ForConditionalGeneration(config), tokenizer


def bart():
    """BART, whose targets begin with the end token, and its tokenizer."""
    tokenizer = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = library.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    config = transformers.BartConfig(
        vocab_size=280, d_model=8, max_position_embeddings=64, init_std=0.5, forced_eos_token_id=None, **_BART_SIZES
    )
    return transformers.BartForConditionalGeneration(config), tokenizer


def write(make, folder: Path):
    """Writes a checkpoint; returns their model and tokenizer."""
    torch.manual_seed(0)
    model, tokenizer = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.eval().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return model, tokenizer
