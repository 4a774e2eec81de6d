"""A run that is stopped, killed or damaged goes on from a sound checkpoint, and ends as one that was not."""

import dataclasses
import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genjax
from genjax import config
from genjax.config import ConfigError
from genjax.errors import UserError
from genjax.families.vae.vae import VAE
from genjax.model import TrainState
from genjax.training import CheckpointError, Interrupted, NonFiniteError, start, train
from genjax.training.checkpoints import Checkpoints, flatten
from genjax.training.engine import Engine
from genjax.training.local_store import LocalStore, is_complete
from genjax.training.local_store import damage as damage_of
from genjax.training.records import Progress, Records, read_lines
from genjax.training.warm_start import warm_start
from genjax.training.workdir import locked
from tests.training.tiny_runs import TINY, command, environment, flags, started, tiny

LONG = {**TINY, "training.num_steps": 600, "training.checkpoint_every": 20, "training.log_every": 20}


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """The whole state at the end of a run."""
    return {name: np.asarray(a) for name, a in flatten(genjax.restore(workdir).state).items()}


def assert_same(left: Path, right: Path) -> None:
    a, b = arrays(left), arrays(right)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with checkpoints at 20, 40 and 50, on one device; not to be changed."""
    workdir = tmp_path_factory.mktemp("finished")
    train(tiny(training__mesh="data:1"), workdir, quiet=True)
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def go_on(workdir: Path) -> None:
    train(tiny(training__mesh="data:1"), workdir, quiet=True)


@pytest.mark.slow
def test_killed_four_times_a_run_ends_bit_identical(tmp_path):
    output = tmp_path / "output"
    undisturbed = started(tmp_path / "undisturbed", *flags(LONG), output=output)
    began = time.monotonic()
    undisturbed.join(timeout=600)
    assert undisturbed.exitcode == 0, output.read_text()
    duration = time.monotonic() - began
    moments, kills = random.Random(0), 0
    while kills < 4:
        process = started(tmp_path / "killed", *flags(LONG), output=output)
        # From the start to beyond the end of what is left.
        process.join(timeout=moments.uniform(0.1, 1.0) * duration)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            continue
        assert process.exitcode == 0, output.read_text()
        # It came to its end before four kills: take the end away, and go on.
        for path in sorted((tmp_path / "killed" / "checkpoints").iterdir())[1:]:
            shutil.rmtree(path)
    process = started(tmp_path / "killed", *flags(LONG), output=output)
    process.join(timeout=600)
    assert process.exitcode == 0, output.read_text()
    assert_same(tmp_path / "undisturbed", tmp_path / "killed")


def test_sigint_saves_and_the_same_command_goes_on(tmp_path):
    overrides = {**LONG, "training.num_steps": 100000, "training.checkpoint_every": 100000}
    output = tmp_path / "output"
    process = started(tmp_path / "run", *flags(overrides), output=output)
    while process.exitcode is None and not (output.exists() and "\nstep 100/" in output.read_text()):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=600)
    printed = output.read_text()
    assert process.exitcode == 130, printed
    assert "stopped by SIGINT at step" in printed and "Traceback" not in printed
    assert Checkpoints(tmp_path / "run", writable=False).latest() >= 100


RATED = {
    "training__mesh": "data:1",
    "training__num_steps": 10,
    "training__log_every": 5,
    "training__evaluate_every": 5,
    "training__sample_every": 5,
    "training__best_metric": "kl",
}


def _traces(workdir: Path) -> tuple:
    """What a run wrote: its lines without times, its pictures, and its checkpoints with what they were rated by."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [{name: value for name, value in row.items() if name != "steps_per_second"} for row in rows]
    checkpoints = Checkpoints(workdir, writable=False)
    return lines, sorted(os.listdir(workdir / "samples")), {s: checkpoints.metrics(s) for s in checkpoints.steps()}


def test_what_was_due_where_a_run_was_stopped_is_made_up_for(tmp_path, monkeypatch):
    train(tiny(**RATED), tmp_path / "undisturbed", quiet=True)
    advance, disturbed = Progress.advance, tmp_path / "disturbed"
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", lambda *a: (advance(*a), os.kill(os.getpid(), signal.SIGTERM)))
        for step in (5, 10):
            with pytest.raises(Interrupted, match=f"stopped by SIGTERM at step {step}") as stopped:
                train(tiny(**RATED), disturbed, quiet=True)
            assert stopped.value.signal == signal.SIGTERM
            assert Checkpoints(disturbed, writable=False).metrics(step) is None
    train(tiny(**RATED), disturbed, quiet=True)
    assert _traces(disturbed) == _traces(tmp_path / "undisturbed")


