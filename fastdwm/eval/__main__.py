"""python -m fastdwm.eval TASK: base policy and ITPO side by side in the real simulator.

Heavy packages are imported inside the functions: --help answers before torch, numpy and the simulator are loaded.
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdwm import command
from fastdwm.config import EvalConfig, ITPOConfig, require
from fastdwm.measure.record import circumstances, interval, latency, prepare_output, spread, write_json
from fastdwm.shipped import shipped_folder
from fastdwm.tasks import Task, get_task

if TYPE_CHECKING:
    from fastdwm.bundle import Bundle
    from fastdwm.measure.simulate import Evaluation


def presets() -> dict[str, EvalConfig]:
    """`default`: what this project recommends on a CPU; `paper`: the settings reported for the paper, slow on a CPU.

    Neither is Algorithm 1 to the letter, which has one critic (terminal_value="first"), never returns to the base
    policy (reset="never") and indexes its noise by the absolute time t + j (noise="time").
    """
    paper = ITPOConfig(horizon=5, particles=4096, inner_steps=1, inner_lr=5e-5)
    return {"default": EvalConfig(), "paper": EvalConfig(itpo=paper)}


def main(task_name: str, config: EvalConfig) -> None:
    """Run the base policy and ITPO on the same environment seeds and compare scores, decision latency and diagnostics.

    The table goes to stdout, everything per episode to OUT/TASK-TIME.json, progress to stderr.
    """
    task = get_task(task_name)
    stem = prepare_output(config.out, task.name)
    if config.video and not os.environ.get("DISPLAY"):
        # MuJoCo reads it when it is imported, which has not happened yet.
        os.environ.setdefault("MUJOCO_GL", "egl")
    command.set_up_torch(config.threads, config.device)
    from fastdwm.bundle import Bundle

    folder = config.bundle or shipped_folder(task.name)
    bundle = Bundle.load(folder, config.trust_env)
    came = bundle.task.name
    require(came == task.name, f"bundle: expected one for {task.name}, {folder} is for {came}")
    task = bundle.task
    bundle = bundle if config.checkpoint is None else bundle.with_policy(config.checkpoint)
    from fastdwm.eval import plot
    from fastdwm.eval.summary import summary
    from fastdwm.measure.simulate import compare

    if config.video:
        plot.check_video(task.env)
    with command.progress() as report:
        evaluation = compare(bundle, config, report)
    numbers = summary(evaluation, task.score_pct, config.deadline_ms)
    record = stem.with_suffix(".json")
    # The file first, so that nothing that fails later loses it; the table also where there is no room for a file.
    try:
        write_json(record, describe(config, bundle, folder, evaluation, numbers))
    finally:
        print_table(task, evaluation.seeds, numbers, task.departures())
    print(record)
    if config.plot:
        print(plot.save_plot(evaluation, stem.with_suffix(".png"), title=task.name))
    if config.video:
        print(plot.save_video(task.env, evaluation, stem))


def describe(
    config: EvalConfig, bundle: "Bundle", folder: Path, evaluation: "Evaluation", numbers: dict[str, Any]
) -> dict[str, Any]:
    """The whole evaluation as JSON values."""
    task = bundle.task
    provenance = {"folder": folder, "weights_sha256": bundle.fingerprint, "reward_scale": task.reward_scale}
    provenance |= {name: getattr(bundle, name) for name in ("dataset", "discount", "report", "versions")}
    return {
        "task": task.name,
        **circumstances(config.device),
        "summary": numbers,
        "config": dataclasses.asdict(config),
        "seeds": evaluation.seeds,
        "env": dataclasses.asdict(task.env),
        "env_departures": task.departures(),
        "bundle": provenance,
        "episodes": {
            policy: [describe_episode(episode, task) for episode in run.episodes]
            for policy, run in evaluation.runs.items()
        },
        "act_calls": {policy: run.act_calls for policy, run in evaluation.runs.items()},
        "alone_latency_s": evaluation.alone_latency_s,
    }


def describe_episode(episode: Any, task: Task) -> dict[str, Any]:
    """One evaluate.Episode as JSON values."""
    return {
        "seed": episode.seed,
        "score_pct": task.score_pct(episode.total),
        "return": episode.total,
        "length": episode.length,
        "terminated": episode.terminated,
        "discarded": episode.discarded,
        "diagnostics": episode.diagnostics,
        "rewards": episode.rewards,
    }


def print_table(task: Task, seeds: list[int], numbers: dict[str, Any], departures: list[str]) -> None:
    """The result on stdout, both policies side by side.

    departures: how the simulator differs from the task's, in words.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 100
    table = Table(
        title=f"{task.name}, episodes per policy: {len(seeds)}, environment seeds: {seeds[0]} to {seeds[-1]}",
        caption="± standard deviation over episodes; [ ] 95 % bootstrap interval; difference by seed;"
        " p99 of 2,000 decisions or more" + foreign(departures),
    )
    for name in ("", "base policy", "ITPO", "ITPO - base"):
        table.add_column(name, justify="right" if name else "left")
    for row in table_rows(numbers):
        table.add_row(*row)
    console.print(table)


def foreign(departures: list[str]) -> str:
    """A warning for a table whose simulator is not the task's."""
    return f"\nnot the task's own simulator: {', '.join(departures)}" if departures else ""


def table_rows(numbers: dict[str, Any]) -> list[list[str]]:
    """Label, base policy, ITPO, difference."""
    policies, gap = [numbers["base"], numbers["itpo"]], numbers["difference"]
    iqm = [interval(policy["score_pct"]["iqm"]) for policy in policies]
    lost = [f"{policy['discarded']} of {policy['decisions']}" for policy in policies]
    alone, batch = (
        [latency(policy[name]["p50_ms"], policy[name]["p99_ms"]) for policy in policies]
        for name in ("alone_latency", "batch_latency")
    )
    return [
        ["score", *(spread(policy["score_pct"]) for policy in policies), interval(gap["score_pct"], "+")],
        ["interquartile mean", *iqm, ""],
        ["return", *(spread(policy["return"]) for policy in policies), interval(gap["return"], "+")],
        ["length in steps", *(spread(policy["length"]) for policy in policies), interval(gap["length"], "+")],
        ["ms to decide, p50 / p99", *alone, ""],
        [f"ms to decide for {numbers['base']['batch_size']}", *batch, ""],
        ["discarded updates", *lost, ""],
        *deadline_rows(policies),
    ]


def deadline_rows(policies: list[dict[str, Any]]) -> list[list[str]]:
    """What a deadline did; nothing without one."""
    if "missed" not in policies[0]["alone_latency"]:
        return []

    def missed(latency: dict[str, Any]) -> str:
        return f"{latency['missed']} of {latency['calls']}"

    steps = f"{policies[1]['diagnostics'].get('inner_steps', 0):.2f}"
    return [
        ["inner steps per decision", "", steps, ""],
        ["missed deadlines, deciding alone", *(missed(policy["alone_latency"]) for policy in policies), ""],
        [
            f"missed deadlines, {policies[0]['batch_size']} at once",
            *(missed(policy["batch_latency"]) for policy in policies),
            "",
        ],
    ]


if __name__ == "__main__":
    command.run(main, presets, "python -m fastdwm.eval")
