"""Policies and critics from files of other libraries act and value as in the library itself."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from gymnasium import spaces
from onnx_policies import external, policy_bytes, weights
from toy_policies import ACTION_DIM, OBS_DIM, awac_file, cleanrl_file, corl_files, d3rlpy_file, values

from fastdwm.importers.imported import ENTROPY
from fastdwm.importers.read import read_policy

OBS = np.random.default_rng(0).normal(size=(1000, OBS_DIM)).astype(np.float32)
ACTION = np.random.default_rng(1).uniform(-1, 1, (1000, ACTION_DIM)).astype(np.float32)
ROWS = torch.from_numpy(OBS), torch.from_numpy(ACTION)
TANH = {"activation_fn": torch.nn.Tanh, "net_arch": {"pi": [24], "qf": [16, 24, 32]}, "n_critics": 3}
RELU = {"activation_fn": torch.nn.ReLU, "net_arch": {"pi": [24, 16], "vf": [8]}}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def no_env(low=-1.0, high=1.0):
    """Environment that only has spaces."""
    import gymnasium

    class Spaces(gymnasium.Env):
        observation_space = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
        action_space = spaces.Box(low, high, (ACTION_DIM,), np.float32)

    return Spaces()


def sb3_model(name, env=None, **kwargs):
    import sb3_contrib
    import stable_baselines3

    kind = getattr(stable_baselines3, name, None) or getattr(sb3_contrib, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = {} if name in ("PPO", "A2C") else {"buffer_size": 10}
        return kind("MlpPolicy", env or no_env(), device="cpu", seed=0, **small, **kwargs)


def imported(path, kind, obs=ROWS[0], action=ROWS[1]):
    """The imported policy, its actions and its critics' values, if there are any."""
    model = read_policy(f"{kind}:{path}")
    with torch.no_grad():
        return model, model.actions(obs), None if model.critics is None else model.values(obs, action)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("SAC", {}),
        ("SAC", {"policy_kwargs": TANH, "gamma": 0.97, "ent_coef": 0.1}),
        ("TD3", {}),
        ("DDPG", {}),
        ("TQC", {}),
        ("PPO", {}),
        ("PPO", {"policy_kwargs": RELU}),
        ("A2C", {}),
    ],
    ids=["sac", "sac tanh", "td3", "ddpg", "tqc", "ppo", "ppo relu", "a2c"],
)
def test_models_of_stable_baselines3(tmp_path, name, kwargs):
    original = sb3_model(name, **kwargs)
    if name in ("PPO", "A2C"):
        # Otherwise no action is clipped.
        original.policy.action_net.weight.data *= 100
    original.save(tmp_path / "model.zip")
    model, actions, q = imported(tmp_path / "model.zip", "sb3")
    np.testing.assert_allclose(actions, original.predict(OBS, deterministic=True)[0], atol=1e-6)
    if name in ("PPO", "A2C"):
        assert q is None and model.policy_spec.output == "clip" and bool((actions.abs() == 1).any())
        return
    with torch.no_grad():
        expected = (
            torch.stack([x.squeeze(-1) for x in original.critic(*ROWS)])
            if name != "TQC"
            else (original.critic(*ROWS).mean(-1).T)
        )
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-6)
    assert model.discount == original.gamma
    assert (ENTROPY in model.notes) == (name in ("SAC", "TQC"))


def test_actions_of_another_box_come_as_numbers_from_minus_1_to_1(tmp_path):
    original = sb3_model("PPO", no_env(-0.5, 2.0))
    original.policy.action_net.weight.data *= 100
    original.save(tmp_path / "model.zip")
    _, actions, _ = imported(tmp_path / "model.zip", "sb3")
    expected = original.predict(OBS, deterministic=True)[0]
    np.testing.assert_allclose(-0.5 + 1.25 * (actions + 1), expected, atol=1e-5)


@pytest.mark.parametrize("norm_reward", [False, True])
def test_the_statistics_of_vecnormalize_become_part_of_the_networks(tmp_path, norm_reward):
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    normaliser = VecNormalize(DummyVecEnv([no_env]), norm_reward=norm_reward, clip_obs=50.0)
    rng = np.random.default_rng(2)
    normaliser.obs_rms.update(rng.normal(rng.normal(size=OBS_DIM), rng.uniform(0.3, 3, OBS_DIM), (500, OBS_DIM)))
    original = sb3_model("TD3", normaliser)
    original.save(tmp_path / "model.zip")
    normaliser.save(tmp_path / "vecnormalize.pkl")
    model, actions, q = imported(tmp_path / "model.zip", "sb3")
    obs = normaliser.normalize_obs(OBS)
    np.testing.assert_allclose(actions, original.predict(obs, deterministic=True)[0], atol=2e-6)
    if norm_reward:
        assert q is None and any("scaled its rewards" in note for note in model.notes)
    else:
        expected = torch.cat(original.critic(torch.from_numpy(obs).float(), ROWS[1]), 1).T.detach()
        torch.testing.assert_close(q, expected, rtol=0, atol=2e-6)
    assert any("without its clipping at 50" in note for note in model.notes)


