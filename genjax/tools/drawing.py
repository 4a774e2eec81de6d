"""Pictures of training curves, chains, hidden states and components, attention, embeddings, densities and schedules."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from genjax.data.figures import empty_figure
from genjax.data.files import with_ending
from genjax.errors import UserError
from genjax.families.diffusion.processes import Process
from genjax.families.diffusion.samplers import Sampler
from genjax.families.markov import inference

_PAGE = """<!doctype html><meta charset="utf-8"><title>attention</title>
<style>body{{font:14px sans-serif}}table{{border-collapse:collapse;display:inline-block;margin:8px}}
td{{width:12px;height:12px;padding:0}}
th{{font:11px monospace;font-weight:normal;text-align:right;white-space:pre}}</style>
{tables}
"""


def load_arviz(path: str | Path) -> Any:
    """The arviz.InferenceData of a file chains.npz; needs arviz."""
    import arviz

    groups: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as content:
        for name, values in content.items():
            group, _, variable = name.partition("/")
            groups.setdefault(group, {})[variable] = values
    return arviz.from_dict(**groups)


def plot_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Writes the training metrics of rows with a `step`: losses, penalties, scores and norms, one
    panel for each kind.
    """
    kinds = {"loss": [], "penalty": [], "score": [], "norm": [], "other metrics": []}
    names = {name for row in rows for name, value in row.items() if isinstance(value, float)} - {"steps_per_second"}
    for name in sorted(names):
        kinds[next((kind for kind in kinds if kind in name), "other metrics")].append(name)
    kinds = {kind: names for kind, names in kinds.items() if names}
    figure = empty_figure(7, 2.2 * len(kinds))
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
    """Writes the traces of all chains [chains, draws, D], and histograms of their ranks,
    which are flat if chains agree.
    """
    count = draws.shape[-1]
    figure = empty_figure(10, 1.6 * count + 0.6)
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
    figure = empty_figure(5.5, 5)
    panel = figure.subplots()
    picture = panel.imshow(np.log10(np.maximum(transition[order][:, order], 1e-4)), vmin=-4, vmax=0, cmap="magma")
    panel.set(xlabel="next state", ylabel="state")
    figure.colorbar(picture, label="log10 probability")
    figure.savefig(path, dpi=100)


def draw_paths(paths: np.ndarray, mask: np.ndarray, num_states: int, path: Path) -> None:
    """Writes state paths [B, T] as colours; hidden frames stay white."""
    shades = np.where(mask, paths, np.nan)
    figure = empty_figure(9, 0.25 * len(paths) + 0.8)
    panel = figure.subplots()
    picture = panel.imshow(
        shades, aspect="auto", interpolation="nearest", cmap="turbo", vmin=0, vmax=max(num_states - 1, 1)
    )
    panel.set(xlabel="frame", ylabel="sequence", xlim=(-0.5, mask.sum(1).max() - 0.5))
    figure.colorbar(picture, label="state")
    figure.savefig(path, dpi=100)


def draw_ellipses(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray, weights: np.ndarray, path: Path) -> None:
    """Writes points [N, 2] and components with mean [K, 2] and covariance [K, 2, 2], paler if their weight is small."""
    figure = empty_figure(5, 5)
    panel = figure.subplots()
    panel.scatter(x[:, 0], x[:, 1], s=2, alpha=0.3, linewidths=0, color="grey")
    circle = np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 100)), np.sin(t)])
    for m, c, w in zip(mean, covariance, weights / weights.max()):
        for deviations in (1, 2):
            line = m[:, None] + deviations * np.linalg.cholesky(c) @ circle
            panel.plot(*line, color="tab:red", linewidth=1, alpha=float(np.clip(w, 0.02, 1.0)))
    panel.set_aspect("equal")
    figure.savefig(path, dpi=100)


def _shown(name: str) -> str:
    return "".join({" ": "␣", "\n": "⏎", "\t": "⇥"}.get(c, c) for c in name)


