"""Inference-time policy optimisation through differentiable world models.

from fastdwm import Agent, Bundle, ITPOConfig

agent = Agent.of(Bundle.load("hopper-medium"), ITPOConfig())
action = agent.act(obs)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdwm.agent import Agent
    from fastdwm.bundle import Bundle
    from fastdwm.config import ITPOConfig
    from fastdwm.envs import EnvSpec
    from fastdwm.errors import InputError
    from fastdwm.itpo.rollout import imagined_return
    from fastdwm.measure.simulate import run_episodes
    from fastdwm.models.policy import Policy
    from fastdwm.models.world import Dynamics, World
    from fastdwm.tasks import Task
    from fastdwm.train.config import TrainConfig
    from fastdwm.train.library import train_bundle

__version__ = "0.1.0"

_HOMES = {
    "Agent": "agent",
    "Bundle": "bundle",
    "Dynamics": "models.world",
    "EnvSpec": "envs",
    "ITPOConfig": "config",
    "InputError": "errors",
    "Policy": "models.policy",
    "Task": "tasks",
    "TrainConfig": "train.config",
    "World": "models.world",
    "imagined_return": "itpo.rollout",
    "run_episodes": "measure.simulate",
    "train_bundle": "train.library",
}
__all__ = [
    "Agent",
    "Bundle",
    "Dynamics",
    "EnvSpec",
    "ITPOConfig",
    "InputError",
    "Policy",
    "Task",
    "TrainConfig",
    "World",
    "imagined_return",
    "run_episodes",
    "train_bundle",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that commands answer --help without importing torch."""
    if name in _HOMES:
        return getattr(import_module(f"fastdwm.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
