"""Reward models: what is read of a text, and the same model in the library transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genjax
from genjax.families.alignment.reward import Score
from genjax.families.language.gpt_tasks import GPTForTask
from genjax.families.language.networks import gpt2_network, llama_network
from genjax.nn.transformer import Transformer
from genjax.optimizers import SGD

KEY = jax.random.key(0)
TINY = Transformer(num_layers=1, width=8, num_heads=2, mlp_dim=16, max_length=16, init_std=0.5, dropout=0.3)
MODEL = GPTForTask(
    vocab_size=7, sequence_length=9, padding_token=6, network=TINY, task=Score(), optimizer=SGD(learning_rate=0.1)
)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    tokens = lambda: jnp.asarray(rng.integers(0, 7, (8, 10)), jnp.int32)
    mask = lambda: jnp.asarray(np.arange(10)[None] < rng.integers(3, 11, 8)[:, None])
    return {
        "tokens": tokens(),
        "mask": mask(),
        "rejected": tokens(),
        "rejected_mask": mask(),
        "margin": jnp.ones(8) * 0.5,
    }


@pytest.fixture(scope="module")
def state(batch):
    return jax.jit(MODEL.init)(KEY, batch)


def test_the_reward_is_read_at_the_last_token_of_a_text_whatever_its_tokens_are(batch, state):
    # transformers 35352 (read at the first end token, of the prompt), gpt-neox 1285, trl 1893 (behind the end).
    predict = jax.jit(MODEL.predict)
    texts = {name: batch[name] for name in ("tokens", "mask")}
    scores = predict(state, texts)["score"]
    for i in range(8):
        size = int(texts["mask"][i].sum())
        alone = predict(state, {"tokens": texts["tokens"][i : i + 1, :size]})["score"]
        np.testing.assert_allclose(scores[i], alone[0], rtol=1e-5)
    noise = jnp.where(texts["mask"], texts["tokens"], 3)
    np.testing.assert_allclose(predict(state, {**texts, "tokens": noise})["score"], scores, rtol=1e-6)


def test_the_loss_is_that_of_bradley_and_terry_and_of_a_whole_batch(batch, state):
    evaluate = jax.jit(MODEL.evaluate)
    values = evaluate(state, batch, KEY)
    score = jax.jit(lambda tokens, mask: MODEL.predict(state, {"tokens": tokens, "mask": mask})["score"])
    chosen, rejected = score(batch["tokens"], batch["mask"]), score(batch["rejected"], batch["rejected_mask"])
    expected = np.log1p(np.exp(-(chosen - rejected - 0.5))) + 0.01 * (chosen + rejected) ** 2
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(values["margin"], chosen - rejected, rtol=1e-5)
    # With dropout on: a microbatch draws what the whole batch draws.
    step = lambda parts: (
        dataclasses.replace(MODEL, optimizer=SGD(learning_rate=0.1, accumulation_steps=parts)).train_step
    )
    indexed = {**batch, "example_index": jnp.arange(8)}
    whole, metrics = jax.jit(step(1))(state, indexed, KEY)
    parts, other = jax.jit(step(4))(state, indexed, KEY)
    np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), parts.params, whole.params)
    with pytest.raises(ValueError, match="learns from pairs of answers"):
        MODEL.evaluate(state, {"tokens": batch["tokens"][:3]}, KEY)
    with pytest.raises(ValueError, match="centering=-1.0 must not be negative"):
        Score(centering=-1.0)


NETWORKS = {
    "gpt2": gpt2_network(2, 16, 2, max_length=16, dropout=0.0, attention_dropout=0.0),
    "llama": llama_network(2, 16, 2, 1, max_length=16),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_is_written_and_read_as_a_classifier_of_one_label(kind, tmp_path):
    model = dataclasses.replace(MODEL, network=NETWORKS[kind])
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 6, (3, 8)), jnp.int32)
    mask = jnp.arange(8)[None] < jnp.asarray([[8], [5], [3]])
    batch = {"tokens": jnp.where(mask, tokens, 6), "mask": mask}
    params = jax.jit(model.init)(KEY, batch).params
    genjax.save_pretrained(tmp_path / "reward", model, params)
    read = genjax.load_pretrained(tmp_path / "reward")
    assert isinstance(read.model, GPTForTask) and isinstance(read.model.task, Score) and read.model.padding_token == 6
    jax.tree.map(np.testing.assert_array_equal, read.params, params)
    scores = jax.jit(read.model.predict)(read.state, batch)["score"]
    # A run that starts from it takes the head, too.
    start = dataclasses.replace(model, pretrained=str(tmp_path / "reward")).with_pretrained_sizes()
    fresh = jax.jit(start.init)(jax.random.key(1), batch).params
    taken = start.pretrained_params(fresh)
    jax.tree.map(np.testing.assert_array_equal, taken, params)
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    out = theirs(torch.tensor(np.asarray(batch["tokens"])), attention_mask=torch.tensor(np.asarray(mask)).long())
    np.testing.assert_allclose(scores, out.logits[:, 0].detach().numpy(), atol=2e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = genjax.load_pretrained(tmp_path / "theirs")
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
