"""Small bundle, and ways to damage it."""

import json
import math
import os
import random
import shutil
import socket
import struct
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load, save
from toy_bundles import ALL, make_bundle

from fastdwm.config import ITPOConfig, Settings
from fastdwm.tasks import get_task

FILES = ("bundle.json", "weights.safetensors")
FREE = ("report", "dataset", "versions", "tuning", "env", "format")
"""parts of a bundle.json where a value of another type may be valid"""
VALUES = (
    None, True, False, 0, -1, 1, 2, 3, 10, 1000, 10**6, 10**9, 2**63, 10**400, 0.0, -0.0, 0.5, 1.5, -1.5, 1e-308, 1e308,
    math.nan, math.inf, -math.inf, "", "x", "11", "true", "nan", "\ud800", "\x1b[2J", "a\nb", "../../etc/passwd",
    "hopper-medium", "walker2d-medium", "antmaze-umaze", [], [1], [0], [-3], ["x"], [[1]], [1.5], [16, 16], [8193],
    [4] * 17, [10**9], {}, {"a": 1}, {"id": "Hopper-v5"},
)  # fmt: skip
IDS = ("os:Hopper-v5", "antigravity:Hopper-v5", "Hopper", "Hopper-v2", "Ant-v5", "GymV21Environment-v0", "a/b:c-v0")
KWARGS = (
    *("xml_file", "frame_skip", "healthy_reward", "healthy_z_range", "reset_noise_scale", "terminate_when_unhealthy"),
    *("default_camera_config", "render_mode", "width", "maze_map", "self", "id", "max_episode_steps"),
)


def save_base(folder: Path) -> None:
    """Save an untrained bundle for hopper-medium with all world models, as if it had been tuned."""
    hopper = get_task("hopper-medium")
    bundle = make_bundle(
        *ALL,
        task=replace(hopper, env=replace(hopper.env, kwargs={"reset_noise_scale": 0.005})),
        dataset={"id": "toy/two-v0", "transitions": 5, "episodes": 2, "mean_return": 7.5},
        report={"seed": 0, "holdout": 0.05, "training": {"rebrac": {"update": 60}}},
        versions={"torch": "2.13.0"},
    )
    settings = Settings(ITPOConfig(horizon=2), "meanflow", 1)
    tuning = {"settings": settings.record(), "weights_sha256": bundle.fingerprint, "verdict": "better", "table": []}
    replace(bundle, tuning=tuning).save(folder)


class Mutations:
    """Damaged copies of a good bundle."""

    def __init__(self, base: Path):
        self.base = base

    def __call__(self, rng: random.Random, place: Path) -> tuple[str, bool]:
        """Make a damaged copy at place/bundle; see `campaign.Make`."""
        folder = place / "bundle"
        shutil.copytree(self.base, folder)
        mutations = [replace_value, replace_value, move_value, choice, choice, env, text, text, flip, cut, tensors]
        mutate = rng.choice([*mutations, special])
        return mutate.__name__, mutate(rng, folder)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Paths of all values inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    paths = [path] if path else []
    for key, item in inside:
        paths += places(item, (*path, key))
    return paths


def edit(rng: random.Random, header: dict) -> bool:
    """Delete, add or replace one value; returns whether it must now be refused for its type."""
    *above, key = path = rng.choice(places(header))
    parent = header
    for step in above:
        parent = parent[step]
    action, new = rng.random(), rng.choice(VALUES)
    if action < 0.15:
        del parent[key]
        return False
    if action < 0.3 and isinstance(parent, dict):
        parent["new"] = new
        return path[0] not in FREE and path[0] != "weights_sha256" and len(path) < 3
    old, parent[key] = parent[key], new
    same = type(new) is type(old) or {type(new), type(old)} == {int, float} or None in (new, old)
    return not same and path[0] not in FREE


def dump(folder: Path, header: object) -> None:
    (folder / FILES[0]).write_text(json.dumps(header))


def replace_value(rng: random.Random, folder: Path) -> bool:
    header = json.loads((folder / FILES[0]).read_text())
    wrong = edit(rng, header)
    dump(folder, header)
    return wrong


def choice(rng: random.Random, folder: Path) -> bool:
    """Change the tuned settings."""
    header = json.loads((folder / FILES[0]).read_text())
    wrong = edit(rng, header["tuning"]["settings"])
    dump(folder, header)
    return wrong


def move_value(rng: random.Random, folder: Path) -> bool:
    """Make several edits, and exchange two values."""
    header = json.loads((folder / FILES[0]).read_text())
    for _ in range(rng.randint(1, 4)):
        edit(rng, header)
    names = rng.sample(sorted(header), 2) if len(header) > 1 else []
    for name, value in zip(names, [header[name] for name in reversed(names)], strict=True):
        header[name] = value
    dump(folder, header if rng.random() < 0.9 else rng.choice(VALUES))
    return False


