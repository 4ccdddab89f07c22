"""python bench/indicators.py LIST.json: what could tell, without a simulator, a policy whose critics mislead it.

LIST.json as for bench/base_policies.py. For each base policy, on its data: the maximum deviation l; the share of l^2
that a regression of the deviation on the state explains on other episodes (the policy's own bias, no diversity of the
data); the critics' error |r + g V(s') - Q(s, a)| and their disagreement |Q1 - Q2|, both over P, the root mean square of
dQ/da. A table in Markdown on stdout.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from base_cells import BasePolicy, load, read_policies
from base_page import markdown
from torch import Tensor, nn

from fastdwm.bundle import Bundle
from fastdwm.data import dataset as data
from fastdwm.data.dataset import Transitions
from fastdwm.measure.deviation import max_deviation, window_means
from fastdwm.models.policy import Policy

ROWS, UPDATES, BATCH = 4_000, 2_000, 512
COLUMNS = ("base policy", "l", "share explained by the state", "critics' error / P", "disagreement / P")


def deviations(transitions: Transitions, bundle: Bundle) -> np.ndarray:
    """a - pi(s) (N, A)."""
    return transitions.action - act(bundle, torch.from_numpy(transitions.obs)).numpy()


@torch.no_grad()
def act(bundle: Bundle, obs: Tensor) -> Tensor:
    """pi(s) (N, A) of obs (N, S)."""
    policy = Policy.mlp(bundle.policy)
    views = policy.layout.views(policy.base)
    return torch.cat([policy.apply(views, rows.unsqueeze(0))[0] for rows in obs.split(65_536)])


def explained(transitions: Transitions, bundle: Bundle) -> float:
    """Share of the mean square of the windows' means that a regression explains on episodes that it has not seen."""
    fitted, rest = transitions.split_episodes(0.5, 0)
    deviation = deviations(transitions, bundle)
    obs = (transitions.obs - bundle.statistics["obs_mean"].numpy()) / bundle.statistics["obs_std"].numpy()
    x, y = torch.from_numpy(obs[fitted]), torch.from_numpy(deviation[fitted])
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, y.shape[1])
    )
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(UPDATES):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        optimiser.zero_grad()
        (net(x[rows]) - y[rows]).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        residual = deviation - net(torch.from_numpy(obs)).numpy()
    left, whole = (
        np.square(window_means(values, transitions, bundle.discount, rest)).mean() for values in (residual, deviation)
    )
    return float(1 - left / whole)


def critic_errors(transitions: Transitions, bundle: Bundle) -> tuple[float, float]:
    """The critics' error and their disagreement, in units of P."""
    rows = np.random.default_rng(0).choice(np.flatnonzero(transitions.critic_rows), ROWS, replace=False)
    obs, action, reward, after, ended = (
        torch.from_numpy(getattr(transitions, name)[rows])
        for name in ("obs", "action", "reward", "next_obs", "terminated")
    )
    critic = bundle.world().critic
    leaf = action.clone().requires_grad_(True)
    q = critic(obs, leaf)
    slope = torch.autograd.grad(q.amin(0).sum(), leaf)[0].square().mean().sqrt()
    with torch.no_grad():
        following = torch.where(ended, 0, critic(after, act(bundle, after)).amin(0))
        error = (bundle.task.reward_scale * reward + bundle.discount * following - q.amin(0)).abs().mean()
        return float(error / slope), float((q[0] - q[1]).abs().mean() / slope)


def row(entry: BasePolicy) -> list[str]:
    bundle = load(entry)
    transitions = data.load(bundle.task, entry.dataset or bundle.dataset["id"])
    bound = max_deviation(transitions, bundle.policy, bundle.discount)
    numbers = explained(transitions, bundle), *critic_errors(transitions, bundle)
    return [entry.name, f"{bound:.4f}", *(f"{number:.2f}" for number in numbers)]


def main(path: Path) -> None:
    torch.set_num_threads(1)
    print(markdown([COLUMNS, *map(row, read_policies(path))]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
