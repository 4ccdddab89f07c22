"""Bundles around a policy of another library: trained by command and in Python, saved, loaded and used."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import input_error, refused, run
from models import generator
from torch import nn
from toy_bundles import make_bundle
from toy_data import training_flags, write_dataset
from toy_policies import ACTION_DIM, OBS_DIM, cleanrl_file, corl_files, d3rlpy_file, mlp, sb3_file

from fastdwm import Agent, Bundle, ITPOConfig
from fastdwm.collect.behaviour import read_behaviour
from fastdwm.data.dataset import load
from fastdwm.importers.read import read_policy
from fastdwm.measure.control import Drift
from fastdwm.measure.deviation import max_deviation
from fastdwm.measure.model_errors import fresh_episodes
from fastdwm.models.config import CriticSpec, DiffusionConfig, PolicySpec, ReBRACConfig, RewardConfig
from fastdwm.models.nets import init_mlp, spec_shapes
from fastdwm.tasks import get_task
from fastdwm.train.config import TrainConfig

FLAGS = [*training_flags(40), "--worlds", "diffusion", "--fqe-updates=20", "--log-every=20", "--threads=1"]
ITPO = ITPOConfig(horizon=2, particles=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "hopper.hdf5")


def train(dataset, out, policy, *flags):
    """Run the command around a policy, KIND:FILE."""
    line = ("hopper-medium", f"--dataset={dataset}", f"--out={out}", "--trust-env", *FLAGS, f"--policy={policy}")
    return run("train", *line, *flags, env={"FASTDWM_CACHE": out.parent})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """Folder, file and output of a run around a model with critics."""
    folder = tmp_path_factory.mktemp("own")
    sb3_file(folder / "model.zip")
    result = train(dataset, folder / "run", f"sb3:{folder / 'model.zip'}")
    assert result.returncode == 0, result.stderr
    return folder / "run", folder / "model.zip", result


def test_the_bundle_holds_the_files_policy_and_critics_exactly(trained):
    out, path, result = trained
    bundle, model = Bundle.load(out / "bundle"), read_policy(f"sb3:{path}")
    assert same(bundle.policy, model.policy) and same(bundle.critics, model.critics)
    assert bundle.policy_spec == PolicySpec((16, 16)) and bundle.critic_spec == CriticSpec((16, 16))
    assert bundle.discount == 0.98 and bundle.max_deviation > 0
    assert bundle.report["policy"] == {"file": f"sb3:{path}", "critics": "file", "notes": list(model.notes)}
    assert "--critic fqe trains new ones without entropy" in result.stderr
    assert not (out / "rebrac.jsonl").exists() and "diffusion" in result.stdout
    obs = np.random.default_rng(0).normal(size=(3, OBS_DIM)).astype(np.float32)
    agent = Agent.of(bundle, replace(ITPO, inner_steps=0))
    np.testing.assert_allclose(agent.act(obs), model.actions(torch.from_numpy(obs)), atol=1e-6)
    agent = Agent.of(bundle, ITPO)
    agent.act(obs)
    assert agent.backend == "fused" and (agent.diagnose()["policy_distance"] > 0).all()


def test_fitted_q_evaluation_trains_critics_of_the_same_policy(trained, dataset, tmp_path):
    out, path, _ = trained
    result = train(dataset, tmp_path / "run", f"sb3:{path}", "--critic=fqe")
    assert result.returncode == 0 and "fitted Q evaluation trains its critics" in result.stderr
    bundle, before = Bundle.load(tmp_path / "run" / "bundle"), Bundle.load(out / "bundle")
    assert same(bundle.policy, before.policy) and same(bundle.reward, before.reward)
    assert bundle.own_critics is None and bundle.critic_spec == CriticSpec((16, 16), layer_norm=True)
    assert bundle.discount == 0.99 and bundle.report["policy"]["critics"] == "fqe"
    lines = [json.loads(line) for line in (tmp_path / "run" / "critics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [20, 40] and "critic_loss" in lines[-1]


def test_fitted_q_evaluation_goes_on_where_it_was_stopped(trained, dataset, tmp_path, monkeypatch):
    def stop(stage, done, total):
        if (stage, done) == ("critics", 20):
            raise KeyboardInterrupt

    flags = f"sb3:{trained[1]}", "--critic=fqe", "--save-every=20"
    with monkeypatch.context() as patch:
        patch.setattr("fastdwm.command.progress", lambda: nullcontext(stop))
        assert train(dataset, tmp_path / "stopped", *flags).returncode == 130
    for name in ("stopped", "whole"):
        assert train(dataset, tmp_path / name, *flags).returncode == 0
    stopped, whole = (Bundle.load(tmp_path / name / "bundle") for name in ("stopped", "whole"))
    assert stopped.fingerprint == whole.fingerprint
    lines = (tmp_path / "stopped" / "critics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [20, 40]


def test_a_run_goes_on_only_with_the_same_policy(trained, dataset, tmp_path):
    out, path = shutil.copytree(trained[0], tmp_path / "run"), trained[1]
    weights, content = (out / "bundle" / "weights.safetensors").read_bytes(), path.read_bytes()
    assert train(dataset, out, f"sb3:{path}").returncode == 0
    assert (out / "bundle" / "weights.safetensors").read_bytes() == weights
    sb3_file(path, seed=5)
    result = train(dataset, out, f"sb3:{path}")
    path.write_bytes(content)
    assert result.returncode == 2 and "another training (policy_sha256" in result.stderr.splitlines()[-1]


def test_a_policy_without_critics_on_the_reference_path(dataset, tmp_path):
    path, *_ = corl_files(tmp_path)["cql"]
    path.with_name("config.yaml").write_text("normalize: true\nnormalize_reward: true\n")
    result = train(dataset, tmp_path / "run", f"corl:{path}")
    assert result.returncode == 0, result.stderr
    assert "its rewards were scaled" in result.stderr and "of --dataset" in result.stderr
    assert Bundle.load(tmp_path / "run" / "bundle").report["policy"]["critics"] == "fqe"


def test_evaluation_takes_such_a_bundle(trained, tmp_path, dataset, quick):
    folder = shutil.copytree(trained[0] / "bundle", tmp_path / "bundle")
    flags = ("--bundle", folder, "--episodes=1", "--max-steps=5", "--itpo.horizon=2", "--itpo.particles=2")
    result = run("eval", "hopper-medium", *flags, "--out", tmp_path, "--threads=1", "--trust-env")
    assert result.returncode == 0, result.stderr
    assert "base policy" in result.stdout


BAD = {
    "policy: expected KIND:FILE with one of the kinds": ("tf:model.zip",),
    "policy: missing.zip: no such file": ("sb3:missing.zip",),
    "maps 11 observations to 3 actions, halfcheetah-medium has 17 and 6": None,
    "critics of sb3:": ("{sb3}", "--rebrac.discount=0.9"),
    "critic: expected --policy KIND:FILE beside it": (None, "--critic=fqe"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line(trained, tmp_path, message):
    out, path = tmp_path / "run", trained[1]
    if BAD[message] is None:
        result = run("train", "halfcheetah-medium", f"--out={out}", f"--policy=sb3:{path}")
    else:
        policy, *flags = BAD[message]
        own = [f"--policy={policy.format(sb3=f'sb3:{path}')}"] if policy else []
        result = run("train", "hopper-medium", f"--out={out}", *own, *flags)
    assert (result.returncode, result.stdout) == (2, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not out.exists()


def test_a_policys_file_in_place_of_a_bundle_says_what_it_is(trained, tmp_path):
    path = trained[1]
    message = r"model.zip is a file \(a model of Stable-Baselines3\), expected the folder of a bundle; .*--policy"
    with input_error(message):
        Bundle.load(path)
    refused(run("eval", "hopper-medium", "--bundle", path), "is a file (a model of Stable-Baselines3)")
    refused(run("eval", path), "is a file (a model of Stable-Baselines3)")


SMALL = TrainConfig(
    rebrac=ReBRACConfig(updates=20, batch_size=16, hidden=(16, 16)),
    diffusion=DiffusionConfig(updates=20, batch_size=16, hidden=(16, 16), denoise_steps=2),
    reward=RewardConfig(updates=20, batch_size=16, hidden=(16, 16)),
    worlds=("diffusion",),
    fqe_updates=20,
    trust_env=True,
    threads=1,
)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return mlp(OBS_DIM, 24, 16, ACTION_DIM, last=[nn.Tanh()], activation=nn.Tanh)


def critic(*after):
    hidden = [nn.Linear(OBS_DIM + ACTION_DIM, 24), nn.Tanh(), *after, nn.Linear(24, 1)]
    return nn.Sequential(*hidden)


def test_a_bundle_of_modules(dataset, tmp_path, module, monkeypatch):
    monkeypatch.setenv("FASTDWM_CACHE", str(tmp_path))
    critics = [critic(nn.LayerNorm(24)) for _ in range(3)]
    values = {"policy": module, "dataset": str(dataset), "config": SMALL}
    bundle = Bundle.of("hopper-medium", **values, critics=critics, discount=0.95, folder=tmp_path / "run")
    assert bundle.discount == 0.95 and bundle.own_critics == CriticSpec((24,), "tanh", True, 3)
    obs, action = torch.randn(5, OBS_DIM), torch.rand(5, ACTION_DIM)
    policy = bundle.base_policy
    torch.testing.assert_close(policy.act(policy.base.expand(5, -1), obs), module(obs).detach(), rtol=0, atol=1e-6)
    expected = torch.stack([one(torch.cat([obs, action], 1)).squeeze(1) for one in critics]).detach()
    torch.testing.assert_close(bundle.world().critic(obs, action), expected, rtol=0, atol=1e-5)
    assert same(Bundle.load(tmp_path / "run" / "bundle").policy, bundle.policy)
    values["dataset"] = load(get_task("hopper-medium"), str(dataset))
    again = Bundle.of("hopper-medium", **values, critics=critics, discount=0.95, folder=tmp_path / "again")
    assert again.fingerprint == bundle.fingerprint
    values["dataset"] = str(dataset)
    changed = nn.Sequential(*list(module)[:-1], nn.Hardtanh())
    with input_error("holds another training"):
        Bundle.of("hopper-medium", **values | {"policy": changed}, folder=tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"policy": nn.Sequential(nn.Linear(OBS_DIM, 8), nn.ELU(), nn.Linear(8, ACTION_DIM), nn.Tanh())},
            "policy: exp",
        ),
        ({"policy": mlp(OBS_DIM, 8, 5, last=[nn.Tanh()])}, "the module Sequential maps 11 observations to 5 actions"),
        ({"critics": [nn.Sequential(nn.Linear(14, 8), nn.ELU(), nn.Linear(8, 1))]}, "critics: expected an nn.Sequent"),
        ({"critics": [mlp(13, 8, 1)]}, "the critics take 13 numbers, expected 11 observations and 3 actions"),
        ({"critics": [mlp(14, 8, 1), mlp(14, 9, 1)]}, "critics: expected critics of one shape"),
        ({"policy": "sb3:model.zip", "critics": [mlp(14, 8, 1)]}, "critics: expected none beside a file"),
    ],
    ids=["elu", "actions", "critic elu", "critic inputs", "critic shapes", "file"],
)
def test_modules_that_no_bundle_holds_are_refused(tmp_path, module, change, message):
    with input_error(message):
        Bundle.of("hopper-medium", **{"policy": module} | change, folder=tmp_path / "run", config=SMALL)
    assert not (tmp_path / "run").exists()


def make_own_bundle():
    """Bundle of a policy and critics that are not ReBRAC's."""
    policy, critics = PolicySpec((24, 16), "tanh", False, "clip"), CriticSpec((8,), "relu", False, 4)
    values = {"own_policy": policy, "own_critics": critics}
    values["policy"] = init_mlp(spec_shapes(policy, OBS_DIM, ACTION_DIM), generator(1))
    values["critics"] = init_mlp(spec_shapes(critics, OBS_DIM + ACTION_DIM, 1), generator(2))
    return make_bundle(**values)


