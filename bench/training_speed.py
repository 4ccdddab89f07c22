"""python bench/training_speed.py BEFORE [--rounds N]: updates per second of each part, here and in BEFORE.

BEFORE is another checkout of this repository. One process of each trains the parts with the preset `cpu` on made-up
data in one thread; the two take turns, so that a slow machine slows both. A figure is the median over rounds of an
update's processor time; the ratio is the median of the rounds' ratios, with their quartiles.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
from provenance import git, provenance
from trees import environment

PARTS = ("rebrac", "meanflow", "diffusion", "mlp", "reward")
UPDATES = 20
"""number of updates of a turn"""
N_DATA, OBS_DIM, ACTION_DIM = 100_000, 11, 3


def trainers(arrange: Callable[[dict], dict] = lambda params: params) -> dict[str, tuple]:
    """Trainer and function that does one update, for each part; `arrange` may change the fresh parameters."""
    import torch

    from fastdwm.models.nets import init_mlp
    from fastdwm.models.rebrac import ReBRAC, init_critics, init_policy
    from fastdwm.models.registry import WORLD_MODELS
    from fastdwm.models.reward import reward_objective, reward_shapes
    from fastdwm.tasks import get_task
    from fastdwm.train.__main__ import presets
    from fastdwm.train.fit import Batches, ModelTrainer, eager

    config, dims, random = presets()["cpu"], (OBS_DIM, ACTION_DIM), np.random.default_rng(0)
    widths = {"obs": OBS_DIM, "next_obs": OBS_DIM, "action": ACTION_DIM, "next_action": ACTION_DIM}
    columns = {name: random.uniform(-1, 1, (N_DATA, width)) for name, width in widths.items()}
    columns |= {"reward": random.uniform(-1, 1, N_DATA), "terminated": random.random(N_DATA) > 0.99}
    weighted = columns | {"weight": np.ones(N_DATA)}
    moments = {"mean": torch.zeros(OBS_DIM), "std": torch.ones(OBS_DIM)}
    statistics = {f"{name}_{moment}": value for name in ("obs", "delta") for moment, value in moments.items()}

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def part(trainer, data, settings):
        return trainer, eager(trainer, Batches(data, np.arange(N_DATA)), settings.batch_size)

    rebrac = config.rebrac.for_task(get_task("hopper-medium"))
    networks = (arrange(init(*dims, rebrac.hidden, generator())) for init in (init_policy, init_critics))
    parts = {"rebrac": part(ReBRAC(*networks, rebrac, generator()), columns, rebrac)}
    models = {
        name: (config.world(name, world.config), world.shapes, world.loss) for name, world in WORLD_MODELS.items()
    }
    models["reward"] = config.reward, reward_shapes, lambda settings, statistics: reward_objective(statistics)
    for name, (settings, shapes, loss) in models.items():
        params = arrange(init_mlp(shapes(*dims, settings), generator()))
        trainer = ModelTrainer(params, loss(settings, statistics), settings, generator())
        parts[name] = part(trainer, weighted if name == "meanflow" else columns, settings)
    return parts


def work() -> None:
    """Read names of parts from stdin, and print the milliseconds of an update, averaged over UPDATES."""
    import torch

    torch.set_num_threads(1)
    parts = trainers()
    for name in map(str.strip, sys.stdin):
        start = process_time()
        for _ in range(UPDATES):
            parts[name][1]()
        print(json.dumps(1e3 * (process_time() - start) / UPDATES), flush=True)


class Worker:
    """Process that trains with a tree's package."""

    def __init__(self, tree: Path):
        command = [sys.executable, str(Path(__file__).resolve()), "--work"]
        env = environment(tree) | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def time(self, name: str) -> float:
        """Milliseconds of an update of a part."""
        print(name, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout to compare with")
    parser.add_argument("--rounds", type=int, default=15, help=f"rounds of {UPDATES} updates a part (default: 15)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to train (default: all)")
    args = parser.parse_args()
    workers = [Worker(tree) for tree in (args.before, Path(__file__).parent.parent)]
    about = provenance("cpu") | {"threads": 1, "before": git("-C", str(args.before), "rev-parse", "HEAD")}
    print(f"{', '.join(f'{key} {value}' for key, value in about.items())}\n")
    print("| part | updates/s before | now | now / before | quartiles |\n| --- | ---: | ---: | ---: | ---: |")
    for name in args.parts:
        # The first turn compiles and warms up.
        times = np.array([[worker.time(name) for worker in workers] for _ in range(args.rounds + 1)])[1:]
        before, now = 1e3 / np.median(times, axis=0)
        low, middle, high = np.quantile(times[:, 0] / times[:, 1], [0.25, 0.5, 0.75])
        print(f"| {name} | {before:.1f} | {now:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True)
    for worker in workers:
        worker.process.stdin.close()
        worker.process.wait()


if __name__ == "__main__":
    work() if sys.argv[1:] == ["--work"] else main()
