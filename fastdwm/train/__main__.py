"""The command `python -m fastdwm.train TASK`, which trains a bundle on a dataset."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdwm import command
from fastdwm.checks import require
from fastdwm.config import world_title
from fastdwm.errors import InputError
from fastdwm.files import prepare_folder, reserved, strict, write_json
from fastdwm.jobs.identity import read_identity, refuse_other
from fastdwm.models.config import DiffusionConfig, MeanFlowConfig, MLPConfig, ReBRACConfig, RewardConfig
from fastdwm.shipped import RUNS
from fastdwm.tables import print_table
from fastdwm.tasks import TASKS, Task, find_task
from fastdwm.train.config import TrainConfig
from fastdwm.train.own import read_own

if TYPE_CHECKING:
    from fastdwm.bundle import Bundle
    from fastdwm.data.dataset import Transitions
    from fastdwm.importers.imported import Imported

# A run is resumed only with the same settings; these may differ, since they do not change the weights.
IDENTITY_FILE = "config.json"
FREE = ("out", "log_every", "save_every", "keep_checkpoints", "eval_episodes", "tensorboard", "threads", "device")
FREE += ("env", "env_kwargs", "trust_env", "ref_scores", "limits")

OWN = ("ref_min_score", "ref_max_score", "limits")
"""settings of a task that flags can set"""

VALUES = {
    "critics": "the critics",
    "fqe": "fitted Q evaluation",
    "data": "the data's own episodes (discounted return)",
}


# Weight of behaviour cloning per coordinate of the action, by the level of the policies that recorded the data: the
# more alike these policies were, the less the data tell about other actions. From fastdwm/train/README.md.
CLONING = {
    "medium-expert": 1.2,
    "medium-replay": 0.3,
    "full-replay": 0.3,
    "random": 0.3,
    "medium": 1.2,
    "expert": 1.2,
}
LEVEL = re.compile(rf"(?:^|[/-])({'|'.join(CLONING)})(?:-v\d+)?")


# ReBRAC on ants in mazes, from bench/results/antmaze.md: rewards are sparse, and a path has 200 to 500 steps.
ANTMAZE = {
    "updates": 200_000,
    "target_rate": 0.02,
    "discount": 0.99,
    "actor_bc_coef": 0.2,
    "critic_bc_coef": 0.0,
    "actor_lr": 1e-3,
    "critic_lr": 1e-3,
    "n_step": 20,
    "return_bound": True,
    "advantage_power": 6.0,
}


def presets() -> dict[str, TrainConfig]:
    """`cpu`: a good bundle in half an hour on a core.   `paper`: the paper's budget.

    The `cpu` preset departs from the paper where small budgets demand it: smaller batches and networks (the reward's is
    the smallest: half the width and one layer less do not increase its error), a target rate six times as high
    (otherwise the critics stay far below the returns), decaying learning rates (otherwise the score of the last policy
    depends on when training stops), and stronger behaviour cloning, by one rule for each level of the data.
    """
    width = (256, 256, 256)
    fit = {"batch_size": 512, "lr": 1e-3, "hidden": width}
    cpu = TrainConfig(
        rebrac=ReBRACConfig(updates=30_000, batch_size=256, lr_decay=True, target_rate=0.03),
        diffusion=DiffusionConfig(updates=20_000, denoise_steps=5, target="x0", **fit),
        meanflow=MeanFlowConfig(updates=30_000, **fit),
        mlp=MLPConfig(updates=10_000, **fit),
        reward=RewardConfig(updates=20_000, **fit | {"hidden": (128, 128)}),
    )
    return {"cpu": cpu, "paper": TrainConfig()}


def cpu(task_name: str, config: TrainConfig) -> TrainConfig | None:
    """The preset `cpu` for a task: with the behaviour cloning of its level, or for sparse rewards; None for a name that
    is no task."""
    task, start = find_task(task_name), presets()["cpu"]
    if task is None:
        return None
    if task.ends_at_success:
        return dataclasses.replace(start, rebrac=dataclasses.replace(start.rebrac, **ANTMAZE))
    return dataclasses.replace(start, rebrac=dataclasses.replace(start.rebrac, **cloning(task.name, task.action_dim)))


def cloning(name: str, action_dim: int) -> dict[str, float]:
    """Weights of behaviour cloning by the level in the name of the task or dataset; without one, the stronger."""
    level = LEVEL.fullmatch(name) or LEVEL.search(name)
    weight = CLONING[level[1]] if level else max(CLONING.values())
    return {"actor_bc_coef": round(weight / action_dim, 6), "critic_bc_coef": 0.01}


def main(task_name: str, config: TrainConfig) -> None:
    """Train policy, critics, world model and reward model on a dataset, and write them as a bundle.

    If the run is killed, the same command continues from its last checkpoint.
    """
    from fastdwm.data.task import resolve

    task = resolve(task_name, config, config.dataset, config.ref_scores, config.limits)
    if find_task(task.name) is None:
        task = dataclasses.replace(task, **cloning(task.name, task.action_dim))
    imported, config = read_own(task, config)
    config = dataclasses.replace(config, rebrac=config.rebrac.for_task(task))
    folder = config.out or RUNS / task.name
    prepare_folder(folder)
    with reserved(folder):
        bundle = run(task, config, folder, imported=imported)
    print_summary(bundle)
    print(f"bundle: {folder / 'bundle'}")


def run(
    task: Task,
    config: TrainConfig,
    folder: Path,
    *,
    transitions: Transitions | None = None,
    on_progress: command.Progress | None = None,
    imported: Imported | None = None,
) -> Bundle:
    """Train in the folder, or resume there, and return the bundle as read back from it.

    transitions: none: those of config.dataset.   on_progress: none: progress is shown on stderr.
    imported: a policy to keep, with critics or without.
    """
    identity, saved = identify(task, config, imported), saved_identity(folder)
    if saved is not None:
        refuse_other({name: value for name, value in saved.items() if name != "data"}, identity, folder, "training")
    command.set_up_torch(config.threads, config.device)

    from fastdwm.bundle import Bundle
    from fastdwm.data import dataset as data
    from fastdwm.data import replay
    from fastdwm.train.recipe import prepare, train

    on_line = event_writer(folder) if config.tensorboard else None
    transitions = transitions or data.load(task, config.dataset, config.trust)
    prepare(task, transitions, config)
    replay.check(transitions, config.trust_env)
    identity["data"] = strict({"fingerprint": transitions.fingerprint, "env": transitions.env.record()})
    check_data(saved, identity["data"], transitions.source, folder)
    # Written only now: an attempt without usable data must not fix the settings of the next.
    write_json(folder / IDENTITY_FILE, identity)
    with nullcontext(on_progress) if on_progress else command.progress() as show:
        bundle = train(task, transitions, config, folder, show, on_line, imported)
    bundle.save(folder / "bundle")
    return Bundle.load(folder / "bundle", config.trust)


def identify(task: Task, config: TrainConfig, imported: Imported | None) -> dict[str, Any]:
    """The settings that identify the run, and its policy if it keeps one, as JSON values."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE}
    if imported is not None:
        settings["policy_sha256"] = imported.fingerprint
    # The settings of the tasks in TASKS follow from their name.
    own = {} if task == TASKS.get(task.name) else {"own": {name: task.record()[name] for name in OWN}}
    return strict({"task": task.name} | settings | own)


