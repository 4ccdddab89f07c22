"""python -m fastdwm.collect ENV --policy FILE --out ID: record policies in a simulator as a local Minari dataset.

Finished episodes are saved in chunks in a hidden folder beside the dataset, so the same command resumes a collection
that was stopped. Heavy packages are imported inside the functions: --help answers before they are loaded.
"""

import os
import shlex
import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdwm import command
from fastdwm.checks import require
from fastdwm.collect.config import CollectConfig, check_maze, read_env, split_share
from fastdwm.data.minari import datasets_root
from fastdwm.envs import family_of
from fastdwm.files import prepare_folder, reserved, strict, write_json
from fastdwm.jobs.identity import read_identity, refuse_other
from fastdwm.machine import package_versions
from fastdwm.tasks import TASKS, Task

if TYPE_CHECKING:
    import numpy as np

    from fastdwm.collect.episodes import Recorder

IDENTITY_FILE = "collection.json"
PACKAGES = ("gymnasium", "minari", "mujoco", "numpy", "onnxruntime", "torch")


def main(env_name: str, config: CollectConfig) -> None:
    """Record policies in a simulator as a local Minari dataset, for `fastdwm.train --dataset`.

    If it is killed, the same command resumes from the last saved episodes.
    """
    from fastdwm.collect.episodes import plan, record_chunks
    from fastdwm.collect.recording import is_made, write_dataset

    path = datasets_root() / config.out
    recorder, env = prepare(env_name, config)
    portions = plan(shares_of(config), config.transitions, config.shares == "episodes")
    identity = identify(recorder, config)
    metadata = about(env_name, recorder, config, identity)
    folder = path.with_name(f".{path.name}.collect")
    if os.path.lexists(path):
        refusal = f"out: {config.out} exists in {datasets_root()} and stays as it is; give another --out"
        require(is_made(path, metadata), refusal)
        # A run that was killed right after it completed the dataset leaves its chunks.
        shutil.rmtree(folder, ignore_errors=True)
        print(f"dataset: {path}")
        return
    prepare_folder(folder)
    with reserved(folder):
        check_identity(folder, identity)
        with command.progress() as on_progress:
            record_chunks(portions, recorder, folder, config.workers, partial(on_progress, "recorded"))
            episodes = write_dataset(
                config.out, env, recorder.env.id, portions, folder, metadata, partial(on_progress, "written")
            )
        shutil.rmtree(folder)
    print_summary(path, episodes, scored_as(recorder))


def prepare(env_name: str, config: CollectConfig) -> tuple["Recorder", Any]:
    """The checked recorder and a simulator; InputError if policies and simulator do not fit together."""
    from fastdwm.collect.ant import POLICY_SIZES
    from fastdwm.collect.behaviour import read_behaviour, read_walker
    from fastdwm.collect.episodes import Recorder
    from fastdwm.collect.recording import check_spec
    from fastdwm.collect.steering import COURSES

    if config.steer:
        check_maze(env_name, COURSES, config.env_kwargs)
    spec = read_env(env_name, config)
    env = spec.make()
    check_spec(spec, env)
    sizes = env.observation_space.shape[0], env.action_space.shape[0]
    names = [split_share(text)[0] for text in config.policy]
    # A bundle of the simulator that was typed needs no further word.
    trust = config.trust_env or (spec if family_of(spec) is None else False)
    behaviours = tuple(
        read_walker(name, POLICY_SIZES) if config.steer else read_behaviour(name, spec, sizes, trust) for name in names
    )
    drawn = all(behaviour.draws for behaviour in behaviours)
    require(not (drawn and config.noise), "noise: expected 0, every policy draws its actions itself")
    course = COURSES[env_name] if config.steer else None
    return Recorder(spec, behaviours, config.noise, config.seed, course), env


def shares_of(config: CollectConfig) -> list[float]:
    """The share of each policy."""
    return [split_share(text)[1] for text in config.policy]