def test_readers_of_batches_that_a_signal_ended_too_do_not_take_the_state_with_them(tmp_path, monkeypatch):
    inputs = Engine.inputs

    def ended(engine, boundaries):
        yield next(inputs(engine, boundaries))
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("Worker process was terminated unexpectedly with exit code 1")

    monkeypatch.setattr(Engine, "inputs", ended)
    with pytest.raises(Interrupted, match="stopped by SIGINT at step 5"):
        train(tiny(**RATED), tmp_path, quiet=True)
    assert Checkpoints(tmp_path, writable=False).latest() == 5


def test_a_directory_in_which_a_run_trains_is_refused(copy):
    with (
        locked(copy),
        pytest.raises(ConfigError, match=rf"trained in by process {os.getpid()} on .*another --workdir"),
    ):
        go_on(copy)
    go_on(copy)


def test_a_path_that_orbax_takes_for_a_pattern_is_refused_and_no_such_checkpoint_is_called_complete(tmp_path):
    with pytest.raises(ConfigError, match=r"takes the characters \* \? \[ of a path for a pattern"):
        train(tiny(), tmp_path / "lr=[1e-3]", quiet=True)
    checkpoints = Checkpoints(tmp_path / "lr=[1e-3]")
    checkpoints.save(1, {"a": np.ones(3)})
    with pytest.raises(CheckpointError, match="wrote no arrays"):
        checkpoints.close()
    assert not is_complete(checkpoints.directory / "1")


def test_only_the_bytes_of_the_last_sound_checkpoint_are_read_at_a_start_and_once(copy, monkeypatch):
    read = Mock(side_effect=damage_of)
    monkeypatch.setattr("genjax.training.local_store.damage", read)
    _change_a_byte(copy / "checkpoints" / "50")
    checkpoints = Checkpoints(copy)
    assert checkpoints.latest() == 40
    checkpoints.close()
    assert [call.args[0].name for call in read.call_args_list] == ["50", "40"]


def test_a_run_at_its_end_has_nothing_left_to_do(copy, finished):
    go_on(copy)
    assert_same(copy, finished)


def _remove_file(checkpoint: Path) -> None:
    next(p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.stat().st_size > 100).unlink()


def _change_a_byte(checkpoint: Path) -> None:
    largest = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))


def _remove_digests(checkpoint: Path) -> None:
    (checkpoint / "digests.json").unlink()


def _empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def test_of_several_readers_each_reads_its_part_of_a_checkpoint_and_one_finds_the_damage(copy):
    checkpoint = copy / "checkpoints" / "50"
    assert [damage_of(checkpoint, part, 3) for part in range(3)] == [None] * 3
    _change_a_byte(checkpoint)
    found = [damage_of(checkpoint, part, 3) for part in range(3)]
    assert sum(reason is not None for reason in found) == 1 and damage_of(checkpoint) in found


@pytest.mark.parametrize("spoil", [_remove_file, _change_a_byte, _remove_digests, _empty])
def test_a_damaged_checkpoint_is_left_out_and_the_run_ends_the_same(spoil, copy, finished):
    spoil(copy / "checkpoints" / "50")
    assert Checkpoints(copy, writable=False).latest() == 40
    with pytest.raises(CheckpointError, match="cannot be used|there is no checkpoint"):
        genjax.restore(copy, step=50)
    assert genjax.restore(copy).step == 40
    go_on(copy)
    assert_same(copy, finished)


def test_nothing_is_used_where_all_checkpoints_are_damaged(copy):
    for path in (copy / "checkpoints").iterdir():
        if path.name.isdigit():
            _change_a_byte(path)
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be used"):
        genjax.restore(copy)


