"""One run of the benchmark of base policies: one setting of the decision on one base policy, and its file.

A file is named by everything that its numbers depend on (weights, settings, seeds, versions), so that a killed command
resumes, commands share their runs, and changed settings run anew. The code is not part of the name, because most
changes of code change no number; the record says which code it was.
"""

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fastdwm import command
from fastdwm.checks import conforms, from_json, require
from fastdwm.config import ITPOConfig
from fastdwm.engines.interface import Job, run_all
from fastdwm.engines.processes import Processes
from fastdwm.files import read_json, strict, write_json
from fastdwm.jobs import results
from fastdwm.jobs.identity import digest
from fastdwm.jobs.results import Record

if TYPE_CHECKING:
    from fastdwm.bundle import Bundle
    from fastdwm.measure.simulate import Run

# Increase when the meaning of a cell's file changes.
FORMAT = 2
DIAGNOSE_EVERY = 20
MAX_LIST_BYTES = 2**20
VERSIONS = ("torch", "mujoco", "gymnasium")


@dataclasses.dataclass(frozen=True)
class BasePolicy:
    """A trained policy at one moment of its training; an entry of the list, paths from the list's folder."""

    task: str
    moment: str
    bundle: str
    """folder of the bundle"""
    checkpoint: str | None = None
    """policy and critics of an earlier moment, from `train --keep-checkpoints`; none: the bundle's own"""
    critics: str | None = None
    """such a file from a training on a tenth of the data, for the damage critic-tenth; none: this damage is skipped"""
    dataset: str | None = None
    """dataset on which damages are calibrated; none: the bundle's training data"""

    @property
    def name(self) -> str:
        """Name in flags and files."""
        return f"{self.task}-{self.moment}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings of the decision under a name."""

    name: str
    itpo: ITPOConfig
    factor: float = 1.0
    """factor on the bundle's maximum deviation"""
    control: bool = False
    """whether the control runs instead of ITPO"""


BASE = Setting("base", ITPOConfig(inner_steps=0))


@dataclasses.dataclass(frozen=True)
class Cell:
    """Episodes on consecutive environment seeds, all in one batch."""

    policy: BasePolicy
    setting: Setting
    world: str
    """world model of the imagination"""
    first_seed: int
    episodes: int
    max_steps: int | None = None

    @property
    def seeds(self) -> list[int]:
        """Environment seeds of the episodes."""
        return [self.first_seed + i for i in range(self.episodes)]


def read_policies(path: Path) -> list[BasePolicy]:
    """Read a JSON list of objects with the fields of `BasePolicy`; task, moment and bundle are required.

    Raises InputError for anything else and for duplicate names.
    """
    entries = read_json(path, MAX_LIST_BYTES)
    require(isinstance(entries, list) and entries, f"{path}: expected a list of base policies")
    policies = []
    for entry in entries:
        require(isinstance(entry, dict), f"{path}: expected an object for each base policy, got {entry!r}")
        optional = {name: None for name in ("checkpoint", "critics", "dataset")}
        policies.append(_in_folder(from_json(BasePolicy, optional | entry), path.parent))
    names = [policy.name for policy in policies]
    for name in names:
        require(
            re.fullmatch(r"[\w.-]+", name) is not None,
            f"{path}: expected letters, digits, '.', '_' and '-', got {name!r}",
        )
        require(names.count(name) == 1, f"{path}: {name} stands in it twice")
    return policies


def _in_folder(policy: BasePolicy, folder: Path) -> BasePolicy:
    """The policy with paths relative to the folder of the list."""
    paths = {name: getattr(policy, name) for name in ("bundle", "checkpoint", "critics")}
    return dataclasses.replace(policy, **{name: str(folder / value) for name, value in paths.items() if value})


def read_settings(path: Path) -> list[Setting]:
    """Read named settings from a JSON file: {"NAME": {FIELD of ITPOConfig: value, ..}, ..}.

    Other fields have their defaults; "factor" is a factor on the bundle's maximum deviation; "control": true, the
    control.
    Raises InputError for anything else.
    """
    named = read_json(path, MAX_LIST_BYTES)
    valid = isinstance(named, dict) and all(isinstance(values, dict) for values in named.values())
    require(valid, f"{path}: expected an object of objects, settings by name")
    kinds = {field.name: field.type for field in dataclasses.fields(ITPOConfig)} | {"factor": float, "control": bool}
    for name, values in named.items():
        for key, value in values.items():
            require(key in kinds, f"{path}: {name}: ITPOConfig has no {key!r}")
            require(conforms(value, kinds[key]), f"{path}: {name}: {key} cannot be {value!r}")
    return [_setting(name, **values) for name, values in named.items()]


def _setting(name: str, factor: float = 1.0, control: bool = False, **itpo: Any) -> Setting:
    return Setting(name, ITPOConfig(**itpo), factor, control)


@cache
def load(policy: BasePolicy) -> "Bundle":
    """Load the bundle with the policy of that moment; raises InputError for a bundle of another task."""
    from fastdwm.measure.bundle import load_for

    bundle = load_for(policy.task, Path(policy.bundle))
    return bundle if policy.checkpoint is None else bundle.with_policy(policy.checkpoint)


