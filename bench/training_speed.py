"""python bench/training_speed.py BEFORE [--rounds N] [--jax]: updates per second of each part, here and in BEFORE.

BEFORE is another checkout of this repository. One process of each trains the parts with the preset `cpu` on made-up
data in one thread; the two take turns, so that a slow machine slows both. With --jax a third process trains some parts
in JAX (`jax_training.py`), after comparing its losses and gradients with those here. A figure is the median over rounds
of an update's processor time; the ratio is the median of the rounds' ratios, with their quartiles.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from trees import environment

PARTS = ("rebrac", "meanflow", "diffusion", "mlp", "reward")
IN_JAX = PARTS[:3]
"""parts with a twin in JAX"""
UPDATES = 20
"""number of updates of a turn"""
N_DATA, OBS_DIM, ACTION_DIM = 100_000, 11, 3


def statistics() -> dict:
    """Mean and standard deviation of the data's observations and of their changes."""
    import torch

    moments = {"mean": torch.zeros(OBS_DIM), "std": torch.ones(OBS_DIM)}
    return {f"{name}_{moment}": value for name in ("obs", "delta") for moment, value in moments.items()}


def trainers(arrange: Callable[[dict], dict] = lambda params: params) -> dict[str, tuple]:
    """Trainer and batches of each part; `arrange` may change the fresh parameters."""
    import torch

    from fastdwm.models.nets import init_mlp
    from fastdwm.models.rebrac import ReBRAC, init_critics, init_policy
    from fastdwm.models.registry import WORLD_MODELS
    from fastdwm.models.reward import reward_objective, reward_shapes
    from fastdwm.tasks import get_task
    from fastdwm.train.__main__ import presets
    from fastdwm.train.fit import Batches, ModelTrainer

    config, dims, random = presets()["cpu"], (OBS_DIM, ACTION_DIM), np.random.default_rng(0)
    widths = {"obs": OBS_DIM, "next_obs": OBS_DIM, "action": ACTION_DIM, "next_action": ACTION_DIM}
    columns = {name: random.uniform(-1, 1, (N_DATA, width)) for name, width in widths.items()}
    columns |= {"reward": random.uniform(-1, 1, N_DATA), "terminated": random.random(N_DATA) > 0.99}
    weighted = columns | {"weight": np.ones(N_DATA)}

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def batches(data):
        return Batches(data, np.arange(N_DATA))

    rebrac = config.rebrac.for_task(get_task("hopper-medium"))
    networks = (arrange(init(*dims, rebrac.hidden, generator())) for init in (init_policy, init_critics))
    parts = {"rebrac": (ReBRAC(*networks, rebrac, generator()), batches(columns))}
    models = {
        name: (config.world(name, world.config), world.shapes, world.loss) for name, world in WORLD_MODELS.items()
    }
    models["reward"] = config.reward, reward_shapes, lambda settings, statistics: reward_objective(statistics)
    for name, (settings, shapes, loss) in models.items():
        params = arrange(init_mlp(shapes(*dims, settings), generator()))
        trainer = ModelTrainer(params, loss(settings, statistics()), settings, generator())
        parts[name] = trainer, batches(weighted if name == "meanflow" else columns)
    return parts


def compiled(name: str, trainer: Any, batches: Any) -> Callable[[int], None]:
    """A function that does n updates as the command `train` does."""
    from fastdwm.train.fit import eager

    update = eager(trainer, batches, trainer.config.batch_size)

    def run(n: int) -> None:
        for _ in range(n):
            update()

    return run


def in_jax(name: str, trainer: Any, batches: Any) -> Callable[[int], None]:
    """The same in JAX."""
    from jax_training import updates

    return updates(name, trainer, batches, statistics())


def work(peer: str) -> None:
    """Read names of parts from stdin, and print the milliseconds of an update, averaged over UPDATES."""
    import torch

    torch.set_num_threads(1)
    parts, runs = trainers(), {}
    for name in map(str.strip, sys.stdin):
        if name not in runs:
            runs[name] = {"compiled": compiled, "jax": in_jax}[peer](name, *parts[name])
        start = process_time()
        runs[name](UPDATES)
        print(json.dumps(1e3 * (process_time() - start) / UPDATES), flush=True)


class Worker:
    """Process that trains with a tree's package, or in JAX."""

    def __init__(self, tree: Path, peer: str = "compiled"):
        command = [sys.executable, str(Path(__file__).resolve()), "--work", peer]
        env = environment(tree) | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def time(self, name: str) -> float:
        """Milliseconds of an update of a part."""
        print(name, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a process ended while it trained {name}; its message is above")
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout to compare with")
    parser.add_argument("--rounds", type=int, default=15, help=f"rounds of {UPDATES} updates a part (default: 15)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to train (default: all)")
    parser.add_argument("--jax", action="store_true", help=f"also train {', '.join(IN_JAX)} in JAX")
    args = parser.parse_args()
    here = Path(__file__).parent.parent
    workers = [Worker(tree) for tree in (args.before, here)]
    workers += [Worker(here, "jax")] if args.jax else []
    # Imported here, for a process of BEFORE may lack what it needs.
    from provenance import git, provenance

    about = provenance("cpu") | {"threads": 1, "before": git("-C", str(args.before), "rev-parse", "HEAD")}
    print(f"{', '.join(f'{key} {value}' for key, value in about.items())}\n")
    print("| part | updates/s before | now | now / before | quartiles |" + " JAX | now / JAX | quartiles |" * args.jax)
    print("| --- | ---: | ---: | ---: | ---: |" + " ---: | ---: | ---: |" * args.jax)
    for name in args.parts:
        racing = workers if name in IN_JAX else workers[:2]
        # The first turn compiles and warms up.
        times = np.array([[worker.time(name) for worker in racing] for _ in range(args.rounds + 1)])[1:]
        before, now, *others = 1e3 / np.median(times, axis=0)
        cells = [name, f"{before:.1f}", f"{now:.1f}", *ratio(times[:, 0] / times[:, 1])]
        for speed in others:
            cells += [f"{speed:.1f}", *ratio(times[:, 2] / times[:, 1])]
        cells += [""] * (3 * args.jax - 3 * len(others))
        print(f"| {' | '.join(cells)} |", flush=True)
    for worker in workers:
        worker.process.stdin.close()
        worker.process.wait()


def ratio(rounds: np.ndarray) -> tuple[str, str]:
    """Median and quartiles."""
    low, middle, high = np.quantile(rounds, [0.25, 0.5, 0.75])
    return f"{middle:.2f}", f"{low:.2f} to {high:.2f}"


if __name__ == "__main__":
    work(sys.argv[2]) if sys.argv[1:2] == ["--work"] else main()
