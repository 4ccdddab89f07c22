"""A trained agent on disk: one folder with `bundle.json` and `weights.safetensors`.

The JSON says what the numbers are (task, data, environment, architecture, training, measured quality, versions); the
tensors are the numbers. Loading trusts neither: every name, shape and value is checked, and nothing is unpickled.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastdwm.checks import require
from fastdwm.config import SAMPLERS, DeterministicConfig, DiffusionConfig, MeanFlowConfig, ReBRACConfig, RewardConfig
from fastdwm.envs import EnvSpec
from fastdwm.errors import InputError
from fastdwm.files import read_bytes, replace_folder
from fastdwm.header import FORMAT, Header, read_header
from fastdwm.models.diffusion import build_diffusion, denoiser_shapes
from fastdwm.models.meanflow import build_meanflow, meanflow_shapes
from fastdwm.models.mlp import build_deterministic, deterministic_shapes
from fastdwm.models.nets import Params
from fastdwm.models.rebrac import Critics, critic_shapes, policy_shapes
from fastdwm.models.reward import RewardModel, reward_shapes
from fastdwm.models.world import ChainDynamics, World
from fastdwm.tasks import get_task

STATISTICS = ("obs_mean", "obs_std", "delta_mean", "delta_std")
OPTIONAL = ("meanflow", "deterministic")
"""groups of tensors that a bundle may lack"""

MAX_FILE_BYTES = 2**30
MAX_WEIGHT = 1e4
"""of any parameter. Trained ones stay below 10. Three layers of 512 with the largest can still not overflow float32 for
normalised inputs up to 1e9: 512e4^4 * 1e9 = 7e35."""
MAX_STATISTIC = 1e6
"""of means and standard deviations, and of 1 / standard deviation; those of real data lie between 1e-3 and 10"""
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
        return World(dynamics, reward, Critics(place(self.critics)), self.discount, limits)

    def _dynamics(
        self,
        sampler: str,
        steps: int | None,
        temperature: float | None,
        place: Callable[[Params], Params],
        dtype: torch.dtype,
    ) -> ChainDynamics:
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
        weights = safetensors.torch.save(tensors)
        header["weights_sha256"] = sha256(weights).hexdigest()
        description = json.dumps(header, indent=2) + "\n"
        replace_folder(folder, {"weights.safetensors": weights, "bundle.json": description.encode()})

    @classmethod
    def load(cls, folder: Path | str, trust_env: bool = False) -> "Bundle":
        """Read a bundle; whoever wrote it can neither run code nor take memory beyond what the weights need.

        trust_env: take the simulator that it names, whatever it is; without, only those that `envs` knows.
        Raises InputError for a file that is missing, damaged or not a regular one, a setting of the wrong type or out
        of its range, or a tensor that is missing, superfluous, of the wrong shape or dtype, not finite or absurd.
        """
        folder = Path(folder)
        header = read_header(folder / "bundle.json", trust_env)
        groups = _read_tensors(folder / "weights.safetensors", _shapes(header), header.weights_sha256)
        configs = {f"{name}_config": config for name, config in header.configs.items()}
        return cls(task=header.task.name, env=header.env, **groups, **configs, **header.rest)


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


def _shapes(header: Header) -> dict[str, dict[str, tuple]]:
    """Of the tensors that the description calls for, by group."""
    sizes, configs = (header.task.env.obs_dim, header.task.env.action_dim), header.configs
    shapes = {
        "policy": policy_shapes(*sizes, configs["rebrac"].hidden),
        "critics": critic_shapes(*sizes, configs["rebrac"].hidden),
        "dynamics": denoiser_shapes(*sizes, configs["dynamics"]),
        "reward": reward_shapes(*sizes, configs["reward"]),
        "statistics": dict.fromkeys(STATISTICS, (header.task.env.obs_dim,)),
    }
    optional = {"meanflow": meanflow_shapes, "deterministic": deterministic_shapes}
    return shapes | {name: optional[name](*sizes, configs[name]) for name in optional if name in configs}


def _read_tensors(path: Path, shapes: dict[str, dict[str, tuple]], digest: str | None) -> dict[str, Params]:
    """Tensors of the file grouped by the part of their name before the dot, checked against `shapes` and `digest`."""
    expected = {f"{group}.{name}": tuple(shape) for group, names in shapes.items() for name, shape in names.items()}
    n_bytes = sum(4 * math.prod(shape) for shape in expected.values())
    # Twice what is needed, so that an architecture that differs a little is told by the name of a tensor.
    content = read_bytes(path, min(MAX_FILE_BYTES, 2 * n_bytes + 2**20))
    try:
        tensors = safetensors.torch.load(content)
    # The latter two for dtypes that this torch does not know.
    except (SafetensorError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: expected a safetensors file ({error})") from None
    if missing := sorted(expected.keys() - tensors.keys()):
        raise InputError(f"{path}: tensor {missing[0]} is missing")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise InputError(f"{path}: tensor {ascii(extra[0])[1:-1]} is not part of this architecture")
    for name, shape in expected.items():
        most = MAX_STATISTIC if name.startswith("statistics.") else MAX_WEIGHT
        _check_tensor(f"{path}: {name}", tensors[name], shape, most)
    same = digest in (None, sha256(content).hexdigest())
    require(same, f"{path}: damaged: these are not the weights whose SHA-256 bundle.json states")
    return {group: {name: tensors[f"{group}.{name}"] for name in names} for group, names in shapes.items()}


def _check_tensor(name: str, value: Tensor, shape: tuple, most: float) -> None:
    """Raise InputError unless it has float32 numbers of that shape with which one can compute: none beyond `most`, and
    no standard deviation so small that dividing by it would lead there."""
    came = tuple(value.shape)
    right = came == shape and value.dtype == torch.float32
    require(right, f"{name}: expected float32 {shape}, got {value.dtype} {came}")
    require(bool(value.isfinite().all()), f"{name}: expected finite values, got NaN or infinity")
    largest = float(value.abs().max())
    require(largest <= most, f"{name}: expected values up to {most:g}, got {largest:g}")
    if name.endswith("_std"):
        least = float(value.min())
        require(least >= 1 / most, f"{name}: expected values of at least {1 / most:g}, got {least:g}")
