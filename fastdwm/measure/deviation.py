"""How far the data's actions went from a policy's and stayed there: the bound of what ITPO may do with that policy."""

import numpy as np
import torch

from fastdwm.checks import require
from fastdwm.data.dataset import Transitions
from fastdwm.models.nets import Params
from fastdwm.models.policy import Policy

ROWS = 65_536
"""transitions that the policy acts in at a time"""


def max_deviation(transitions: Transitions, policy: Params, discount: float) -> float:
    """Root mean square, over windows of the data, of the mean deviation d = a - pi(s) within a window.

        l = sqrt( mean over windows of | mean over the window of d |^2 ),   |.| the root mean square over A numbers

    Windows are consecutive and lie within episodes; what is left of an episode behind its last window is not used. A
    window has 1 / (1 - discount) decisions, as far as values look ahead, or those of the median episode if that is
    shorter. Exploration noise averages out over a window; what the recorded behaviours did otherwise than the policy
    for so long does not, and the data show what comes of it.
    Returns l in units of the action, in (0, 2]; raises InputError for data that do exactly what the policy does.
    Source: our own.
    """
    ends = transitions.episode_ends
    lengths = np.diff(ends, prepend=-1)
    window = min(round(1 / (1 - discount)), int(np.median(lengths)))
    deviations = _deviations(transitions, policy)
    means = [
        deviations[end + 1 - length :][: length // window * window].reshape(-1, window, deviations.shape[1]).mean(1)
        for end, length in zip(ends, lengths, strict=True)
    ]
    value = float(np.sqrt(np.square(np.concatenate(means)).mean()))
    require(value > 0, f"{transitions.source}: expected actions that differ from the policy's, got the policy's own")
    return value


@torch.no_grad()
def _deviations(transitions: Transitions, policy: Params) -> np.ndarray:
    """a - pi(s), (N, A) float64."""
    acting, result = Policy.mlp(policy), np.array(transitions.action, dtype=np.float64)
    params = acting.layout.views(acting.base)
    for start in range(0, transitions.n, ROWS):
        rows = slice(start, start + ROWS)
        obs = torch.from_numpy(transitions.obs[rows])
        result[rows] -= acting.apply(params, obs.unsqueeze(0))[0].numpy()
    return result