def edited(folder, change):
    header = json.loads((folder / "bundle.json").read_text())
    change(header)
    (folder / "bundle.json").write_text(json.dumps(header))


def test_a_bundles_own_networks_are_loaded_as_they_were_saved(tmp_path):
    before = make_own_bundle()
    before.save(tmp_path)
    after = Bundle.load(tmp_path)
    assert (after.own_policy, after.own_critics) == (before.own_policy, before.own_critics)
    assert same(after.policy, before.policy) and same(after.critics, before.critics)
    obs = torch.randn(4, OBS_DIM)
    policy = after.base_policy
    assert bool((policy.act(100 * policy.base.expand(4, -1), obs).abs() == 1).any())
    Agent.of(after, ITPO).act(obs.numpy())
    # A bundle of ReBRAC's networks says nothing of them, as before.
    make_bundle().save(tmp_path / "plain")
    assert not {"policy", "critics"} & json.loads((tmp_path / "plain" / "bundle.json").read_text()).keys()


def test_all_that_act_with_the_base_policy_know_its_own_functions(tmp_path):
    bundle = make_own_bundle()
    bundle.save(tmp_path)
    obs = np.random.default_rng(0).normal(size=(6, OBS_DIM)).astype(np.float32)
    policy = bundle.base_policy
    expected = policy.act(policy.base.expand(6, -1), torch.from_numpy(obs)).numpy()
    hidden = np.tanh(obs @ bundle.policy["w0"].numpy() + bundle.policy["b0"].numpy())
    hidden = np.tanh(hidden @ bundle.policy["w1"].numpy() + bundle.policy["b1"].numpy())
    by_hand = np.clip(hidden @ bundle.policy["w2"].numpy() + bundle.policy["b2"].numpy(), -1, 1)
    np.testing.assert_allclose(expected, by_hand, atol=1e-6)
    np.testing.assert_allclose(Drift(bundle, 1e-7).act(obs), expected, atol=1e-6)
    act = read_behaviour(str(tmp_path), bundle.task.env, (OBS_DIM, ACTION_DIM)).start()
    np.testing.assert_allclose([act(row, None) for row in obs], expected, atol=1e-6)
    fresh = fresh_episodes(bundle.policy, bundle.task.env, [3], 4, 0.0, function=bundle.policy_function)
    own = policy.act(policy.base.expand(4, -1), torch.from_numpy(fresh.obs)).numpy()
    np.testing.assert_allclose(fresh.action, own, atol=1e-6)
    noisy = replace(fresh, action=(fresh.action + 0.1).astype(np.float32))
    values = noisy, bundle.policy, 0.9, bundle.policy_function
    assert max_deviation(*values) == pytest.approx(0.1, rel=1e-4)


