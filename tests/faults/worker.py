"""Answers one request per line: load what lies at a path and use it, or train until a given write."""

import json
import os
import resource
import sys
import traceback
from pathlib import Path

# What an optimiser and a simulator import when they are first made takes seconds, in every process forked before.
import gymnasium.envs.mujoco.hopper_v4  # noqa: F401
import numpy as np
import torch
import torch._dynamo
from crash import train

import fastdwm.train.recipe  # noqa: F401
from fastdwm import Agent, Bundle, InputError, ITPOConfig
from fastdwm.data import dataset as data
from fastdwm.tasks import get_task

MEMORY = 4 * 2**30


def use_bundle(path: Path) -> str | None:
    """Load a bundle, decide once with each world model, and take a step; returns what is wrong with the actions."""
    bundle = Bundle.load(path / "bundle")
    for world in bundle.worlds:
        agent = Agent.of(bundle, ITPOConfig(horizon=2, particles=2), backend="reference", world=world)
        action = agent.act(np.linspace(-1, 1, bundle.obs_dim, dtype=np.float32))
        if not (np.isfinite(action).all() and np.abs(action).max() <= 1):
            return f"{world}: acts {action}"
    with bundle.task.env.make() as env:
        env.reset(seed=0)
        env.step(action)
    return None


def use_dataset(path: Path) -> str | None:
    """Load a dataset, and hold what comes to what `Transitions` promises; returns what is broken."""
    name = (path / "name").read_text()
    os.environ["MINARI_DATASETS_PATH"] = str(path)
    os.environ["FASTDWM_CACHE"] = str(path / "cache")
    task = get_task("hopper-medium")
    found = data.load(task, str(path / name) if name.endswith(".hdf5") else name)
    columns = {"obs": (11,), "action": (3,), "reward": (), "next_obs": (11,), "next_action": (3,)}
    columns |= {"terminated": (), "truncated": (), "next_obs_known": ()}
    for column, shape in columns.items():
        values = getattr(found, column)
        if values.shape != (found.n, *shape) or not np.isfinite(values).all():
            return f"{column} {values.shape}"
    if np.abs(found.action).max() > 1 or (found.terminated & found.truncated).any():
        return "actions or flags"
    if found.n_episodes < 1 or found.episode_ends[-1] != found.n - 1:
        return "ends of episodes"
    train_rows, _ = found.split_episodes(0.5, 0)
    data.statistics(found, train_rows)
    return None


def answer(request: dict) -> dict:
    if request["kind"] == "train":
        return train(request)
    use = {"bundle": use_bundle, "dataset": use_dataset}[request["kind"]]
    try:
        wrong = use(Path(request["path"]))
    except InputError as error:
        lines = str(error).count("\n")
        return {"outcome": "clean"} if not lines else {"outcome": "traceback", "detail": f"{lines} lines: {error}"}
    except Exception:
        return {"outcome": "traceback", "detail": " | ".join(traceback.format_exc().splitlines()[-5:])}
    return {"outcome": "wrongly accepted", "detail": wrong} if wrong else {"outcome": "accepted"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    # What the libraries print is no answer.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"outcome": "ready"}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)
