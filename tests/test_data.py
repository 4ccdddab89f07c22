"""Two toy episodes, worked out by hand, in Minari datasets and D4RL files; bad input; the cache.

Episode 1 has three steps and terminates: observations 0 1 2 (then 3), actions .1 .2 .3, rewards 1 2 3.
Episode 2 has two steps and times out: observations 10 11 (then 12), actions .4 .5, rewards 4 5.
Numbers stand for arrays filled with them.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from commands import input_error
from minari.data_collector import EpisodeBuffer
from toy_data import filled

from fastdwm.data.dataset import EnvSpec, load, statistics
from fastdwm.errors import InputError
from fastdwm.tasks import get_task

# minari warns of missing metadata, gymnasium of the old Hopper-v4.
pytestmark = [
    pytest.mark.usefixtures("private_folders"),
    pytest.mark.filterwarnings("ignore::UserWarning:minari", "ignore:.*is out of date:DeprecationWarning"),
]

HOPPER = get_task("hopper-medium")
OBS, ACTION, REWARD = [0, 1, 2, 10, 11], [0.1, 0.2, 0.3, 0.4, 0.5], [1, 2, 3, 4, 5]
TERMINATED, TRUNCATED = [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]


@pytest.fixture
def d4rl(tmp_path):
    """Function that writes the toy episodes as a D4RL file, with some arrays replaced (None: left out)."""

    def write(name="hopper_toy.hdf5", **changes):
        arrays = {
            "observations": filled(OBS, 11),
            "actions": filled(ACTION, 3),
            "rewards": np.float32(REWARD),
            "terminals": np.bool_(TERMINATED),
            "timeouts": np.bool_(TRUNCATED),
            **changes,
        }
        with h5py.File(tmp_path / name, "w") as file:
            for key, values in arrays.items():
                if isinstance(values, dict):
                    file.create_group(key)
                elif values is not None:
                    file[key] = values
        return str(tmp_path / name)

    return write


def buffer(obs, action, reward, terminated=False, truncated=False):
    flags = [False] * (len(reward) - 1)
    ends = {"terminations": [*flags, terminated], "truncations": [*flags, truncated]}
    return EpisodeBuffer(observations=obs, actions=action, rewards=reward, **ends)


def minari_toy(env_id="Hopper-v5", terminated=True, **make_kwargs):
    """Create the toy episodes as the local Minari dataset toy/two-v0 of a simulator with 11 + 3 numbers."""
    first, second = (filled(obs, 11).astype(np.float64) for obs in ([0, 1, 2, 3], [10, 11, 12]))
    episodes = [
        buffer(first, filled([0.1, 0.2, 0.3], 3), [1.0, 2.0, 3.0], terminated=terminated),
        buffer(second, filled([0.4, 0.5], 3), [4.0, 5.0], truncated=True),
    ]
    box = gymnasium.spaces.Box
    spaces = {"observation_space": box(-np.inf, np.inf, (11,)), "action_space": box(-1, 1, (3,))}
    minari.create_dataset_from_buffers("toy/two-v0", episodes, env=gymnasium.make(env_id, **make_kwargs), **spaces)
    return "toy/two-v0"


def assert_columns(data, **expected):
    for name, values in expected.items():
        got = getattr(data, name)
        assert got.dtype == (np.bool_ if name.endswith(("ted", "rows", "known")) else np.float32), name
        if got.ndim == 2:
            values = filled(values, got.shape[1])
        np.testing.assert_array_equal(got, np.asarray(values, got.dtype), err_msg=name)


EXPECTED = {
    "obs": [0, 1, 2, 10, 11],
    "action": [0.1, 0.2, 0.3, 0.4, 0.5],
    "reward": [1, 2, 3, 4, 5],
    "next_action": [0.2, 0.3, 0, 0.5, 0],
    "terminated": [0, 0, 1, 0, 0],
    "truncated": [0, 0, 0, 0, 1],
    "critic_rows": [1, 1, 1, 1, 0],
}
RECORDED = {"next_obs": [1, 2, 3, 11, 12], "next_obs_known": [1, 1, 1, 1, 1], "model_rows": [1, 1, 1, 1, 1]}
UNKNOWN = {"next_obs": [1, 2, 2, 11, 11], "next_obs_known": [1, 1, 0, 1, 0], "model_rows": [1, 1, 0, 1, 0]}


def test_minari_episodes_end_as_recorded():
    data = load(HOPPER, minari_toy())
    assert_columns(data, **EXPECTED, **RECORDED)
    assert (data.n, data.n_episodes, data.source) == (5, 2, "toy/two-v0")
    assert (data.episode_ends.tolist(), data.episode_returns().tolist()) == ([2, 4], [6.0, 9.0])
    assert data.discounted_returns(0.5).tolist() == [1 + 2 / 2 + 3 / 4, 4 + 5 / 2]


def test_a_d4rl_file_does_not_know_what_follows_an_episode(d4rl):
    data = load(HOPPER, d4rl())
    assert_columns(data, **EXPECTED, **UNKNOWN)
    assert data.env == EnvSpec("Hopper-v4", {}, 1000)


def test_a_d4rl_file_with_next_observations_does(d4rl):
    assert_columns(load(HOPPER, d4rl(next_observations=filled([1, 2, 3, 11, 12], 11))), **EXPECTED, **RECORDED)


def test_a_timeout_need_not_close_the_file(d4rl):
    assert_columns(load(HOPPER, d4rl(timeouts=np.zeros(5, bool))), **EXPECTED, **UNKNOWN)


def test_an_end_of_both_kinds_is_truncated(d4rl):
    data = load(HOPPER, d4rl(timeouts=np.bool_([0, 0, 1, 0, 1])))
    assert_columns(data, terminated=[0] * 5, truncated=[0, 0, 1, 0, 1], critic_rows=[1, 1, 0, 1, 0], **UNKNOWN)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.uint8, np.int64], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("shape", [(5,), (5, 1)], ids=["flat", "column"])
def test_flags_are_zeros_and_ones_of_any_type(d4rl, kind, shape):
    flags = {"terminals": kind(TERMINATED).reshape(shape), "timeouts": kind(TRUNCATED).reshape(shape)}
    assert_columns(load(HOPPER, d4rl(**flags)), **EXPECTED, **UNKNOWN)


def test_rewards_may_stand_in_a_column(d4rl, tmp_path):
    assert_columns(load(HOPPER, d4rl(rewards=np.float64(REWARD)[:, None])), **EXPECTED, **UNKNOWN)
    name = minari_toy()
    with h5py.File(tmp_path / "minari/toy/two-v0/data/main_data.hdf5", "a") as file:
        for episode in ("episode_0", "episode_1"):
            rewards = file[f"{episode}/rewards"][:]
            del file[f"{episode}/rewards"]
            file[f"{episode}/rewards"] = rewards[:, None]
    assert_columns(load(HOPPER, name), **EXPECTED, **RECORDED)


def test_a_minari_episode_that_just_stops_is_truncated():
    data = load(HOPPER, minari_toy(terminated=False))
    assert_columns(data, terminated=[0] * 5, truncated=[0, 0, 1, 0, 1], next_obs=[1, 2, 3, 11, 12])


def test_a_minari_end_in_the_middle_of_an_episode_goes_on_nowhere(tmp_path, capfd):
    name = minari_toy(terminated=False)
    with h5py.File(tmp_path / "minari/toy/two-v0/data/main_data.hdf5", "a") as file:
        file["episode_0/terminations"][0] = True
    data = load(HOPPER, name)
    assert_columns(data, terminated=[1, 0, 0, 0, 0], next_obs=[0, 2, 3, 11, 12], next_obs_known=[0, 1, 1, 1, 1])
    assert "1 ends of episodes lead to the next row's observation" in capfd.readouterr().err
    with h5py.File(tmp_path / "minari/toy/two-v0/data/main_data.hdf5", "a") as file:
        file["episode_0/terminations"][1] = True
    with pytest.raises(InputError, match="nowhere at ends of episodes, got otherwise in 2 of 3, first in row 0"):
        load(HOPPER, name)


def test_the_simulator_is_the_one_the_dataset_names():
    data = load(HOPPER, minari_toy("Hopper-v4", max_episode_steps=7, reset_noise_scale=0.0))
    assert data.env == EnvSpec("Hopper-v4", {"reset_noise_scale": 0.0}, 7)
    env = EnvSpec(**json.loads(json.dumps(asdict(data.env)))).make()
    assert env.spec.max_episode_steps == 7
    np.testing.assert_allclose(env.reset(seed=0)[0][:2], [1.25, 0.0])


def test_a_dataset_cannot_name_a_simulator_that_changes_the_score_unless_trusted():
    name = minari_toy("Hopper-v5", healthy_reward=30.0)
    with input_error("'healthy_reward' = 30.0 is not known; --trust-env"):
        load(HOPPER, name)
    assert load(HOPPER, name, trust_env=True).env.kwargs == {"healthy_reward": 30.0}


def test_held_out_rows_are_whole_episodes(d4rl):
    flags = np.bool_([0, 1] * 10)
    arrays = {"observations": filled(range(20), 11), "actions": np.zeros((20, 3)), "rewards": np.zeros(20)}
    data = load(HOPPER, d4rl(**arrays, terminals=flags, timeouts=~flags & flags))
    train, held_out = data.split_episodes(0.2, seed=3)
    assert held_out.sum() == 4 and (train == ~held_out).all()
    assert (held_out[0::2] == held_out[1::2]).all()
    assert (held_out == data.split_episodes(0.2, seed=3)[1]).all()
    assert any((held_out != data.split_episodes(0.2, seed=seed)[1]).any() for seed in range(4))
    assert [data.split_episodes(share, seed=0)[1].sum() for share in (0.001, 0.999)] == [2, 18]


def test_a_single_episode_cannot_be_split(d4rl):
    data = load(HOPPER, d4rl(terminals=np.zeros(5, bool)))
    with pytest.raises(InputError, match="expected at least 2 episodes to hold one out, got 1"):
        data.split_episodes(0.5, seed=0)


def test_statistics_skip_unknown_next_observations_and_floor_the_std(d4rl):
    obs = filled([5] * 5, 11)
    obs[:, 0] = OBS
    stats = statistics(load(HOPPER, d4rl(observations=obs)), np.ones(5, bool))
    # Column 0: mean 24 / 5 = 4.8, variance (0 + 1 + 4 + 100 + 121) / 5 - 4.8^2 = 22.16; the others do not vary.
    np.testing.assert_allclose(stats["obs_mean"], [4.8] + [5.0] * 10, rtol=1e-6)
    np.testing.assert_allclose(stats["obs_std"], [22.16**0.5] + [22.16**0.5 * 1e-3] * 10, rtol=1e-6)
    # The known changes, of rows 0, 1 and 3, are all (1, 0, ..., 0): the std is zero, so 1 is used.
    np.testing.assert_allclose(stats["delta_mean"], [1.0] + [0.0] * 10)
    np.testing.assert_allclose(stats["delta_std"], np.ones(11))
    assert all(values.dtype == np.float32 for values in stats.values())


BAD_ARRAYS = {
    "missing key": ({"terminals": None}, r"expected the D4RL keys \['terminals'\]"),
    "unequal lengths": ({"rewards": np.zeros(4)}, "expected arrays of equal length, got .*'reward': 4"),
    "nan": ({"observations": filled([0, np.nan, 2, 3, np.nan], 11)}, "expected finite obs.*first in row 1"),
    "infinite": ({"rewards": np.float32([1, 2, 3, np.inf, 5])}, "expected finite reward.*first in row 3"),
    "float32 overflow": ({"rewards": np.float64([1, 2, 1e300, 4, 5])}, "expected finite reward.*first in row 2"),
    "action range": ({"actions": filled([0, 0, 0, 0, -1.001], 3)}, r"expected actions in \[-1, 1\].*first in row 4"),
    "observation size": ({"observations": filled(OBS, 17)}, "expected obs of size 11 for hopper-medium, got 17"),
    "next observation size": ({"next_observations": filled(OBS, 17)}, "expected next_obs shaped .*11.*got .*17"),
    "action size": ({"actions": filled(ACTION, 6)}, "expected action of size 3 for hopper-medium, got 6"),
    "axes": ({"observations": np.zeros(5)}, "expected obs with 2 axes, got shape"),
    "empty": (dict.fromkeys(("observations", "actions", "rewards", "terminals", "timeouts"), np.zeros((0, 1))), "none"),
    "no numbers": ({"rewards": np.array([b"1"] * 5)}, r"expected numbers in rewards, got \|S1"),
    "no rows": ({"rewards": np.float32(1)}, r"expected rows in rewards, got shape \(\)"),
    "group": ({"rewards": {}}, "expected an array rewards, got group"),
    "flag 0.5": ({"timeouts": np.float32([0, 0, 0.5, 0, 1])}, "expected timeouts of zeros and ones.*first in row 2"),
    "flag 2": ({"terminals": np.int8([0, 2, 0, 0, 1])}, "expected terminals of zeros and ones.*first in row 1"),
    "flag nan": ({"terminals": np.float64([0, 0, 0, 0, np.nan])}, "expected terminals of zeros.*first in row 4"),
    "two flags": (
        {"terminals": np.zeros((5, 2), bool)},
        r"expected terminals with one number a row, got shape \(5, 2\)",
    ),
    "three axes": ({"timeouts": np.zeros((5, 1, 1), bool)}, r"expected timeouts with one number.*\(5, 1, 1\)"),
    "two rewards": ({"rewards": np.zeros((5, 2))}, r"expected rewards with one number a row, got shape \(5, 2\)"),
    "other task's file": ({"name": "walker2d_medium-v2.hdf5"}, "expected data of hopper for hopper-medium, got"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_d4rl_arrays_are_refused_in_one_line(d4rl, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        load(HOPPER, d4rl(**changes))
    assert "\n" not in str(caught.value) and ".hdf5" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not hdf5 at all", "truncated"], ids=["empty", "text", "truncated"])
def test_unreadable_files_are_refused_in_one_line(d4rl, tmp_path, content):
    names = [d4rl(), minari_toy()]
    paths = [tmp_path / "hopper_toy.hdf5", tmp_path / "minari/toy/two-v0/data/main_data.hdf5"]
    for name, path in zip(names, paths, strict=True):
        good = path.read_bytes()
        path.write_bytes(good[: len(good) // 2] if content == "truncated" else content)
        with pytest.raises(InputError, match="cannot be read as a (D4RL .hdf5 file|Minari dataset): OSError") as caught:
            load(HOPPER, name)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_minari_dataset_of_another_simulator_is_refused():
    with pytest.raises(InputError, match="expected data of Hopper for hopper-medium, got HalfCheetah-v5"):
        load(HOPPER, minari_toy("HalfCheetah-v5"))


@pytest.mark.parametrize("key", ["observations", "actions", "terminations"])
def test_a_minari_episode_of_unequal_arrays_is_refused(tmp_path, key):
    name = minari_toy()
    with h5py.File(tmp_path / "minari/toy/two-v0/data/main_data.hdf5", "a") as file:
        file[f"episode_1/{key}"].resize(1, axis=0)
    with pytest.raises(InputError, match=r"toy/two-v0: expected T \+ 1 observations, T of all else"):
        load(HOPPER, name)


def test_rounding_beyond_the_action_bounds_is_clipped(d4rl):
    data = load(HOPPER, d4rl(actions=filled([1 + 9e-6, -1 - 9e-6, 0, 0, 0], 3)))
    assert_columns(data, action=[1, -1, 0, 0, 0])


def test_a_minari_dataset_without_episodes_is_refused(tmp_path):
    name, path = minari_toy(), tmp_path / "minari/toy/two-v0/data/metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "total_episodes": 0}))
    with pytest.raises(InputError, match="toy/two-v0: expected transitions, got none"):
        load(HOPPER, name)


def test_a_dataset_must_be_named_and_exist():
    with pytest.raises(InputError, match="nowhere.hdf5: no such file"):
        load(HOPPER, "nowhere.hdf5")
    with pytest.raises(InputError, match="hopper-random: give a Minari id or a D4RL .hdf5 with --dataset"):
        load(get_task("hopper-random"))


def test_offline_names_the_three_ways_to_get_a_dataset(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing answers
    with pytest.raises(InputError, match="mujoco/hopper/medium-v0 is not in .* does not answer") as caught:
        load(HOPPER)
    ways = ("minari download mujoco/hopper/medium-v0", f"copy the dataset into {tmp_path / 'minari'}", "--dataset")
    assert all(way in str(caught.value) for way in ways) and "\n" not in str(caught.value)


def test_an_unknown_id_names_the_three_ways_too(monkeypatch, capsys):
    def refuse(dataset_id):
        print("Downloading")
        raise ValueError(f"Couldn't find any version for dataset {dataset_id}.\nSorry.")

    monkeypatch.setattr(minari, "download_dataset", refuse)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(InputError, match=r"no/such-v0 \(ValueError: Couldn't find.*--dataset") as caught:
            load(HOPPER, "no/such-v0")
    assert "\n" not in str(caught.value) and capsys.readouterr().out == ""


def poison(path):
    """Overwrite a file with zeros, but keep size and time, so that the cache does not notice."""
    stat = os.stat(path)
    with open(path, "wb") as file:
        file.write(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("kind", ["d4rl", "minari"])
def test_the_second_load_does_not_read_the_source(d4rl, tmp_path, kind):
    name = d4rl() if kind == "d4rl" else minari_toy()
    first = load(HOPPER, name)
    poison(name if kind == "d4rl" else tmp_path / "minari/toy/two-v0/data/main_data.hdf5")
    second = load(HOPPER, name)
    assert_columns(second, **EXPECTED, **(UNKNOWN if kind == "d4rl" else RECORDED))
    assert (second.source, second.env) == (first.source, first.env)


def test_a_changed_source_is_read_again(d4rl):
    load(HOPPER, d4rl())
    assert_columns(load(HOPPER, d4rl(rewards=np.float64([9, 8, 7, 6, 5]))), reward=[9, 8, 7, 6, 5])


def test_a_cached_file_is_still_checked_against_the_task(d4rl):
    name = d4rl("toy.hdf5")
    load(HOPPER, name)
    with pytest.raises(InputError, match="expected obs of size 17 for walker2d-medium, got 11"):
        load(get_task("walker2d-medium"), name)


@pytest.mark.parametrize("damage", [lambda old: old[:-7], lambda old: b"", lambda old: b"x" * len(old)])
def test_a_damaged_cache_is_rewritten(d4rl, tmp_path, damage):
    name = d4rl()
    load(HOPPER, name)
    (cache,) = (tmp_path / "cache").iterdir()
    cache.write_bytes(damage(cache.read_bytes()))
    assert_columns(load(HOPPER, name), obs=OBS)
    poison(name)
    assert_columns(load(HOPPER, name), obs=OBS)


def test_an_unwritable_cache_costs_one_line(d4rl, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTDWM_CACHE", str(tmp_path / "file" / "cache"))
    assert_columns(load(HOPPER, d4rl()), obs=OBS)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "no cache in" in captured.err


MEASURE = """
import resource, sys
from fastdwm.data.dataset import load
from fastdwm.tasks import get_task
load(get_task("hopper-medium"), sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_a_million_transitions_fit_in_memory_from_source_and_from_cache(d4rl, tmp_path):
    ends = np.arange(1_000_000) % 500 == 499
    arrays = {"observations": np.zeros((ends.size, 11), np.float32), "actions": np.zeros((ends.size, 3), np.float32)}
    name = d4rl(**arrays, rewards=np.zeros(ends.size, np.float32), terminals=ends, timeouts=~ends & ends)
    command = [sys.executable, "-c", MEASURE, name]
    peak_gib = [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(2)]
    for path in (*(tmp_path / "cache").iterdir(), tmp_path / "hopper_toy.hdf5"):
        path.unlink()  # pytest keeps the folders of the last runs
    assert max(peak_gib) < 1.5
