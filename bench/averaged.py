"""python bench/averaged.py RUN...: whether averaging the weights of the last kept policies helps, as a table.

RUN: a folder of `fastdwm.train --keep-checkpoints 6` or more. Base policies alone, all on the same tuning seeds.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fastdwm import Agent, Bundle, ITPOConfig, run_episodes
from fastdwm.measure.statistics import paired_difference
from fastdwm.tables import interval

SEEDS = [20_000 + i for i in range(20)]
LAST = (2, 3, 5)
"""policies in an average"""


def scores(bundle: Bundle) -> list[float]:
    """Of the base policy, by seed."""
    run = run_episodes(Agent.of(bundle, ITPOConfig(inner_steps=0)), bundle.task.env, SEEDS)
    return [bundle.task.score_pct(episode.total) for episode in run.episodes]


def row(folder: Path) -> list[str]:
    """Mean score of the last policy, and what each average differs from it by."""
    bundle = Bundle.load(folder / "bundle", tuned=False)
    kept = sorted(folder.glob("policy-*.safetensors"), key=lambda path: int(path.stem.split("-")[1]))
    policies = [bundle.with_policy(path).policy for path in kept]
    last = scores(replace(bundle, policy=policies[-1]))
    cells = [folder.name, f"{np.mean(last):.1f}"]
    for count in LAST:
        mean = {name: torch.stack([policy[name] for policy in policies[-count:]]).mean(0) for name in bundle.policy}
        found = paired_difference(scores(replace(bundle, policy=mean)), last)
        cells.append(interval(vars(found), "+"))
    return cells


def main(folders: list[str]) -> None:
    torch.set_num_threads(1)
    head = ("run", "last policy", *(f"mean of the last {count} - last" for count in LAST))
    for cells in (head, ["---"] * len(head), *(row(Path(folder)) for folder in folders)):
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
