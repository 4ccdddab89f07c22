"""The command lines of each stage. A job runs nothing but these commands."""

from dataclasses import dataclass
from pathlib import Path

from fastdwm.checks import require
from fastdwm.measure.record import output_name
from fastdwm.shipped import bundle_of, is_bundle
from fastdwm.sweep.config import SweepConfig
from fastdwm.tasks import find_task, name_of

Command = list[str]
EPISODES, TUNE_MINUTES = 50, 20
VARIANT_FLAGS = {"meanflow": ["--world", "meanflow"], "critic": ["--itpo.horizon", "0"], "drift": ["--control"]}
"""flags of the variants that depart from the default settings"""


@dataclass(frozen=True)
class SweepJob:
    """One stage of one training seed of a task."""

    task: str
    seed: int
    """training seed; data are collected once for all seeds, as seed 0"""
    stage: str

    @property
    def training(self) -> str:
        """Name of the training, with which the names of its jobs begin."""
        name = output_name(self.task, Path(self.task)) if is_bundle(self.task) else name_of(self.task)
        return f"{name}-s{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.training}-{self.stage}"


@dataclass(frozen=True)
class Folders:
    """Folders of the commands. For the identity of a job, placeholders stand here, which are the same everywhere."""

    out: Path
    shipped: Path
    policies: Path

    def training(self, job: SweepJob) -> Path:
        return self.out / "train" / job.training

    def evaluations(self, job: SweepJob) -> Path:
        return self.out / "eval" / job.training

    def bundle(self, job: SweepJob, source: str) -> Path:
        """Folder of the bundle.   source: `train`, trained in this sweep; `copy`, of the shipped bundle, for tune to
        write to; or `shipped`."""
        if source == "shipped":
            return self.shipped / job.task if find_task(job.task) else bundle_of(job.task)
        return self.training(job) / "bundle" if source == "train" else self.out / "bundles" / job.training


NAMED = Folders(Path("OUT"), Path("SHIPPED"), Path("POLICIES"))


def commands(job: SweepJob, config: SweepConfig, source: str, folders: Folders) -> list[Command]:
    """Commands to run in turn; the job fails with the first that fails.   source: as in `Folders.bundle`."""
    if job.stage == "collect":
        return [collect(job, config, folders)]
    if job.stage == "train":
        return [train(job, config, folders)]
    bundle = folders.bundle(job, source)
    if job.stage == "tune":
        # Tune a copy, because shipped bundles stay as they are.
        fetch = [["cp", "-rT", str(folders.bundle(job, "shipped")), str(bundle)]] if source == "copy" else []
        return [*fetch, tune(job, config, bundle, folders)]
    return [evaluate(job, config, bundle, variant, folders) for variant in config.variants]


def collect(job: SweepJob, config: SweepConfig, folders: Folders) -> Command:
    from fastdwm.collect.published import PUBLISHED

    require(job.task in PUBLISHED, f"stages: no policies are published for {job.task}, leave out collect")
    arguments = PUBLISHED[job.task].arguments(folders.policies)
    return ["python", "-m", "fastdwm.collect", *arguments, "--workers", "1", *config.flags("collect")]


def train(job: SweepJob, config: SweepConfig, folders: Folders) -> Command:
    dataset = config.dataset_of(job.task)
    data = ["--dataset", dataset] if dataset else []
    where = ["--out", str(folders.training(job)), "--seed", str(job.seed), "--threads", "1"]
    return [*_python("train", job.task), *data, *where, *config.env_flags(), *config.flags("train")]


def tune(job: SweepJob, config: SweepConfig, bundle: Path, folders: Folders) -> Command:
    settings = [
        "--bundle",
        str(bundle),
        "--minutes",
        str(TUNE_MINUTES),
        "--out",
        str(folders.out / "tune" / job.training),
    ]
    return [*_python("tune", _named(job, bundle)), *settings, *config.env_flags(), *config.flags("tune")]


def evaluate(job: SweepJob, config: SweepConfig, bundle: Path, variant: str, folders: Folders) -> Command:
    preset = "tuned" if variant == "tuned" else "default"
    out = ["--out", str(folders.evaluations(job) / variant)]
    settings = ["--preset", preset, "--bundle", str(bundle), "--episodes", str(EPISODES)]
    settings += [*VARIANT_FLAGS.get(variant, []), *out]
    return [*_python("eval", _named(job, bundle)), *settings, *config.env_flags(), *config.flags("eval")]


def _named(job: SweepJob, bundle: Path) -> str:
    """The task of a command that gets a bundle: its name, or this bundle for a task that is a bundle's folder."""
    return str(bundle) if is_bundle(job.task) else job.task


def _python(command: str, task: str) -> Command:
    return ["python", "-m", f"fastdwm.{command}", task]
