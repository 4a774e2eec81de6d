"""GIT: what features and words see, and its cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.families.language.networks import bert_network
from genjax.families.multimodal.git import GIT
from genjax.families.multimodal.networks import clip_network
from genjax.optimizers import SGD

START, END = 3, 4
MODEL = GIT(
    data_shape=(4, 4, 1), vocab_size=6, sequence_length=4, start_token=START, end_token=END, patch_size=2,
    vision=clip_network(1, 8, 2, mlp_dim=12, init_std=0.7), optimizer=SGD(learning_rate=0.1),
    decoder=bert_network(2, 8, 2, mlp_dim=12, max_length=10, init_std=0.7, dropout=0.0, attention_dropout=0.0),
)  # fmt: skip
PICTURES = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
TOKENS = jnp.array([[START, 0, 1, END, 2, END], [START, 2, END, 1, END, 0]])


@pytest.fixture(scope="module")
def state():
    return jax.jit(MODEL.init)(jax.random.key(1), {"x": PICTURES, "tokens": TOKENS})


def test_features_see_each_other_and_words_what_came_before(state):
    module, places = MODEL.module(), MODEL.features_per_picture
    assert places == 5
    features = jax.random.normal(jax.random.key(2), (1, places, 8))
    embedded = jax.random.normal(jax.random.key(3), (1, 4, 8))

    def outputs(x):
        bound = module.bind({"params": state.params})
        return bound.stack(x, prefix_lengths=jnp.array([places])).x[0, :, 0]

    size = np.abs(jax.jit(jax.jacobian(outputs))(jnp.concatenate([features, embedded], 1))).max(-1)[:, 0]
    place = np.arange(places + 4)
    np.testing.assert_array_equal(size > 0, (place[None] <= place[:, None]) | (place < places)[None])
    # The logits of words are those of the network that reads exactly this.
    logits, out = module.apply({"params": state.params}, TOKENS[:1], features, method="read")
    assert logits.shape == (1, 6, 6) and out.x.shape == (1, places + 6, 8)


def test_cached_texts_of_different_length_are_those_of_the_whole_network(state):
    lengths = jnp.array([4, 3])
    found = jax.jit(lambda s: MODEL.describe(s, PICTURES, TOKENS[:, :4], lengths, num_beams=1))(state)
    beams = jax.jit(lambda s: MODEL.describe(s, PICTURES, TOKENS[:, :4], lengths, num_beams=2))(state)
    apply = jax.jit(lambda x, t: MODEL.module().apply({"params": state.params}, x, t))
    score = jax.jit(lambda x, t: jax.nn.log_softmax(MODEL.module().apply({"params": state.params}, x, t)))
    for i, length in enumerate(lengths.tolist()):
        row = TOKENS[i, :length].tolist()
        for _ in range(3):
            padded = jnp.asarray([row + [0] * (8 - len(row))])
            row.append(int(apply(PICTURES[i : i + 1], padded)[0, len(row) - 1].argmax()))
            if row[-1] == END:
                break
        assert found[i].tolist() == (row[length:] + [END] * 3)[:3]

        def total(answer, i=i, length=length):
            answer = answer[: answer.index(END) + 1] if END in answer else answer
            text = TOKENS[i, :length].tolist() + answer
            logits = score(PICTURES[i : i + 1], jnp.asarray([text + [0] * (8 - len(text))]))[0]
            return sum(float(logits[length - 1 + j, token]) for j, token in enumerate(answer))

        assert total(beams[i].tolist()) >= total(found[i].tolist()) - 1e-5


def test_settings_that_do_not_fit_are_refused(state):
    with pytest.raises(UserError, match="the texts take 11 places, but the longest context is model.decoder.max_len"):
        jax.eval_shape(MODEL.init, jax.random.key(0), {"x": PICTURES, "tokens": jnp.zeros((2, 12), jnp.int32)})
    with pytest.raises(UserError, match=r"sees pictures of the shape \(4, 4, 1\), and not \(2, 4, 1\)"):
        MODEL.describe(state, PICTURES[:, :2])
