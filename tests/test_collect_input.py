"""Input that `python -m fastdwm.collect` refuses in one line, with exit code 2."""

import re
import sys
from hashlib import sha256

import numpy as np
import pytest
from commands import input_error, refused, run
from onnx import ModelProto, helper
from onnx_policies import external, policy_bytes, weights, with_loop, with_node

from fastdwm.collect.behaviour import checked, read_behaviour
from fastdwm.errors import InputError
from fastdwm.tasks import get_task

HOPPER = get_task("hopper-medium")
SIZES = HOPPER.obs_dim, HOPPER.action_dim
PARAMS = weights(*SIZES)
OUT = "mine/hopper/tiny-v0"


BAD = {
    "cannot build the simulator Pong-v5: NameNotFound": {"env": "Pong-v5"},
    "cannot build the simulator evil:Hopper-v5: ModuleNotFoundError": {"env": "evil:Hopper-v5"},
    "env_kwargs: expected JSON": {"flags": ["--env-kwargs={"]},
    "env_kwargs: expected a JSON object, got 3": {"flags": ["--env-kwargs=3"]},
    "cannot build the simulator Hopper-v5: ": {"flags": ['--env-kwargs={"xml_file": "/etc/passwd"}']},
    "ref_scores: expected MIN < MAX, got 3 3": {"flags": ["--ref-scores", "3", "3"]},
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
    "a namespace of two letters or more, got '../x-v0'": {"out": "../x-v0"},
    "a namespace of two letters or more, got 'x/hopper-v0'": {"out": "x/hopper-v0"},
    "expected a Minari id, [NAMESPACE/]NAME-vNUMBER with": {"out": "x"},
    "policy: expected at least one": {"policy": None},
    "env: expected actions that are a list of real numbers, CartPole-v1 has Discrete(2)": {"env": "CartPole-v1"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_exit_2(tmp_path, monkeypatch, message):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    case = {"env": "hopper", "policy": "random", "out": OUT, "transitions": 100, "flags": []} | BAD[message]
    flags = [f"--out={case['out']}", f"--transitions={case['transitions']}", *case["flags"]]
    flags += [f"--policy={case['policy']}"] if case["policy"] else []
    refused(run("collect", case["env"], *flags), message)
    assert not any(tmp_path.iterdir())


def custom():
    """Policy with an operator that onnxruntime does not know."""
    return policy_bytes(PARAMS, squash="RunMyCode")


NORMAL = helper.make_node("RandomNormal", [], ["x"], shape=[1], seed=1.0)
TRAINING = helper.make_node("Dropout", ["b0", "", "yes"], ["x"])
UNUSABLE = {
    "not an ONNX model: DecodeError": lambda: b"no model",
    "not a model that onnxruntime takes: [ONNXRuntimeError] : 10 : INVALID_GRAPH": custom,
    "the simulator has 11 observations and 3 actions, it has 12 and 3": lambda: policy_bytes(weights(12, 3)),
    "the simulator has 11 observations and 3 actions, it has 17 and 6": lambda: policy_bytes(weights(17, 6)),
    "an input of float32 observations and at most one more, noise": lambda: policy_bytes(PARAMS, 0.1, noise="dice"),
    "expected an output named action, got torque, mean": lambda: policy_bytes(PARAMS, output="torque"),
    r"expected an output named action, got \x1b[2J a, mean": lambda: policy_bytes(PARAMS, output="\x1b[2J\na"),
    "RandomNormal draws numbers of its own; let them be an input": lambda: with_node(policy_bytes(PARAMS), NORMAL),
    "p.onnx: RandomNormal draws": lambda: with_node(policy_bytes(PARAMS), NORMAL, "branch"),
    "/p.onnx: RandomNormal draws": lambda: with_node(policy_bytes(PARAMS), NORMAL, "function"),
    "it has names that are not UTF-8": lambda: policy_bytes(PARAMS).replace(b"batch", b"b\xe1tch"),
    "names that are not UTF-8": lambda: external(policy_bytes(PARAMS))[0].replace(b"weights.bin", b"weights\xffbin"),
    "Dropout draws numbers": lambda: with_node(policy_bytes(PARAMS), TRAINING),
    "Loop may never end": lambda: with_loop(policy_bytes(PARAMS), 2**62),
}


@pytest.mark.parametrize("message", UNUSABLE)
def test_an_onnx_file_that_cannot_act_is_bad_input(tmp_path, monkeypatch, message):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    (tmp_path / "p.onnx").write_bytes(UNUSABLE[message]())
    flags = f"--policy={tmp_path}/p.onnx", f"--out={OUT}", "--transitions=10", "--workers=1"
    refused(run("collect", "hopper", *flags), message)


def test_a_wrong_size_that_only_shows_in_a_run_is_refused(tmp_path):
    model = ModelProto.FromString(policy_bytes(weights(12, 3)))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "any"
    (tmp_path / "p.onnx").write_bytes(model.SerializeToString())
    with input_error("cannot act on 11 observations: .*12"):
        read_behaviour(f"{tmp_path}/p.onnx", HOPPER.env, SIZES)


def test_weights_beside_an_onnx_file_are_part_of_it(tmp_path):
    content, data = external(policy_bytes(PARAMS))
    (tmp_path / "whole.onnx").write_bytes(policy_bytes(PARAMS))
    (tmp_path / "p.onnx").write_bytes(content)
    (tmp_path / "weights.bin").write_bytes(data)
    single, policy = (read_behaviour(f"{tmp_path}/{name}.onnx", HOPPER.env, SIZES) for name in ("whole", "p"))
    # Workers do not read the file again.
    (tmp_path / "weights.bin").write_bytes(data[::-1])
    obs = np.linspace(-1, 1, SIZES[0])
    np.testing.assert_array_equal(policy.start()(obs, None), single.start()(obs, None))
    assert policy.sha256 == sha256(content + data).hexdigest()
    assert single.sha256 == sha256((tmp_path / "whole.onnx").read_bytes()).hexdigest()


PLACES = {
    "its weights are in 'none.bin': .*none.bin: no such file": {"place": "none.bin"},
    "expected weights in a file beside it, got '../weights.bin'": {"place": "../weights.bin"},
    "expected weights in a file beside it, got '/etc/passwd'": {"place": "/etc/passwd"},
    "expected weights in a file beside it, got ''": {"place": ""},
    "expected weights in a file beside it, got '..'": {"place": ".."},
    "'folder': .*folder: cannot be read: Is a directory": {"place": "folder"},
    "'link.bin': .*link.bin is a link out of the folder": {"place": "link.bin"},
    "'itself.bin': ": {"place": "itself.bin"},
    "expected 1 to 4611686018427387904": {"offset": 1, "length": 2**62 - 1},
    "expected -4 to ": {"offset": -4},
    "invalid literal for int": {"offset": "x"},
}


@pytest.mark.parametrize("message", PLACES)
def test_weights_elsewhere_are_refused_in_one_line(tmp_path, message):
    folder = tmp_path / "policies"
    folder.mkdir()
    content, data = external(policy_bytes(PARAMS), **PLACES[message])
    (folder / "p.onnx").write_bytes(content)
    for path in (folder / "weights.bin", tmp_path / "weights.bin"):
        path.write_bytes(data)
    (folder / "folder").mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    (folder / "itself.bin").symlink_to(folder / "itself.bin")
    with input_error(message):
        read_behaviour(f"{folder}/p.onnx", HOPPER.env, SIZES)


WILD = {
    "expected actions in [-1, 1], got [": {"b1": np.full(3, 7, np.float32)},
    "expected actions in [-1, 1], got [nan nan nan]": {"b1": np.full(3, np.nan, np.float32)},
}


@pytest.mark.parametrize("message", WILD)
def test_an_action_that_is_none_ends_the_run_and_pins_nothing(tmp_path, message):
    (tmp_path / "p.onnx").write_bytes(policy_bytes(PARAMS | WILD[message], squash="Identity"))
    flags = ("hopper", f"--out={OUT}", "--transitions=100")
    result = run("collect", *flags, f"--policy={tmp_path}/p.onnx", env={"MINARI_DATASETS_PATH": tmp_path})
    assert result.returncode == 2 and result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: policy: p.onnx:") and message in last and "Traceback" not in result.stderr
    assert run("collect", *flags, "--policy=random", env={"MINARI_DATASETS_PATH": tmp_path}).returncode == 0


def test_actions_beyond_the_bounds_by_rounding_are_cut(tmp_path):
    params = PARAMS | {"w1": np.zeros_like(PARAMS["w1"]), "b1": np.full(3, 1 + 5e-6, np.float32)}
    (tmp_path / "p.onnx").write_bytes(policy_bytes(params, squash="Identity"))
    behaviour = read_behaviour(f"{tmp_path}/p.onnx", HOPPER.env, SIZES)
    action = checked(behaviour, behaviour.start())(np.zeros(SIZES[0]), None)
    np.testing.assert_array_equal(action, np.ones(3, np.float32))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_its_packages_it_says_what_to_install(tmp_path, monkeypatch, package):
    (tmp_path / "mean.onnx").write_bytes(policy_bytes(PARAMS))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=re.escape(f"{package} is not installed; pip install 'fastdwm[collect]'")):
        read_behaviour(f"{tmp_path}/mean.onnx", HOPPER.env, SIZES)
