"""Metrics of generated molecules as MOSES defines them (Polykovskiy et al. 2020, arXiv:1811.12823).

    validity      share of samples that RDKit reads
    unique@k      share of different molecules among the first k valid ones
    novelty       share of the different valid molecules that are not in the training set
    IntDiv_p      1 - mean over x of (mean over y of T(x, y)^p)^(1/p), where y may equal x
    SNN           mean over samples of the largest T to a reference molecule
    Frag, Scaf    cosine between the counts of BRICS fragments, of Bemis-Murcko scaffolds with at least two rings
    FCD           Frechet distance of ChemNet features (Preuer et al. 2018)
    logP, QED, weight    Wasserstein-1 distances between the distributions of Crippen's log P, of the drug-likeness of
                  Bickerton et al. 2012, and of molecular weight in Dalton

Two metrics of MOSES are not here: the share that passes its filters, which needs its lists of unwanted substructures,
and the distance of synthetic accessibility, whose table RDKit does not install everywhere.

IntDiv_p follows the program and the tables of MOSES.  The paper of MOSES takes the root of the mean over all pairs,
which for p = 2 is .0012 less on its training molecules; most of its networks differ by less.

T is the Tanimoto similarity of Morgan fingerprints of radius 2 with 1024 bits.  Molecules are compared by RDKit's
canonical SMILES.  RDKit, and for FCD the package fcd-torch, are the extra `molecules`.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.stats

from genjax.errors import UserError

_BLOCK = 2048  # rows of the similarity matrix that are held at a time


def _rdkit() -> Any:
    try:
        from rdkit import Chem, RDLogger
    except ImportError:
        raise UserError("metrics of molecules need RDKit: pip install 'genjax[molecules]'") from None
    RDLogger.DisableLog("rdApp.*")  # RDKit would report every invalid string
    return Chem


def canonical(smiles: Iterable[str]) -> list[str | None]:
    """Canonical SMILES of each string, None where it is not valid or empty."""
    chem = _rdkit()
    molecules = (chem.MolFromSmiles(s) if s else None for s in smiles)
    return [None if m is None else chem.MolToSmiles(m) for m in molecules]


def fingerprints(smiles: Sequence[str]) -> np.ndarray:
    """Morgan fingerprints of valid strings, float32 [N, 1024] of zeros and ones."""
    chem = _rdkit()
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    rows = [generator.GetFingerprintAsNumPy(chem.MolFromSmiles(s)) for s in smiles]
    return np.array(rows, np.float32).reshape(-1, 1024)


def tanimoto(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tanimoto similarities of fingerprints [N, D] and [M, D], [N, M]."""
    common = x @ y.T
    return common / np.maximum(x.sum(1)[:, None] + y.sum(1)[None] - common, 1e-9)


def internal_diversity(prints: np.ndarray, power: int = 1) -> float:
    """IntDiv_p of fingerprints [N, D]."""
    parts = (tanimoto(prints[i : i + _BLOCK], prints) ** power for i in range(0, len(prints), _BLOCK))
    return 1.0 - float(np.mean([mean ** (1.0 / power) for part in parts for mean in part.mean(1, dtype=np.float64)]))


def nearest_similarity(prints: np.ndarray, reference: np.ndarray) -> float:
    """SNN: mean over rows [N, D] of the largest similarity to a reference row [M, D]."""
    best = np.zeros(len(prints), np.float32)
    for i in range(0, len(reference), _BLOCK):
        best = np.maximum(best, tanimoto(prints, reference[i : i + _BLOCK]).max(1))
    return float(best.mean())


def fragments(smiles: Iterable[str]) -> collections.Counter[str]:
    """Counts of BRICS fragments of valid strings."""
    chem = _rdkit()
    from rdkit.Chem import BRICS

    counts: collections.Counter[str] = collections.Counter()
    for string in smiles:
        broken = chem.MolToSmiles(BRICS.BreakBRICSBonds(chem.MolFromSmiles(string)))
        counts.update(broken.split("."))
    return counts


def scaffolds(smiles: Iterable[str], min_rings: int = 2) -> collections.Counter[str]:
    """Counts of Bemis-Murcko scaffolds of valid strings; scaffolds with fewer rings are left out."""
    chem = _rdkit()
    from rdkit.Chem.Scaffolds import MurckoScaffold

    cores = (MurckoScaffold.GetScaffoldForMol(chem.MolFromSmiles(string)) for string in smiles)
    return collections.Counter(chem.MolToSmiles(c) for c in cores if c.GetRingInfo().NumRings() >= min_rings)


def properties(smiles: Iterable[str]) -> dict[str, np.ndarray]:
    """logP, QED and weight (Dalton) of valid strings, float64 [N] each."""
    chem = _rdkit()
    from rdkit.Chem import QED, Crippen, Descriptors

    functions = {"logp": Crippen.MolLogP, "qed": QED.qed, "weight": Descriptors.MolWt}
    molecules = [chem.MolFromSmiles(string) for string in smiles]
    return {name: np.array([function(m) for m in molecules], np.float64) for name, function in functions.items()}


def cosine(first: collections.Counter[str], second: collections.Counter[str]) -> float:
    """Cosine of the angle between two vectors of counts; 0 if one is empty."""
    names = first.keys() | second.keys()
    a, b = (np.array([counts[name] for name in names], np.float64) for counts in (first, second))
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0


def frechet_chemnet_distance(samples: Sequence[str], reference: Sequence[str]) -> float | None:
    """FCD of two sets of valid strings; None where fcd-torch is not installed."""
    try:
        from fcd_torch import FCD
    except ImportError:
        return None
    return float(FCD(device="cpu", n_jobs=1)(gen=list(samples), ref=list(reference)))


def molecule_metrics(
    samples: Sequence[str], train: Iterable[str], reference: Sequence[str], unique_at: tuple[int, ...] = (1000, 10_000)
) -> dict[str, float]:
    """All metrics of generated strings.

    Args:
      samples: generated SMILES, valid or not.
      train: the training set, as canonical SMILES.
      reference: valid SMILES of the set to compare with, such as the test set or a part of it.
      unique_at: numbers k of `unique@k`; numbers above the number of valid samples are left out.

    Returns:
      Values by name; `fcd` only where fcd-torch is installed.

    Raises:
      UserError: RDKit is not installed, or a set is empty.
    """
    if not len(samples) or not len(reference):
        raise UserError("metrics of molecules need at least one sample and one reference molecule")
    valid = [s for s in canonical(samples) if s is not None]
    metrics = {"validity": len(valid) / len(samples)}
    if not valid:
        return metrics
    for k in unique_at:
        if k <= len(valid):
            metrics[f"unique@{k}"] = len(set(valid[:k])) / k
    different = set(valid)
    metrics["novelty"] = len(different - set(train)) / len(different)
    prints, of_reference = fingerprints(valid), fingerprints(reference)
    metrics["internal_diversity"] = internal_diversity(prints)
    metrics["internal_diversity_2"] = internal_diversity(prints, 2)
    metrics["snn"] = nearest_similarity(prints, of_reference)
    metrics["frag"] = cosine(fragments(valid), fragments(reference))
    metrics["scaf"] = cosine(scaffolds(valid), scaffolds(reference))
    of_samples, expected = properties(valid), properties(reference)
    for name, values in of_samples.items():
        metrics[f"{name}_distance"] = float(scipy.stats.wasserstein_distance(values, expected[name]))
    fcd = frechet_chemnet_distance(valid, reference)
    return metrics if fcd is None else {**metrics, "fcd": fcd}
