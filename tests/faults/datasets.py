"""Two small datasets, a D4RL file and a Minari folder, and ways to damage them."""

import json
import os
import random
import shutil
import warnings
from pathlib import Path

import gymnasium
import h5py
import numpy as np
from bundles import IDS, VALUES, edit, replace_file

ROWS, EPISODE = 40, 10
D4RL, MINARI = "hopper.hdf5", "toy/two-v0"


def save_base(folder: Path) -> None:
    """Save four episodes of ten random steps in both formats; the first terminates."""
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(ROWS, 11)), rng.uniform(-1, 1, (ROWS, 3))
    ends = np.arange(ROWS) % EPISODE == EPISODE - 1
    first = np.arange(ROWS) < EPISODE
    with h5py.File(folder / D4RL, "w") as file:
        file["observations"], file["actions"] = obs.astype(np.float32), action.astype(np.float32)
        file["rewards"] = obs[:, 0].astype(np.float32)
        file["terminals"], file["timeouts"] = ends & first, ends & ~first
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    import minari
    from minari.data_collector import EpisodeBuffer

    flags = {"terminations": [False] * EPISODE, "truncations": [False] * (EPISODE - 1) + [True]}
    box = gymnasium.spaces.Box
    spaces = {"observation_space": box(-np.inf, np.inf, (11,)), "action_space": box(-1, 1, (3,))}
    parts = [slice(i, i + EPISODE) for i in range(0, ROWS, EPISODE)]
    episodes = [
        EpisodeBuffer(
            observations=np.append(obs[part], obs[:1], 0),
            actions=action[part].astype(np.float32),
            rewards=obs[part, 0].tolist(),
            **flags,
        )
        for part in parts
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(MINARI, episodes, env=gymnasium.make("Hopper-v5"), **spaces)


class Mutations:
    """Damaged copies of the datasets."""

    def __init__(self, base: Path):
        self.base = base

    def __call__(self, rng: random.Random, place: Path) -> tuple[str, bool]:
        """Make a damaged copy of one of the two, and write its name to place/name; see `campaign.Make`."""
        name = rng.choice([D4RL, MINARI])
        (place / "name").write_text(name)
        if name == D4RL:
            shutil.copy(self.base / D4RL, place)
            path, both = place / D4RL, [flip, flip, cut, link, arrays, arrays, special]
        else:
            shutil.copytree(self.base / MINARI, place / MINARI)
            path, both = place / MINARI / "data" / "main_data.hdf5", [flip, cut, link, episodes, special, metadata]
        mutate = rng.choice(both)
        return f"{mutate.__name__} of {name}", mutate(rng, path)


def flip(rng: random.Random, path: Path) -> bool:
    """Flip a few bits anywhere, or in the first kilobytes, which describe the rest; the format has no checksum."""
    content = bytearray(path.read_bytes())
    within = rng.choice([100, 1000, 5000, len(content)])
    for _ in range(rng.choice([1, 1, 2, 10])):
        content[rng.randrange(min(within, len(content)))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return False


def cut(rng: random.Random, path: Path) -> bool:
    """Remove the end or a part in the middle, or replace all of the file."""
    content, kind = path.read_bytes(), rng.randrange(4)
    at = rng.randrange(len(content))
    if kind == 0:
        path.write_bytes(content[:at])
        return True
    if kind == 1:
        path.write_bytes(content[:at] + content[at + rng.choice([1, 8, 512]) :])
    elif kind == 2:
        path.write_bytes(content[:at] + bytes(512) + content[at + 512 :])
    else:
        path.write_bytes(rng.choice([b"", b"\x89HDF\r\n\x1a\n", rng.randbytes(2000), b"PK\x03\x04"]))
    return kind == 3


def names(file: h5py.File) -> list[str]:
    """Names of all arrays in the file."""
    paths: list[str] = []
    file.visititems(lambda name, item: paths.append(name) if isinstance(item, h5py.Dataset) else None)
    return [name for name in paths if "infos" not in name]


def link(rng: random.Random, path: Path) -> bool:
    """Replace an array by a link to another file, to a pipe, to itself, to nothing or to another array."""
    pipe = path.with_name("pipe")
    os.mkfifo(pipe)
    shutil.copy(path, path.with_name("other.hdf5"))
    with h5py.File(path, "a") as file:
        name = rng.choice(names(file))
        kind = rng.randrange(6)
        targets = [
            h5py.ExternalLink("other.hdf5", f"/{name}"),
            h5py.ExternalLink(str(pipe), f"/{name}"),
            h5py.SoftLink(f"/{name}"),
            h5py.SoftLink("/nowhere"),
            h5py.ExternalLink("/dev/zero", "/x"),
        ]
        if kind < len(targets):
            del file[name]
            file[name] = targets[kind]
        else:
            file.move(name, "moved")
            file[name] = h5py.SoftLink("/moved")
    return True


def put(file: h5py.File, name: str, values: object) -> None:
    if name in file:
        del file[name]
    file[name] = values


def arrays(rng: random.Random, path: Path) -> bool:
    """Give an array of a D4RL file another shape, type or size, or impossible values."""
    with h5py.File(path, "a") as file:
        name = rng.choice([name for name in names(file) if name != "next_observations"])
        values, kind = file[name][:], rng.randrange(12)
        if kind == 0:
            del file[name]
            # Without it, the simulator's limit on the steps cuts the data.
            return name != "timeouts"
        elif kind == 1:
            put(file, name, values[: rng.choice([0, 1, ROWS - 1])])
        elif kind == 2:
            put(file, name, values[..., None])
            # One number a row may be a column, as in some recordings.
            return name not in ("rewards", "terminals", "timeouts")
        elif kind == 3:
            put(file, name, np.stack([values, values], -1))
        elif kind == 4:
            put(file, name, rng.choice([b"text", np.zeros((), np.float32), np.array([b"x"] * ROWS), 1.0]))
        elif kind == 5:
            put(file, name, np.zeros(ROWS, [("a", "f4"), ("b", "i8")]))
        elif kind == 6:
            del file[name]
            rows = rng.choice([10**9, 10**12, 2**62])
            file.create_dataset(name, (rows, *values.shape[1:]), values.dtype, chunks=(1000, *values.shape[1:]))
        elif kind == 7:
            put(file, name, np.where(np.arange(values.size).reshape(values.shape) == 7, np.nan, values))
        elif kind == 8:
            put(file, "observations", rng.choice([1e30, 1e300, np.inf]) * file["observations"][:].astype(float))
            return False
        elif kind == 9:
            put(file, "actions", 2 + file["actions"][:])
        elif kind == 10:
            flags = rng.choice([np.ones(ROWS), np.zeros(ROWS), np.arange(ROWS) % 2])
            put(file, rng.choice(["terminals", "timeouts"]), flags.astype(rng.choice([bool, np.float32, np.int8])))
            return False
        else:
            del file[name]
            file.create_group(name)
    return True


def episodes(rng: random.Random, path: Path) -> bool:
    """Give an array of a Minari episode another length, shape or type, or remove an episode."""
    with h5py.File(path, "a") as file:
        name = rng.choice(names(file))
        group, kind = name.split("/")[0], rng.randrange(7)
        if kind == 0:
            del file[group]
        elif kind == 1:
            put(file, name, file[name][: rng.choice([0, 1, 5])])
        elif kind == 2:
            put(file, name, file[name][:][..., None, None])
        elif kind == 3:
            put(file, name, rng.choice([b"text", np.array([b"x"] * EPISODE), np.zeros(EPISODE, "V8")]))
        elif kind == 4:
            del file[name]
            file.create_dataset(name, (rng.choice([10**9, 2**61]), 11), "f8", chunks=(1000, 11))
        elif kind == 5:
            put(file, name, np.full_like(file[name][:], np.nan, dtype=np.float64))
            return not name.endswith(("terminations", "truncations"))
        else:
            attributes = file[group].attrs
            attributes[rng.choice(["id", "total_steps", "seed", "x"])] = rng.choice([-1, 10**9, "x", 0.5])
            return False
    return True


def metadata(rng: random.Random, path: Path) -> bool:
    """Damage the metadata of a Minari folder."""
    path = path.with_name("metadata.json")
    values, kind = json.loads(path.read_text()), rng.randrange(4)
    if kind == 0:
        edit(rng, values)
    elif kind == 1:
        spec = json.loads(values["env_spec"])
        edit(rng, spec)
        values["env_spec"] = json.dumps(spec)
    elif kind == 2:
        spec = json.loads(values["env_spec"])
        spec["id"] = rng.choice(IDS)
        values["env_spec"] = json.dumps(spec)
        path.write_text(json.dumps(values))
        return True
    else:
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        return False
    path.write_text(json.dumps(values if rng.random() < 0.95 else rng.choice(VALUES)))
    return False


def special(rng: random.Random, path: Path) -> bool:
    """Replace the file or the metadata by something else."""
    path = rng.choice([path, path.with_name("metadata.json")]) if path.name != D4RL else path
    replace_file(rng, path, rng.choice(["fifo", "folder", "zero", "loop", "missing"]))
    return True
