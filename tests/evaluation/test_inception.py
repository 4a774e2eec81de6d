"""The Inception network of the Frechet distance beside the released architecture, written out for NumPy and for
torch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from genjax.evaluation.inception import InceptionV3, interpolation_matrix, prepare
from genjax.interop.inception import inception_params
from genjax.interop.safetensors import CheckpointFileError


def random_weights():
    """Tensors in the layout of pytorch-fid, drawn at random, with activations that keep their scale."""
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
    return {name: a.astype(np.float32 if a.ndim else np.int64) for name, a in state.items()}


class NumPyLayers:
    """Layers of maps [B, H, W, C] as sums over windows; weights are in torch's layout."""

    def windows(self, x, size, stride, padding, fill=0.0):
        (top, left), (height, width) = np.broadcast_to(padding, 2), np.broadcast_to(size, 2)
        x = np.pad(x, ((0, 0), (top, top), (left, left), (0, 0)), constant_values=fill)
        return np.lib.stride_tricks.sliding_window_view(x, (height, width), (1, 2))[:, ::stride, ::stride]

    def convolution(self, x, weight, padding, stride):
        return np.tensordot(self.windows(x, weight.shape[2:], stride, padding), weight, ([3, 4, 5], [1, 2, 3]))

    def normalized(self, x, mean, variance, scale, shift):
        return np.maximum((x - mean) / np.sqrt(variance + 1e-3) * scale + shift, 0.0)

    def average(self, x):
        inside = self.windows(np.ones_like(x[..., :1]), 3, 1, 1).sum((-2, -1))
        return self.windows(x, 3, 1, 1).sum((-2, -1)) / inside

    def maximum(self, x, stride, padding):
        return self.windows(x, 3, stride, padding, -np.inf).max((-2, -1))

    def concatenate(self, parts):
        return np.concatenate(parts, -1)

    def mean(self, x):
        return x.mean((1, 2))


class TorchLayers:
    """The same of maps [B, C, H, W] by torch's functions."""

    def __init__(self, torch):
        self.torch, self.functions = torch, torch.nn.functional

    def convolution(self, x, weight, padding, stride):
        return self.functions.conv2d(x, weight, stride=stride, padding=padding)

    def normalized(self, x, mean, variance, scale, shift):
        return self.functions.relu(self.functions.batch_norm(x, mean, variance, scale, shift, eps=1e-3))

    def average(self, x):
        return self.functions.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def maximum(self, x, stride, padding):
        return self.functions.max_pool2d(x, 3, stride, padding)

    def concatenate(self, parts):
        return self.torch.cat(parts, 1)

    def mean(self, x):
        return x.mean((2, 3))


def released_network(layers, w, x):
    """Features and logits of the released network."""

    def conv(x, name, padding=0, stride=1):
        x = layers.convolution(x, w[f"{name}.conv.weight"], padding, stride)
        return layers.normalized(x, *(w[f"{name}.bn.{p}"] for p in ("running_mean", "running_var", "weight", "bias")))

    def chain(x, name, *options):
        for i, option in enumerate(options, 1):
            x = conv(x, f"{name}_{i}", *option)
        return x

    x = conv(x, "Conv2d_1a_3x3", 0, 2)
    x = conv(conv(x, "Conv2d_2a_3x3"), "Conv2d_2b_3x3", 1)
    x = conv(conv(layers.maximum(x, 2, 0), "Conv2d_3b_1x1"), "Conv2d_4a_3x3")
    x = layers.maximum(x, 2, 0)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        five = chain(x, f"{name}.branch5x5", (), (2,))
        double = chain(x, f"{name}.branch3x3dbl", (), (1,), (1,))
        pool = conv(layers.average(x), f"{name}.branch_pool")
        x = layers.concatenate([conv(x, f"{name}.branch1x1"), five, double, pool])
    double = chain(x, "Mixed_6a.branch3x3dbl", (), (1,), (0, 2))
    x = layers.concatenate([conv(x, "Mixed_6a.branch3x3", 0, 2), double, layers.maximum(x, 2, 0)])
    row, column = ((0, 3),), ((3, 0),)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        seven = chain(x, f"{name}.branch7x7", (), row, column)
        double = chain(x, f"{name}.branch7x7dbl", (), column, row, column, row)
        pool = conv(layers.average(x), f"{name}.branch_pool")
        x = layers.concatenate([conv(x, f"{name}.branch1x1"), seven, double, pool])
    three = chain(x, "Mixed_7a.branch3x3", (), (0, 2))
    seven = chain(x, "Mixed_7a.branch7x7x3", (), row, column, (0, 2))
    x = layers.concatenate([three, seven, layers.maximum(x, 2, 0)])
    for name in ("Mixed_7b", "Mixed_7c"):
        three = conv(x, f"{name}.branch3x3_1")
        double = chain(x, f"{name}.branch3x3dbl", (), (1,))
        pool = layers.average(x) if name == "Mixed_7b" else layers.maximum(x, 1, 1)
        parts = [conv(x, f"{name}.branch1x1")]
        parts += [conv(three, f"{name}.branch3x3_2a", (0, 1)), conv(three, f"{name}.branch3x3_2b", (1, 0))]
        parts += [conv(double, f"{name}.branch3x3dbl_3a", (0, 1)), conv(double, f"{name}.branch3x3dbl_3b", (1, 0))]
        x = layers.concatenate([*parts, conv(pool, f"{name}.branch_pool")])
    features = layers.mean(x)
    return features, features @ w["fc.weight"].T


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """Random weights and pictures, and what our network makes of them; the last maps have 2 x 1 pixels."""
    weights, path = random_weights(), tmp_path_factory.mktemp("weights") / "inception.npz"
    np.savez(path, **weights)
    params = inception_params(path)
    x = np.random.default_rng(1).uniform(-1.0, 1.0, (1, 107, 75, 3)).astype(np.float32)
    return weights, params, x, jax.jit(InceptionV3().apply)({"params": params}, x)


