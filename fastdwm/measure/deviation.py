"""Measure how far the data's actions deviate from a policy's for long; this bounds ITPO's actions for that policy."""

import numpy as np
import torch

from fastdwm.checks import require
from fastdwm.data.dataset import Transitions
from fastdwm.models.nets import Params
from fastdwm.models.policy import MLPFunction, Policy, mlp_policy

ROWS = 65_536
"""transitions per forward pass of the policy"""


def max_deviation(
    transitions: Transitions, policy: Params, discount: float, function: MLPFunction = mlp_policy
) -> float:
    """Root mean square over windows of the data of the mean deviation d = a - pi(s) within a window.

        l = sqrt( mean over windows of | mean over the window of d |^2 ),   |.| the root mean square over A numbers

    Windows are as in `window_means`. Exploration noise averages out within a window. Lasting differences between the
    recorded behaviour and the policy remain, and the data show their consequences.
    function: of the policy, from its parameters to actions.
    Returns l in units of the action, in (0, 2]; raises InputError if all actions are the policy's own.
    Source: our own.
    """
    means = window_means(_deviations(transitions, policy, function), transitions, discount)
    value = float(np.sqrt(np.square(means).mean()))
    require(value > 0, f"{transitions.source}: expected actions that differ from the policy's, got the policy's own")
    return value


def window_means(
    values: np.ndarray, transitions: Transitions, discount: float, rows: np.ndarray | None = None
) -> np.ndarray:
    """Means (W, A) of values (N, A), one row per transition, over windows of consecutive rows within episodes.

    A window has 1 / (1 - discount) decisions, the horizon of the values, or the length of the median episode if that
    is shorter. The rows after an episode's last full window are not used.   rows: (N,) bool, of whole episodes; none:
    all.
    """
    ends, lengths = transitions.episode_ends, transitions.episode_lengths
    window = min(round(1 / (1 - discount)), int(np.median(lengths)))
    means = [
        values[end + 1 - length :][: length // window * window].reshape(-1, window, values.shape[1]).mean(1)
        for end, length in zip(ends, lengths, strict=True)
        if rows is None or rows[end]
    ]
    return np.concatenate(means)


@torch.no_grad()
def _deviations(transitions: Transitions, policy: Params, function: MLPFunction) -> np.ndarray:
    """a - pi(s), (N, A) float64."""
    acting = Policy.mlp(policy, function.activation, function.output)
    result = np.array(transitions.action, dtype=np.float64)
    params = acting.layout.views(acting.base)
    for start in range(0, transitions.n, ROWS):
        rows = slice(start, start + ROWS)
        obs = torch.from_numpy(transitions.obs[rows])
        result[rows] -= acting.apply(params, obs.unsqueeze(0))[0].numpy()
    return result
