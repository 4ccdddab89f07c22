"""The settings of a sweep. Pure data."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastdwm.checks import POSITIVE, require
from fastdwm.engines.config import EngineConfig
from fastdwm.env_config import EnvConfig
from fastdwm.errors import InputError
from fastdwm.jobs.sweep import VARIANTS
from fastdwm.shipped import is_bundle
from fastdwm.tasks import find_task, get_task, name_of

STAGES = ("collect", "train", "tune", "eval")
# Levels with published results of generative models come first.
LEVELS = ("medium", "medium-replay", "medium-expert", "random", "expert", "full-replay")
LOCOMOTION = tuple(f"{robot}-{level}" for level in LEVELS for robot in ("hopper", "halfcheetah", "walker2d"))


@dataclass(frozen=True)
class SweepConfig(EngineConfig, EnvConfig):
    """Run all stages for all tasks and training seeds. Each job runs a few commands that could be run by hand."""

    tasks: tuple[str, ...] = ("locomotion",)
    """names of tasks; locomotion stands for the 18 tasks of hopper, halfcheetah and walker2d. A task may also be a
    Minari id, the folder of a bundle, or a name of your own beside --env and --dataset"""
    seeds: Annotated[int, POSITIVE] = 1
    """trainings per task, with the training seeds 0, 1, ...; several show how much results vary between trainings"""
    stages: tuple[str, ...] = ("train", "tune", "eval")
    """stages to run: some of collect, train, tune, eval. Without collect, train needs the dataset deepope/ENV/LEVEL-v0;
    without train, the other stages use the bundle shipped for the task"""
    out: Path = Path("results/sweep")
    """folder of the sweep, from which a stopped sweep resumes; the datasets are in Minari's folder"""
    workers: Annotated[int | None, POSITIVE] = None
    """jobs that run at once; none: one per CPU, or as many as fit into the Ray cluster. Reduce it if memory is short"""
    plan: bool = False
    """print the jobs with their commands and estimates of time and memory, and run nothing"""
    retry: bool = False
    """run failed jobs again; by default they stay failed"""
    policies: Path | None = None
    """folder of the published policies; required by the stage collect"""
    dataset: str | None = None
    """Minari id or D4RL file to train on, in which {task} stands for the task's name; none: deepope/ENV/LEVEL-v0"""
    variants: tuple[str, ...] = VARIANTS
    """settings to evaluate against the base policy. default: the default settings; tuned: those that tune has chosen;
    meanflow: the world model meanflow; critic: the critic alone (H = 0); drift: the control, which moves actions as far
    in a random direction"""
    collect_flags: str = ""
    """further flags for all collect commands, in one quoted string, such as "--transitions 1000" """
    train_flags: str = ""
    """further flags for all train commands, such as "--rebrac.updates 1000" """
    tune_flags: str = ""
    """further flags for all tune commands, such as "--minutes 5" """
    eval_flags: str = ""
    """further flags for all eval commands, such as "--episodes 10" """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, options in (("stages", STAGES), ("variants", VARIANTS)):
            values = getattr(self, name)
            require(len(values) > 0, f"{name}: expected some of {', '.join(options)}")
            for value in values:
                require(value in options, f"{name}: expected some of {', '.join(options)}, got {value!r}")
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
        """The tasks in the order in which they run, without duplicates; raises InputError for an unknown one."""
        names = [name for entry in self.tasks for name in (LOCOMOTION if entry == "locomotion" else (entry,))]
        return [self._task(name) for name in dict.fromkeys(names)]

    def _task(self, typed: str) -> str:
        """The task as `train` takes it; InputError for a text that is no task."""
        if own := find_task(typed):
            return own.name
        known = is_bundle(typed) or "/" in typed or self.dataset is not None or self.env is not None
        return typed if known and (is_bundle(typed) or name_of(typed)) else get_task(typed).name

    def env_flags(self) -> list[str]:
        """The flags of the simulator, for the commands of all stages but collect."""
        flags = [] if self.env is None else ["--env", self.env]
        flags += [] if self.env_kwargs == "{}" else ["--env-kwargs", self.env_kwargs]
        return flags + (["--trust-env"] if self.trust_env else [])

    def flags(self, stage: str) -> list[str]:
        """The further flags of a stage."""
        text = getattr(self, f"{stage}_flags")
        try:
            return shlex.split(text)
        except ValueError as error:
            raise InputError(f"{stage}_flags: {error}, got {text!r}") from None

    def stage_settings(self) -> dict[str, Any]:
        """The settings, apart from task and seed, that the result of each stage depends on."""
        settings: dict[str, dict[str, Any]] = {name: {"flags": self.flags(name)} for name in STAGES}
        settings["train"]["dataset"] = self.dataset
        settings["eval"]["variants"] = list(self.variants)
        return {name: settings[name] for name in STAGES if name in self.stages}

    def dataset_of(self, task: str) -> str | None:
        """Minari id or file to train on; none: the dataset that train chooses."""
        if self.dataset is not None:
            return self.dataset.replace("{task}", task)
        if find_task(task) is None:
            return None
        robot, _, level = task.partition("-")
        return f"deepope/{robot}/{level}-v0"
