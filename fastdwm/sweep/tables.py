"""Print the plan of a sweep before it runs, and the table of its jobs afterwards."""

import shlex
from statistics import fmean

from fastdwm.sweep.config import STAGES
from fastdwm.sweep.driver import Sweep, clock
from fastdwm.sweep.estimates import Estimates
from fastdwm.sweep.plan import Plan
from fastdwm.tables import print_table


def print_plan(plan: Plan, slots: int) -> None:
    """Print all jobs with their commands and estimates of time and memory.   slots: jobs that run at once.

    The estimates are guesses, from the budgets in the flags, until a job of the stage has finished.
    """
    estimates, todo = Estimates.of(plan), {job.name for job in plan.todo}
    for job in plan.jobs:
        state = "finished" if job.name in plan.finished else "failed" if job.name in plan.failed else "not run"
        seconds, memory = estimates.seconds(job.stage), estimates.memory_mb(job.stage)
        print(f"{job.name}: {f'{clock(seconds)}, {memory:.0f} MB' if job.name in todo else state}")
        for command in plan.commands(job):
            print(f"    {shlex.join(command)}")
    rows = []
    for stage in STAGES:
        of_stage = [job for job in plan.jobs if job.stage == stage]
        left = sum(job.name in todo for job in of_stage)
        each = clock(estimates.seconds(stage)), f"{estimates.memory_mb(stage):.0f} MB"
        if of_stage:
            rows.append([stage, str(len(of_stage)), str(left), *each])
    print_table(("stage", "jobs", "to run", "time each", "memory each"), rows, title="estimate", left=None)
    memory = slots * max((estimates.memory_mb(job.stage) for job in plan.todo), default=0)
    total = clock(estimates.duration(plan.todo, slots))
    print(f"{len(todo)} of {len(plan.jobs)} jobs to run, {slots} at once: about {total}, at most {memory:.0f} MB")


def print_jobs(sweep: Sweep) -> None:
    """Print one row per training with one column per stage, then the failed jobs with the ends of their logs."""
    plan = sweep.plan
    stages = [stage for stage in STAGES if stage in plan.config.stages]
    jobs = {(job.task, job.seed, job.stage): job for job in plan.jobs}
    rows = []
    for task, seed in dict.fromkeys((job.task, job.seed) for job in plan.jobs):
        texts = []
        for stage in stages:
            job = jobs.get((task, seed, stage))
            # Data are collected once for all seeds.
            status = "" if job is None else sweep.status(job)
            texts.append(clock(sweep.finished[job.name]["wall_s"]) if status == "finished" else status)
        rows.append([task, str(seed), *texts])
    print_table(("task", "seed", *stages), rows, title=str(plan.folders.out), left=None)
    print_scores(sweep)
    for job in plan.jobs:
        if failure := sweep.failed.get(job.name):
            print(f"{job.name} failed: {failure['error']} ({failure['file']})")
            for line in failure["log"]:
                print(f"    {line}")


def print_scores(sweep: Sweep) -> None:
    """Print mean scores of the base policy and of every variant, with the difference, of all finished evaluations."""
    records = [
        sweep.finished[job.name] for job in sweep.plan.jobs if job.stage == "eval" and job.name in sweep.finished
    ]
    names = sweep.plan.config.variants
    rows = []
    for record in records:
        variants = record["result"]["variants"]
        base = {name: fmean(variants[name]["base"]["scores"]) for name in variants}
        texts = [""] * len(names)
        for i, name in enumerate(names):
            if name in variants:
                score = fmean(variants[name]["itpo"]["scores"])
                texts[i] = f"{score:.1f} ({score - base[name]:+z.1f})"
        rows.append([record["task"], str(record["seed"]), f"{next(iter(base.values())):.1f}", *texts])
    if rows:
        title = "mean score (difference to the base policy)"
        print_table(("task", "seed", "base policy", *names), rows, title=title, left=2)


def next_step(sweep: Sweep) -> str:
    """One line: the command to give next."""
    plan, out = sweep.plan, shlex.quote(str(sweep.plan.folders.out))
    if any(sweep.status(job) != "finished" for job in plan.jobs):
        return "next: the same command runs what is missing, with --retry also the failed jobs"
    if "eval" in plan.config.stages:
        return f"next: python -m fastdwm.report paper {out}"
    job = plan.jobs[-1]
    bundle = shlex.quote(str(plan.folders.bundle(job, plan.source(job))))
    stages = {"collect": "train", "train": "tune", "tune": "eval"}
    where = f" --dataset {plan.config.dataset_of(job.task)}" if job.stage == "collect" else f" --bundle {bundle}"
    return f"next: python -m fastdwm.{stages[job.stage]} {job.task}{where}"
