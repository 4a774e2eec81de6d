"""Files of low-rank updates: peft's own beside ours, kohya's names, and files of ours in the library diffusers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data.text.prompts import PromptTokenizer
from genjax.families.diffusion import lora_files, pipelines
from genjax.interop import bindings
from genjax.interop.safetensors import read_header
from genjax.pretrained import load_pretrained
from tests.interop import pipelines as built
from tests.interop.diffusers_parts import diffusers, nchw, nhwc, save_file, torch

peft = pytest.importorskip("peft")
# The library itself makes arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
UNET = ["to_q", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "time_emb_proj"]
TEXT = ["q_proj", "fc1"]


def adapter(module, targets, seed):
    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False)
    return peft.get_peft_model(module, settings)


def plain(name):
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Ours from a folder; a file that diffusers wrote of updates of its pipeline, and its merged tensors."""
    folder = tmp_path_factory.mktemp("updates")
    theirs, source = built.stable_diffusion(folder, layers_per_block=1)
    ours = load_pretrained(source)
    unet, text = adapter(theirs.unet, UNET, 0), adapter(theirs.text_encoder, TEXT, 1)
    layers = [
        {name.removeprefix("base_model.model."): t for name, t in peft.get_peft_model_state_dict(m).items()}
        for m in (unet, text)
    ]
    settings = {"r": 3, "lora_alpha": 6, "target_modules": UNET}
    diffusers.StableDiffusionPipeline.save_lora_weights(
        folder, *layers, unet_lora_adapter_metadata=settings, text_encoder_lora_adapter_metadata=settings
    )
    merged = {"unet": unet.merge_and_unload(), "text_encoder": text.merge_and_unload()}
    return ours, folder / "pytorch_lora_weights.safetensors", merged


def tensors_of(model, params, part):
    part = next(p for p in pipelines.parts_of(model) if p.folder == part)
    return {name: make() for name, _, make in bindings.tensors_of({part.name: params[part.name]}, part.bindings)}


def check_merged(model, params, merged, parts=("unet", "text_encoder")):
    whole = model.merged_params(params)
    for part in parts:
        found = tensors_of(model, whole, part)
        for name, expected in merged[part].state_dict().items():
            own = found.get(name, found.get(f"text_model.{name}"))
            np.testing.assert_allclose(own, expected.detach(), atol=1e-5, err_msg=name)


def test_what_peft_wrote_gives_what_peft_merges(trained):
    ours, file, merged = trained
    model, params = lora_files.with_updates(ours.model, ours.params, file)
    assert (model.lora.rank, model.lora.alpha) == (3, 6.0)
    check_merged(model, params, merged)
    before = tensors_of(ours.model, ours.params, "unet")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert np.abs(before[name] - merged["unet"].state_dict()[name].numpy()).max() > 0.1
    rng = np.random.default_rng(0)
    z, context = rng.normal(size=(1, 8, 8, 4)).astype(np.float32), rng.normal(size=(1, 5, 32)).astype(np.float32)
    module = model.code_model().module()
    run = jax.jit(lambda p: module.apply({"params": model.merged_params(p)["diffusion"]}, z, k, {"context": context}))
    k = jnp.array([501.0])
    expected = merged["unet"](nchw(z), torch.tensor([501.0]), torch.tensor(context)).sample
    np.testing.assert_allclose(run(params), nhwc(expected), atol=1e-4)


@pytest.mark.parametrize("names", ["peft", "kohya"])
def test_files_of_ours_are_read_by_diffusers_and_by_us(trained, names, tmp_path):
    ours, file, merged = trained
    model, params = lora_files.with_updates(ours.model, ours.params, file)
    lora_files.write_updates(tmp_path / "ours.safetensors", model, params, names)
    check_merged(*lora_files.with_updates(ours.model, ours.params, tmp_path / "ours.safetensors"), merged)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(ours.folder)
    pipeline.load_lora_weights(tmp_path, weight_name="ours.safetensors")
    pipeline.fuse_lora()
    for part in ("unet", "text_encoder"):
        found = {plain(name): t for name, t in getattr(pipeline, part).state_dict().items() if "lora" not in name}
        for name, expected in merged[part].state_dict().items():
            # diffusers 0.42 renames these of kohya's to what transformers 5 does not look for, and leaves them out.
            if names == "kohya" and part == "text_encoder" and "self_attn" in name:
                continue
            np.testing.assert_allclose(found[name].detach(), expected.detach(), atol=1e-5, err_msg=name)