def write_attention(
    layers: Sequence[np.ndarray], rows: Sequence[str], columns: Sequence[str], stem: str | Path
) -> list[Path]:
    """Writes the attention of one text as a PNG of heat maps, a row for each layer, and as a
    page with the tokens beside.

    Args:
      layers: attention of each layer, [num_heads, T, S] with rows that sum to 1.
      rows: the T tokens whose attention is shown.
      columns: the S tokens that receive it.
      stem: path of the files without suffix.

    Returns:
      The PNG and the HTML file.

    Raises:
      UserError: the tokens do not fit the attention.
    """
    shapes = {np.shape(layer)[1:] for layer in layers}
    if shapes != {(len(rows), len(columns))}:
        raise UserError(
            f"attention of the shapes {sorted(shapes)} does not fit {len(rows)} rows and {len(columns)} columns"
        )
    num_heads = max(len(layer) for layer in layers)
    figure = empty_figure(2 * num_heads, 2 * len(layers))
    axes = figure.subplots(len(layers), num_heads, squeeze=False)
    tables = []
    for number, (layer, line) in enumerate(zip(layers, axes)):
        for head, axis in enumerate(line):
            axis.set_axis_off()
            if head < len(layer):
                axis.imshow(layer[head], vmin=0.0, cmap="magma", aspect="auto")
                axis.set_title(f"layer {number + 1}, head {head + 1}", fontsize=7)
                tables.append(_table(layer[head], rows, columns, f"layer {number + 1}, head {head + 1}"))
    stem = Path(stem)
    paths = [with_ending(stem, ".png"), with_ending(stem, ".html")]
    figure.savefig(paths[0], dpi=100)
    paths[1].write_text(_PAGE.format(tables="\n".join(tables)), encoding="utf-8")
    return paths


def _table(weights: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> str:
    lines = []
    for name, values in zip(rows, weights):
        cells = "".join(
            f'<td style="background:rgba(180,20,60,{value:.2f})" title="{html.escape(_shown(column))} {value:.3f}">'
            for column, value in zip(columns, values)
        )
        lines.append(f"<tr><th>{html.escape(_shown(name))}{cells}")
    return f"<table><caption>{title}</caption>{''.join(lines)}</table>"


def principal_plane(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows x [N, D] in the plane of their largest variance [N, 2], and the shares of the variance of both axes [2]."""
    centred = np.asarray(x, np.float64) - np.mean(x, 0, dtype=np.float64)
    _, scales, axes = np.linalg.svd(centred, full_matrices=False)
    variance = scales**2
    return centred @ axes[:2].T, variance[:2] / max(variance.sum(), 1e-30)


def write_embeddings(x: np.ndarray, names: Sequence[str], path: str | Path, max_names: int = 200) -> Path:
    """Draws embeddings x [N, D] in the plane of their largest variance, with names at the first of them."""
    if len(x) != len(names) or len(x) < 3 or np.ndim(x) != 2:
        raise UserError(f"embeddings of the shape {np.shape(x)} need three rows at least, and a name for each")
    points, shares = principal_plane(x)
    figure = empty_figure(8, 8)
    axes = figure.add_subplot()
    axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.3)
    for name, point in list(zip(names, points))[:max_names]:
        # Characters that the font lacks would be drawn as boxes; a dollar sign would begin a formula.
        if name.isascii() and name.strip():
            axes.annotate(name.strip().replace("$", r"\$"), point, fontsize=8)
    axes.set_xlabel(f"first axis, {shares[0]:.0%} of the variance")
    axes.set_ylabel(f"second axis, {shares[1]:.0%} of the variance")
    figure.savefig(path, dpi=100)
    return Path(path)


def draw_density(density: np.ndarray, low: np.ndarray, high: np.ndarray, data: np.ndarray, path: Path) -> None:
    """Writes a density [N, N] beside a histogram of data [M, 2] on the same square."""
    figure = empty_figure(8, 4)
    extent = (low[0], high[0], low[1], high[1])
    limits = [[low[0], high[0]], [low[1], high[1]]]
    shown = np.histogram2d(data[:, 0], data[:, 1], bins=len(density), range=limits, density=True)[0]
    for axis, values, title in zip(figure.subplots(1, 2), (shown, density), ("data", "model"), strict=True):
        # One colour scale for both, cut at a high quantile of the model's density.
        axis.imshow(values.T, origin="lower", extent=extent, vmin=0.0, vmax=np.quantile(density, 0.999), cmap="magma")
        axis.set_title(title)
    figure.savefig(path, dpi=120)


def moving_points(steps: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Pictures of points over time, before examples of the data; the first two coordinates are shown.

    Args:
      steps: the points at each time, [T, N, D] with D of at least 2.
      examples: points of the data, [M, D], whose range is the range of the pictures.

    Returns:
      Pictures with brightness in [0, 1], [T, H, W, 3].
    """
    figure = empty_figure(4, 4)
    canvas, axes = figure.canvas, figure.subplots()
    axes.scatter(examples[:, 0], examples[:, 1], s=4, color="0.85", linewidths=0)
    points = axes.scatter(steps[0, :, 0], steps[0, :, 1], s=4, alpha=0.6, linewidths=0)
    low, high = examples[:, :2].min(0), examples[:, :2].max(0)
    margin = 0.25 * (high - low)
    axes.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
    frames = []
    for step in steps:
        points.set_offsets(step[:, :2])
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3] / 255.0)
    return np.stack(frames)


