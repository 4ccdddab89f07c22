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

from fastdwm.checks import require
from fastdwm.config import Settings
from fastdwm.errors import InputError
from fastdwm.files import data_of, json_lines, prepare_folder, read_bytes, replace_pair, reread
from fastdwm.metadata import FORMAT, MAX_BYTES, OPTIONAL, Metadata, read_metadata, read_tuning
from fastdwm.models.config import ReBRACConfig, RewardConfig
from fastdwm.models.nets import Params, map_params
from fastdwm.models.rebrac import Critics, critic_shapes, policy_shapes
from fastdwm.models.reward import RewardModel
from fastdwm.models.table import WORLD_MODELS
from fastdwm.models.world import World
from fastdwm.shipped import find_bundle
from fastdwm.tasks import Task

DESCRIPTION, WEIGHTS = "bundle.json", "weights.safetensors"

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
        return read_tuning(self.tuning)

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
            return map_params(lambda value: value.to(device, dtype), params)

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
        values = {
            "format": FORMAT,
            "task": self.task.record(),
            "dataset": self.dataset,
            "rebrac": asdict(self.rebrac_config),
            "reward": asdict(self.reward_config),
            "worlds": {name: asdict(model.config) for name, model in self.worlds.items()},
            "report": self.report,
            "versions": self.versions,
            "max_deviation": self.max_deviation,
            "tuning": self.tuning,
            "weights_sha256": sha256(weights).hexdigest(),
        }
        values = {name: value for name, value in values.items() if value is not None or name not in OPTIONAL}
        try:
            description = json_lines(values)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"bundle: expected values that JSON has ({error})") from None
        # Whoever builds a bundle knows the simulator that it names.
        metadata = read_metadata(description, folder / DESCRIPTION, trust_env=True)
        self._of(metadata, weights, folder)._check_tuning(folder)
        prepare_folder(folder, "bundle")
        replace_pair(folder, (WEIGHTS, weights), (DESCRIPTION, description))

    @property
    def _networks(self) -> dict[str, Params]:
        """Parameters by group, without the statistics."""
        worlds = {name: model.params for name, model in self.worlds.items()}
        return {"policy": self.policy, "critics": self.critics, "reward": self.reward} | worlds

    def _weights(self) -> bytes:
        """The content of weights.safetensors."""
        networks = self._networks
        if all(torch.equal(x, x.half().float()) for params in networks.values() for x in params.values()):
            networks = {group: map_params(Tensor.half, params) for group, params in networks.items()}
        return pack_tensors(networks | {"statistics": self.statistics})

    def in_half(self) -> "Bundle":
        """The bundle with all weights rounded to float16, which takes half the room on disk; not tuned."""
        rounded = {group: map_params(lambda x: x.half().float(), params) for group, params in self._networks.items()}
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
        groups = _unpack_tensors(content, Path(path), shapes, optional=("bound",))
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
            metadata = read_metadata(content, description, trust_env, tuned)
            weights = read_bytes(data_of(folder / WEIGHTS, content), _most_bytes(metadata.shapes))
            bundle = cls._of(metadata, weights, folder)
            # Without a hash nothing else tells whether the two files belong together.
            whole = metadata.weights_sha256 is not None or unchanged()
            require(whole, f"{folder}: it is being replaced")
            return bundle

        bundle = reread(read, description, folder / WEIGHTS)
        bundle._check_tuning(folder)
        return bundle

    @classmethod
    def _of(cls, metadata: Metadata, weights: bytes, folder: Path) -> "Bundle":
        """The bundle of a description and of the content of the weights' file; raises as `load`."""
        groups = _unpack_tensors(weights, folder / WEIGHTS, metadata.shapes, metadata.weights_sha256)
        worlds = {name: TrainedModel(config, groups.pop(name)) for name, config in metadata.worlds.items()}
        names = ("task", "dataset", "report", "versions", "max_deviation", "tuning")
        values = {name: getattr(metadata, name) for name in names}
        return cls(**values, rebrac_config=metadata.rebrac, reward_config=metadata.reward, worlds=worlds, **groups)

    def _check_tuning(self, folder: Path) -> None:
        """Raise InputError if it was tuned with other weights than it has."""
        same = self.tuning is None or self.tuning["weights_sha256"] == self.fingerprint
        again = f"tune it again: python -m fastdwm.tune {self.task.name} --bundle {folder}"
        require(same, f"{folder / DESCRIPTION}: tuning: it was done on other weights; {again}")


def pack_tensors(groups: dict[str, Params]) -> bytes:
    """A safetensors file with GROUP.NAME for every tensor; equal tensors make equal files."""
    named = {f"{group}.{name}": tensor for group, params in groups.items() for name, tensor in params.items()}
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()})


def _most_bytes(shapes: dict[str, dict[str, tuple]]) -> int:
    """How large a file of these tensors may be: twice what is needed, so that an architecture that differs a little is
    told by the name of a tensor."""
    n_bytes = sum(4 * math.prod(shape) for names in shapes.values() for shape in names.values())
    return min(MAX_FILE_BYTES, 2 * n_bytes + 2**20)


def _unpack_tensors(
    content: bytes,
    path: Path,
    shapes: dict[str, dict[str, tuple]],
    digest: str | None = None,
    optional: tuple[str, ...] = (),
) -> dict[str, Params]:
    """Tensors of a file grouped by the part of their name before the dot, checked against `shapes` and `digest`.

    path: names the file in an InputError.   optional: groups whose tensors may be missing.
    """
    most = _most_bytes(shapes)
    require(len(content) <= most, f"{path}: expected at most {most} bytes, got {len(content)}")
    try:
        tensors = safetensors.torch.load(content)
    # The latter two for dtypes that this torch does not know.
    except (SafetensorError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: expected a safetensors file ({error})") from None
    # In half only as a whole: a single tensor of another type is damage.
    in_half = all(x.dtype == torch.float16 for name, x in tensors.items() if not name.startswith("statistics."))
    result: dict[str, Params] = {group: {} for group in shapes}
    for group, names in shapes.items():
        for name, shape in names.items():
            value = tensors.pop(f"{group}.{name}", None)
            if value is None:
                require(group in optional, f"{path}: tensor {group}.{name} is missing")
                continue
            value = value.float() if in_half and group != "statistics" else value
            largest = MAX_STATISTIC if group == "statistics" else MAX_WEIGHT
            check_tensor(f"{path}: {group}.{name}", value, tuple(shape), largest)
            result[group][name] = value
    extra = ascii(min(tensors, default=""))[1:-1]
    require(not tensors, f"{path}: tensor {extra} is not part of this architecture")
    same = digest in (None, sha256(content).hexdigest())
    require(same, f"{path}: damaged: these are not the weights whose SHA-256 bundle.json states")
    return result


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
