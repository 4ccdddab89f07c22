"""Own simulators' spaces: action boxes become [-1, 1], dicts are flattened in a known order, others are refused."""

import json
import sys

import gymnasium
import numpy as np
import pytest
from commands import input_error, refused, run
from own_envs import write_module

from fastdwm import EnvSpec, Task
from fastdwm.data.dataset import load
from fastdwm.data.task import resolve
from fastdwm.env_config import EnvConfig

ENV = "own_cart:Cart-v0"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch, private_folders):
    """A module of simulators that can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    write_module(tmp_path)
    yield
    sys.modules.pop("own_cart", None)
    for id in ("Cart-v0", "Pixels-v0", "Unbounded-v0", "ByClass-v0"):
        gymnasium.registry.pop(id, None)


def task_of(env):
    return resolve("own", EnvConfig(env=env), "own.hdf5")


def test_the_door_flattens_and_rescales():
    task = task_of(ENV)
    assert (task.obs_dim, task.action_dim, task.obs_parts) == (2, 1, ("position", "velocity"))
    assert (task.action_low, task.action_high) == ((-3.0,), (1.0,))
    inner = EnvSpec(ENV).build()
    expected, _ = inner.reset(seed=3)
    with task.env.make() as env:
        obs, _ = env.reset(seed=3)
        np.testing.assert_array_equal(obs, np.concatenate([expected["position"], expected["velocity"]]))
        for action in ([-1.0], [0.5], [1.0]):
            action = np.array(action, np.float32)
            obs, reward, *_ = env.step(action)
            # What the bundle says about the box gives the same step in the simulator itself.
            expected, expected_reward, *_ = inner.step(task.env_action(action))
            np.testing.assert_allclose(obs, np.concatenate([expected["position"], expected["velocity"]]), rtol=1e-6)
            assert reward == pytest.approx(expected_reward)
    inner.close()


def test_box_and_order_travel_in_the_task():
    task = task_of(ENV)
    values = json.loads(json.dumps(task.record()))
    assert values["action_low"] == [-3.0] and values["obs_parts"] == ["position", "velocity"]
    plain = Task("x", EnvSpec("Hopper-v5"), 11, 3)
    assert not {"action_low", "action_high", "obs_parts"} & plain.record().keys()
    np.testing.assert_array_equal(plain.env_action(np.array([0.3])), [0.3])


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ((0.0,), None, "action_high beside it"),
        ((0.0, 0.0), (1.0,), "each less than"),
        ((1.0,), (1.0,), "each less than"),
        ((-np.inf,), (1.0,), "each less than"),
    ],
)
def test_a_box_that_is_none_is_refused(low, high, message):
    with input_error(message):
        Task("x", EnvSpec(ENV), 2, 1, action_low=low, action_high=high)


def write_minari(folder, observations, actions, spec):
    import h5py

    folder = folder / "minari" / "own-v0" / "data"
    folder.mkdir(parents=True)
    n = len(actions)
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for i in range(2):
            group = file.create_group(f"episode_{i}")
            for key, values in observations.items():
                group[f"observations/{key}"] = values
            group["actions"], group["rewards"] = actions, np.zeros(n)
            group["terminations"], group["truncations"] = np.zeros(n, bool), np.arange(n) == n - 1
    (folder / "metadata.json").write_text(json.dumps({"total_episodes": 2, "env_spec": json.dumps(spec)}))


SPEC = {"id": "Cart-v0", "kwargs": {}, "max_episode_steps": 20, "additional_wrappers": []}


def test_a_recorded_dict_is_read_in_the_simulators_order(tmp_path):
    observations = {"velocity": np.full((6, 1), 2.0), "position": np.ones((6, 1))}
    write_minari(tmp_path, observations, np.linspace(-3, 1, 5)[:, None], SPEC)
    task = resolve("own-v0", EnvConfig(env=ENV))
    transitions = load(task, None, EnvConfig(env=ENV).trust)
    np.testing.assert_array_equal(transitions.obs[0], [1, 2])
    np.testing.assert_allclose(transitions.action[:5, 0], np.linspace(-1, 1, 5), atol=1e-6)
    # The module was typed, for the recorder did not know it.
    assert transitions.env.id == ENV


def test_actions_beyond_the_box_are_refused(tmp_path):
    observations = {"velocity": np.zeros((6, 1)), "position": np.zeros((6, 1))}
    write_minari(tmp_path, observations, np.full((5, 1), 2.0), SPEC)
    with input_error(r"own-v0: expected actions from \[-3.0\] to \[1.0\], got others"):
        load(resolve("own-v0", EnvConfig(env=ENV)), None, EnvConfig(env=ENV).trust)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("CartPole-v1", "expected actions that are a list of real numbers, CartPole-v1 has Discrete(2)"),
        ("own_cart:Pixels-v0", "not pixels, Pixels-v0 has Box(0, 255"),
        ("own_cart:Unbounded-v0", "expected a finite low < high"),
        ("Blackjack-v1", "Blackjack-v1 has Discrete(2)"),
    ],
)
def test_other_spaces_are_refused_in_one_line(env, message):
    refused(run("train", "own", "--env", env, "--dataset=own.hdf5"), message)
    refused(run("collect", env, "--policy=random", "--out=mine/x-v0"), message)
