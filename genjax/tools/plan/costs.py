"""What a compiled program does in one call, counted from its text: products, memory traffic, collectives.

XLA's own cost analysis counts the body of a loop once, however often it runs (layers that are scanned, microbatches,
steps of a sampler); here it is counted as often as it runs.  All counts are of one device.

    products     2 x multiplications of matrix products and convolutions; other arithmetic is left out
    traffic      bytes that instructions outside of fusions read from and write to the main memory
    collectives  calls and bytes of each kind along each axis of the mesh
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from genjax.nn.splash import PAIRS
from genjax.tools.plan.hlo import Array, Computation, Instruction, Program, device_groups, num_iterations, parse

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
#: Instructions that name or reshape what is there already, or that cost what the computations they call cost.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "while",
        "call",
        "conditional",
        "opt-barrier",
        "add-dependency",
        "domain",
    ]
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Calls of one kind of collective along the same axes of the mesh.

    Attributes:
      kind: all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute.
      axes: names of the mesh's axes along which devices talk, joined by +.
      members: number of devices that talk with each other.
      count: number of calls.
      num_bytes: bytes of the whole arrays of all calls: what is gathered, reduced or exchanged.
      received: bytes that a device must receive: of n members, (n - 1) / n of what is gathered or scattered, twice as
        much of what is reduced to all, and all of what is permuted.
      largest_distance: largest difference between the numbers of two devices that talk, which tells whether they share
        a machine.
    """

    kind: str
    axes: str
    members: int
    count: int
    num_bytes: float
    received: float
    largest_distance: int


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one call of a program on one device.

    Attributes:
      products: floating-point operations of matrix products and convolutions.
      traffic: bytes read from and written to main memory.
      collectives: the collectives by kind and axes.
      unknown_loops: number of loops whose text does not tell how often they run; each is counted once.
      unnoted_kernels: number of kernels whose authors note no operations, which are missing in `products`.
    """

    products: float
    traffic: float
    collectives: tuple[Collective, ...]
    unknown_loops: int
    unnoted_kernels: int = 0


@dataclasses.dataclass
class _Sum:
    """Costs of a computation; calls of collectives by their place in the text."""

    products: float = 0.0
    traffic: float = 0.0
    unknown_loops: int = 0
    unnoted_kernels: int = 0
    calls: dict[str, tuple[_Call, int]] = dataclasses.field(default_factory=dict)

    def add(self, other: _Sum, times: int = 1) -> None:
        self.products += times * other.products
        self.traffic += times * other.traffic
        self.unknown_loops += other.unknown_loops
        self.unnoted_kernels += other.unnoted_kernels
        for place, (call, count) in other.calls.items():
            before = self.calls.get(place, (call, 0))[1]
            self.calls[place] = (call, before + times * count)


@dataclasses.dataclass(frozen=True)
class _Call:
    kind: str
    num_bytes: float
    groups: np.ndarray | None


def costs_of(text: str, mesh: Mapping[str, int]) -> Costs:
    """Counts what a compiled program does.

    Args:
      text: its text, as `jax.stages.Compiled.as_text` gives it.
      mesh: sizes of the mesh's axes in the order of its devices.
    """
    program = parse(text)
    counted = _Counter(program, math.prod(mesh.values())).computation(program.entry.name)
    return Costs(
        products=counted.products,
        traffic=counted.traffic,
        collectives=tuple(_joined(counted.calls.values(), mesh)),
        unknown_loops=counted.unknown_loops,
        unnoted_kernels=counted.unnoted_kernels,
    )


class _Counter:
    def __init__(self, program: Program, num_devices: int) -> None:
        self._program, self._num_devices = program, num_devices
        # A TPU spreads a collective over several fusions that carry it on; only the one that starts it counts.
        self._started = {
            channel
            for computation in program.computations.values()
            if any('"AsyncCollectiveStart"' in i.attributes for i in computation.instructions.values())
            for channel in map(_channel, computation.instructions.values())
            if channel is not None
        }
        self._known: dict[tuple[str, bool], _Sum] = {}

    def computation(self, name: str, fused: bool = False) -> _Sum:
        """Costs of a computation; one that is fused makes no traffic inside."""
        if (name, fused) not in self._known:
            total, owner = _Sum(), self._program.computations[name]
            for instruction in owner.instructions.values():
                total.add(self._instruction(instruction, owner, fused))
            self._known[name, fused] = total
        return self._known[name, fused]

    def _instruction(self, instruction: Instruction, owner: Computation, fused: bool) -> _Sum:
        total, opcode = _Sum(), instruction.opcode
        match opcode:
            case "while":
                times = num_iterations(self._program, instruction, owner)
                total.unknown_loops += times is None
                for part in ("body", "condition"):
                    total.add(self.computation(instruction.called(part) or "", fused), 1 if times is None else times)
            case "conditional":
                branches = [self.computation(name, fused) for name in _branches(instruction)]
                # One of them runs: the dearest is counted.
                total.add(max(branches, key=lambda b: (b.products, b.traffic)))
            case "call" | "async-start":
                called = instruction.called("to_apply") or instruction.called("calls")
                if called is not None:
                    total.add(self.computation(called, fused))
            case "fusion":
                total.add(self.computation(instruction.called("calls") or "", fused=True))
            case "dot":
                total.products += _products_of_dot(instruction, owner)
            case "convolution":
                total.products += _products_of_convolution(instruction, owner)
            case "custom-call":
                noted = _noted_products(instruction) or _products_of_attention(instruction, owner)
                total.products += noted
                total.unnoted_kernels += not noted and '"tpu_custom_call"' in instruction.attributes
        if (call := self._collective(instruction, owner)) is not None:
            total.calls[instruction.name] = (call, 1)
        if not fused and opcode not in _FREE and not opcode.endswith(("-done", "-update")):
            total.traffic += _traffic(self._program, instruction, owner)
        return total

    def _collective(self, instruction: Instruction, owner: Computation) -> _Call | None:
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            return None
        if _channel(instruction) in self._started and not any(
            '"AsyncCollectiveStart"' in i.attributes for i in owner.instructions.values()
        ):
            return None
        given = list(instruction.arrays)
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
            # What it reads, what it gives, and marks.
            given = [a for a in given[1:] if a.shape]
        num_bytes = sum(a.num_bytes for a in given)
        if kind == "reduce-scatter":
            num_bytes = sum(o.num_bytes for o in owner.operands(instruction))
        elif kind == "all-reduce" and owner.name.startswith("all-reduce-scatter"):
            # XLA for TPUs writes a reduce-scatter as a fusion of an all-reduce and the slice that is kept.
            kind = "reduce-scatter"
        return _Call(kind, num_bytes, device_groups(instruction.attributes, self._num_devices))


def _channel(instruction: Instruction) -> int | None:
    """Number of the channel of a collective, the same in all fusions that carry it on."""
    if instruction.opcode not in COLLECTIVES:
        return None
    match = re.search(r"channel_id=(\d+)", instruction.attributes)
    return int(match.group(1)) if match else None


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        return re.findall(r"%?([\w.\-]+)", listed.group(1))
    return [instruction.called("true_computation") or "", instruction.called("false_computation") or ""]


# ----------------------------------------------------------------------------------------------------------------------
# Products


def _sizes(text: str, name: str) -> list[int]:
    match = re.search(rf"\b{name}=\{{([\d,]*)\}}", text)
    return [int(n) for n in match.group(1).split(",") if n] if match else []


def _products_of_dot(instruction: Instruction, owner: Computation) -> float:
    left = owner.operands(instruction)[0].arrays[0].shape
    summed = math.prod(left[i] for i in _sizes(instruction.attributes, "lhs_contracting_dims"))
    return 2.0 * instruction.arrays[0].size * summed


def _products_of_convolution(instruction: Instruction, owner: Computation) -> float:
    """As XLA counts them: positions of the kernel that lie in padding, or between elements, are no work."""
    left, kernel = (o.arrays[0].shape for o in owner.operands(instruction)[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    settings = dict(part.split("=") for part in window.group(1).split()) if window else {}
    of_input, of_kernel, of_output = labels.groups()
    spatial = sorted(c for c in of_output if c.isdigit())
    valid = 1
    for i, axis in enumerate(spatial):
        number = lambda name, default, i=i: int(settings[name].split("x")[i]) if name in settings else default
        low = int(settings["pad"].split("x")[i].split("_")[0]) if "pad" in settings else 0
        valid *= _valid_positions(
            left[of_input.index(axis)],
            kernel[of_kernel.index(axis)],
            instruction.arrays[0].shape[of_output.index(axis)],
            number("stride", 1),
            low,
            number("lhs_dilate", 1),
            number("rhs_dilate", 1),
        )
    group = lambda name: int(m.group(1)) if (m := re.search(rf"{name}=(\d+)", instruction.attributes)) else 1
    batch, features = left[of_input.index("b")], left[of_input.index("f")]
    outputs = kernel[of_kernel.index("o")]
    return 2.0 * valid * outputs * (features // group("feature_group_count")) * (batch // group("batch_group_count"))


@functools.lru_cache(maxsize=4096)
def _valid_positions(
    size: int, kernel: int, outputs: int, stride: int, low: int, base_dilation: int, window_dilation: int
) -> int:
    """Pairs of an output and a kernel's element that meet an element of the input, along one axis."""
    place = np.arange(outputs)[:, None] * stride - low + np.arange(kernel)[None] * window_dilation
    return int(((place >= 0) & (place % base_dilation == 0) & (place < size * base_dilation)).sum())


