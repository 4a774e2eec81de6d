"""Metrics of molecules, by hand and against their definitions."""

import gzip

import numpy as np
import pytest

from genjax.data import Molecules
from genjax.data.molecules import embedded_smiles
from genjax.evaluation.molecules import (
    canonical,
    cosine,
    fingerprints,
    fragments,
    frechet_chemnet_distance,
    internal_diversity,
    molecule_metrics,
    nearest_similarity,
    properties,
    scaffolds,
    tanimoto,
)
from genjax.tools.molecules import known_molecules

pytest.importorskip("rdkit")
KNOWN = embedded_smiles()


def test_counts_of_valid_unique_and_new_molecules():
    samples = ["CCO", "OCC", "C(", "", "c1ccccc1", "CCN"]
    assert canonical(samples) == ["CCO", "CCO", None, None, "c1ccccc1", "CCN"]
    metrics = molecule_metrics(samples, ["CCO"], ["CCO", "c1ccccc1"], unique_at=(2, 4, 5))
    assert metrics["validity"] == 4 / 6
    assert metrics["unique@2"] == 1 / 2 and metrics["unique@4"] == 3 / 4 and "unique@5" not in metrics
    assert metrics["novelty"] == 2 / 3
    assert molecule_metrics(["C("], [], ["C"]) == {"validity": 0.0}
    with pytest.raises(ValueError, match="at least one sample"):
        molecule_metrics([], [], ["C"])


def test_molecules_of_the_training_set_are_not_new_however_it_writes_them(tmp_path):
    data = Molecules(max_molecules=20)
    train = data.smiles("train")[::3]
    assert any(written != ours for written, ours in zip(train, canonical(train)))
    known = known_molecules(data)
    assert molecule_metrics(train, known, ["CCO"])["novelty"] == 0.0 and len(known) > 1000
    assert molecule_metrics(["OCCOCCOCC", *train[:2]], known, ["CCO"])["novelty"] == 1 / 3
    path = tmp_path / "mine.csv"
    path.write_text("SMILES\n" + "OCCC\n" * 20 + "C(\n" * 20)
    assert set(known_molecules(Molecules(name="file", dir=str(path)))) == {"CCCO"}


def test_validation_molecules_of_moses_are_held_out_of_its_training_file(tmp_path):
    whole = ["C" * n for n in range(1, 51)]
    for name, strings in (("train", whole), ("test", ["O", "CO"])):
        (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress("\n".join(["SMILES", *strings]).encode()))
    data = Molecules(name="moses", dir=str(tmp_path))
    train, validation = data.smiles("train"), data.smiles("validation")
    assert len(validation) == 5 and sorted(train + validation, key=len) == whole
    assert data.smiles("test") == ["O", "CO"] and data.smiles("validation") == validation
    assert sorted(known_molecules(Molecules(name="moses", dir=str(tmp_path), max_molecules=2)), key=len) == whole


def test_distances_of_properties():
    values = properties(["CCO", "c1ccccc1"])
    np.testing.assert_allclose(values["weight"], [46.069, 78.114], atol=1e-3)
    np.testing.assert_allclose(values["logp"], [-0.0014, 1.6866], atol=1e-4)
    assert ((values["qed"] > 0) & (values["qed"] < 1)).all()
    metrics = molecule_metrics(["CCO", "CCO"], [], ["c1ccccc1", "CCO"])
    # Half of the mass moves from ethanol to benzene.
    np.testing.assert_allclose(metrics["weight_distance"], (78.114 - 46.069) / 2, atol=1e-3)
    np.testing.assert_allclose(metrics["logp_distance"], (1.6866 + 0.0014) / 2, atol=1e-4)
    assert molecule_metrics(["CCO"], [], ["CCO"])["qed_distance"] == 0.0


def test_similarities_follow_their_definitions():
    from rdkit import Chem, DataStructs
    from rdkit.Chem import rdFingerprintGenerator

    chosen = KNOWN[::97]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    theirs = [generator.GetFingerprint(Chem.MolFromSmiles(s)) for s in chosen]
    expected = np.array([DataStructs.BulkTanimotoSimilarity(f, theirs) for f in theirs])
    prints = fingerprints(chosen)
    np.testing.assert_allclose(tanimoto(prints, prints), expected, atol=1e-6)
    np.testing.assert_allclose(internal_diversity(prints), 1 - expected.mean(), atol=1e-6)
    # The root is taken of each molecule's mean, as the program of MOSES does.
    np.testing.assert_allclose(internal_diversity(prints, 2), 1 - ((expected**2).mean(1) ** 0.5).mean(), atol=1e-6)
    np.testing.assert_allclose(nearest_similarity(prints[:4], prints[4:]), expected[:4, 4:].max(1).mean(), atol=1e-6)


def test_fragments_and_scaffolds():
    assert scaffolds(["CCO", "c1ccccc1C", "Cc1ccc(C2CC2)cc1"]) == {"c1ccc(C2CC2)cc1": 1}
    parts = fragments(["CCOc1ccccc1"])
    assert sum(parts.values()) == 3  # the ether falls into ethyl, oxygen and phenyl
    assert cosine(parts, parts) == pytest.approx(1.0) and cosine(parts, scaffolds(["C"])) == 0.0


def test_frechet_chemnet_distance_is_zero_to_itself_and_grows():
    pytest.importorskip("fcd_torch")
    near, far = frechet_chemnet_distance(KNOWN[:60], KNOWN[:60]), frechet_chemnet_distance(KNOWN[:60], KNOWN[-60:])
    assert abs(near) < 1e-2 < far
