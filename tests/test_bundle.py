"""Bundles are loaded as they were saved, and damaged ones are refused."""

import json
import math
import os

import pytest
import torch
from commands import input_error
from safetensors.torch import load_file, save_file
from toy_bundles import make_bundle, save_checkpoint

from fastdwm import Bundle, InputError

GROUPS = ("policy", "critics", "reward", "statistics")


@pytest.fixture
def folder(tmp_path):
    make_bundle().save(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_round_trip_is_exact(folder):
    before, after = make_bundle(), Bundle.load(folder)
    for group in GROUPS:
        a, b = getattr(before, group), getattr(after, group)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    (a,), (b,) = before.worlds.values(), after.worlds.values()
    assert a.config == b.config and all(torch.equal(a.params[name], b.params[name]) for name in a.params)
    assert after.rebrac_config == before.rebrac_config and after.reward_config == before.reward_config
    assert after.task == before.task and after.fingerprint == before.fingerprint
    assert after.max_deviation == before.max_deviation == after.bound


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
    "diffusion.w0: expected finite": lambda f: edit_tensors(f, lambda t: t["diffusion.w0"].fill_(torch.nan)),
    "statistics.obs_std is missing": lambda f: edit_tensors(f, lambda t: t.pop("statistics.obs_std")),
    "expected a safetensors file": lambda f: truncate(f, "weights.safetensors"),
    "bundle.json: expected JSON": lambda f: truncate(f, "bundle.json"),
    "weights.safetensors: no such file": lambda f: (f / "weights.safetensors").unlink(),
    "bundle.json: no such file": lambda f: (f / "bundle.json").unlink(),
    "expected bundle format 2, got 99": lambda f: edit_header(f, lambda h: h.update(format=99)),
    "report is missing": lambda f: edit_header(f, lambda h: h.pop("report")),
    "bundle.json: format 1, of fastdwm 0.1.0, is no longer read": lambda f: edit_header(
        f, lambda h: h.update(format=1)
    ),
    "worlds: expected some of diffusion, meanflow, mlp, got 'gan'": lambda f: edit_header(
        f, lambda h: h["worlds"].update(gan={})
    ),
    "worlds: expected at least one of diffusion": lambda f: edit_header(f, lambda h: h.update(worlds={})),
    "discount: expected": lambda f: edit_header(f, lambda h: h["rebrac"].update(discount=2.0)),
    "task: action_dim: hopper-medium has 3, got 4": lambda f: edit_header(f, lambda h: h["task"].update(action_dim=4)),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_named_in_one_line(folder, message):
    DAMAGE[message](folder)
    with input_error(message):
        Bundle.load(folder)


def test_a_task_without_a_shipped_bundle_says_what_to_do():
    with pytest.raises(InputError, match="python -m fastdwm.train antmaze-umaze"):
        Bundle.load("antmaze-umaze")


@pytest.mark.parametrize("bound", [0.25, None])
def test_a_bundle_takes_policy_critics_and_bound_of_a_checkpoint(folder, bound):
    """The bundle's own bound belongs to another policy: without one in the file it is none."""
    bundle, path = Bundle.load(folder), folder.parent / "policy-20.safetensors"
    other = save_checkpoint(path, bound)
    changed = bundle.with_policy(path)
    assert all(torch.equal(changed.policy[name], value) for name, value in other.policy.items())
    assert all(torch.equal(changed.critics[name], value) for name, value in other.critics.items())
    assert changed.reward is bundle.reward and changed.fingerprint != bundle.fingerprint
    assert changed.max_deviation == bound


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b0": None}, "policy-20.safetensors: tensor policy.b0 is missing"),
        ({"w9": torch.ones(1)}, "tensor policy.w9 is not part of this architecture"),
        ({"w0": torch.ones(11, 17)}, r"policy.w0: expected float32 \(11, 16\), got torch.float32 \(11, 17\)"),
        ({"b0": torch.full((16,), torch.nan)}, "policy.b0: expected finite values"),
        ({"max_deviation": math.nan}, "bound.max_deviation: expected finite values"),
        *(({"max_deviation": x}, rf"policy-20.*bound.max_deviation: .*\(0, 2\], got {x}") for x in (0.0, -1.0, 3.0)),
    ],
    ids=str,
)
def test_a_checkpoint_of_something_else_is_refused_in_one_line(folder, changes, message):
    path = folder.parent / "policy-20.safetensors"
    save_checkpoint(path, **changes)
    with input_error(message):
        Bundle.load(folder).with_policy(path)


@pytest.mark.parametrize("position", [0.2, 0.5, 0.999])
def test_a_flipped_bit_of_a_weight_is_refused_in_one_line(folder, position):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    # The lowest bit of a float32 is invisible except in the hash.
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + 4 * int(position * (len(content) - start) / 4)] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="weights.safetensors: damaged.*SHA-256 bundle.json states"):
        Bundle.load(folder)


def test_a_bundle_without_a_hash_loads(folder):
    edit_header(folder, lambda h: h.pop("weights_sha256"))
    assert Bundle.load(folder).obs_dim == 11


@pytest.mark.parametrize("name", ["policy.w1", "critics.w0", "diffusion.b0", "statistics.obs_mean"])
def test_finite_numbers_that_no_training_gives_are_refused(folder, name):
    edit_tensors(folder, lambda tensors: tensors[name].fill_(2e6))
    edit_header(folder, lambda h: h.pop("weights_sha256"))
    with pytest.raises(InputError, match=f"{name}: expected values up to 1e.06|{name}: expected values up to 10000"):
        Bundle.load(folder)


