"""A trained agent on disk: one folder with `bundle.json` and `weights.safetensors`.

The JSON says what the numbers are (task, data, environment, architecture, training, measured quality, versions); the
tensors are the numbers. Loading trusts neither: every name, shape and value is checked, and nothing is unpickled.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastdwm.agent_settings import Settings, read_settings
from fastdwm.checks import require
from fastdwm.config import ReBRACConfig, RewardConfig
from fastdwm.errors import InputError
from fastdwm.files import data_of, json_lines, prepare_folder, read_bytes, replace_pair, reread
from fastdwm.header import FORMAT, MAX_BYTES, Header, parse_header
from fastdwm.models.nets import Params
from fastdwm.models.rebrac import Critics, critic_shapes, policy_shapes
from fastdwm.models.reward import RewardModel, reward_shapes
from fastdwm.models.table import WORLD_MODELS
from fastdwm.models.world import World
from fastdwm.shipped import find_bundle
from fastdwm.tasks import Task

DESCRIPTION, WEIGHTS = "bundle.json", "weights.safetensors"
STATISTICS = ("obs_mean", "obs_std", "delta_mean", "delta_std")
OPTIONAL = ("max_deviation", "tuning")
"""parts of bundle.json that may be missing"""

MAX_FILE_BYTES = 2**30
MAX_WEIGHT = 1e4
"""of any parameter. Trained ones stay below 10. Three layers of 512 with the largest can still not overflow float32 for
normalised inputs up to 1e9: 512e4^4 * 1e9 = 7e35."""
MAX_STATISTIC = 1e6
"""of means and standard deviations, and of 1 / standard deviation; those of real data lie between 1e-3 and 10"""


@dataclass(frozen=True)
class TrainedModel:
    """A world model as it was trained: its settings, a class of `WORLD_MODELS`, and its parameters."""

    config: Any
    params: Params


@dataclass(frozen=True)
class Bundle:
    """Weights and their description; float32 tensors on the CPU, stored in float16 where that holds them exactly.

    task: what it was trained for, with the simulator that its data were recorded in.
    dataset: id, transitions, episodes, mean return.   policy, critics, reward: network parameters.
    worlds: the world models by name.   statistics: obs_mean, obs_std, delta_mean, delta_std (S,).
    rebrac_config: of policy and critics, without gaps.   report: whatever was measured on the models, as JSON.
    max_deviation: how far ITPO may take an action from the policy's, as `measure.deviation` finds it in the data, in
    units of the action; none: not measured.
    tuning: what `tune` chose for these weights, and from what, as JSON; none: nothing was chosen.
    """

    task: Task
    dataset: dict[str, Any]
    policy: Params
    critics: Params
    reward: Params
    worlds: dict[str, TrainedModel]
    statistics: dict[str, Tensor]
    rebrac_config: ReBRACConfig
    reward_config: RewardConfig
    report: dict[str, Any]
    versions: dict[str, str]
    max_deviation: float | None = None
    tuning: dict[str, Any] | None = None

    @property
    def settings(self) -> Settings:
        """How its agents decide unless they are told otherwise: as it was tuned, or the defaults."""
        return Settings() if self.tuning is None else read_settings(self.tuning["settings"])

    @property
    def bound(self) -> float:
        """The maximum deviation; InputError, in one line that says how to measure it, where there is none."""
        how = f"python -m fastdwm.report deviation BUNDLE --dataset ID, or give --itpo.max-deviation ({self.task.name})"
        require(self.max_deviation is not None, f"max_deviation: the bundle does not say it for this policy; {how}")
        return self.max_deviation

    @property
    def obs_dim(self) -> int:
        return self.task.obs_dim

    @property
    def action_dim(self) -> int:
        return self.task.action_dim

    @property
    def discount(self) -> float:
        return self.rebrac_config.discount

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights as they are saved: equal for equal weights, whatever is said about them."""
        return sha256(self._weights()).hexdigest()

    def world(
        self,
        name: str | None = None,
        *,
        steps: int | None = None,
        temperature: float | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> World:
        """The frozen models to imagine with.

        name: none: the first.
        steps: network calls per transition, of diffusion 1 to its K, of meanflow 1, 2 or 4; none: the bundle's.
        temperature: of meanflow's noise, in [0, 1]; none: the bundle's.
        Raises InputError for a world model that the bundle does not hold, or for what this one does not have.
        """
        name = name or next(iter(self.worlds))
        require(name in self.worlds, f"world: the bundle holds {', '.join(self.worlds)}, got {name!r}")

        def place(params: Params) -> Params:
            return {name: value.to(device, dtype) for name, value in params.items()}

        model, statistics = self.worlds[name], place(self.statistics)
        build = WORLD_MODELS[name].build
        dynamics = build(place(model.params), statistics, model.config, dtype, steps, temperature)
        reward = RewardModel(place(self.reward), statistics["obs_mean"], statistics["obs_std"])
        return World(dynamics, reward, Critics(place(self.critics)), self.discount, self.task.limits)

    def save(self, folder: Path | str) -> None:
        """Write the bundle's two files into the folder, or the one that it links to; others in it stay as they are.

        Whatever fails, and whenever the process is killed, `load` finds the old bundle or the new one there. Raises
        InputError, before anything is written, for a bundle that `load` would refuse.
        """
        try:
            folder = Path(folder).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"bundle: cannot write to {folder}: {error}") from None
        weights = self._weights()
        header = {
            "format": FORMAT,
            "task": self.task.record(),
            "dataset": self.dataset,
            "rebrac": asdict(self.rebrac_config),
            "reward": asdict(self.reward_config),
            "worlds": {name: asdict(model.config) for name, model in self.worlds.items()},
            "report": self.report,
            "versions": self.versions,
            **{name: value for name in OPTIONAL if (value := getattr(self, name)) is not None},
            "weights_sha256": sha256(weights).hexdigest(),
        }
        try:
            description = json_lines(header)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"bundle: expected values that JSON has ({error})") from None
        # Whoever builds a bundle knows the simulator that it names.
        header = parse_header(description, folder / DESCRIPTION, trust_env=True)
        self._of(header, weights, folder)._check_tuning(folder)
        prepare_folder(folder, "bundle")
        replace_pair(folder, (WEIGHTS, weights), (DESCRIPTION, description))

    def _weights(self) -> bytes:
        """The content of weights.safetensors."""
        networks = {name: getattr(self, name) for name in ("policy", "critics", "reward")}
        networks |= {name: model.params for name, model in self.worlds.items()}
        if all(torch.equal(x, x.half().float()) for params in networks.values() for x in params.values()):
            networks = _each(networks, Tensor.half)
        return pack_tensors(networks | {"statistics": self.statistics})

    def in_half(self) -> "Bundle":
        """The bundle with all weights rounded to float16, which takes half the room on disk; not tuned."""
        networks = {name: getattr(self, name) for name in ("policy", "critics", "reward")}
        models = {name: model.params for name, model in self.worlds.items()}
        rounded = _each(networks | models, lambda x: x.half().float())
        worlds = {name: replace(model, params=rounded.pop(name)) for name, model in self.worlds.items()}
        return replace(self, **rounded, worlds=worlds, max_deviation=None, tuning=None)

    def with_policy(self, path: Path | str) -> "Bundle":
        """The bundle with policy and critics from a file that `train --keep-checkpoints` left, or `pack_tensors` made.

        Not tuned, and without a maximum deviation unless the file has one: both belong to other weights.
        Raises InputError as `load` does, for a file with other tensors than this bundle's policy and critics.
        """
        sizes = self.task.obs_dim, self.task.action_dim, self.rebrac_config.hidden
        shapes = {"policy": policy_shapes(*sizes), "critics": critic_shapes(*sizes), "bound": {"max_deviation": (1,)}}
        content = read_bytes(Path(path), _most_bytes(shapes))
        groups = _unpack_tensors(content, Path(path), shapes, None, optional=("bound.max_deviation",))
        bound = groups.pop("bound").get("max_deviation")
        bound = None if bound is None else float(bound)
        fits = bound is None or 0 < bound <= 2
        require(fits, f"{path}: bound.max_deviation: expected a number in (0, 2], got {bound}")
        return replace(self, **groups, max_deviation=bound, tuning=None)

    @classmethod
    def load(cls, name_or_folder: Path | str, trust_env: bool = False, *, tuned: bool = True) -> "Bundle":
        """Read a bundle: a folder, or one of those that the package holds, by name; a folder that exists comes first.

        Whoever wrote it can neither run code nor take memory beyond what the weights need.
        trust_env: take the simulator that it names, whatever it is; without, only those that `envs` knows.
        tuned: without, what it was tuned to is left out, also where that was done on other weights.
        Raises InputError for a file that is missing, damaged or not a regular one, a setting of the wrong type or out
        of its range, or a tensor that is missing, superfluous, of the wrong shape or dtype, not finite or absurd.
        """
        folder = find_bundle(name_or_folder)
        description = folder / DESCRIPTION

        def read(unchanged: Callable[[], bool]) -> "Bundle":
            content = read_bytes(description, MAX_BYTES)
            header = parse_header(content, description, trust_env, tuned)
            weights = read_bytes(data_of(folder / WEIGHTS, content), _most_bytes(_shapes(header)))
            bundle = cls._of(header, weights, folder)
            # Without a hash nothing else tells whether the two files belong together.
            whole = header.weights_sha256 is not None or unchanged()
            require(whole, f"{folder}: it is being replaced")
            return bundle

        bundle = reread(read, description, folder / WEIGHTS)
        bundle._check_tuning(folder)
        return bundle

    @classmethod
    def _of(cls, header: Header, weights: bytes, folder: Path) -> "Bundle":
        """The bundle of a description and of the content of the weights' file; raises as `load`."""
        groups = _unpack_tensors(weights, folder / WEIGHTS, _shapes(header), header.weights_sha256)
        worlds = {name: TrainedModel(config, groups.pop(name)) for name, config in header.worlds.items()}
        configs = {"rebrac_config": header.rebrac, "reward_config": header.reward}
        return cls(task=header.task, worlds=worlds, **groups, **configs, **header.rest)

    def _check_tuning(self, folder: Path) -> None:
        """Raise InputError if it was tuned with other weights than it has."""
        same = self.tuning is None or self.tuning["weights_sha256"] == self.fingerprint
        again = f"tune it again: python -m fastdwm.tune {self.task.name} --bundle {folder}"
        require(same, f"{folder / DESCRIPTION}: tuning: it was done on other weights; {again}")


