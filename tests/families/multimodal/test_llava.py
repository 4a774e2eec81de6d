"""LLaVA: pictures in place of tokens, caches, both stages, parts of other models, and texts that do not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import llama_network
from genjax.families.multimodal.clip import CLIP
from genjax.families.multimodal.llava import LLaVA
from genjax.families.multimodal.networks import clip_network
from genjax.families.multimodal.siglip import SigLIP
from genjax.model import PartSources, TrainState
from genjax.nn.lora import LoRA
from genjax.optimizers import SGD
from genjax.pretrained import save_pretrained

IMAGE, START, END, VOCAB = 8, 6, 7, 9
VISION = clip_network(3, 8, 2, mlp_dim=12, init_std=0.5)
MODEL = LLaVA(
    data_shape=(4, 4, 1), vocab_size=VOCAB, sequence_length=12, start_token=START, end_token=END, image_token=IMAGE,
    vision=VISION, patch_size=2, network=llama_network(2, 8, 2, mlp_dim=12, max_length=24, init_std=0.7),
    max_new_tokens=3, frozen=("vision_encoder", "language"), optimizer=SGD(learning_rate=0.5), untrained_encoder=True,
)  # fmt: skip
PICTURES = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 1))
I4 = [IMAGE] * 4
#: Two pictures a row; questions and answers of different length.
ROWS = [[START, *I4, 1, *I4, 2, END, 3, END], [START, 5, *I4, *I4, END, 4, END, 0]]
BATCH = {
    "x": PICTURES,
    "tokens": jnp.array(ROWS),
    "mask": jnp.arange(14)[None] < jnp.array([[14], [13]]),
    "loss_mask": (jnp.arange(14)[None] >= jnp.array([[12], [11]])) & (jnp.arange(14)[None] < jnp.array([[14], [13]])),
}
TEXT = {"tokens": jnp.array([[START, 1, 2, END, 3, END], [START, 0, END, 4, 5, 2]])}


@pytest.fixture(scope="module")
def state():
    return jax.jit(MODEL.init)(jax.random.key(1), BATCH)


def test_the_features_of_a_layer_stand_in_the_places_of_the_picture_tokens(state):
    params = state.params
    clip = CLIP(data_shape=(4, 4, 1), vocab_size=3, vision=VISION, text=VISION, patch_size=2)
    encoder = TrainState.create(params={"vision_encoder": params["vision_encoder"], "logit_scale": jnp.zeros(())})
    found = jax.jit(lambda x: clip.image_features(encoder, x, layer=-2))(PICTURES.reshape(4, 4, 4, 1))
    p = params["projector"]
    hidden = jax.nn.gelu(found @ p["first"]["kernel"] + p["first"]["bias"][None, None], approximate=False)
    read = np.asarray(hidden @ p["second"]["kernel"] + p["second"]["bias"][None, None]).reshape(2, 8, 8)
    embedded = np.array(params["language"]["embedding"]["token"]["embedding"][np.array(ROWS)])
    for row, tokens, features in zip(embedded, ROWS, read):
        row[np.array(tokens) == IMAGE] = features
    module = MODEL.language_model().module()
    everywhere = {"features": jnp.asarray(embedded), "replaced": jnp.ones((2, 14), bool)}
    wanted = jax.jit(lambda: module.apply({"params": params["language"]}, BATCH["tokens"], **everywhere)[0])()
    logits = jax.jit(MODEL.logits)(state, BATCH["tokens"], PICTURES)
    # Two programs of the same float32 products round differently.
    np.testing.assert_allclose(logits, wanted, atol=5e-5)


@pytest.mark.parametrize("prefix", [False, True])
def test_cached_answers_are_those_of_the_whole_network(prefix, state):
    model = dataclasses.replace(MODEL, prefix_attention=prefix)
    prompts, lengths = model.prompts_of(BATCH)
    assert lengths.tolist() == [12, 11]
    found = jax.jit(lambda s: model.describe(s, PICTURES, prompts, lengths, num_beams=1))(state)
    logits = jax.jit(model.logits)
    for i, length in enumerate(lengths.tolist()):
        row = ROWS[i][:length]
        for _ in range(3):
            padded = jnp.asarray([row + [0] * (16 - len(row))])
            own = logits(state, padded, PICTURES[i : i + 1], jnp.array([length]))[0, len(row) - 1]
            # The token of a picture is never written.
            row.append(int(own[:IMAGE].argmax()))
            if row[-1] == END:
                break
        assert found[i].tolist() == (row[length:] + [END] * 3)[:3]


def test_text_has_the_same_bits_of_perplexity_after_the_first_stage(state):
    stepped, metrics = jax.jit(MODEL.train_step)(state, BATCH, jax.random.key(2))
    assert np.isfinite(metrics["loss"])
    evaluate = jax.jit(lambda s: MODEL.evaluate(s, TEXT, jax.random.key(0)))
    before, after = evaluate(state), evaluate(stepped)
    language = MODEL.language_model()
    alone = jax.jit(lambda s: language.evaluate(s, TEXT, jax.random.key(0)))(
        TrainState.create(params=state.params["language"])
    )
    for name in ("nll", "num_tokens"):
        assert before[name].tobytes() == after[name].tobytes() == alone[name].tobytes()
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, stepped.params)
    assert all(jax.tree.leaves(changed["projector"]))
    assert not any(jax.tree.leaves((changed["language"], changed["vision_encoder"])))


def test_the_second_stage_trains_the_language_model_or_low_rank_updates_of_it(state):
    second = dataclasses.replace(MODEL, frozen=("vision_encoder",))
    assert set(second.trained_params(state.params)) == {"projector", "language"}
    low = dataclasses.replace(second, lora=LoRA(rank=2))
    started = jax.jit(low.init)(jax.random.key(1), BATCH)
    assert set(low.trained_params(started.params)) == {"projector", "lora"}
    assert set(started.params["lora"]) == {"language"}
    both = [jax.jit(model.logits)(started, BATCH["tokens"], PICTURES) for model in (low, MODEL)]
    np.testing.assert_allclose(*both, atol=1e-6)


def sources(models, params):
    return PartSources(
        model_of=None,
        token_bytes=None,
        described=lambda run: models[run],
        params_of=lambda run, like: {name: params[run][name] for name in like},
    )


def test_encoder_and_language_model_come_from_runs_or_folders_with_their_sizes(tmp_path):
    runs = [str(tmp_path / name) for name in ("siglip", "gpt")]
    for run in runs:
        (tmp_path / run / "checkpoints").mkdir(parents=True)
    plain = {"optimizer": SGD(learning_rate=0.1)}
    siglip = SigLIP(data_shape=(4, 4, 1), vocab_size=3, vision=VISION, text=VISION, patch_size=4, **plain)
    # The language model does not know the picture's token.
    language = GPT(vocab_size=VOCAB - 1, network=MODEL.network, tie_embeddings=True, **plain)
    tokens = jnp.zeros((1, 4), jnp.int32)
    batch = {"x": PICTURES[:, 0], "tokens": tokens.repeat(2, 0)}
    models = dict(zip(runs, (siglip, language)))
    params = {run: jax.jit(models[run].init)(jax.random.key(i), batch).params for i, run in enumerate(runs)}
    model = dataclasses.replace(MODEL, vision_from=runs[0], language_from=runs[1], network=llama_network(1, 4, 1))
    from_runs = sources(models, params)
    model = model.with_parts(from_runs)
    assert (model.vision_form, model.patch_size, model.network, model.tie_embeddings) == (
        "siglip", 4, MODEL.network, True
    )  # fmt: skip
    assert model.part_runs == (runs[1],) and dataclasses.replace(MODEL).like_parts(model).vision_form == "siglip"
    fresh = jax.jit(model.init)(jax.random.key(5), batch).params
    taken = model.start_params(fresh, from_runs)
    equal = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    equal(taken["vision_encoder"], params[runs[0]]["vision_encoder"])
    equal(taken["language"]["stack"], params[runs[1]]["stack"])
    equal(taken["projector"], fresh["projector"])
    table, old = (
        taken["language"]["embedding"]["token"]["embedding"],
        params[runs[1]]["embedding"]["token"]["embedding"],
    )
    np.testing.assert_array_equal(table[:-1], old)
    np.testing.assert_allclose(table[-1], old.mean(0), atol=1e-6)

    folders = [str(tmp_path / name) for name in ("their_siglip", "their_llama")]
    for folder, run in zip(folders, runs):
        save_pretrained(folder, models[run], params[run])
    model = dataclasses.replace(MODEL, vision_from=folders[0], language_from=folders[1]).with_parts(from_runs)
    again = model.start_params(fresh, from_runs)
    equal(again["vision_encoder"], taken["vision_encoder"])
    equal(again["language"], taken["language"])
    with pytest.raises(UserError, match="the data write none for them: give --data.picture_tokens=4"):
        unseeing = dataclasses.replace(MODEL, language_from=runs[1], vocab_size=VOCAB - 2, image_token=None)
        unseeing.with_parts(from_runs)
    with pytest.raises(UserError, match="is a GPT, and CLIP or SigLIP is wanted"):
        dataclasses.replace(MODEL, vision_from=runs[1]).with_parts(from_runs)
    with pytest.raises(UserError, match=r"sees pictures of the shape \(4, 4, 1\), and the data have \(8, 8, 1\)"):
        dataclasses.replace(MODEL, vision_from=runs[0], data_shape=(8, 8, 1)).with_parts(from_runs)


def tokens_of(*rows):
    return jnp.array([row + [0] * (10 - len(row)) for row in rows])


@pytest.mark.parametrize(
    ("tokens", "x", "message"),
    [
        (
            [START, *I4, 1],
            None,
            "text 0 has 4 picture tokens, and no picture is given; give 1 picture, or leave the token 8 out",
        ),
        ([START, 1], PICTURES[:1, 0], "has no picture tokens; write the token 8 4 times .*data.picture_tokens=4"),
        (
            [START, *I4[:3]],
            PICTURES[:1, 0],
            "has 3 picture tokens for 1 picture worth 4 tokens: the text is cut inside a picture's tokens, 3 of 4;",
        ),
        ([START, I4[0]], PICTURES[:1], "has 1 picture token for 2 pictures worth 8 tokens: the text is cut"),
        (
            [START, *I4, *I4],
            PICTURES[:1, 0],
            r"has 8 picture tokens for 1 picture worth 4 tokens; of one picture its features are worth 4 tokens "
            r"\(4 patches of model.patch_size=2 in pictures of 4 x 4\)",
        ),
    ],
)
def test_texts_whose_picture_tokens_are_not_those_of_their_pictures_are_refused(tokens, x, message, state):
    with pytest.raises(UserError, match=message):
        MODEL.logits(state, tokens_of(tokens), x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture_tokens": 5}, r"write 5 tokens for a picture, and .* 4 tokens .*set data.picture_tokens=4, or "
                                "model.class_token=true"),
        ({"picture_tokens": 4, "class_token": True}, r"worth 5 tokens \(4 patches .*, and the class token of "
                                                     r"model.class_token=true\); set data.picture_tokens=5, or "
                                                     "model.class_token=false"),
        ({"picture_tokens": 1}, r"write 1 token for a picture, and its features are worth 4 tokens"),
        ({"picture_tokens": 5, "patch_size": 4}, r"worth 1 token \(1 patch of model.patch_size=4 in"),
        ({"picture_tokens": 64}, r"write 64 tokens for a picture, .*; set data.picture_tokens=4(\n|$)"),
        ({"image_token": None}, "the data write none for them: give --data.picture_tokens=4"),
        ({"data_shape": (4, 6, 1)}, r"sees pictures of the shape \(4, 6, 1\), and not \(4, 4, 1\)"),
        ({"feature_layer": -4}, "model.feature_layer=-4 is no block of a stack of 3"),
        ({"network": llama_network(1, 8, 2, max_length=8)}, "take 13 places, but .*model.network.max_length=8"),
        ({"class_token": True, "vision_form": "siglip"}, "SigLIP has none"),
        ({"projector_layers": 3}, "model.projector_layers=3 must be 1 or 2"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        model = dataclasses.replace(MODEL, **changes)
        jax.eval_shape(model.init, jax.random.key(0), BATCH)
        jax.eval_shape(lambda p: model.loss(p, BATCH, jax.random.key(0)), model.init(jax.random.key(0), BATCH).params)


def test_a_run_without_a_trained_encoder_is_refused():
    model = dataclasses.replace(MODEL, untrained_encoder=False)
    with pytest.raises(UserError, match="give a run of CLIP or SigLIP, or a folder of one, by --model.vision_from"):
        model.check_start(None)
    model.check_start(MODEL)
