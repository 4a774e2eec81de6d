"""Runs and data in a bucket, against moto's S3 server: killed, evaluated, damaged, locked, on two processes."""

import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import genjax
from genjax import buckets
from genjax.errors import UserError
from genjax.training import CheckpointError, train
from genjax.training.checkpoints import Checkpoints, flatten
from tests.experiments.commands import call
from tests.training.tiny_runs import TINY, flags, started, tiny

moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
pytest.importorskip("flask_cors", reason="moto's server needs flask and flask-cors")
pytest.importorskip("s3fs", reason="s3fs is not installed")
# Its libraries warn of their own ways.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def server():
    """The address of a server with the bucket `bin`."""
    own = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    own.start()
    host, port = own.get_host_and_port()
    changes = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    buckets.filesystem("s3://bin").mkdir("bin")
    yield
    own.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """An address of one's own; no copy of an earlier test is known."""
    monkeypatch.setattr(buckets, "_mirrors", {})
    monkeypatch.setattr(buckets, "_copied", {})
    monkeypatch.setattr(buckets, "DATA_FOLDER", tmp_path / "copies")
    return f"s3://bin/{tmp_path.name}"


def again(monkeypatch) -> None:
    """Forgets the mirrors, as a new process does."""
    monkeypatch.setattr(buckets, "_mirrors", {})


def stored(bucket: str) -> set[str]:
    return set(buckets.listing(buckets.filesystem(bucket), bucket))


def assert_same(left: str | Path, right: str | Path) -> None:
    a, b = (flatten(genjax.restore(place).state) for place in (left, right))
    assert a.keys() == b.keys()
    for name in a:
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


def lines(text: str) -> list[dict]:
    rows = [json.loads(line) for line in text.splitlines()]
    return [{name: value for name, value in row.items() if name != "steps_per_second"} for row in rows]


SHORT = {**TINY, "training.mesh": "data:1", "training.log_every": 5, "training.evaluate_every": 20}


def test_a_run_in_a_bucket_is_killed_goes_on_is_evaluated_and_sampled(bucket, tmp_path, monkeypatch):
    overrides = {name.replace(".", "__"): value for name, value in SHORT.items()}
    train(tiny(**overrides), tmp_path / "local", quiet=True, name="vae_digits")
    output, files = tmp_path / "output", buckets.filesystem(bucket)
    # Killed when its first checkpoint is complete, and when there is a part of one.
    for seen in ("checkpoints/20/complete.json", "checkpoints/40/part.0.0"):
        run = started(f"{bucket}/run", *flags({**SHORT, "training.num_steps": 1_000_000}), output=output)
        while not files.exists(f"{bucket}/run/{seen}"):
            assert run.exitcode is None, output.read_text()
            time.sleep(0.02)
        run.kill()
        run.join()
    for step in Checkpoints(buckets.workdir(f"{bucket}/run"), writable=False).steps():
        if step > 40:
            # The end of the run is nearer than the killed one came.
            files.rm(f"{bucket}/run/checkpoints/{step}", recursive=True)
    again(monkeypatch)
    train(tiny(**overrides), f"{bucket}/run", quiet=True, name="vae_digits")
    assert_same(f"{bucket}/run", tmp_path / "local")
    written = files.cat_file(f"{bucket}/run/metrics.jsonl").decode()
    assert lines(written) == lines((tmp_path / "local/metrics.jsonl").read_text())
    assert {"config.json", "samples/samples_00000050.png"} <= stored(f"{bucket}/run")
    assert not {name for name in stored(f"{bucket}/run") if name.startswith("lock") or "probe" in name}
    again(monkeypatch)
    ended = call("evaluate", f"--workdir={bucket}/run", "--evaluation.num_examples=20")
    assert f"uploaded {bucket}/run/evaluation_test.json" in ended.stdout
    again(monkeypatch)
    call("sample", f"--workdir={bucket}/run", "--num_samples=4")
    assert any(name.startswith("samples/samples_00000050_seed") for name in stored(f"{bucket}/run"))
    # A run on a disk may start from it.
    overrides |= {
        "training__init_from": f"{bucket}/run",
        "training__num_steps": 1,
        "model__optimizer__learning_rate": 0.0,
    }
    taken = flatten(train(tiny(**overrides), tmp_path / "started", quiet=True).params)
    earlier = genjax.restore(tmp_path / "local").state
    for name, leaf in flatten(earlier.ema_params or earlier.params).items():
        np.testing.assert_array_equal(taken[name], leaf, err_msg=name)


