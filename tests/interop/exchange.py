"""A checkpoint of the library transformers with random weights, and what must be equal on both sides."""

from __future__ import annotations

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from genjax.interop.safetensors import read_folder  # noqa: E402
from genjax.pretrained import load_pretrained, save_pretrained, to_tensors  # noqa: E402

LENGTHS = (7, 4)
VOCAB, PADDING = 19, 1


def build(cls: str, config, folder, seed: int = 0):
    """Their model with large random weights, biases and norms too, saved to a folder, and ours read from it."""
    torch.manual_seed(seed)
    theirs = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 0.1))
    theirs.save_pretrained(folder)
    return theirs, load_pretrained(folder)


def padded(side: str = "right", seed: int = 0, low: int = 5):
    """Tokens [2, 7] of which the second row has padding on a side, and their mask."""
    tokens = np.random.default_rng(seed).integers(low, VOCAB, (2, 7))
    mask = np.arange(7)[None] < np.array(LENGTHS)[:, None]
    mask = mask[:, ::-1].copy() if side == "left" else mask
    return np.where(mask, tokens, PADDING), mask


def close(ours, theirs, tolerance: float = 1e-4) -> None:
    """Compares arrays with tensors."""
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), atol=tolerance, rtol=tolerance)


def check_gradients(model, gradients, theirs) -> None:
    """Compares our gradients with those of their last backward pass, by their names.

    PyTorch leaves the padding's embedding out of the gradient, so that row is not compared.
    """
    found = to_tensors(model, gradients)
    named = {name: p.grad for name, p in theirs.named_parameters()}
    assert set(named) <= set(found) | {n for n, g in named.items() if g is None}, set(named) - set(found)
    for name, gradient in named.items():
        if name in found:
            expected = np.zeros_like(found[name]) if gradient is None else gradient.numpy()
            rows = np.arange(len(expected)) != PADDING if expected.shape[:1] == (VOCAB,) else ...
            np.testing.assert_allclose(found[name][rows], expected[rows], atol=1e-4, rtol=1e-4, err_msg=name)


def check_round_trip(pretrained, theirs, folder) -> None:
    """Saving gives the same bytes of the same tensors, and transformers loads them."""
    save_pretrained(folder, pretrained.model, pretrained.params)
    before, after = read_folder(pretrained.folder), read_folder(folder)
    assert set(before) == set(after)
    for name in before:
        assert before[name].view().tobytes() == after[name].view().tobytes(), name
    again, report = type(theirs).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert load_pretrained(folder).model == pretrained.model


def new_tokens(generated, prompt_length: int, *ends: int) -> list[list[int]]:
    """Generated rows after the prompt, up to and with the first of the ends."""
    rows = []
    for row in np.asarray(generated)[:, prompt_length:].tolist():
        rows.append(row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))])
    return rows
