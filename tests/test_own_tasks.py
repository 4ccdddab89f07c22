"""Tasks without a name: what the user typed is trusted, what a file names is asked for again, for every command."""

import json
import sys
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
from commands import input_error, refused, run
from own_envs import write_module
from toy_data import training_flags

from fastdwm import Bundle, InputError
from fastdwm.data.task import resolve
from fastdwm.env_config import EnvConfig
from fastdwm.envs import EnvSpec, vet
from fastdwm.tasks import get_task

ENV = "own_cart:Cart-v0"
FLAGS = [*training_flags(10, hidden=8), "--eval-episodes=0", "--fqe-updates=0", "--worlds", "mlp"]
QUICK = ["--episodes=2", "--max-steps=5"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def trace(tmp_path, monkeypatch, private_folders, quick):
    """Work in an empty folder with a module of simulators; yields the file that importing the module makes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield write_module(tmp_path)
    sys.modules.pop("own_cart", None)
    for id in ("Cart-v0", "Pixels-v0", "Unbounded-v0", "ByClass-v0"):
        gymnasium.registry.pop(id, None)


@pytest.fixture
def dataset(trace):
    """Id of a dataset that `collect` recorded in the module's cart."""
    done = run("collect", ENV, "--policy=random", "--out=mine/cart-v0", "--transitions=400", "--workers=1")
    assert done.returncode == 0, done.stderr
    return "mine/cart-v0"


@pytest.fixture
def trained(dataset):
    """The folder of a bundle that `train` made of it."""
    done = run("train", dataset, "--env", ENV, *FLAGS)
    assert done.returncode == 0, done.stderr
    return "runs/mine-cart-v0/bundle"


@pytest.mark.slow
def test_one_task_goes_through_all_commands_by_id_and_by_folder(trained):
    task = Bundle.load(trained, EnvConfig(env=ENV).trust).task
    assert (task.name, task.env.id, task.env.max_episode_steps) == ("mine-cart-v0", ENV, 20)
    for typed in ("mine/cart-v0", "mine-cart-v0", trained):
        done = run("eval", typed, "--env", ENV, *QUICK, "--out=out")
        assert done.returncode == 0, done.stderr
    assert all(path.name.startswith("mine-cart-v0-2") for path in Path("out").glob("*.json"))
    for command in (
        ["tune", "mine/cart-v0", "--minutes=0.001", "--episodes=1", "--max-steps=3"],
        ["study", trained, "--grid=quick", "--episodes=2", "--max-steps=3", "--latency-decisions=10", "--no-confirm"],
        ["report", "deviation", "mine/cart-v0"],
        ["report", "models", trained, "--no-gradients", "--episodes=2", "--max-steps=20"],
        ["sweep", "--tasks", "mine/cart-v0", trained, "--stages", "eval", "--variants", "default", "--plan"],
    ):
        done = run(*command, "--env", ENV)
        assert done.returncode == 0, (command, done.stderr)


@pytest.mark.parametrize("command", [["train", *FLAGS], ["eval"], ["tune"], ["study"], ["report models"]])
def test_a_recorded_module_is_asked_for_before_it_is_imported(trained, trace, command):
    sys.modules.pop("own_cart")
    gymnasium.registry.pop("Cart-v0")
    trace.unlink()
    name, *flags = command[0].split()
    done = run(name, *flags, "mine/cart-v0", *command[1:])
    refused(done, "own_cart:Cart-v0", f"if you trust it, give --env {ENV}")
    assert not trace.exists()
    refused(run(name, *flags, "mine/cart-v0", *command[1:], "--env=Ant-v5"), f"give --env {ENV}")


def test_an_own_simulator_and_a_file_need_no_dataset_id(dataset, tmp_path):
    with h5py.File(tmp_path / "minari/mine/cart-v0/data/main_data.hdf5") as source, h5py.File("cart.hdf5", "w") as file:
        episodes = [source[f"episode_{i}"] for i in range(3)]
        names = {"rewards": "rewards", "terminals": "terminations"}
        file["observations"] = np.concatenate([episode["observations"][:-1] for episode in episodes])
        # A D4RL file has the simulator's own actions, collect records them in [-1, 1].
        file["actions"] = np.concatenate([2 * episode["actions"][:] - 1 for episode in episodes])
        for key, name in names.items():
            file[key] = np.concatenate([episode[name][:] for episode in episodes])
    done = run("train", "my-cart", "--env", ENV, "--dataset=cart.hdf5", "--ref-scores", "-200", "0", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert "it has no timeouts: episodes are cut after 20 steps, where the simulator ends them" in done.stderr
    done = run("eval", "my-cart", "--env", ENV, *QUICK)
    assert "score: 0 is a return of -200, 100 one of 0" in " ".join(done.stdout.split())


def test_arguments_that_are_no_numbers_are_typed_again(trace):
    kwargs = '{"name": "/etc/passwd"}'
    flags = ["--policy=random", "--out=mine/named-v0", "--transitions=60", "--workers=1"]
    assert run("collect", ENV, *flags, "--env-kwargs", kwargs).returncode == 0
    refused(run("train", "mine/named-v0", "--env", ENV, *FLAGS), f"give --env {ENV} --env-kwargs '{kwargs}'")
    spec = resolve("mine/named-v0", EnvConfig(env=ENV, env_kwargs=kwargs)).env
    assert spec.kwargs == {"name": "/etc/passwd"}


def test_the_simulator_of_a_dataset_or_a_bundle_may_record_again(trained):
    flags = ["--policy=random", "--transitions=60", "--workers=1"]
    for i, typed in enumerate(("mine/cart-v0", trained)):
        refused(run("collect", typed, *flags, f"--out=mine/again{i}-v0"), f"if you trust it, give --env {ENV}")
        done = run("collect", typed, "--env", ENV, *flags, f"--out=mine/again{i}-v0")
        assert done.returncode == 0, done.stderr
        assert resolve(f"mine/again{i}-v0", EnvConfig(env=ENV)).env.id == ENV


def test_a_class_as_entry_point_is_refused_before_recording(trace, tmp_path):
    done = run("collect", "own_cart:ByClass-v0", "--policy=random", "--out=mine/x-v0", "--transitions=60")
    refused(done, "own_cart:ByClass-v0 is registered with a class", "entry_point='MODULE:Cart'")
    assert not (tmp_path / "minari").exists()


def test_simulators_that_gymnasium_ships_need_no_word(private_folders):
    done = run(
        "collect", "Pendulum-v1", "--policy=random", "--out=mine/pendulum-v0", "--transitions=600", "--workers=1"
    )
    assert done.returncode == 0, done.stderr
    task = resolve("mine/pendulum-v0", EnvConfig())
    assert (task.env.id, task.env.max_episode_steps, task.obs_dim, task.action_dim) == ("Pendulum-v1", 200, 3, 1)


def test_the_public_dataset_of_a_named_task_is_that_task():
    assert resolve("mujoco/hopper/medium-v0", EnvConfig()) == get_task("hopper-medium")


@pytest.mark.parametrize("typed", ["hoper-medium", "no/such", "nothing", "../x", "a b"])
def test_a_text_that_is_no_task_is_refused_in_one_line(typed, private_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("train", "eval", "tune", "study"):
        refused(run(command, typed), "")
    with pytest.raises(InputError, match="unknown task|name: expected"):
        resolve(typed, EnvConfig())
    refused(run("eval", "mujoco/ant/expert-v0"), "train one with 'python -m fastdwm.train mujoco/ant/expert-v0'")


def test_two_bundles_are_one_too_many(tmp_path):
    from toy_bundles import make_bundle

    for name in "ab":
        make_bundle().save(tmp_path / name)
    refused(run("eval", tmp_path / "a", "--bundle", tmp_path / "b"), "two bundles, expected one")


def test_metadata_with_equal_reference_scores_are_refused(dataset, tmp_path):
    path = tmp_path / "minari/mine/cart-v0/data/metadata.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"ref_min_score": 1, "ref_max_score": 1}))
    refused(run("train", dataset, "--env", ENV, *FLAGS), "expected ref_min_score < ref_max_score in the metadata")
    path.write_text(json.dumps(about | {"ref_min_score": -100.0, "ref_max_score": 0.0}))
    task = resolve(dataset, EnvConfig(env=ENV))
    assert (task.score_name, task.score_pct(-50.0)) == ("score", 50.0)


def test_a_bundle_of_the_typed_simulator_may_record(trained):
    flags = ["--out=mine/again-v0", "--transitions=60", "--workers=1"]
    done = run("collect", "again", "--env", ENV, "--policy", trained, "--noise=0.1", *flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_pendulum_from_its_id_to_scores(private_folders, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--policy=random", "--transitions=2000", "--workers=1", "--ref-scores", "-1500", "-150"]
    assert run("collect", "Pendulum-v1", "--out=mine/pendulum-v0", *flags).returncode == 0
    flags = [*training_flags(200, hidden=32), "--eval-episodes=0", "--fqe-updates=0"]
    done = run("train", "mine/pendulum-v0", *flags)
    assert done.returncode == 0, done.stderr
    bundle = Bundle.load("mine/pendulum-v0")
    assert (bundle.task.action_low, bundle.task.score_name) == ((-2.0,), "score")
    done = run("eval", "mine/pendulum-v0", "--episodes=3", "--out=out")
    assert "score: 0 is a return of -1500, 100 one of -150" in " ".join(done.stdout.split()), done.stderr
    (record,) = (json.loads(path.read_text()) for path in Path("out").glob("*.json"))
    # Three swings of 200 steps, which cost at most 16.3 each.
    assert all(-3260 < episode["return"] < 0 and episode["length"] == 200 for episode in record["episodes"]["base"])


@pytest.mark.parametrize(
    ("id", "kwargs", "known"),
    [
        ("Ant-v5", {"include_cfrc_ext_in_observation": False, "healthy_z_range": [0.2, 1.0]}, True),
        ("Pendulum-v1", {"g": 9.81}, True),
        ("AdroitHandPen-v1", {"reward_type": "dense"}, True),
        ("Ant-v5", {"xml_file": "/etc/passwd"}, False),
        ("Ant-v5", {"frame_skip": 1e9}, False),
        ("Ant-v5", {"default_camera_config": {}}, False),
        ("no_such_module:Ant-v5", {}, False),
        ("NoSuch-v5", {}, False),
    ],
)
def test_what_a_file_of_a_task_without_a_name_may_name(id, kwargs, known):
    if id.startswith("Adroit"):
        pytest.importorskip("gymnasium_robotics")
    spec = EnvSpec(id, kwargs, 100)
    if known:
        assert vet(spec) == spec
        return
    with input_error(f"which may run code or read files: if you trust it, give --env {id}"):
        vet(spec)
    assert vet(spec, trust=EnvSpec(id, kwargs)) == spec
