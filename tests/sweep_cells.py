"""Made-up folders of a finished sweep."""

import json
from pathlib import Path

import numpy as np

from fastdwm.report.paper.published import LOCOMOTION, SCORES

MACHINE = {"cpu": "x86_64", "cpu_count": 2, "threads": 1, "accelerator": None, "system": "Linux"}
DEFAULT = {"horizon": 8, "particles": 2, "inner_steps": 1, "optimiser": "bound", "max_deviation": None}
WORLDS = {
    "default": "diffusion",
    "tuned": "meanflow",
    "meanflow": "meanflow",
    "critic": "diffusion",
    "drift": "diffusion",
}


def variant(name, base, itpo, ms=1.0):
    """Record of one variant with these scores."""
    latency_ms = {"base": {"p50_ms": 0.05, "p99_ms": None}, "itpo": {"p50_ms": ms, "p99_ms": None}}
    policies = {"base": base, "itpo": itpo}
    return {
        "world": WORLDS[name],
        "world_steps": None,
        "settings": DEFAULT | ({"horizon": 5} if name == "tuned" else {}),
        "seeds": [10_000 + i for i in range(len(base))],
        **{policy: {"scores": list(x), "lengths": [1000] * len(base)} for policy, x in policies.items()},
        "latency_ms": latency_ms,
        "diagnostics": {},
    }


def errors(rmse=0.1, reward=0.01):
    """Record of one world model's errors."""
    one_step = {"obs_rmse": rmse, "obs_rmse_se": 0.001, "reward_rmse": reward, "reward_rmse_se": 0.0005}
    return {"one_step": {"transitions": 1000, "samples": 16, **one_step}, "open_loop": [], "calibration": {}}


def cell(task, variants, seed=0, machine=MACHINE, mujoco="3.4.0", worlds=None):
    """Record of one finished evaluation."""
    return {
        "format": 1,
        "task": task,
        "seed": seed,
        "stage": "eval",
        "identity": {"seed": seed, "versions": {"mujoco": mujoco, "gymnasium": "1.2.1"}},
        "machine": machine,
        "time": "2026-01-01T00:00:00+00:00",
        "versions": {},
        "commands": [],
        "wall_s": 1.0,
        "result": {
            "bundle": "bundles/x",
            "weights_sha256": "0",
            "env": {"id": "Hopper-v5", "kwargs": {}, "max_episode_steps": 1000},
            "env_departures": [],
            "dataset": {"id": f"deepope/{task}", "mean_score_pct": 40.0},
            "errors": {"diffusion": errors(0.1), "meanflow": errors(0.2)} if worlds is None else worlds,
            "variants": variants,
        },
    }


def write(folder: Path, *records) -> Path:
    """Write a file for each record; returns the folder."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    for record in records:
        name = f"{record['task']}-s{record['seed']}-eval.json"
        (folder / "cells" / name).write_text(json.dumps(record))
    return folder


def sweep(folder: Path, tasks=LOCOMOTION, seeds=(0,), episodes=50, variants=tuple(WORLDS), random=0) -> Path:
    """Write a plausible sweep: base scores near the published ones, gains from clearly bad to clearly good."""
    rng = np.random.default_rng(random)
    published = SCORES[-2].values
    gains = dict(zip(LOCOMOTION, np.linspace(-4, 14, len(LOCOMOTION)), strict=True))
    for task in tasks:
        for seed in seeds:
            base = published[task] + rng.normal(0, 8, episodes)
            results = {
                name: variant(name, base, base + gains[task] + rng.normal(i, 6, episodes), ms=2.0 - 0.3 * i)
                for i, name in enumerate(variants)
            }
            worlds = {"diffusion": errors(0.3 * rng.random()), "meanflow": errors()}
            write(folder, cell(task, results, seed, worlds=worlds))
    return folder
