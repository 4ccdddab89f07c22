"""python -m fastdwm.tune TASK: choose the settings of a bundle's decisions on tuning seeds and save them in the bundle.

Heavy packages are imported inside the functions: --help answers before torch, numpy and the simulator are loaded.
"""

import dataclasses
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from fastdwm import command
from fastdwm.checks import require
from fastdwm.config import ITPOConfig, Settings
from fastdwm.files import write_json
from fastdwm.measure.record import circumstances, output_name, prepare_output
from fastdwm.shipped import ROOT, bundle_of
from fastdwm.tables import interval, print_table
from fastdwm.tune.config import TuneConfig

if TYPE_CHECKING:
    from fastdwm.bundle import Bundle
    from fastdwm.tune.halving import Trial


def main(task_name: str, config: TuneConfig) -> None:
    """Choose the settings of a bundle's decisions by successive halving on tuning seeds, by interquartile mean and,
    among equals, by cost. The choice is written into the bundle with the table of trials; `eval` starts from it.

    The table goes to stdout, and with every episode's score to OUT/TASK-tune-TIME.json; progress goes to stderr.
    A shipped bundle stays as it is: the choice goes into a copy, OUT/TASK-tune-TIME.
    """
    folder = bundle_of(task_name, config.bundle)
    stem = prepare_output(config.out, f"{output_name(task_name, folder)}-tune")
    command.set_up_torch(config.threads, config.device)
    from fastdwm.measure.bundle import load_for

    target = stem if folder.parent == ROOT else folder
    writable = not config.write or target == stem or os.access(folder, os.W_OK)
    require(writable, f"bundle: cannot write to {folder}; --no-write tunes without writing")
    bundle = load_for(task_name, folder, config.trust, tuned=False)
    with command.progress() as on_progress:
        base, finalists, trials = search(bundle, config, on_progress)
    tuning = tuning_record(bundle, config, base, finalists, trials)
    write_json(stem.with_suffix(".json"), {"task": bundle.task.name, "bundle": folder, **tuning})
    print_trials(bundle, base, trials, tuning)
    print(stem.with_suffix(".json"))
    if config.write:
        dataclasses.replace(bundle, tuning=tuning).save(target)
        print(f"bundle: {target}")


def search(
    bundle: "Bundle", config: TuneConfig, on_progress: command.Progress
) -> tuple["Trial", list["Trial"], list["Trial"]]:
    """Returns the base policy's trial, the trials of the last round, and all trials that were run."""
    from fastdwm.models.registry import network_calls
    from fastdwm.tune.grid import candidates
    from fastdwm.tune.halving import Trial, halve

    held = {name: network_calls(bundle.world(name).dynamics) for name in bundle.worlds}
    trials = [Trial(settings) for settings in candidates(held, bundle.bound)]
    base = Trial(dataclasses.replace(trials[0].settings, itpo=ITPOConfig(inner_steps=0)))

    def run(settings: Settings, seeds: list[int]) -> tuple[list[float], float]:
        return run_seeds(bundle, settings, seeds, config)

    def on_round(episodes: int, done: int, total: int) -> None:
        on_progress(f"{episodes} episodes each, candidates", done, total)

    rounds = config.seed, config.episodes, 60 * config.minutes
    finalists = halve(base, trials, run, *rounds, on_round)
    return base, finalists, [trial for trial in trials if trial.scores]


def run_seeds(bundle: "Bundle", settings: Settings, seeds: list[int], config: TuneConfig) -> tuple[list[float], float]:
    """Scores of one episode per seed, run at once, and seconds per decision."""
    from fastdwm.agent import Agent
    from fastdwm.measure.simulate import run_episodes

    where = {"device": config.device, "seed": seeds[0]}
    agent = Agent.of(bundle, settings.itpo, world=settings.world, world_steps=settings.world_steps, **where)
    run = run_episodes(agent, bundle.task.env, seeds, max_steps=config.max_steps)
    scores = [bundle.task.score_pct(episode.total) for episode in run.episodes]
    return scores, run.decision_s


def tuning_record(
    bundle: "Bundle", config: TuneConfig, base: "Trial", finalists: list["Trial"], trials: list["Trial"]
) -> dict[str, Any]:
    """The choice, the weights it is for and the trials it was made from, as JSON values."""
    from fastdwm.tune.halving import TIE, choose

    # Plain returns have no scale; the base policy's return stands for 100.
    scale = abs(base.mean) / 100 if bundle.task.score_name == "return" else 1.0
    chosen = choose(base, finalists, TIE * scale)
    last = config.seed + len(base.scores) - 1
    return {
        "settings": chosen.settings.record(),
        "weights_sha256": bundle.fingerprint,
        "seeds": f"{config.seed} to {last}",
        "verdict": verdict(base, chosen),
        "max_steps": config.max_steps,
        "minutes": config.minutes,
        "table": [trial.record(base) for trial in (base, *trials)],
        **circumstances(config.device),
    }


def verdict(base: "Trial", chosen: "Trial") -> str:
    """A sentence about the choice."""
    n = len(chosen.scores)
    if chosen is base:
        return f"nothing beats the base policy on {n} tuning seeds, so do not adapt it (E = 0)"
    difference = interval(chosen.record(base)["difference"], "+")
    return f"{chosen.settings.describe()}: {difference} against the base policy on {n} tuning seeds"


def print_trials(bundle: "Bundle", base: "Trial", trials: list["Trial"], tuning: dict[str, Any]) -> None:
    """Print all candidates, those with most episodes first, and the choice."""
    score = bundle.task.score_name
    caption = (
        f"IQM: interquartile mean; {score} - base: by seed, with 95 % interval; ms: a decision, of several at once"
    )
    rows = []
    for trial in (base, *sorted(trials, key=lambda trial: (-len(trial.scores), -trial.iqm))):
        line = trial.record(base)
        difference = "" if trial is base else interval(line["difference"], "+")
        name = "base policy" if trial is base else trial.settings.describe()
        rows.append([name, str(line["episodes"]), f"{trial.iqm:.1f}", difference, f"{line['decision_ms']:.2f}"])
    header, title = ("settings", "episodes", "IQM", f"{score} - base", "ms"), f"{bundle.task.name}, tuning seeds"
    print_table(header, rows, title=f"{title} {tuning['seeds']}", caption=caption, width=125)
    print(tuning["verdict"])


parse = partial(command.read, TuneConfig(), "python -m fastdwm.tune", main.__doc__, task=command.TASK)


if __name__ == "__main__":
    command.finish(lambda: main(*parse(sys.argv[1:])))
