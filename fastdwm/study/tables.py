"""The result of a study in words: its table, on stdout and as Markdown, and the sentence about the chosen point."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdwm.files import write_atomically
from fastdwm.study.grid import BASE
from fastdwm.study.tradeoff import Row, estimate, title_of
from fastdwm.tables import interval, latency, markdown_table, markdown_text, print_table, spread

COLUMNS = ("", "world model", "H", "M", "E", "strength", "score", "IQM", "score - base", "falls", "ms, p50 / p99")
CAPTION = (
    "strength: maximum deviation, or step size; Pareto front: *; ± standard deviation; "
    "IQM: interquartile mean; [ ] 95 % bootstrap interval, difference by seed; "
    "falls: episodes ended early; ms: one decision"
)


def table_row(row: Row) -> list[str]:
    """The row as it stands in the table, one text per column."""
    is_base = row["cell"] == BASE.name
    axes = row["horizon"], row["particles"], row["inner_steps"], strength(row)
    return [
        "*" if row["front"] else "",
        title_of(row),
        *("" if is_base else str(value) for value in axes),
        spread({"mean": row["score_mean"], "std": row["score_std"]}),
        f"{row['score_iqm']:.1f}",
        "" if is_base else interval(estimate(row, "difference"), "+"),
        f"{row['terminated']} of {row['episodes']}",
        latency(row["latency_p50_ms"], row["latency_p99_ms"]),
    ]


def strength(row: Row) -> str:
    """A maximum deviation or a step size; "bundle's" for the bundle's own, nothing for the base policy."""
    value = row["max_deviation"] if row["inner_lr"] is None else row["inner_lr"]
    return ("" if row["world"] == "base" else "bundle's") if value is None else f"{value:g}"


def print_study(rows: Sequence[Row], title: str) -> None:
    """The rows on stdout; * marks the Pareto front."""
    print_table(COLUMNS, map(table_row, rows), title=title, caption=CAPTION, width=125, left=2, no_wrap=True)


def write_markdown(rows: Sequence[Row], path: Path, title: str, sentences: Sequence[str], made: Row) -> None:
    """The same table as a Markdown page, with what else is to say and how it was made: `record.circumstances`."""
    # As one types it: without the folder of the interpreter.
    command = shlex.join(["python", *shlex.split(made["command"])[1:]])
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("python", "torch", "mujoco"))
    machine = "{accelerator} {cpu} {cpu_count} CPUs, {threads} used".format(**made["machine"])
    how = f"{made['time']}, {machine.removeprefix('None ')}, {versions}"
    table = markdown_table(COLUMNS, map(table_row, rows))
    parts = (f"## {markdown_text(title)}", f"```bash\n{command}\n```", markdown_text(how), table, CAPTION)
    write_atomically(path, ("\n\n".join([*parts, *map(markdown_text, sentences)]) + "\n").encode())


def confirmed(found: dict[str, Any]) -> str:
    """One line about the numbers of `tradeoff.confirmation`."""
    setting = f"H = {found['horizon']}, M = {found['particles']}, E = {found['inner_steps']}"
    gain = interval(found["difference"], "+")
    return (
        f"Best by interquartile mean: {title_of(found)}, {setting}, strength {strength(found)}. "
        f"On seeds {found['seeds'][0]} to {found['seeds'][-1]}, which nothing was chosen on: "
        f"score {spread(found['chosen'])}, base policy {spread(found['base'])}, difference {gain}."
    )
