"""Plans as tables, and the file of plans that a document shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genjax.tools.plan.records import Plan, ProgramPlan


def _amount(value: float, unit: str = "") -> str:
    """A number with a prefix of a thousand, as in 4.7 G."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}".strip()


def _size(value: float) -> str:
    """Bytes with a binary prefix, as in 4.7 GiB."""
    power = min(max(int(value).bit_length() - 1, 0) // 10, 4)
    return f"{value / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _mesh(plan: Plan) -> str:
    return ",".join(f"{axis}:{size}" for axis, size in plan.mesh.items()) or "data:1"


def table(plan: Plan) -> str:
    """A plan as lines of text."""
    memory = "unknown" if plan.memory is None else f"{_size(plan.memory)} of memory"
    lines = [
        f"{plan.experiment} on {plan.topology}, mesh {_mesh(plan)}, batch {plan.batch_size} on {plan.num_devices} "
        "devices",
        f"  parameters           {plan.num_parameters:,}",
        f"  a device holds       {_size(plan.parameters)} parameters, {_size(plan.optimizer)} optimizer, "
        f"{_size(plan.other_state)} else",
        f"  a device has         {memory}",
        f"  FLOPs of the model   {_amount(plan.model_flops)} a step ({plan.model_flops_of})",
    ]
    for name, program in plan.programs.items():
        lines += ["", f"{name} (compiled in {program.compile_seconds:.0f} s)", *_program(plan, program)]
    if plan.recomputation is not None:
        lines += ["", f"FLOPs of the step over FLOPs of the model  {plan.recomputation:.3f}"]
    if plan.mfu is not None:
        step = plan.programs["step"].bound
        assert step is not None
        lines.append(f"MFU at most  {plan.mfu:.1%}  (a step takes {_time(step.seconds)} or more: {step.binding} binds)")
    if plan.fits is not None:
        lines.append("it fits" if plan.fits else "it does NOT fit")
    return "\n".join([*lines, *(f"not known here: {sentence}" for sentence in plan.unknown)])


def _program(plan: Plan, program: ProgramPlan) -> list[str]:
    fits = "" if plan.memory is None else f" ({program.peak / plan.memory:.0%} of the memory)"
    lines = [
        f"  memory       {_size(program.inputs)} inputs, {_size(program.temporaries)} temporaries, "
        f"{_size(program.peak)} peak{fits}"
    ]
    if program.costs is None:
        return [*lines, "  the compiler refuses it: it does not fit"]
    costs = program.costs
    lines.append(f"  a device     {_amount(costs.products, 'FLOP')}, {_amount(costs.traffic, 'B')} of memory traffic")
    for each in costs.collectives:
        lines.append(
            f"  {each.kind:<19}{each.axes:<12} {each.count:>6} calls  {_amount(each.num_bytes, 'B'):>10}  "
            f"({each.members} devices; {_amount(each.received, 'B')} received)"
        )
    if program.bound is not None:
        bound = program.bound
        lines.append(
            f"  at least     {_time(bound.products)} products, {_time(bound.memory)} memory, "
            f"{_time(bound.network)} network"
        )
    return lines


def summary(plan: Plan) -> str:
    """A plan's step in one line."""
    step = plan.programs["step"]
    if step.costs is None or plan.fits is False:
        told = f"does not fit: {_size(step.peak)}"
    elif step.bound is None:
        told = f"{_size(step.peak)}"
    else:
        share = "" if plan.mfu is None else f"  MFU <= {plan.mfu:.1%}"
        told = f"{_size(step.peak)}  >= {_time(step.bound.seconds)} ({step.bound.binding}){share}"
    return f"  batch {plan.batch_size:<7} {_mesh(plan):<28} {told}"


def ranking(plans: list[Plan], num_tried: int) -> str:
    """Plans in their order, a line each."""
    return "\n".join([f"{len(plans)} of {num_tried} plans fit; the best bound a sample first:", *map(summary, plans)])


def record(plan: Plan, version: str, path: Path) -> None:
    """Writes a plan into a file of plans, one JSON object a line, in the place of an earlier plan of the same run."""
    row = {**plan.to_json(), "version": version}
    rows = [each for each in recorded(path) if _run(each) != _run(row)]
    rows = sorted([*rows, row], key=lambda each: (each["experiment"], _run(each)))
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")


def recorded(path: Path) -> list[dict[str, Any]]:
    """The plans of a file that `record` wrote."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _run(row: Mapping[str, Any]) -> str:
    return json.dumps([row[name] for name in ("experiment", "topology", "mesh", "batch_size")])


def _peak_and_bound(program: Mapping[str, Any] | None) -> str:
    """Memory of a program on a device, and the seconds that a call takes at least."""
    if program is None:
        return "-"
    bound = "" if program["bound"] is None else f" {_time(program['bound']['seconds'])}"
    return _size(program["peak"]) + bound


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Recorded plans as a table of a document."""
    lines = [
        "| experiment | on | mesh, batch | a device: state, peak, memory | FLOPs over the model's | "
        "products, memory, network of a step | MFU at most | evaluation; sampler | version |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        step, mesh = row["programs"]["step"], ",".join(f"{axis}:{size}" for axis, size in row["mesh"].items())
        others = [row["programs"].get(name) for name in ("evaluation", "sampler")]
        state = row["parameters"] + row["optimizer"] + row["other_state"]
        times = "it does not fit"
        if step["bound"] is not None:
            names = ("products", "memory", "network")
            each = {name: _time(step["bound"][name]) for name in names}
            times = ", ".join(f"**{each[n]}**" if n == step["bound"]["binding"] else each[n] for n in names)
        share = lambda value, form: "" if value is None else format(value, form)
        lines.append(
            f"| {row['experiment']} | {row['topology']} | {mesh or 'data:1'}, {row['batch_size']} | {_size(state)}, "
            f"{_size(step['peak'])}, {_size(row['memory'])} | {share(row['recomputation'], '.2f')} | {times} | "
            f"{share(row['mfu'], '.1%')} | {'; '.join(map(_peak_and_bound, others))} | {row['version']} |"
        )
    return "\n".join(lines)
