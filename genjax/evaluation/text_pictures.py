"""Pictures of what token models do: attention maps head by head, and embeddings in the plane of their largest variance."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genjax.errors import UserError

_PAGE = """<!doctype html><meta charset="utf-8"><title>attention</title>
<style>body{{font:14px sans-serif}}table{{border-collapse:collapse;display:inline-block;margin:8px}}
td{{width:12px;height:12px;padding:0}}th{{font:11px monospace;font-weight:normal;text-align:right;white-space:pre}}</style>
{tables}
"""


def _shown(name: str) -> str:
    return "".join({" ": "␣", "\n": "⏎", "\t": "⇥"}.get(c, c) for c in name)


def write_attention(
    layers: Sequence[np.ndarray], rows: Sequence[str], columns: Sequence[str], stem: str | Path
) -> list[Path]:
    """Writes the attention of one text as a PNG of heat maps, a row for each layer, and as a page with the tokens beside.

    Args:
      layers: attention of each layer, [num_heads, T, S] with rows that sum to 1.
      rows: the T tokens that attend.
      columns: the S tokens that are attended to.
      stem: path of the files without suffix.

    Returns:
      The PNG and the HTML file.

    Raises:
      UserError: the tokens do not fit the attention.
    """
    from matplotlib.figure import Figure

    shapes = {np.shape(layer)[1:] for layer in layers}
    if shapes != {(len(rows), len(columns))}:
        raise UserError(
            f"attention of the shapes {sorted(shapes)} does not fit {len(rows)} rows and {len(columns)} columns"
        )
    num_heads = max(len(layer) for layer in layers)
    figure = Figure(figsize=(2 * num_heads, 2 * len(layers)), layout="constrained")
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
    paths = [stem.with_suffix(".png"), stem.with_suffix(".html")]
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
    """Draws embeddings x [N, D] in the plane of their largest variance, the first ones with their names."""
    from matplotlib.figure import Figure

    if len(x) != len(names) or len(x) < 3 or np.ndim(x) != 2:
        raise UserError(f"embeddings of the shape {np.shape(x)} need three rows at least, and a name for each")
    points, shares = principal_plane(x)
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.3)
    for name, point in list(zip(names, points))[:max_names]:
        # Characters that the font lacks would only draw boxes; a dollar sign would begin a formula.
        if name.isascii() and name.strip():
            axes.annotate(name.strip().replace("$", r"\$"), point, fontsize=8)
    axes.set_xlabel(f"first axis, {shares[0]:.0%} of the variance")
    axes.set_ylabel(f"second axis, {shares[1]:.0%} of the variance")
    figure.savefig(path, dpi=100)
    return Path(path)
