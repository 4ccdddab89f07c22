"""python -m fastdwm.collect: datasets, killed and resumed runs, and training on the result."""

import json
import re
import resource
import signal
import subprocess
from dataclasses import replace

import h5py
import numpy as np
import pytest
from commands import argv, environment, refused, run, spawn
from onnx_policies import policy_bytes, weights
from processes import until
from toy_bundles import make_bundle
from toy_data import training_flags

from fastdwm.collect import __main__ as collect
from fastdwm.collect import episodes
from fastdwm.collect.behaviour import checked, read_behaviour
from fastdwm.collect.config import CollectConfig
from fastdwm.data.dataset import load
from fastdwm.errors import InputError
from fastdwm.files import sha256_of
from fastdwm.tasks import get_task

HOPPER = get_task("hopper-medium")
SIZES = HOPPER.obs_dim, HOPPER.action_dim
PARAMS = weights(*SIZES)
OUT = "mine/hopper/tiny-v0"


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Folder with sampler.onnx, which has an input noise, and mean.onnx, which has none."""
    folder = tmp_path_factory.mktemp("policies")
    (folder / "sampler.onnx").write_bytes(policy_bytes(PARAMS, std=0.3))
    (folder / "mean.onnx").write_bytes(policy_bytes(PARAMS))
    return folder


def variables(root):
    return {"MINARI_DATASETS_PATH": root, "FASTDWM_CACHE": root / "cache"}


def arguments(*flags, env="hopper", out=OUT, transitions=3000):
    return (env, f"--out={out}", f"--transitions={transitions}", *flags)


def record(root, *flags, **kwargs):
    """Run the command."""
    return run("collect", *arguments(*flags, **kwargs), env=variables(root))


def files(root, out=OUT):
    """Content of the dataset's files, by name."""
    return {path.name: path.read_bytes() for path in (root / out / "data").iterdir()}


def metadata(root, out=OUT):
    return json.loads((root / out / "data" / "metadata.json").read_text())


def seeds_and_lengths(root, out=OUT):
    with h5py.File(root / out / "data" / "main_data.hdf5") as file:
        episodes = [file[f"episode_{i}"] for i in range(len(file))]
        return [(int(episode.attrs["seed"]), int(episode.attrs["total_steps"])) for episode in episodes]


# Every policy has its own chunks.
MIXED = ("--policy=random:2", "--policy=random", "--policy=random", "--noise=0.2", "--seed=4")
MANY = 6_000


@pytest.fixture(scope="module")
def recorded(policies, tmp_path_factory):
    """Dataset of the sampler, by one worker."""
    root = tmp_path_factory.mktemp("recorded")
    result = record(root, f"--policy={policies}/sampler.onnx", "--workers=1")
    assert result.returncode == 0, result.stderr
    return root, result


@pytest.fixture(scope="module")
def mixed(policies, tmp_path_factory):
    """Dataset of several chunks, by one worker."""
    root = tmp_path_factory.mktemp("mixed")
    result = record(root, f"--policy={policies}/mean.onnx", *MIXED, "--workers=1", transitions=MANY)
    assert result.returncode == 0, result.stderr
    return root


def test_train_and_eval_learn_from_what_collect_recorded(recorded, tmp_path, quick):
    root, _ = recorded
    small = [*training_flags(20), "--fqe-updates=20", "--eval-episodes=1", "--threads=1"]
    train = ["hopper-medium", f"--dataset={OUT}", f"--out={tmp_path}/run", *small]
    evaluate = ["hopper-medium", f"--bundle={tmp_path}/run/bundle", "--episodes=1", "--max-steps=5"]
    for name, flags in (("train", train), ("eval", [*evaluate, f"--out={tmp_path}/eval"])):
        result = run(name, *flags, env=variables(root))
        assert result.returncode == 0, result.stderr
    assert "ITPO" in result.stdout


def test_the_dataset_is_read_as_it_was_recorded(recorded, monkeypatch, tmp_path):
    root, result = recorded
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    monkeypatch.setenv("FASTDWM_CACHE", str(tmp_path))
    data = load(HOPPER, OUT)
    assert data.env == HOPPER.env and len(data.obs) >= 3000
    assert f"{len(data.obs):,} transitions, {len(data.episode_ends):,} episodes" in result.stdout
    # Episodes are whole, and no more than needed.
    lengths = [length for _, length in seeds_and_lengths(root)]
    assert sum(lengths) == len(data.obs) and sum(lengths[:-1]) < 3000
    # A sampler rarely repeats an action.
    assert len(np.unique(data.action, axis=0)) > 0.9 * len(data.obs)


