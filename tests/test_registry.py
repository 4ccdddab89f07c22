"""World models and tasks that a user adds without changing the package."""

import json
from dataclasses import dataclass, replace

import gymnasium
import numpy as np
import pytest
import torch
from commands import input_error
from toy_bundles import make_bundle

from fastdwm import Bundle, EnvSpec, InputError, Task
from fastdwm.data.dataset import Transitions
from fastdwm.models.config import FitConfig, ReBRACConfig, RewardConfig
from fastdwm.models.nets import mlp_shapes
from fastdwm.models.registry import WORLD_MODELS, WorldModel
from fastdwm.report import models as report
from fastdwm.report.config import ReportConfig
from fastdwm.tasks import Limit
from fastdwm.train.config import TrainConfig
from fastdwm.train.recipe import train


@dataclass(frozen=True)
class LinearConfig(FitConfig):
    """A linear change of the observation."""

    gain: float = 1.0
    """factor on the change, a setting that no other world model has"""


@dataclass(frozen=True)
class Linear:
    """Least that imagination needs of a world model."""

    weight: torch.Tensor
    bias: torch.Tensor
    gain: float
    noise_steps: int = 1

    def next_obs(self, obs, action, noise):
        return obs + self.gain * (torch.cat([obs, action], -1) @ self.weight + self.bias)


def linear_shapes(obs_dim, action_dim, config):
    return mlp_shapes((obs_dim + action_dim, obs_dim))


def build_linear(params, statistics, config, dtype, steps=None, temperature=None):
    return Linear(params["w0"].to(dtype), params["b0"].to(dtype), config.gain)


def linear_loss(config, statistics):
    def loss(params, batch, generator):
        model = build_linear(params, statistics, config, torch.float32)
        return (model.next_obs(batch["obs"], batch["action"], None) - batch["next_obs"]).square().mean()

    return loss


@pytest.fixture(scope="module")
def linear():
    """Add the linear model to the registry of world models."""
    row = WorldModel(LinearConfig, linear_shapes, build_linear, linear_loss)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WORLD_MODELS, "linear", row)
        yield