def identify(recorder: "Recorder", config: CollectConfig) -> dict[str, Any]:
    """Everything that the content of the dataset depends on."""
    from fastdwm.collect.episodes import CHUNK

    packages = PACKAGES + (("gymnasium-robotics",) if recorder.env.id.startswith("AntMaze") else ())
    # Only if policies are steered, so that other collections that were killed before this setting existed go on.
    course = {"course": asdict(recorder.course)} if recorder.course else {}
    return course | {
        "env": recorder.env.record(),
        "policies": [
            " ".join(filter(None, (behaviour.name, behaviour.sha256, f"x {share!r}")))
            for behaviour, share in zip(recorder.behaviours, shares_of(config), strict=True)
        ],
        "transitions": config.transitions,
        "shares": config.shares,
        "noise": config.noise,
        "seed": config.seed,
        "chunk": CHUNK,
        "versions": [f"{name}=={version}" for name, version in package_versions(packages).items()],
    }


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Raise InputError if the folder holds chunks of another collection; otherwise write this one's identity to it."""
    path = folder / IDENTITY_FILE
    # Without a finished chunk nothing would be lost, so the settings of an earlier attempt do not bind this one.
    if any(folder.glob("*.npz")):
        refuse_other(read_identity(path, "collection"), strict(identity), folder, "collection")
    write_json(path, identity)


def scored_as(recorder: "Recorder") -> Task | None:
    """A task of the same simulator, for its reference scores; none if there is no such task."""
    return next((task for task in TASKS.values() if task.env.family == recorder.env.family), None)


def about(env_name: str, recorder: "Recorder", config: CollectConfig, identity: dict[str, Any]) -> dict[str, Any]:
    """Metadata of the dataset in minari's terms: policies, command, package versions and reference scores."""
    task = scored_as(recorder)
    low, high = config.ref_scores or ((task.ref_min_score, task.ref_max_score) if task else (None, None))
    scores = {} if low is None else {"ref_min_score": low, "ref_max_score": high}
    text = f"policies (SHA-256, x share of {config.shares}): {'; '.join(identity['policies'])}. Made by: "
    return scores | {
        "algorithm_name": ", ".join(behaviour.name for behaviour in recorder.behaviours),
        "description": text + command_line(env_name, config),
        "requirements": identity["versions"],
    }


def command_line(env_name: str, config: CollectConfig) -> str:
    """The command that makes the dataset, without what does not change it: folders and the number of workers."""
    words = ["python", "-m", "fastdwm.collect", env_name]
    for text in config.policy:
        name, _ = split_share(text)
        words += ["--policy", Path(name).name + text.removeprefix(name)]
    words += ["--out", config.out, "--transitions", str(config.transitions), "--seed", str(config.seed)]
    words += ["--shares", config.shares] if config.shares == "episodes" else []
    words += ["--noise", str(config.noise)] if config.noise else []
    words += ["--steer"] if config.steer else []
    words += ["--env", config.env] if config.env else []
    words += ["--ref-scores", *map(str, config.ref_scores)] if config.ref_scores else []
    words += ["--env-kwargs", config.env_kwargs] if config.env_kwargs != "{}" else []
    return shlex.join(words + (["--trust-env"] if config.trust_env else []))


def print_summary(path: Path, episodes: "np.ndarray", task: Task | None) -> None:
    """Print size, return and score of the recorded data, and its path."""
    lengths, returns = episodes.T
    score = ""
    if task:
        score = f", score {100 * (returns.mean() - task.ref_min_score) / (task.ref_max_score - task.ref_min_score):.1f}"
    print(
        f"{lengths.sum():,.0f} transitions, {len(episodes):,} episodes, "
        f"return {returns.mean():.1f} ± {returns.std():.1f}{score}"
    )
    print(f"dataset: {path}")


def parse(argv: list[str]) -> tuple[str, CollectConfig]:
    """Name of the simulator, and settings; raises as `command.parse`."""
    import tyro

    words = "a robot (hopper, halfcheetah, walker2d), a task, an id of Gymnasium (MODULE:ID of your own), "
    env = ("ENV", f"{words}or a Minari id or the folder of a bundle for their simulator")
    prog = "python -m fastdwm.collect"
    return command.read(CollectConfig, prog, main.__doc__, argv, tyro.conf.UseAppendAction, env=env)


if __name__ == "__main__":
    command.finish(lambda: main(*parse(sys.argv[1:])), resumes=True)
