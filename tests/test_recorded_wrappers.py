"""Datasets recorded through Gymnasium's wrappers: harmless ones pass, others are refused by name."""

import json

import gymnasium
import h5py
import numpy as np
import pytest
from commands import input_error
from gymnasium import wrappers

from fastdwm.data.dataset import load
from fastdwm.envs import EnvSpec
from fastdwm.errors import InputError
from fastdwm.recorded import without_wrappers
from fastdwm.tasks import get_task

HOPPER = get_task("hopper-medium")

# Gymnasium warns that actions are float32.
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Function that writes a Minari dataset of one episode with these wrappers; returns its id."""
    monkeypatch.setenv("FASTDWM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    folder = tmp_path / "toy-v0" / "data"
    folder.mkdir(parents=True)
    arrays = {"observations": np.ones((6, 11)), "actions": np.zeros((5, 3)), "rewards": np.zeros(5)}
    arrays |= {"terminations": np.zeros(5, bool), "truncations": np.arange(5) == 4}
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for key, values in arrays.items():
            file[f"episode_0/{key}"] = values

    def write(additional_wrappers):
        spec = {"id": "Hopper-v5", "kwargs": {}, "max_episode_steps": 1000, "additional_wrappers": additional_wrappers}
        (folder / "metadata.json").write_text(json.dumps({"total_episodes": 1, "env_spec": json.dumps(spec)}))
        return "toy-v0"

    return write


def recorded(wrap):
    """Specs of the wrappers that `wrap` puts around a simulator."""
    return json.loads(wrap(gymnasium.make("Hopper-v5")).spec.to_json())["additional_wrappers"]


def wrapper(name, module="gymnasium.wrappers.common", **kwargs):
    return {"name": name, "entry_point": f"{module}:{name}", "kwargs": kwargs}


CHANGING = {
    "NormalizeObservation": wrappers.NormalizeObservation,
    "NormalizeReward": lambda env: wrappers.NormalizeReward(wrappers.RecordEpisodeStatistics(env)),
    "ClipReward": lambda env: wrappers.ClipReward(env, 0, 1),
    "TimeAwareObservation": wrappers.TimeAwareObservation,
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.25),
    "Autoreset": wrappers.Autoreset,
}


@pytest.mark.parametrize("trust_env", [False, True])
@pytest.mark.parametrize("name", CHANGING)
def test_a_wrapper_that_changes_the_task_is_refused_by_name(dataset, name, trust_env):
    source = dataset(recorded(CHANGING[name]))
    with input_error(f"toy-v0: env: the wrapper '{name}' of the recording"):
        load(HOPPER, source, trust_env)


SAME = {
    "none": [],
    "as None": None,
    "statistics": recorded(wrappers.RecordEpisodeStatistics),
    "clipped actions": recorded(wrappers.ClipAction),
    "actions as they are": [wrapper("RescaleAction", min_action=-1.0, max_action=1.0)],
}


@pytest.mark.parametrize("additional_wrappers", SAME.values(), ids=SAME)
def test_a_wrapper_that_changes_nothing_passes(dataset, additional_wrappers):
    assert load(HOPPER, dataset(additional_wrappers)).env == EnvSpec("Hopper-v5", {}, 1000)


def test_rescaled_actions_are_read_in_their_box(dataset):
    source = dataset(recorded(lambda env: wrappers.RescaleAction(env, -0.5, 1.5)))
    # The recorded 0 is a quarter of the way from -0.5 to 1.5.
    np.testing.assert_allclose(load(HOPPER, source).action, -0.5)


def test_rescaled_observations_are_rebuilt(monkeypatch):
    spec = json.loads(wrappers.RescaleObservation(gymnasium.make("Pendulum-v1"), -2.0, 2.0).spec.to_json())
    env, box = without_wrappers(EnvSpec("Pendulum-v1", {}, 200), spec["additional_wrappers"], "toy")
    env = EnvSpec(**json.loads(json.dumps(env.record())))
    with env.make() as rescaled, gymnasium.make("Pendulum-v1") as plain:
        obs, expected = rescaled.reset(seed=0)[0], plain.reset(seed=0)[0]
    np.testing.assert_allclose(obs, expected * np.array([2, 2, 2 / 8]), rtol=1e-5)
    assert box is None


def test_a_wrapper_may_end_episodes_sooner(dataset):
    limits = [wrapper("TimeLimit", max_episode_steps=steps) for steps in (6, 2000)]
    assert load(HOPPER, dataset(limits)).env.max_episode_steps == 6


FOREIGN = {
    "namesake": wrapper("RecordEpisodeStatistics", "mine.wrappers"),
    "limit in quotes": wrapper("TimeLimit", max_episode_steps="6"),
    "long name": wrapper(["x"] * 10_000),
    "number": 3,
    "text": "text",
    "incomplete": {"name": "TimeLimit"},
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_a_wrapper_that_is_not_gymnasiums_is_refused(dataset, foreign):
    with pytest.raises(InputError, match="toy-v0: ") as caught:
        load(HOPPER, dataset([foreign]), trust_env=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
