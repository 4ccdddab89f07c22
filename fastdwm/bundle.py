"""A trained agent on disk: one folder with `bundle.json` and `weights.safetensors`.

The JSON describes the weights (task, data, environment, architecture, training, measured quality, versions). Loading
trusts neither file: every name, shape and value is checked, and nothing is unpickled.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdwm.checks import require
from fastdwm.config import Settings
from fastdwm.envs import Trust
from fastdwm.errors import InputError
from fastdwm.files import data_of, json_lines, prepare_folder, read_bytes, replace_pair, reread
from fastdwm.metadata import FORMAT, MAX_BYTES, OPTIONAL, Metadata, read_metadata, read_tuning
from fastdwm.models.config import CriticSpec, PolicySpec, ReBRACConfig, RewardConfig
from fastdwm.models.nets import Params, map_params, spec_shapes
from fastdwm.models.policy import MLPFunction, Policy
from fastdwm.models.rebrac import Critics
from fastdwm.models.registry import WORLD_MODELS
from fastdwm.models.reward import RewardModel
from fastdwm.models.world import World
from fastdwm.shipped import find_bundle
from fastdwm.tasks import Task
from fastdwm.weights import max_bytes, pack_tensors, unpack_tensors

DESCRIPTION, WEIGHTS = "bundle.json", "weights.safetensors"


@dataclass(frozen=True)
class TrainedModel:
    """A trained world model: its settings (a config class of `WORLD_MODELS`) and its parameters."""

    config: Any
    params: Params


@dataclass(frozen=True)
class Bundle:
    """Weights and their description; float32 tensors on the CPU, stored in float16 if that is exact.

    task: the task it was trained for, with the simulator that recorded its data.
    dataset: id, transitions, episodes, mean return.   policy, critics, reward: network parameters.
    worlds: the world models by name.   statistics: obs_mean, obs_std, delta_mean, delta_std (S,).
    rebrac_config: of policy and critics, each setting with a value.   report: measurements of the models, as JSON.
    max_deviation: maximum deviation of an action from the policy's, measured in the data (`measure.deviation`), in
    units of the action; none: not measured.
    tuning: the settings that `tune` chose for these weights, and the trials, as JSON; none: not tuned.
    own_policy, own_critics: architecture of a policy and critics from another library; none: ReBRAC's.
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
    own_policy: PolicySpec | None = None
    own_critics: CriticSpec | None = None

    @property
    def policy_spec(self) -> PolicySpec:
        """Architecture of the policy."""
        return self.own_policy or self.rebrac_config.policy

    @property
    def critic_spec(self) -> CriticSpec:
        """Architecture of the critics."""
        return self.own_critics or self.rebrac_config.critics

    @property
    def policy_function(self) -> MLPFunction:
        """The policy's function, from parameters and observations to actions."""
        return MLPFunction(self.policy_spec.activation, self.policy_spec.output)

    @property
    def base_policy(self) -> Policy:
        """The policy, to act with or to adapt."""
        return Policy.mlp(self.policy, self.policy_spec.activation, self.policy_spec.output)

    @property
    def settings(self) -> Settings:
        """Default settings of its agents: those that it was tuned to, or the package's defaults."""
        return read_tuning(self.tuning)

    @property
    def bound(self) -> float:
        """The maximum deviation; raises InputError, which says how to measure it, if there is none."""
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
        """SHA-256 of the saved weights: equal for equal weights, whatever their description."""
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
        """The frozen models of imagination.

        name: the world model; none: the first.
        steps: network calls per transition, 1 to K for diffusion, 1, 2 or 4 for meanflow; none: the bundle's.
        temperature: scale of meanflow's noise, in [0, 1]; none: the bundle's.
        Raises InputError if the bundle lacks this world model, or if the model does not support the values.
        """
        name = name or next(iter(self.worlds))
        require(name in self.worlds, f"world: the bundle holds {', '.join(self.worlds)}, got {name!r}")

        def place(params: Params) -> Params:
            return map_params(lambda value: value.to(device, dtype), params)

        model, statistics = self.worlds[name], place(self.statistics)
        build = WORLD_MODELS[name].build
        dynamics = build(place(model.params), statistics, model.config, dtype, steps, temperature)
        reward = RewardModel(place(self.reward), statistics["obs_mean"], statistics["obs_std"])
        critics = Critics(place(self.critics), self.critic_spec.activation)
        return World(dynamics, reward, critics, self.discount, self.task.limits)

    def save(self, folder: Path | str) -> None:
        """Write the bundle's two files into the folder, or into the one that it links to; other files in it stay.

        If writing fails or the process is killed, `load` finds either the old bundle or the new one. Raises InputError,
        before anything is written, for a bundle that `load` would refuse.
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
            "policy": self.own_policy and asdict(self.own_policy),
            "critics": self.own_critics and asdict(self.own_critics),
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
        # The caller built the bundle, so its simulator is trusted.
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
        """The bundle with all weights rounded to float16, which halves its size on disk; not tuned."""
        rounded = {group: map_params(lambda x: x.half().float(), params) for group, params in self._networks.items()}
        worlds = {name: replace(model, params=rounded.pop(name)) for name, model in self.worlds.items()}
        return replace(self, **rounded, worlds=worlds, max_deviation=None, tuning=None)

    def with_policy(self, path: Path | str) -> "Bundle":
        """The bundle with policy and critics from a file that `train --keep-checkpoints` left, or `pack_tensors` made.

        Not tuned, and without a maximum deviation unless the file has one, since both belong to other weights.
        Raises InputError as `load` does, for a file with other tensors than this bundle's policy and critics.
        """
        sizes = self.task.obs_dim, self.task.action_dim
        shapes = {
            "policy": spec_shapes(self.policy_spec, *sizes),
            "critics": spec_shapes(self.critic_spec, sum(sizes), 1),
            "bound": {"max_deviation": (1,)},
        }
        content = read_bytes(Path(path), max_bytes(shapes))
        groups = unpack_tensors(content, Path(path), shapes, optional=("bound",))
        bound = groups.pop("bound").get("max_deviation")
        bound = None if bound is None else float(bound)
        fits = bound is None or 0 < bound <= 2
        require(fits, f"{path}: bound.max_deviation: expected a number in (0, 2], got {bound}")
        return replace(self, **groups, max_deviation=bound, tuning=None)

    @classmethod
    def of(
        cls,
        task: Task | str,
        *,
        policy: nn.Module | str,
        critics: Sequence[nn.Module] = (),
        discount: float | None = None,
        dataset: Any = None,
        folder: Path | str | None = None,
        config: Any = None,
    ) -> "Bundle":
        """Train a bundle around a policy of your own, or resume in `folder`: its models, and critics if it has none.

        policy: a module as `importers.modules.from_modules` takes it, or KIND:FILE as `train --policy` does.
        critics: modules that value (observation, action) side by side, for a policy that is a module; none: fitted Q
        evaluation trains them.   discount: of `critics`; none: the task's.
        dataset: Minari id or D4RL file, or transitions from `fastdwm.data.load`, which are trusted; none: the task's.
        folder: of the run; none: runs/TASK.
        config: further settings, a `train.config.TrainConfig`; none: the preset `cpu` of `train`.
        Raises InputError for other modules, for sizes that are not the task's, and as `train` does.
        """
        # Training stands above bundles, so it is imported by name.
        train = import_module("fastdwm.train.own").train_around
        return train(task, policy, critics, discount, dataset, folder, config)

    @classmethod
    def load(cls, name_or_folder: Path | str, trust_env: Trust = False, *, tuned: bool = True) -> "Bundle":
        """Read a bundle from a folder or, if there is no such folder, a shipped one by name.

        Files from strangers can neither run code nor take more memory than the weights need.
        trust_env: accept any simulator that it names, or this one; otherwise only those that `envs` knows.
        tuned: False leaves out the tuned settings, even if they belong to other weights.
        Raises InputError for a file that is missing, damaged or not a regular one, a setting of the wrong type or out
        of its range, or a tensor that is missing, superfluous, of the wrong shape or dtype, not finite or too large.
        """
        folder = find_bundle(name_or_folder)
        description = folder / DESCRIPTION

        def read(unchanged: Callable[[], bool]) -> "Bundle":
            content = read_bytes(description, MAX_BYTES)
            metadata = read_metadata(content, description, trust_env, tuned)
            weights = read_bytes(data_of(folder / WEIGHTS, content), max_bytes(metadata.shapes))
            bundle = cls._of(metadata, weights, folder)
            # Without a hash, only this shows whether the two files belong together.
            consistent = metadata.weights_sha256 is not None or unchanged()
            require(consistent, f"{folder}: it is being replaced")
            return bundle

        bundle = reread(read, description, folder / WEIGHTS)
        bundle._check_tuning(folder)
        return bundle

    @classmethod
    def _of(cls, metadata: Metadata, weights: bytes, folder: Path) -> "Bundle":
        """The bundle of a description and the content of the weights' file; raises InputError as `load` does."""
        groups = unpack_tensors(weights, folder / WEIGHTS, metadata.shapes, metadata.weights_sha256)
        worlds = {name: TrainedModel(config, groups.pop(name)) for name, config in metadata.worlds.items()}
        names = ("task", "dataset", "report", "versions", "max_deviation", "tuning")
        values = {name: getattr(metadata, name) for name in names}
        values |= {"own_policy": metadata.policy, "own_critics": metadata.critics}
        return cls(**values, rebrac_config=metadata.rebrac, reward_config=metadata.reward, worlds=worlds, **groups)

    def _check_tuning(self, folder: Path) -> None:
        """Raise InputError if the tuned settings belong to other weights."""
        same = self.tuning is None or self.tuning["weights_sha256"] == self.fingerprint
        again = f"tune it again: python -m fastdwm.tune {self.task.name} --bundle {folder}"
        require(same, f"{folder / DESCRIPTION}: tuning: it was done on other weights; {again}")
