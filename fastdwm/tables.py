"""Tables on stdout, in Markdown and as CSV, and numbers as they stand in them. Printing imports rich."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Rows = Iterable[Sequence[str]]


def stdout(width: int = 100) -> "Console":
    """A console on stdout that prints texts as they are; a file or a pipe gets lines of `width` characters."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = width
    return console


def print_table(
    header: Sequence[str],
    *sections: Rows,
    title: str = "",
    caption: str = "",
    width: int = 100,
    left: int | None = 1,
    no_wrap: bool = False,
) -> None:
    """Print the sections' rows with a line between sections.

    left: number of columns aligned to the left, the others are numbers; none: all.
    """
    from rich.table import Table

    table = Table(title=title or None, caption=caption or None)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if left is None or i < left else "right", no_wrap=no_wrap)
    for rows in sections:
        table.add_section()
        for row in rows:
            table.add_row(*row)
    stdout(width).print(table)


def markdown_table(header: Sequence[str], rows: Rows, left: int | None = None) -> str:
    """The table in Markdown.   left: as in `print_table`."""
    dashes = ["---" if left is None or i < left else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(map(markdown_text, row))} |" for row in (header, dashes, *rows))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows under one header, unrounded; what a row does not know is empty."""
    # The fullest row first: it has the columns in their order.
    names = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def markdown_text(text: str) -> str:
    """The text as Markdown shows it, whoever wrote parts of it: no HTML, no link and no border of a table."""
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("](", "]\\(")):
        text = text.replace(character, escaped)
    return text


def spread(summary: dict[str, Any]) -> str:
    """Mean ± standard deviation; the mean alone for one episode."""
    return f"{summary['mean']:.1f}" + ("" if summary["std"] is None else f" ± {summary['std']:.1f}")


def latency(p50_ms: float, p99_ms: float | None) -> str:
    """Median / 99th percentile; - where the calls were too few to tell it."""
    return f"{p50_ms:.2f} / " + ("-" if p99_ms is None else f"{p99_ms:.2f}")


def interval(estimate: dict[str, Any], sign: str = "-") -> str:
    """Value [low, high]; the value alone for one episode. sign: '+' shows the value's sign also if positive."""
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    return f"{value:{sign}z.1f}" + ("" if low is None else f" [{low:z.1f}, {high:z.1f}]")
