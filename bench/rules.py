"""python bench/rules.py [--rounds N]: what a decision costs by each rule of the step, as a table in Markdown.

The default decision of the shipped hopper-medium bundle on one CPU thread. The rules take turns, one decision each, so
that whatever slows the machine down slows all of them; the ratio is that of medians of the thread's own time.
"""

import argparse
from time import thread_time

import numpy as np
import torch
from provenance import provenance

from fastdwm import Agent, Bundle, ITPOConfig

RULES = {
    "sgd": ITPOConfig(optimiser="sgd"),
    "trust": ITPOConfig(),
    "trust, guard off": ITPOConfig(guard="off"),
    "sgd, anchor and clip": ITPOConfig(optimiser="sgd", anchor_coef=1.0, grad_clip=40.0),
}
WARM_UP = 20
"""decisions of each that are not counted"""


def measure(bundle: Bundle, world: str, n_episodes: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of a decision for all episodes, by rule."""
    agents = {name: Agent.of(bundle, config, world=world) for name, config in RULES.items()}
    generator, times = np.random.default_rng(0), {name: [] for name in RULES}
    # The robot stands, more or less: the models know such states, and the trust is as in an episode.
    standing = np.array([1.25] + [0.0] * (bundle.obs_dim - 1), np.float32)
    for _ in range(WARM_UP + rounds):
        obs = standing + 1e-3 * generator.normal(size=(n_episodes, bundle.obs_dim)).astype(np.float32)
        for name, agent in agents.items():
            begun = thread_time()
            agent.act(obs)
            times[name].append(thread_time() - begun)
    return {name: 1e3 * float(np.median(values[WARM_UP:])) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500, help="decisions of each rule that count (default: 500)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    bundle, about = Bundle.load("hopper-medium"), provenance("cpu")
    print(f"{', '.join(f'{key} {value}' for key, value in about.items())}\n")
    print(f"| world model | B | {' | '.join(f'{name}, ms' for name in RULES)} | trust / sgd |")
    print(f"| --- | --- |{' --- |' * (len(RULES) + 1)}")
    for world in ("diffusion", "meanflow"):
        for n_episodes in (1, 10):
            found = measure(bundle, world, n_episodes, rounds)
            figures = " | ".join(f"{value:.2f}" for value in found.values())
            print(f"| {world} | {n_episodes} | {figures} | {found['trust'] / found['sgd']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
