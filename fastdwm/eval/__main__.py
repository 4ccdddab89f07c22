"""python -m fastdwm.eval TASK: compare the base policy and ITPO in the real simulator.

Heavy packages are imported inside the functions: --help answers before torch, numpy and the simulator are loaded.
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdwm import command
from fastdwm.config import ITPOConfig, Settings
from fastdwm.eval.config import EvalConfig
from fastdwm.files import write_json
from fastdwm.measure.record import output_name, prepare_output
from fastdwm.shipped import bundle_of

if TYPE_CHECKING:
    from fastdwm.bundle import Bundle
    from fastdwm.eval.compare import Evaluation


def presets() -> dict[str, EvalConfig]:
    """The presets. `tuned`: the settings that the bundle was tuned to, or the default; `default`: the recommended
    settings for every task; `paper`: the settings that the paper reports, slow on a CPU.

    None of them is exactly Algorithm 1, which uses one critic (terminal_value="first"), never returns to the base
    policy (reset="never") and indexes its noise by the absolute time t + j (noise="time").
    """
    paper = ITPOConfig(horizon=5, particles=4096, inner_steps=1, optimiser="sgd", inner_lr=5e-5)
    return {"tuned": EvalConfig(), "default": EvalConfig(), "paper": EvalConfig(itpo=paper)}


def tuned(task_name: str, config: EvalConfig) -> EvalConfig | None:
    """The settings of the preset `tuned`; none: those of the default.

    Tuned settings belong together, so they are not used with flags for another world model, optimiser or policy.
    Raises InputError for a bundle that cannot be read.
    """
    from fastdwm.measure.bundle import load_for

    if config.checkpoint or config.world or config.world_steps:
        return None
    own = load_for(task_name, bundle_of(task_name, config.bundle), config.trust).settings
    unused = own == Settings() or own.itpo.optimiser != config.itpo.optimiser
    return None if unused else EvalConfig(itpo=own.itpo, world=own.world, world_steps=own.world_steps)


def main(task_name: str, config: EvalConfig) -> None:
    """Run the base policy and ITPO on the same environment seeds and compare scores, decision latency and diagnostics.

    The table goes to stdout, everything per episode to OUT/TASK-TIME.json, progress to stderr.
    """
    folder = bundle_of(task_name, config.bundle)
    stem = prepare_output(config.out, output_name(task_name, folder))
    if config.video and not os.environ.get("DISPLAY"):
        # MuJoCo reads this variable when it is imported, which happens later.
        os.environ.setdefault("MUJOCO_GL", "egl")
    command.set_up_torch(config.threads, config.device)
    from fastdwm.measure.bundle import load_for

    bundle = load_for(task_name, folder, config.trust)
    task, config = bundle.task, dataclasses.replace(config, world=config.world or next(iter(bundle.worlds)))
    bundle = bundle if config.checkpoint is None else bundle.with_policy(config.checkpoint)
    from fastdwm.eval import maze_plot, plot
    from fastdwm.eval.compare import compare
    from fastdwm.eval.summary import summary
    from fastdwm.eval.tables import other_versions, print_evaluation

    if config.video:
        plot.check_video(task.env)
    with command.progress() as on_progress:
        evaluation = compare(bundle, config, on_progress)
    numbers = summary(evaluation, task.score_pct, config.deadline_ms, task.ends_at_success)
    path = stem.with_suffix(".json")
    # Write the file first, so that no later failure loses it; print the table even if the file cannot be written.
    try:
        write_json(path, evaluation_record(config, bundle, folder, evaluation, numbers))
    finally:
        departures, versions = task.departures(), other_versions(bundle.versions)
        print_evaluation(task, evaluation.seeds, numbers, departures, versions, evaluation.titles["itpo"])
        print(f"settings: {settings_line(config, bundle)}")
    print(path)
    if config.plot:
        title = f"{task.name}, {len(evaluation.seeds)} seeds, each on both policies; {settings_line(config, bundle)}"
        print(plot.save_plot(evaluation, stem.with_suffix(".png"), title, task.score_pct, task.score_name))
        if maze_plot.is_maze(task.env):
            print(maze_plot.save_maze_plot(evaluation, bundle, stem.with_name(f"{stem.name}-maze.png")))
    if config.video:
        print(plot.save_video(task.env, evaluation, stem))


def settings_line(config: EvalConfig, bundle: "Bundle") -> str:
    """One line that describes the settings of the decisions."""
    if not config.itpo.adapts and bundle.tuning is not None and config.itpo == bundle.settings.itpo:
        return "base policy, as tuned: on the tuning seeds nothing beat it (E = 0); --preset default adapts it"
    if config.drifts:
        return f"control, pushed by {config.itpo.max_deviation or bundle.bound:.4f}"
    bound = f", max_deviation {bundle.bound:.4f} (the bundle's)" if config.itpo.lacks_bound else ""
    return Settings(config.itpo, config.world, config.world_steps).describe() + bound


def evaluation_record(
    config: EvalConfig, bundle: "Bundle", folder: Path, evaluation: "Evaluation", numbers: dict[str, Any]
) -> dict[str, Any]:
    """The evaluation as JSON values."""
    from fastdwm.eval.tables import other_versions
    from fastdwm.measure.bundle import measured

    return {
        **measured(bundle, folder, config.device, "dataset", "discount", "max_deviation", "report", "versions"),
        "summary": numbers,
        "config": dataclasses.asdict(config) | {"itpo": config.itpo.record()},
        "seeds": evaluation.seeds,
        "version_departures": other_versions(bundle.versions),
        "episodes": {
            policy: [
                episode.record(bundle.task) | {"diagnostics": episode.diagnostics, "rewards": episode.rewards}
                for episode in run.episodes
            ]
            for policy, run in evaluation.runs.items()
        },
        "act_calls": {policy: run.act_calls for policy, run in evaluation.runs.items()},
        "alone_latency_s": evaluation.alone_latency_s,
    }


if __name__ == "__main__":
    command.run(main, presets, "python -m fastdwm.eval", tuned)