def _noted_products(instruction: Instruction) -> float:
    """Operations that the author of a kernel noted (`cost_estimate` of Pallas), else 0."""
    noted = re.search(r'"cost_estimate":\{[^}]*?"flops":"?(\d+)', instruction.attributes)
    return float(noted.group(1)) if noted else 0.0


# Products of T S D multiplications that each kernel of splash attention computes.
#   fwd  logits and output;  dkv  logits, what values get, and gradients of keys and values
#   dq   logits, what values get, and the gradient of queries
_PRODUCTS_OF_KERNEL = {"fwd": 2, "dkv": 4, "dq": 3}


def _products_of_attention(instruction: Instruction, owner: Computation) -> float:
    """Operations of splash attention, which names the pairs of a query and a key that it computes; else 0."""
    kernel = re.match(r"splash_mha_(fwd|dkv|dq)_", instruction.name)
    pairs = re.search(rf"{PAIRS}(\d+)", instruction.attributes)
    if kernel is None or pairs is None:
        return 0.0
    arrays = (a for operand in owner.operands(instruction) for a in operand.arrays)
    queries = next(a.shape for a in arrays if "f" in a.dtype and len(a.shape) >= 3)  # [..., H, T, D]
    multiplications = math.prod(queries[:-2]) * queries[-1] * int(pairs.group(1))
    return 2.0 * _PRODUCTS_OF_KERNEL[kernel.group(1)] * multiplications


