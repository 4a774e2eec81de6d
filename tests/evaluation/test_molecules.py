import numpy as np
import pytest

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
    scaffolds,
    tanimoto,
)

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
    np.testing.assert_allclose(internal_diversity(prints, 2), 1 - (expected**2).mean() ** 0.5, atol=1e-6)
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
