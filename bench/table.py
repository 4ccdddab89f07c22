"""python bench/table.py RESULT.json.. [--plot FILE.png]: all peers of `pytest bench --benchmark-json` in one table.

What the other commands of this folder write, {"title": .., "rows": [..]}, becomes a table of its own. Ratios are to the
eager reference of the same problem in the same run. On an H200 the last column is the share of the bound: the time that
the dependent products of an inner step need with all weights in shared memory.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

Row = dict[str, Any]

REFERENCE = "reference"
BOUND_US, BOUND_PRODUCTS = 257.0, 556
"""an inner step at K=10, H=5 with a denoiser of four hidden layers: lower bound, and products in sequence"""

HIDDEN_LAYERS = 3
"""of every network in the benchmarks"""

STYLES = ("k-o", "k--s", "k:^", "k-.D", "k-x", "k--+")
"""line and marker tell the peers apart without colour"""


def read(paths: list[Path]) -> list[Row]:
    """One row for each benchmark that was measured; ratios within a file."""
    everything = []
    for path in paths:
        rows = []
        for benchmark in json.loads(path.read_text()).get("benchmarks", ()):
            info = benchmark["extra_info"]
            if "peer" in info:
                rows.append({**info, **info["shape"], "median": benchmark["stats"]["median"]})
        for row in rows:
            row["ratio"], row["bound"] = ratio(row, rows), bound_share(row)
        everything += rows
    return everything


def problem(row: Row) -> tuple:
    """What peers have in common."""
    return row["operation"], row["device"], row["threads"], *row["shape"].values()


def ratio(row: Row, rows: list[Row]) -> float | None:
    """How many times faster than the eager reference."""
    for other in rows:
        if other["peer"] == REFERENCE and problem(other) == problem(row):
            return other["median"] / row["median"]
    return None


def bound_share(row: Row) -> float | None:
    """Lower bound over measured time, for the inner steps that the bound is known for."""
    if "H200" not in row["device"] or row["operation"] != "rollout gradient" or row["D"] != 256:
        return None
    # A multiprocessor for every 16 particles: more of them than that wait for each other.
    if row["B"] * row["M"] > 16 * 132:
        return None
    layers = HIDDEN_LAYERS + 1
    products = 2 * (row["H"] * row["K"] * layers + (row["H"] + 1) * layers + layers)
    return products * BOUND_US / BOUND_PRODUCTS * 1e-6 / row["median"]


def cells(row: Row) -> list[str]:
    name = f"{row['operation']}, " + " ".join(f"{axis}={value}" for axis, value in row["shape"].items())
    low, high = row["quantile_20"], row["quantile_80"]
    return [
        name,
        row["peer"],
        f"{1e3 * row['median']:.3g}",
        f"{1e3 * low:.3g} to {1e3 * high:.3g}",
        "" if row["ratio"] is None else f"{row['ratio']:.2f}",
        "" if row["error"] is None else f"{row['error']:.0e}",
        "" if row["bound"] is None else f"{100 * row['bound']:.0f} %",
    ]


HEADER = ("problem", "peer", "median ms", "20 to 80 %", "x reference", "error", "of bound")


def machine(row: Row) -> str:
    """What the numbers of one device belong to."""
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items() if version)
    commit = f"{(row['commit'] or 'unknown')[:10]}{' with changes' if row['dirty'] else ''}"
    return f"{row['device']}, {row['threads']} thread(s), {versions}, commit {commit}"


def markdown(rows: list[Row]) -> str:
    lines = [HEADER, ["---"] * 2 + ["---:"] * (len(HEADER) - 2), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def other_tables(paths: list[Path]) -> str:
    """Markdown of all files with rows of their own; columns are the rows' keys."""
    tables = []
    for path in paths:
        content = json.loads(path.read_text())
        if content.get("rows"):
            keys = list(dict.fromkeys(key for row in content["rows"] for key in row))
            lines = [keys, ["---"] * len(keys), *([plain(row.get(key)) for key in keys] for row in content["rows"])]
            body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
            tables.append(f"{content['title']}\n\n{body}\n")
    return "\n".join(tables)


def plain(value: Any) -> str:
    """A value in a cell."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(each)}" for key, each in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "\\|")


def print_rich(title: str, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for i, name in enumerate(HEADER):
        table.add_column(name, justify="right" if i > 1 else "left")
    before = None
    for row in rows:
        if before is not None and problem(row) != before:
            table.add_section()
        before = problem(row)
        table.add_row(*cells(row))
    Console().print(table)


def plot(rows: list[Row], path: Path) -> None:
    """Median and 20 to 80 % of the rollout gradient against M and against K H, all peers, for each device."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["operation"] == "rollout gradient" and row["B"] == 1]
    devices = list(dict.fromkeys(row["device"] for row in rows))
    figure, axes = pyplot.subplots(len(devices), 2, figsize=(10, 4 * len(devices)), squeeze=False)
    for line, device in zip(axes, devices, strict=True):
        here = [row for row in rows if row["device"] == device and row["D"] == 256]
        particles = Counter(row["M"] for row in here if (row["K"], row["H"]) != (10, 5)).most_common(1)[0][0]
        draw(line[0], [row for row in here if (row["K"], row["H"]) == (10, 5)], lambda row: row["M"], "M (K=10, H=5)")
        fixed = [row for row in here if row["M"] == particles]
        draw(line[1], fixed, lambda row: row["K"] * row["H"], f"K H (M={particles})")
        line[0].set_title(f"rollout gradient, {device}", loc="left", fontsize=9)
        line[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def draw(axis, rows: list[Row], x, label: str) -> None:
    """One line for each peer, on logarithmic axes."""
    from matplotlib.ticker import NullLocator

    for peer, style in zip(dict.fromkeys(row["peer"] for row in rows), STYLES, strict=False):
        mine = sorted((row for row in rows if row["peer"] == peer), key=x)
        y = [1e3 * row["median"] for row in mine]
        spread = [
            [1e3 * (row["median"] - row["quantile_20"]) for row in mine],
            [1e3 * (row["quantile_80"] - row["median"]) for row in mine],
        ]
        axis.errorbar([x(row) for row in mine], y, yerr=spread, fmt=style, label=peer, capsize=2, linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel=label, ylabel="ms")
    axis.set_xticks(sorted({x(row) for row in rows}))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(True, which="both", linewidth=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, nargs="+", help="what --benchmark-json wrote")
    parser.add_argument("--plot", type=Path, help="picture to write")
    parser.add_argument("--markdown", action="store_true", help="print Markdown instead of a drawn table")
    arguments = parser.parse_args()
    rows = read(arguments.result)
    for title in dict.fromkeys(map(machine, rows)):
        mine = [row for row in rows if machine(row) == title]
        if arguments.markdown:
            print(f"{title}\n\n{markdown(mine)}\n")
        else:
            print_rich(title, mine)
    print(other_tables(arguments.result), end="")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
