"""Columns of recorded returns, from which critics learn sparse rewards in fewer updates."""

import numpy as np

from fastdwm.data.dataset import Transitions
from fastdwm.models.config import ReBRACConfig


def return_columns(transitions: Transitions, config: ReBRACConfig) -> dict[str, np.ndarray]:
    """The columns (N,) or (N, d) that `n_step` and `return_bound` add or replace; rewards are unscaled.

    n_step: reward is sum_{j<k} g^j r_j of the k recorded steps from each row, at most n_step; next_obs, next_action and
    terminated are those of the last of them, and discount is g^k. They stop before a truncated step, whose next action
    is unknown.   return_bound: `return`, the discounted reward from each row to the end of its episode.
    """
    columns = {}
    if config.n_step > 1:
        row = np.arange(transitions.n)
        end = np.repeat(transitions.episode_ends, transitions.episode_lengths)
        last = np.clip(end - transitions.truncated[end], row, row + config.n_step - 1)
        columns = {name: getattr(transitions, name)[last] for name in ("next_obs", "next_action", "terminated")}
        columns["discount"] = config.discount ** (last - row + 1.0)
        columns["reward"] = np.zeros(transitions.n)
        for step in range(config.n_step):
            reward = transitions.reward[np.minimum(row + step, last)]
            columns["reward"] += np.where(row + step <= last, config.discount**step * reward, 0)
    if config.return_bound:
        columns["return"] = returns_to_go(transitions, config.discount)
    return columns


def returns_to_go(transitions: Transitions, discount: float) -> np.ndarray:
    """Discounted reward (N,) from each row to the end of its episode."""
    continues = discount * ~(transitions.terminated | transitions.truncated)
    result, following = np.zeros(transitions.n), 0.0
    for row in range(transitions.n - 1, -1, -1):
        result[row] = following = transitions.reward[row] + continues[row] * following
    return result