def test_a_checkpoint_of_another_model_is_refused(copy):
    with pytest.raises(ConfigError, match=r"differs in model.latent_dim \(4, now 8\): give another"):
        train(tiny(model__latent_dim=8, training__mesh="data:1"), copy, quiet=True)
    other = config.find_experiment("edm_digits").build()
    with pytest.raises(
        ConfigError, match=r"holds a run of the experiment experiment, and this one is edm_digits: give an"
    ):
        train(other, copy, name="edm_digits", quiet=True)
    with pytest.raises(CheckpointError, match=r"is of another model: params/.* has shape"):
        genjax.restore(copy, overrides={"model.latent_dim": 8})


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path):
    experiment = tiny(
        training__mesh="data:1",
        training__checkpoint_every=20,
        training__evaluate_every=5,
        training__keep_checkpoints=2,
        # The KL falls at first and rises then, so that the best is neither the last nor the first.
        training__best_metric="kl",
        training__best_mode="min",
    )
    train(experiment, tmp_path, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = {row["step"]: row["kl"] for row in rows if row["kind"] == "validation"}
    best = min(values, key=values.get)
    assert best not in (20, 40)
    assert Checkpoints(tmp_path, writable=False).steps() == sorted({best, 45, 50})
    assert genjax.restore(tmp_path, step="best").step == best
    unrated = {"training__best_metric": None, "training__evaluate_every": None, "training__num_steps": 80}
    changes = {name.replace("__", "."): value for name, value in unrated.items()}
    train(config.apply_overrides(experiment, changes), tmp_path, quiet=True)
    assert Checkpoints(tmp_path, writable=False).steps() == [best, 60, 80]
    assert genjax.restore(tmp_path, step="best").step == best


def test_a_metric_that_is_nan_is_not_the_best_and_the_one_before_the_last_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, best_metric="nll")
    for step, nll in enumerate([3.0, 1.0, float("nan"), 2.0, 2.5, 2.5]):
        checkpoints.save(step, {"a": np.ones(3)}, {"nll": nll})
    checkpoints.close()
    assert checkpoints.steps() == [1, 4, 5]


def test_parameters_of_another_run_are_taken_whole_or_by_prefix(finished, tmp_path):
    source = genjax.restore(finished).state.params
    whole = tiny(
        training__mesh="data:1",
        training__num_steps=1,
        training__init_from=str(finished),
        model__optimizer__learning_rate=0.0,
    )
    params = train(whole, tmp_path / "whole", quiet=True).params
    jax.tree.map(np.testing.assert_array_equal, params, source)
    part = tiny(
        training__mesh="data:1",
        training__num_steps=1,
        training__init_from=str(finished),
        training__init_prefix=("encoder",),
        training__seed=7,
        model__optimizer__learning_rate=0.0,
    )
    params = train(part, tmp_path / "part", quiet=True).params
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], source["encoder"])
    kernel = lambda p: p["decoder"]["_MLPDecoder_0"]["MLP_0"]["Dense_0"]["kernel"]
    assert not np.array_equal(kernel(params), kernel(source))
    with pytest.raises(ConfigError, match="no parameter is below training.init_prefix=encodr"):
        wrong = tiny(training__init_from=str(finished), training__init_prefix=("encodr",))
        train(wrong, tmp_path / "wrong", quiet=True)


def test_a_warm_start_reads_the_arrays_that_it_takes_and_no_others(finished, monkeypatch):
    state = genjax.restore(finished).state
    read = Mock(wraps=LocalStore.read)
    monkeypatch.setattr(LocalStore, "read", lambda store, step, like: read(store, step, like))
    warm_start(state.params, str(finished), ("encoder",))
    (call,) = read.call_args_list
    kept = "params" if state.ema_params is None else "ema_params"
    assert sorted(call.args[2]) == sorted(f"{kept}/{n}" for n in flatten(state.params) if n.startswith("encoder/"))


def test_what_is_learned_beside_the_parameters_is_taken_with_them(tmp_path):
    from genjax.training import resolve

    entry = config.find_experiment("vq_vae_digits")
    changes = {**entry.shrunk, "training.mesh": "data:1", "training.tensorboard": False}
    experiment = resolve(config.apply_overrides(entry.build(), changes))
    engine = Engine(experiment)
    earlier = engine.init()
    earlier = earlier.replace(learned={**earlier.learned, "codebook": earlier.learned["codebook"] + 1.0})
    checkpoints = Checkpoints(tmp_path / "earlier")
    checkpoints.save(0, earlier)
    checkpoints.close()
    later = config.override(experiment, "training.init_from", str(tmp_path / "earlier"))
    (tmp_path / "later").mkdir()
    own = Checkpoints(tmp_path / "later")
    state = start.first_state(Engine(later), own)
    own.close()
    for name, leaf in earlier.learned.items():
        np.testing.assert_array_equal(state.learned[name], leaf)


