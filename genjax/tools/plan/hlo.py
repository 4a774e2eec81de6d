"""The text of a compiled program (HLO), read into computations and instructions.

    %name (parameters) -> type {
      %a = f32[8,16]{1,0:T(8,128)S(1)} opcode(%b, %c), attribute=value, ...
    }

A type ends in a layout; `S(1)` in a layout says that the array lies in the chip's fast memory and not in its main
memory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

#: Bytes of an element, by the name of its type; names that are not here take no memory (tokens).
BYTES = {
    "pred": 1.0,
    **{f"{kind}{bits}": bits / 8 for kind in "su" for bits in (2, 4, 8, 16, 32, 64)},
    "f16": 2.0,
    "bf16": 2.0,
    "f32": 4.0,
    "f64": 8.0,
    "c64": 8.0,
    "c128": 16.0,
}


@dataclasses.dataclass(frozen=True)
class Array:
    """Type and place of an array.

    Attributes:
      dtype: name of the element's type.
      shape: sizes of the axes.
      in_main_memory: whether it lies in the memory of the device, and not in a fast memory on the chip.
    """

    dtype: str
    shape: tuple[int, ...]
    in_main_memory: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> float:
        """Bytes, without padding by the layout."""
        # Types of 8 bits and fewer have names such as f8e4m3fn.
        known = BYTES.get(
            self.dtype, 1.0 if self.dtype.startswith("f8") else 0.5 if self.dtype.startswith("f4") else 0.0
        )
        return self.size * known


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: its name, unique in the program.
      arrays: what it gives; several arrays of a tuple.
      opcode: what it does, such as dot or fusion.
      operands: names of the instructions that it reads.
      attributes: the rest of the line.
      is_root: whether it is what the computation returns.
      argument: what stands in the parentheses, which for a parameter is its number and for a constant its value.
    """

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    argument: str

    def called(self, attribute: str) -> str | None:
        """Name of the computation that an attribute names, as in `body=%region`."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match and match.group(1)

    @property
    def num_bytes(self) -> float:
        """Bytes of what it gives."""
        return sum(a.num_bytes for a in self.arrays)


@dataclasses.dataclass
class Computation:
    """A computation: instructions by name, in their order."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose value the computation returns."""
        return next(i for i in self.instructions.values() if i.is_root)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each instruction."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in found:
                    found[operand].append(instruction)
        return found

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Its parameters, in their order."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.argument))

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions that an instruction reads."""
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]


@dataclasses.dataclass
class Program:
    """Computations by name; `entry` is the one that runs."""

    computations: dict[str, Computation]
    entry: Computation


_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAMED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([^\]]*)\](\{[^}]*\})?")
_COMMENT = re.compile(r"/\*.*?\*/")


def parse(text: str) -> Program:
    """Reads the text of a compiled program, as `jax.stages.Compiled.as_text` gives it."""
    computations: dict[str, Computation] = {}
    entry = current = last = None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = Computation(header.group(2), {})
            computations[current.name] = current
            entry = current if header.group(1) else entry
        elif line.startswith("}") and not line.startswith("}}"):
            current = last = None
        elif current is not None and (instruction := _instruction(line)):
            current.instructions[instruction.name] = last = instruction
        elif current is not None and last is not None:
            # What kernels note of themselves breaks a line; it goes on with `}}`.
            last = dataclasses.replace(last, attributes=last.attributes + line)
            current.instructions[last.name] = last
    assert entry is not None
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    named = _NAMED.match(line)
    if named is None:
        return None
    rest = _COMMENT.sub("", line[named.end() :])
    if rest.startswith("("):
        end = _closing(rest, 0) + 1
    else:
        array = _ARRAY.match(rest)
        if array is None:
            return None
        end = array.end()
    opcode = _OPCODE.match(rest, end)
    if opcode is None:
        return None
    close = _closing(rest, opcode.end() - 1)
    argument = rest[opcode.end() : close]
    return Instruction(
        name=named.group(2),
        arrays=tuple(_arrays(rest[:end])),
        opcode=opcode.group(1),
        operands=tuple(re.findall(r"%([\w.\-]+)", argument)),
        attributes=rest[close + 1 :],
        is_root=named.group(1) is not None,
        argument=argument,
    )


def _closing(text: str, start: int) -> int:
    """Place of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)


def _arrays(text: str) -> Iterator[Array]:
    for dtype, sizes, layout in _ARRAY.findall(text):
        shape = tuple(int(n) for n in re.findall(r"\d+", sizes))
        space = re.search(r"S\((\d+)\)", layout)
        yield Array(dtype, shape, space is None or space.group(1) == "0")


# ----------------------------------------------------------------------------------------------------------------------
# Attributes