def test_halves_that_were_trained_apart_are_one_update_of_twice_the_rank(trained, tmp_path):
    ours, file, _ = trained
    model, params = lora_files.with_updates(ours.model, ours.params, file)
    params = {
        **params,
        "lora": jax.tree.map(lambda a: a + jnp.sin(jnp.arange(a.size)).reshape(a.shape), params["lora"]),
    }
    half = lambda updates: updates["middle_0_attention"]["stack"]["layer_0"]["mlp"]["gate"]["kernel"]
    half(params["lora"]["diffusion"])["a"] *= 2.0
    for names in ("peft", "kohya"):
        lora_files.write_updates(tmp_path / "ours.safetensors", model, params, names)
        again = lora_files.with_updates(ours.model, ours.params, tmp_path / "ours.safetensors")
        expected, found = model.merged_params(params), again[0].merged_params(again[1])
        for part in ("diffusion", "text"):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[part], expected[part])


def test_what_cannot_be_read_is_one_sentence(trained, tmp_path):
    ours, file, _ = trained
    tensors = {name: torch.tensor(np.array(t.view())) for name, t in read_header(file).items()}
    one = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = (tensors[f"{one}.lora_{x}.weight"] for x in "AB")

    def refused(words, given, metadata=None):
        save_file(given, tmp_path / "bad.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match=words):
            lora_files.with_updates(ours.model, ours.params, tmp_path / "bad.safetensors")

    pair = {f"{one}.lora_A.weight": down, f"{one}.lora_B.weight": up}
    refused("without its second factor", {f"{one}.lora_A.weight": down})
    refused("the ranks 2 and 3, which must be equal", {**pair, f"{one}.lora_A.weight": down[:2].contiguous()})
    refused(r"has an update of \[63, 64\] for diffusion/middle", {**pair, f"{one}.lora_A.weight": down[:, 1:].clone()})
    refused(
        "unet.conv_in, which are no linear maps", {f"unet.conv_in.lora_{x}.weight": t for x, t in zip("AB", (down, up))}
    )
    refused("holds no low-rank updates", {})
    refused("updates x, which are no linear maps", {**pair, "x": down.clone()})
    refused("no JSON with numbers", pair, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": "x"})})
    refused(
        "unet.alpha_pattern, an alpha for each", pair, {"lora_adapter_metadata": '{"unet.alpha_pattern": {"a": 1}}'}
    )
    with pytest.raises(ValueError, match="is pickled and is not read"):
        lora_files.with_updates(ours.model, ours.params, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="no low-rank updates; train it with --model.lora=lora"):
        lora_files.write_updates(tmp_path / "x.safetensors", dataclasses.replace(ours.model, lora=None), ours.params)


def test_a_new_word_of_ours_is_read_by_diffusers(trained, tmp_path):
    ours, _, _ = trained
    model = dataclasses.replace(ours.model, new_tokens=1)
    row = np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32)
    lora_files.write_word(tmp_path / "word.safetensors", "<thing>", row)
    word, embedding = lora_files.read_word(tmp_path / "word.safetensors")
    assert word == "<thing>"
    np.testing.assert_array_equal(embedding, row)
    tokens = PromptTokenizer(ours.folder / "tokenizer", new_tokens=[word]).encode(["a low <thing> circle"])
    assert 516 in tokens
    context, _ = jax.jit(model.encode_text)({**ours.params, "new_tokens": {"embedding": jnp.asarray(row)}}, tokens)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(ours.folder)
    pipeline.load_textual_inversion(tmp_path / "word.safetensors")
    given = pipeline.tokenizer("a low <thing> circle", padding="max_length", max_length=77, return_tensors="pt")
    np.testing.assert_array_equal(tokens, given.input_ids)
    np.testing.assert_allclose(context, pipeline.text_encoder(given.input_ids).last_hidden_state.detach(), atol=1e-4)
    for name, tensors, words in (
        ("x.safetensors", {}, "holds 0 tensors"),
        ("x.bin", None, "is pickled and is not read"),
    ):
        if tensors is not None:
            save_file(tensors, tmp_path / name)
        with pytest.raises(ValueError, match=words):
            lora_files.read_word(tmp_path / name)
