"""Training as one call from Python, with the settings and checkpoints of the command `train`."""

from dataclasses import replace
from pathlib import Path

from fastdwm.bundle import Bundle
from fastdwm.command import Progress
from fastdwm.data.dataset import Transitions
from fastdwm.files import prepare_folder, reserved
from fastdwm.tasks import Task
from fastdwm.train.__main__ import cloning, cpu, presets, run
from fastdwm.train.config import TrainConfig


def train_bundle(
    task: Task,
    transitions: Transitions,
    out: Path | str,
    config: TrainConfig | None = None,
    on_progress: Progress | None = None,
) -> Bundle:
    """Train policy, critics, reward model and world models on the transitions; returns the bundle, saved in OUT/bundle.

    transitions: from `fastdwm.data.load`. They and their simulator are trusted.
    out: folder of the run. The same call continues a run that was stopped, and returns a finished one at once.
    config: none: the preset `cpu` of the command, half an hour on a core.
    on_progress(stage, done, total): none: shown on stderr with the time left.
    Raises InputError for data that cannot be trained on, and for a folder that holds another run.
    """
    start = presets()["cpu"]
    own = replace(start, rebrac=replace(start.rebrac, **cloning(task.name, task.action_dim)))
    config = config or cpu(task.name, start) or own
    config = replace(config, rebrac=config.rebrac.for_task(task), trust_env=True)
    folder = Path(out)
    prepare_folder(folder)
    with reserved(folder):
        return run(task, config, folder, transitions=transitions, on_progress=on_progress)
