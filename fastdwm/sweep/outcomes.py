"""What is kept of each stage in the file of its job, read from what the commands have left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdwm.checks import require
from fastdwm.data.minari import datasets_root
from fastdwm.files import read_json

MAX_BYTES = 512 * 2**20


def is_there(dataset: str) -> bool:
    """Whether the dataset is among Minari's local ones."""
    return (datasets_root() / dataset / "data" / "metadata.json").is_file()


def collected(dataset: str) -> dict[str, Any]:
    """The dataset by its id and its own description."""
    about = read_json(datasets_root() / dataset / "data" / "metadata.json", MAX_BYTES)
    names = ("total_episodes", "total_steps", "env_spec", "description", "algorithm_name")
    return {"dataset": dataset, "metadata": {name: about[name] for name in names if name in about}}


def bundled(folder: Path) -> dict[str, Any]:
    """The bundle of a training, its weights and its report."""
    about = read_json(folder / "bundle.json", MAX_BYTES)
    known = {name: about.get(name) for name in ("weights_sha256", "dataset", "report", "versions")}
    return {"bundle": str(folder), **known}


def tuned(folder: Path) -> dict[str, Any]:
    """What tune has written into the bundle beside its weights, without the table."""
    about = read_json(folder / "bundle.json", MAX_BYTES)
    choice = {name: value for name, value in about.get("tuning", {}).items() if name != "table"}
    return {"bundle": str(folder), "weights_sha256": about.get("weights_sha256"), "tuning": choice}


def evaluated(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Scores, lengths, latencies and diagnostics of each variant.   folders: of the evaluations, one JSON in each."""
    records = {}
    for variant, folder in folders.items():
        found = sorted(folder.glob("*.json"))
        require(len(found) == 1, f"{folder}: expected one evaluation, found {len(found)}")
        records[variant] = read_json(found[0], MAX_BYTES)
    first = next(iter(records.values()))
    bundle = first["bundle"]
    return {
        "bundle": bundle["folder"],
        "weights_sha256": bundle["weights_sha256"],
        "env": first["env"],
        "env_departures": first["env_departures"],
        "dataset": bundle["dataset"],
        "errors": bundle["report"].get("errors"),
        "critic": bundle["report"].get("critic"),
        "machine": first["machine"],
        "variants": {variant: compact(record) for variant, record in records.items()},
    }


def compact(record: Mapping[str, Any]) -> dict[str, Any]:
    """One evaluation without its rewards and single decisions."""
    config, numbers, episodes = (record[name] for name in ("config", "summary", "episodes"))
    ran = {
        policy: {"scores": [e["score_pct"] for e in those], "lengths": [e["length"] for e in those]}
        for policy, those in episodes.items()
    }
    return {
        "world": config["world"],
        "world_steps": config["world_steps"],
        "settings": config["itpo"],
        "seeds": record["seeds"],
        **ran,
        "latency_ms": {policy: numbers[policy]["alone_latency"] for policy in episodes},
        "diagnostics": numbers["itpo"]["diagnostics"],
    }
