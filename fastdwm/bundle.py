"""A trained agent on disk: one folder with `bundle.json` and `weights.safetensors`.

The JSON says what the numbers are (task, data, environment, architecture, training, measured quality, versions); the
tensors are the numbers. Loading trusts neither: every name, shape and value is checked, and nothing is unpickled.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fastdwm.config import (
    SAMPLERS,
    DeterministicConfig,
    DiffusionConfig,
    MeanFlowConfig,
    ReBRACConfig,
    RewardConfig,
    require,
)
from fastdwm.data import EnvSpec
from fastdwm.deterministic import build_deterministic, deterministic_shapes
from fastdwm.diffusion import build_diffusion, denoiser_shapes
from fastdwm.errors import InputError
from fastdwm.meanflow import build_meanflow, meanflow_shapes
from fastdwm.nets import Params
from fastdwm.rebrac import critic_shapes, policy_shapes
from fastdwm.reward import RewardModel, reward_shapes
from fastdwm.rollout import Dynamics, World
from fastdwm.tasks import get_task

FORMAT = 1
STATISTICS = ("obs_mean", "obs_std", "delta_mean", "delta_std")
OPTIONAL = {
    "meanflow": (MeanFlowConfig, meanflow_shapes),
    "deterministic": (DeterministicConfig, deterministic_shapes),
}
"""groups of tensors that a bundle may lack: their configuration and their shapes"""
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "minari")


@dataclass(frozen=True)
class Bundle:
    """Weights and their description; float32 tensors on the CPU.

    policy, critics, dynamics, reward: network parameters.   statistics: obs_mean, obs_std, delta_mean, delta_std (S,).
    meanflow, deterministic: parameters of the other world models, none in a bundle without them.
    dataset: id, transitions, episodes, mean return.   report: whatever was measured on the models, as JSON.
    """

    task: str
    env: EnvSpec
    dataset: dict[str, Any]
    reward_scale: float
    policy: Params
    critics: Params
    dynamics: Params
    reward: Params
    statistics: dict[str, Tensor]
    rebrac_config: ReBRACConfig
    dynamics_config: DiffusionConfig
    reward_config: RewardConfig
    report: dict[str, Any]
    versions: dict[str, str]
    meanflow: Params | None = None
    meanflow_config: MeanFlowConfig | None = None
    deterministic: Params | None = None
    deterministic_config: DeterministicConfig | None = None

    @property
    def obs_dim(self) -> int:
        return self.policy["w0"].shape[0]

    @property
    def action_dim(self) -> int:
        return self.policy[f"b{len(self.rebrac_config.hidden)}"].shape[0]

    @property
    def discount(self) -> float:
        return self.rebrac_config.discount

    @property
    def _optional(self) -> tuple[str, ...]:
        return tuple(name for name in OPTIONAL if getattr(self, name) is not None)

    @property
    def samplers(self) -> tuple[str, ...]:
        """The world models that it holds, as `--sampler` names them."""
        held = {"diffusion": self.dynamics, "meanflow": self.meanflow, "mlp": self.deterministic}
        return tuple(name for name in SAMPLERS if held[name] is not None)

    def world(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        sampler: str = "diffusion",
        sample_steps: int | None = None,
        temperature: float | None = None,
    ) -> World:
        """The frozen models to imagine with.

        sample_steps: network calls per transition, of diffusion 1 to its K, of meanflow 1, 2 or 4; none: the bundle's.
        temperature: of meanflow's noise, in [0, 1]; none: the bundle's.
        Raises InputError for a sampler that the bundle does not hold, or what the sampler does not have.
        """
        held = ", ".join(self.samplers)
        require(sampler in self.samplers, f"sampler: the bundle holds {held}, got {sampler!r}")

        def place(params: Params) -> Params:
            return {name: value.to(device, dtype) for name, value in params.items()}

        dynamics = self._dynamics(sampler, sample_steps, temperature, place, dtype)
        reward = RewardModel(place(self.reward), dynamics.obs_mean, dynamics.obs_std)
        limits = get_task(self.task).env.limits
        return World(dynamics, reward, place(self.critics), self.discount, limits)

    def _dynamics(
        self,
        sampler: str,
        steps: int | None,
        temperature: float | None,
        place: Callable[[Params], Params],
        dtype: torch.dtype,
    ) -> Dynamics:
        statistics = place(self.statistics)
        if sampler == "meanflow":
            asked = {"sample_steps": steps, "temperature": temperature}
            asked = {name: value for name, value in asked.items() if value is not None}
            config = dataclasses.replace(self.meanflow_config, **asked)
            return build_meanflow(place(self.meanflow), statistics, config, dtype)
        require(temperature is None, f"temperature: expected none for {sampler}, got {temperature}")
        if sampler == "mlp":
            require(steps in (None, 1), f"sample_steps: expected 1 for mlp, got {steps}")
            return build_deterministic(place(self.deterministic), statistics, dtype)
        most = self.dynamics_config.denoise_steps
        require(steps is None or 1 <= steps <= most, f"sample_steps: expected 1 to {most} for diffusion, got {steps}")
        return build_diffusion(place(self.dynamics), statistics, self.dynamics_config, dtype, steps)

    def save(self, folder: Path) -> None:
        """Write the folder; a reader sees the old bundle or the new one, never a mixture."""
        header = {
            "format": FORMAT,
            "task": self.task,
            "env": dataclasses.asdict(self.env),
            "dataset": self.dataset,
            "reward_scale": self.reward_scale,
            "obs_dim": self.obs_dim,
            "action_dim": self.action_dim,
            "rebrac": dataclasses.asdict(self.rebrac_config),
            "dynamics": dataclasses.asdict(self.dynamics_config),
            "reward": dataclasses.asdict(self.reward_config),
            **{name: dataclasses.asdict(getattr(self, f"{name}_config")) for name in self._optional},
            "report": self.report,
            "versions": self.versions,
        }
        names = ("policy", "critics", "dynamics", "reward", "statistics", *self._optional)
        groups = {name: getattr(self, name) for name in names}
        tensors = {f"{g}.{name}": t.detach().contiguous() for g, params in groups.items() for name, t in params.items()}
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            new.mkdir()
            (new / "weights.safetensors").write_bytes(save(tensors))
            (new / "bundle.json").write_text(json.dumps(header, indent=2) + "\n")
            if folder.exists():
                os.rename(folder, old)
            os.rename(new, folder)

    @classmethod
    def load(cls, folder: Path | str) -> "Bundle":
        """Read a bundle; InputError for a file that is missing or damaged, or a tensor that is missing, superfluous,
        of the wrong shape or dtype, or not finite."""
        folder = Path(folder)
        header = _read_header(folder / "bundle.json")
        try:
            task, obs_dim, action_dim = header["task"], int(header["obs_dim"]), int(header["action_dim"])
            rebrac = _read_config(ReBRACConfig, header["rebrac"]).for_task(get_task(task))
            dynamics = _read_config(DiffusionConfig, header["dynamics"])
            reward = _read_config(RewardConfig, header["reward"])
            optional = {name: _read_config(OPTIONAL[name][0], header[name]) for name in OPTIONAL if name in header}
            env = EnvSpec(**header["env"])
            rest = {name: header[name] for name in ("dataset", "reward_scale", "report", "versions")}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / 'bundle.json'}: not a bundle description ({error})") from None
        environment = get_task(task).env
        for name, came, expected in (
            ("obs_dim", obs_dim, environment.obs_dim),
            ("action_dim", action_dim, environment.action_dim),
        ):
            if came != expected:
                raise InputError(f"{folder / 'bundle.json'}: {name}: task {task} has {expected}, got {came}")
        shapes = {
            "policy": policy_shapes(obs_dim, action_dim, rebrac.hidden),
            "critics": critic_shapes(obs_dim, action_dim, rebrac.hidden),
            "dynamics": denoiser_shapes(obs_dim, action_dim, dynamics),
            "reward": reward_shapes(obs_dim, action_dim, reward),
            "statistics": dict.fromkeys(STATISTICS, (obs_dim,)),
        }
        shapes |= {name: OPTIONAL[name][1](obs_dim, action_dim, config) for name, config in optional.items()}
        groups = _read_tensors(folder / "weights.safetensors", shapes)
        configs = {"rebrac_config": rebrac, "dynamics_config": dynamics, "reward_config": reward}
        configs |= {f"{name}_config": config for name, config in optional.items()}
        return cls(task=task, env=env, **groups, **configs, **rest)


def shipped_bundle(task: str) -> Path:
    """Folder of the bundle that the package holds for the task; InputError if it has none."""
    root = Path(__file__).parent / "bundles"
    folder = root / get_task(task).name
    if not folder.is_dir():
        names = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) if root.is_dir() else "none"
        raise InputError(
            f"no bundle is shipped for {task} (shipped: {names}); "
            f"train one with 'python -m fastdwm.train {task}' or give the folder of one"
        )
    return folder


def package_versions() -> dict[str, str]:
    """Versions of what the numbers depend on; packages that are not installed are left out."""
    versions = {}
    for name in ("fastdwm", *PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a folder with bundle.json and weights.safetensors") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON ({error})") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        came = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise InputError(f"{path}: expected bundle format {FORMAT}, got {came}")
    return header


def _read_config(kind: type, values: dict[str, Any]) -> Any:
    """Dataclass from JSON, whose lists stand for tuples."""
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _read_tensors(path: Path, shapes: dict[str, dict[str, tuple]]) -> dict[str, Params]:
    """Tensors of the file grouped by the part of their name before the dot, checked against `shapes`."""
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a folder with bundle.json and weights.safetensors") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: expected a safetensors file ({error})") from None
    expected = {f"{group}.{name}": shape for group, names in shapes.items() for name, shape in names.items()}
    if missing := sorted(expected.keys() - tensors.keys()):
        raise InputError(f"{path}: tensor {missing[0]} is missing")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise InputError(f"{path}: tensor {extra[0]} is not part of this architecture")
    for name, shape in expected.items():
        value = tensors[name]
        if tuple(value.shape) != tuple(shape) or value.dtype != torch.float32:
            raise InputError(f"{path}: {name}: expected float32 {shape}, got {value.dtype} {tuple(value.shape)}")
        if not value.isfinite().all():
            raise InputError(f"{path}: {name}: expected finite values, got NaN or infinity")
    return {group: {name: tensors[f"{group}.{name}"] for name in names} for group, names in shapes.items()}
