"""The report on a terminal, as Markdown and as CSV."""

from collections.abc import Sequence

from fastdwm.report.paper import published
from fastdwm.report.paper.results import Results
from fastdwm.report.paper.tables import Table
from fastdwm.tables import markdown_table, markdown_text, print_table, stdout


def print_report(tables: Sequence[Table], verdicts: Sequence[str], notes: Sequence[str]) -> None:
    """Print every group of columns as a table of its own, so that it fits into a terminal."""
    console = stdout(width=175)
    for table in tables:
        for group, columns in table.groups:
            header, title = ("task", *(column.header for column in columns)), f"{table.title}: {group}"
            print_table(header, table.rows(columns), table.averages(columns), title=title, width=175, no_wrap=True)
        console.print(table.caption, end="\n\n")
    for line in (*notes, "", *verdicts):
        console.print(line)


def markdown(tables: Sequence[Table], verdicts: Sequence[str], notes: Sequence[str]) -> str:
    """The report as a Markdown page."""
    parts = ["# The paper's tables", markdown_list(verdicts)]
    for table in tables:
        parts += [f"## {table.title}", grouped_table(table), markdown_text(table.caption)]
    sources = [f"[{mark}] {what}, {url}" for mark, (what, url) in published.SOURCES.items()]
    return "\n\n".join([*parts, "## Notes", markdown_list((*notes, *sources))]) + "\n"


def markdown_list(lines: Sequence[str]) -> str:
    """One list item per line."""
    return "\n".join(f"- {markdown_text(line)}" for line in lines)


def grouped_table(table: Table) -> str:
    """The table in Markdown, with the names of the groups in the header and those of the columns in the first row."""
    headers = ["task", *(column.header for column in table.columns)]
    groups = [""] + [name if i == 0 else "" for name, columns in table.groups for i in range(len(columns))]
    rows = [[f"**{header}**" for header in headers], *table.rows(), *table.averages()]
    return markdown_table(groups, rows, left=1)


def csv_rows(results: Results) -> list[dict[str, object]]:
    """One row per task with our and the published numbers."""
    mazes = (task for task in published.MAZES if task in results.tasks)
    return [csv_row(results, task) for task in (*published.LOCOMOTION, *mazes)]


def csv_row(results: Results, task: str) -> dict[str, object]:
    """One row: values by column name."""
    row: dict[str, object] = {"task": task}
    result = results.tasks.get(task)
    if result:
        row |= {"trainings": len(result.seeds), "episodes": result.episodes, "data": result.behaviour}
        row |= {"base_mean": result.base.mean, "base_iqm": result.base.iqm.value, "base_ms": result.base.latency_ms}
        for name, gain in result.gains.items():
            values = {"mean": gain.scores.mean, "iqm": gain.scores.iqm.value, "ms": gain.scores.latency_ms}
            values |= {"difference": gain.difference.value, "low": gain.difference.low, "high": gain.difference.high}
            row |= {f"{name}_{key}": value for key, value in (values | {"outcome": gain.difference.outcome}).items()}
        for world, rmse in result.dynamics.items():
            row |= {f"{world}_rmse": rmse.value, f"{world}_rmse_se": rmse.error}
        if result.reward:
            row |= {"reward_rmse": result.reward.value, "reward_rmse_se": result.reward.error}
    return row | {f"published_{name}": value for name, value in published_of(task).items()}


def published_of(task: str) -> dict[str, float]:
    """All published numbers of a task."""
    columns = (*published.SCORES, *published.GENERATIVE_SCORES, *published.MAZE_SCORES)
    errors = {"dynamics_rmse": published.DYNAMICS_RMSE, "reward_rmse": published.REWARD_RMSE}
    named = {column.name: column for column in columns if task in column.values} | errors
    return {name: column.values[task] for name, column in named.items() if task in column.values}
