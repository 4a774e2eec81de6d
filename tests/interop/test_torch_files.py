"""Files of torch.save, and the Inception network that is read from one, beside torch itself."""

import pickle

import numpy as np
import pytest

from genjax.interop.inception import inception_params
from genjax.interop.safetensors import CheckpointFileError
from genjax.interop.torch_files import read_torch_file

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_those_that_torch_saved(tmp_path, zipped):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    shared = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    saved = {**module.state_dict(), "turned": shared.T[1:], "part": shared[2], "whole": torch.tensor([1, 2])}
    state = module.state_dict()
    state.update(saved)
    torch.save(state, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    got = read_torch_file(tmp_path / "file.pth")
    assert set(got) == set(saved)
    for name, tensor in saved.items():
        np.testing.assert_array_equal(got[name], tensor.numpy())
        assert got[name].dtype == tensor.numpy().dtype


class Malicious:
    def __reduce__(self):
        return print, ("this must never run",)


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    torch.save({"x": Malicious()}, tmp_path / "zip.pth")
    torch.save({"x": Malicious()}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Malicious()))
    for name in ("zip", "legacy", "pickle"):
        with pytest.raises(CheckpointFileError, match="print, which is not on the list"):
            read_torch_file(tmp_path / f"{name}.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointFileError, match="text.pth is not a file of tensors"):
        read_torch_file(tmp_path / "text.pth")
    assert "never" not in capsys.readouterr().out


def random_inception_weights():
    """A state_dict in the layout of pytorch-fid, drawn at random, with activations that keep their scale."""
    import jax
    import jax.numpy as jnp
    from flax import traverse_util

    from genjax.evaluation.inception import InceptionV3

    shapes = jax.eval_shape(lambda: InceptionV3().init(jax.random.key(0), jnp.zeros((1, 75, 75, 3))))["params"]
    rng = np.random.default_rng(0)
    state = {}
    for names, leaf in traverse_util.flatten_dict(shapes).items():
        layer = ".".join(names[:-2])
        if names == ("fc", "kernel"):
            state["fc.weight"] = 0.1 * rng.normal(size=leaf.shape[::-1])
            state["fc.bias"] = np.zeros(leaf.shape[1])
        elif names[-1] == "kernel":
            height, width, inputs, outputs = leaf.shape
            scale = np.sqrt(2.0 / (height * width * inputs))
            state[f"{layer}.conv.weight"] = scale * rng.normal(size=(outputs, inputs, height, width))
            state[f"{layer}.bn.weight"] = rng.uniform(0.9, 1.1, outputs)
            state[f"{layer}.bn.bias"] = 0.1 * rng.normal(size=outputs)
            state[f"{layer}.bn.running_mean"] = 0.1 * rng.normal(size=outputs)
            state[f"{layer}.bn.running_var"] = rng.uniform(0.9, 1.1, outputs)
            state[f"{layer}.bn.num_batches_tracked"] = np.array(1)
    return {name: torch.tensor(a, dtype=torch.float32 if a.ndim else torch.int64) for name, a in state.items()}


def torch_inception(w, x):
    """Features and logits of the released network, written with torch's functions."""
    f = torch.nn.functional

    def conv(x, name, padding=0, stride=1):
        x = f.conv2d(x, w[f"{name}.conv.weight"], stride=stride, padding=padding)
        bn = [w[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return f.relu(f.batch_norm(x, *bn, eps=1e-3))

    def average(x):
        return f.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def chain(x, name, *layers):
        for i, layer in enumerate(layers, 1):
            x = conv(x, f"{name}_{i}", *layer)
        return x

    x = conv(x, "Conv2d_1a_3x3", 0, 2)
    x = conv(conv(x, "Conv2d_2a_3x3"), "Conv2d_2b_3x3", 1)
    x = conv(conv(f.max_pool2d(x, 3, 2), "Conv2d_3b_1x1"), "Conv2d_4a_3x3")
    x = f.max_pool2d(x, 3, 2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        five = chain(x, f"{name}.branch5x5", (), (2,))
        double = chain(x, f"{name}.branch3x3dbl", (), (1,), (1,))
        pool = conv(average(x), f"{name}.branch_pool")
        x = torch.cat([conv(x, f"{name}.branch1x1"), five, double, pool], 1)
    double = chain(x, "Mixed_6a.branch3x3dbl", (), (1,), (0, 2))
    x = torch.cat([conv(x, "Mixed_6a.branch3x3", 0, 2), double, f.max_pool2d(x, 3, 2)], 1)
    row, column = ((0, 3),), ((3, 0),)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        seven = chain(x, f"{name}.branch7x7", (), row, column)
        double = chain(x, f"{name}.branch7x7dbl", (), column, row, column, row)
        x = torch.cat([conv(x, f"{name}.branch1x1"), seven, double, conv(average(x), f"{name}.branch_pool")], 1)
    three = chain(x, "Mixed_7a.branch3x3", (), (0, 2))
    seven = chain(x, "Mixed_7a.branch7x7x3", (), row, column, (0, 2))
    x = torch.cat([three, seven, f.max_pool2d(x, 3, 2)], 1)
    for name in ("Mixed_7b", "Mixed_7c"):
        three = conv(x, f"{name}.branch3x3_1")
        double = chain(x, f"{name}.branch3x3dbl", (), (1,))
        pool = average(x) if name == "Mixed_7b" else f.max_pool2d(x, 3, 1, 1)
        parts = [conv(x, f"{name}.branch1x1")]
        parts += [conv(three, f"{name}.branch3x3_2a", (0, 1)), conv(three, f"{name}.branch3x3_2b", (1, 0))]
        parts += [conv(double, f"{name}.branch3x3dbl_3a", (0, 1)), conv(double, f"{name}.branch3x3dbl_3b", (1, 0))]
        x = torch.cat([*parts, conv(pool, f"{name}.branch_pool")], 1)
    features = x.mean((2, 3))
    return features, features @ w["fc.weight"].T


def test_inception_gives_what_the_released_architecture_gives(tmp_path):
    import jax

    from genjax.evaluation.inception import InceptionV3, prepare

    weights = random_inception_weights()
    torch.save(weights, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    params = inception_params(tmp_path / "weights.pth")
    x = np.random.default_rng(1).random((2, 40, 32, 3)).astype(np.float32)
    resized = np.asarray(prepare(x, "pytorch", size=85))
    with torch.no_grad():
        pictures = torch.tensor(x).permute(0, 3, 1, 2)
        pictures = 2 * torch.nn.functional.interpolate(pictures, (85, 85), mode="bilinear", align_corners=False) - 1
        np.testing.assert_allclose(resized, pictures.permute(0, 2, 3, 1).numpy(), atol=1e-5)
        expected = [part.numpy() for part in torch_inception(weights, pictures)]
    got = jax.jit(InceptionV3().apply)({"params": params}, resized)
    for ours, theirs in zip(got, expected):
        assert theirs.std() > 0.01
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


def test_a_file_of_another_layout_is_one_sentence(tmp_path):
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(CheckpointFileError, match="another layout than .*: no tensor Conv2d_1a_3x3.conv.weight"):
        inception_params(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", **{"Conv2d_1a_3x3.conv.weight": np.zeros((32, 1, 3, 3))})
    with pytest.raises(CheckpointFileError, match="Conv2d_1a_3x3.conv.weight has the shape .*32, 1, 3, 3.*, not "):
        inception_params(tmp_path / "other.npz")
    with pytest.raises(CheckpointFileError, match="there is no file"):
        inception_params(tmp_path / "none.pth")


def test_resizing_as_tensorflow_takes_every_second_pixel_to_halve():
    from genjax.evaluation.inception import prepare

    x = np.random.default_rng(0).random((1, 8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(prepare(x, size=4)[0, ..., 2], 2 * x[0, ::2, ::2, 0] - 1, atol=1e-6)
    with pytest.raises(ValueError, match=r"wants pictures \[B, H, W, 1 or 3\]"):
        prepare(x[..., 0])
