"""Minari datasets: their folder, their download and their metadata. Imports no numpy.

minari is only imported to download, since reading a dataset with it may build any simulator that the metadata name.
"""

import json
import os
import sys
import warnings
from contextlib import redirect_stdout, suppress
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from fastdwm.checks import require
from fastdwm.envs import EnvSpec, Trust, read_spec
from fastdwm.errors import InputError, first_line, one_line_errors
from fastdwm.files import read_bytes
from fastdwm.recorded import Box, without_wrappers
from fastdwm.tasks import Task, find_task

MAX_METADATA_BYTES = 2**24


def datasets_root() -> Path:
    """The folder of Minari's datasets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def local_folder(dataset_id: str) -> Path:
    """The `data` folder of a Minari id, downloaded if absent; raises InputError if that fails."""
    root = datasets_root()
    folder = root / dataset_id / "data"
    if folder.is_dir():
        return folder
    advice = f"run `minari download {dataset_id}` where there is a network, copy the dataset into {root}, "
    advice += "or give a D4RL .hdf5 file or another id with --dataset"
    gcp = os.environ.get("MINARI_REMOTE", "").startswith("gcp:")
    server = "https://storage.googleapis.com" if gcp else os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    require(_answers(server), f"dataset {dataset_id} is not in {root} and {server} does not answer: {advice}")
    try:
        import minari

        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari.download_dataset(dataset_id)
    except Exception as error:  # the download libraries raise dozens of types, none of them minari's own
        raise InputError(f"cannot download {dataset_id} ({first_line(error)}): {advice}") from error
    return folder


def _answers(url: str, timeout_s: float = 3.0) -> bool:
    """Whether a web server answers; asked in a thread because the name lookup has no time limit."""
    answers = []

    def ask() -> None:
        with suppress(OSError, HTTPException, ValueError):
            with suppress(HTTPError):  # an error page is an answer
                urlopen(Request(url, method="HEAD"), timeout=timeout_s).close()
            answers.append(True)

    (thread := Thread(target=ask, daemon=True)).start()
    thread.join(timeout_s)
    return bool(answers)


def read_metadata(folder: Path, source: str) -> dict[str, Any]:
    """Read the metadata in the `data` folder of a dataset; raises InputError."""
    path = folder / "metadata.json"
    with one_line_errors(source, f"JSON in {path.name}"):
        values = json.loads(read_bytes(path, MAX_METADATA_BYTES))
    require(isinstance(values, dict), f"{source}: expected a JSON object in {path}, got {type(values).__name__}")
    return values


def recorded_env(folder: Path, source: str, task: Task, trust: Trust) -> tuple[EnvSpec, Box | None]:
    """The simulator that recorded a Minari dataset, the task's own if it states none, and the box of its actions.

    The box is none where it is the simulator's own. Raises InputError.
    """
    own = {"id": task.env.id, "kwargs": {}, "max_episode_steps": task.env.max_episode_steps}
    spec = read_spec_of(folder, source) or own
    family = task.env.family
    matches = trust is True or _family(spec["id"]).startswith(_family(family))
    require(matches, f"expected data of {family} for {task.name}, got {spec['id']} in {folder}")
    if "maze_map" in task.env.kwargs:
        _check_maze(spec, source, task)
    values = {name: spec[name] for name in own} | {"kwargs": {**spec["kwargs"], **task.env.kwargs}}
    named = task.env if find_task(task.name) else None
    return without_wrappers(read_spec(values, trust, named), spec.get("additional_wrappers"), source)


def read_spec_of(folder: Path, source: str) -> dict[str, Any] | None:
    """Gymnasium's spec of the simulator in the metadata of a dataset, as JSON values; none if they have none."""
    recorded = read_metadata(folder, source).get("env_spec")
    spec = json.loads(recorded) if recorded else None
    kinds = {"id": str, "kwargs": dict}
    complete = spec is None or (
        isinstance(spec, dict) and all(isinstance(spec.get(name), kind) for name, kind in kinds.items())
    )
    require(complete, f"{source}: expected an env_spec with id and kwargs in the metadata")
    return spec


def _family(id: str) -> str:
    """The id without the module that registers it."""
    return id.rpartition(":")[2]


def _check_maze(spec: dict[str, Any], source: str, task: Task) -> None:
    """Raise InputError unless a recording's maze is the task's, with the task's goal alone.

    The policy does not observe the goal, so rewards for other goals would be wrong.
    """
    name, maze, own = spec["id"], spec["kwargs"].get("maze_map"), task.env.kwargs["maze_map"]
    forces = f"{source}: expected observations of {task.obs_dim} numbers for {task.name}, got those of {name}"
    require(not name.endswith("-v5"), f"{forces}, which add 78 contact forces")
    moves = "Diverse_G" in name or bool(spec["kwargs"].get("reset_target"))
    if maze is not None:
        walls = [[[cell == 1 for cell in row] for row in rows] for rows in (maze, own)]
        goals, own_goals = (
            {(i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell in ("g", "c")}
            for rows in (maze, own)
        )
        # A maze without marks has its goal in any cell; a single mark is one goal.
        moves = moves or len(goals) != 1
        same = walls[0] == walls[1] and (moves or goals == own_goals)
        other = "those of a maze with other walls or goal"
        require(same, f"{source}: expected data of the maze of {task.name}, got {other}")
    advice = "record data with fastdwm.collect --steer"
    require(not moves, f"{source}: expected the one goal of {task.name}, got a goal that moves ({name}); {advice}")
