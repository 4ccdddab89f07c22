"""The table of a study, on stdout and as Markdown, and the sentence about the chosen grid point."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdwm.files import write_atomically
from fastdwm.study.grid import BASE
from fastdwm.study.tradeoff import Row, estimate, title_of
from fastdwm.tables import interval, latency, markdown_table, markdown_text, print_table, spread

CAPTION = (
    "numbers: as in the picture; strength: maximum deviation, or step size; Pareto front: *; ± standard deviation; "
    "IQM: interquartile mean; [ ] 95 % bootstrap interval, difference by seed; "
    "falls: episodes ended early; ms: one decision"
)


def columns(score: str) -> tuple[str, ...]:
    """Titles of the columns.   score: `score` or `return`, what the table shows."""
    middle = (score, "IQM", f"{score} - base")
    return ("", "world model", "H", "M", "E", "strength", *middle, "falls", "ms, p50 / p99")


def table_row(row: Row) -> list[str]:
    """The texts of one row, one per column."""
    is_base = row["cell"] == BASE.name
    axes = row["horizon"], row["particles"], row["inner_steps"], strength(row)
    return [
        f"{row['number'] or ''}{' *' if row['front'] else ''}",
        title_of(row),
        *("" if is_base else str(value) for value in axes),
        spread({"mean": row["score_mean"], "std": row["score_std"]}),
        f"{row['score_iqm']:.1f}",
        "" if is_base else interval(estimate(row, "difference"), "+"),
        f"{row['terminated']} of {row['episodes']}",
        latency(row["latency_p50_ms"], row["latency_p99_ms"]),
    ]


def strength(row: Row) -> str:
    """The maximum deviation or the step size; "bundle's" for the bundle's own, empty for the base policy."""
    value = row["max_deviation"] if row["inner_lr"] is None else row["inner_lr"]
    return ("" if row["world"] == "base" else "bundle's") if value is None else f"{value:g}"


def print_study(rows: Sequence[Row], title: str, score: str = "score") -> None:
    """Print the rows; * marks the Pareto front."""
    print_table(columns(score), map(table_row, rows), title=title, caption=CAPTION, width=125, left=2, no_wrap=True)


def write_markdown(
    rows: Sequence[Row], path: Path, title: str, sentences: Sequence[str], origin: Row, score: str = "score"
) -> None:
    """Write the table, the sentences and the origin of the results (`record.circumstances`) as a Markdown page."""
    # The command as a user types it, without the folder of the interpreter.
    command = shlex.join(["python", *shlex.split(origin["command"])[1:]])
    versions = ", ".join(f"{name} {origin['versions'][name]}" for name in ("python", "torch", "mujoco"))
    machine = "{accelerator} {cpu} {cpu_count} CPUs, {threads} used".format(**origin["machine"])
    how = f"{origin['time']}, {machine.removeprefix('None ')}, {versions}"
    table = markdown_table(columns(score), map(table_row, rows))
    parts = (f"## {markdown_text(title)}", f"```bash\n{command}\n```", markdown_text(how), table, CAPTION)
    write_atomically(path, ("\n\n".join([*parts, *map(markdown_text, sentences)]) + "\n").encode())


def confirmed(result: dict[str, Any], score: str = "score") -> str:
    """One line about the result of `tradeoff.confirmation`."""
    setting = f"H = {result['horizon']}, M = {result['particles']}, E = {result['inner_steps']}"
    gain = interval(result["difference"], "+")
    return (
        f"Best by interquartile mean: {title_of(result)}, {setting}, strength {strength(result)}. "
        f"On seeds {result['seeds'][0]} to {result['seeds'][-1]}, which were not used to choose it: "
        f"{score} {spread(result['chosen'])}, base policy {spread(result['base'])}, difference {gain}."
    )