# ----------------------------------------------------------------------------------------------------------------------
# Traffic


def _bytes(arrays: Iterable[Array]) -> float:
    return sum(a.num_bytes for a in arrays if a.in_main_memory)


def _traffic(program: Program, instruction: Instruction, owner: Computation) -> float:
    operands = owner.operands(instruction)
    own = _bytes(instruction.arrays)
    match instruction.opcode:
        case "fusion":
            return _traffic_of_fusion(program.computations[instruction.called("calls") or ""], instruction, operands)
        case "dynamic-slice" | "slice" | "gather":
            return own + (own if operands[0].arrays[0].in_main_memory else 0.0)
        case "dynamic-update-slice":
            return 2 * _bytes(operands[1].arrays)
        case "scatter":
            return 3 * _bytes(operands[-1].arrays)
        case "copy-start" | "slice-start":
            # What it gives, what it reads, and a mark.
            copied = instruction.arrays[0] if instruction.opcode == "copy-start" else instruction.arrays[1]
            ends = [instruction.arrays[0], *(o.arrays[0] for o in operands[:1])]
            return sum(copied.num_bytes for end in ends if end.in_main_memory)
        case "async-start":
            return 0.0
        case "custom-call" if '"AllocateBuffer"' in instruction.attributes:
            return 0.0
    if instruction.opcode.endswith("-start"):
        own = _bytes(instruction.arrays[1:])
    return own + sum(_bytes(o.arrays) for o in operands)