DAMAGE = {
    r"policy: hidden: expected at most 16 widths": lambda h: h["policy"].update(hidden=[9000]),
    r"policy: output is missing": lambda h: h["policy"].pop("output"),
    r"policy: output: expected .*'tanh', 'clip'.*, got 'none'": lambda h: h["policy"].update(output="none"),
    r"critics: copies: expected at most 1000, got 1000000": lambda h: h["critics"].update(copies=10**6),
    r"critics: activation: expected .*, got 'silu'": lambda h: h["critics"].update(activation="silu"),
    r"critics.w0: expected float32 \(3, 14, 8\)": lambda h: h["critics"].update(copies=3),
    r"tensor policy.scale0 is missing": lambda h: h["policy"].update(layer_norm=True),
    r"policy.w0: expected float32 \(11, 16\)": lambda h: h.pop("policy"),
    r"policy: expected dict \| None, got \[\]": lambda h: h.update(policy=[]),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_description_that_does_not_fit_the_weights_is_refused(tmp_path, message):
    make_own_bundle().save(tmp_path)
    edited(tmp_path, DAMAGE[message])
    with input_error(message):
        Bundle.load(tmp_path)


def test_cleanrl_and_d3rlpy_files_fit_too(dataset, tmp_path):
    d3rlpy_file(tmp_path / "model.d3")
    cleanrl_file(tmp_path / "model")
    for kind, name in (("d3rlpy", "model.d3"), ("cleanrl", "model")):
        imported = read_policy(f"{kind}:{tmp_path / name}")
        bundle = make_bundle(
            policy=imported.policy,
            critics=imported.critics,
            own_policy=imported.policy_spec,
            own_critics=imported.critic_spec,
        )
        bundle.save(tmp_path / kind)
        with pytest.warns(UserWarning) if imported.policy_spec.layer_norm else pytest.MonkeyPatch.context():
            agent = Agent.of(Bundle.load(tmp_path / kind), ITPO)
        assert np.abs(agent.act(np.ones((2, OBS_DIM), np.float32))).max() <= 1
        assert agent.backend == ("reference" if imported.policy_spec.layer_norm else "fused")


@pytest.mark.parametrize(
    "flags", [(), pytest.param(("--decision",), marks=pytest.mark.slow)], ids=["policy", "decision"]
)
def test_own_networks_are_exported(tmp_path, flags):
    make_own_bundle().save(tmp_path)
    decision = ("--itpo.horizon", "2", "--itpo.particles", "3") if flags else ()
    done = run("export", tmp_path, "--out", tmp_path / "own.onnx", *flags, *decision)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[0].rpartition(" ")[2]) < 1e-5
