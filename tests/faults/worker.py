"""Answer one request per line: load and use the files at a path, or run a command until a given write."""

import io
import json
import os
import resource
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path

# Import everything that commands import later, so that forked processes need not do it.
import gymnasium.envs.mujoco.hopper_v4  # noqa: F401
import numba  # noqa: F401
import numpy as np
import torch
import torch._dynamo
from command_lines import parse as parse_line
from crash import run as run_command
from tyro import cli  # noqa: F401

import fastdwm.collect.recording
import fastdwm.eval.compare
import fastdwm.eval.summary
import fastdwm.eval.tables
import fastdwm.study.__main__
import fastdwm.study.cells
import fastdwm.study.tables
import fastdwm.study.tradeoff
import fastdwm.sweep.driver
import fastdwm.train.recipe
import fastdwm.tune.grid
import fastdwm.tune.halving  # noqa: F401
from fastdwm import Agent, Bundle, ITPOConfig, command
from fastdwm.collect.behaviour import checked, read_behaviour
from fastdwm.data import dataset as data
from fastdwm.jobs import sweep as cells
from fastdwm.report.paper import command as paper
from fastdwm.sweep.estimates import Estimates
from fastdwm.tasks import get_task

MEMORY = 4 * 2**30


def use_bundle(path: Path) -> str | None:
    """Load a bundle, decide with each world model and as tuned, and take a step; returns an error of the actions."""
    bundle = Bundle.load(path / "bundle")
    short = ITPOConfig(horizon=2, particles=2)
    choices = {world: {"config": short, "world": world} for world in bundle.worlds} | {"as tuned": {}}
    for world, settings in choices.items():
        agent = Agent.of(bundle, backend="reference", **settings)
        action = agent.act(np.linspace(-1, 1, bundle.obs_dim, dtype=np.float32))
        if not (np.isfinite(action).all() and np.abs(action).max() <= 1):
            return f"{world}: acts {action}"
    with bundle.task.env.make() as env:
        env.reset(seed=0)
        env.step(action)
    return None


def use_dataset(path: Path) -> str | None:
    """Load a dataset, and check what `Transitions` promises; returns an error."""
    name = (path / "name").read_text()
    os.environ["MINARI_DATASETS_PATH"] = str(path)
    os.environ["FASTDWM_CACHE"] = str(path / "cache")
    task = get_task("hopper-medium")
    transitions = data.load(task, str(path / name) if name.endswith(".hdf5") else name)
    columns = {"obs": (11,), "action": (3,), "reward": (), "next_obs": (11,), "next_action": (3,)}
    columns |= {"terminated": (), "truncated": (), "next_obs_known": ()}
    for column, shape in columns.items():
        values = getattr(transitions, column)
        if values.shape != (transitions.n, *shape) or not np.isfinite(values).all():
            return f"{column} {values.shape}"
    if np.abs(transitions.action).max() > 1 or (transitions.terminated & transitions.truncated).any():
        return "actions or flags"
    if transitions.n_episodes < 1 or transitions.episode_ends[-1] != transitions.n - 1:
        return "ends of episodes"
    train_rows, _ = transitions.split_episodes(0.5, 0)
    data.statistics(transitions, train_rows)
    return None


def use_onnx(path: Path) -> str | None:
    """Act twice; returns an error of the actions."""
    task = get_task("hopper-medium")
    behaviour = read_behaviour(str(path / "policy.onnx"), task.env, (task.obs_dim, task.action_dim))
    act, obs = checked(behaviour, behaviour.start()), np.linspace(-1, 1, task.obs_dim)
    first, again = (act(obs, np.random.default_rng(0)) for _ in range(2))
    right = first.shape == (task.action_dim,) and np.abs(first).max() <= 1 and (first == again).all()
    return None if right else f"acts {first}, then {again}"


class Tags(HTMLParser):
    """Tags of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)


def use_cells(path: Path) -> str | None:
    """Read the folder as a sweep and as the report do; returns hostile text in the pages."""
    estimates = Estimates(cells.read_jobs(path / "sweep").values())
    estimates.seconds("eval"), estimates.memory_mb("eval")
    paper.main(path / "sweep", paper.PaperConfig(path / "out"))
    markdown = (path / "out" / "paper.md").read_text()
    for mark in ("<script", "](", "</table"):
        if mark in markdown:
            return f"{mark} in paper.md"
    if {"script", "img"} & Tags((path / "out" / "paper.html").read_text()).tags:
        return "elements of paper.html"
    json.loads((path / "out" / "paper.json").read_text(), parse_constant=lambda name: 1 / 0)
    return None


def use_line(path: Path) -> None:
    """Parse a command line."""
    line = json.loads((path / "line.json").read_text())
    parse_line(line["command"], line["argv"])


USES = {"bundle": use_bundle, "dataset": use_dataset, "onnx": use_onnx, "cell": use_cells, "line": use_line}


def answer(request: dict) -> dict:
    if request["kind"] == "command":
        return run_command(request)
    wrong, out, said = [], io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(said):
            # The answer includes the output of the end of a command.
            command.finish(lambda: wrong.append(USES[request["kind"]](Path(request["path"]))))
    except SystemExit as stop:
        return judge(stop.code, wrong, out.getvalue(), said.getvalue())
    except BaseException:
        return {"outcome": "traceback", "detail": " | ".join(traceback.format_exc().splitlines()[-5:])}


def judge(code: int, wrong: list[str | None], out: str, said: str) -> dict:
    """Outcome of a case with this exit code, stdout and stderr."""
    if not all(line.isprintable() for line in (out + said).split("\n")):
        return {"outcome": "control characters", "detail": ascii((out + said)[:500])}
    if code == 2:
        one = said.startswith("error: ") and said.count("\n") == 1 and len(said) < 3000
        return {"outcome": "clean" if one else "traceback", "detail": said[:500]}
    if code != 0:
        return {"outcome": "traceback", "detail": f"exit code {code}: {said[:500]}"}
    wrong = wrong[0] if wrong else None
    return {"outcome": "wrongly accepted" if wrong else "accepted", "detail": wrong or ""}


if __name__ == "__main__":
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    # Keep output of libraries out of the answers.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"outcome": "ready"}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)
