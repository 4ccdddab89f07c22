"""What `python -m fastdwm.collect` refuses, in one line and with exit code 2."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from onnx_policies import policy_bytes, weights

from fastdwm.collect import __main__ as collect
from fastdwm.collect.behaviour import checked, read_behaviour
from fastdwm.errors import InputError
from fastdwm.tasks import get_task

HOPPER = get_task("hopper-medium")
SIZES = HOPPER.obs_dim, HOPPER.action_dim
PARAMS = weights(*SIZES)
OUT = "mine/hopper/tiny-v0"


def run(root, *flags):
    argv = [sys.executable, "-m", "fastdwm.collect", "hopper", f"--out={OUT}", "--transitions=100", *flags]
    environment = os.environ | {"MINARI_DATASETS_PATH": str(root), "COLUMNS": "200"}
    return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=120)


BAD = {
    "env: expected one of Hopper-v4, ": {"env": "Pong-v5"},
    "env: expected one of Hopper-v4, Hopper-v5": {"env": "evil:Hopper-v5"},
    "env_kwargs: expected JSON": {"flags": ["--env-kwargs={"]},
    "env_kwargs: expected a JSON object, got 3": {"flags": ["--env-kwargs=3"]},
    "Hopper-v5 with 'xml_file' = '/etc/passwd' is not known": {"flags": ['--env-kwargs={"xml_file": "/etc/passwd"}']},
    "none.onnx: no such file": {"policy": "none.onnx"},
    "no bundle is shipped for nothing": {"policy": "nothing"},
    "policy: expected a positive share, got 0 in random:0": {"policy": "random:0"},
    "policy: expected a positive share, got nan in random:nan": {"policy": "random:nan"},
    "policy: expected a positive share, got -1 in random:-1": {"policy": "random:-1"},
    "transitions: expected a positive number, got 0": {"transitions": 0},
    "transitions: expected at most 1e+09, got 10000000000": {"transitions": 10**10},
    "transitions: 1 are too few for 2 policies": {"transitions": 1, "flags": ["--policy=random"]},
    "workers: expected a positive number, got 0": {"flags": ["--workers=0"]},
    "seed: expected a number >= 0, got -1": {"flags": ["--seed=-1"]},
    "noise: expected a number >= 0, got -0.5": {"flags": ["--noise=-0.5"]},
    "noise: expected a number >= 0, got nan": {"flags": ["--noise=nan"]},
    "noise: expected 0, every policy draws its actions itself": {"flags": ["--noise=0.5"]},
    "policy: expected a bundle of Walker2d, hopper-medium is one of Hopper": {
        "env": "walker2d",
        "policy": "hopper-medium",
    },
    "expected a Minari id, [NAMESPACE/]NAME-vNUMBER, got '../x-v0'": {"out": "../x-v0"},
    "expected a Minari id, [NAMESPACE/]NAME-vNUMBER, got 'x'": {"out": "x"},
    "policy: expected at least one": {"policy": None},
    "env: expected actions in [-1, 1], InvertedPendulum-v5 has Box(-3.0": {
        "env": "InvertedPendulum-v5",
        "flags": ["--trust-env"],
    },
    "env: expected flat observations and actions, CartPole-v1 has": {"env": "CartPole-v1", "flags": ["--trust-env"]},
}


def fails(capsys, *argv):
    """The one line that the command leaves, called in this process because that is faster."""
    with pytest.raises(SystemExit) as stop:
        collect.command.finish(lambda: collect.main(*collect.parse(list(argv))))
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_exit_2(tmp_path, monkeypatch, capsys, message):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    given = {"env": "hopper", "policy": "random", "out": OUT, "transitions": 100, "flags": []} | BAD[message]
    argv = [given["env"], f"--out={given['out']}", f"--transitions={given['transitions']}", *given["flags"]]
    argv += [f"--policy={given['policy']}"] if given["policy"] else []
    assert message in fails(capsys, *argv)
    assert not any(tmp_path.iterdir())


def external():
    """A policy whose weights are in another file."""
    from onnx import ModelProto, TensorProto

    model = ModelProto.FromString(policy_bytes(PARAMS))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    return model.SerializeToString()


def custom():
    """A policy that needs an operator of somebody's own."""
    return policy_bytes(PARAMS, squash="RunMyCode")


UNUSABLE = {
    "not a self-contained ONNX model": lambda: b"no model",
    "not a self-contained ONNX model: Fail": external,
    "not a self-contained ONNX model: InvalidGraph": custom,
    "cannot act on 11 observations": lambda: policy_bytes(weights(12, 3)),
    "expected float32 actions of shape (batch, 3), got ((4,)": lambda: policy_bytes(weights(11, 4)),
    "an input of float32 observations and at most one more, noise": lambda: policy_bytes(PARAMS, 0.1, noise="dice"),
    "expected an output named action, got torque, mean": lambda: policy_bytes(PARAMS, output="torque"),
}


@pytest.mark.parametrize("message", UNUSABLE)
def test_an_onnx_file_that_cannot_act_is_bad_input(tmp_path, monkeypatch, capsys, message):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    # Where a file's folder and the working directory have the weights, they are not taken either.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(PARAMS["w0"].tobytes())
    (tmp_path / "p.onnx").write_bytes(UNUSABLE[message]())
    assert message in fails(capsys, "hopper", f"--policy={tmp_path}/p.onnx", f"--out={OUT}")


WILD = {
    "expected actions in [-1, 1], got [": {"b1": np.full(3, 7, np.float32)},
    "expected actions in [-1, 1], got [nan nan nan]": {"b1": np.full(3, np.nan, np.float32)},
}


@pytest.mark.parametrize("message", WILD)
def test_an_action_that_is_none_ends_the_run_and_pins_nothing(tmp_path, message):
    (tmp_path / "p.onnx").write_bytes(policy_bytes(PARAMS | WILD[message], squash="Identity"))
    result = run(tmp_path, f"--policy={tmp_path}/p.onnx")
    assert result.returncode == 2 and result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: policy: p.onnx:") and message in last and "Traceback" not in result.stderr
    assert run(tmp_path, "--policy=random").returncode == 0


def test_actions_beyond_the_bounds_by_rounding_are_cut(tmp_path):
    params = PARAMS | {"w1": np.zeros_like(PARAMS["w1"]), "b1": np.full(3, 1 + 5e-6, np.float32)}
    (tmp_path / "p.onnx").write_bytes(policy_bytes(params, squash="Identity"))
    behaviour = read_behaviour(f"{tmp_path}/p.onnx", HOPPER.env, SIZES)
    action = checked(behaviour, behaviour.start())(np.zeros(SIZES[0]), None)
    np.testing.assert_array_equal(action, np.ones(3, np.float32))


def test_without_onnxruntime_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "mean.onnx").write_bytes(policy_bytes(PARAMS))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=re.escape("onnxruntime is not installed; pip install 'fastdwm[collect]'")):
        read_behaviour(f"{tmp_path}/mean.onnx", HOPPER.env, SIZES)


def test_a_second_command_on_the_same_dataset_is_told_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    folder = tmp_path / ".x-v0.collect"
    folder.mkdir()
    with collect.reserved(folder):
        assert "in use by a command that runs" in fails(capsys, "hopper", "--policy=random", "--out=x-v0")
