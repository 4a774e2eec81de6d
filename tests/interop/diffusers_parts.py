"""Parts of pipelines of the library diffusers with random weights, and ours read from their folders."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
save_file = pytest.importorskip("safetensors.torch").save_file

from genjax.interop.safetensors import read_folder  # noqa: E402
from genjax.pretrained import load_pretrained, save_pretrained, to_tensors  # noqa: E402


def randomized(module, seed: int = 0):
    """The module in evaluation mode with larger random weights, so that no part is nearly zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim < 2 else 0.02))
    return module.eval()


def build(cls: str, folder, seed: int = 0, **config):
    """Their part, saved to a folder, and ours read from it."""
    theirs = randomized(getattr(diffusers, cls)(**config), seed)
    theirs.save_pretrained(folder)
    return theirs, load_pretrained(folder)


def nchw(x) -> torch.Tensor:
    """Our pictures [B, H, W, C] as a tensor [B, C, H, W]."""
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())


def nhwc(x: torch.Tensor) -> np.ndarray:
    """Their pictures [B, C, H, W] as an array [B, H, W, C]."""
    return x.detach().numpy().transpose(0, 2, 3, 1)


def check_gradients(model, gradients, theirs, tolerance: float = 1e-4) -> None:
    """Compares our gradients with those of their last backward pass, relative to each tensor's largest."""
    found = to_tensors(model, gradients)
    for name, parameter in theirs.named_parameters():
        expected = parameter.grad.numpy()
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(found[name] / scale, expected / scale, atol=tolerance, err_msg=name)


def check_round_trip(pretrained, theirs, folder) -> None:
    """Saving gives the same bytes of the same tensors, and diffusers loads them."""
    save_pretrained(folder, pretrained.model, pretrained.params)
    before, after = read_folder(pretrained.folder), read_folder(folder)
    assert set(before) == set(after)
    for name in before:
        assert before[name].view().tobytes() == after[name].view().tobytes(), name
    again, report = type(theirs).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    plain = lambda config: json.loads(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}))
    assert plain(again.config) == plain(theirs.config)
    assert load_pretrained(folder).model == pretrained.model