def test_two_processes_write_their_own_parts_and_their_run_is_restored_on_one(bucket, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"--training.coordinator_address=localhost:{probe.getsockname()[1]}"
    # Parameters above the size that is sharded.
    wide = {**TINY, "training.num_steps": 10, "model.network.hidden_dims": (512,), "training.mesh": "fsdp:2"}
    outputs = [tmp_path / f"output_{i}" for i in range(2)]
    for place in (f"{bucket}/two", str(tmp_path / "two")):
        together = [address, "--training.num_processes=2"]
        processes = [
            started(place, *flags(wide), *together, f"--training.process_id={i}", output=output)
            for i, output in enumerate(outputs)
        ]
        for process in processes:
            process.join(timeout=300)
        assert [p.exitcode for p in processes] == [0, 0], [output.read_text() for output in outputs]
    files, step = buckets.filesystem(bucket), f"{bucket}/two/checkpoints/10"
    indices = [json.loads(files.cat_file(f"{step}/index.{i}.json")) for i in range(2)]
    sizes = [sum(np.prod(piece[2]) for piece in index["pieces"]) for index in indices]
    total = sum(np.prod(shape) for shape, _ in indices[0]["arrays"].values())
    assert sum(sizes) == total
    assert sizes[1] > 0.4 * total, sizes
    # On a disk, by orbax, the same bits; there each process has made the digests of what it wrote.
    assert_same(f"{bucket}/two", tmp_path / "two")


def test_a_checkpoint_is_restored_on_another_mesh_and_no_more_is_read_than_is_held(bucket, monkeypatch):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = np.arange(64 * 48, dtype=np.float32).reshape(64, 48)
    saved = {
        "w": jax.device_put(x, NamedSharding(mesh, P("a", "b"))),
        "b": jax.device_put(x[0], NamedSharding(mesh, P())),
        "n": np.int32(7),
        "empty": np.zeros((0, 3), np.float32),
        "half": jax.device_put(x.astype(jax.numpy.bfloat16), NamedSharding(mesh, P("b"))),
    }
    checkpoints = Checkpoints(buckets.workdir(bucket))
    checkpoints.save(3, saved)
    checkpoints.close()
    read, cat = [], checkpoints._store._files.cat_file

    def counted(path, **bounds):
        content = cat(path, **bounds)
        read.append(len(content))
        return content

    monkeypatch.setattr(checkpoints._store._files, "cat_file", counted)
    for spec in (P(), P("b", "a"), P(("a", "b")), P(None, "a")):
        place = lambda leaf, own: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=NamedSharding(mesh, own))
        like = {name: place(leaf, spec if name in ("w", "half") else P()) for name, leaf in saved.items()}
        found = checkpoints.restore(3, like)
        for name, leaf in saved.items():
            np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(leaf), err_msg=name)
            assert found[name].sharding.is_equivalent_to(like[name].sharding, np.ndim(leaf))
    read.clear()
    # Eight rows of two pieces: no other rows are read.
    pieces = checkpoints._store._index(3)[1]["w"]
    index_bytes = sum(read)
    block = checkpoints._store._block(3, pieces, ((20, 28), (0, 48)), np.dtype("float32"))
    np.testing.assert_array_equal(block, x[20:28])
    assert sum(read) - index_bytes == 8 * 48 * 4


@pytest.mark.parametrize("spoil", ["remove", "change", "unfinished"])
def test_a_damaged_checkpoint_is_left_out(spoil, bucket, monkeypatch):
    checkpoints = Checkpoints(buckets.workdir(bucket), keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {"a": np.full(5, step)}, {"nll": 1.0 / step})
    checkpoints.close()
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.metrics(3) == {"nll": 1.0 / 3}
    files, place = buckets.filesystem(bucket), f"{bucket}/checkpoints/3"
    if spoil == "remove":
        files.rm_file(f"{place}/part.0.0")
    elif spoil == "change":
        files.pipe_file(f"{place}/part.0.0", bytes(40))
    else:
        files.rm_file(f"{place}/complete.json")
    again(monkeypatch)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {"a": jax.ShapeDtypeStruct((5,), np.dtype("int64"), sharding=place)}
    reader = Checkpoints(buckets.workdir(bucket), writable=False)
    with pytest.raises(CheckpointError, match="cannot be used: .*(is missing|was changed|was not completed)"):
        reader.restore(3, like)
    later = Checkpoints(buckets.workdir(bucket))
    assert later.latest() == 2 and later.steps() == [2]
    later.close()


