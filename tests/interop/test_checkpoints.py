"""Reading and writing checkpoints without the other library: bad files, sharding, scanned layers, fine-tuning."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genjax import config
from genjax.data.text.tokenizer import train_tokenizer
from genjax.families.language.bert import BERT
from genjax.families.language.encoder_tasks import Classification, MaskedLanguageModel
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import bert_network, llama_network
from genjax.interop import safetensors
from genjax.interop.huggingface import abstract_params, configured, load_params
from genjax.nn.lora import LoRA
from genjax.nn.transformer import scanned
from genjax.pretrained import load_pretrained, save_pretrained
from genjax.training import resolve, train

MODEL = GPT(vocab_size=160, network=llama_network(2, 32, 4, 2, mlp_dim=48, max_length=32), tie_embeddings=False)


@pytest.fixture(scope="module")
def params():
    shapes, key = abstract_params(MODEL), jax.random.key(0)
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(
        tree, [np.asarray(jax.random.normal(jax.random.fold_in(key, i), s.shape)) for i, s in enumerate(leaves)]
    )


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    save_pretrained(path, MODEL, params)
    return path


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_half_precision_parts_and_scanned_layers_are_read_bit_for_bit(params, folder, tmp_path):
    equal(load_pretrained(folder).params, params)
    save_pretrained(tmp_path, MODEL, params, dtype="bfloat16")
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    equal(load_pretrained(tmp_path, dtype=jnp.bfloat16).params, half)
    equal(load_pretrained(tmp_path).params, jax.tree.map(lambda a: a.astype(np.float32), half))
    # In two files with an index.
    tensors = safetensors.read_folder(folder)
    names, index = sorted(tensors), {}
    for part in range(2):
        file = f"model-{part}.safetensors"
        rows = [(n, tensors[n].shape, tensors[n].dtype, tensors[n].view) for n in names[part::2]]
        safetensors.write(tmp_path / file, rows)
        index |= dict.fromkeys(names[part::2], file)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    equal(load_pretrained(tmp_path).params, params)
    scan = dataclasses.replace(MODEL, network=dataclasses.replace(MODEL.network, scan_layers=True))
    stacked = {**params, "stack": scanned(params["stack"], MODEL.network)}
    equal(load_params(scan, folder, abstract_params(scan)), stacked)
    save_pretrained(tmp_path / "again", scan, stacked)
    before, after = safetensors.read_folder(folder), safetensors.read_folder(tmp_path / "again")
    assert set(before) == set(after)
    assert all(before[name].view().tobytes() == after[name].view().tobytes() for name in before)


def test_each_device_reads_its_part(params, folder):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))

    def shard(leaf):
        axis = next((i for i, n in enumerate(leaf.shape) if n % 8 == 0), None)
        return NamedSharding(mesh, PartitionSpec(*(None if i != axis else "fsdp" for i in range(len(leaf.shape)))))

    loaded = load_pretrained(folder, shard=shard)
    equal(loaded.params, params)
    kernel = loaded.params["stack"]["layer_1"]["mlp"]["down"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec("fsdp", None) and kernel.addressable_shards[3].data.shape == (6, 32)


def test_what_does_not_fit_is_listed_at_once(folder, tmp_path):
    tensors = safetensors.read_folder(folder)
    rows = [(n, t.shape, t.dtype, t.view) for n, t in tensors.items()]
    dropped = "model.layers.0.mlp.up_proj.weight"
    rows = [row for row in rows if row[0] != dropped]
    rows.append(("surplus", (2,), np.dtype(np.float32), lambda: np.zeros(2)))
    rows = [(n, (3, 3), t, lambda: np.zeros((3, 3))) if n == "model.layers.1.self_attn.k_proj.weight" else (n, s, t, f)
            for n, s, t, f in rows]  # fmt: skip
    safetensors.write(tmp_path / safetensors.WEIGHTS, rows)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError) as error:
        load_pretrained(tmp_path)
    message = str(error.value)
    assert f"missing tensors: {dropped};" in message and "extra tensors: surplus;" in message
    assert "wrong shapes: model.layers.1.self_attn.k_proj.weight has (3, 3) and needs (16, 32)" in message


def test_files_that_cannot_be_read_say_so(folder, tmp_path):
    content = (folder / safetensors.WEIGHTS).read_bytes()
    settings = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings))
    weights = tmp_path / safetensors.WEIGHTS
    for size, words in ((len(content) - 10, "is truncated"), (40, "is truncated"), (3, "is no safetensors file")):
        weights.write_bytes(content[:size])
        with pytest.raises(ValueError, match=words):
            load_pretrained(tmp_path)
    weights.write_bytes(content + b"more")
    with pytest.raises(ValueError, match="is damaged"):
        load_pretrained(tmp_path)
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="pickled and is not read"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**settings, "model_type": "mamba"}))
    with pytest.raises(ValueError, match=r"'mamba' is not known; known are .*bert, .*gpt2, .*llama.*t5"):
        load_pretrained(tmp_path)
    rope = {"rope_type": "longrope", "rope_theta": 1e4}
    (tmp_path / "config.json").write_text(json.dumps({**settings, "rope_parameters": rope}))
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="'longrope'; known are default, linear, llama3 and yarn"):
        load_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no config.json"):
        load_pretrained(tmp_path / "nowhere")
    diffusers = {"_class_name": "UNet2DModel", "_diffusers_version": "0.35.1"}
    for content, words in (
        (json.dumps(diffusers), "'UNet2DModel' is not known; known are AutoencoderKL, "),
        (json.dumps({"architecture": "vit_tiny"}), "of a vit_tiny of the library timm"),
        (json.dumps({"hidden_size": 3}), "says no model_type: it is no checkpoint of the libraries"),
        ("[1]", "is damaged: it must be a JSON object"),
        ("{", "is damaged: it is not JSON"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            load_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="it is an adapter of the library peft"):
        load_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="is a pipeline None of diffusers; known are StableDiffusionPipeline, "):
        load_pretrained(tmp_path)


def test_ends_of_texts_are_those_that_the_library_generates_with(params, folder, tmp_path):
    model = dataclasses.replace(MODEL, start_token=1, end_token=(5, 7))
    save_pretrained(tmp_path, model, params)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == [5, 7]
    assert load_pretrained(tmp_path).model.end_token == (5, 7)
    # What is written for generation comes before config.json, as in the library.
    settings = {"eos_token_id": [6, 7, 9], "temperature": 0.6}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    read = load_pretrained(tmp_path).model
    assert read.end_token == configured(MODEL, tmp_path).end_token == (6, 7, 9) and read.start_token == 1
    save_pretrained(tmp_path / "back", read, params, source=tmp_path)
    assert json.loads((tmp_path / "back/generation_config.json").read_text()) == settings
    assert (tmp_path / "back/chat_template.jinja").read_text() == "{{ messages }}"
    assert (tmp_path / "back/preprocessor_config.json").read_text() == "{}"
    # A model that has learned another end says so in both files.
    other = dataclasses.replace(model, end_token=3)
    save_pretrained(tmp_path / "back", other, params, source=tmp_path)
    assert load_pretrained(tmp_path / "back").model.end_token == 3
    save_pretrained(tmp_path, other, params, source=tmp_path)
    assert load_pretrained(tmp_path).model.end_token == 3
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match="generation_config.json is damaged"):
        load_pretrained(tmp_path)


def test_a_checkpoint_is_fine_tuned_with_a_new_head_and_with_low_rank_updates(params, folder, tmp_path):
    body = BERT(
        vocab_size=30,
        network=bert_network(1, 8, 2, mlp_dim=8, max_length=8),
        task=MaskedLanguageModel(),
    )
    shapes = abstract_params(body)
    old = jax.tree.map(lambda s: np.asarray(jax.random.normal(jax.random.key(s.size), s.shape)), shapes)
    save_pretrained(tmp_path, body, old)
    task = Classification(num_classes=3)
    model = configured(BERT(task=task, pretrained=str(tmp_path), vocab_size=30), tmp_path)
    assert model.network == body.network and model.task == task
    new = jax.tree.map(lambda s: jnp.zeros(s.shape), abstract_params(model))
    loaded = model.pretrained_params(new)
    equal(loaded["stack"], old["stack"])
    assert set(loaded["heads"]) == {"classes"} and not loaded["heads"]["classes"]["kernel"].any()
    with pytest.raises(
        ValueError, match="a checkpoint of bert, and the experiment's model is a GPT, which starts from gpt2, llama"
    ):
        configured(MODEL, tmp_path)
    low = dataclasses.replace(MODEL, lora=LoRA(rank=2), pretrained=str(folder))
    loaded = low.pretrained_params(jax.tree.map(lambda s: jnp.zeros(s.shape), abstract_params(low)))
    equal({name: part for name, part in loaded.items() if name != "lora"}, params)
    assert "lora" in loaded


def test_an_experiment_starts_from_a_checkpoint(folder, params, tmp_path):
    changes = {
        "model.pretrained": str(folder),
        "model.optimizer": "sgd",
        "model.optimizer.learning_rate": 0.0,
        "data.sequence_length": 16,
        "data.batch_size": 16,
        "data.stride": None,
        "training.num_steps": 1,
        "training.num_samples": 1,
        "training.evaluate_every": None,
        "training.best_metric": None,
        "training.tensorboard": False,
        "training.compilation_cache": "",
        "training.mesh": "data:1,fsdp:2",
    }
    experiment = config.apply_overrides(config.find_experiment("gpt_text").build(), changes)
    with pytest.raises(ValueError, match="has no tokenizer.json; give the tokenizer of its model"):
        resolve(experiment)
    for kind in ("characters", "bytes"):
        tokenizer = train_tokenizer(kind, experiment.data.documents("train"), 0)
        (tmp_path / kind).write_text(tokenizer.to_json())
    experiment = config.apply_overrides(experiment, {"data.tokenizer_file": str(tmp_path / "characters")})
    network = resolve(experiment).model.network
    assert (network.num_layers, network.width, network.num_kv_heads) == (2, 32, 2)
    state = train(experiment, tmp_path / "run", quiet=True)
    equal(jax.device_get(state.params), params)
    wide = config.apply_overrides(experiment, {"data.tokenizer_file": str(tmp_path / "bytes")})
    with pytest.raises(ValueError, match="the data have 256 tokens, and the model knows 160"):
        resolve(wide)
