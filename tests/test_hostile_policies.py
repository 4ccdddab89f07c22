"""Files of policies that are damaged, hostile or of another kind: one line, and nothing runs."""

import json
import pickle
import random
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import input_error
from onnx_policies import policy_bytes, weights
from toy_policies import ACTION_DIM, OBS_DIM, cleanrl_file, corl_files, d3rlpy_file, sb3_file

from fastdwm.errors import InputError
from fastdwm.importers import archives
from fastdwm.importers.pickles import as_array, read_pickle
from fastdwm.importers.read import KINDS, read_policy


@pytest.fixture
def files(tmp_path):
    """A file of every kind."""
    d3rlpy_file(tmp_path / "model.d3")
    cleanrl_file(tmp_path / "td3.cleanrl_model")
    (tmp_path / "policy.onnx").write_bytes(policy_bytes(weights(OBS_DIM, ACTION_DIM)))
    sb3_file(tmp_path / "model.zip")
    return {
        "sb3": tmp_path / "model.zip",
        "d3rlpy": tmp_path / "model.d3",
        "corl": corl_files(tmp_path)["iql"][0],
        "cleanrl": tmp_path / "td3.cleanrl_model",
        "onnx": tmp_path / "policy.onnx",
    }


def test_an_unknown_kind_is_named():
    for text in ("model.zip", "sb2:model.zip", ""):
        with input_error("policy: expected KIND:FILE with one of the kinds sb3, d3rlpy, corl, cleanrl, onnx, got"):
            read_policy(text)


def test_every_kind_refuses_the_files_of_the_others(files, tmp_path):
    (tmp_path / "nothing").write_bytes(b"")
    for kind in KINDS:
        for other, path in files.items() | {("nothing", tmp_path / "nothing"), ("missing", tmp_path / "missing")}:
            if other == kind:
                assert read_policy(f"{kind}:{path}").sizes == (OBS_DIM, ACTION_DIM)
            else:
                with input_error(rf"^policy: .*{path.name}"):
                    read_policy(f"{kind}:{path}")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_in_one_line(files, kind):
    path, rng = files[kind], random.Random(0)
    content, refused = path.read_bytes(), 0
    for _ in range(60):
        damaged = bytearray(content)
        # The beginning and the end hold the structure, the rest mostly numbers.
        for _ in range(rng.choice([1, 3, 30])):
            middle = rng.randrange(len(damaged))
            damaged[rng.choice([middle, middle % 600, -1 - middle % 600])] = rng.randrange(256)
        path.write_bytes(damaged if rng.random() < 0.8 else damaged[: rng.randrange(len(damaged))])
        try:
            read_policy(f"{kind}:{path}")
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).startswith("policy: ")
    assert refused > 20


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_in_a_pickle_runs(tmp_path):
    trace = tmp_path / "ran"
    content = pickle.dumps({"torch": Evil(trace), "config": "{}"})
    (tmp_path / "model.d3").write_bytes(content)
    with input_error("expected an algorithm of d3rlpy, which holds torch and config"):
        read_policy(f"d3rlpy:{tmp_path / 'model.d3'}")
    torch.save((Evil(trace),), tmp_path / "model.pt")
    for kind in ("cleanrl", "corl"):
        with input_error("expected tensors, got an object of"):
            read_policy(f"{kind}:{tmp_path / 'model.pt'}")
    sb3_file(tmp_path / "model.zip")
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(Evil(trace)))
    with input_error("vecnormalize.pkl: expected the statistics of a VecNormalize"):
        read_policy(f"sb3:{tmp_path / 'model.zip'}")
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickled_arrays_are_read_without_numpys_help(protocol):
    array = np.random.default_rng(0).normal(size=(3, 4))
    values = [array, array.astype(">f4"), np.asfortranarray(array), np.float64(0.5), np.arange(5), 3, 2.5]
    for value, read in zip(values, read_pickle(pickle.dumps(values, protocol), "file"), strict=True):
        np.testing.assert_array_equal(as_array(read, "file"), np.asarray(value, dtype=np.float64))
    for value in ("text", None, [1], np.array(["a"])):
        with input_error("file: cannot be read as an array of numbers"):
            as_array(read_pickle(pickle.dumps(value, protocol), "file"), "file")


