"""python bench/table.py RESULT.json..: all peers of `pytest bench --benchmark-json` in one table.

The other commands of this folder write {"title": .., "rows": [..]}, which becomes a table of its own. Ratios are to the
eager reference of the same problem in the same run. On an H200 the last column is the share of the bound: the time that
the dependent products of an inner step need with all weights in shared memory.
"""

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

from fastdwm.tables import markdown_table, print_table

Row = dict[str, Any]

REFERENCE = "reference"
BOUND_US, BOUND_PRODUCTS = 257.0, 556
"""lower bound of an inner step (K=10, H=5, a denoiser of four hidden layers), and its number of dependent products"""

HIDDEN_LAYERS = 3
"""hidden layers of every network in the benchmarks"""


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
    """Key that the peers of one problem share."""
    return row["operation"], row["device"], row["threads"], *row["shape"].values()


def ratio(row: Row, rows: list[Row]) -> float | None:
    """Time of the eager reference over the row's."""
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
    """Device, threads, versions and commit of a measurement, the title of its table."""
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items() if version)
    commit = f"{(row['commit'] or 'unknown')[:10]}{' with changes' if row['dirty'] else ''}"
    return f"{row['device']}, {row['threads']} thread(s), {versions}, commit {commit}"


def other_table(path: Path) -> str:
    """Markdown table of a file with rows of its own, whose columns are the rows' keys; empty for other files."""
    content = json.loads(path.read_text())
    if not content.get("rows"):
        return ""
    keys = list(dict.fromkeys(key for row in content["rows"] for key in row))
    rows = [[plain(row.get(key)) for key in keys] for row in content["rows"]]
    return f"{content['title']}\n\n{markdown_table(keys, rows)}\n"


def plain(value: Any) -> str:
    """Text of a value in a table."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(each)}" for key, each in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, nargs="+", help="file that --benchmark-json wrote")
    parser.add_argument("--markdown", action="store_true", help="print Markdown instead of a drawn table")
    args = parser.parse_args()
    rows = read(args.result)
    for title in dict.fromkeys(map(machine, rows)):
        same = [row for row in rows if machine(row) == title]
        if args.markdown:
            print(f"{title}\n\n{markdown_table(HEADER, map(cells, same), left=2)}\n")
        else:
            sections = [list(map(cells, group)) for _, group in groupby(same, problem)]
            print_table(HEADER, *sections, title=title, left=2, width=160)
    print("\n".join(filter(None, map(other_table, args.result))), end="")


if __name__ == "__main__":
    main()
