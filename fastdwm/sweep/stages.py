"""The command lines of each stage: all that a cell does, and nothing that could not be done by hand."""

from dataclasses import dataclass
from pathlib import Path

from fastdwm.checks import require
from fastdwm.sweep.config import SweepConfig

Command = list[str]
EPISODES, TUNE_MINUTES = 50, 20
VARIANT_FLAGS = {"meanflow": ["--world", "meanflow"], "critic": ["--itpo.horizon", "0"], "drift": ["--control"]}
"""what departs from the default settings"""


@dataclass(frozen=True)
class Cell:
    """One stage of one training seed of a task."""

    task: str
    seed: int
    """of the training; data are collected once for all, as seed 0"""
    stage: str

    @property
    def run(self) -> str:
        """What the cells of one bundle share in their names."""
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

    def training(self, cell: Cell) -> Path:
        return self.out / "train" / cell.run

    def evaluations(self, cell: Cell) -> Path:
        return self.out / "eval" / cell.run

    def bundle(self, cell: Cell, source: str) -> Path:
        """source: `train`, of this sweep; `copy`, of the shipped one, which tune writes to; `shipped`."""
        if source == "shipped":
            return self.shipped / cell.task
        return self.training(cell) / "bundle" if source == "train" else self.out / "bundles" / cell.run


NAMED = Folders(Path("OUT"), Path("SHIPPED"), Path("POLICIES"))


def commands(cell: Cell, config: SweepConfig, source: str, folders: Folders) -> list[Command]:
    """To be run in turn; the first that fails ends the cell.   source: of the bundle, as in `Folders.bundle`."""
    if cell.stage == "collect":
        return [collect(cell, config, folders)]
    if cell.stage == "train":
        return [train(cell, config, folders)]
    bundle = folders.bundle(cell, source)
    if cell.stage == "tune":
        # What is shipped stays as it is.
        fetch = [["cp", "-rT", str(folders.shipped / cell.task), str(bundle)]] if source == "copy" else []
        return [*fetch, tune(cell, config, bundle, folders)]
    return [evaluate(cell, config, bundle, variant, folders) for variant in config.variants]


def collect(cell: Cell, config: SweepConfig, folders: Folders) -> Command:
    from fastdwm.collect.published import PUBLISHED

    require(cell.task in PUBLISHED, f"stages: no policies are published for {cell.task}, leave out collect")
    made = PUBLISHED[cell.task].arguments(folders.policies)
    return ["python", "-m", "fastdwm.collect", *made, "--workers", "1", *config.flags("collect")]


def train(cell: Cell, config: SweepConfig, folders: Folders) -> Command:
    dataset = config.dataset_of(cell.task)
    data = ["--dataset", dataset] if dataset else []
    where = ["--out", str(folders.training(cell)), "--seed", str(cell.seed), "--threads", "1"]
    return [*_python("train", cell.task), *data, *where, *config.flags("train")]


def tune(cell: Cell, config: SweepConfig, bundle: Path, folders: Folders) -> Command:
    given = ["--bundle", str(bundle), "--minutes", str(TUNE_MINUTES), "--out", str(folders.out / "tune" / cell.run)]
    return [*_python("tune", cell.task), *given, *config.flags("tune")]


def evaluate(cell: Cell, config: SweepConfig, bundle: Path, variant: str, folders: Folders) -> Command:
    preset = "tuned" if variant == "tuned" else "default"
    out = ["--out", str(folders.evaluations(cell) / variant)]
    settings = ["--preset", preset, "--bundle", str(bundle), "--episodes", str(EPISODES)]
    settings += [*VARIANT_FLAGS.get(variant, []), *out]
    return [*_python("eval", cell.task), *settings, *config.flags("eval")]


def _python(command: str, task: str) -> Command:
    return ["python", "-m", f"fastdwm.{command}", task]
