"""The settings of a decision: those of ITPO, and with which world model it imagines. Imports no numpy, no torch."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fastdwm.checks import from_json, require, require_at_most, require_choices, require_positive

TRUST_SETTINGS = ("radius", "speed", "leash", "doubt")
STEP_SETTINGS = ("inner_lr", "grad_clip", "anchor_coef")

MAX_TRANSITIONS = 2**22
"""imagined transitions of one decision for one episode, over all particles and inner steps; the paper has 2**19"""


@dataclass(frozen=True)
class ITPOConfig:
    """Inference-time policy optimisation: what happens inside one decision."""

    horizon: int = 8
    """imagined transitions per rollout (H); 0 optimises the critic alone"""
    particles: int = 2
    """imagined rollouts per real state (M)"""
    inner_steps: int = 1
    """policy updates per decision (E); 0 returns the base policy's action"""
    optimiser: Literal["trust", "sgd", "adam"] = "trust"
    """how the gradient of the imagined return becomes a policy update: measured in actions and as far as the models
    have proved right, or by a step size of the parameters (sgd, as the paper, and adam)"""
    radius: float | None = None
    """trust: distance from the base policy's actions at which the anchor outweighs the usual slope of the return, where
    the models are trusted; none: 1"""
    speed: float | None = None
    """trust: what an inner step gains, as a share of what the radius would at the usual slope; none: 0.012"""
    leash: float | None = None
    """trust: bound of the root mean square distance of an action from the base policy's; none: 0.4"""
    doubt: float | None = None
    """trust: error of the models, in actions' worth of return, at which the trust has fallen to a half; none: 0.7"""
    guard: Literal["auto", "on", "off"] = "auto"
    """trust: whether the trust is earned by what came true, for which the world needs a reward and a critic; off: the
    models are trusted; auto: on where it can be, that is without a score of your own"""
    inner_lr: float | None = None
    """sgd, adam: step size of the adapted policy (alpha), 0 returns the base policy's action; none: 2e-5"""
    grad_clip: float | None = None
    """sgd, adam: bound of each episode's gradient norm; none: no clipping"""
    terminal_value: Literal["min", "mean", "first"] = "min"
    """value of the last imagined state: from both critics, or from the first alone"""
    termination: Literal["none", "mask", "soft"] = "none"
    """imagined falls: ignored (as the paper), ending the rollout, or ending it by a differentiable probability"""
    termination_temperature: float = 0.1
    """width of the soft termination, in units of each limited coordinate's standard deviation"""
    reset: Literal["decision", "episode", "never"] = "episode"
    """when the adapted policy returns to the base policy; never: not even for a new episode (as the paper), which in an
    evaluation is as `episode`, for it gives every episode a policy of its own"""
    noise: Literal["decision", "step", "time"] = "decision"
    """what the noise is drawn for: every decision, every inner step, or every absolute time t + j (as the paper), so
    that a decision has that of the one before but for its last imagined step"""
    anchor_coef: float = 0.0
    """sgd, adam: penalty on the squared distance of the imagined actions from the base policy's"""
    trust_region: float | None = None
    """bound on how far a decision may move any coordinate of the current action; updates are halved until it holds"""
    held_out_particles: int = 0
    """keep an update only if the imagined return does not drop on this many particles of its own; 0: keep all"""

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("horizon", "inner_steps", "inner_lr", "anchor_coef", "held_out_particles"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{name}: expected a number >= 0, got {value}")
        require_positive(self, "particles", "termination_temperature", "grad_clip", "trust_region", *TRUST_SETTINGS)
        # Far above what anyone decides with, so that a stranger's settings neither take the memory nor go on for ever.
        require_at_most(self, 2**8, "horizon", "inner_steps")
        require_at_most(self, 2**16, "particles", "held_out_particles")
        require_at_most(self, 1e9, "inner_lr", "grad_clip", "anchor_coef", "trust_region", *TRUST_SETTINGS)
        require_at_most(self, 1e6, "termination_temperature")
        imagined = self.horizon * (self.particles + self.held_out_particles) * self.inner_steps
        require(
            imagined <= MAX_TRANSITIONS,
            f"horizon x particles x inner_steps: expected at most {MAX_TRANSITIONS} imagined transitions per decision,"
            f" got {imagined}",
        )
        theirs, owner = (STEP_SETTINGS, "sgd or adam") if self.optimiser == "trust" else (TRUST_SETTINGS, "trust")
        for name in (*theirs, "guard") if owner == "trust" else theirs:
            default = ITPOConfig.__dataclass_fields__[name].default
            expected = "none" if default is None else default
            ours = getattr(self, name) == default
            require(
                ours, f"{name}: expected {expected} with the optimiser {self.optimiser}, it is a setting of {owner}"
            )

    @property
    def adapts(self) -> bool:
        """Whether a decision can leave the base policy at all."""
        return self.inner_steps > 0 and self.inner_lr != 0

    @property
    def noise_banks(self) -> int:
        """Noise banks that one decision draws for its inner steps."""
        return self.inner_steps if self.noise == "step" else min(self.inner_steps, 1)


@dataclass(frozen=True)
class Settings:
    """How an agent decides: ITPO's settings and its world model. What `tune` chooses and a bundle may hold."""

    itpo: ITPOConfig = field(default_factory=ITPOConfig)
    """settings of the decision"""
    world: str | None = None
    """world model of the imagination; none: the first that the bundle holds"""
    world_steps: int | None = None
    """network calls per imagined transition; none: the bundle's"""

    def describe(self) -> str:
        """What departs from the default, in words."""
        itpo = self.itpo
        if itpo.inner_steps == 0:
            return "base policy"
        world = f"{self.world or 'first world model'}" + (f":{self.world_steps}" if self.world_steps else "")
        letters = {"horizon": "H", "particles": "M", "inner_steps": "E"}
        changed = [name for name, value in asdict(itpo).items() if value != getattr(ITPOConfig(), name)]
        return ", ".join([world, *(f"{letters.get(name, name)} {getattr(itpo, name)}" for name in changed)])

    def record(self) -> dict[str, Any]:
        """The settings as JSON values, which `read_settings` reads."""
        return asdict(self)


def read_settings(values: dict[str, Any]) -> Settings:
    """Settings from JSON values, as `Settings.record` gives them; raises InputError for anything else."""
    require(isinstance(values.get("itpo"), dict), "itpo: expected the settings of a decision")
    return from_json(Settings, values | {"itpo": from_json(ITPOConfig, values["itpo"])})
