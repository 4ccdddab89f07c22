"""The stage `damage` of the bench of base policies: damaged bundles on disk, their cells, one table."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import base_page as page
import damage
from base_cells import BasePolicy, load

from fastdwm.bundle import Bundle
from fastdwm.checks import require
from fastdwm.command import StageProgress
from fastdwm.files import sha256_of
from fastdwm.tables import markdown_table

# Increase when a damage means something else than before.
FORMAT = 1
UNDAMAGED = "none"
TITLES = {
    UNDAMAGED: "none",
    "critic-x3": "critics' values times 3",
    "critic-tenth": "critics trained on a tenth of the data",
    "reward-3x": "reward model, 3 times its error",
    "diffusion-5x": "diffusion, 5 times its error",
    "meanflow-5x": "MeanFlow, 5 times its error",
}
WORLDS = {"diffusion-5x": "diffusion", "meanflow-5x": "meanflow"}
"""world model that imagines; with the other damages it is the first that the bundle has"""
CAPTION = (
    "Differences of score to the base policy, paired by seed, with their 95 % bootstrap interval. The last layer of "
    "reward and world model is perturbed by Gaussian noise until the error on held-out data has grown so; the reward's "
    "mean is kept."
)

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """A base policy with its models damaged in one way."""

    undamaged: BasePolicy
    policy: BasePolicy
    """the same with the damaged bundle"""
    damage: str
    world: str
    """world model that imagines"""
    measured: str

    def described(self) -> dict[str, Any]:
        """What its row says besides the numbers."""
        return {name: getattr(self, name) for name in ("damage", "world", "measured")}


def cases(policies: list[BasePolicy], folder: Path, on_progress: StageProgress) -> list[Case]:
    """Each base policy undamaged and with every damage there is for it; bundles that the folder lacks are made.

    on_progress(base policies that are done, all of them).
    """
    found = []
    for i, policy in enumerate(policies):
        on_progress(i, len(policies))
        found += prepare(policy, folder)
    on_progress(len(policies), len(policies))
    return found


def prepare(policy: BasePolicy, folder: Path) -> list[Case]:
    """The cases of one base policy."""
    bundle = load(policy)
    imagining = [name for name in WORLDS.values() if name in bundle.worlds]
    require(bool(imagining), f"damage: {policy.name} has neither {' nor '.join(WORLDS.values())}")
    found = [Case(policy, policy, UNDAMAGED, world, "") for world in imagining]
    for name, make in damages(policy, bundle):
        path = folder / f"{policy.name}-{name}"
        measured = ensure(path, recipe(policy, bundle, name), make)
        changed = dataclasses.replace(policy, moment=f"{policy.moment}-{name}", bundle=str(path), checkpoint=None)
        found.append(Case(policy, changed, name, WORLDS.get(name, imagining[0]), measured))
    return found


def damages(policy: BasePolicy, bundle: Bundle) -> Iterator[tuple[str, Callable[[], tuple[Bundle, str]]]]:
    """Name and maker of each damage; a maker returns the damaged bundle and what was measured."""
    rows: list[damage.Rows] = []

    def held_out() -> damage.Rows:
        # Loading takes seconds: once, and only if a bundle has to be made.
        rows.extend([] if rows else [damage.Rows.of(bundle, policy.dataset)])
        return rows[0]

    yield "critic-x3", lambda: (damage.louder_critics(bundle), "")
    if policy.critics:
        yield "critic-tenth", lambda: (damage.other_critics(bundle, policy.critics), "")
    yield "reward-3x", lambda: damage.biased_reward(bundle, held_out())
    for name, world in WORLDS.items():
        if world in bundle.worlds:
            yield name, lambda world=world: damage.wrong_world(bundle, world, held_out())


def recipe(policy: BasePolicy, bundle: Bundle, name: str) -> dict[str, Any]:
    """All that a damaged bundle depends on."""
    critics = sha256_of(Path(policy.critics)) if name == "critic-tenth" else None
    return {"format": FORMAT, "damage": name, "of": bundle.fingerprint, "critics": critics, "dataset": policy.dataset}


def ensure(path: Path, wanted: dict[str, Any], make: Callable[[], tuple[Bundle, str]]) -> str:
    """Write the damaged bundle unless one of this recipe is there; returns what was measured on it."""
    if path.exists():
        found = Bundle.load(path).report.get("damage", {})
        if found.get("recipe") == wanted:
            return found["measured"]
    bundle, measured = make()
    report = bundle.report | {"damage": {"recipe": wanted, "measured": measured}}
    dataclasses.replace(bundle, report=report).save(path)
    return measured


def table(rows: list[Row]) -> str:
    """The rows in Markdown: each base policy with each of its damages."""
    names = page.names_of(rows)
    differences = [f"{page.TITLES.get(name, name)} - base" for name in names]
    head, lines = ["base policy", "base", "world model", "damage", "measured", *differences], []
    for row in rows:
        known = [f"{row['task']}-{row['moment']}", f"{row['base_score']:.1f}", row["world"], TITLES[row["damage"]]]
        lines.append([*known, row["measured"], *page.told(row, names)])
    return markdown_table(head, lines)