def env(rng: random.Random, folder: Path) -> bool:
    """Name an unknown simulator or an unknown setting of it."""
    header = json.loads((folder / FILES[0]).read_text())
    spec, kind = header["task"]["env"], rng.randrange(3)
    if kind == 0:
        spec["id"] = rng.choice(IDS)
    elif kind == 1:
        name = rng.choice(KWARGS)
        spec["kwargs"][name] = rng.choice(VALUES)
        harmless = {"reset_noise_scale", "terminate_when_unhealthy", "healthy_reward", "render_mode"}
        dump(folder, header)
        return name not in harmless
    else:
        spec["max_episode_steps"] = rng.choice([0, -1, 10**9, True, 1.5, "10", [], {}])
    dump(folder, header)
    return True


def text(rng: random.Random, folder: Path) -> bool:
    """Damage bytes of the metadata."""
    path = folder / FILES[0]
    content, wrong = damaged_text(rng, path.read_bytes())
    path.write_bytes(content)
    return wrong


def damaged_text(rng: random.Random, content: bytes) -> tuple[bytes, bool]:
    """JSON text with other bytes, and whether it must be refused."""
    content = bytearray(content)
    kind, at = rng.randrange(6), rng.randrange(len(content))
    if kind < 2:
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del content[at : at + rng.choice([1, 10, len(content)])]
    elif kind == 3:
        depth = rng.choice([40, 1000, 100_000])
        content = content.replace(b'"seed": 0', b'"seed": ' + b"[" * depth + b"]" * depth)
    elif kind == 4:
        content = rng.choice([b"", b"null", b"\xff\xfe", b"\x00" * 100, rng.randbytes(1000), b"9" * 10_000])
    else:
        content += b" " * 5_000_000
    return bytes(content), kind in (3, 4, 5)


def flip(rng: random.Random, folder: Path) -> bool:
    """Flip one bit of the weights or of their header, all of which the hash covers."""
    path = folder / FILES[1]
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    at = rng.randrange(start) if rng.random() < 0.5 else rng.randrange(start, len(content))
    content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    if rng.random() < 0.3:
        rehash(folder)
        return False
    return True


def cut(rng: random.Random, folder: Path) -> bool:
    """Remove or add a part of the weights, or state a wrong length of the header."""
    path = folder / FILES[1]
    content, kind = path.read_bytes(), rng.randrange(4)
    if kind == 0:
        content = content[: rng.randrange(len(content))]
    elif kind == 1:
        content += rng.randbytes(rng.choice([1, 1000, 10**6]))
    elif kind == 2:
        content = struct.pack("<Q", rng.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1])) + content[8:]
    else:
        at = rng.randrange(len(content))
        content = content[:at] + content[at + rng.choice([1, 4, 100]) :]
    path.write_bytes(content)
    if rng.random() < 0.3:
        rehash(folder)
    return True


def rehash(folder: Path) -> None:
    """State the hash of the damaged weights, as an attacker would."""
    header = json.loads((folder / FILES[0]).read_text())
    header["weights_sha256"] = sha256((folder / FILES[1]).read_bytes()).hexdigest()
    header["tuning"]["weights_sha256"] = header["weights_sha256"]
    dump(folder, header)


def tensors(rng: random.Random, folder: Path) -> bool:
    """Replace or remove a whole tensor, under a fitting hash."""
    path = folder / FILES[1]
    values = load(path.read_bytes())
    name = rng.choice(sorted(values))
    kind = rng.randrange(6)
    if kind == 0:
        values[name] = torch.full_like(values[name], rng.choice([math.nan, math.inf, 1e38, -1e38, 1e30, 1e10, 2e6]))
    elif kind == 1:
        values[name] *= rng.choice([0.0, -1.0, 1e-30, 100.0, 1e3, 1e12])
    elif kind == 2:
        values[name] = values[name].to(rng.choice([torch.float64, torch.float16, torch.int32, torch.bool]))
    elif kind == 3:
        del values[name]
    elif kind == 4:
        values[rng.choice(["policy.w9", "x", "", "\x1b[2J", "a\nb"])] = torch.zeros(2)
    else:
        values[name] = values[name].flatten()[1:].clone()
    path.write_bytes(save(values))
    rehash(folder)
    return kind != 1


def special(rng: random.Random, folder: Path) -> bool:
    """Replace a regular file by something else."""
    replace_file(rng, folder / rng.choice(FILES))
    return True


def replace_file(rng: random.Random, path: Path, kind: str | None = None) -> None:
    """Replace a regular file by something else, of this kind or any."""
    kinds = ["fifo", "folder", "zero", "full", "loop", "missing", "dangling", "socket", "sparse", "tty"]
    kind = kind or rng.choice(kinds)
    if kind == "sparse":
        os.truncate(path, rng.choice([2**32, 2**40]))
        return
    path.unlink(missing_ok=True)
    links = {"zero": "/dev/zero", "full": "/dev/full", "loop": path, "dangling": "nowhere", "tty": "/dev/tty"}
    if kind in links:
        path.symlink_to(links[kind])
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)
