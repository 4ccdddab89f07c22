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
from fastdwm.envs import EnvSpec, read_spec, without_wrappers
from fastdwm.errors import InputError, first_line, one_line_errors
from fastdwm.files import read_bytes
from fastdwm.tasks import Task

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


def recorded_env(folder: Path, source: str, task: Task, trust_env: bool) -> EnvSpec:
    """The simulator that recorded a Minari dataset, the task's own if it states none; raises InputError."""
    own = {"id": task.env.id, "kwargs": {}, "max_episode_steps": task.env.max_episode_steps}
    recorded = read_metadata(folder, source).get("env_spec")
    spec, family = json.loads(recorded) if recorded else own, task.env.family
    matches = trust_env or spec["id"].startswith(family)
    require(matches, f"expected data of {family} for {task.name}, got {spec['id']} in {folder}")
    maze, own_maze = spec["kwargs"].get("maze_map"), task.env.kwargs.get("maze_map")
    same = maze is None or own_maze is None or _same_frame(maze, own_maze)
    require(same, f"{source}: expected data of the maze of {task.name}, got those of a maze with other walls or goal")
    values = {name: spec[name] for name in own} | {"kwargs": {**spec["kwargs"], **task.env.kwargs}}
    return without_wrappers(read_spec(values, trust_env, task.env), spec.get("additional_wrappers"), source)


def _same_frame(maze: list[list], own: list[list]) -> bool:
    """Whether a position means the same in both mazes, and the goal of `own` is among the goals that `maze` marks."""
    walls = [[[cell == 1 for cell in row] for row in rows] for rows in (maze, own)]
    goals, own_goals = (
        {(i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell == "g"} for rows in (maze, own)
    )
    # Some public recordings mark no goal but draw it in any cell, or in those marked "c".
    return walls[0] == walls[1] and own_goals <= (goals or own_goals)