def test_a_directory_is_locked_while_its_owner_gives_signs_of_life(bucket, monkeypatch):
    monkeypatch.setattr(buckets, "LEASE", 1.0)
    monkeypatch.setattr(buckets, "RENEW_EVERY", 0.1)
    files, host = buckets.filesystem(bucket), socket.gethostname()
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    theirs = buckets.Lease(files, f"{bucket}/lock.json", bucket)
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    ended, lost = threading.Event(), []

    def hold():
        with theirs.held():
            ended.wait(30)
            # Lost to the run below, as the lock stood still.
            with pytest.raises(UserError, match="another run has taken"):
                theirs.check()
            lost.append(True)

    thread = threading.Thread(target=hold)
    thread.start()
    while not files.exists(f"{bucket}/lock.json"):
        time.sleep(0.02)
    with pytest.raises(UserError, match=rf"is being trained in by process {os.getpid()} on .*another --workdir"):
        # A name of another machine, whose processes cannot be asked.
        monkeypatch.setattr(buckets, "_is_dead_here", lambda held: False)
        train(tiny(), bucket, quiet=True)
    monkeypatch.setattr(buckets, "RENEW_EVERY", 1000.0)
    content = files.cat_file(f"{bucket}/lock.json")
    files.rm_file(f"{bucket}/lock.json")
    # The lock of one that died elsewhere: it does not change.
    files.pipe_file(f"{bucket}/lock.json", content.replace(b'"name": "', b'"name": "dead-'))
    began = time.monotonic()
    with buckets.Lease(files, f"{bucket}/lock.json", bucket).held():
        assert time.monotonic() - began >= 1.0
        ended.set()
        thread.join()
    assert lost
    assert not files.exists(f"{bucket}/lock.json")


def test_a_killed_owner_on_this_machine_is_not_waited_for(bucket):
    held = {"host": socket.gethostname(), "process": 2**22 - 1, "name": "killed", "count": 3}
    files = buckets.filesystem(bucket)
    files.pipe_file(f"{bucket}/lock.json", json.dumps(held).encode())
    began = time.monotonic()
    with buckets.Lease(files, f"{bucket}/lock.json", bucket).held():
        assert time.monotonic() - began < buckets.LEASE / 2


def test_what_cannot_be_is_one_sentence(server, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--workdir=s3://no-such-bucket/run cannot be written \(.*give a bucket"):
        train(tiny(), "s3://no-such-bucket/run", quiet=True)
    with pytest.raises(UserError, match="there is nothing at s3://bin/nowhere"):
        buckets.folder("s3://bin/nowhere")
    assert list(tmp_path.iterdir()) == []


def test_data_in_a_bucket_are_copied_once_and_what_changes_again(bucket, monkeypatch):
    from genjax.data.text.windows import Text

    files = buckets.filesystem(bucket)
    for i in range(30):
        files.pipe_file(f"{bucket}/texts/sub/{i}.txt", b"some words of a text, number %d; " % i * 3)
    data = Text(name="file", dir=f"{bucket}/texts", sequence_length=8, tokenizer="bytes")
    assert data.load("train").gather(np.arange(2))["tokens"].shape == (2, 9)
    copy = buckets.folder(f"{bucket}/texts")
    times = {path.name: path.stat().st_mtime_ns for path in copy.rglob("*.txt")}
    assert len(times) == 30
    files.pipe_file(f"{bucket}/texts/sub/3.txt", b"other words")
    files.rm_file(f"{bucket}/texts/sub/4.txt")
    monkeypatch.setattr(buckets, "_copied", {})
    buckets.folder(f"{bucket}/texts")
    later = {path.name: path.stat().st_mtime_ns for path in copy.rglob("*.txt")}
    assert (copy / "sub/3.txt").read_text() == "other words"
    assert {name for name in times if later.get(name) != times[name]} == {"3.txt", "4.txt"}
    assert buckets.folder(f"{bucket}/texts/sub/3.txt").read_text() == "other words"
    # Of prepared sets the asked one alone.
    for name in ("one/1.0.0/a", "two/1.0.0/b"):
        files.pipe_file(f"{bucket}/sets/{name}", b"x")
    root = buckets.folder(f"{bucket}/sets", only="two")
    assert [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()] == ["two/1.0.0/b"]


def test_a_mirror_holds_the_small_files_of_a_run_and_nothing_of_a_folder_of_runs(bucket, monkeypatch):
    files = buckets.filesystem(bucket)
    for name in ("config.json", "samples/a.png", "checkpoints/1/part.0.0", "tensorboard/events", "lock.json"):
        files.pipe_file(f"{bucket}/runs/one/{name}", b"x")
    assert not [path for path in buckets.workdir(f"{bucket}/runs").rglob("*") if path.name != ".held"]
    folder = buckets.workdir(f"{bucket}/runs/one")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {".held", "config.json", "samples/a.png"}
    # What was read is not written again; what is new is, but for what is not finished.
    (folder / "samples/b.png").write_bytes(b"y")
    (folder / "half.new").write_bytes(b"z")
    assert buckets.push_all() == [f"{bucket}/runs/one/samples/b.png"] and buckets.push_all() == []


def test_mirrors_of_killed_processes_are_removed(bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "genjax-bucket-killed"
    left.mkdir()
    (left / ".held").touch()
    mine = buckets.workdir(f"{bucket}/run")
    again(monkeypatch)
    other = buckets.workdir(f"{bucket}/other")
    assert not left.exists() and mine.exists() and other.exists()
