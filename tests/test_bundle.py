"""Bundles survive the disk unchanged, and nothing damaged gets in."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_agent import make_bundle

from fastdwm import Bundle, InputError, shipped_bundle

GROUPS = ("policy", "critics", "dynamics", "reward", "statistics")


@pytest.fixture
def folder(tmp_path):
    make_bundle().save(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_round_trip_is_exact(folder):
    before, after = make_bundle(), Bundle.load(folder)
    for group in GROUPS:
        a, b = getattr(before, group), getattr(after, group)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert after.rebrac_config == before.rebrac_config and after.dynamics_config == before.dynamics_config
    assert after.env == before.env and (after.obs_dim, after.action_dim) == (11, 3)


def test_saving_again_replaces_the_folder_and_leaves_nothing_else(folder):
    changed = make_bundle()
    changed.policy["b0"].add_(1.0)
    changed.save(folder)
    assert torch.equal(Bundle.load(folder).policy["b0"], changed.policy["b0"])
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def edit_tensors(folder, change):
    tensors = load_file(folder / "weights.safetensors")
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")


def edit_header(folder, change):
    header = json.loads((folder / "bundle.json").read_text())
    change(header)
    (folder / "bundle.json").write_text(json.dumps(header))


def truncate(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


DAMAGE = {
    "tensor policy.w1 is missing": lambda f: edit_tensors(f, lambda t: t.pop("policy.w1")),
    "tensor policy.extra is not part": lambda f: edit_tensors(f, lambda t: t.update({"policy.extra": torch.ones(1)})),
    r"critics.w0: expected float32 \(2, 14, 16\), got": lambda f: edit_tensors(
        f, lambda t: t.update({"critics.w0": torch.ones(2, 14, 17)})
    ),
    "reward.b0: expected float32": lambda f: edit_tensors(f, lambda t: t.update({"reward.b0": torch.ones(16).half()})),
    "dynamics.w0: expected finite": lambda f: edit_tensors(f, lambda t: t["dynamics.w0"].fill_(torch.nan)),
    "statistics.obs_std is missing": lambda f: edit_tensors(f, lambda t: t.pop("statistics.obs_std")),
    "expected a safetensors file": lambda f: truncate(f, "weights.safetensors"),
    "bundle.json: expected JSON": lambda f: truncate(f, "bundle.json"),
    "weights.safetensors: no such file": lambda f: (f / "weights.safetensors").unlink(),
    "bundle.json: no such file": lambda f: (f / "bundle.json").unlink(),
    "expected bundle format 1, got 99": lambda f: edit_header(f, lambda h: h.update(format=99)),
    "not a bundle description": lambda f: edit_header(f, lambda h: h.pop("env")),
    "unknown task 'hopper-mediun'": lambda f: edit_header(f, lambda h: h.update(task="hopper-mediun")),
    "discount: expected": lambda f: edit_header(f, lambda h: h["rebrac"].update(discount=2.0)),
    "obs_dim: task hopper-medium has 11": lambda f: make_bundle(4, 2).save(f),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_named_in_one_line(folder, message):
    DAMAGE[message](folder)
    with pytest.raises(InputError, match=message) as error:
        Bundle.load(folder)
    assert "\n" not in str(error.value)


def test_a_task_without_a_shipped_bundle_says_what_to_do():
    with pytest.raises(InputError, match="python -m fastdwm.train walker2d-random"):
        shipped_bundle("walker2d-random")
