"""Print the plan of a sweep before it runs, and the table of its jobs afterwards."""

import shlex

from fastdwm.sweep.config import STAGES
from fastdwm.sweep.driver import Sweep, clock
from fastdwm.sweep.estimates import Estimates
from fastdwm.sweep.plan import Plan
from fastdwm.tables import print_table


def print_plan(plan: Plan, slots: int) -> None:
    """Print all jobs with their commands and estimates of time and memory.   slots: jobs that run at once.

    The estimates are guesses until a job of the stage has finished.
    """
    estimates, todo = Estimates(plan.finished.values()), {job.name for job in plan.todo}
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
    for job in plan.jobs:
        if failure := sweep.failed.get(job.name):
            print(f"{job.name} failed: {failure['error']} ({failure['file']})")
            for line in failure["log"]:
                print(f"    {line}")