def test_what_is_learned_is_found_where_earlier_versions_kept_it(tmp_path):
    counts, chains = jnp.arange(3.0), jnp.arange(4.0)
    state = TrainState.create({"kernel": jnp.ones(2)}, extra={"chains": chains}, learned={"counts": {"batch": counts}})
    earlier = state.replace(learned={}, extra={"chains": chains, "counts": {"batch": counts}})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, earlier)
    checkpoints.wait()
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(0, like), state)
    taken = warm_start({"counts": {"batch": jnp.zeros(3)}}, str(tmp_path), ())
    np.testing.assert_array_equal(taken["counts"]["batch"], counts)
    # What this version does not know is no part of the model, as before.
    with pytest.raises(CheckpointError, match="extra/chains is not part of the model"):
        checkpoints.restore(0, like.replace(extra={}))
    checkpoints.close()


def test_an_evaluation_that_cannot_be_is_told_before_the_first_step_or_after_its_checkpoint(tmp_path):
    evaluated = {"training__mesh": "data:1", "training__num_steps": 10, "training__evaluate_every": 5}
    with pytest.raises(UserError, match="has no split 'dev'"):
        train(tiny(**evaluated, evaluation__validation_split="dev"), tmp_path / "split", quiet=True)
    assert not (tmp_path / "split" / "metrics.jsonl").exists()
    with pytest.raises(ConfigError, match="best_metric=kl rates checkpoints by evaluations, and there are none"):
        train(tiny(training__best_metric="kl"), tmp_path / "none", quiet=True)
    with pytest.raises(ConfigError, match="best_metric=elb is not among"):
        train(tiny(**evaluated, training__best_metric="elb"), tmp_path / "metric", quiet=True)
    assert Checkpoints(tmp_path / "metric", writable=False).steps() == [5]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_way_back(tmp_path):
    jax.config.update("jax_debug_nans", False)
    try:
        train(tiny(training__mesh="data:1", training__num_steps=20), tmp_path, quiet=True)
        with pytest.raises(NonFiniteError, match=r"the loss became .* at step \d+; .*the checkpoint of step 20 in"):
            exploding = tiny(
                training__mesh="data:1", training__num_steps=2000, training__seed=0, training__checkpoint_every=2000
            )
            # The same configuration but for the learning rate would be refused, so the state is broken instead.
            _train_from_broken(exploding, tmp_path)
    finally:
        jax.config.update("jax_debug_nans", True)


class Spoilt(VAE):
    def loss(self, params, batch, key, step):
        value, metrics = super().loss(params, batch, key, step)
        nothing = 0.0 * jax.tree.leaves(params)[0].sum()
        # 0 with a gradient that is NaN, at step 20.
        return value + jnp.sqrt(jnp.where(step == 19, nothing**2, 1.0)) - 1.0, metrics


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    experiment = tiny(training__mesh="data:1", training__num_steps=20, training__checkpoint_every=10)
    fields = {f.name: getattr(experiment.model, f.name) for f in dataclasses.fields(experiment.model)}
    match = r"the gradient_norm became nan at step 20; .*the checkpoint of step 10 in .* is sound"
    with jax.debug_nans(False), pytest.raises(NonFiniteError, match=match):
        train(dataclasses.replace(experiment, model=Spoilt(**fields)), tmp_path, quiet=True)
    assert Checkpoints(tmp_path, writable=False).steps() == [10]


def test_a_line_of_skipped_updates_alone_has_no_loss(tmp_path):
    experiment = tiny(
        training__mesh="data:1", training__num_steps=20, training__log_every=1, model__optimizer__skip_nonfinite=True
    )
    fields = {f.name: getattr(experiment.model, f.name) for f in dataclasses.fields(experiment.model)}
    with jax.debug_nans(False):
        train(dataclasses.replace(experiment, model=Spoilt(**fields)), tmp_path, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0.0] * 19 + [1.0]
    # JSON has no NaN.
    assert [line["loss"] is None for line in lines] == [False] * 19 + [True]
    assert np.isnan(read_lines(tmp_path)[-1]["loss"])


