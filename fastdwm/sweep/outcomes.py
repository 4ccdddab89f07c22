"""Results of each stage for the file of its job, read from the files that its commands have written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdwm.checks import require
from fastdwm.data.minari import datasets_root
from fastdwm.files import read_json

MAX_BYTES = 512 * 2**20


def is_there(dataset: str) -> bool:
    """Whether the dataset is a local Minari dataset."""
    return (datasets_root() / dataset / "data" / "metadata.json").is_file()


def collected(dataset: str) -> dict[str, Any]:
    """Result of collect: the dataset's id and metadata."""
    about = read_json(datasets_root() / dataset / "data" / "metadata.json", MAX_BYTES)
    names = ("total_episodes", "total_steps", "env_spec", "description", "algorithm_name")
    return {"dataset": dataset, "metadata": {name: about[name] for name in names if name in about}}


def bundled(folder: Path) -> dict[str, Any]:
    """Result of train: the bundle, the hash of its weights and its report."""
    about = read_json(folder / "bundle.json", MAX_BYTES)
    names = ("weights_sha256", "dataset", "report", "versions")
    return {"bundle": str(folder), **{name: about.get(name) for name in names}}


def tuned(folder: Path) -> dict[str, Any]:
    """Result of tune: what it wrote into the bundle, without the table of trials."""
    about = read_json(folder / "bundle.json", MAX_BYTES)
    choice = {name: value for name, value in about.get("tuning", {}).items() if name != "table"}
    return {"bundle": str(folder), "weights_sha256": about.get("weights_sha256"), "tuning": choice}


def evaluated(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Result of eval: scores, lengths, latencies and diagnostics of each variant.   folders: with one JSON each."""
    records = {}
    for variant, folder in folders.items():
        paths = sorted(folder.glob("*.json"))
        require(len(paths) == 1, f"{folder}: expected one evaluation, found {len(paths)}")
        records[variant] = read_json(paths[0], MAX_BYTES)
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
    """The record of an evaluation without rewards and single decisions."""
    config, numbers, episodes = (record[name] for name in ("config", "summary", "episodes"))
    results = {
        policy: {"scores": [e["score_pct"] for e in records], "lengths": [e["length"] for e in records]}
        for policy, records in episodes.items()
    }
    return {
        "world": config["world"],
        "world_steps": config["world_steps"],
        "settings": config["itpo"],
        "seeds": record["seeds"],
        **results,
        "latency_ms": {policy: numbers[policy]["alone_latency"] for policy in episodes},
        "diagnostics": numbers["itpo"]["diagnostics"],
    }
