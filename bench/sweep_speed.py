"""python bench/sweep_speed.py [--updates N]: speed-up of a sweep that runs two trainings at a time instead of one.

The trainings use a made-up dataset, networks of the default size and one thread each. Both kinds of sweep take turns.
The figure is the wall time of the whole command, start and summary included; it needs two idle cores.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from provenance import provenance

EPISODES, STEPS = 100, 200
PARTS = ("diffusion", "meanflow", "mlp", "reward")


def write_data(path: Path) -> None:
    """Write a D4RL file of random numbers with hopper's sizes."""
    rng, n = np.random.default_rng(0), EPISODES * STEPS
    with h5py.File(path, "w") as file:
        file["observations"] = obs = rng.normal(size=(n, 11)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (n, 3)).astype(np.float32)
        file["rewards"], file["next_observations"] = obs[:, 0], 0.9 * obs
        file["terminals"], file["timeouts"] = np.zeros(n, bool), np.arange(n) % STEPS == STEPS - 1


def seconds(folder: Path, workers: int, updates: int, turn: int) -> float:
    """Wall time of a sweep of two trainings."""
    small = [f"--{part}.updates {updates // 20} --{part}.batch-size 256" for part in PARTS]
    flags = f"--rebrac.updates {updates} --eval-episodes 0 --fqe-updates 0 {' '.join(small)}"
    cells = ["--tasks", "hopper-medium", "--seeds", "2", "--stages", "train", "--dataset", str(folder / "data.hdf5")]
    where = ["--out", str(folder / f"{workers}-{turn}"), "--workers", str(workers), "--train-flags", flags]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fastdwm.sweep", *cells, *where], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10_000, help="updates of policy and critics (default: 10000)")
    parser.add_argument("--turns", type=int, default=3, help="sweeps of each kind (default: 3)")
    args = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in provenance("cpu").items()))
    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder, "data.hdf5"))
        for turn in range(args.turns):
            for workers in times:
                times[workers].append(seconds(Path(folder), workers, args.updates, turn))
                print(f"{workers} at a time: {times[workers][-1]:.1f} s", flush=True)
    one, two = (float(np.median(values)) for values in times.values())
    print(f"medians {one:.1f} and {two:.1f} s: {one / two:.2f} times as fast")


if __name__ == "__main__":
    main()