@pytest.mark.parametrize("suffix", [".d3", ".pt"])
@pytest.mark.parametrize(
    ("scaler", "shift", "scale"),
    [
        ({"type": "none", "params": {}}, 0.0, 1.0),
        ({"type": "standard", "params": {"mean": [0.5] * OBS_DIM, "std": [2.0] * OBS_DIM, "eps": 0.25}}, 0.5, 2.25),
        ({"type": "min_max", "params": {"minimum": [-3.0] * OBS_DIM, "maximum": [5.0] * OBS_DIM}}, 1.0, 4.0),
    ],
    ids=["raw", "standard", "min_max"],
)
def test_algorithms_of_d3rlpy(tmp_path, suffix, scaler, shift, scale):
    policy, critics = d3rlpy_file(tmp_path / "model.d3", observation_scaler=scaler)
    model, actions, q = imported(tmp_path / f"model{suffix}", "d3rlpy")
    obs = (ROWS[0] - shift) / scale
    # A layer norm of almost equal numbers magnifies the rounding of a scaler that became part of the weights.
    atol = 1e-6 if scale == 1 else 5e-5
    torch.testing.assert_close(actions, policy(obs), rtol=0, atol=atol)
    torch.testing.assert_close(q, values(critics, obs, ROWS[1]), rtol=0, atol=atol)
    assert model.policy_spec.hidden == (16, 8) and model.policy_spec.layer_norm and model.discount == 0.97


def test_d3rlpys_critics_of_scaled_rewards_are_left_out(tmp_path):
    d3rlpy_file(tmp_path / "model.d3", reward_scaler={"type": "multiply", "params": {"multiplier": 0.1}})
    model, _, q = imported(tmp_path / "model.d3", "d3rlpy")
    assert q is None and "rewards were scaled" in model.notes[0]


def test_checkpoints_of_corl(tmp_path):
    for name, (path, policy, critics) in corl_files(tmp_path).items():
        model, actions, q = imported(path, "corl")
        torch.testing.assert_close(actions, policy(ROWS[0]), rtol=0, atol=1e-6, msg=name)
        torch.testing.assert_close(q, values(critics, *ROWS), rtol=0, atol=1e-6, msg=name)
        assert model.discount == 0.98 and (ENTROPY in model.notes) == (name == "edac")


def test_corls_standardised_observations_use_the_statistics_of_the_data(tmp_path):
    path, policy = awac_file(tmp_path)
    data = np.random.default_rng(4).normal(2.0, 3.0, (5000, OBS_DIM)).astype(np.float32)
    model = read_policy(f"corl:{path}").for_data(data)
    obs = (OBS - data.mean(0)) / (data.std(0) + 1e-3)
    actions = model.actions(ROWS[0])
    torch.testing.assert_close(actions, policy(torch.from_numpy(obs)), rtol=0, atol=5e-5)
    assert bool((actions.abs() == 1).any()) and "statistics" not in model.notes and "--dataset" in model.notes[0]


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (0.4, 0.1)])
def test_models_of_cleanrl(tmp_path, scale, bias):
    path = tmp_path / "td3.cleanrl_model"
    policy, critics = cleanrl_file(path, scale, bias)
    _, actions, q = imported(path, "cleanrl")
    torch.testing.assert_close(actions * scale + bias, policy(ROWS[0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(q, values(critics, ROWS[0], ROWS[1] * scale + bias), rtol=0, atol=1e-6)


def test_an_onnx_file_with_its_weights_beside_it(tmp_path):
    params = weights(OBS_DIM, ACTION_DIM)
    content, data = external(policy_bytes(params))
    (tmp_path / "policy.onnx").write_bytes(content)
    (tmp_path / "weights.bin").write_bytes(data)
    _, actions, q = imported(tmp_path / "policy.onnx", "onnx")
    hidden = np.maximum(OBS @ params["w0"] + params["b0"], 0)
    np.testing.assert_allclose(actions, np.tanh(hidden @ params["w1"] + params["b1"]), rtol=0, atol=5e-6)
    assert q is None


@pytest.mark.parametrize("end", [torch.nn.Tanh(), torch.nn.Hardtanh(), None], ids=["tanh", "clip", "open"])
@pytest.mark.parametrize("bias", [True, False], ids=["gemm", "matmul"])
def test_an_onnx_file_that_torch_exported(tmp_path, end, bias):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(OBS_DIM, 16, bias), torch.nn.Tanh(), torch.nn.Linear(16, ACTION_DIM, bias)]
    module = torch.nn.Sequential(*layers, *([] if end is None else [end]))
    with torch.no_grad():
        module[2].weight *= 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, ROWS[0][:1], tmp_path / "policy.onnx", dynamo=False, opset_version=17)
    assert onnx.load(tmp_path / "policy.onnx").graph.node
    model, actions, _ = imported(tmp_path / "policy.onnx", "onnx")
    expected = module(ROWS[0]).clamp(-1, 1)
    torch.testing.assert_close(actions, expected, rtol=0, atol=1e-6)
    assert bool(model.notes) == (end is None)