@pytest.mark.parametrize("factor", [0.0, -1.0, 1e-9])
def test_a_standard_deviation_is_positive_and_not_tiny(folder, factor):
    edit_tensors(folder, lambda tensors: tensors["statistics.delta_std"].mul_(factor))
    edit_header(folder, lambda h: h.pop("weights_sha256"))
    with pytest.raises(InputError, match="statistics.delta_std: expected values of at least 1e-06"):
        Bundle.load(folder)


VALUES = {
    "diffusion: denoise_steps: expected at most 1000": lambda h: h["worlds"]["diffusion"].update(denoise_steps=10**9),
    "diffusion: denoise_steps: expected int, got True": lambda h: h["worlds"]["diffusion"].update(denoise_steps=True),
    "diffusion: denoise_steps: expected int, got '3'": lambda h: h["worlds"]["diffusion"].update(denoise_steps="3"),
    "diffusion: denoise_steps: expected int, got 3.0": lambda h: h["worlds"]["diffusion"].update(denoise_steps=3.0),
    "diffusion: denoise_steps is missing": lambda h: h["worlds"]["diffusion"].pop("denoise_steps"),
    "diffusion: 'depth' is not a setting": lambda h: h["worlds"]["diffusion"].update(depth=3),
    "diffusion: target: expected .*'eps', 'x0'.*, got 'v'": lambda h: h["worlds"]["diffusion"].update(target="v"),
    "rebrac: hidden: expected at most 16 widths up to 8192": lambda h: h["rebrac"].update(hidden=[8193]),
    "reward: hidden: expected at most 16 widths": lambda h: h["reward"].update(hidden=[4] * 17),
    "hidden: expected tuple.*, got 16": lambda h: h["reward"].update(hidden=16),
    "task: reward_scale: expected a number in .1e-6, 1e6., got 0": lambda h: h["task"].update(reward_scale=0.0),
    "expected finite numbers, got NaN": lambda h: h["task"].update(reward_scale=math.nan),
    "task: name: expected letters, digits": lambda h: h["task"].update(name="../hopper"),
    "task: limits: expected low < high of a coordinate below 11": lambda h: h["task"]["limits"][0].update(index=11),
    "task: limits: low: expected float, got '0'": lambda h: h["task"]["limits"][0].update(low="0"),
    "task: ref_max_score: expected more than ref_min_score": lambda h: h["task"].update(ref_max_score=-1e3),
    "task: discount: expected a number in ": lambda h: h["task"].update(discount=1.5),
    "task: 'depth' is not a setting": lambda h: h["task"].update(depth=1),
    "expected finite numbers, got Infinity": lambda h: h["report"].update(x=math.inf),
    "task: obs_dim: expected int, got '11'": lambda h: h["task"].update(obs_dim="11"),
    "report: expected dict, got": lambda h: h.update(report=[]),
    "report: seed: expected int": lambda h: h["report"].update(seed=-1),
    "versions: expected str, got 2": lambda h: h["versions"].update(torch=2),
    "bundle.json: 'more' is not a setting": lambda h: h.update(more=1),
    "task: env: 'more' is not a setting": lambda h: h["task"]["env"].update(more=1),
    "task: env: kwargs: expected dict": lambda h: h["task"]["env"].update(kwargs=31),
    r"max_deviation: expected a number in \(0, 2\], got 0": lambda h: h.update(max_deviation=0),
    r"max_deviation: expected a number in \(0, 2\], got 3": lambda h: h.update(max_deviation=3),
    r"max_deviation: expected float \| None, got True": lambda h: h.update(max_deviation=True),
    "expected printable text": lambda h: h["dataset"].update(id="\x1b[2J"),
}  # fmt: skip


@pytest.mark.parametrize("message", VALUES)
def test_values_that_no_bundle_has_are_refused_in_one_line(folder, message):
    edit_header(folder, VALUES[message])
    with pytest.raises(InputError, match=message) as error:
        Bundle.load(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("depth", [40, 100_000])
def test_deeply_nested_json_is_refused_in_one_line(folder, depth):
    text = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(text.replace('"report": {}', f'"report": {{"x": {"[" * depth}{"]" * depth}}}'))
    with input_error("bundle.json: expected JSON"):
        Bundle.load(folder)


@pytest.mark.parametrize("name", ["bundle.json", "weights.safetensors"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop"])
def test_only_regular_files_are_read(folder, name, kind):
    path = folder / name
    path.unlink()
    make = {"fifo": os.mkfifo, "folder": os.mkdir, "device": lambda p: os.symlink("/dev/zero", p)}
    make.get(kind, lambda p: os.symlink(p, p))(path)
    with pytest.raises(InputError, match=f"{name}: (expected a regular file|cannot be read)"):
        Bundle.load(folder)


def test_a_link_to_a_regular_file_is_fine(folder):
    path = folder / "weights.safetensors"
    path.rename(folder.parent / "blob")
    path.symlink_to(folder.parent / "blob")
    assert Bundle.load(folder).obs_dim == 11


@pytest.mark.parametrize("name", ["bundle.json", "weights.safetensors"])
def test_size_is_checked_before_anything_is_read(folder, name):
    # Reading a sparse file would take as much memory as its size.
    os.truncate(folder / name, 2**40)
    with pytest.raises(InputError, match=f"{name}: expected at most [0-9]+ bytes, got 1099511627776"):
        Bundle.load(folder)
