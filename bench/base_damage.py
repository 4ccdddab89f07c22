"""The stage `damage` of the benchmark of base policies: save damaged bundles, list their runs, make one table."""

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

# Increase when the meaning of a damage changes.
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
"""world model used for imagination; for the other damages it is the bundle's first"""
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
    """the same policy with the damaged bundle"""
    damage: str
    world: str
    """world model used for imagination"""
    measured: str

    def described(self) -> dict[str, Any]:
        """Columns of the table besides the numbers."""
        return {name: getattr(self, name) for name in ("damage", "world", "measured")}


def cases(policies: list[BasePolicy], folder: Path, on_progress: StageProgress) -> list[Case]:
    """Each base policy undamaged and with every damage that applies; missing bundles are made.

    on_progress(done base policies, total).
    """
    cases = []
    for i, policy in enumerate(policies):
        on_progress(i, len(policies))
        cases += prepare(policy, folder)
    on_progress(len(policies), len(policies))
    return cases


def prepare(policy: BasePolicy, folder: Path) -> list[Case]:
    """Cases of one base policy."""
    bundle = load(policy)
    worlds = [name for name in WORLDS.values() if name in bundle.worlds]
    require(bool(worlds), f"damage: {policy.name} has neither {' nor '.join(WORLDS.values())}")
    cases = [Case(policy, policy, UNDAMAGED, world, "") for world in worlds]
    for name, make in damages(policy, bundle):
        path = folder / f"{policy.name}-{name}"
        measured = ensure(path, recipe(policy, bundle, name), make)
        changed = dataclasses.replace(policy, moment=f"{policy.moment}-{name}", bundle=str(path), checkpoint=None)
        cases.append(Case(policy, changed, name, WORLDS.get(name, worlds[0]), measured))
    return cases


def damages(policy: BasePolicy, bundle: Bundle) -> Iterator[tuple[str, Callable[[], tuple[Bundle, str]]]]:
    """Name and maker of each damage; a maker returns the damaged bundle and a text of its measured error."""
    rows: list[damage.Rows] = []

    def held_out() -> damage.Rows:
        # Loading takes seconds: load once, and only if a bundle has to be made.
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
    """Everything that a damaged bundle depends on."""
    critics = sha256_of(Path(policy.critics)) if name == "critic-tenth" else None
    return {"format": FORMAT, "damage": name, "of": bundle.fingerprint, "critics": critics, "dataset": policy.dataset}


def ensure(path: Path, recipe: dict[str, Any], make: Callable[[], tuple[Bundle, str]]) -> str:
    """Save the damaged bundle unless the path holds one of this recipe; returns the text of its measured error."""
    if path.exists():
        saved = Bundle.load(path).report.get("damage", {})
        if saved.get("recipe") == recipe:
            return saved["measured"]
    bundle, measured = make()
    report = bundle.report | {"damage": {"recipe": recipe, "measured": measured}}
    dataclasses.replace(bundle, report=report).save(path)
    return measured


def table(rows: list[Row]) -> str:
    """Markdown table of each base policy with each of its damages."""
    names = page.names_of(rows)
    differences = [f"{page.TITLES.get(name, name)} - base" for name in names]
    head, lines = ["base policy", "base", "world model", "damage", "measured", *differences], []
    for row in rows:
        first = [f"{row['task']}-{row['moment']}", f"{row['base_score']:.1f}", row["world"], TITLES[row["damage"]]]
        lines.append([*first, row["measured"], *page.difference_texts(row, names)])
    return markdown_table(head, lines)
