"""python bench/endurance.py replays|updates --count N --json FILE: repeat GPU work many times and check it.

replays: every replay of a captured rollout gradient, and every decision from the same start, must give the same bits.
updates: N training updates of every part must stay finite.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from peers import capture
from problems import OBS_DIM, Problem, Size
from provenance import provenance
from trainers import PARTS

from fastdwm import Agent
from fastdwm.files import write_json
from fastdwm.itpo.fused import FusedObjective
from fastdwm_kernels.launch import PRECISIONS

Row = dict[str, Any]

WORLDS = {"diffusion": 10, "meanflow": 1}
"""number of network calls of each world model"""


def replays(device: str, count: int) -> Iterator[Row]:
    """For each world model and precision, count how many of `count` results differ from the first in any bit."""
    for world, steps in WORLDS.items():
        problem = Problem(Size(M=64, K=steps, world=world, device=device))
        about = {"world": world, "replays": count}
        for precision in PRECISIONS if device == "cuda" else ("ieee",):
            objective = FusedObjective(problem.policy, problem.world, problem.config, precision=precision)
            call = partial(objective.gradient, *problem.arguments)
            different = differing(capture(call) if device == "cuda" else call, count)
            yield {"operation": "rollout gradient", **about, "precision": precision, "different": different}
        different = differing(decision(problem), count)
        yield {"operation": "decision", **about, "precision": problem.precision, "different": different}


def differing(call: Callable, count: int) -> int:
    """Number of `count` calls whose results differ from the first call's."""
    first = [result.clone() for result in call()]
    different = torch.zeros((), dtype=torch.int64, device=first[0].device)
    for _ in range(count):
        different += torch.stack([(a != b).any() for a, b in zip(first, call(), strict=True)]).any()
    return int(different)


def decision(problem: Problem) -> Callable:
    """The first decision of a new episode, always with the same noise."""
    agent = Agent.of(problem.bundle, problem.config, device=problem.size.device, world=problem.size.world)
    obs = np.random.default_rng(0).normal(size=(problem.size.B, OBS_DIM)).astype(np.float32)

    def call():
        agent.reset()
        return (torch.from_numpy(agent.act(obs)),)

    return call


def updates(device: str, count: int) -> Iterator[Row]:
    """For each part, measure updates per second and the mean losses of the first and of the last tenth."""
    problem, window = Problem(Size(device=device)), max(count // 10, 1)
    for name, make in PARTS.items():
        update = make(problem).update(captured=device == "cuda")
        start, infos = perf_counter(), [update() for _ in range(count)]
        losses = torch.stack([torch.stack([value.float() for value in info.values()]) for info in infos]).cpu()
        yield {
            "operation": f"{name} updates",
            "updates": count,
            "updates_per_s": count / (perf_counter() - start),
            "finite": bool(losses.isfinite().all()),
            "first": dict(zip(infos[0], losses[:window].mean(0).tolist(), strict=True)),
            "last": dict(zip(infos[0], losses[-window:].mean(0).tolist(), strict=True)),
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/endurance.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", choices=("replays", "updates"))
    parser.add_argument("--count", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="default: %(default)s")
    parser.add_argument("--json", type=Path, required=True, help="file to write, anew after every row")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for row in {"replays": replays, "updates": updates}[args.run](args.device, args.count):
        rows.append(row)
        print(row, flush=True)
        write_json(args.json, {"title": args.run, "rows": rows, "provenance": provenance(args.device)})
    return int(any(row.get("different") or not row.get("finite", True) for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
