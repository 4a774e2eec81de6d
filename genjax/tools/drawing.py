"""Pictures of training curves, chains, hidden states and components, for `experiments.pictures`, `.chains` and `.states`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from genjax.families.markov import inference


def load_arviz(path: str | Path):
    """The arviz.InferenceData of a file chains.npz; needs arviz."""
    import arviz

    groups: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as content:
        for name, values in content.items():
            group, _, variable = name.partition("/")
            groups.setdefault(group, {})[variable] = values
    return arviz.from_dict(**groups)


def plot_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Writes the training metrics of rows with a `step`: losses, penalties, scores and norms, each kind in its panel."""
    kinds = {"loss": [], "penalty": [], "score": [], "norm": [], "other metrics": []}
    names = {name for row in rows for name, value in row.items() if isinstance(value, float)} - {"steps_per_second"}
    for name in sorted(names):
        kinds[next((kind for kind in kinds if kind in name), "other metrics")].append(name)
    kinds = {kind: names for kind, names in kinds.items() if names}
    figure = Figure(figsize=(7, 2.2 * len(kinds)), layout="constrained")
    for panel, (kind, names) in zip(figure.subplots(len(kinds), squeeze=False)[:, 0], kinds.items()):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            panel.plot(*zip(*points), label=name, linewidth=1)
        panel.set_ylabel(kind)
        panel.legend(fontsize="x-small")
    panel.set_xlabel("step")
    figure.savefig(path, dpi=100)


def columns(posterior: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Names and draws [chains, draws, D] of all numbers of a posterior."""
    names, parts = [], []
    for name, values in posterior.items():
        shape = values.shape[2:]
        names += [f"{name}[{','.join(map(str, index))}]" if shape else name for index in np.ndindex(*shape)]
        parts.append(values.reshape(*values.shape[:2], -1))
    return names, np.concatenate(parts, -1)


def plot_traces(names: list[str], draws: np.ndarray, path: Path) -> None:
    """Writes the traces of all chains [chains, draws, D], and histograms of their ranks, flat where chains agree."""
    count = draws.shape[-1]
    figure = Figure(figsize=(10, 1.6 * count + 0.6), layout="constrained")
    panels = figure.subplots(count, 2, squeeze=False, width_ratios=(3, 1))
    for row, name in enumerate(names):
        values = draws[:, :, row]
        ranks = values.reshape(-1).argsort().argsort().reshape(values.shape)
        for chain, chain_ranks in zip(values[:8], ranks):
            panels[row][0].plot(chain, linewidth=0.4, alpha=0.8)
            panels[row][1].hist(chain_ranks, bins=20, range=(0, ranks.size), histtype="step")
        panels[row][0].set_ylabel(name)
        panels[row][1].set_yticks([])
    panels[-1][0].set_xlabel("draw")
    panels[-1][1].set_xlabel("rank")
    figure.savefig(path, dpi=90)


def draw_transitions(transition: np.ndarray, path: Path) -> None:
    """Writes a transition matrix [K, K] by rows that sum to 1, on a logarithmic scale."""
    order = np.argsort(-np.asarray(inference.stationary_distribution(transition)))
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    panel = figure.subplots()
    picture = panel.imshow(np.log10(np.maximum(transition[order][:, order], 1e-4)), vmin=-4, vmax=0, cmap="magma")
    panel.set(xlabel="next state", ylabel="state")
    figure.colorbar(picture, label="log10 probability")
    figure.savefig(path, dpi=100)


def draw_paths(paths: np.ndarray, mask: np.ndarray, num_states: int, path: Path) -> None:
    """Writes state paths [B, T] as colours; hidden frames stay white."""
    shades = np.where(mask, paths, np.nan)
    figure = Figure(figsize=(9, 0.25 * len(paths) + 0.8), layout="constrained")
    panel = figure.subplots()
    picture = panel.imshow(
        shades, aspect="auto", interpolation="nearest", cmap="turbo", vmin=0, vmax=max(num_states - 1, 1)
    )
    panel.set(xlabel="frame", ylabel="sequence", xlim=(-0.5, mask.sum(1).max() - 0.5))
    figure.colorbar(picture, label="state")
    figure.savefig(path, dpi=100)


def draw_ellipses(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray, weights: np.ndarray, path: Path) -> None:
    """Writes points [N, 2] and components, mean [K, 2] and covariance [K, 2, 2], the paler the lighter they are."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    panel = figure.subplots()
    panel.scatter(x[:, 0], x[:, 1], s=2, alpha=0.3, linewidths=0, color="grey")
    circle = np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 100)), np.sin(t)])
    for m, c, w in zip(mean, covariance, weights / weights.max()):
        for deviations in (1, 2):
            line = m[:, None] + deviations * np.linalg.cholesky(c) @ circle
            panel.plot(*line, color="tab:red", linewidth=1, alpha=float(np.clip(w, 0.02, 1.0)))
    panel.set_aspect("equal")
    figure.savefig(path, dpi=100)
