"""What is planned for, and what a plan tells."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from genjax.tools.plan.costs import Costs

ProgramName = Literal["step", "evaluation", "sampler"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to plan for.

    Attributes:
      topology: a TPU slice (v5p:4x4x4, v5e:2x4), a number of GPUs (h100:8), or host:N for N devices of this machine.
      chip: with host:N, the chip whose rates to take: v4, v5e, v5p, v6e, a100, h100 or h200.
      programs: which programs to compile.
      search: try meshes and batch sizes, and list those that fit, the best bound first.
      batch_sizes: batch sizes to search; empty for the experiment's own.
      budget: longest time of a search in seconds.
    """

    topology: str = "host:1"
    chip: str | None = None
    programs: tuple[ProgramName, ...] = ("step", "evaluation", "sampler")
    search: bool = False
    batch_sizes: tuple[int, ...] = ()
    budget: float = 3600.0


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that one call takes at least on a chip, by what takes them.

    Attributes:
      products, memory, network: seconds of matrix products, of main memory, and of the links between chips.
    """

    products: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """The bound: the largest of the three."""
        return max(self.products, self.memory, self.network)

    @property
    def binding(self) -> str:
        """Which of the three it is."""
        return max(("products", "memory", "network"), key=lambda name: getattr(self, name))


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """One program on one device.

    Attributes:
      inputs: bytes of its batch, or of its conditions.
      temporaries: bytes that it needs while it runs, beside its inputs and outputs.
      peak: bytes that it needs in all, with the state.
      costs: what it does; None if it does not fit into the memory of the compiler's chip.
      bound: what it takes at least; None where the chip's rates are not known.
      compile_seconds: what compiling it took here.
      xla_flops: XLA's own count of operations, which counts loops once.
    """

    inputs: float
    temporaries: float
    peak: float
    costs: Costs | None
    bound: Bound | None
    compile_seconds: float
    xla_flops: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan of an experiment on devices.

    Attributes:
      experiment: its name.
      topology: what was planned for.
      mesh: sizes of the mesh's axes above one.
      batch_size: examples of a step over all devices.
      num_devices: number of devices.
      num_parameters: number of parameters.
      parameters, optimizer, other_state: bytes of the state on a device: parameters; the optimizer's; averages and what
        families add.
      memory: bytes of a device's memory, or None where they are not known.
      model_flops: floating-point operations of the model alone in a step, over all devices.
      model_flops_of: how they were counted.
      peak_flops: floating-point operations a second of a device, or None where they are not known.
      programs: the plans of its programs, by name.
      unknown: sentences about what this plan cannot know.
    """

    experiment: str
    topology: str
    mesh: dict[str, int]
    batch_size: int
    num_devices: int
    num_parameters: int
    parameters: float
    optimizer: float
    other_state: float
    memory: float | None
    model_flops: float
    model_flops_of: str
    peak_flops: float | None
    programs: dict[str, ProgramPlan]
    unknown: tuple[str, ...]

    @property
    def fits(self) -> bool | None:
        """Whether all programs fit into the memory of a device; None where its memory is not known."""
        if self.memory is None:
            return None
        return all(p.costs is not None and p.peak <= self.memory for p in self.programs.values())

    @property
    def recomputation(self) -> float | None:
        """Products of the step over the model's own: 1 where nothing is computed twice."""
        step = self.programs.get("step")
        if step is None or step.costs is None or not self.model_flops:
            return None
        return step.costs.products * self.num_devices / self.model_flops

    @property
    def mfu(self) -> float | None:
        """The largest share of the chips' peak that the model can reach."""
        step = self.programs.get("step")
        if step is None or step.bound is None or not step.bound.seconds or self.peak_flops is None:
            return None
        return self.model_flops / (step.bound.seconds * self.num_devices * self.peak_flops)

    def to_json(self) -> dict[str, Any]:
        """All of it in plain types, with what follows from it."""
        tree = dataclasses.asdict(self)
        for name, program in self.programs.items():
            if program.bound is not None:
                tree["programs"][name]["bound"] |= {"seconds": program.bound.seconds, "binding": program.bound.binding}
        return tree | {"fits": self.fits, "recomputation": self.recomputation, "mfu": self.mfu}
