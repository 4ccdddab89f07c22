"""Results of the benchmark of base policies: rows, a page with table and verdict, and the picture."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from base_cells import BasePolicy, code

from fastdwm.files import write_atomically, write_json
from fastdwm.measure import record
from fastdwm.measure.statistics import MARGIN, Estimate, count_outcomes, paired_difference
from fastdwm.tables import interval, markdown_table

Row = dict[str, Any]
Record = dict[str, Any]

STYLES = {"default": ("#0072b2", "o", -0.3), "drift": ("#d55e00", "s", 0.3)}
"""colour (Okabe and Ito's, for colour-blind readers), marker and horizontal offset, so that bars do not overlap"""

TITLES = {"default": "ITPO (default)", "drift": "control (drift)"}
CAPTION = (
    "Scores in per cent of D4RL's expert; differences paired by seed, with their 95 % bootstrap interval; control: the "
    "base policy pushed as far as ITPO may push it, in a direction that wanders at random; -: not run."
)


def scores(cell: Record) -> list[float]:
    """Scores of the episodes, in the order of the seeds."""
    return [episode["score_pct"] for episode in cell["episodes"]]


def difference(record: Record | None, base: Record) -> Record | None:
    """Mean score above the base policy's on the same seeds, with its interval; none for an unfinished run."""
    return None if record is None else vars(paired_difference(scores(record), scores(base)))


def summarise(policy: BasePolicy, records: dict[str, Record | None]) -> Row:
    """Row of one base policy.   records: by setting, none where unfinished; "base" is required."""
    done = {name: one for name, one in records.items() if one is not None}
    return {
        "task": policy.task,
        "moment": policy.moment,
        "episodes": len(done["base"]["episodes"]),
        "base_score": float(np.mean(scores(done["base"]))),
        "differences": {name: difference(one, done["base"]) for name, one in records.items() if name != "base"},
        "falls": {name: sum(episode["terminated"] for episode in one["episodes"]) for name, one in done.items()},
        "ms_per_decision": {name: one["ms_per_decision"] for name, one in done.items()},
        "diagnostics": {name: one["diagnostics"] for name, one in done.items() if one["diagnostics"]},
        "commits": sorted({one["commit"] for one in done.values() if one["commit"]}),
        "other_code": [name for name, one in done.items() if name != "base" and one["code"] != code()],
    }


def names_of(rows: Sequence[Row]) -> list[str]:
    """Settings that are compared with the base policy, in order."""
    return list(dict.fromkeys(name for row in rows for name in row["differences"]))


def verdict(rows: Sequence[Row]) -> dict[str, Record]:
    """For each setting, count the base policies that it does not harm or surely harms, and average its gain."""
    result = {}
    for name in names_of(rows):
        differences = [row["differences"][name] for row in rows if row["differences"].get(name)]
        if differences:
            result[name] = {
                "base_policies": len(differences),
                **count_outcomes([Estimate(**one) for one in differences]),
                "mean_gain": float(np.mean([one["value"] for one in differences])),
            }
    return result


def sentences(verdicts: dict[str, Record]) -> str:
    """List of sentences, one for each setting."""
    return "\n".join(
        f"- {TITLES.get(name, name)}: mean difference >= {-MARGIN:g} on {one['harmless']} of {one['base_policies']}, "
        f"below beyond chance on {one['harmful']}, above 0 beyond chance on {one['better']}; "
        f"mean gain {one['mean_gain']:+.1f}."
        for name, one in verdicts.items()
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown table of the rows, transposed if there are more settings than rows."""
    names = names_of(rows)
    head = ["task", "moment", "base", *(f"{TITLES.get(name, name)} - base" for name in names)]
    lines = [head]
    for row in rows:
        first = [row["task"], row["moment"], f"{row['base_score']:.1f}"]
        lines.append([*first, *difference_texts(row, names)])
    head, *rest = zip(*lines, strict=True) if len(names) > len(rows) else lines
    return markdown_table(head, rest)


def difference_texts(row: Row, names: Sequence[str]) -> list[str]:
    """The row's differences as table cells."""
    differences = (row["differences"].get(name) for name in names)
    return ["-" if one is None else interval(one, "+") for one in differences]


def made_with(rows: Sequence[Row], about: Record) -> str:
    """One paragraph: time, package versions and code."""
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("python", "torch", "mujoco", "gymnasium"))
    commits = sorted({commit for row in rows for commit in row["commits"]})
    ran = f", run at commit {', '.join(commits)}" if commits else ""
    stale = Counter(name for row in rows for name in row["other_code"])
    warning = ", ".join(f"{TITLES.get(name, name)} {count} times" for name, count in stale.items())
    note = f" The code of the rule has changed since these ran: {warning}." if warning else ""
    return f"{about['time']}, {versions}{ran}.{note}"


def circumstances() -> Record:
    """`record.circumstances` with a command that names no folder of this machine."""
    about = record.circumstances("cpu")
    words = (Path(word).name if word.startswith("/") else word for word in shlex.split(about["command"])[1:])
    return about | {"command": shlex.join(["python", *words])}


def write(stem: Path, title: str, body: Sequence[str], rows: Sequence[Row], verdicts: Record | None = None) -> None:
    """Write the page and the JSON beside it, and print the page's body and the files."""
    about = circumstances()
    parts = (f"# {title}", f"```bash\n{about['command']}\n```", made_with(rows, about), *body)
    write_atomically(stem.with_suffix(".md"), ("\n\n".join(parts) + "\n").encode())
    write_json(stem.with_suffix(".json"), {**about, "title": title, "verdict": verdicts, "rows": list(rows)})
    print(*body, stem.with_suffix(".md"), stem.with_suffix(".json"), sep="\n")


def save_plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Plot the paired difference against the base score, with intervals, for the default and its control, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.axhline(0, color="0.3", linewidth=1)
    axis.axhline(-MARGIN, color="0.3", linewidth=0.8, linestyle=":")
    for name, (colour, marker, offset) in STYLES.items():
        here = [(row["base_score"] + offset, row["differences"][name]) for row in rows if row["differences"].get(name)]
        if not here:
            continue
        # One episode has no interval.
        ends = [[one["value"] if one[end] is None else one[end] for end in ("value", "low", "high")] for _, one in here]
        y, low, high = np.array(ends).T
        # Percentile intervals hold the mean up to rounding; a bar cannot have a negative length.
        bars = np.maximum([y - low, high - y], 0)
        style = {"fmt": marker, "color": colour, "markersize": 5, "capsize": 2, "linewidth": 1}
        axis.errorbar([x for x, _ in here], y, yerr=bars, label=TITLES[name], **style)
    axis.set(xlabel="base policy's score (% of expert)", ylabel="difference to the base policy, with 95 % interval")
    axis.set_title(title, fontsize="medium", loc="left")
    axis.grid(True, linewidth=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best")
    figure.savefig(path, dpi=150)