class NeverFinite(VAE):
    def loss(self, params, batch, key, step):
        value, metrics = super().loss(params, batch, key, step)
        return value * jnp.nan, metrics


def test_a_run_whose_updates_are_all_skipped_says_why_and_does_not_finish(tmp_path):
    experiment = tiny(training__mesh="data:1", training__num_steps=10, model__optimizer__skip_nonfinite=True)
    fields = {f.name: getattr(experiment.model, f.name) for f in dataclasses.fields(experiment.model)}
    match = r"the last 10 updates were all skipped, up to step 10, .* loss nan .*data.preprocessing"
    with jax.debug_nans(False), pytest.raises(NonFiniteError, match=match):
        train(dataclasses.replace(experiment, model=NeverFinite(**fields)), tmp_path, quiet=True)


def test_a_model_that_can_diagnose_names_the_layer(tmp_path):
    changes = {
        **config.find_experiment("real_nvp_two_moons").shrunk,
        "model.optimizer.learning_rate": 1e30,
        "model.optimizer.clip_norm": None,
        "training.num_steps": 4,
        "training.steps_per_dispatch": 1,
        "training.mesh": "data:1",
    }
    exploding = config.apply_overrides(config.find_experiment("real_nvp_two_moons").build(), changes)
    with jax.debug_nans(False), pytest.raises(NonFiniteError, match=r"of layer [\w/]+ is not finite for \d+ of 32"):
        train(exploding, tmp_path, quiet=True)


class Doubtful(VAE):
    def warnings(self, metrics):
        return [f"the loss is only {metrics['loss']:.1f}"]


def test_warnings_of_a_model_are_shown_beside_the_metrics(tmp_path, capsys):
    experiment = tiny(training__mesh="data:1", training__num_steps=20, training__log_every=10)
    fields = {f.name: getattr(experiment.model, f.name) for f in dataclasses.fields(experiment.model)}
    train(dataclasses.replace(experiment, model=Doubtful(**fields)), tmp_path)
    assert len(re.findall(r"step [12]0: warning: the loss is only \d+", capsys.readouterr().out)) == 2


def _train_from_broken(experiment, workdir):
    first = start.first_state

    def broken(*arguments):
        state = first(*arguments)
        return state.replace(params=jax.tree.map(lambda a: a * np.float32(np.inf), state.params))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "first_state", broken)
        train(experiment, workdir, quiet=True)


def test_a_full_disk_that_the_metrics_meet_ends_in_one_sentence_and_loses_none_of_them(copy, monkeypatch):
    metrics = (copy / "metrics.jsonl").read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            Records(copy, 50, tensorboard=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (copy / "metrics.jsonl").read_text() == metrics
    close = Records.close

    def fail(records, *unused):
        close(records)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Records, "write", fail)
    monkeypatch.setattr(Records, "close", fail)
    with pytest.raises(
        ConfigError, match="could not be written .No space left on device.; the checkpoints are untouched"
    ):
        train(tiny(training__mesh="data:1", training__num_steps=60), copy, quiet=True)
    assert Checkpoints(copy, writable=False).latest() == 50


def test_a_full_disk_ends_in_one_sentence_and_keeps_what_was_saved(copy, finished):
    for step in (40, 50):
        shutil.rmtree(copy / "checkpoints" / str(step))
    overrides = {**TINY, "training.mesh": "data:1"}
    arguments = ["--experiment=vae_digits", f"--workdir={copy}", *flags(overrides)]
    # No file may grow beyond 4 KiB: writing fails as on a full disk.
    limited = f"ulimit -f 8; exec {' '.join(command('train', *arguments))}"
    result = subprocess.run(
        ["bash", "-c", limited], env=environment(), capture_output=True, text=True, timeout=120, cwd=os.getcwd()
    )
    output = result.stdout + result.stderr
    assert result.returncode == 1, output
    assert "Traceback" not in output
    assert "could not be written" in output
    assert Checkpoints(copy, writable=False).latest() == 20
    go_on(copy)
    assert_same(copy, finished)
