"""Guess how long the commands of a job take, from the budgets in their flags."""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fastdwm import command
from fastdwm.sweep.stages import EPISODES, TUNE_MINUTES, Command

# Seconds on one core of a server from 2023: of a command with the default settings of its stage, and of any command
# before and after its work.
DEFAULT_S = {"collect": 150, "train": 1200, "tune": 60 * TUNE_MINUTES, "eval": 60}
START_S = 10
COLLECTED, STEPS = 1_000_000, 1000
"""transitions of a default dataset, and steps of an episode"""
NETWORKS = {"rebrac": 5, "meanflow": 3}
"""passes of a part's update, in units of one network forth and back; 1 for other parts"""


def seconds_of(words: Command) -> float:
    """Guess the seconds of one command of a job, `python -m fastdwm.STAGE ...`, or of another program (0).

    Raises InputError for flags that the command refuses, as far as they concern its budget.
    """
    module = words[2] if words[:2] == ["python", "-m"] else ""
    stage, arguments = module.removeprefix("fastdwm."), words[3:]
    if stage not in DEFAULT_S:
        return 0.0
    if stage == "train":
        share = updates(arguments) / updates(arguments[:1])
    elif stage == "tune":
        share = number(arguments, "--minutes", TUNE_MINUTES) / TUNE_MINUTES
    elif stage == "eval":
        steps = min(number(arguments, "--max-steps", STEPS), STEPS)
        share = number(arguments, "--episodes", EPISODES) / EPISODES * steps / STEPS
    else:
        share = number(arguments, "--transitions", COLLECTED) / COLLECTED
    return START_S + (DEFAULT_S[stage] - START_S) * share


def number(arguments: Sequence[str], flag: str, default: float) -> float:
    """The last value of a flag, which the command itself checks."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(flag, flag.replace("-", "_").replace("__", "--", 1), type=float, default=default)
    try:
        return vars(parser.parse_known_args(list(arguments))[0]).popitem()[1]
    except argparse.ArgumentError:
        return default


def updates(arguments: list[str]) -> float:
    """Work of a training: the multiplications of all updates, up to a factor."""
    from fastdwm.train import __main__ as train

    _, config = command.parse(train.presets(), "python -m fastdwm.train", "", arguments, train.cpu)
    worlds = ("diffusion", "meanflow") if config.worlds is None else config.worlds
    parts = {name: getattr(config, name, None) for name in ("rebrac", "reward", *worlds)}
    return sum(NETWORKS.get(name, 1) * products(part) for name, part in parts.items() if part is not None)


def products(part: Any) -> float:
    """Multiplications between hidden layers in the updates of one part."""
    return part.updates * (part.batch_size or 1024) * sum(a * b for a, b in pairwise((*part.hidden, 1)))
