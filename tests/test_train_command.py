"""python -m fastdwm.train on a small dataset: results, killed and resumed runs, refused input."""

import json
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import argv, environment, refused, run, spawn
from processes import until
from toy_data import training_flags, write_dataset

from fastdwm import Bundle
from fastdwm.data.dataset import load
from fastdwm.errors import InputError
from fastdwm.measure.deviation import max_deviation
from fastdwm.tasks import get_task
from fastdwm.train.config import TrainConfig
from fastdwm.train.fit import Batches
from fastdwm.train.recipe import split

SMALL = [
    *training_flags(60),
    "--fqe-updates=40",
    "--log-every=20",
    "--save-every=20",
    "--eval-episodes=1",
    "--threads=1",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Path of a D4RL file of 20 episodes with 40 transitions."""
    return write_dataset(tmp_path_factory.mktemp("data") / "hopper.hdf5")


def arguments(dataset, out, *flags):
    return ("hopper-medium", f"--dataset={dataset}", f"--out={out}", "--trust-env", *SMALL, *flags)


def train(*args, cache, call=run, **how):
    """Run the command.   call: `run` or `spawn`, which takes `how`."""
    return call("train", *arguments(*args), env={"FASTDWM_CACHE": cache}, **how)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """Folder and process of a finished run."""
    out = tmp_path_factory.mktemp("run") / "hopper"
    result = train(dataset, out, cache=out.parent)
    assert result.returncode == 0, result.stderr
    return out, result


def weights(out: Path) -> bytes:
    return (out / "bundle" / "weights.safetensors").read_bytes()


def test_a_run_ends_with_a_bundle_its_report_and_metrics(trained, dataset):
    out, result = trained
    bundle = Bundle.load(out / "bundle")
    assert bundle.dataset["id"].endswith(dataset.name) and bundle.dataset["transitions"] == 800
    transitions = load(get_task("hopper-medium"), str(dataset))
    assert bundle.dataset["fingerprint"] == transitions.fingerprint
    assert bundle.max_deviation == max_deviation(transitions, bundle.policy, bundle.discount)
    assert bundle.task.env.id == "Hopper-v4"
    report = bundle.report
    assert report["training"]["rebrac"]["update"] == 60 and report["training"]["rebrac"]["score_pct"] > -5
    assert [line["h"] for line in report["errors"]["diffusion"]["open_loop"]] == list(range(1, 11))
    critic = report["critic"]
    assert critic.keys() == {"critics", "fqe", "data"} and critic["critics"] != critic["fqe"]
    assert report["errors"]["diffusion"]["one_step"]["reward_rmse"] < 2
    lines = [json.loads(line) for line in (out / "rebrac.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [20, 40, 60]
    assert {"critic_loss", "q_mean", "actor_loss", "bc_distance", "q_start", "discounted_return"} <= lines[-1].keys()
    assert "next observation" in result.stdout and str(out / "bundle") in result.stdout
    assert "rebrac: 60/60" in result.stderr


def test_same_seed_same_weights_other_seed_other_weights(trained, dataset, tmp_path):
    train(dataset, tmp_path / "same", cache=tmp_path)
    train(dataset, tmp_path / "other", "--seed=1", cache=tmp_path)
    assert weights(tmp_path / "same") == weights(trained[0])
    assert weights(tmp_path / "other") != weights(trained[0])


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--rebrac.n-step=5", "--rebrac.return-bound", "--rebrac.advantage-power=2"])
def test_each_setting_for_sparse_rewards_changes_the_policy_and_not_the_reward(trained, dataset, tmp_path, flag):
    result = train(dataset, tmp_path / "run", flag, cache=tmp_path)
    assert result.returncode == 0, result.stderr
    bundle, plain = Bundle.load(tmp_path / "run" / "bundle"), Bundle.load(trained[0] / "bundle")
    assert bundle.rebrac_config != plain.rebrac_config
    assert not torch.equal(bundle.policy["w0"], plain.policy["w0"])
    assert torch.equal(bundle.reward["w0"], plain.reward["w0"])


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_weights(trained, dataset, tmp_path):
    out = tmp_path / "killed"
    line, quiet = argv("train", *arguments(dataset, out)), {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    for part in ("rebrac", "diffusion"):
        process = subprocess.Popen(line, env=environment(FASTDWM_CACHE=tmp_path), **quiet)
        assert until((out / f"{part}.safetensors").exists)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # A line that the kill cut short must be removed too.
        with (out / f"{part}.jsonl").open("a") as log:
            log.write('{"update": 4')
    result = train(dataset, out, cache=tmp_path)
    assert result.returncode == 0, result.stderr
    assert weights(out) == weights(trained[0])
    updates = [json.loads(line)["update"] for line in (out / "rebrac.jsonl").read_text().splitlines()]
    assert updates == [20, 40, 60]


def test_kept_checkpoints_are_the_policies_of_their_moments(dataset, tmp_path):
    # With constant step sizes, a run of 20 updates ends where another is after 20.
    for name, flags in (("long", ["--keep-checkpoints=3"]), ("short", ["--rebrac.updates=20"])):
        result = train(dataset, tmp_path / name, "--rebrac.no-lr-decay", *flags, cache=tmp_path)
        assert result.returncode == 0, result.stderr
    bundle, expected = (Bundle.load(tmp_path / name / "bundle") for name in ("long", "short"))
    kept = sorted((tmp_path / "long").glob("policy-*"))
    assert [path.name for path in kept] == [f"policy-{n}.safetensors" for n in (20, 40, 60)]
    assert bundle.with_policy(kept[-1]).in_half().fingerprint == bundle.fingerprint
    early = bundle.with_policy(kept[0]).in_half()
    for a, b in ((early.policy, expected.policy), (early.critics, expected.critics)):
        assert all(torch.equal(a[name], b[name]) for name in b)
    assert not torch.equal(early.policy["w0"], bundle.policy["w0"])
    # Each checkpoint has the bound of its own policy.
    transitions, moments = load(get_task("hopper-medium"), str(dataset)), [bundle.with_policy(path) for path in kept]
    measured = [max_deviation(transitions, moment.policy, bundle.discount) for moment in moments]
    assert [moment.max_deviation for moment in moments] == pytest.approx(measured, rel=1e-6)
    assert len(set(measured)) == 3
    assert not list((tmp_path / "short").glob("policy-*"))


@pytest.mark.gpu
def test_training_on_a_gpu_captures_its_updates(dataset, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("tyro")
    result = train(dataset, tmp_path / "run", "--device=cuda", cache=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "diffusion.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    Bundle.load(tmp_path / "run" / "bundle")


def test_models_learn_the_toy_dynamics(dataset, tmp_path):
    # A model that predicts the mean has errors of 1 and 1.
    flags = ("--diffusion.updates=600", "--reward.updates=600", "--diffusion.lr=3e-3", "--reward.lr=3e-3")
    result = train(dataset, tmp_path / "run", *flags, cache=tmp_path)
    assert result.returncode == 0, result.stderr
    errors = Bundle.load(tmp_path / "run" / "bundle").report["errors"]["diffusion"]["one_step"]
    assert errors["obs_rmse_normalised"] < 0.5
    assert errors["reward_rmse"] < 0.4


def test_a_run_killed_before_it_had_written_its_settings_goes_on(trained, dataset, tmp_path):
    for content in ("", '{"task": "hop'):
        out = tmp_path / str(len(content))
        out.mkdir()
        (out / "config.json").write_text(content)
        result = train(dataset, out, cache=tmp_path)
        assert result.returncode == 0, result.stderr
        assert weights(out) == weights(trained[0])


@pytest.mark.parametrize("content", ["", "null", "[1]", '{"task": "hop'])
def test_damaged_settings_beside_a_checkpoint_are_bad_input(dataset, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "diffusion.safetensors").touch()
    result = train(dataset, tmp_path, cache=tmp_path)
    refused(result, "out: cannot use")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(trained, dataset, tmp_path):
    out = tmp_path / "run"
    # The limit is enough for a checkpoint of the reward model, and too little for that of policy and critics.
    most = sum((trained[0] / f"{part}.safetensors").stat().st_size for part in ("reward", "rebrac")) // 2
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # noqa: E731
    result = train(dataset, out, cache=tmp_path, call=spawn, preexec_fn=limit)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: cannot write {out}/rebrac.safetensors: File too large; make room")
    assert "Traceback" not in result.stderr and (out / "reward.safetensors").exists()
    assert train(dataset, out, cache=tmp_path).returncode == 0
    assert weights(out) == weights(trained[0])


BAD = {
    "holds another training (rebrac.updates: 60, now 80)": ("--rebrac.updates=80",),
    "holds another training (seed: 0, now 3)": ("--seed=3",),
    "lr: expected a positive number, got -1": ("--diffusion.lr=-1",),
    "holdout: expected a number in (0, 1), got 1.5": ("--holdout=1.5",),
    "device: cannot use 'cuda:9'": ("--device=cuda:9",),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_exit_2_and_loses_nothing(trained, dataset, tmp_path, message):
    before = weights(trained[0])
    result = train(dataset, trained[0], *BAD[message], cache=tmp_path)
    refused(result, message)
    assert weights(trained[0]) == before


UNUSABLE = {
    "expected rows for the critics, which need rows before a timeout, got 0 of 800": {
        "timeouts": np.ones(800, bool),
        "next_observations": np.zeros((800, 11), np.float32),
    },
    "expected rows for the models, which need a next observation, got 0 of 800": {
        "terminals": np.ones(800, bool),
        "next_observations": None,
    },
    "expected at least 2 episodes to hold one out, got 1": {"timeouts": np.zeros(800, bool), "next_observations": None},
    "expected rows with a next observation in held-out episodes, got 0 of 800": {
        # One episode of 41 rows, which the split does not hold out, and 759 of one row.
        "terminals": np.arange(800) >= 40,
        "timeouts": np.zeros(800, bool),
        "next_observations": None,
    },
}


def changed(dataset, path, changes):
    """Copy the dataset to `path` with some arrays replaced (None: left out)."""
    shutil.copy(dataset, path)
    with h5py.File(path, "a") as file:
        for key, values in changes.items():
            del file[key]
            if values is not None:
                file[key] = values
    return path


@pytest.mark.parametrize("message", UNUSABLE)
def test_data_that_nothing_can_be_learnt_from_are_refused(dataset, tmp_path, monkeypatch, message):
    monkeypatch.setenv("FASTDWM_CACHE", str(tmp_path))
    path = changed(dataset, tmp_path / "hopper.hdf5", UNUSABLE[message])
    with pytest.raises(InputError, match=re.escape(message)):
        split(load(get_task("hopper-medium"), str(path)), TrainConfig())


def test_damaged_checkpoint_is_bad_input(trained, dataset, tmp_path):
    out = shutil.copytree(trained[0], tmp_path / "run")
    (out / "rebrac.safetensors").write_bytes(b"12345678 not safetensors")
    result = train(dataset, out, cache=tmp_path)
    assert result.returncode == 2 and "not a checkpoint of this run" in result.stderr.splitlines()[-1]


def test_batches_gather_whole_rows():
    columns = {"obs": np.arange(20.0).reshape(10, 2), "reward": np.arange(10.0)}
    batches = Batches(columns, np.array([1, 4, 7]))
    batch = batches.sample(100, torch.Generator().manual_seed(0))
    assert batch["obs"].shape == (100, 2) and batch["reward"].shape == (100,)
    assert sorted(set(batch["reward"].tolist())) == [1, 4, 7]
    torch.testing.assert_close(batch["obs"][:, 0], 2 * batch["reward"])
