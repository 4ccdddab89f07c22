"""The settings of a sweep. Pure data."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastdwm.checks import POSITIVE, require
from fastdwm.engines.config import EngineConfig
from fastdwm.errors import InputError
from fastdwm.jobs.sweep import VARIANTS
from fastdwm.tasks import TASKS, get_task

STAGES = ("collect", "train", "tune", "eval")
# Those with published results of generative models first, then the other levels.
LEVELS = ("medium", "medium-replay", "medium-expert", "random", "expert", "full-replay")
LOCOMOTION = tuple(f"{robot}-{level}" for level in LEVELS for robot in ("hopper", "halfcheetah", "walker2d"))


@dataclass(frozen=True)
class SweepConfig(EngineConfig):
    """Tasks x training seeds x stages, each job a few commands that could be given by hand."""

    tasks: tuple[str, ...] = ("locomotion",)
    """names of tasks; locomotion: the 18 of hopper, halfcheetah and walker2d"""
    seeds: Annotated[int, POSITIVE] = 1
    """trainings per task, with the training seeds 0, 1, ..."""
    stages: tuple[str, ...] = ("train", "tune", "eval")
    """some of collect, train, tune, eval; what a stage needs of one that is left out has to be there: the dataset
    deepope/ENV/LEVEL-v0, or the bundle that is shipped for the task"""
    out: Path = Path("results/sweep")
    """folder of everything but the datasets, which lie in Minari's; a sweep that was stopped goes on there"""
    workers: Annotated[int | None, POSITIVE] = None
    """jobs that run at once; none: one for each CPU, with Ray as many as the cluster has room for"""
    plan: bool = False
    """print the jobs, their commands and estimates of time and memory, and run nothing"""
    retry: bool = False
    """run jobs anew that failed before"""
    policies: Path | None = None
    """folder of the published policies, for collect"""
    dataset: str | None = None
    """Minari id or D4RL file to train on, {task} stands for the task's name; none: deepope/ENV/LEVEL-v0"""
    variants: tuple[str, ...] = VARIANTS
    """what is evaluated: the default settings, those that tune has chosen, the default with the world model meanflow,
    with the critic alone (H = 0), and the control, which drifts as far in a meaningless direction"""
    collect_flags: str = ""
    """further flags of every collect, in one quoted string, such as "--transitions 1000"; so are the next three"""
    train_flags: str = ""
    """of every train, such as "--rebrac.updates 1000" """
    tune_flags: str = ""
    """of every tune, such as "--minutes 5" """
    eval_flags: str = ""
    """of every eval, such as "--episodes 10" """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("stages", STAGES), ("variants", VARIANTS)):
            came = getattr(self, name)
            require(len(came) > 0, f"{name}: expected some of {', '.join(known)}")
            for value in came:
                require(value in known, f"{name}: expected some of {', '.join(known)}, got {value!r}")
        require(len(self.tasks) > 0, "tasks: expected locomotion or names of tasks")
        for stage in STAGES:
            self.flags(stage)
        self._check_data()

    def _check_data(self) -> None:
        policies = "collect" not in self.stages or self.policies is not None
        require(policies, "policies: the stage collect needs the folder of the published policies")
        both = "collect" in self.stages and self.dataset is not None
        require(not both, f"dataset: expected none with the stage collect, got {self.dataset!r}")
        apart = self.dataset is None or "{task}" in self.dataset or len(self.task_names) == 1
        require(apart, f"dataset: expected {{task}} in it, with several tasks, got {self.dataset!r}")

    @property
    def task_names(self) -> list[str]:
        """In the order in which they are run, none twice; raises InputError for an unknown one."""
        names = [name for given in self.tasks for name in (LOCOMOTION if given == "locomotion" else (given,))]
        return [get_task(name).name for name in dict.fromkeys(names)]

    def flags(self, stage: str) -> list[str]:
        """The further flags of a stage."""
        text = getattr(self, f"{stage}_flags")
        try:
            return shlex.split(text)
        except ValueError as error:
            raise InputError(f"{stage}_flags: {error}, got {text!r}") from None

    def stage_settings(self) -> dict[str, Any]:
        """What the outcome of each stage depends on, apart from task and seed."""
        settings: dict[str, dict[str, Any]] = {name: {"flags": self.flags(name)} for name in STAGES}
        settings["train"]["dataset"] = self.dataset
        settings["eval"]["variants"] = list(self.variants)
        return {name: settings[name] for name in STAGES if name in self.stages}

    def dataset_of(self, task: str) -> str | None:
        """Minari id or file; none: what train takes by itself."""
        if self.dataset is not None:
            return self.dataset.replace("{task}", task)
        if TASKS[task].env.id.startswith("AntMaze"):
            return None
        robot, _, level = task.partition("-")
        return f"deepope/{robot}/{level}-v0"