def plot_schedule(process: Process, sampler: Sampler, path: Path) -> None:
    """Writes alpha, sigma and the log signal-to-noise ratio of a diffusion over time, with the steps of a sampler."""
    low = max(process.t_min, 1e-3 * process.t_max)
    t = jnp.geomspace(low, process.t_max, 400) if process.t_max > 1.0 else jnp.linspace(low, process.t_max, 400)
    grid, alpha, sigma = sampler.grid(process)
    inner = (sigma > 0.0) & (alpha > 0.0)
    figure = empty_figure(9, 3.5)
    left, right = figure.subplots(1, 2)
    left.plot(t, process.alpha(t), label="alpha")
    left.plot(t, process.sigma(t), label="sigma")
    left.legend()
    right.plot(t, process.log_snr(t), label="log alpha^2 / sigma^2")
    right.plot(grid[inner], 2 * jnp.log(alpha[inner] / sigma[inner]), ".", label=f"steps of {type(sampler).__name__}")
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("t")
        if process.t_max > 1.0:
            axes.set_xscale("log")
    figure.savefig(path, dpi=100)


def plot_shares(table: Sequence[dict[str, float]], over: str, label: str, path: Path) -> None:
    """Plots the columns of a table, which are between 0 and 1, over one of its columns."""
    figure = empty_figure(5, 3.5)
    axes = figure.subplots()
    for name in table[0]:
        if name != over:
            axes.plot([row[over] for row in table], [row[name] for row in table], "o-", label=name)
    axes.set_xlabel(label)
    axes.set_ylim(0.0, 1.02)
    axes.legend()
    figure.savefig(path, dpi=100)


def plot_frontier(
    ways: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    best_reward: np.ndarray,
    best_kl: np.ndarray,
    path: Path,
) -> None:
    """Plots ways of policies, their mean rewards over their KL from the start, beside the best rewards at each KL.

    `ways` are names, rewards and KLs; ways of one name have one colour.
    """
    figure = empty_figure(5, 3.5)
    axes = figure.subplots()
    axes.plot(best_kl, best_reward, "-", color="0.6", label="largest possible")
    names = list(dict.fromkeys(name for name, _, _ in ways))
    for name, reward, kl in ways:
        axes.plot(kl, reward, "o-", markersize=3, linewidth=1, color=f"C{names.index(name)}")
    for place, name in enumerate(names):
        axes.plot([], [], "o-", markersize=3, color=f"C{place}", label=f"{name}, while it is trained")
    # Of a policy that is its start still, estimates of the KL are 0 or below.
    axes.set_xlim(0.0, 1.3 * max(1e-3, *(max(kl) for _, _, kl in ways)))
    axes.set_xlabel("KL from the start, nats an answer")
    axes.set_ylabel("mean reward")
    axes.legend()
    figure.savefig(path, dpi=100)
