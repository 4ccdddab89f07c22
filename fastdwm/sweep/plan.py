"""The plan of a sweep: its jobs, their dependencies, and the results that exist already."""

from dataclasses import dataclass, field
from typing import Any

from fastdwm import shipped
from fastdwm.checks import require
from fastdwm.data.minari import datasets_root
from fastdwm.files import read_json
from fastdwm.jobs import sweep as files
from fastdwm.jobs.identity import read_identity, refuse_other
from fastdwm.jobs.results import MAX_BYTES, Record
from fastdwm.sweep.config import STAGES, SweepConfig
from fastdwm.sweep.outcomes import is_there
from fastdwm.sweep.stages import NAMED, Command, Folders, SweepJob, commands
from fastdwm.tasks import find_task

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class Plan:
    """The jobs of a sweep and the state of its folder."""

    config: SweepConfig
    folders: Folders
    jobs: list[SweepJob]
    """all jobs, each after those that it depends on"""
    physics: dict[str, str]
    finished: dict[str, Record] = field(default_factory=dict)
    """records of finished jobs by name, including those of other tasks, seeds and stages"""
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def todo(self) -> list[SweepJob]:
        """The jobs that have neither finished nor failed, and do not depend on a failed one."""
        lost = set(self.failed)
        for job in self.jobs:
            lost |= {job.name} if lost.intersection(self.after(job)) else set()
        return [job for job in self.jobs if job.name not in self.finished and job.name not in lost]

    def after(self, job: SweepJob) -> tuple[str, ...]:
        """Names of the jobs of this sweep that the job depends on."""
        stages = STAGES[: STAGES.index(job.stage)]
        before = [SweepJob(job.task, 0 if stage == "collect" else job.seed, stage) for stage in stages]
        return tuple(other.name for other in before if other.stage in self.config.stages)

    def source(self, job: SweepJob) -> str:
        """Source of the job's bundle: `train`, `copy` or `shipped`, see `Folders.bundle`."""
        for stage, source in (("train", "train"), ("tune", "copy")):
            if self.has(SweepJob(job.task, job.seed, stage)):
                return source
        return "shipped"

    def commands(self, job: SweepJob) -> list[Command]:
        return commands(job, self.config, self.source(job), self.folders)

    def identity(self, job: SweepJob) -> dict[str, Any]:
        """Everything that the result of the job depends on, as far as it is known before the job runs."""
        named = [" ".join(line) for line in commands(job, self.config, self.source(job), NAMED)]
        identity = {"commands": named, "versions": self.physics}
        if job.stage == "eval" and "tuned" in self.config.variants:
            identity["tuned"] = self.has(SweepJob(job.task, job.seed, "tune"))
        return identity

    def has(self, job: SweepJob) -> bool:
        """Whether the job is part of this sweep, or finished in an earlier one in the same folder."""
        return job.stage in self.config.stages or job.name in self.finished


def make(config: SweepConfig) -> Plan:
    """Make the plan from the settings and the files in the folder, which stays unchanged.

    Raises InputError if the folder holds jobs with other settings, or if data or bundles are missing.
    """
    tasks, seeds = config.task_names, range(config.seeds)
    stages = [stage for stage in STAGES if stage in config.stages]
    # Task by task, so that the first results come early.
    jobs = [
        SweepJob(task, seed, stage)
        for task in tasks
        for seed in seeds
        for stage in stages
        if stage != "collect" or seed == 0
    ]
    folders = Folders(config.out, shipped.ROOT, config.policies or NAMED.policies)
    finished = files.read_jobs(config.out)
    failures = sorted((config.out / "failed").glob("*.json"))
    failed = {} if config.retry else {path.stem: read_json(path, MAX_BYTES) for path in failures}
    plan = Plan(config, folders, jobs, files.physics(), finished, failed)
    for record in finished.values():
        _refuse_other(record["identity"], {"versions": plan.physics}, plan)
    settings(plan)
    for job in jobs:
        plan.commands(job)
        if job.name in finished:
            _refuse_other(finished[job.name]["identity"], plan.identity(job), plan)
        elif job.name not in failed:
            _check_needs(job, plan)
    return plan


def settings(plan: Plan) -> dict[str, Any]:
    """Settings of all stages that have run in the folder, and of the new ones; InputError if a stage's have changed."""
    path = plan.folders.out / SETTINGS_FILE
    before = read_identity(path, "sweep") if path.exists() else {}
    now = before | {"versions": plan.physics} | plan.config.stage_settings()
    refuse_other(before, {name: now[name] for name in before}, plan.folders.out, "sweep")
    return now


def _refuse_other(saved: dict[str, Any], now: dict[str, Any], plan: Plan) -> None:
    """Raise InputError if a finished job was run with other values of the settings in `now`."""
    refuse_other({name: saved.get(name) for name in now}, now, plan.folders.out, "sweep")


def _check_needs(job: SweepJob, plan: Plan) -> None:
    """Raise InputError if a dataset or bundle is missing that no stage of the sweep makes."""
    if job.stage == "train":
        _check_data(job, plan)
    elif plan.source(job) != "train":
        require(job.seed == 0, f"seeds: without the stage train there is one bundle per task, got {plan.config.seeds}")
        plan.folders.bundle(job, "shipped") if find_task(job.task) is None else shipped.shipped_folder(job.task)


def _check_data(job: SweepJob, plan: Plan) -> None:
    dataset = plan.config.dataset_of(job.task)
    # A dataset that the user names is checked, and perhaps downloaded, by train.
    if plan.config.dataset is not None or dataset is None or plan.has(SweepJob(job.task, 0, "collect")):
        return
    where = f"dataset {dataset} is not in {datasets_root()}"
    require(is_there(dataset), f"{where}: run the stage collect too, or name another with --dataset")