def _each(groups: dict[str, Params], change: Callable[[Tensor], Tensor]) -> dict[str, Params]:
    """The groups with every tensor changed."""
    return {group: {name: change(x) for name, x in params.items()} for group, params in groups.items()}


def pack_tensors(groups: dict[str, Params]) -> bytes:
    """A safetensors file with GROUP.NAME for every tensor; equal tensors make equal files."""
    named = {f"{group}.{name}": tensor for group, params in groups.items() for name, tensor in params.items()}
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()})


def _shapes(header: Header) -> dict[str, dict[str, tuple]]:
    """Of the tensors that the description calls for, by group."""
    sizes = header.task.obs_dim, header.task.action_dim
    return {
        "policy": policy_shapes(*sizes, header.rebrac.hidden),
        "critics": critic_shapes(*sizes, header.rebrac.hidden),
        "reward": reward_shapes(*sizes, header.reward),
        "statistics": dict.fromkeys(STATISTICS, (header.task.obs_dim,)),
        **{name: WORLD_MODELS[name].shapes(*sizes, config) for name, config in header.worlds.items()},
    }


def _most_bytes(shapes: dict[str, dict[str, tuple]]) -> int:
    """How large a file of these tensors may be: twice what is needed, so that an architecture that differs a little is
    told by the name of a tensor."""
    n_bytes = sum(4 * math.prod(shape) for names in shapes.values() for shape in names.values())
    return min(MAX_FILE_BYTES, 2 * n_bytes + 2**20)


