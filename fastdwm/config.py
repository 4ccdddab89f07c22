"""The settings of a decision: those of ITPO and the choice of the world model. Imports neither numpy nor torch."""

import math
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, Checked, at_most, from_json, require

REPLACED = {
    "leash": "max_deviation bounds how far an action may go from the base policy's",
    "speed": "action_step is the size of an inner step",
    "radius": "max_deviation bounds how far an action may go from the base policy's",
    "doubt": "max_deviation bounds what wrong models can do",
    "guard": "max_deviation bounds what wrong models can do",
    "trust_region": "max_deviation bounds how far an action may go from the base policy's",
    "anchor_coef": "max_deviation bounds how far an action may go from the base policy's",
    "held_out_particles": "more particles make an update less random",
    "grad_clip": "the default rule's step does not depend on the gradient's norm",
}
"""Settings of earlier versions, and what replaces them."""

WORLD_TITLES = {"diffusion": "diffusion", "meanflow": "MeanFlow", "mlp": "MLP"}
"""names of the world models in tables and pictures; flags and files have the keys"""

INFINITE = "inf"
"""an infinite number in JSON, which has none"""
BACKENDS = ("auto", "reference", "fused")
PRECISIONS = ("auto", "fp16", "ieee")
MAX_TRANSITIONS = 2**22
"""limit of imagined transitions per decision and episode, over all particles and inner steps; the paper uses 2**19"""


@dataclass(frozen=True)
class ITPOConfig(Checked):
    """Settings of inference-time policy optimisation, for one decision."""

    horizon: Annotated[int, NOT_NEGATIVE, at_most(2**8)] = 8
    """imagined transitions per rollout (H); 0 optimises the critic alone"""
    particles: Annotated[int, POSITIVE, at_most(2**16)] = 2
    """imagined rollouts per real state (M)"""
    inner_steps: Annotated[int, NOT_NEGATIVE, at_most(2**8)] = 1
    """policy updates per decision (E); 0 returns the base policy's action"""
    optimiser: Literal["bound", "sgd", "adam"] = "bound"
    """policy update from the gradient of the imagined return: steps of a given size in actions that stay within
    max_deviation of the base policy's (bound), or steps with a learning rate (sgd as in the paper, adam)"""
    max_deviation: Annotated[float | None, POSITIVE] = None
    """bound: maximum deviation of an action from the base policy's, as the root mean square over its coordinates, in
    units of the action; inf for exact models; none: the bundle's, which training measures in the data"""
    action_step: Annotated[float, POSITIVE, at_most(1e9)] = 0.012
    """bound: how far an inner step moves the imagined actions, to first order, in units of the action"""
    inner_lr: Annotated[float, NOT_NEGATIVE, at_most(1e9)] = 2e-5
    """sgd, adam: learning rate of the adapted policy (alpha); 0 returns the base policy's action"""
    terminal_value: Literal["min", "mean", "first"] = "min"
    """value of the last imagined state: minimum or mean of the critics, or the first critic alone"""
    termination: Literal["none", "mask", "soft"] = "none"
    """imagined falls are ignored (as in the paper), end the rollout, or end it with a differentiable probability"""
    termination_temperature: Annotated[float, POSITIVE, at_most(1e6)] = 0.1
    """width of soft termination, in standard deviations of each limited coordinate"""
    reset: Literal["decision", "episode", "never"] = "episode"
    """when the adapted policy is reset to the base policy; never: not even for a new episode (as in the paper); in an
    evaluation that equals `episode`, since every episode has a policy of its own"""
    noise: Literal["decision", "step", "time"] = "decision"
    """when noise is drawn: for every decision, every inner step, or every absolute time t + j (as in the paper), so
    that a decision reuses the noise of the previous one except for its last imagined step"""

    # The bounds are far above useful values; they keep a stranger's settings from exhausting memory or time.
    def __post_init__(self) -> None:
        super().__post_init__()
        imagined = self.horizon * self.particles * self.inner_steps
        most = f"expected at most {MAX_TRANSITIONS} imagined transitions per decision"
        require(imagined <= MAX_TRANSITIONS, f"horizon x particles x inner_steps: {most}, got {imagined}")
        owners = {"max_deviation": ("bound",), "action_step": ("bound",), "inner_lr": ("sgd", "adam")}
        for name, rules in owners.items():
            default = ITPOConfig.__dataclass_fields__[name].default
            fits = self.optimiser in rules or getattr(self, name) == default
            expected = "none" if default is None else default
            actual = f"got {getattr(self, name)}: it is a setting of {' and '.join(rules)}"
            require(fits, f"{name}: expected {expected} with the optimiser {self.optimiser}, {actual}")

    def record(self) -> dict[str, Any]:
        """The settings as JSON values; an infinite max_deviation is INFINITE, since null stands for the bundle's."""
        return asdict(self) | ({"max_deviation": INFINITE} if self.max_deviation == math.inf else {})

    @property
    def adapts(self) -> bool:
        """Whether a decision can change the policy."""
        return self.inner_steps > 0 and (self.optimiser == "bound" or self.inner_lr > 0)

    @property
    def lacks_bound(self) -> bool:
        """Whether the rule needs a maximum deviation that the settings lack."""
        return self.adapts and self.optimiser == "bound" and self.max_deviation is None

    @property
    def noise_banks(self) -> int:
        """Number of noise banks that a decision draws for its inner steps."""
        return self.inner_steps if self.noise == "step" else min(self.inner_steps, 1)


@dataclass(frozen=True)
class Settings:
    """Settings of an agent: those of ITPO and the world model. `tune` chooses them, and a bundle may hold them."""

    itpo: ITPOConfig = field(default_factory=ITPOConfig)
    """settings of the decision"""
    world: str | None = None
    """world model of the imagination; none: the first that the bundle holds"""
    world_steps: int | None = None
    """network calls per imagined transition; none: the bundle's"""

    def describe(self) -> str:
        """Describe the settings that differ from the default in one line."""
        itpo = self.itpo
        if itpo.inner_steps == 0:
            return "base policy"
        world = (world_title(self.world) if self.world else "first world model") + (
            f":{self.world_steps}" if self.world_steps else ""
        )
        letters = {"horizon": "H", "particles": "M", "inner_steps": "E"}
        changed = [name for name, value in asdict(itpo).items() if value != getattr(ITPOConfig(), name)]
        return ", ".join([world, *(f"{letters.get(name, name)} {getattr(itpo, name)}" for name in changed)])

    def record(self) -> dict[str, Any]:
        """The settings as JSON values for `read_settings`."""
        return asdict(self) | {"itpo": self.itpo.record()}


def world_title(name: str) -> str:
    """Name of a world model for reading; that of your own model is as it is."""
    return WORLD_TITLES.get(name, name)


def read_settings(values: dict[str, Any], where: str = "") -> Settings:
    """Read settings from the JSON values of `Settings.record`; raises InputError, which begins with `where`."""
    itpo = values.get("itpo")
    replaced = [name for name in REPLACED if isinstance(itpo, dict) and name in itpo]
    reason = f"{where}: {replaced[0]} is a setting of an earlier version; tune the bundle again" if replaced else ""
    require(not replaced, reason)
    values = {name: finite_or_infinite(value) if name == "itpo" else value for name, value in values.items()}
    return from_json(Settings, values, where)


def finite_or_infinite(itpo: Any) -> Any:
    """The JSON values of `ITPOConfig.record`, with a number in the place of INFINITE; other values as they are."""
    infinite = isinstance(itpo, dict) and itpo.get("max_deviation") == INFINITE
    return itpo | {"max_deviation": math.inf} if infinite else itpo
