"""Answers of a policy beside answers of what it started from."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config
from genjax.config import ConfigError
from genjax.families.alignment.rloo import RLOO
from genjax.tools import alignment
from tests.experiments.commands import call
from tests.tools.untrained import untrained


def test_the_optimum_is_that_of_the_tilted_distribution():
    for p, advantage in ((0.5, 2.0), (0.2, 1.0), (0.9, -0.5)):
        q, kl = alignment.optimum(p, advantage)
        tilted = np.array([p * math.exp(advantage), 1 - p])
        tilted /= tilted.sum()
        np.testing.assert_allclose(q, tilted[0], rtol=1e-12)
        np.testing.assert_allclose(kl, (tilted * np.log(tilted / np.array([p, 1 - p]))).sum(), rtol=1e-12)
    # The figures of half good reviews with the reward 1 and beta .5.
    assert round(alignment.optimum(0.5, 2.0)[0], 3) == 0.881


def test_a_policy_is_compared_with_its_reference(tmp_path, monkeypatch):
    run = untrained("dpo_sentiment", tmp_path / "run")
    same = alignment.compare(run, alignment.Options(num_answers=30, num_shown=2))
    assert same.kl == (0.0, 0.0) and len(same.after) == 2 and same.good_before is None
    # A policy that prefers one token: the estimate is the mean of log policy - log reference of its answers.
    pushed = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), run.state.params)
    state = run.state.replace(params=pushed, step=jnp.asarray(1))
    run = type(run)(run.name, run.workdir, run.experiment, state, run.engine)
    monkeypatch.setattr(type(run.experiment.data), "judged", lambda self, text: len(text) % 2 == 0)
    other = alignment.compare(run, alignment.Options(num_answers=30, reward=2.0))
    assert other.kl[0] > 0 and other.best_good == alignment.optimum(other.good_before[0], 4.0)[0]
    ended = call("alignment", f"--workdir={tmp_path / 'run'}", "--num_answers=4", "--training.mesh=data:1")
    assert ended.returncode == 0, ended.stderr
    assert "KL from the start: 0.0000 nats" in ended.stdout and (tmp_path / "run" / "alignment.json").is_file()
    assert (tmp_path / "run" / "alignment.txt").read_text().count("\n  ") == 8


def test_answers_are_drawn_and_scored_at_the_temperature_of_policy_optimisation(tmp_path):
    def compared(name, folder):
        changes = {"model.policy.sampling.temperature": 1000.0}
        run = untrained(name, tmp_path / folder, {**config.find_experiment(name).shrunk, **changes})
        pushed = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), run.state.params)
        run = dataclasses.replace(run, state=run.state.replace(params=pushed, step=jnp.asarray(1)))
        return alignment.compare(run, alignment.Options(num_answers=30, num_shown=0)).kl[0]

    # So hot, all policies draw tokens uniformly.  Preferences compare the networks themselves.
    assert abs(compared("rl_sentiment", "rl")) < 0.01 < 0.1 < compared("dpo_sentiment", "dpo")


def test_low_rank_updates_without_a_penalty_are_compared_with_the_network_of_the_run_that_they_start_from(tmp_path):
    start = config.find_experiment("gpt_reviews").shrunk
    source = untrained("gpt_reviews", tmp_path / "start", start)
    source.experiment.data.save(source.workdir)
    changes = {"model.beta": 0.0, "model.policy.lora": "lora", "training.init_from": str(source.workdir)}
    run = untrained("rl_sentiment", tmp_path / "run", {**config.find_experiment("rl_sentiment").shrunk, **changes})
    assert "reference" not in run.state.extra
    pushed = lambda lora: jax.tree.map(lambda a: a + jax.random.normal(jax.random.key(a.size), a.shape), lora)
    own = {**source.state.params, "lora": run.state.params["lora"]}
    for params, moves in ((own, False), ({**own, "lora": pushed(own["lora"])}, True)):
        moved = dataclasses.replace(run, state=run.state.replace(params=params))
        found = alignment.compare(moved, alignment.Options(num_answers=30, num_shown=0))
        assert (found.kl == (0.0, 0.0)) == (not moves)


def test_the_way_of_a_policy_is_drawn_beside_the_frontier(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(alignment, "plot_frontier", lambda *arguments: drawn.append(arguments))
    run = SimpleNamespace(workdir=tmp_path, model=RLOO())
    found = alignment.Comparison([], [], (0.1, 0.0), good_before=(0.4, 0.01))
    assert alignment.draw(run, found) is None
    lines = [{"step": 1, "kind": "train", "reward": 0.5, "kl": 0.1}, {"step": 1, "kind": "validation", "reward": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert alignment.draw(run, found) == tmp_path / "reward_kl.png"
    ((ways, best_reward, best_kl, _),) = drawn
    assert ways == [("RLOO", [0.5], [0.1])]
    # No policy of good and other answers has more reward at a KL than its frontier.
    for q in (0.5, 0.7, 0.9):
        own = q * math.log(q / 0.4) + (1 - q) * math.log((1 - q) / 0.6)
        assert q == pytest.approx(np.interp(own, best_kl, best_reward), abs=1e-3)
    assert alignment.draw(run, dataclasses.replace(found, good_before=None)) is None
    # Further runs, each by its method.
    other = untrained("ppo_sentiment", tmp_path / "other").workdir
    with pytest.raises(ConfigError, match="other has recorded no reward and KL; --beside takes runs of policy"):
        alignment.draw(run, found, [str(other)])
    (other / "metrics.jsonl").write_text(json.dumps({**lines[0], "reward": 0.6}) + "\n")
    alignment.draw(run, found, [str(other)])
    assert drawn[-1][0] == [("RLOO", [0.5], [0.1]), ("PPO", [0.6], [0.1])]
    monkeypatch.undo()
    assert alignment.draw(run, found, [str(other)]).stat().st_size > 0


def test_runs_without_a_start_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="keeps no reference and did not start from a run"):
        alignment.compare(untrained("orpo_sentiment", tmp_path / "orpo"))
    with pytest.raises(ConfigError, match="continues no text"):
        alignment.compare(untrained("reward_sentiment", tmp_path / "reward"))