def num_iterations(program: Program, loop: Instruction, owner: Computation) -> int | None:
    """How often the body of a `while` runs, or None if its text does not tell.

    XLA notes it, or the condition compares a counter, which starts at a constant, with a constant.
    """
    noted = re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', loop.attributes)
    if noted:
        return int(noted.group(1))
    condition = program.computations[loop.called("condition") or ""]
    limits = list(_limits(program, condition))
    if len(limits) != 1:
        return None
    limit, index = limits[0]
    start = _constant(owner, owner.operands(loop)[0], index) if index is not None else 0
    return max(limit - (start or 0), 0)


def _limits(program: Program, condition: Computation) -> Iterator[tuple[int, int | None]]:
    """The constant that a condition compares a counter with, and the counter's place in the loop's state."""
    fusions = [i for i in condition.instructions.values() if i.opcode == "fusion"]
    inner = [condition, *(program.computations[i.called("calls") or ""] for i in fusions)]
    is_counter = lambda i: i.arrays[0].dtype[0] in "su" and not i.arrays[0].shape
    compared = [
        i
        for c in inner
        for i in c.instructions.values()
        if i.opcode == "compare" and "direction=LT" in i.attributes and all(map(is_counter, c.operands(i)))
    ]
    constants = [
        int(i.argument) for c in inner for i in c.instructions.values() if i.opcode == "constant" and is_counter(i)
    ]
    if len(compared) != 1 or len(constants) != 1:
        return
    taken = [i for i in condition.instructions.values() if i.opcode == "get-tuple-element"]
    place = re.search(r"index=(\d+)", taken[0].attributes) if len(taken) == 1 else None
    yield constants[0], int(place.group(1)) if place else None


def _constant(owner: Computation, state: Instruction, index: int) -> int | None:
    """The constant at a place of a tuple, or None."""
    if state.opcode != "tuple" or index >= len(state.operands):
        return None
    value = owner.instructions[state.operands[index]]
    while value.opcode in ("copy", "bitcast") and value.operands:
        value = owner.instructions[value.operands[0]]
    return int(value.argument) if value.opcode == "constant" and value.argument.lstrip("-").isdigit() else None


def device_groups(attributes: str, num_devices: int) -> np.ndarray | None:
    """The devices that take part in a collective together, int [groups, members]; None if they are not told.

    XLA writes them as lists, as an array `[groups, members]<=[shape]T(transposition)`, or as axes of a mesh.
    """
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})?\}", attributes):
        rows = [list(map(int, row.split(","))) for row in re.findall(r"\{([\d,]+)\}", listed.group(1) or "")]
        # No groups are one group of all devices.
        return np.array(rows) if rows else np.arange(num_devices)[None]
    if pairs := re.search(r"source_target_pairs=\{([\d,{}]*)\}", attributes):
        return np.array([list(map(int, pair.split(","))) for pair in re.findall(r"\{([\d,]+)\}", pairs.group(1))])
    if tiled := re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _tiled(tiled.group(1))
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\](?:, ?device_ids=(\S+?))? \{(.*?)\}", attributes):
        return _of_axes(*mesh.groups())
    return None


def _tiled(text: str) -> np.ndarray:
    """Reads `[2,4]<=[4,2]T(1,0)`, or `[4,2]T(1,0)` for the flat order of such an array."""
    match = re.search(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?", text)
    assert match is not None
    numbers = lambda part: [int(n) for n in part.split(",")]
    sizes, source, order = match.groups()
    devices = np.arange(math.prod(numbers(sizes))).reshape(numbers(source or sizes))
    devices = devices if order is None else devices.transpose(numbers(order))
    return devices.reshape(-1 if source is None else numbers(sizes))


def _of_axes(sizes: str, device_ids: str | None, axes: str) -> np.ndarray:
    """Reads `mesh['a'=2,'b'=4] {'b'}`, where `'b':(2)2` is the part of the axis b that begins after its first 2."""
    shape = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    parts: list[tuple[str, int]] = []
    chosen = {
        name: (int(before or 1), int(size or 0))
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    }
    for name, size in shape.items():
        if name not in chosen:
            parts.append(("other", size))
            continue
        before, own = chosen[name]
        own = own or size
        parts += [("other", before), ("own", own), ("other", size // before // own)]
    devices = np.arange(math.prod(shape.values())) if device_ids is None else _tiled(device_ids).reshape(-1)
    devices = devices.reshape([size for _, size in parts])
    order = [i for i, (kind, _) in enumerate(parts) if kind == "other"]
    own_axes = [i for i, (kind, _) in enumerate(parts) if kind == "own"]
    members = math.prod(parts[i][1] for i in own_axes)
    return devices.transpose(order + own_axes).reshape(-1, members)
