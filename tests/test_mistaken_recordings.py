"""Recordings with steps in the wrong order or wrong ends of episodes are refused, or corrected with a warning.

Most are made from twenty episodes of random actions in Hopper-v5, as D4RL files with and without `next_observations`.
"""

import h5py
import numpy as np
import pytest
from toy_bundles import make_bundle

from fastdwm.command import unwatched
from fastdwm.data import replay
from fastdwm.data.dataset import load
from fastdwm.envs import EnvSpec
from fastdwm.errors import InputError
from fastdwm.report import models as report
from fastdwm.tasks import get_task
from fastdwm.train import __main__ as train
from fastdwm.train.config import TrainConfig

pytestmark = pytest.mark.usefixtures("private_folders")

HOPPER = get_task("hopper-random")
EPISODES = 20


def record(spec, episodes, steps=1000, seed=0):
    """Record random actions; returns the arrays of a D4RL file, a dict for each episode."""
    rng, result = np.random.default_rng(seed), []
    with spec.make() as env:
        for seed in range(episodes):
            rows, obs = [], env.reset(seed=seed)[0]
            for step in range(steps):
                action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
                next_obs, reward, terminated, truncated, _ = env.step(action)
                rows.append((obs, action, reward, next_obs, terminated, truncated or step == steps - 1))
                obs = next_obs
                if terminated or truncated:
                    break
            names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
            kinds = (np.float32, np.float32, np.float32, np.float32, bool, bool)
            columns = zip(names, kinds, zip(*rows, strict=True), strict=True)
            result.append({name: np.array(values, kind) for name, kind, values in columns})
    return result


@pytest.fixture(scope="module")
def episodes():
    return record(EnvSpec("Hopper-v5", {}, 1000), EPISODES)


@pytest.fixture(scope="module")
def good(episodes):
    return joined(episodes)


def joined(episodes):
    return {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}


def write(path, arrays, next_observations=True):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if next_observations or name != "next_observations":
                file[name] = values
    return str(path)


def ends(arrays):
    return np.flatnonzero(arrays["terminals"] | arrays["timeouts"])


def rolled(name):
    return lambda arrays: arrays | {name: np.roll(arrays[name], 1, axis=0)}


def taken(rows):
    """Mistake of recording the rows `rows(arrays)` in their order."""
    return lambda arrays: {name: values[rows(arrays)] for name, values in arrays.items()}


def flags_moved(by):
    """Mistake of setting the flags of ends `by` rows later."""
    flags = ("terminals", "timeouts")
    return lambda arrays: arrays | {name: np.roll(arrays[name], by) for name in flags}


def next_step_autoreset(arrays):
    """Add a row after each end whose action was ignored: from the last observation to the reset's, reward 0."""
    rows, last = np.arange(len(arrays["rewards"])), ends(arrays)[:-1]
    order = np.sort(np.append(rows, last + 0.5))
    extra = order % 1 > 0
    result = {name: values[order.astype(int)].copy() for name, values in arrays.items()}
    result["observations"][extra], result["next_observations"][extra] = (
        arrays["next_observations"][last], arrays["observations"][last + 1],
    )  # fmt: skip
    for name in ("rewards", "terminals", "timeouts"):
        result[name][extra] = 0
    return result


def reset_as_next(arrays):
    """Record the observation of the reset after each end, as vector environments return it."""
    values, last = arrays["next_observations"].copy(), ends(arrays)[:-1]
    values[last] = arrays["observations"][last + 1]
    return arrays | {"next_observations": values}


def interleaved(arrays):
    """Record steps of two environments in turns."""
    n = len(arrays["rewards"]) // 2
    return taken(lambda arrays: np.arange(2 * n).reshape(2, n).T.ravel())(arrays)


def unmarked(*names):
    return lambda arrays: arrays | {name: np.zeros_like(arrays[name]) for name in names}