def assert_alike(got, expected):
    for ours, theirs in zip(got, expected):
        assert theirs.std() > 0.01
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


def test_the_network_is_the_released_architecture(passed):
    weights, _, x, got = passed
    assert_alike(got, released_network(NumPyLayers(), weights, x))


def test_torch_gives_the_same_from_its_own_file(passed, tmp_path):
    torch = pytest.importorskip("torch")
    weights, params, x, got = passed
    tensors = {name: torch.tensor(a) for name, a in weights.items()}
    torch.save(tensors, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    jax.tree.map(np.testing.assert_array_equal, inception_params(tmp_path / "weights.pth"), params)
    with torch.no_grad():
        pictures = torch.tensor(x).permute(0, 3, 1, 2)
        assert_alike(got, [part.numpy() for part in released_network(TorchLayers(torch), tensors, pictures)])
        levels = torch.randint(0, 256, (2, 3, 40, 32), generator=torch.manual_seed(0)) / 255
        resized = 2 * torch.nn.functional.interpolate(levels, (85, 85), mode="bilinear", align_corners=False) - 1
    ours = prepare(levels.permute(0, 2, 3, 1).numpy(), "pytorch", size=85)
    np.testing.assert_allclose(ours, resized.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_pictures_are_rounded_resized_and_scaled_as_the_paper_does_and_as_pytorch_does():
    x = np.random.default_rng(0).random((1, 8, 8, 1)).astype(np.float32)
    levels = np.round(255 * x[0, ..., 0])
    # TensorFlow takes every second pixel to halve, pytorch the mean of two in each direction.
    np.testing.assert_allclose(prepare(x, size=4)[0, ..., 2], (levels[::2, ::2] - 128) / 128, atol=1e-6)
    means = levels.reshape(4, 2, 4, 2).mean((1, 3))
    np.testing.assert_allclose(prepare(x, "pytorch", size=4)[0, ..., 1], 2 * means / 255 - 1, atol=1e-6)
    np.testing.assert_allclose(interpolation_matrix(2, 4, "tensorflow")[:, 1], [0.0, 0.5, 1.0, 1.0])
    np.testing.assert_allclose(interpolation_matrix(2, 4, "pytorch")[:, 1], [0.0, 0.25, 0.75, 1.0])
    slopes = jax.grad(lambda x: prepare(x, "pytorch", size=4).sum())(x)
    np.testing.assert_allclose(slopes, 2 * 3 / 4, rtol=1e-5)  # Three channels of the mean of four pixels.
    with pytest.raises(ValueError, match=r"wants pictures \[B, H, W, 1 or 3\]"):
        prepare(x[..., 0])
    with pytest.raises(ValueError, match="at least 75 pixels each way, not 80 x 64"):
        jax.eval_shape(InceptionV3().init, jax.random.key(0), np.zeros((1, 80, 64, 3)))


def test_a_file_of_another_layout_is_one_sentence(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, weight=np.zeros(3))
    with pytest.raises(CheckpointFileError, match="another layout than .*: no tensor Conv2d_1a_3x3.conv.weight"):
        inception_params(path)
    np.savez(path, **{"Conv2d_1a_3x3.conv.weight": np.zeros((32, 1, 3, 3))})
    with pytest.raises(CheckpointFileError, match="Conv2d_1a_3x3.conv.weight has the shape .*32, 1, 3, 3.*, not "):
        inception_params(path)
    damaged = path.read_bytes()
    for content in (damaged[:-40], damaged[:80] + bytes(40) + damaged[120:], b"no archive", b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointFileError, match="other.npz is not a file of arrays that numpy.savez wrote"):
            inception_params(path)
    with pytest.raises(CheckpointFileError, match="there is no file"):
        inception_params(tmp_path / "none.pth")