def test_the_simulator_repeats_what_was_recorded(recorded):
    root, _ = recorded
    env = HOPPER.env.make()
    with h5py.File(root / OUT / "data" / "main_data.hdf5") as file:
        episode = file["episode_1"]
        obs, _ = env.reset(seed=int(episode.attrs["seed"]))
        np.testing.assert_array_equal(obs, episode["observations"][0])
        for t, action in enumerate(episode["actions"]):
            obs, reward, terminated, _, _ = env.step(action)
            np.testing.assert_array_equal(obs, episode["observations"][t + 1])
            assert (reward, terminated) == (episode["rewards"][t], episode["terminations"][t])


def test_the_metadata_say_how_it_was_made(recorded, policies):
    about = metadata(recorded[0])
    assert (about["ref_min_score"], about["ref_max_score"]) == (HOPPER.ref_min_score, HOPPER.ref_max_score)
    assert json.loads(about["env_spec"])["id"] == "Hopper-v5"
    assert about["algorithm_name"] == "sampler.onnx"
    assert sha256_of(policies / "sampler.onnx") in about["description"]
    line = about["description"].partition("Made by: python -m fastdwm.collect ")[2]
    env, config = collect.parse(line.split())
    assert (env, config.policy, config.transitions, config.seed) == ("hopper", ("sampler.onnx",), 3000, 0)


