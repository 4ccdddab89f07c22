"""python bench/before_after.py BEFORE [--rounds N]: compare all CPU benchmarks of this checkout with those of BEFORE.

BEFORE is another checkout of this repository. Both run `pytest bench --benchmark-only --device cpu` at the same time,
each on a core of its own, and swap cores after every round, so that a slow machine slows both. A figure is the median
of a round, averaged over rounds. The plain torch reference hardly changes between two versions: the spread of its
ratios around 1 is the resolution of the comparison.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from provenance import git, provenance
from trees import environment

PYTEST = "-m pytest bench --benchmark-only --device cpu -q -p no:cacheprovider --benchmark-json".split()
HEAD = "| benchmark | before, ms | now, ms | now / before |\n| --- | ---: | ---: | ---: |"

Medians = dict[str, float]
"""milliseconds, by the name of the benchmark and its case"""


def begin(tree: Path, core: int, out: Path) -> subprocess.Popen:
    """Start the tree's benchmarks on one core."""
    env = environment(tree) | {"OMP_NUM_THREADS": "1"}
    command, pin = [sys.executable, *PYTEST, str(out)], partial(os.sched_setaffinity, 0, {core})
    return subprocess.Popen(command, cwd=tree, env=env, stdout=subprocess.DEVNULL, preexec_fn=pin)


def medians(out: Path) -> Medians:
    benchmarks = json.loads(out.read_text())["benchmarks"]
    return {each["name"].removeprefix("test_"): 1e3 * each["stats"]["median"] for each in benchmarks}


def measured(trees: list[Path], cores: list[int], rounds: int) -> list[Medians]:
    """Mean medians of each tree, for the benchmarks that both have."""
    results: list[list[Medians]] = [[] for _ in trees]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            outs = [Path(folder, f"{i}-{number}.json") for i in range(len(trees))]
            turned = cores if number % 2 == 0 else cores[::-1]
            running = [begin(*each) for each in zip(trees, turned, outs, strict=True)]
            if any([each.wait() for each in running]):
                raise SystemExit("the benchmarks failed: run them in both trees to see why")
            for i, out in enumerate(outs):
                results[i].append(medians(out))
    shared = [name for name in results[0][0] if all(name in each for tree in results for each in tree)]
    return [{name: float(np.mean([each[name] for each in tree])) for name in shared} for tree in results]


def table(before: Medians, now: Medians, reference: bool) -> str:
    """Markdown table of the reference's benchmarks, or of all others."""
    names = [name for name in before if name.endswith("-reference]") == reference]
    lines = [f"| {n} | {before[n]:.3f} | {now[n]:.3f} | {now[n] / before[n]:.2f} |" for n in names]
    return "\n".join([HEAD, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout to compare with")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of all benchmarks, minutes each (default: 4)")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("expected two cores, got one: on one core the trees would slow each other down")
    trees = [args.before.resolve(), Path(__file__).resolve().parent.parent]
    before, now = measured(trees, cores, args.rounds)
    about = provenance("cpu") | {"threads": 1, "before": git("-C", str(trees[0]), "rev-parse", "HEAD")}
    ratios = np.array([now[n] / before[n] for n in before if n.endswith("-reference]")])
    low, high = np.quantile(ratios, [0.025, 0.975])
    print("# The benchmarks on a CPU, before and after\n")
    print(f"`python bench/before_after.py BEFORE --rounds {args.rounds}`, described in its docstring.\n")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"\n95 % of the reference's ratios lie in {low:.2f} to {high:.2f}; ratios in that range mean nothing.\n")
    print(f"{table(before, now, False)}\n\n## The reference\n\n{table(before, now, True)}")


if __name__ == "__main__":
    main()
