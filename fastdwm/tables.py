"""Tables on stdout, in Markdown and as CSV, and the formats of numbers in them. Printing imports rich."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Rows = Iterable[Sequence[str]]


def stdout(width: int = 100) -> "Console":
    """A console on stdout that prints text unchanged; in a file or a pipe, lines have `width` characters."""
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
    """Print the rows with a line between sections.   left: number of left-aligned columns; none: all."""
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
    """The rows as CSV under one header, unrounded; values that a row lacks are empty."""
    # The order of the columns is that of the fullest row.
    names = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def markdown_text(text: str) -> str:
    """Escape the text for Markdown, because others may have written parts of it: no HTML, links or table borders."""
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("](", "]\\(")):
        text = text.replace(character, escaped)
    return text


def spread(summary: dict[str, Any], digits: int = 1) -> str:
    """Format as mean ± standard deviation; the mean alone for one episode.   digits: after the point."""
    return f"{summary['mean']:.{digits}f}" + ("" if summary["std"] is None else f" ± {summary['std']:.{digits}f}")


def latency(p50_ms: float, p99_ms: float | None) -> str:
    """Format as median / 99th percentile; - if there were too few calls for the percentile."""
    return f"{p50_ms:.2f} / " + ("-" if p99_ms is None else f"{p99_ms:.2f}")


def interval(estimate: dict[str, Any], sign: str = "-", digits: int = 1) -> str:
    """Format as value [low, high]; the value alone for one episode.

    sign: '+' also shows a positive sign.   digits: after the point.
    """
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    return f"{value:{sign}z.{digits}f}" + ("" if low is None else f" [{low:z.{digits}f}, {high:z.{digits}f}]")


def digits_for(size: float) -> int:
    """Digits after the point that show three figures of numbers of this size: one from ten on, at most six."""
    return min(max(2 - math.floor(math.log10(abs(size))), 1), 6) if size else 1
