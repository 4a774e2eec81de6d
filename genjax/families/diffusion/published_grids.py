"""Grids of times as the schedulers of the library diffusers place them, for chains of DDPM (Lin et al. 2023,
arXiv:2305.08891, table 2).

A network of such a chain was trained at the steps k = 0 .. T - 1, with alpha_k^2 = prod (1 - beta).  For n steps

    leading    k = i floor(T / n) + offset       trailing   k = round(T - i T / n) - 1       linspace   from T - 1 to 0

Schedulers that solve the ODE in s = sigma / alpha take s between two steps by linear interpolation; those after
DPM-Solver divide by n + 1, and round.  With Karras' levels, s is set by eq. 5 of arXiv:2206.00364, and the network's
time is found by interpolation of log s.

Two things differ from the library on purpose.  A step of DDIM or PNDM leads to the next time of the grid; the library
goes back by floor(T / n) steps, which is another time in the spacings linspace and, where n does not divide T, trailing
(its issue 12633).  And times that the chain does not have are refused (its issue 10003).

Flows have no chain: their times are sigma itself, from 1 to the last before 0, each shifted (Esser et al. 2024,
arXiv:2403.03206, eq. 23).  The library shifts the last one twice where it is not told the times (its issue 13243).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.diffusion.grids import Node
from genjax.families.diffusion.processes import Discrete, GaussianProcess, LinearInterpolant, shifted_time


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridProcess(GaussianProcess):
    """A process that is known at the nodes of a grid alone; node i of n + 1 lies at the time 1 - i / n.

    Attributes:
      times: what the network is told at each node.
      alphas: factors of the data.
      sigmas: deviations of the noise.
      start_scale: deviation of the noise that sampling starts from.
    """

    times: tuple[float, ...]
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    start_scale: float = 1.0

    @property
    def num_steps(self) -> int:
        """Number n of steps."""
        return len(self.times) - 1

    def _at(self, values: tuple[float, ...], t: Array) -> Array:
        nodes = jnp.round((1.0 - jnp.asarray(t)) * self.num_steps).astype(jnp.int32)
        return jnp.asarray(np.asarray(values, np.float32))[nodes]

    def alpha(self, t: Array) -> Array:
        return self._at(self.alphas, t)

    def sigma(self, t: Array) -> Array:
        return self._at(self.sigmas, t)

    def network_time(self, t: Array) -> Array:
        return self._at(self.times, t)

    @property
    def prior_scale(self) -> float:
        return self.start_scale

    @property
    def ends_in_pure_noise(self) -> bool:
        return self.alphas[0] == 0.0

    def grid(self) -> Node:
        """All nodes, [num_steps + 1] each."""
        t = 1.0 - jnp.arange(self.num_steps + 1, dtype=jnp.float32) / self.num_steps
        array = lambda values: jnp.asarray(np.asarray(values, np.float32))
        return Node(t, array(self.alphas), array(self.sigmas))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearGridProcess(GridProcess):
    """Nodes of the linear interpolant, whose slopes are known too."""

    def derivatives(self, t: Array) -> tuple[Array, Array]:
        one = jnp.ones_like(jnp.asarray(t, jnp.float32))
        return -one, one


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedGrid:
    """How a scheduler of the library diffusers places its times.

    Attributes:
      kind: steps, whole steps of the chain (DDIM, PNDM, DDPM); levels, noise levels between steps (Euler, Heun, LMS);
        solver, whole steps of a grid of one more (DPM-Solver, UniPC).
      spacing: leading, trailing or linspace.
      offset: number added to the steps of the spacing leading.
      karras: noise levels of Karras et al. 2022, which kind steps does not have.
      ends_at: what the last step leads to: the data, the chain's first step (the library's set_alpha_to_one=false, and
        final_sigmas_type=sigma_min).
    """

    flag_name: ClassVar[str] = "published_grid"

    kind: Literal["steps", "levels", "solver"] = "steps"
    spacing: Literal["leading", "trailing", "linspace"] = "leading"
    offset: int = 1
    karras: bool = False
    ends_at: Literal["data", "first_step"] = "data"

    def steps(self, count: int, total: int) -> np.ndarray:
        """The times k of `count` steps, falling; whole numbers unless kind is levels and spacing linspace.

        Args:
          count: number n of steps.
          total: number T of steps of the chain.

        Raises:
          UserError: the chain has fewer steps than `count`, or lacks one of them.
        """
        if not 1 <= count <= total:
            raise UserError(f"num_steps={count} must lie between 1 and the {total} steps of the process")
        nodes = count + 1 if self.kind == "solver" else count
        match self.spacing:
            case "leading":
                k = (np.arange(nodes) * (total // nodes))[::-1][:count].astype(float) + self.offset
            case "trailing":
                k = np.round(np.arange(total, 0, -total / count))[:count] - 1.0
            case "linspace":
                k = np.linspace(0, total - 1, nodes)[::-1][:count]
                k = k if self.kind == "levels" else k.round()
            case _:
                raise UserError(f"unknown spacing {self.spacing!r}; choose leading, trailing or linspace")
        if k[0] > total - 1:
            raise UserError(
                f"num_steps={count} with spacing=leading and offset={self.offset} asks for step {k[0]:g}, and the "
                f"process ends at {total - 1}; give fewer steps or offset=0"
            )
        return k

    def on(self, process: GaussianProcess, count: int) -> GridProcess:
        """The process at the nodes of a grid of `count` steps.

        Raises:
          UserError: the process is no chain, or the grid does not fit it.
        """
        if not isinstance(process, Discrete):
            raise UserError(
                f"a published grid lies on the steps of a chain, and {type(process).__name__} is none; give "
                "process=discrete, or sampler.published=none"
            )
        if self.karras and self.kind == "steps":
            raise UserError("karras levels lie between the steps of a chain; give published.kind=levels or solver")
        k, total = self.steps(count, process.num_timesteps), process.num_timesteps
        squares = np.cumprod(1.0 - process.betas)
        if process.zero_terminal_snr and self.kind != "steps":
            # sigma / alpha must be finite there; the library has this number, the smallest of half precision.
            squares[-1] = 2.0**-24
        with np.errstate(divide="ignore"):
            levels = np.sqrt((1.0 - squares) / squares)
        if self.kind == "steps":
            places = k.astype(int)
            alphas, sigmas = np.sqrt(squares[places]), np.sqrt(1.0 - squares[places])
        else:
            s = np.interp(k, np.arange(total), levels)
            if self.karras:
                high, low = (levels[-1], levels[0]) if self.kind == "solver" else (s[0], s[-1])
                ramp = np.linspace(0.0, 1.0, count)
                s = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
                k = np.interp(np.log(s), np.log(levels), np.arange(total))
                k = k.round() if self.kind == "solver" else k
            alphas = 1.0 / np.sqrt(1.0 + s**2)
            sigmas = s * alphas
        # Schedulers in s scale noise by the largest s, and by sqrt(s^2 + 1) in the spacing leading.
        start = float(sigmas[0]) if self.kind == "levels" and self.spacing != "leading" else 1.0
        last = (1.0, 0.0) if self.ends_at == "data" else (np.sqrt(squares[0]), np.sqrt(1.0 - squares[0]))
        with_end = lambda values, end: tuple(map(float, (*values, end)))
        return GridProcess(
            times=with_end(k, 0.0),
            alphas=with_end(alphas, last[0]),
            sigmas=with_end(sigmas, last[1]),
            start_scale=start,
        )


def resolution_shift(
    num_patches: int,
    fewest: int = 256,
    most: int = 4096,
    lowest: float = 0.5,
    highest: float = 1.15,
    exponential: bool = True,
) -> float:
    """The shift of pictures by their number of patches: e^mu, with mu linear in the number (Flux), or mu itself.

    Args:
      num_patches: patches of a picture.
      fewest, most: numbers of patches at which mu has the values `lowest` and `highest`.
      lowest, highest: these values.
      exponential: whether the shift is e^mu.
    """
    mu = lowest + (highest - lowest) * (num_patches - fewest) / (most - fewest)
    return math.exp(mu) if exponential else mu


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowGrid:
    """How FlowMatchEulerDiscreteScheduler of the library diffusers places its times, evenly and then shifted.

    Attributes:
      shift: s of s t / (1 + (s - 1) t).
      last: the last time before 0, before it is shifted: step, 1 / num_timesteps; shifted_step, the same shifted
        already, which the library takes by default; even, 1 / num_steps, which Flux' pipeline gives.
      num_timesteps: number T; the network is told T t.
    """

    flag_name: ClassVar[str] = "flow_grid"

    shift: float = 1.0
    last: Literal["shifted_step", "step", "even"] = "shifted_step"
    num_timesteps: int = 1000

    def on(self, process: GaussianProcess, count: int) -> LinearGridProcess:
        """The process at the nodes of a grid of `count` steps.

        Raises:
          UserError: the process is no linear interpolant.
        """
        if not isinstance(process, LinearInterpolant):
            raise UserError(
                f"a flow grid has the times of the linear interpolant, and the process is {type(process).__name__}; "
                "give process=linear, or sampler.published=none"
            )
        step = 1.0 / self.num_timesteps
        last = {"step": step, "shifted_step": shifted_time(step, self.shift), "even": 1.0 / count}[self.last]
        sigmas = shifted_time(np.linspace(1.0, last, count), self.shift)
        with_end = lambda values, end: tuple(map(float, (*values, end)))
        return LinearGridProcess(
            times=with_end(self.num_timesteps * sigmas, 0.0),
            alphas=with_end(1.0 - sigmas, 1.0),
            sigmas=with_end(sigmas, 0.0),
        )
