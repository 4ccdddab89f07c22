"""Training around a policy of the user's own, from `--policy KIND:FILE` or `Bundle.of`.

Torch is imported inside the functions, so that `train --help` does not load it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fastdwm.checks import require
from fastdwm.env_config import EnvConfig
from fastdwm.files import prepare_folder, reserved
from fastdwm.tasks import Task
from fastdwm.train.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from fastdwm.bundle import Bundle
    from fastdwm.data.dataset import Transitions
    from fastdwm.importers.imported import Imported


def read_own(task: Task, config: TrainConfig) -> tuple[Imported | None, TrainConfig]:
    """The policy of --policy, none without one, and the settings for it; prints its notes.

    Raises InputError for a file that cannot be read, and for one of another task.
    """
    if config.policy is None:
        return None, config
    from fastdwm.importers.read import read_policy

    imported = read_policy(config.policy, with_critics=config.critic is None)
    new = () if imported.critics else ("fitted Q evaluation trains its critics",)
    for note in (*imported.notes, *new):
        print(f"policy: {note}", file=sys.stderr)
    return imported, with_discount(imported, config.policy, task, config)


def with_discount(imported: Imported, where: str, task: Task, config: TrainConfig) -> TrainConfig:
    """The settings with the discount of the policy's critics; InputError for another one, and for sizes of another
    task.   where: name of the policy."""
    imported.check(where, task)
    own, asked = imported.discount, config.rebrac.discount
    if own is None:
        return config
    message = f"rebrac: discount: the critics of {where} have {own}, got {asked}; --critic fqe trains others"
    require(asked in (None, own), message)
    return dataclasses.replace(config, rebrac=dataclasses.replace(config.rebrac, discount=own))


def train_around(
    task: Task | str,
    policy: nn.Module | str,
    critics: Sequence[nn.Module],
    discount: float | None,
    dataset: str | Transitions | None,
    folder: Path | str | None,
    config: TrainConfig | None,
) -> Bundle:
    """`Bundle.of`, which says what the arguments are."""
    from fastdwm.data.task import resolve
    from fastdwm.importers.modules import from_modules

    # The command imports this module.
    command = import_module("fastdwm.train.__main__")
    if isinstance(task, str):
        task = resolve(task, config or EnvConfig(), dataset if isinstance(dataset, str) else None)
    config = config or command.cpu(task.name, TrainConfig()) or command.presets()["cpu"]
    transitions = None if dataset is None or isinstance(dataset, str) else dataset
    if transitions is None:
        config = dataclasses.replace(config, dataset=dataset or config.dataset)
    else:
        config = dataclasses.replace(config, trust_env=True)
    if isinstance(policy, str):
        require(not critics, "critics: expected none beside a file, which may hold its own")
        imported, config = read_own(task, dataclasses.replace(config, policy=policy))
    else:
        imported = from_modules(policy, critics, discount)
        config = with_discount(imported, f"the module {type(policy).__name__}", task, config)
    config = dataclasses.replace(config, rebrac=config.rebrac.for_task(task))
    folder = Path(folder or config.out or Path("runs") / task.name)
    prepare_folder(folder)
    with reserved(folder):
        return command.run(task, config, folder, transitions=transitions, imported=imported)