def _traffic_of_fusion(fused: Computation, instruction: Instruction, operands: list[Instruction]) -> float:
    """What a fusion reads and writes: of arrays that it only slices, the slices; of arrays that it updates in place,
    the updates.
    """
    total = 0.0
    for parameter, operand in zip(fused.parameters, operands):
        if operand.arrays and all(a.in_main_memory for a in operand.arrays):
            total += _read(fused, parameter)
    root = fused.root
    parts = fused.operands(root) if root.opcode == "tuple" else [root]
    for array, part in zip(instruction.arrays, parts):
        if array.in_main_memory:
            total += _written(fused, part, array)
    return total


def _read(fused: Computation, parameter: Instruction) -> float:
    readers = list(_readers(fused, parameter))
    if any(operand is None for operand in readers):
        return parameter.num_bytes
    return min(
        sum(r.num_bytes for r in readers if r is not None and r.opcode != "dynamic-update-slice"), parameter.num_bytes
    )


def _readers(fused: Computation, value: Instruction) -> Iterator[Instruction | None]:
    """The slices of a value and its updates in place; None for a reader of the whole."""
    if value.is_root and value.opcode != "parameter":
        yield None
    for user in fused.users[value.name]:
        if user.opcode in ("bitcast", "reshape"):
            yield from _readers(fused, user)
        elif (
            user.opcode in ("dynamic-slice", "slice", "gather", "dynamic-update-slice")
            and user.operands[0] == value.name
        ):
            yield user
        else:
            yield None


def _written(fused: Computation, part: Instruction, array: Array) -> float:
    while part.opcode in ("bitcast", "reshape") and part.operands:
        part = fused.instructions[part.operands[0]]
    if part.opcode == "dynamic-update-slice":
        return fused.operands(part)[1].num_bytes
    if part.opcode == "parameter":
        return 0.0
    return array.num_bytes


# ----------------------------------------------------------------------------------------------------------------------
# Collectives


def _joined(calls: Iterable[tuple[_Call, int]], mesh: Mapping[str, int]) -> Iterator[Collective]:
    """Collectives by kind and axes, the largest first."""
    found: dict[tuple[str, str], Collective] = {}
    for call, count in calls:
        axes, members, distance = _axes(call.groups, mesh)
        if members < 2:
            continue
        share = (members - 1) / members
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(call.kind, share)
        before = found.get((call.kind, axes), Collective(call.kind, axes, members, 0, 0.0, 0.0, distance))
        found[call.kind, axes] = dataclasses.replace(
            before,
            members=max(before.members, members),
            count=before.count + count,
            num_bytes=before.num_bytes + count * call.num_bytes,
            received=before.received + count * factor * call.num_bytes,
            largest_distance=max(before.largest_distance, distance),
        )
    yield from sorted(found.values(), key=lambda c: -c.received)


def _axes(groups: np.ndarray | None, mesh: Mapping[str, int]) -> tuple[str, int, int]:
    """The axes along which the devices of a group differ, their number, and the largest distance of their numbers."""
    if groups is None:
        return "unknown", math.prod(mesh.values()), math.prod(mesh.values())
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())))
    differs = [bool((place != place[:, :1]).any()) for place in places]
    axes = "+".join(name for name, differing in zip(mesh, differs) if differing)
    distance = int((groups.max(1) - groups.min(1)).max())
    return axes, groups.shape[1], distance
