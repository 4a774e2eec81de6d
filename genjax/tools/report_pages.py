"""A report as files: one HTML page that needs no network, and its tables in Markdown and LaTeX."""

from __future__ import annotations

import base64
import collections
import html
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from genjax.data.figures import empty_figure
from genjax.tools.report import Cell, Group, Report, Table

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:84rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0 1.5rem;display:block;overflow-x:auto}
th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #888}
img{max-width:100%}figure{display:inline-block;margin:.5rem;max-width:22rem;vertical-align:top}
figure.wide{display:block;max-width:100%}figcaption{font-size:13px}
code{background:#f3f3f3;padding:.1rem .3rem;font-size:13px}.open{color:#a60}"""
#: Longest side of a sheet of samples in the page, in pixels.
_SHEET_SIZE = 420
#: Curves are drawn of this many groups at most in one panel; more would not be told apart.
_MOST_LINES = 10


def write(report: Report, folder: Path) -> list[Path]:
    """Writes report.html, report.md and report.tex into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"report.html": page(report), "report.md": markdown(report), "report.tex": latex(report)}
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in contents]


# ----------------------------------------------------------------------------------------------------------------------
# Tables


def markdown(report: Report) -> str:
    """Every table, and the runs behind them."""
    parts = ["# Report", ""]
    for table in report.tables:
        rows = [["run", *table.columns], ["---", *["---:"] * len(table.columns)]]
        rows += [[_name(row.label, row.finished), *map(_cell, row.cells)] for row in table.rows]
        parts += [f"{table.protocol}", "", *(f"| {' | '.join(c.replace('|', '/') for c in row)} |" for row in rows), ""]
    parts += ["## Runs", ""]
    for group in report.groups:
        seconds = sum(run.seconds for run in group.runs) / len(group.runs)
        steps = ", ".join(f"seed {run.seed}: step {run.step} of {run.num_steps}" for run in group.runs)
        parts.append(f"- `{group.command}`: {steps}; {seconds:.0f} s of training a run; version {group.versions}")
    if report.left_out:
        parts += ["", "## Left out", "", *(f"- `{path}`: {reason}" for path, reason in report.left_out)]
    return "\n".join(parts) + "\n"


def latex(report: Report) -> str:
    """Every table as a `tabular` of the package booktabs."""
    return "\n".join(_tabular(table) for table in report.tables)


def _tabular(table: Table) -> str:
    lines = [
        f"% {table.protocol}",
        f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        "\\toprule",
        " & ".join(["run", *map(_escaped, table.columns)]) + " \\\\",
        "\\midrule",
    ]
    for row in table.rows:
        cells = [_cell(each).replace("±", "$\\pm$") for each in row.cells]
        lines.append(" & ".join([_escaped(_name(row.label, row.finished)), *cells]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "_%&#$" else c for c in text)


def _name(label: str, finished: bool) -> str:
    return label if finished else f"{label} (not finished)"


def _cell(value: Cell | None) -> str:
    return "" if value is None else str(value)


# ----------------------------------------------------------------------------------------------------------------------
# The page


def page(report: Report) -> str:
    """The report as one page."""
    number = sum(len(group.runs) for group in report.groups)
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>Report of {number} runs</title><style>{_STYLE}</style>",
        f"<h1>Report of {number} runs</h1>",
        "<p>A cell is a mean over seeds ± their standard deviation, with the number of seeds in brackets.</p>",
    ]
    for table in report.tables:
        parts += [f"<h2>{html.escape(table.protocol)}</h2>", _html_table(table)]
    parts += ["<h2>Learning curves</h2>", *_curves(report.groups)]
    sheets = [_sheet(group) for group in report.groups]
    if any(sheets):
        parts += ["<h2>Samples</h2>", *filter(None, sheets)]
    parts += ["<h2>Runs</h2><ul>"]
    for group in report.groups:
        states = ", ".join(_state(run.seed, run.step, run.num_steps) for run in group.runs)
        seconds = sum(run.seconds for run in group.runs) / len(group.runs)
        times = f"{seconds:.0f} s of training a run; version {html.escape(group.versions)}"
        parts.append(f"<li><code>{html.escape(group.command)}</code><br>{states}; {times}</li>")
    parts += ["</ul>"]
    if report.left_out:
        rows = "".join(f"<li><code>{html.escape(str(p))}</code>: {html.escape(why)}</li>" for p, why in report.left_out)
        parts += [f"<h2>Left out</h2><ul>{rows}</ul>"]
    return "\n".join([*parts, "</html>", ""])


def _state(seed: int, step: int, num_steps: int) -> str:
    text = f"seed {seed}: step {step} of {num_steps}"
    return text if step >= num_steps else f'<span class="open">{text}</span>'


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["run", *table.columns])
    rows = []
    for row in table.rows:
        cells = [_name(row.label, row.finished), *map(_cell, row.cells)]
        rows.append("<tr>" + "".join(f"<td>{html.escape(each)}</td>" for each in cells) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _curves(groups: list[Group]) -> list[str]:
    """A picture for each data set and kind of record: a panel a metric, a line a group, the mean over its seeds."""
    pictures = []
    data_sets = dict.fromkeys(group.runs[0].data for group in groups)
    for data in data_sets:
        own = [group for group in groups if group.runs[0].data == data]
        kinds = dict.fromkeys(kind for group in own for run in group.runs for kind, _ in run.curves)
        for kind in kinds:
            names = _compared_names(own, kind)
            if names:
                pictures.append(_figure(own, kind, names, f"{data}: {kind}"))
    return pictures


def _compared_names(groups: list[Group], kind: str) -> list[str]:
    """Metrics that several groups have, or all of one group: what one family alone records compares nothing."""
    counts = collections.Counter(
        name for group in groups for name in {n for run in group.runs for k, n in run.curves if k == kind}
    )
    fewest = min(2, len(groups))
    return sorted(n for n, count in counts.items() if count >= fewest and n not in ("steps_per_second", "num_examples"))


def _figure(groups: list[Group], kind: str, names: list[str], title: str) -> str:
    columns = 3
    rows = -(-len(names) // columns)
    figure = empty_figure(11, 2.4 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for panel, name in zip(panels, names):
        lines = [
            (group.label, run.curves[kind, name])
            for group in groups
            for run in group.runs
            if (kind, name) in run.curves
        ]
        labels = list(dict.fromkeys(label for label, _ in lines))[:_MOST_LINES]
        for label, (steps, values) in lines:
            if label in labels:
                marker = "." if len(steps) == 1 else None
                panel.plot(steps, values, linewidth=1, marker=marker, color=f"C{labels.index(label)}")
        panel.set_title(name, fontsize="small")
        panel.tick_params(labelsize="x-small")
    for panel in panels[len(names) :]:
        panel.axis("off")
    shown = list(dict.fromkeys(group.label for group in groups))[:_MOST_LINES]
    for place, label in enumerate(shown):
        panels[0].plot([], [], color=f"C{place}", label=label)
    figure.legend(fontsize="x-small", loc="outside lower center", ncols=min(3, len(shown)))
    return _image(lambda stream: figure.savefig(stream, dpi=100), title, "wide")


def _sheet(group: Group) -> str:
    """The samples of the first of a group's runs that has some."""
    run = next((run for run in group.runs if run.samples is not None), None)
    if run is None or run.samples is None:
        return ""
    try:
        with Image.open(run.samples) as image:
            small = image.convert("RGB")
            small.thumbnail((_SHEET_SIZE, _SHEET_SIZE))
    except OSError:
        # The sheet is just being written.
        return ""
    return _image(lambda stream: small.save(stream, "PNG"), f"{group.label}, step {run.step}")


def _image(save: Callable[[io.BytesIO], object], caption: str, style: str = "") -> str:
    stream = io.BytesIO()
    save(stream)
    encoded, text = base64.b64encode(stream.getvalue()).decode(), html.escape(caption)
    chosen = f' class="{style}"' if style else ""
    picture = f'<img alt="{text}" src="data:image/png;base64,{encoded}">'
    return f"<figure{chosen}>{picture}<figcaption>{text}</figcaption></figure>"
