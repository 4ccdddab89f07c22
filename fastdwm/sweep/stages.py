"""The command lines of each stage: all that a job does, and nothing that could not be done by hand."""

from dataclasses import dataclass
from pathlib import Path

from fastdwm.checks import require
from fastdwm.sweep.config import SweepConfig

Command = list[str]
EPISODES, TUNE_MINUTES = 50, 20
VARIANT_FLAGS = {"meanflow": ["--world", "meanflow"], "critic": ["--itpo.horizon", "0"], "drift": ["--control"]}
"""what departs from the default settings"""


@dataclass(frozen=True)
class SweepJob:
    """One stage of one training seed of a task."""

    task: str
    seed: int
    """of the training; data are collected once for all, as seed 0"""
    stage: str

    @property
    def run(self) -> str:
        """What the jobs of one bundle share in their names."""
        return f"{self.task}-s{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.run}-{self.stage}"


@dataclass(frozen=True)
class Folders:
    """Where things lie on a machine. What identifies an outcome has placeholders here."""

    out: Path
    shipped: Path
    policies: Path

    def training(self, job: SweepJob) -> Path:
        return self.out / "train" / job.run

    def evaluations(self, job: SweepJob) -> Path:
        return self.out / "eval" / job.run

    def bundle(self, job: SweepJob, source: str) -> Path:
        """source: `train`, of this sweep; `copy`, of the shipped one, which tune writes to; `shipped`."""
        if source == "shipped":
            return self.shipped / job.task
        return self.training(job) / "bundle" if source == "train" else self.out / "bundles" / job.run


NAMED = Folders(Path("OUT"), Path("SHIPPED"), Path("POLICIES"))


def commands(job: SweepJob, config: SweepConfig, source: str, folders: Folders) -> list[Command]:
    """To be run in turn; the first that fails ends the job.   source: of the bundle, as in `Folders.bundle`."""
    if job.stage == "collect":
        return [collect(job, config, folders)]
    if job.stage == "train":
        return [train(job, config, folders)]
    bundle = folders.bundle(job, source)
    if job.stage == "tune":
        # What is shipped stays as it is.
        fetch = [["cp", "-rT", str(folders.shipped / job.task), str(bundle)]] if source == "copy" else []
        return [*fetch, tune(job, config, bundle, folders)]
    return [evaluate(job, config, bundle, variant, folders) for variant in config.variants]


def collect(job: SweepJob, config: SweepConfig, folders: Folders) -> Command:
    from fastdwm.collect.published import PUBLISHED

    require(job.task in PUBLISHED, f"stages: no policies are published for {job.task}, leave out collect")
    made = PUBLISHED[job.task].arguments(folders.policies)
    return ["python", "-m", "fastdwm.collect", *made, "--workers", "1", *config.flags("collect")]


def train(job: SweepJob, config: SweepConfig, folders: Folders) -> Command:
    dataset = config.dataset_of(job.task)
    data = ["--dataset", dataset] if dataset else []
    where = ["--out", str(folders.training(job)), "--seed", str(job.seed), "--threads", "1"]
    return [*_python("train", job.task), *data, *where, *config.flags("train")]


def tune(job: SweepJob, config: SweepConfig, bundle: Path, folders: Folders) -> Command:
    given = ["--bundle", str(bundle), "--minutes", str(TUNE_MINUTES), "--out", str(folders.out / "tune" / job.run)]
    return [*_python("tune", job.task), *given, *config.flags("tune")]


def evaluate(job: SweepJob, config: SweepConfig, bundle: Path, variant: str, folders: Folders) -> Command:
    preset = "tuned" if variant == "tuned" else "default"
    out = ["--out", str(folders.evaluations(job) / variant)]
    settings = ["--preset", preset, "--bundle", str(bundle), "--episodes", str(EPISODES)]
    settings += [*VARIANT_FLAGS.get(variant, []), *out]
    return [*_python("eval", job.task), *settings, *config.flags("eval")]


def _python(command: str, task: str) -> Command:
    return ["python", "-m", f"fastdwm.{command}", task]
