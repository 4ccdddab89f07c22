"""Folder of a small sweep with one finished evaluation, and ways to damage it."""

import json
import random
import shutil
from pathlib import Path

import sweep_cells
from bundles import VALUES, damaged_text, edit, places, replace_file

NAME = "hopper-medium-s0-eval.json"
BASE = [50.0, 60.0, 70.0, 80.0]
HOSTILE = (
    "<script>alert(1)</script>", "![x](http://x.test/x.png)", "[x](javascript:alert(1))", "a|b", "`", "</table>",
    "&lt;", "$x^{", "=1+1", "\x1b[2J", "a\nb", "\u202e", "x" * 10**5,
)  # fmt: skip
NO_NUMBERS = ("nan", "1", True, [], {}, 1e300, -1e300, 10**400, "x", [1.0])


def save_base(folder: Path) -> None:
    """Save one evaluation of four episodes with two variants."""
    diagnostics = {"trust": 0.5, "distance": 0.1, "slope": 1.0, "critic_error": 0.2, "model_error": 0.1}
    diagnostics |= {"predicted_return": 3.0, "prediction_error": 0.3}
    variants = {
        name: sweep_cells.variant(name, BASE, [score + 1 for score in BASE]) | {"diagnostics": diagnostics}
        for name in ("default", "tuned")
    }
    cell = sweep_cells.cell("hopper-medium", variants)
    cell["identity"]["versions"] = {"mujoco": "3.4.0", "gymnasium": "1.2.1"}
    cell["result"] |= {"critic": {"critics": 1.0, "fqe": 2.0, "data": 3.0}, "env_departures": ["healthy_reward = 2"]}
    cell |= {"peak_memory_mb": 100.0}
    sweep_cells.write(folder, cell)


class Mutations:
    """Damaged copies of the folder."""

    def __init__(self, base: Path):
        self.base = base

    def __call__(self, rng: random.Random, place: Path) -> tuple[str, bool]:
        """Make a damaged copy at place/sweep; see `campaign.Make`."""
        shutil.copytree(self.base, place / "sweep")
        path = place / "sweep" / "cells" / NAME
        mutate = rng.choice([value, value, number, number, words, words, text, many, special])
        return mutate.__name__, mutate(rng, path)


def value(rng: random.Random, path: Path) -> bool:
    """Change values anywhere to other types."""
    cell = json.loads(path.read_text())
    for _ in range(rng.choice([1, 1, 1, 3])):
        edit(rng, cell)
    path.write_text(json.dumps(cell if rng.random() < 0.95 else rng.choice(VALUES)))
    return False


def number(rng: random.Random, path: Path) -> bool:
    """Replace a number that the report reads by an invalid one or by another type."""
    cell = json.loads(path.read_text())
    result = cell["result"]
    default, errors = result["variants"]["default"], result["errors"]["diffusion"]["one_step"]
    holders = [
        (cell, "seed"),
        (cell, "wall_s"),
        (cell, "peak_memory_mb"),
        (result["dataset"], "mean_score_pct"),
        *((values, name) for values in (result["critic"], default["diagnostics"]) for name in values),
        *((errors, name) for name in ("obs_rmse", "obs_rmse_se", "reward_rmse", "reward_rmse_se")),
        *((default[policy]["scores"], rng.randrange(4)) for policy in ("base", "itpo")),
        *((default["latency_ms"][policy], "p50_ms") for policy in ("base", "itpo")),
        (default["seeds"], rng.randrange(4)),
        *((default["settings"], name) for name in ("horizon", "particles", "inner_steps")),
    ]
    holder, name = rng.choice(holders)
    holder[name] = rng.choice(NO_NUMBERS)
    path.write_text(json.dumps(cell))
    return True


def words(rng: random.Random, path: Path) -> bool:
    """Insert text with a meaning in a terminal, in a browser or in Markdown."""
    cell, hostile = json.loads(path.read_text()), rng.choice(HOSTILE)
    kind = rng.randrange(4)
    if kind == 0:
        cell["machine"][rng.choice([*cell["machine"], hostile])] = hostile
    elif kind == 1:
        cell["result"]["env_departures"] = [hostile]
    elif kind == 2:
        cell["identity"]["versions"]["mujoco"] = hostile
    else:
        *above, key = rng.choice(places(cell))
        parent = cell
        for step in above:
            parent = parent[step]
        parent[key] = hostile
    path.write_text(json.dumps(cell))
    return not hostile.isprintable()


def text(rng: random.Random, path: Path) -> bool:
    """Damage bytes of the file."""
    content, wrong = damaged_text(rng, path.read_bytes())
    path.write_bytes(content)
    # A cell may have more bytes than a bundle's metadata.
    return wrong and len(content) < 5_000_000


def many(rng: random.Random, path: Path) -> bool:
    """Write far too many episodes, or rename the file."""
    cell = json.loads(path.read_text())
    if rng.random() < 0.5:
        path.rename(path.with_name(rng.choice(["hopper-medium-s1-eval.json", "x-eval.json", "\x1b[2J-eval.json"])))
        return True
    n = 20_000
    for variant in cell["result"]["variants"].values():
        variant |= {"seeds": list(range(n)), **{policy: {"scores": [1.0] * n} for policy in ("base", "itpo")}}
    path.write_text(json.dumps(cell))
    return True


def special(rng: random.Random, path: Path) -> bool:
    """Replace the file by something else."""
    replace_file(rng, path)
    return True
