"""Files of torch.save beside torch itself."""

import pickle

import numpy as np
import pytest

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