def saved_identity(folder: Path) -> dict[str, Any] | None:
    """Settings that identify the run in the folder; None if nothing has been trained there yet.

    Raises InputError if their file is damaged.
    """
    path = folder / IDENTITY_FILE
    begun = {other.name for other in folder.iterdir()} - {IDENTITY_FILE, f".{IDENTITY_FILE}.tmp", "tensorboard"}
    return read_identity(path, "training") if begun and path.exists() else None


def check_data(saved: dict[str, Any] | None, data: dict[str, Any], source: str, folder: Path) -> None:
    """Raise InputError if the run in the folder was trained on other data; older runs do not record their data."""
    changed = f"{source} is not what the run in {folder} was trained on: it has changed since"
    same = (saved or {}).get("data") in (None, data)
    require(same, f"dataset: {changed}; give it back, or give another --out")


def event_writer(folder: Path) -> Callable[[str, dict[str, float]], None]:
    """A function that writes a line of metrics as TensorBoard events; raises InputError without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("tensorboard: the package is not installed; pip install 'fastdwm[tensorboard]'") from None
    writer = SummaryWriter(folder / "tensorboard")

    def write(part: str, line: dict[str, float]) -> None:
        for name, value in line.items():
            writer.add_scalar(f"{part}/{name}", value, line["update"])

    return write


def print_summary(bundle: Bundle) -> None:
    """Print tables of the last training metrics and of the models' errors on held-out episodes."""
    report, rows, show = bundle.report, [], partial(print_table, width=80, left=None)
    for part, line in report["training"].items():
        metrics = {k: v for k, v in line.items() if k not in ("update", "updates_per_s")}
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        rows.append([world_title(part), f"{line['update']:,}", f"{line['updates_per_s']:.0f}", text])
    show(("part", "updates", "updates/s", "last metrics"), rows, title=f"{bundle.task.name}: training")
    if report["critic"]:
        rows = [[VALUES[name], f"{value:.1f}"] for name, value in report["critic"].items()]
        show(("by", "value"), rows, title="value of the policy in the data's first states")
    first = next(iter(report["errors"].values()))
    errors = first["one_step"]
    rows = [
        ["next observation", *(f"{errors[name]:.4f}" for name in ("obs_rmse", "obs_rmse_se", "obs_rmse_normalised"))],
        ["reward", *(f"{errors[name]:.4f}" for name in ("reward_rmse", "reward_rmse_se")), ""],
    ]
    show(("held-out error", "RMSE", "standard error", "normalised"), rows, title="one step")
    rows = [
        [str(line["h"]), f"{line['obs_rmse']:.4f}", f"{line['obs_rmse_normalised']:.4f}"] for line in first["open_loop"]
    ]
    show(("steps", "RMSE", "normalised"), rows, title="open loop, recorded actions")


if __name__ == "__main__":
    command.run(main, presets, "python -m fastdwm.train", cpu, resumes=True)
