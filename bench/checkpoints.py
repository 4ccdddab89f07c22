"""python bench/checkpoints.py RUN...: whether what an offline user has would choose a better policy than the last one.

RUN: a folder of `fastdwm.train --keep-checkpoints 10`, its dataset still there. Of each of the last kept policies:
what the data's first states are worth by its critics and by fitted Q evaluation, and, which a choice must not see,
its score on tuning seeds.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from averaged import SEEDS, scores
from scipy import stats

from fastdwm import Bundle
from fastdwm.data.dataset import Transitions, load
from fastdwm.measure.statistics import paired_difference
from fastdwm.tables import interval
from fastdwm.train.config import TrainConfig
from fastdwm.train.fit import Loop
from fastdwm.train.recipe import Offline, check_critics

LAST = 5
"""policies to choose from"""


def values(bundle: Bundle, transitions: Transitions) -> dict[str, float]:
    """Of the bundle's policy in the data's first states, by its critics and by fitted Q evaluation."""
    every = np.ones(transitions.n, bool)
    networks = {"policy": bundle.policy, "critics": bundle.critics}
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(Path(folder), 1000, 5000, lambda *_: None)
        config = TrainConfig(rebrac=bundle.rebrac_config)
        return check_critics(Offline(bundle.task, transitions, config, every, {}, loop, networks))


def rows(folder: Path) -> list[list[str]]:
    """A line for each policy, then what a choice by either value gains over the last policy."""
    bundle = Bundle.load(folder / "bundle", tuned=False)
    transitions = load(bundle.task, bundle.dataset["id"])
    kept = sorted(folder.glob("policy-*.safetensors"), key=lambda path: int(path.stem.split("-")[1]))[-LAST:]
    policies = [bundle.with_policy(path) for path in kept]
    scored, valued = [scores(policy) for policy in policies], [values(policy, transitions) for policy in policies]
    lines = []
    for path, score, value in zip(kept, scored, valued, strict=True):
        cells = f"{value['critics']:.0f}", f"{value['fqe']:.0f}", f"{np.mean(score):.1f}"
        lines.append([folder.name, path.stem.split("-")[1], *cells])
    means = np.mean(scored, axis=1)
    chosen = []
    for name in ("critics", "fqe"):
        by = [value[name] for value in valued]
        gain = paired_difference(scored[int(np.argmax(by))], scored[-1])
        chosen.append(f"{interval(vars(gain), '+')}, rank correlation {stats.spearmanr(by, means).statistic:+.2f}")
    return [*lines, [folder.name, "the highest - last", *chosen, ""]]


def main(folders: list[str]) -> None:
    torch.set_num_threads(1)
    head = ("run", "update", "Q", "FQE", f"score on {len(SEEDS)} tuning seeds")
    for cells in (head, ["---"] * len(head), *(cells for folder in folders for cells in rows(Path(folder)))):
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
