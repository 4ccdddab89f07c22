"""bundle.json, the description of a bundle: anyone may have written it, so everything in it is checked."""

from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shorten
from typing import Annotated, Any

from fastdwm.checks import Checked, conforms, from_json, prefixed, require, within
from fastdwm.config import Settings, read_settings
from fastdwm.envs import Trust
from fastdwm.files import parse_json
from fastdwm.models.config import CriticSpec, PolicySpec, ReBRACConfig, RewardConfig
from fastdwm.models.nets import spec_shapes
from fastdwm.models.registry import WORLD_MODELS
from fastdwm.models.reward import reward_shapes
from fastdwm.tasks import Task, vet

FORMAT = 2
MAX_BYTES = 4 * 2**20
OPTIONAL = ("policy", "critics", "max_deviation", "tuning", "weights_sha256")
"""fields that may be missing"""
ADDED = ("n_step", "return_bound", "advantage_power")
"""settings of ReBRAC that earlier bundles of format 2 lack; they were trained with the defaults"""
STATISTICS = ("obs_mean", "obs_std", "delta_mean", "delta_std")

FACTS = {("dataset", "id"): str, ("dataset", "transitions"): int, ("dataset", "episodes"): int}
FACTS |= {("report", "seed"): int, ("report", "holdout"): float}
"""types of the values that commands read from fields whose content is not checked otherwise"""


@dataclass(frozen=True)
class Metadata(Checked):
    """The content of a bundle.json. Raises InputError for invalid values."""

    format: int
    task: Task
    dataset: dict
    policy: PolicySpec | None
    """architecture of the policy; none: ReBRAC's"""
    critics: CriticSpec | None
    """architecture of the critics; none: ReBRAC's"""
    rebrac: ReBRACConfig
    reward: RewardConfig
    worlds: dict[str, Any]
    """settings of the world models that the bundle holds, by name"""
    report: dict
    versions: dict[str, str]
    max_deviation: Annotated[float | None, within("(0, 2]")]
    tuning: dict | None
    weights_sha256: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for (part, name), kind in FACTS.items():
            value = getattr(self, part).get(name, kind())
            right = conforms(value, kind) and (kind is str or 0 <= value < 2**63)
            require(right, f"{part}: {name}: expected {kind.__name__}, not negative, got {shorten(value)}")
        holdout = self.report.get("holdout", 0.5)
        require(0 < holdout < 1, f"report: holdout: expected a share in (0, 1), got {shorten(holdout)}")
        require(bool(self.worlds), f"worlds: expected at least one of {', '.join(WORLD_MODELS)}")
        for name in self.worlds:
            require(name in WORLD_MODELS, f"worlds: expected some of {', '.join(WORLD_MODELS)}, got {shorten(name)}")
        world = self.settings.world
        held = world is None or world in self.worlds
        require(held, f"tuning: world: the bundle holds {', '.join(self.worlds)}, got {shorten(world)}")

    @property
    def settings(self) -> Settings:
        """The settings that the bundle was tuned to, or the defaults."""
        return read_tuning(self.tuning)

    @property
    def shapes(self) -> dict[str, dict[str, tuple]]:
        """Shapes of the bundle's tensors, by group and name."""
        sizes = self.task.obs_dim, self.task.action_dim
        return {
            "policy": spec_shapes(self.policy or self.rebrac.policy, *sizes),
            "critics": spec_shapes(self.critics or self.rebrac.critics, sum(sizes), 1),
            "reward": reward_shapes(*sizes, self.reward),
            "statistics": dict.fromkeys(STATISTICS, (self.task.obs_dim,)),
            **{name: WORLD_MODELS[name].shapes(*sizes, config) for name, config in self.worlds.items()},
        }


def read_tuning(tuning: dict[str, Any] | None) -> Settings:
    """The settings that a bundle was tuned to, the defaults for one that was not; raises InputError."""
    if tuning is None:
        return Settings()
    for name, kind in {"settings": dict, "weights_sha256": str}.items():
        from_json(kind, tuning.get(name), f"tuning: {name}")
    return read_settings(tuning["settings"], "tuning")


def read_metadata(content: bytes, path: Path, trust_env: Trust, tuned: bool = True) -> Metadata:
    """Parse and check the content of a bundle.json; raises InputError, in one line that names `path`.

    trust_env: simulators that it may name beside the known ones.   tuned: False leaves out the tuned settings without
    reading them.
    """
    require(len(content) <= MAX_BYTES, f"{path}: expected at most {MAX_BYTES} bytes, got {len(content)}")
    values = parse_json(content, path)
    version = values.get("format") if isinstance(values, dict) else type(values).__name__
    old = type(version) is int and version == 1
    require(not old, f"{path}: format 1, of fastdwm 0.1.0, is no longer read: train it anew, or load it with 0.1.0")
    current = type(version) is int and version == FORMAT
    require(current, f"{path}: expected bundle format {FORMAT}, got {shorten(version)}")
    if not tuned:
        values.pop("tuning", None)
    if isinstance(values.get("rebrac"), dict):
        values["rebrac"] = {name: getattr(ReBRACConfig(), name) for name in ADDED} | values["rebrac"]
    with prefixed(f"{path}: "):
        metadata = from_json(Metadata, dict.fromkeys(OPTIONAL) | values)
        models = {name: model for name, model in WORLD_MODELS.items() if name in metadata.worlds}
        worlds = {name: from_json(model.config, metadata.worlds[name], name) for name, model in models.items()}
        with prefixed("task: "):
            task = vet(metadata.task, trust_env)
        return replace(metadata, task=task, rebrac=metadata.rebrac.for_task(task), worlds=worlds)
