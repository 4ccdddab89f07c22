"""What the bench of base policies says: its rows, the table and verdict as a page, and the picture."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdwm.files import write_atomically
from fastdwm.measure import record
from fastdwm.measure.record import interval
from fastdwm.measure.statistics import paired_difference

Row = dict[str, Any]
Record = dict[str, Any]

MARGIN = -1.0
"""points of score that the lower end of an interval may lie below zero to count as never worse"""

COLOURS = {"default": ("#0072b2", "o", "default"), "first": ("#d55e00", "s", "first version's default")}
"""Okabe and Ito's blue and vermilion, which every reader can tell apart; so do the markers"""

TITLES = {"default": "default", "first": "first version's default", "tuned": "tuned SGD"}
CAPTION = (
    "Scores in per cent of D4RL's expert; differences paired by seed, with their 95 % bootstrap interval; tuned SGD: "
    "for each base policy the best of its step sizes and of no step by mean score on tuning seeds; -: not run."
)


def scores(cell: Record) -> list[float]:
    """Of the episodes, in the order of the seeds."""
    return [episode["score_pct"] for episode in cell["episodes"]]


def difference(record: Record | None, base: Record) -> Record | None:
    """Mean score above the base policy's on the same seeds, with its interval; none for a cell that is not finished."""
    return None if record is None else vars(paired_difference(scores(record), scores(base)))


def summarise(task: str, moment: str, records: dict[str, Record | None], tuned: str | None) -> Row:
    """The row of one base policy.

    records: finished cells by setting: base, which has to be there, and others.   tuned: what tuning chose.
    """
    done = {name: record for name, record in records.items() if record is not None}
    others = {name: record for name, record in records.items() if name != "base"}
    return {
        "task": task,
        "moment": moment,
        "episodes": len(done["base"]["episodes"]),
        "base_score": float(np.mean(scores(done["base"]))),
        "differences": {name: difference(record, done["base"]) for name, record in others.items()},
        "tuned_setting": tuned,
        "falls": {name: sum(e["terminated"] for e in record["episodes"]) for name, record in done.items()},
        "ms_per_decision": {name: record["ms_per_decision"] for name, record in done.items()},
        "diagnostics": {name: record["diagnostics"] for name, record in done.items()},
        "commits": sorted({str(record["commit"]) for record in done.values()}),
    }


def names_of(rows: Sequence[Row]) -> list[str]:
    """Settings that are compared with the base policy, in their order."""
    return list(dict.fromkeys(name for row in rows for name in row["differences"]))


def verdict(rows: Sequence[Row]) -> dict[str, Record]:
    """Of each setting: for how many base policies it is never worse, its mean gain, and that as a share of tuned SGD's.

    The share is over the base policies that tuning has finished for, none where tuning gains nothing.
    """
    found = {}
    for name in names_of(rows):
        here = [row for row in rows if row["differences"].get(name)]
        if not here:
            continue
        both = [row["differences"] for row in here if row["differences"].get("tuned")]
        gain, best = (float(np.mean([d[key]["value"] for d in both])) if both else 0.0 for key in (name, "tuned"))
        found[name] = {
            "base_policies": len(here),
            "never_worse": sum(never_worse(row["differences"][name]) for row in here),
            "mean_gain": float(np.mean([row["differences"][name]["value"] for row in here])),
            "share_of_tuned": gain / best if best > 0 else None,
        }
    return found


def never_worse(estimate: Record) -> bool:
    """Whether the lower end of the interval is at least MARGIN; of one episode there is no interval."""
    return estimate["low"] is not None and estimate["low"] >= MARGIN


def sentences(found: dict[str, Record]) -> list[str]:
    """The verdict in words, a line of a list for each setting."""
    lines = []
    for name, one in found.items():
        share = "" if one["share_of_tuned"] is None else f", {100 * one['share_of_tuned']:.0f} % of tuned SGD's"
        lines.append(
            f"- {TITLES.get(name, name)}: lower end >= {MARGIN:g} in {one['never_worse']} of {one['base_policies']}; "
            f"mean gain {one['mean_gain']:+.1f}{share if name != 'tuned' else ''}."
        )
    return lines


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Header and rows of the table, one text per column."""
    names = names_of(rows)
    head = ["task", "moment", "base", *(f"{TITLES.get(name, name)} - base" for name in names), "tuned SGD's step"]
    lines = []
    for row in rows:
        found = [row["differences"].get(name) for name in names]
        told = ["-" if one is None else interval(one, "+") for one in found]
        lines.append([row["task"], row["moment"], f"{row['base_score']:.1f}", *told, row["tuned_setting"] or "-"])
    return [head, *lines]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its header."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest))


def circumstances() -> Record:
    """`record.circumstances` with the command as one types it: no folders of this machine, whose runs lie elsewhere."""
    made = record.circumstances("cpu")
    words = (Path(word).name if word.startswith("/") else word for word in shlex.split(made["command"])[1:])
    return made | {"command": shlex.join(["python", *words])}


def write_page(path: Path, title: str, body: Sequence[str], made: Record, commits: Sequence[str]) -> None:
    """The page: title, command, circumstances, then the body's paragraphs."""
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("python", "torch", "mujoco", "gymnasium"))
    how = f"```bash\n{made['command']}\n```", f"{made['time']}, {versions}; run at commit {', '.join(commits)}."
    write_atomically(path, ("\n\n".join((f"# {title}", *how, *body)) + "\n").encode())


def save_plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """PNG: paired difference against base score with interval bars, old and new default."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.axhline(0, color="0.3", linewidth=1)
    axis.axhline(MARGIN, color="0.3", linewidth=0.8, linestyle=":")
    for name, (colour, marker, label) in COLOURS.items():
        here = [(row["base_score"], row["differences"][name]) for row in rows if row["differences"].get(name)]
        if not here:
            continue
        y = np.array([one["value"] for _, one in here])
        ends = np.array(
            [(one["low"], one["high"]) if one["low"] is not None else (one["value"],) * 2 for _, one in here]
        )
        # Percentile intervals hold the mean up to rounding; a bar cannot have a negative length.
        bars = np.maximum([y - ends[:, 0], ends[:, 1] - y], 0)
        style = {"fmt": marker, "color": colour, "markersize": 5, "capsize": 2, "linewidth": 1, "alpha": 0.9}
        axis.errorbar([x for x, _ in here], y, yerr=bars, label=label, **style)
    axis.set(xlabel="base policy's score (% of expert)", ylabel="difference to the base policy, with 95 % interval")
    axis.set_title(title, fontsize="medium", loc="left")
    axis.grid(True, linewidth=0.3)
    axis.legend(loc="best")
    figure.savefig(path, dpi=150)
