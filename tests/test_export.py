"""Exported files: actions equal to the agent's in onnxruntime and TorchScript, and what cannot be exported."""

import numpy as np
import onnxruntime
import pytest
import torch
from commands import run
from toy_agents import observations
from toy_bundles import ACTION_DIM, make_bundle

from fastdwm import Agent, Bundle, ITPOConfig
from fastdwm.config import Settings

ITPO = {"horizon": 2, "particles": 3, "action_step": 0.02}
FLAGS = ["--itpo.horizon", "2", "--itpo.particles", "3", "--itpo.action-step", "0.02"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle with all world models."""
    path = tmp_path_factory.mktemp("export") / "bundle"
    make_bundle("diffusion", "meanflow", "mlp").save(path)
    return path


def export(folder, path, *flags):
    """Run the command; the difference to the agent that it prints."""
    done = run("export", folder, "--out", path, *flags)
    assert done.returncode == 0, done.stderr
    *lines, written = done.stdout.splitlines()
    assert written == str(path)
    return float(lines[0].rpartition(" ")[2]) if lines else None


def test_the_base_policy_as_onnx_takes_any_number_of_rows(folder, tmp_path):
    assert export(folder, tmp_path / "policy.onnx") < 1e-6
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    for n in (1, 2, 7):
        obs = observations(1, n)[0]
        expected = Agent.of(Bundle.load(folder), ITPOConfig(inner_steps=0)).act(obs)
        (action,) = session.run(None, {"obs": obs})
        assert action.shape == (n, ACTION_DIM)
        np.testing.assert_allclose(action, expected, atol=1e-6)


def test_the_base_policy_as_torchscript(folder, tmp_path):
    assert export(folder, tmp_path / "policy.pt", "--to", "torchscript") is None
    policy, obs = torch.jit.load(tmp_path / "policy.pt"), observations(1, 5)[0]
    expected = Agent.of(Bundle.load(folder), ITPOConfig(inner_steps=0)).act(obs)
    np.testing.assert_allclose(policy(torch.from_numpy(obs)).numpy(), expected, atol=1e-6)


def test_collect_records_an_exported_policy(folder, tmp_path, private_folders):
    export(folder, tmp_path / "policy.onnx")
    flags = ["--out", "hopper/exported-v0", "--transitions", 50, "--workers", 1]
    done = run("collect", "Hopper-v5", "--policy", tmp_path / "policy.onnx", *flags)
    assert done.returncode == 0, done.stderr


SLOW = pytest.mark.slow


@pytest.mark.parametrize("world", ["diffusion", pytest.param("meanflow", marks=SLOW), pytest.param("mlp", marks=SLOW)])
def test_a_decision_in_onnxruntime_is_the_agents(folder, tmp_path, world):
    """Two episodes of 200 decisions, in which the actions are clipped and the policies carried on."""
    path = tmp_path / "decision.onnx"
    assert export(folder, path, "--decision", "--world", world, *FLAGS) < 1e-5
    session = onnxruntime.InferenceSession(path)
    shapes = {item.name: item.shape for item in session.get_inputs()}
    agent = Agent.of(Bundle.load(folder), ITPOConfig(**ITPO), world=world)
    state = {name: np.full(shapes[name], np.nan, np.float32) for name in ("params", "memory")}
    for obs in observations(2, 200):
        agent.reset()
        for i, o in enumerate(obs):
            expected, noise = agent.act(o), agent.episodes.noise[:, :, :, 0].numpy()
            assert list(noise.shape) == shapes["noise"]
            inputs = {"obs": o, "begins": np.array(i == 0), "noise": noise, **state}
            action, state["params"], state["memory"] = session.run(None, inputs)
            np.testing.assert_allclose(action, expected, atol=1e-5)
        assert agent.clipped > 0
        np.testing.assert_allclose(state["params"], agent.episodes.params[0].numpy(), atol=1e-5)


@pytest.mark.slow
def test_several_inner_steps_with_noise_of_their_own(folder, tmp_path):
    flags = ["--itpo.inner-steps", "3", "--itpo.noise", "step", "--itpo.terminal-value", "mean"]
    assert export(folder, tmp_path / "decision.onnx", "--decision", *flags, *FLAGS) < 1e-5


def test_the_critic_alone_and_the_settings_that_the_bundle_was_tuned_to(folder, tmp_path):
    bundle = Bundle.load(folder)
    settings = Settings(ITPOConfig(horizon=0, particles=1), "meanflow").record()
    tuning = {"settings": settings, "weights_sha256": bundle.fingerprint}
    make_bundle("diffusion", "meanflow", "mlp", tuning=tuning).save(tmp_path / "tuned")
    assert export(tmp_path / "tuned", tmp_path / "decision.onnx", "--decision") < 1e-5
    shapes = {x.name: x.shape for x in onnxruntime.InferenceSession(tmp_path / "decision.onnx").get_inputs()}
    assert shapes["noise"][1] == 0


def test_a_decision_that_is_not_finite_is_rolled_back(folder, tmp_path):
    path = tmp_path / "decision.onnx"
    export(folder, path, "--decision", *FLAGS)
    session, obs = onnxruntime.InferenceSession(path), observations(1, 1)[0, 0]
    shapes = {item.name: item.shape for item in session.get_inputs()}
    inputs = {name: np.zeros(shapes[name], np.float32) for name in ("params", "memory", "noise")}
    inputs |= {"obs": obs, "begins": np.array(True)}
    _, params, memory = session.run(None, inputs)
    wrong = inputs | {"begins": np.array(False), "params": params, "memory": memory, "noise": inputs["noise"] + np.inf}
    action, *state = session.run(None, wrong)
    for value, before in zip(state, (params, memory), strict=True):
        np.testing.assert_array_equal(value, before)
    base = Agent.of(Bundle.load(folder), ITPOConfig(inner_steps=0)).act(obs)
    np.testing.assert_allclose(action, base, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "torchscript", "--decision"], "decision: expected --to onnx"),
        (["--world", "mlp"], "add --decision"),
        (["--decision", "--itpo.inner-steps", "0"], "the settings never adapt the policy"),
        (
            ["--decision", "--itpo.optimiser", "sgd"],
            "expected the optimiser bound, which alone can be exported, got sgd",
        ),
        (
            ["--decision", "--itpo.termination", "soft"],
            "expected the termination none, which alone can be exported, got soft",
        ),
        (["--decision", "--world", "magic"], "world: the bundle holds diffusion, meanflow, mlp, got 'magic'"),
        (["--to", "tflite"], "invalid choice"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(folder, tmp_path, flags, message):
    done = run("export", folder, "--out", tmp_path / "file", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: ") and message in done.stderr, done.stderr
    assert not (tmp_path / "file").exists()