DISORDER, ENDS = "inside episodes, got otherwise", "nowhere at ends of episodes, got otherwise"
ANY = f"{DISORDER}|{ENDS}"
MISTAKES = {
    "next observations rolled": (rolled("next_observations"), DISORDER),
    "next observations rolled back": (lambda a: a | {"next_observations": a["observations"]}, DISORDER),
    "observations rolled": (rolled("observations"), DISORDER),
    "NEXT_STEP autoreset": (next_step_autoreset, ENDS),
    "SAME_STEP autoreset": (reset_as_next, ENDS),
    "ends a row early": (flags_moved(-1), ANY),
    "ends a row late": (flags_moved(1), ANY),
    "shuffled": (taken(lambda a: np.random.default_rng(0).permutation(len(a["rewards"]))), DISORDER),
    "backwards": (taken(lambda a: np.arange(len(a["rewards"]))[::-1]), DISORDER),
    "every row twice": (taken(lambda a: np.arange(len(a["rewards"])).repeat(2)), DISORDER),
    "every second row": (taken(lambda a: np.arange(0, len(a["rewards"]), 2)), DISORDER),
    "two environments by turns": (interleaved, DISORDER),
    "no end marked": (unmarked("terminals", "timeouts"), DISORDER),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_disorder_is_refused_in_one_line(good, tmp_path, mistake, message):
    with pytest.raises(InputError, match=message) as caught:
        load(HOPPER, write(tmp_path / "hopper.hdf5", mistake(good)))
    assert "\n" not in str(caught.value) and "hopper.hdf5" in str(caught.value)


# Without next_observations, or with them in order, only the simulator shows the mistake.
REPLAYED = {
    "NEXT_STEP autoreset": (next_step_autoreset, "in their first steps"),
    "ends a row early": (flags_moved(-1), "in their first steps"),
    "ends a row late": (flags_moved(1), "one step before their ends"),
    "shuffled": (MISTAKES["shuffled"][0], "observations are off by .* inside episodes"),
    "every second row": (MISTAKES["every second row"][0], "observations are off by .* inside episodes"),
    "no end marked": (unmarked("terminals", "timeouts"), "where observations change the most"),
    "ends swapped": (lambda a: a | {"terminals": a["timeouts"], "timeouts": a["terminals"]}, "whether they terminate"),
    "actions rolled": (rolled("actions"), "observations are off by"),
    "rewards rolled": (rolled("rewards"), "rewards are off by"),
    "rewards scaled": (lambda a: a | {"rewards": 0.1 * a["rewards"]}, "rewards are off by"),
    "actions scaled": (lambda a: a | {"actions": 0.5 * a["actions"]}, "observations are off by"),
    "observations normalised": (
        lambda a: a | {"observations": (a["observations"] - a["observations"].mean(0)) / a["observations"].std(0)},
        "observations are off by",
    ),
}


@pytest.mark.parametrize(("mistake", "message"), REPLAYED.values(), ids=REPLAYED)
def test_a_recording_that_its_simulator_does_not_repeat_is_refused_in_one_line(good, tmp_path, capfd, mistake, message):
    data = load(HOPPER, write(tmp_path / "hopper.hdf5", mistake(good), next_observations=False))
    with pytest.raises(InputError, match=f"replayed in Hopper-v4, .*{message}.*--trust-env") as caught:
        replay.check(data)
    assert "\n" not in str(caught.value) and "hopper.hdf5" in str(caught.value)
    assert capfd.readouterr().err == ""
    replay.check(data, trust_env=True)
    assert capfd.readouterr().err.count("\n") == 1


def test_neither_training_nor_report_takes_it(good, tmp_path, monkeypatch):
    monkeypatch.setattr("fastdwm.train.recipe.train", lambda *args: pytest.fail("trained on it"))
    path = write(tmp_path / "hopper.hdf5", good | {"rewards": 0.1 * good["rewards"]})
    with pytest.raises(InputError, match="rewards are off by"):
        train.main("hopper-random", TrainConfig(dataset=path, out=tmp_path / "run", threads=1))
    assert not any((tmp_path / "run").iterdir())
    with pytest.raises(InputError, match="rewards are off by"):
        report.held_out(make_bundle(), report.ReportConfig(dataset=path), unwatched)


@pytest.mark.parametrize("robot", ["hopper", "walker2d", "halfcheetah"])
@pytest.mark.parametrize("version", ["v4", "v5"])
@pytest.mark.parametrize("next_observations", [True, False])
def test_a_good_recording_passes_without_a_warning(tmp_path, capfd, robot, version, next_observations):
    task = get_task(f"{robot}-random")
    arrays = joined(record(EnvSpec(f"{task.env.family}-{version}", {}, 1000), 6, 60, seed=1))
    data = load(task, write(tmp_path / "good.hdf5", arrays, next_observations))
    replay.check(data)
    assert capfd.readouterr() == ("", "")
    assert data.episode_ends.tolist() == ends(arrays).tolist()
    assert data.next_obs_known.all() == next_observations
    np.testing.assert_array_equal(data.terminated, arrays["terminals"])


def test_nonsense_is_replayed_without_a_trace(good, tmp_path, monkeypatch, capfd):
    # MuJoCo logs warnings of such states to a file in the working directory.
    monkeypatch.chdir(tmp_path)
    data = load(HOPPER, write(tmp_path / "hopper.hdf5", good | {"observations": 1e12 * good["observations"]}, False))
    with pytest.raises(InputError, match="observations are off by"):
        replay.check(data)
    assert capfd.readouterr().err == "" and not (tmp_path / "MUJOCO_LOG.TXT").exists()


FEW = {
    "rows are missing": (taken(lambda a: np.delete(np.arange(len(a["rewards"])), [3, 40, 41, 90])), 3, [2, 38, 86]),
    "a row stands twice": (taken(lambda a: np.insert(np.arange(len(a["rewards"])), 7, 7)), 1, [7]),
    "an end is not marked": (
        lambda a: a | {"terminals": a["terminals"] & (np.arange(len(a["rewards"])) > ends(a)[0])}, 1, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("mistake", "count", "rows"), FEW.values(), ids=FEW)
def test_a_few_breaks_become_truncations_with_a_warning_on_every_load(good, tmp_path, capfd, mistake, count, rows):
    path = write(tmp_path / "hopper.hdf5", mistake(good))
    for _ in range(2):
        data = load(HOPPER, path)
        message = f"{count} steps do not lead to the next row's observation: episodes are truncated there"
        assert capfd.readouterr().err == f"fastdwm: {path}: {message}\n"
    assert np.flatnonzero(data.truncated).tolist() == (rows or [ends(good)[0]])
    inside = np.flatnonzero(~(data.terminated | data.truncated))
    np.testing.assert_array_equal(data.next_obs[inside], data.obs[inside + 1])
    assert not data.next_action[data.truncated].any() and data.next_obs_known.all()
    replay.check(data)


def test_what_followed_a_few_ends_becomes_unknown(good, tmp_path, capfd):
    row = ends(good)[4]
    values = good["next_observations"].copy()
    values[row] = good["observations"][row + 1]
    data = load(HOPPER, write(tmp_path / "hopper.hdf5", good | {"next_observations": values}))
    assert "1 ends of episodes lead to the next row's observation" in capfd.readouterr().err
    assert np.flatnonzero(~data.next_obs_known).tolist() == [row] and data.terminated[row]
    np.testing.assert_array_equal(data.next_obs[row], data.obs[row])


def test_rounding_is_no_disorder(good, tmp_path, capfd):
    values = good["next_observations"] * np.float32(1 + 1e-6)
    assert load(HOPPER, write(tmp_path / "hopper.hdf5", good | {"next_observations": values})).n_episodes == EPISODES
    assert capfd.readouterr().err == ""


def test_an_end_of_both_kinds_is_a_truncation(tmp_path):
    task = get_task("halfcheetah-random")
    arrays = joined(record(EnvSpec("HalfCheetah-v5", {}, 1000), 4, 50))
    data = load(task, write(tmp_path / "both.hdf5", arrays | {"terminals": arrays["timeouts"]}))
    assert not data.terminated.any() and np.flatnonzero(data.truncated).tolist() == [49, 99, 149, 199]
    replay.check(data)
    # A terminal alone is wrong: the simulator never terminates.
    wrong = arrays | {"terminals": arrays["timeouts"], "timeouts": arrays["terminals"]}
    with pytest.raises(InputError, match="4 of 4 steps differ in whether they terminate at their ends"):
        replay.check(load(task, write(tmp_path / "done.hdf5", wrong)))


def test_episodes_longer_than_the_limit_give_a_warning(tmp_path, capfd):
    arrays = joined(record(EnvSpec("HalfCheetah-v5", {}, 1200), 2, 1200))
    path = write(tmp_path / "long.hdf5", arrays)
    load(get_task("halfcheetah-random"), path)
    assert capfd.readouterr().err == f"fastdwm: {path}: an episode has 1200 steps, the simulator ends it after 1000\n"
