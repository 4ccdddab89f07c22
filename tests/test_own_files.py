"""Files of one's own: without timeouts, with short episodes, and bundles that ask for wrappers."""

import dataclasses

import h5py
import numpy as np
import pytest
from commands import input_error
from toy_bundles import make_bundle

from fastdwm import Bundle, EnvSpec
from fastdwm.data.dataset import load
from fastdwm.measure.deviation import window_means
from fastdwm.tasks import get_task

HOPPER = get_task("hopper-medium")


def write(path, terminated, **columns):
    n = len(terminated)
    with h5py.File(path, "w") as file:
        file["observations"] = np.arange(n)[:, None] + np.zeros((n, 11))
        file["actions"], file["rewards"], file["terminals"] = np.zeros((n, 3)), np.ones(n), terminated
        for name, values in columns.items():
            file[name] = values
    return str(path)


def test_the_simulators_limit_cuts_a_file_without_timeouts(tmp_path, private_folders, capsys):
    terminated = np.zeros(13, bool)
    terminated[[3, 4]] = True
    task = dataclasses.replace(HOPPER, d4rl_env=EnvSpec("Hopper-v5", {}, 4))
    transitions = load(task, write(tmp_path / "own.hdf5", terminated))
    # The first episode ends at its fourth step by itself, the second at once, the others at the limit.
    assert transitions.episode_lengths.tolist() == [4, 1, 4, 4]
    assert transitions.terminated.nonzero()[0].tolist() == [3, 4]
    message = "it has no timeouts: episodes are cut after 4 steps, where the simulator ends them"
    assert capsys.readouterr().err == f"fastdwm: {tmp_path}/own.hdf5: {message}\n"


def test_a_simulator_without_a_limit_needs_timeouts(tmp_path, private_folders):
    task = dataclasses.replace(HOPPER, env=EnvSpec("Hopper-v5"), d4rl_env=None)
    with input_error(r"expected the D4RL keys \['timeouts'\]"):
        load(task, write(tmp_path / "own.hdf5", np.zeros(13, bool)))


def test_windows_of_the_bound_fit_into_short_episodes(tmp_path, private_folders):
    """Episodes of 5 steps, where values look 100 steps ahead."""
    path = write(tmp_path / "own.hdf5", np.zeros(20, bool), timeouts=np.arange(20) % 5 == 4)
    transitions = load(HOPPER, path)
    means = window_means(np.arange(20.0)[:, None], transitions, discount=0.99)
    assert means[:, 0].tolist() == [2, 7, 12, 17]


SCALED = {"name": "RescaleObservation", "kwargs": {"min_obs": -1.0, "max_obs": 1.0}}


def test_wrappers_travel_in_a_bundle(tmp_path):
    task = dataclasses.replace(HOPPER, env=EnvSpec("Hopper-v5", {}, 1000, (SCALED,)))
    make_bundle(task=task).save(tmp_path)
    assert Bundle.load(tmp_path).task.env == task.env


@pytest.mark.parametrize(
    "wrapper",
    [
        {"name": "RecordVideo", "kwargs": {"video_folder": "/"}},
        {"name": "RescaleObservation", "kwargs": {"min_obs": 1.0, "max_obs": -1.0}},
        {"name": "RescaleObservation", "kwargs": {"min_obs": "0", "max_obs": 1.0}},
        {"name": "RescaleObservation"},
        {"name": ["x"], "kwargs": {}},
    ],
)
def test_other_wrappers_in_a_bundle_are_refused(tmp_path, wrapper):
    task = dataclasses.replace(HOPPER, env=EnvSpec("Hopper-v5", {}, 1000, (wrapper,)))
    with input_error("env: wrappers: expected RescaleObservation with fixed numbers"):
        make_bundle(task=task).save(tmp_path)
