"""Inference-time policy optimisation through differentiable world models.

from fastdwm import Agent, Bundle, ITPOConfig

agent = Agent(Bundle.load("hopper-medium"), ITPOConfig())
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
    from fastdwm.measure.simulate import run_episodes
    from fastdwm.tasks import Task

__version__ = "0.1.0"

_HOMES = {
    "Agent": "fastdwm.agent",
    "Bundle": "fastdwm.bundle",
    "EnvSpec": "fastdwm.envs",
    "ITPOConfig": "fastdwm.config",
    "InputError": "fastdwm.errors",
    "run_episodes": "fastdwm.measure.simulate",
    "Task": "fastdwm.tasks",
}
__all__ = ["Agent", "Bundle", "EnvSpec", "ITPOConfig", "InputError", "Task", "run_episodes"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are used: the commands answer --help before torch is imported."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
