"""python bench/base_policies.py STAGE LIST.json: measure ITPO's gain or cost on base policies from poor to saturated.

run: evaluate the base policy, the default, its control (a drift of the same size) and the settings of --settings.
show: write page and picture of the finished runs.   damage: the same with models that are damaged on purpose.
bench/README.md describes LIST.json and the trainings.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from base_cells import BASE, BasePolicy, Cell, Setting, forget, read, read_policies, read_settings, run_cells

from fastdwm import command
from fastdwm.checks import POSITIVE, Checked, require
from fastdwm.config import ITPOConfig
from fastdwm.files import prepare_folder, reserved

FIRST_SEED = {"evaluation": 10_000, "tuning": 20_000}
Stage = Literal["run", "show", "damage"]


@dataclasses.dataclass(frozen=True)
class BenchConfig(Checked):
    """Base policies, settings and seeds to compare."""

    out: Path = Path("results/base-policies")
    """folder of the finished runs, one file each, which all stages share"""
    pages: Path = Path("bench/results")
    """folder of the page, the JSON and the picture"""
    settings: Path | None = None
    """JSON file of further settings to compare: {"NAME": {FIELD of ITPOConfig: value}}"""
    only: tuple[str, ...] = ()
    """names of base policies, TASK-MOMENT; none: all of the list"""
    world: Literal["diffusion", "meanflow", "mlp"] = "diffusion"
    """world model used for imagination; `damage` takes diffusion and, where there is one, meanflow"""
    seeds: Literal["evaluation", "tuning"] = "evaluation"
    """environment seeds: evaluation, from 10000, or tuning, from 20000, on which settings may be chosen"""
    episodes: Annotated[int, POSITIVE] = 20
    """episodes of a run"""
    name: str = "base-policies"
    """name of the page's files"""
    max_steps: Annotated[int | None, POSITIVE] = None
    """cut episodes after this many steps; none: the environment's own limit"""
    again: tuple[str, ...] = ()
    """settings, such as default, that are run again if the rule's code has changed since their run"""
    workers: Annotated[int, POSITIVE] = 2
    """processes, of one thread each"""


def compared(config: BenchConfig) -> list[Setting]:
    """Settings that every base policy is run with."""
    more = [] if config.settings is None else read_settings(config.settings)
    usual = [BASE, Setting("default", ITPOConfig()), Setting("drift", ITPOConfig(), control=True)]
    for setting in more:
        require(setting.name not in ("base", "default", "drift"), f"settings: {setting.name} is taken")
    return usual + more


def cell_of(policy: BasePolicy, setting: Setting, config: BenchConfig, world: str | None = None) -> Cell:
    """Run of the setting on the configured seeds."""
    seeds = {"first_seed": FIRST_SEED[config.seeds], "episodes": config.episodes, "max_steps": config.max_steps}
    return Cell(policy, setting, world or config.world, **seeds)


def evaluation_cells(policy: BasePolicy, config: BenchConfig) -> dict[str, Cell]:
    """Runs of the table, by setting."""
    return {setting.name: cell_of(policy, setting, config) for setting in compared(config)}


def run_all(cells: list[tuple[str, Cell]], config: BenchConfig, stage: str) -> None:
    """Run the unfinished cells, and keep other commands out of the folder meanwhile."""
    with reserved(config.out), command.progress() as on_progress:
        forget([cell for name, cell in cells if name in config.again], config.out)
        every = [cell for _, cell in cells]
        run_cells(every, config.out, config.workers, partial(on_progress, f"{stage}, cells"))


def run(policies: list[BasePolicy], config: BenchConfig) -> None:
    """Run the cells of the table."""
    cells = [item for policy in policies for item in evaluation_cells(policy, config).items()]
    run_all(cells, config, "run")


def show(policies: list[BasePolicy], config: BenchConfig) -> None:
    """Write page, JSON and picture, and print the table and the verdict."""
    import base_page as page

    rows = []
    for policy in policies:
        records = {name: read(cell, config.out) for name, cell in evaluation_cells(policy, config).items()}
        if records["base"] is not None:
            rows.append(page.summarise(policy, records))
    require(bool(rows), f"show: no base policy has been run yet with these settings in {config.out}; `run` does")
    verdicts, stem = page.verdict(rows), pages(config, config.name)
    title = f"{len(rows)} base policies, {config.world}, {config.episodes} episodes each on {config.seeds} seeds"
    page.write(stem, title, (page.table(rows), page.CAPTION, page.sentences(verdicts)), rows, verdicts)
    page.save_plot(rows, stem.with_suffix(".png"), title)
    print(stem.with_suffix(".png"))


def damage(policies: list[BasePolicy], config: BenchConfig) -> None:
    """Damage the models of each base policy in every way, run the cells, write page and JSON, and print the table."""
    import base_damage
    import base_page as page

    with command.progress() as on_progress:
        cases = base_damage.cases(policies, config.out / "damaged", partial(on_progress, "damaged bundles"))
    _, *settings = compared(config)
    # The base policy uses none of the damaged models.
    cells = {
        case: {"base": cell_of(case.undamaged, BASE, config)}
        | {setting.name: cell_of(case.policy, setting, config, case.world) for setting in settings}
        for case in cases
    }
    run_all([item for some in cells.values() for item in some.items()], config, "damage")
    rows = []
    for case in cases:
        records = {name: read(cell, config.out) for name, cell in cells[case].items()}
        rows.append(page.summarise(case.undamaged, records) | case.described())
    title = f"Damaged models, {config.episodes} episodes each on {config.seeds} seeds"
    body = base_damage.table(rows), base_damage.CAPTION
    page.write(pages(config, "damaged-models"), title, body, rows)


def pages(config: BenchConfig, name: str) -> Path:
    """Path of a page without its suffix; the name tells world model and seeds unless they are the defaults."""
    prepare_folder(config.pages)
    marks = [config.world] if config.world != "diffusion" and name == config.name else []
    marks += [config.seeds] if config.seeds != "evaluation" else []
    return config.pages / "-".join([name, *marks])


STAGES = {"run": run, "show": show, "damage": damage}


def main(stage: str, path: Path, config: BenchConfig) -> None:
    """Measure ITPO's gain or cost on a list of base policies, beside its control."""
    policies = read_policies(path)
    by_name = {policy.name: policy for policy in policies}
    for name in config.only:
        require(name in by_name, f"only: {path} has no {name}")
    prepare_folder(config.out)
    command.set_up_torch(1, "cpu")
    STAGES[stage]([by_name[name] for name in config.only] or policies, config)


def parse(argv: list[str]) -> tuple[str, Path, BenchConfig]:
    """Stage, list and settings; raises as `command.parse`."""
    words = {"stage": ("STAGE", "run, show or damage", Stage), "path": ("LIST.json", "the base policies", Path)}
    return command.read(BenchConfig(), "python bench/base_policies.py", main.__doc__, argv, **words)


if __name__ == "__main__":
    command.finish(lambda: main(*parse(sys.argv[1:])))
