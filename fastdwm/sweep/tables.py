"""What a sweep prints: the plan before, the table of cells after."""

import shlex

from fastdwm.sweep.config import STAGES
from fastdwm.sweep.driver import Sweep, clock
from fastdwm.sweep.estimates import Estimates
from fastdwm.sweep.plan import Plan
from fastdwm.tables import print_table


def print_plan(plan: Plan, places: int) -> None:
    """Every cell with its commands, then time and memory: guesses, until a cell of the stage has finished.

    places: cells that run at once.
    """
    estimates, todo = Estimates(plan.finished.values()), {cell.name for cell in plan.todo}
    for cell in plan.cells:
        state = "finished" if cell.name in plan.finished else "failed" if cell.name in plan.failed else "not run"
        seconds, memory = estimates.seconds(cell.stage), estimates.memory_mb(cell.stage)
        print(f"{cell.name}: {f'{clock(seconds)}, {memory:.0f} MB' if cell.name in todo else state}")
        for command in plan.commands(cell):
            print(f"    {shlex.join(command)}")
    rows = []
    for stage in STAGES:
        of_stage = [cell for cell in plan.cells if cell.stage == stage]
        left = sum(cell.name in todo for cell in of_stage)
        each = clock(estimates.seconds(stage)), f"{estimates.memory_mb(stage):.0f} MB"
        if of_stage:
            rows.append([stage, str(len(of_stage)), str(left), *each])
    print_table(("stage", "cells", "to run", "time each", "memory each"), rows, title="estimate", left=None)
    memory = places * max((estimates.memory_mb(cell.stage) for cell in plan.todo), default=0)
    total = clock(estimates.duration(plan.todo, places))
    print(f"{len(todo)} of {len(plan.cells)} cells to run, {places} at once: about {total}, at most {memory:.0f} MB")


def print_cells(sweep: Sweep) -> None:
    """One row per training, one column per stage; below it what failed, with the end of its log."""
    plan = sweep.plan
    stages = [stage for stage in STAGES if stage in plan.config.stages]
    cells = {(cell.task, cell.seed, cell.stage): cell for cell in plan.cells}
    rows = []
    for task, seed in dict.fromkeys((cell.task, cell.seed) for cell in plan.cells):
        texts = []
        for stage in stages:
            cell = cells.get((task, seed, stage))
            # Data are collected once for all seeds.
            status = "" if cell is None else sweep.status(cell)
            texts.append(clock(sweep.finished[cell.name]["wall_s"]) if status == "finished" else status)
        rows.append([task, str(seed), *texts])
    print_table(("task", "seed", *stages), rows, title=str(plan.folders.out), left=None)
    for cell in plan.cells:
        if failure := sweep.failed.get(cell.name):
            print(f"{cell.name} failed: {failure['error']} ({failure['file']})")
            for line in failure["log"]:
                print(f"    {line}")
