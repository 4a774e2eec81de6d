"""Rewards beside what they are on the text of single answers, and parts of other runs in a run's state."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genjax
from genjax import config
from genjax.errors import UserError, of_callback
from genjax.families.alignment.rewards import Classifier, ExactMatch, Length, Python, Regex, WeightedSum
from genjax.families.alignment.rollouts import Rollouts
from genjax.families.language.encoder_tasks import Classification
from genjax.families.language.gpt_tasks import GPTForTask
from genjax.model import PartSources
from genjax.nn.transformer import Transformer
from genjax.optimizers import SGD
from genjax.training import train
from genjax.training.checkpoints import flatten

END, ROWS, SIZE = 5, 40, 4
PIECES = [b"a", b"b", b"ab", "\u00e9".encode(), b" ", b"", b""]
RANDOM = np.random.default_rng(0)


def rollouts():
    """Answers of all lengths to prompts that hold end tokens; what stands behind their ends is noise."""
    tokens = RANDOM.integers(0, 5, size=(ROWS, SIZE)).astype(np.int32)
    tokens[:10] = 0
    lengths = RANDOM.integers(1, SIZE + 1, size=ROWS)
    ended = RANDOM.random(ROWS) < 0.7
    tokens[np.flatnonzero(ended), lengths[ended] - 1] = END
    lengths = np.where(ended, lengths, SIZE)
    prompts = RANDOM.integers(0, 6, size=(ROWS, 3)).astype(np.int32)
    return Rollouts({}, *map(jnp.asarray, (prompts, RANDOM.integers(1, 4, size=ROWS), tokens, lengths, ended)))


DRAWN = rollouts()
SOURCES = PartSources(model_of=lambda run: None, token_bytes=lambda: PIECES, described=lambda run: None)


def texts(rows, lengths):
    pieces = lambda row, count: b"".join(PIECES[i] for i in np.asarray(row)[: int(count)])
    return [pieces(*r).decode(errors="replace") for r in zip(rows, lengths)]


def rewarded(reward, drawn=DRAWN, batch=None):
    reward = reward.with_parts(SOURCES)
    part, empty = reward.make_part(SOURCES), reward.empty_part()
    assert jax.tree.map(lambda a: (np.shape(a), np.asarray(a).dtype), part) == jax.tree.map(
        lambda a: (a.shape, a.dtype), empty
    )
    return np.asarray(jax.jit(reward)(part, drawn, batch or {}))


def test_a_pattern_is_matched_as_python_matches_the_text():
    pattern = "(a|ab)*( |\u00e9)?b*"
    found = rewarded(Regex(pattern=pattern))
    whole = [re.fullmatch(pattern, text) is not None for text in texts(DRAWN.tokens, DRAWN.lengths)]
    np.testing.assert_array_equal(found, np.array(whole) & np.asarray(DRAWN.ended))
    assert 3 < found.sum() < ROWS - 3


def test_a_pattern_that_no_text_matches_is_refused():
    with pytest.raises(UserError, match="no text of the vocabulary's tokens matches the pattern 'xyz'"):
        Regex(pattern="xyz").with_parts(SOURCES)


def test_an_exact_match_has_the_same_tokens_and_the_same_end():
    answers = np.array([[0, END, 3], [0, 0, END]] * (ROWS // 2), np.int32)
    mask = np.arange(3)[None] < np.array([2, 3] * (ROWS // 2))[:, None]
    found = rewarded(ExactMatch(), batch={"answer": jnp.asarray(answers), "answer_mask": jnp.asarray(mask)})
    for i in range(ROWS):
        same = DRAWN.tokens[i, : DRAWN.lengths[i]].tolist() == answers[i][mask[i]].tolist()
        assert found[i] == same
    assert found.sum() > 0
    with pytest.raises(UserError, match="these data have none"):
        ExactMatch()({}, DRAWN, {})


def test_length_falls_over_its_buffer():
    drawn = DRAWN.replace(lengths=jnp.arange(ROWS))
    np.testing.assert_allclose(
        rewarded(Length(longest=8, buffer=4), drawn)[:11], [0] * 5 + [-0.25, -0.5, -0.75, -1, -1, -1]
    )
    with pytest.raises(UserError, match="reward.buffer=9 must lie between 1 and reward.longest=8"):
        Length(longest=8, buffer=9)


def test_a_function_of_the_user_sees_texts_and_the_batch(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def count(prompts, answers, rows):\n"
        "    return [len(p) + 10 * a.count('a') + r for p, a, r in zip(prompts, answers, rows['bonus'])]\n"
        "def short(prompts, answers, rows):\n"
        "    return [1.0]\n"
        "def fails(prompts, answers, rows):\n"
        "    return [rows['absent'] for _ in answers]\n"
        "def divides(prompts, answers, rows):\n"
        "    return [float('nan') if 'a' in answer else 0.0 for answer in answers]\n"
    )
    reward = WeightedSum(first=Python(function=f"{file}:count"), second=Length(longest=4, buffer=4), weight=0.5)
    found = rewarded(reward, batch={"bonus": jnp.arange(ROWS)})
    prompts, answers = texts(DRAWN.prompts, DRAWN.prompt_lengths), texts(DRAWN.tokens, DRAWN.lengths)
    expected = [len(p) + 10 * a.count("a") + i for i, (p, a) in enumerate(zip(prompts, answers))]
    np.testing.assert_allclose(found, expected - np.asarray(DRAWN.lengths) / 8, rtol=1e-6)
    for name, words in (("none", "has no function none"), ("/no.py:f", "must be file.py:name of a function in a file")):
        with pytest.raises(UserError, match=words):
            Python(function=name if ":" in name else f"{file}:{name}").with_parts(SOURCES)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match=r"cannot be loaded: ModuleNotFoundError: .* \(.*broken.py, line 1\)"):
        Python(function=f"{tmp_path / 'broken.py'}:f").with_parts(SOURCES)
    # What the compiled program raises is JAX's own; a command prints the sentence that it ends with.
    first = next(i for i, answer in enumerate(answers) if "a" in answer)
    sentences = {
        "short": f"{file}:short returned (1,) numbers for {ROWS} answers; it must return one for each",
        "fails": f"model.reward.function={file}:fails has failed: KeyError: 'absent' ({file}, line 6)",
        "divides": f"{file}:divides returned nan for the answer {answers[first]!r} to the prompt {prompts[first]!r}; "
        "a reward must be a finite number",
    }
    for name, sentence in sentences.items():
        with pytest.raises(jax.errors.JaxRuntimeError) as raised:
            rewarded(Python(function=f"{file}:{name}"))
        assert str(of_callback(raised.value)) == sentence
    assert of_callback(RuntimeError("INTERNAL: of a library")) is None


def test_a_classifier_reads_prompt_and_answer_without_a_hole_up_to_the_last_token():
    # transformers #35352: read at the first end token, which may stand in the prompt; gpt-neox PR 1285: at the last
    # place.
    network = Transformer(num_layers=1, width=8, num_heads=2, max_length=16, init_std=0.5)
    judge = GPTForTask(vocab_size=7, network=network, task=Classification(num_classes=3), optimizer=SGD())
    state = jax.jit(judge.init)(jax.random.key(0), {"tokens": jnp.zeros((1, 2), jnp.int32)})
    rows = lambda i: [
        *DRAWN.prompts[i, : DRAWN.prompt_lengths[i]].tolist(),
        *DRAWN.tokens[i, : DRAWN.lengths[i]].tolist(),
    ]
    predict = jax.jit(lambda tokens: jax.nn.softmax(judge.predict(state, {"tokens": tokens})["classes"])[0, 2])
    found = jax.jit(Classifier(run="x", label=2, network=judge))(state.params, DRAWN, {})
    for i in range(0, ROWS, 10):
        np.testing.assert_allclose(found[i], predict(jnp.array([rows(i)])), atol=1e-5)
    odds = jax.jit(Classifier(run="x", label=2, output="log_odds", network=judge))(state.params, DRAWN, {})
    np.testing.assert_allclose(odds, np.log(found / (1 - found)), atol=1e-4)
    with pytest.raises(UserError, match="model.reward.label=3 must be the number of one of the classifier's 3 classes"):
        Classifier(run="x", label=3, network=judge)(state.params, DRAWN, {})
    with pytest.raises(UserError, match="give --model.reward.run"):
        Classifier(label=0).with_parts(SOURCES)


SHORT = {
    "training.num_steps": 4,
    "training.steps_per_dispatch": 1,
    "training.checkpoint_every": 2,
    "training.tensorboard": False,
    "training.evaluate_every": None,
    "training.mesh": "data:1",
    "training.compilation_cache": "",
    "training.num_samples": 2,
    "data.tokenizer": "characters",
    "data.batch_size": 8,
}


def judged_by(run):
    chosen = {"model.reward": "classifier", "model.reward.run": str(run), "model.reward.label": 1}
    return {**chosen, "data.answer_length": 64}


def tiny(name, **changes):
    entry = config.find_experiment(name)
    return config.apply_overrides(entry.build(), {**entry.shrunk, **SHORT, **changes})


@pytest.fixture(scope="module")
def trained_judge(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("judge")
    train(tiny("gpt_sentiment", **{"training.num_steps": 1}), workdir, name="gpt_sentiment", quiet=True)
    return workdir


def test_the_network_of_another_run_is_read_at_the_first_start_alone(trained_judge, tmp_path):
    judge, workdir = shutil.copytree(trained_judge, tmp_path / "judge"), tmp_path / "run"
    experiment = tiny("rl_sentiment", **judged_by(judge))
    ended = {path: np.asarray(leaf) for path, leaf in flatten(train(experiment, workdir, quiet=True)).items()}
    read = {path: np.asarray(leaf) for path, leaf in flatten(genjax.restore(judge).state.params).items()}
    for path, leaf in read.items():
        np.testing.assert_array_equal(ended[f"extra/reward/{path}"], leaf)

    # The run stands alone: killed after two steps, it ends bit-identical without the other run, so the same prompts
    # come and the same answers are drawn (verl #3457 and #7816, NeMo-RL PR 3599, unsloth-zoo PR 832: other ones).
    shutil.rmtree(judge)
    shutil.rmtree(workdir / "checkpoints" / "4")
    for path, leaf in flatten(train(experiment, workdir, quiet=True)).items():
        assert np.asarray(leaf).tobytes() == ended[path].tobytes(), path
    with pytest.raises(UserError, match="judge, which the model shall start from, is not a folder"):
        train(experiment, tmp_path / "other", quiet=True)


def test_a_reward_of_another_tokenizer_is_refused(trained_judge, tmp_path):
    text = (trained_judge / "tokenizer.json").read_text()
    (tmp_path / "other.json").write_text(text.replace('"a"', '"A"', 1))
    chosen = {**judged_by(trained_judge), "data.tokenizer_file": str(tmp_path / "other.json")}
    with pytest.raises(UserError, match="does not belong to the checkpoint"):
        genjax.training.resolve(tiny("rl_sentiment", **chosen))
