"""python bench/cpu_decision.py BEFORE [--rounds N]: time a decision in this checkout, in BEFORE and in plain torch.

BEFORE is another checkout of this repository. All decide with the shipped hopper-medium bundle and the default rule on
one CPU thread, and take turns, a process each, so that a slow machine slows all of them. The result is a Markdown table
of the medians over all rounds.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
from trees import environment

CASES = {
    "meanflow, 1, 2, 8": 300,
    "diffusion, 1, 2, 8": 150,
    "diffusion, 1, 16, 5": 40,
    "diffusion, 1, 64, 5": 15,
    "diffusion, 10, 16, 5": 8,
    "diffusion, 10, 64, 5": 3,
}
"""number of decisions of a process, by world model, B, M and H; the first two are the default's"""
WARM_UP = 3
"""number of first decisions that are not counted"""


def measure(backend: str) -> dict[str, list[float]]:
    """Time decisions in milliseconds, by case; runs in a process of its own."""
    import torch

    from fastdwm import Agent, Bundle, ITPOConfig

    torch.set_num_threads(1)
    bundle, times, generator = Bundle.load("hopper-medium"), {}, np.random.default_rng(0)
    standing = np.array([1.25] + [0.0] * (bundle.obs_dim - 1), np.float32)
    for name, n_decisions in CASES.items():
        world, *numbers = name.split(", ")
        n_episodes, particles, horizon = map(int, numbers)
        config = ITPOConfig(horizon=horizon, particles=particles)
        agent, times[name] = Agent.of(bundle, config, world=world, backend=backend), []
        for _ in range(WARM_UP + n_decisions):
            obs = standing + 1e-3 * generator.normal(size=(n_episodes, bundle.obs_dim)).astype(np.float32)
            start = perf_counter()
            agent.act(obs)
            times[name].append(1e3 * (perf_counter() - start))
        del times[name][:WARM_UP]
    return times


def in_process(tree: Path, backend: str) -> dict[str, list[float]]:
    """Run `measure` with another tree's package."""
    env = environment(tree) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", backend]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def table(times: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| world model, B, M, H | reference, ms | before, ms | now, ms | now / before | reference / now |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in CASES:
        reference, before, now = (float(np.median(times[peer][name])) for peer in ("reference", "before", "now"))
        figures = f"{reference:.2f} | {before:.2f} | {now:.2f} | {now / before:.2f} | {reference / now:.2f}"
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, nargs="?", help="checkout to compare with")
    parser.add_argument("--rounds", type=int, default=3, help="number of processes of each (default: 3)")
    parser.add_argument("--measure", choices=("fused", "reference"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    here = Path(__file__).parent.parent
    peers = {"before": (args.before, "fused"), "now": (here, "fused"), "reference": (here, "reference")}
    times = {peer: {name: [] for name in CASES} for peer in peers}
    for _ in range(args.rounds):
        for peer, (tree, backend) in peers.items():
            for name, round_times in in_process(tree, backend).items():
                times[peer][name] += round_times
    # Imported here, for a process of BEFORE may lack what it needs.
    from provenance import git, provenance

    about = provenance("cpu") | {"threads": 1, "before": git("-C", str(args.before.resolve()), "rev-parse", "HEAD")}
    print(f"{', '.join(f'{key} {value}' for key, value in about.items())}\n\n{table(times)}")


if __name__ == "__main__":
    main()
