"""scheduler_config.json of the library diffusers as process, target and sampler, and back."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from genjax.families.diffusion.multistep import LMS, PLMS, UniPC
from genjax.families.diffusion.processes import BetaSchedule, Discrete, LinearInterpolant, Process
from genjax.families.diffusion.published_grids import FlowGrid, PublishedGrid, resolution_shift
from genjax.families.diffusion.samplers import DDIM, Ancestral, DPMSolver, Euler, Heun, Sampler
from genjax.families.diffusion.targets import Target
from genjax.interop.architecture import Config, UnsupportedError, require

CONFIG_FILE = "scheduler_config.json"
_require = functools.partial(require, file=CONFIG_FILE)
_FLOW = "FlowMatchEulerDiscreteScheduler"
_SCHEDULES: dict[str, BetaSchedule] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}
_TARGETS: dict[str, Target] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
#: Sampler, kind of grid, and default spacing of each scheduler.
_SAMPLERS: dict[str, tuple[type[Sampler], str, str]] = {
    "DDIMScheduler": (DDIM, "steps", "leading"),
    "DDPMScheduler": (Ancestral, "steps", "leading"),
    "PNDMScheduler": (PLMS, "steps", "leading"),
    "EulerDiscreteScheduler": (Euler, "levels", "linspace"),
    "EulerAncestralDiscreteScheduler": (Ancestral, "levels", "linspace"),
    "HeunDiscreteScheduler": (Heun, "levels", "linspace"),
    "LMSDiscreteScheduler": (LMS, "levels", "linspace"),
    "DPMSolverMultistepScheduler": (DPMSolver, "solver", "linspace"),
    "UniPCMultistepScheduler": (UniPC, "solver", "linspace"),
}
#: Settings that must have one value, by name: their default in the library, and the values that are read.
_FIXED: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None, None),
    "thresholding": (False, False),
    "interpolation_type": ("linear", "linear"),
    "timestep_type": ("discrete", "discrete"),
    "use_exponential_sigmas": (False, False, None),
    "use_beta_sigmas": (False, False, None),
    "use_lu_lambdas": (False, False, None),
    "use_flow_sigmas": (False, False, None),
    "sigma_min": (None, None),
    "sigma_max": (None, None),
    "euler_at_final": (False, False),
    "solver_p": (None, None),
}


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """What a scheduler says of a diffusion model: fields of `Diffusion`."""

    process: Process
    target: Target
    sampler: Sampler
    clip_x0: bool = False

    def fields(self) -> dict[str, Any]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def _known(config: Config, name: str, default: Any, table: dict[str, Any]) -> Any:
    value = config.get(name, default)
    if value not in table:
        raise UnsupportedError(f"{CONFIG_FILE} has {name}={value!r}; known are {', '.join(map(str, table))}")
    return table[value]


def read_scheduler(config: Config, num_steps: int = 50, num_patches: int | None = None) -> Scheduler:
    """The process, target and sampler of a scheduler's settings.

    Args:
      config: the settings.
      num_steps: steps of the sampler.
      num_patches: patches of a picture, which decide the times of flows with use_dynamic_shifting.

    Raises:
      UnsupportedError: the scheduler or a setting of it is not known.
    """
    name = config.get("_class_name", "")
    if name == _FLOW:
        return _read_flow(config, num_steps, num_patches)
    if name not in _SAMPLERS:
        raise UnsupportedError(
            f"{CONFIG_FILE} is of the scheduler {name!r}; known are {', '.join((*_SAMPLERS, _FLOW))}"
        )
    kind_of_sampler, kind, spacing = _SAMPLERS[name]
    for setting, (default, *allowed) in _FIXED.items():
        _require(config, setting, default, *allowed)
    target = _known(config, "prediction_type", "epsilon", _TARGETS)
    process = Discrete(
        schedule=_known(config, "beta_schedule", "linear", _SCHEDULES),
        num_timesteps=config.get("num_train_timesteps", 1000),
        beta_min=config.get("beta_start", 1e-4),
        beta_max=config.get("beta_end", 0.02),
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
        counts_steps=True,
    )
    if process.zero_terminal_snr and target == "epsilon":
        raise UnsupportedError(
            f"{CONFIG_FILE} has rescale_betas_zero_snr with prediction_type=epsilon, which says nothing of the data at "
            "the last step; it needs v_prediction"
        )
    ends = {"zero": "data", "sigma_min": "first_step"}
    end = _known(config, "final_sigmas_type", "zero", ends)
    if kind == "steps" and name != "DDPMScheduler":
        one = config.get("set_alpha_to_one", name == "DDIMScheduler")
        end = "data" if one else "first_step"
    grid = PublishedGrid(
        kind=kind,
        spacing=config.get("timestep_spacing", spacing),
        offset=config.get("steps_offset", 0),
        karras=bool(config.get("use_karras_sigmas", False)),
        ends_at=end,
    )
    options: dict[str, Any] = {}
    if name == "DDIMScheduler":
        # With clipping the library steps along the noise of the estimate that was not clipped.
        _require(config, "clip_sample", True, False)
    match name:
        case "PNDMScheduler":
            if not config.get("skip_prk_steps", False):
                raise UnsupportedError(f"{CONFIG_FILE} has skip_prk_steps=False, and only True can be read")
        case "DDPMScheduler":
            variances = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large"}
            options["variance"] = _known(config, "variance_type", "fixed_small", variances)
        case "EulerAncestralDiscreteScheduler":
            options["variance"] = "small"
        case "DPMSolverMultistepScheduler":
            kinds = {"dpmsolver++": False, "sde-dpmsolver++": True}
            options["stochastic"] = _known(config, "algorithm_type", "dpmsolver++", kinds)
            orders = {1: "first", 2: "multistep"}
            options["method"] = _known(config, "solver_order", 2, orders)
            _require(config, "solver_type", "midpoint", "midpoint")
            options["first_order_end"] = 15 if config.get("lower_order_final", True) else 0
        case "UniPCMultistepScheduler":
            _require(config, "solver_order", 2, 2)
            _require(config, "predict_x0", True, True)
            _require(config, "disable_corrector", [], [], None)
            options["variant"] = config.get("solver_type", "bh2")
            _require(config, "solver_type", "bh2", "bh1", "bh2")
            options["first_order_end"] = config.get("lower_order_final", True)
    clips = config.get("clip_sample", name == "DDPMScheduler")
    if clips:
        _require(config, "clip_sample_range", 1.0, 1.0)
    sampler = kind_of_sampler(num_steps=num_steps, published=grid, **options)
    return Scheduler(process, target, sampler, bool(clips))


def _read_flow(config: Config, num_steps: int, num_patches: int | None) -> Scheduler:
    """The Euler steps of a flow, which for the linear interpolant are DDIM's."""
    for setting in ("invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        _require(config, setting, False, False, None)
    _require(config, "stochastic_sampling", False, False, None)
    _require(config, "shift_terminal", None, None)
    grid = FlowGrid(shift=config.get("shift", 1.0), num_timesteps=config.get("num_train_timesteps", 1000))
    if config.get("use_dynamic_shifting", False):
        if num_patches is None:
            raise UnsupportedError(
                f"{CONFIG_FILE} has use_dynamic_shifting, whose times depend on the picture; say of how many patches"
            )
        _require(config, "time_shift_type", "exponential", "exponential", "linear")
        shift = resolution_shift(
            num_patches,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
            config.get("time_shift_type", "exponential") == "exponential",
        )
        grid = dataclasses.replace(grid, shift=shift, last="even")
    return Scheduler(LinearInterpolant(), "velocity", DDIM(num_steps=num_steps, published=grid))


def _write_flow(process: Any, target: str, sampler: Sampler) -> dict[str, Any]:
    grid = sampler.published
    if type(sampler) is not DDIM or target != "velocity" or not isinstance(process, LinearInterpolant):
        raise UnsupportedError(
            f"the library diffusers has no scheduler of a {type(sampler).__name__} on flow times with "
            f"target={target}; it has DDIM's steps, which it calls Euler's, with target=velocity"
        )
    if grid.last != "shifted_step":
        raise UnsupportedError(
            f"no settings of {_FLOW} end at published.last={grid.last}; write shifted_step, and give the library the "
            "times by set_timesteps(sigmas=...)"
        )
    return {"_class_name": _FLOW, "num_train_timesteps": grid.num_timesteps, "shift": grid.shift}


def write_scheduler(process: Any, target: str, sampler: Sampler, clip_x0: bool) -> dict[str, Any]:
    """scheduler_config.json of a model.

    Raises:
      UnsupportedError: the library has no scheduler of these settings.
    """
    grid = sampler.published
    if isinstance(grid, FlowGrid):
        return _write_flow(process, target, sampler)
    names = [
        name for name, (kind, places, _) in _SAMPLERS.items() if grid and type(sampler) is kind and places == grid.kind
    ]
    schedules = {ours: theirs for theirs, ours in _SCHEDULES.items()}
    targets = {ours: theirs for theirs, ours in _TARGETS.items()}
    if grid is None or not names or not isinstance(process, Discrete) or target not in targets:
        raise UnsupportedError(
            f"the library diffusers has no scheduler of a {type(sampler).__name__} on a {type(process).__name__} "
            f"process with target={target}; it has them on a Discrete process with sampler.published"
        )
    if process.schedule not in schedules or not process.counts_steps:
        raise UnsupportedError(
            f"the library diffusers has no process with schedule={process.schedule} that counts steps so"
        )
    name = names[0]
    config = {
        "_class_name": name,
        "num_train_timesteps": process.num_timesteps,
        "beta_start": process.beta_min,
        "beta_end": process.beta_max,
        "beta_schedule": schedules[process.schedule],
        "prediction_type": targets[target],
        "timestep_spacing": grid.spacing,
        "steps_offset": grid.offset,
    }
    if name in ("DDIMScheduler", "PNDMScheduler"):
        config["set_alpha_to_one"] = grid.ends_at == "data"
    elif grid.ends_at != "data":
        config["final_sigmas_type"] = "sigma_min"
    if process.zero_terminal_snr:
        config["rescale_betas_zero_snr"] = True
    if grid.karras:
        config["use_karras_sigmas"] = True
    if name in ("DDIMScheduler", "DDPMScheduler", "HeunDiscreteScheduler"):
        config["clip_sample"] = clip_x0
    match sampler:
        case PLMS():
            config["skip_prk_steps"] = True
        case DPMSolver():
            config["algorithm_type"] = "sde-dpmsolver++" if sampler.stochastic else "dpmsolver++"
            config["solver_order"] = 1 if sampler.method == "first" else 2
            config["solver_type"] = "midpoint"
            config["lower_order_final"] = sampler.first_order_end > 0
        case UniPC():
            config |= {"solver_order": 2, "solver_type": sampler.variant, "predict_x0": True}
            config["lower_order_final"] = sampler.first_order_end
    return config
