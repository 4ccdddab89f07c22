"""Small commands that are killed, and the results that each must leave."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from toy_bundles import make_bundle
from toy_data import training_flags

from fastdwm import Bundle

TASK, DATASET = "hopper-medium", "mine/tiny-v0"
TIMES = re.compile("latency|memory|front|_m?s$|^time$|^commands$")
"""names of values that differ between runs; the `commands` name folders"""


def save_base(folder: Path) -> None:
    """Save a dataset and a tuned bundle."""
    datasets.save_base(folder)
    bundle = make_bundle("meanflow")
    tuning = {"settings": bundle.settings.record(), "weights_sha256": bundle.fingerprint, "seeds": "old"}
    replace(bundle, tuning=tuning).save(folder / "bundle")


def training() -> list[str]:
    """Flags for a few updates of every part, with frequent checkpoints."""
    # The simulator does not repeat the data, which are random numbers.
    flags = ["--diffusion.denoise-steps=2", "--fqe-updates=4", "--eval-episodes=0", "--trust-env"]
    return [*training_flags(4, 8, 8), *flags, "--log-every=2", "--save-every=2"]


def train(base: Path, out: Path) -> list[str]:
    return [TASK, f"--dataset={base / datasets.D4RL}", f"--out={out}", "--threads=1", *training()]


def tune(base: Path, out: Path) -> list[str]:
    bundle, results = f"--bundle={out / 'bundle'}", f"--out={out / 'results'}"
    return [TASK, bundle, results, "--minutes=0.001", "--episodes=1", "--max-steps=2"]


def collect(base: Path, out: Path) -> list[str]:
    policies = [f"--policy={name}" for name in ("random", "random:2", base / "bundle")]
    return ["hopper", *policies, f"--out={DATASET}", "--transitions=60", "--workers=1"]


def study(base: Path, out: Path) -> list[str]:
    grid = ["--worlds=meanflow", "--horizons=1", "--particles=1", "--inner-steps=1", "--latency-decisions=5"]
    where = [f"--bundle={base / 'bundle'}", f"--out={out}", "--workers=1", "--backend=reference"]
    return [TASK, *grid, "--episodes=2", "--max-steps=5", *where]


def sweep(base: Path, out: Path) -> list[str]:
    data, flags = f"--dataset={base / datasets.D4RL}", " ".join([*training(), "--worlds mlp"])
    evaluation = "--episodes 1 --max-steps 2 --backend reference --diagnose-every 1000"
    stages = ["--stages", "train", "eval", "--variants=default", f"--train-flags={flags}", f"--eval-flags={evaluation}"]
    return [f"--tasks={TASK}", *stages, data, f"--out={out}", "--workers=1"]


def bundle(folder: Path) -> dict[str, Any]:
    """Fingerprint and tuning seeds of the bundle in the folder, if there is one."""
    if not (folder / "bundle.json").exists():
        return {}
    loaded = Bundle.load(folder)
    return {folder.parent.name: (loaded.fingerprint, (loaded.tuning or {}).get("seeds"))}


def files(out: Path) -> dict[str, bytes]:
    """Content of all files that are not hidden."""
    paths = {path.relative_to(out): path for path in out.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in paths.items()
        if not str(name).startswith(".") and "/." not in str(name)
    }


def cells(out: Path) -> dict[str, Any]:
    """Records, table and summary without times, and bundles of trainings, as far as they exist."""
    records = {str(path): timeless(json.loads(path.read_text())) for path in out.glob("c*/[!.]*.json")}
    if (out / "study.json").exists():
        summary = json.loads((out / "study.json").read_text())
        records |= {name: timeless(summary[name]) for name in ("verdict", "confirmation")}
    if (out / "study.csv").exists():
        with (out / "study.csv").open(newline="") as file:
            records["table"] = sorted(timeless(list(csv.DictReader(file))), key=lambda row: row["cell"])
    for folder in out.glob("train/*/bundle"):
        records |= bundle(folder)
    return records


def timeless(value: Any) -> Any:
    """JSON value without times."""
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if not TIMES.search(name)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Command:
    """Command, its results, and its share of the campaign."""

    argv: Callable[[Path, Path], list[str]]
    """arguments, given the folder of `save_base` and that of the output"""
    left: Callable[[Path], dict[str, Any]]
    """usable results in the folder of the output, by name; raises for damaged ones"""
    share: float
    """share of the time"""


COMMANDS = {
    "train": Command(train, lambda out: bundle(out / "bundle"), 0.1),
    "tune": Command(tune, lambda out: bundle(out / "bundle"), 0.05),
    "collect": Command(collect, files, 0.05),
    "study": Command(study, cells, 0.05),
    "sweep": Command(sweep, cells, 0.05),
}