def test_other_workers_the_same_bytes_other_seed_others(recorded, policies, mixed, tmp_path):
    assert record(tmp_path, f"--policy={policies}/mean.onnx", *MIXED, "--workers=2", transitions=MANY).returncode == 0
    assert files(tmp_path) == files(mixed)
    assert record(tmp_path, f"--policy={policies}/sampler.onnx", "--seed=1", out="other-v0").returncode == 0
    assert seeds_and_lengths(tmp_path, "other-v0") != seeds_and_lengths(recorded[0])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(policies, mixed, tmp_path):
    line = argv("collect", *arguments(f"--policy={policies}/mean.onnx", *MIXED, "--workers=1", transitions=MANY))
    folder = tmp_path / "mine" / "hopper" / ".tiny-v0.collect"
    process = subprocess.Popen(line, env=environment(**variables(tmp_path)), stderr=subprocess.DEVNULL)
    assert until(lambda: list(folder.glob("*.npz")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert finished and not (tmp_path / OUT).exists()
    other = record(tmp_path, f"--policy={policies}/mean.onnx", *MIXED, "--shares=episodes", transitions=MANY)
    refused(other, f"out: {folder} holds another collection (shares: transitions, now episodes")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    again = record(tmp_path, f"--policy={policies}/mean.onnx", *MIXED, "--workers=2", transitions=MANY)
    assert again.returncode == 0, again.stderr
    assert files(tmp_path) == files(mixed)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["tiny-v0"]


@pytest.mark.slow
@pytest.mark.parametrize("most_bytes", [20_000, 400_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, most_bytes):
    """The smaller limit stops the first chunk, the larger one the dataset."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))  # noqa: E731
    flags = arguments("--policy=random", "--workers=1", transitions=2000)
    full = spawn("collect", *flags, env=variables(tmp_path), preexec_fn=limit)
    assert full.returncode == 1 and "Traceback" not in full.stderr and not (tmp_path / OUT).exists()
    assert re.match(
        r"error: cannot write .*\.tiny-v0\.collect.*: File too large; make room", full.stderr.splitlines()[-1]
    )
    assert record(tmp_path, "--policy=random", transitions=2000).returncode == 0
    assert metadata(tmp_path)["total_steps"] >= 2000


def test_an_existing_dataset_stays_as_it_is(recorded):
    root, _ = recorded
    before = files(root)
    result = record(root, "--policy=random")
    refused(result, f"out: {OUT} exists")
    assert files(root) == before


def test_a_run_killed_after_its_dataset_was_complete_ends_well(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    config = CollectConfig(("random",), OUT, transitions=60, workers=1)
    collect.main("hopper", config)
    before, chunks = files(tmp_path), tmp_path / "mine" / "hopper" / ".tiny-v0.collect"
    chunks.mkdir()
    (chunks / "000000.npz").write_bytes(b"left")
    for other in (replace(config, seed=1), replace(config, policy=("random", "random"))):
        with pytest.raises(InputError, match=f"out: {OUT} exists in {tmp_path} and stays as it is"):
            collect.main("hopper", other)
    assert chunks.exists()
    collect.main("hopper", config)
    assert capsys.readouterr().out.splitlines()[-1] == f"dataset: {tmp_path / OUT}"
    assert files(tmp_path) == before and not chunks.exists()


def test_policies_take_turns_of_episodes(tmp_path):
    params = PARAMS | {"w1": np.zeros_like(PARAMS["w1"])}
    (tmp_path / "still.onnx").write_bytes(policy_bytes(params))
    flags = (f"--policy={tmp_path}/still.onnx:1", "--policy=random:2", "--shares=episodes")
    assert record(tmp_path, *flags, transitions=1000).returncode == 0
    with h5py.File(tmp_path / OUT / "data" / "main_data.hdf5") as file:
        still = [bool(np.ptp(file[f"episode_{i}/actions"][:], axis=0).max() == 0) for i in range(len(file))]
    assert len(still) >= 9 and all(sum(still[i : i + 3]) == 1 for i in range(0, len(still) - 2, 3))


def test_random_actions_fill_the_box_and_the_walker_has_its_friction(tmp_path):
    kwargs = {"xml_file": "walker2d.xml"}
    flags = ("--policy=random", f"--env-kwargs={json.dumps(kwargs)}")
    assert record(tmp_path, *flags, env="walker2d", out="walker-v0", transitions=2000).returncode == 0
    assert json.loads(metadata(tmp_path, "walker-v0")["env_spec"])["kwargs"] == kwargs
    with h5py.File(tmp_path / "walker-v0" / "data" / "main_data.hdf5") as file:
        actions = np.concatenate([file[f"episode_{i}/actions"] for i in range(len(file))])
    assert np.abs(actions).max() <= 1 and actions.std() == pytest.approx(1 / np.sqrt(3), rel=0.05)


def test_a_bundle_acts_by_its_base_policy(tmp_path):
    bundle = make_bundle()
    bundle.save(tmp_path / "bundle")
    behaviour = read_behaviour(str(tmp_path / "bundle"), HOPPER.env, SIZES)
    assert (behaviour.name, behaviour.sha256) == ("bundle", bundle.fingerprint)
    obs = np.linspace(-1, 1, SIZES[0])
    params = {name: value.double().numpy() for name, value in bundle.policy.items()}
    hidden = np.maximum(obs @ params["w0"] + params["b0"], 0)
    hidden = np.maximum(hidden @ params["w1"] + params["b1"], 0)
    expected = np.tanh(hidden @ params["w2"] + params["b2"])
    np.testing.assert_allclose(behaviour.start()(obs, None), expected, atol=1e-6)


def test_a_worker_records_chunk_after_chunk_of_a_bundle(tmp_path, monkeypatch):
    make_bundle().save(tmp_path / "bundle")
    monkeypatch.setattr(episodes, "CHUNK", 100)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    collect.main("hopper", CollectConfig((f"{tmp_path}/bundle",), "three-v0", transitions=300, workers=1))
    assert int(metadata(tmp_path, "three-v0")["total_steps"]) >= 300


def test_a_sampler_acts_as_its_formula_says(policies):
    behaviour = read_behaviour(f"{policies}/sampler.onnx", HOPPER.env, SIZES)
    act = checked(behaviour, behaviour.start())
    for seed in range(20):
        obs = np.random.default_rng(100 + seed).normal(size=SIZES[0])
        noise = np.random.default_rng(seed).standard_normal((1, SIZES[1]), np.float32)[0]
        hidden = np.maximum(obs @ PARAMS["w0"] + PARAMS["b0"], 0)
        expected = np.tanh(hidden @ PARAMS["w1"] + PARAMS["b1"] + 0.3 * noise)
        action = act(obs, np.random.default_rng(seed))
        assert action.dtype == np.float32
        np.testing.assert_allclose(action, expected, atol=1e-5)


def test_noise_goes_to_policies_that_draw_nothing_and_is_cut(policies):
    obs = np.full(SIZES[0], 0.01)
    acts = {}
    for name in ("mean", "sampler"):
        behaviour = read_behaviour(f"{policies}/{name}.onnx", HOPPER.env, SIZES)
        acts[name] = [checked(behaviour, behaviour.start(), noise) for noise in (0.0, 0.5)]
    rngs = [np.random.default_rng(0) for _ in range(2)]
    quiet, loud = (np.array([act(obs, rng) for _ in range(500)]) for act, rng in zip(acts["mean"], rngs, strict=True))
    assert len(np.unique(quiet, axis=0)) == 1 and np.abs(loud).max() == 1
    inside = np.abs(quiet[0]).argmin()
    assert loud[:, inside].std() > 0.2
    first, second = (act(obs, np.random.default_rng(0)) for act in acts["sampler"])
    np.testing.assert_array_equal(first, second)