def identity(cell: Cell) -> Record:
    """Everything except the code that the numbers depend on; for the base policy, only what it uses."""
    from fastdwm.machine import package_versions
    from fastdwm.weights import pack_tensors

    bundle, versions = load(cell.policy), package_versions()
    groups, settings = {"policy": bundle.policy}, {"itpo": {"inner_steps": 0}}
    if cell.setting.itpo.inner_steps > 0:
        require(cell.world in bundle.worlds, f"world: {cell.policy.name} has {', '.join(bundle.worlds)}")
        world = bundle.worlds[cell.world]
        groups |= {"critics": bundle.critics, "reward": bundle.reward, "statistics": bundle.statistics}
        groups |= {"world": world.params}
        # Settings that are none are left out, so that a setting added later keeps the names of old files.
        itpo = {name: x for name, x in dataclasses.asdict(cell.setting.itpo).items() if x is not None}
        settings = {"itpo": itpo, "discount": bundle.discount, "max_deviation": bundle.max_deviation}
        settings |= {"factor": cell.setting.factor, "control": cell.setting.control}
        settings |= {"world": cell.world, "world_config": dataclasses.asdict(world.config)}
    return strict({
        "format": FORMAT,
        "weights": sha256(pack_tensors(groups)).hexdigest(),
        "task": bundle.task.record(),
        "seeds": cell.seeds,
        "max_steps": cell.max_steps,
        **settings,
        "versions": {name: versions[name] for name in VERSIONS},
    })  # fmt: skip


def path_of(cell: Cell, folder: Path) -> Path:
    """File of the run."""
    return folder / f"{cell.policy.name}-{digest(identity(cell))[:16]}.json"


def read(cell: Cell, folder: Path) -> Record | None:
    """Record of the run; none if it is not finished."""
    path = path_of(cell, folder)
    return results.read(path, "bench", {"identity": dict}) if path.exists() else None


def code() -> str:
    """Digest of the code of the update rule, independent of layout and comments."""
    root = Path(__file__).parent.parent
    folders = (root / "fastdwm" / "itpo", root / "kernels" / "update", root / "kernels" / "rollout")
    rule = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    files = [root / "fastdwm" / "config.py", *rule]
    trees = (ast.parse(path.read_text()) for path in files)
    return sha256("".join(map(ast.dump, trees)).encode()).hexdigest()[:16]


def forget(cells: Iterable[Cell], folder: Path) -> None:
    """Remove the files of runs that used other code."""
    for cell in cells:
        record = read(cell, folder)
        if record is not None and record["code"] != code():
            path_of(cell, folder).unlink()


def run_cell(cell: Cell, path: Path) -> None:
    """Run all episodes in one batch and write the file when the last one has ended."""
    from provenance import git

    from fastdwm.agent import Agent
    from fastdwm.measure.control import Drift
    from fastdwm.measure.simulate import Predictions, run_episodes

    command.set_up_torch(1, "cpu")
    start, bundle, itpo = perf_counter(), load(cell.policy), cell.setting.itpo
    # The base policy uses no world model.
    world = cell.world if itpo.inner_steps > 0 else next(iter(bundle.worlds))
    if itpo.lacks_bound:
        itpo = dataclasses.replace(itpo, max_deviation=cell.setting.factor * bundle.bound)
    drifts = cell.setting.control
    agent = Drift(bundle, itpo.max_deviation) if drifts else Agent.of(bundle, itpo, world=world, seed=cell.first_seed)
    predictions = Predictions(itpo.horizon, bundle.discount, bundle.task.reward_scale, DIAGNOSE_EVERY)
    run = run_episodes(agent, bundle.task.env, cell.seeds, max_steps=cell.max_steps, predictions=predictions)
    record = {
        "policy": dataclasses.asdict(cell.policy),
        "setting": cell.setting.name,
        "world": cell.world,
        "identity": identity(cell),
        "commit": git("describe", "--always", "--dirty", "--abbrev=10"),
        "code": code(),
        "wall_s": perf_counter() - start,
    }
    write_json(path, record | summary(run, bundle))


def summary(run: "Run", bundle: "Bundle") -> Record:
    """Results of the episodes, as a run's file holds them.

    ms_per_decision: mean time of a decision when the episodes decide together.
    diagnostics: the agent's diagnostics, averaged over the run and over each episode.
    """
    from fastdwm.eval.summary import mean_diagnostics

    return {
        "ms_per_decision": 1e3 * run.decision_s,
        "diagnostics": mean_diagnostics(run.episodes),
        "episodes": [
            episode.record(bundle.task) | {"diagnostics": mean_diagnostics([episode])} for episode in run.episodes
        ],
    }


def run_cells(cells: Iterable[Cell], folder: Path, workers: int, on_progress: Callable[[int, int], None]) -> None:
    """Run the unfinished cells in `workers` processes of one thread each; raises the first error.

    on_progress(done, total).
    """
    by_path = {path_of(cell, folder): cell for cell in cells}
    finished = [path.stem for path in by_path if path.exists()]
    _compile(cell for path, cell in by_path.items() if path.stem not in finished)
    jobs = [Job(path.stem, run_cell, (cell, path)) for path, cell in by_path.items()]
    run_all(Processes(workers), jobs, on_progress, finished=finished)


def _compile(cells: Iterable[Cell]) -> None:
    """Compile the CPU kernels once for all processes, unless they are cached."""
    from fastdwm.agent import Agent

    for cell in cells:
        if cell.setting.itpo.inner_steps > 0:
            Agent.of(load(cell.policy), cell.setting.itpo, world=cell.world)
            return
