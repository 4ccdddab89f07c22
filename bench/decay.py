"""python bench/decay.py DECAYED:CONSTANT...: whether step sizes that decay steady the end of a training, as a table.

Two folders of `fastdwm.train --keep-checkpoints 10` on the same data with the same seed, the second with
`--rebrac.no-lr-decay`. Base policies alone, all on the same tuning seeds.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from averaged import scores

from fastdwm import Bundle
from fastdwm.measure.statistics import paired_difference
from fastdwm.tables import interval

LAST = 3
"""policies of a training that are compared"""
HEAD = ("run", "decayed", "constant", "last: decayed - constant", f"mean of the last {LAST}: decayed - constant")


def last_scores(folder: Path) -> np.ndarray:
    """(LAST, episodes) of the last kept policies, the last one last."""
    bundle = Bundle.load(folder / "bundle", tuned=False)
    kept = sorted(folder.glob("policy-*.safetensors"), key=lambda path: int(path.stem.split("-")[1]))[-LAST:]
    return np.array([scores(bundle.with_policy(path)) for path in kept])


def row(pair: str) -> list[str]:
    """Mean scores of each training's last policies, and what decaying gains, by episodes with the same seed."""
    decayed, constant = (Path(folder) for folder in pair.split(":"))
    found = last_scores(decayed), last_scores(constant)
    means = [", ".join(f"{score:.1f}" for score in each.mean(1)) for each in found]
    last, several = (paired_difference(a, b) for a, b in ([x[-1] for x in found], [x.mean(0) for x in found]))
    return [decayed.name, *means, interval(vars(last), "+"), interval(vars(several), "+")]


def main(pairs: list[str]) -> None:
    torch.set_num_threads(1)
    for cells in (HEAD, ["---"] * len(HEAD), *(row(pair) for pair in pairs)):
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