def _unpack_tensors(
    content: bytes,
    path: Path,
    shapes: dict[str, dict[str, tuple]],
    digest: str | None,
    optional: tuple[str, ...] = (),
) -> dict[str, Params]:
    """Tensors of a file grouped by the part of their name before the dot, checked against `shapes` and `digest`.

    path: names the file in an InputError.   optional: names of tensors that may be missing.
    """
    expected = {f"{group}.{name}": tuple(shape) for group, names in shapes.items() for name, shape in names.items()}
    most = _most_bytes(shapes)
    require(len(content) <= most, f"{path}: expected at most {most} bytes, got {len(content)}")
    try:
        tensors = safetensors.torch.load(content)
    # The latter two for dtypes that this torch does not know.
    except (SafetensorError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: expected a safetensors file ({error})") from None
    expected = {name: shape for name, shape in expected.items() if name in tensors or name not in optional}
    if missing := sorted(expected.keys() - tensors.keys()):
        raise InputError(f"{path}: tensor {missing[0]} is missing")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise InputError(f"{path}: tensor {ascii(extra[0])[1:-1]} is not part of this architecture")
    # In half only as a whole: a single tensor of another type is damage.
    weights = {name: value for name, value in tensors.items() if not name.startswith("statistics.")}
    if all(value.dtype == torch.float16 for value in weights.values()):
        tensors |= {name: value.float() for name, value in weights.items()}
    for name, shape in expected.items():
        most = MAX_STATISTIC if name.startswith("statistics.") else MAX_WEIGHT
        check_tensor(f"{path}: {name}", tensors[name], shape, most)
    same = digest in (None, sha256(content).hexdigest())
    require(same, f"{path}: damaged: these are not the weights whose SHA-256 bundle.json states")
    return {
        group: {name: tensors[f"{group}.{name}"] for name in names if f"{group}.{name}" in expected}
        for group, names in shapes.items()
    }


def check_tensor(name: str, value: Tensor, shape: tuple, most: float) -> None:
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