HOSTILE = {
    "an index of the memo": b"\x80\x04]r\xff\xff\xff\xff.",
    "a mark that is missing": b"\x80\x04)e.",
    "an unknown operation": b"\x80\x04\xffa.",
    "an extension": b"\x80\x04\x82\x01.",
    "a persistent object": b"\x80\x04X\x01\x00\x00\x00aQ.",
    "a long text that is not there": b"\x80\x04X\xff\xff\xff\xffa.",
    "a list as a key": b"\x80\x04}])s.",
    "nothing on the stack": b"\x80\x04.",
    "a state of no object": b"\x80\x04]}b.",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles(case):
    try:
        read_pickle(HOSTILE[case], "file")
    except InputError as error:
        assert "\n" not in str(error) and str(error).startswith("file: cannot be read as a pickle of plain values")
    else:
        # A large index in a dict takes no memory.
        assert case == "an index of the memo"


def repacked(path, changes, compression=zipfile.ZIP_STORED):
    """Replace entries of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (entries | changes).items():
            archive.writestr(name, content)


def test_a_zip_bomb_is_refused_before_it_unpacks(files, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 2**20)
    repacked(files["sb3"], {"bomb": bytes(2**21)}, zipfile.ZIP_DEFLATED)
    assert files["sb3"].stat().st_size < 2**18
    with input_error("it unpacks to .* bytes, expected at most 1048576"):
        read_policy(f"sb3:{files['sb3']}")
    # An entry that states a smaller size than it has.
    content = files["sb3"].read_bytes().replace(struct.pack("<I", 2**21), struct.pack("<I", 10))
    files["sb3"].write_bytes(content)
    with input_error("cannot be read as a zip archive"):
        read_policy(f"sb3:{files['sb3']}")


def test_a_tensor_that_shows_more_than_it_holds_is_refused(tmp_path):
    cleanrl_file(tmp_path / "model")
    actor, *critics = torch.load(tmp_path / "model", weights_only=True)
    actor["fc1.weight"] = torch.ones(1).expand(10**6, OBS_DIM)
    torch.save((actor, *critics), tmp_path / "model")
    with input_error("'fc1.weight' shows more numbers than it holds"):
        read_policy(f"cleanrl:{tmp_path / 'model'}")


def edit_sb3(path, change):
    """Change the tensors of a model."""
    tensors = torch.load(BytesIO(zipfile.ZipFile(path).read("policy.pth")), weights_only=True)
    change(tensors)
    content = BytesIO()
    torch.save(tensors, content)
    repacked(path, {"policy.pth": content.getvalue()})


TENSORS = {
    r"actor.mu takes 5 numbers, the layer before it gives 16": {"actor.mu.weight": torch.ones(ACTION_DIM, 5)},
    r"actor.mu.bias is missing": {"actor.mu.bias": None},
    r"actor.latent_pi.0: expected 16 biases, got shape \(3,\)": {"actor.latent_pi.0.bias": torch.ones(3)},
    r"actor.latent_pi.0.weight: expected two axes, got shape \(16,\)": {"actor.latent_pi.0.weight": torch.ones(16)},
    r"'actor.features_extractor.cnn.0.weight' is part of no MLP": {
        "actor.features_extractor.cnn.0.weight": torch.ones(4, 3, 3, 3)
    },
    r"policy.w0: expected finite values, got NaN": {"actor.latent_pi.0.weight": torch.full((16, OBS_DIM), torch.nan)},
    r"policy.w0: expected values up to 10000": {"actor.latent_pi.0.weight": torch.full((16, OBS_DIM), 1e5)},
    r"the critics take 5 numbers, expected 11 observations and 3 actions": {
        f"critic.qf{i}.0.weight": torch.ones(16, 5) for i in range(2)
    },
    r"expected a matrix or a vector of numbers, got torch.int64": {"actor.mu.bias": torch.ones(3, dtype=torch.int64)},
}


@pytest.mark.parametrize("message", TENSORS)
def test_networks_that_are_no_mlp_are_refused(files, message):
    def change(tensors):
        for name, value in TENSORS[message].items():
            tensors.pop(name, None)
            if value is not None:
                tensors[name] = value

    edit_sb3(files["sb3"], change)
    with input_error(message):
        read_policy(f"sb3:{files['sb3']}")


DATA = {
    "use_sde: state-dependent exploration is not supported": {"use_sde": True},
    "activation_fn: expected ReLU or Tanh, got": {"policy_kwargs": {"activation_fn": "<class 'torch.nn.ELU'>"}},
    "gamma: expected a discount in .0, 1., got 1.5": {"gamma": 1.5},
}


@pytest.mark.parametrize("message", DATA)
def test_models_with_other_settings_are_refused(files, message):
    repacked(files["sb3"], {"data": json.dumps(DATA[message] | {"policy_class": {"__doc__": "two\nlines"}}).encode()})
    with input_error(message):
        read_policy(f"sb3:{files['sb3']}")


SCALERS = {
    "action_scaler: expected actions from -1 to 1": {
        "action_scaler": {"type": "min_max", "params": {"minimum": [-0.4] * 3, "maximum": [0.4] * 3}}
    },
    "observation_scaler: expected standard or min_max, got pixel": {"observation_scaler": {"type": "pixel"}},
    "observation_scaler: expected mean and std of 11 numbers": {
        "observation_scaler": {"type": "standard", "params": {"mean": [0.0], "std": [1.0], "eps": 0.1}}
    },
    "observation_scaler: expected positive scales": {
        "observation_scaler": {"type": "standard", "params": {"mean": [0.0] * 11, "std": [0.0] * 11, "eps": 0.0}}
    },
    "expected an encoder with relu or tanh, got 'swish'": {
        "actor_encoder_factory": {"type": "vector", "params": {"activation": "swish"}}
    },
}


@pytest.mark.parametrize("message", SCALERS)
def test_scalers_that_cannot_be_folded_are_refused(tmp_path, message):
    d3rlpy_file(tmp_path / "model.d3", **SCALERS[message])
    with input_error(message):
        read_policy(f"d3rlpy:{tmp_path / 'model.d3'}")


def test_a_critic_that_is_no_mlp_can_be_left_out(files):
    edit_sb3(files["sb3"], lambda tensors: tensors.update({"critic.qf0.9.weight": torch.ones(2, 2, 2)}))
    with input_error("critic.qf0.9"):
        read_policy(f"sb3:{files['sb3']}")
    assert read_policy(f"sb3:{files['sb3']}", with_critics=False).critics is None
    edit_sb3(files["sb3"], lambda tensors: tensors.update({"actor.extra.weight": torch.ones(2, 2)}))
    with input_error("actor.extra"):
        read_policy(f"sb3:{files['sb3']}", with_critics=False)


def test_a_checkpoint_of_corl_that_may_be_standardised_needs_its_config(files):
    files["corl"].with_name("config.yaml").unlink()
    with input_error("expected config.yaml beside it, whose `normalize` says whether observations were scaled"):
        read_policy(f"corl:{files['corl']}")