class Slide(gymnasium.Env):
    """Point on a line that the action pushes, with a reward near 1 and an end beyond 3."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, friction: float = 0.1):
        self.friction = friction

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=2).astype(np.float32)
        return self.state, {}

    def step(self, action):
        self.state = slid(self.state, np.asarray(action), self.friction)
        return self.state, float(-abs(self.state[0] - 1)), bool(abs(self.state[0]) >= 3), False, {}


def slid(state, action, friction=0.1):
    """Next position and velocity (..., 2) under a push (..., 1)."""
    velocity = (1 - friction) * state[..., 1:] + 0.2 * action
    return np.concatenate([state[..., :1] + 0.1 * velocity, velocity], -1).astype(np.float32)


SLIDE = Task(
    "slide",
    EnvSpec("test_registry:Slide-v0", {"friction": 0.1}, 50),
    obs_dim=2,
    action_dim=1,
    ref_min_score=-100.0,
    ref_max_score=0.0,
    limits=(Limit(0, -3.0, 3.0), Limit(1, low=-5.0)),
)
gymnasium.register("Slide-v0", "test_registry:Slide")


def slides(n_episodes=20, length=40) -> Transitions:
    """Transitions of random pushes."""
    rng, n = np.random.default_rng(0), n_episodes * length
    action = rng.uniform(-1, 1, (n, 1)).astype(np.float32)
    obs = np.zeros((n, 2), np.float32)
    for i in range(n):
        obs[i] = rng.normal(size=2) if i % length == 0 else slid(obs[i - 1], action[i - 1])
    next_obs, last = slid(obs, action), np.arange(n) % length == length - 1
    next_action = np.where(last[:, None], 0, np.roll(action, -1, 0)).astype(np.float32)
    reward = -np.abs(next_obs[:, 0] - 1)
    flags = np.zeros(n, bool)
    return Transitions(obs, action, reward, next_obs, next_action, flags, last, ~flags, "slides", SLIDE.env)


@dataclass(frozen=True)
class SlideTraining(TrainConfig):
    """Settings with a field for the new world model."""

    linear: LinearConfig = LinearConfig(updates=400, batch_size=64, lr=3e-2, gain=0.5)


@pytest.fixture(scope="module")
def trained(linear, tmp_path_factory):
    """Folder of a trained bundle for the user's task with the user's world model."""
    tiny = {"updates": 40, "batch_size": 32, "hidden": (8,)}
    models = {name: WORLD_MODELS[name].config(**tiny) for name in ("diffusion", "meanflow", "mlp")}
    rebrac = ReBRACConfig(updates=40, batch_size=32, hidden=(8, 8)).for_task(SLIDE)
    config = SlideTraining(**models, rebrac=rebrac, reward=RewardConfig(**tiny), eval_episodes=1, log_every=20)
    folder = tmp_path_factory.mktemp("run")
    train(SLIDE, slides(), config, folder, lambda stage, done, total: None).save(folder / "bundle")
    return folder / "bundle"


def test_a_world_model_added_to_the_registry_is_trained_saved_loaded_and_imagined_with(trained):
    bundle = Bundle.load(trained, trust_env=True)
    assert tuple(bundle.worlds) == ("diffusion", "meanflow", "linear")
    assert bundle.worlds["linear"].config == LinearConfig(updates=400, batch_size=64, lr=3e-2, gain=0.5)
    assert bundle.report["training"]["linear"]["update"] == 400 and "linear" in bundle.report["errors"]
    world = bundle.world("linear")
    # The model can be exact, because the simulator is linear too.
    expected = state = np.array([[0.5, -1.0], [0.0, 2.0]], np.float32)
    imagined = torch.tensor(state)
    for action in np.full((5, 2, 1), 0.7, np.float32):
        imagined = world.dynamics.next_obs(imagined, torch.tensor(action), torch.zeros(1, 2, 2))
        expected = slid(expected, action)
    moved = np.abs(expected - state).max()
    assert np.abs(imagined.numpy() - expected).max() < 0.05 * moved


def test_a_report_measures_and_draws_it_too(trained, tmp_path, capsys):
    config = ReportConfig(episodes=2, max_steps=20, gradients=False, out=tmp_path / "out", trust_env=True)
    report.main(str(trained), config)
    record = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert record["worlds"]["linear"]["network_calls"] == 1 and record["task"] == "slide"
    assert "linear" in capsys.readouterr().out and list((tmp_path / "out").glob("*.png"))


def test_a_bundle_with_a_world_model_that_is_not_in_the_registry_is_refused_in_one_line(trained, monkeypatch):
    monkeypatch.delitem(WORLD_MODELS, "linear")
    with input_error("worlds: expected some of diffusion, meanflow, mlp, got 'linear'"):
        Bundle.load(trained, trust_env=True)


def test_a_task_of_ones_own_goes_through_a_bundle_whole(tmp_path):
    make_bundle(task=SLIDE).save(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle", trust_env=True)
    assert bundle.task == SLIDE and bundle.world().limits == SLIDE.limits
    assert bundle.task.score_pct(-25.0) == 75.0 and bundle.task.departures() == []
    with bundle.task.env.make() as env:
        obs, _ = env.reset(seed=0)
        np.testing.assert_allclose(env.step(np.ones(1))[0], slid(obs, np.ones(1)))
        assert env.spec.max_episode_steps == 50


def test_a_task_of_ones_own_on_a_known_simulator_needs_no_word(tmp_path):
    task = Task("fast-hopper", EnvSpec("Hopper-v5", {}, 200), 11, 3)
    make_bundle(task=task).save(tmp_path / "bundle")
    assert Bundle.load(tmp_path / "bundle").task == task
    with pytest.raises(InputError, match="task: action_dim: Hopper-v5 has 3, got 4"):
        make_bundle(task=replace(task, action_dim=4)).save(tmp_path / "bundle")


def test_a_bundle_that_scores_otherwise_under_a_known_name_says_so(tmp_path):
    shipped = Bundle.load("hopper-medium").task
    make_bundle(task=replace(shipped, ref_max_score=1.0, limits=())).save(tmp_path / "bundle")
    assert Bundle.load(tmp_path / "bundle").task.departures() == ["ref_max_score = 1.0", "limits = ()"]


def test_a_name_that_is_neither_a_folder_nor_shipped_lists_what_is(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no bundle is shipped for hoper-medium \(nearest: hopper-medium, "):
        Bundle.load("hoper-medium")
    # A folder of that name comes first.
    make_bundle(task=replace(SLIDE, env=EnvSpec("Hopper-v5"), obs_dim=11, action_dim=3)).save(
        tmp_path / "hopper-medium"
    )
    monkeypatch.chdir(tmp_path)
    assert Bundle.load("hopper-medium").task.name == "slide"
