"""The flags of all commands that name a simulator, or vouch for the one that a file names."""

import json
from dataclasses import dataclass

from fastdwm.checks import Checked, require
from fastdwm.envs import EnvSpec, Trust
from fastdwm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EnvConfig(Checked):
    """The simulator. Raises InputError for arguments that are no JSON object."""

    env: str | None = None
    """simulator: an id of Gymnasium, or MODULE:ID if importing the module registers it. Needed for a task without a
    name, and for simulators of your own: what you type is trusted, what a file names is not. None: what dataset or
    bundle name"""
    env_kwargs: str = "{}"
    """arguments of that simulator's constructor as JSON, such as '{"xml_file": "walker2d.xml"}'"""
    trust_env: bool = False
    """build any simulator that a file names, with any arguments. This may run code that came with the file, so use it
    only for files that you trust"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.env != "", "env: expected an id of Gymnasium, got nothing")
        kwargs = self._kwargs()
        require(self.env is not None or not kwargs, "env_kwargs: expected none without --env")

    @property
    def typed(self) -> EnvSpec | None:
        """The simulator that was typed."""
        return None if self.env is None else EnvSpec(self.env, self._kwargs())

    @property
    def trust(self) -> Trust:
        """The simulators that files may name."""
        return self.trust_env or self.typed or False

    def _kwargs(self) -> dict:
        return read_kwargs(self.env_kwargs)


def read_kwargs(text: str) -> dict:
    """Arguments of a simulator from JSON; InputError unless it is an object."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"env_kwargs: expected JSON ({error})") from None
    require(isinstance(values, dict), f"env_kwargs: expected a JSON object, got {text}")
    return values
