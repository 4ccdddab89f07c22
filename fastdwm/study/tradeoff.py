"""Score against decision latency: rows of a study, Pareto front, gain of each world model, and the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fastdwm.config import world_title
from fastdwm.measure import statistics
from fastdwm.measure.statistics import Estimate
from fastdwm.pictures import save_png
from fastdwm.study.grid import BASE, GridPoint
from fastdwm.tables import interval

Row = dict[str, Any]

# Readable for the colour-blind; without colours, the markers identify the world models.
STYLES = {
    "base": {"color": "black", "marker": "X", "label": "base policy"},
    "critic": {"color": "tab:green", "marker": "D", "label": "critic alone (H = 0)"},
    "diffusion": {"color": "tab:blue", "marker": "o"},
    "meanflow": {"color": "tab:orange", "marker": "s"},
    "mlp": {"color": "tab:purple", "marker": "^"},
}
OTHERS = {"color": "tab:red", "marker": "v"}
MIN_SPAN = 1.0
"""least span of the score's axis in points: smaller differences are noise"""
MOST_LINES = 60
"""grid points in a column of the picture's list"""


def summarise(records: Mapping[GridPoint, Mapping[str, Any]], identity: Mapping[str, Any]) -> list[Row]:
    """One flat row per grid point, the fastest first; latencies in ms, intervals of 95 %.

    records: of the finished grid points, including the base policy.   identity: of the study.
    `number` names a grid point in the table and the picture; the base policy has none.
    `front` is true for the grid points on the Pareto front of mean score and median latency.
    """
    rows = [_row(point, record, records[BASE]) for point, record in records.items()]
    scores = [round(row["score_mean"], statistics.DIGITS) for row in rows]
    front = pareto_front([row["latency_p50_ms"] for row in rows], scores)
    shared = {name: identity[name] for name in ("bundle", "seeds", "device", "backend")}
    shared |= {name: value for name, value in identity.items() if name.startswith(("itpo.", "versions."))}
    rows = [row | {"front": on_front} | shared for row, on_front in zip(rows, front, strict=True)]
    rows = sorted(rows, key=lambda row: row["latency_p50_ms"])
    numbers = {row["cell"]: i + 1 for i, row in enumerate(row for row in rows if row["cell"] != BASE.name)}
    return [{"number": numbers.get(row["cell"])} | row for row in rows]


def _row(point: GridPoint, record: Mapping[str, Any], base: Mapping[str, Any]) -> Row:
    episodes, times = record["episodes"], record["latency"]
    score = _scores(record)
    summary, mean = statistics.summarise(score), statistics.bootstrap(score, np.mean)
    is_base = point == BASE
    difference = Estimate(0.0, None, None) if is_base else statistics.paired_difference(score, _scores(base))
    return {
        "cell": point.name,
        **asdict(point),
        "network_calls": point.inner_steps * point.horizon * point.world_steps,
        "episodes": len(episodes),
        "score_mean": mean.value,
        "score_std": summary.std,
        "score_low": mean.low,
        "score_high": mean.high,
        "score_iqm": summary.iqm.value,
        "score_iqm_low": summary.iqm.low,
        "score_iqm_high": summary.iqm.high,
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "terminated": sum(episode["terminated"] for episode in episodes),
        "decisions": sum(episode["length"] for episode in episodes),
        "discarded": sum(episode["discarded"] for episode in episodes),
        "latency_p50_ms": times["p50_ms"],
        "latency_p99_ms": times["p99_ms"],
        "latency_calls": times["calls"],
        "batch_size": record["batch_latency"]["size"],
        "batch_latency_p50_ms": record["batch_latency"]["p50_ms"],
        "wall_s": record["wall_s"],
    }


def _scores(record: Mapping[str, Any]) -> np.ndarray:
    return np.array([episode["score_pct"] for episode in record["episodes"]])


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """For each point, whether no other is at most as costly and at least as valuable, and strictly better in one."""
    points = list(zip(costs, values, strict=True))
    return [not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points) for cost, value in points]


def verdict(
    records: Mapping[GridPoint, Mapping[str, Any]], rows: Sequence[Row], centre: Sequence[GridPoint]
) -> list[str]:
    """One line per world model: its gain and its time, compared with the diffusion model with the most calls.

    centre: grid points that differ in the world model alone. Empty without a diffusion model, or with it alone.
    """
    diffusion = [point for point in centre if point.world == "diffusion"]
    if not diffusion or len(centre) == 1:
        return []
    reference = max(diffusion, key=lambda point: point.world_steps)
    by_name = {row["cell"]: row for row in rows}
    ours, base = by_name[reference.name], _scores(records[BASE])
    gain = _scores(records[reference]) - base
    lines = [
        f"At H = {reference.horizon}, M = {reference.particles}, E = {reference.inner_steps}, "
        f"{title_of(ours)} gains {interval(estimate(ours, 'difference'), '+')} over the base policy "
        f"in {ours['latency_p50_ms']:.2f} ms per decision."
    ]
    for point in centre:
        if point == reference:
            continue
        row, score = by_name[point.name], _scores(records[point])
        gap = statistics.paired_difference(score, _scores(records[reference]))
        # Rounded as it is printed: a share of a gain of 0 is meaningless.
        kept = (
            f": {_percent(statistics.ratio_of_means(score - base, gain))} of that gain"
            if round(gain.mean(), 1) > 0
            else ""
        )
        lines.append(
            f"{title_of(row)} gains {interval(estimate(row, 'difference'), '+')}{kept}, "
            f"in {100 * row['latency_p50_ms'] / ours['latency_p50_ms']:.0f} % of the time; "
            f"paired difference {interval(asdict(gap), '+')}."
        )
    return lines


def title_of(row: Row) -> str:
    """Name of the world model, with its network calls."""
    label = style_of(row["world"])["label"]
    return f"{label} (K = {row['world_steps']})" if row["world_steps"] else label


def style_of(world: str) -> dict[str, str]:
    """Plotting style and label of a world model; those that STYLES lacks look alike."""
    return {"label": world_title(world)} | STYLES.get(world, OTHERS)


def best(points: Sequence[GridPoint], rows: Sequence[Row]) -> GridPoint:
    """The grid point with the highest interquartile mean, without the base policy; the fastest of equal ones."""
    by_name = {row["cell"]: row for row in rows}
    ours = [point for point in points if point != BASE]

    def rank(point: GridPoint) -> tuple[float, float]:
        row = by_name[point.name]
        return round(row["score_iqm"], statistics.DIGITS), -row["latency_p50_ms"]

    return max(ours, key=rank)


def confirmation(records: Mapping[GridPoint, Mapping[str, Any]], chosen: GridPoint) -> dict[str, Any]:
    """Scores of the base policy and of the chosen grid point, and their difference by seed, as JSON values.

    records: of the two grid points, on seeds that were not used for the choice.
    """
    base, score = _scores(records[BASE]), _scores(records[chosen])
    return {
        "cell": chosen.name,
        **asdict(chosen),
        "seeds": [episode["seed"] for episode in records[BASE]["episodes"]],
        "base": asdict(statistics.summarise(base)),
        "chosen": asdict(statistics.summarise(score)),
        "difference": asdict(statistics.paired_difference(score, base)),
    }


def _percent(share: Estimate) -> str:
    """Format as 98 % [95, 101], or the value alone without an interval."""
    ends = "" if share.low is None else f" [{100 * share.low:.0f}, {100 * share.high:.0f}]"
    return f"{100 * share.value:.0f} %{ends}"


def estimate(row: Row, name: str) -> dict[str, Any]:
    """The value and interval of a statistic in a row."""
    low, high = _ends(name)
    return {"value": row[name], "low": row[low], "high": row[high]}


def save_plot(rows: Sequence[Row], path: Path, title: str, score: str = "score") -> None:
    """Save a PNG of the score with its interval against median latency: above the mean, below the interquartile mean.

    A single fall can change the mean more than all settings do, hence the second panel. Filled markers show the Pareto
    front of the table in both panels, a dotted line the base policy's score. The points have the table's numbers, which
    a list beside them explains.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    # A Figure of its own needs no display and does not touch pyplot's global state.
    figure = Figure(figsize=(12, 8), layout="constrained")
    points = [row for row in rows if row["cell"] != BASE.name]
    plots, legend = figure.subfigures(1, 2, width_ratios=(3, 1 + len(points) // MOST_LINES))
    panels = plots.subplots(2, 1, sharex=True)
    for axes, (name, label) in zip(
        panels, {"score_mean": "mean", "score_iqm": "interquartile mean"}.items(), strict=True
    ):
        draw_panel(axes, rows, name)
        limit(axes, rows, name)
        axes.set_ylabel(f"{score}, {label}\n(95 % interval)")
    panels[0].set_title(title)
    panels[1].set(xscale="log", xlabel="time to decide, one episode alone (ms, median)")
    panels[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[1].xaxis.set_major_formatter("{x:g}")
    panels[1].xaxis.set_minor_formatter("")
    plots.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    for i in range(0, len(points), MOST_LINES):
        text = "\n".join(f"{row['number']:>3}  {_setting(row)}" for row in points[i : i + MOST_LINES])
        legend.text(i / max(len(points), MOST_LINES), 0.97, text, fontsize=7, va="top", family="monospace")
    save_png(figure, path)


def draw_panel(axes: Any, rows: Sequence[Row], name: str) -> None:
    """Draw one statistic of the score, a column of the rows, against latency."""
    points = [row for row in rows if row["cell"] != BASE.name]
    steps = {"where": "post", "color": "0.6", "linestyle": "--", "linewidth": 1, "zorder": 1}
    if name == "score_mean":
        front = [row for row in points if row["front"]]
        axes.step(*_columns(front, name), **steps, label="Pareto front (filled)")
    for world in dict.fromkeys([*STYLES, *(row["world"] for row in points)]):
        style, own = style_of(world), [row for row in points if row["world"] == world]
        if own:
            colour = {"color": style["color"], "linestyle": "none"}
            axes.errorbar(*_columns(own, name), _bars(own, name), **colour, elinewidth=0.8, capsize=2, zorder=2)
            marks = {**colour, "marker": style["marker"], "markersize": 7, "zorder": 3}
            axes.plot(*_columns(own, name), **marks, markerfacecolor="white", label=style["label"])
            axes.plot(*_columns([row for row in own if row["front"]], name), **marks)
    for row in points:
        at = row["latency_p50_ms"], row[name]
        axes.annotate(str(row["number"]), at, (5, 5), textcoords="offset points", fontsize=7, zorder=4)
    base = next(row[name] for row in rows if row["cell"] == BASE.name)
    axes.axhline(base, color="black", linestyle=":", linewidth=1, zorder=1, label=STYLES["base"]["label"])


def limit(axes: Any, rows: Sequence[Row], name: str) -> None:
    """Limit the score's axis to at least MIN_SPAN: for the mean to its intervals, else to the values alone."""
    ends = (name, *_ends("score")) if name == "score_mean" else (name,)
    values = [row[end] for row in rows for end in ends if row[end] is not None]
    low, high = min(values), max(values)
    margin = max(0.15 * (high - low), (MIN_SPAN - (high - low)) / 2)
    axes.set_ylim(low - margin, high + margin)
    axes.ticklabel_format(axis="y", useOffset=False)


def _columns(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Horizontal and vertical coordinates of the rows."""
    return [row["latency_p50_ms"] for row in rows], [row[name] for row in rows]


def _bars(rows: Sequence[Row], name: str) -> np.ndarray:
    """Distances (2, N) from the statistic down and up to the ends of its interval; zero without an interval."""
    prefix = name.removesuffix("_mean")
    low, high = ([row[name] if row[end] is None else row[end] for row in rows] for end in _ends(prefix))
    value = np.array([row[name] for row in rows])
    # Rounding may move the end of an interval of width 0 to the wrong side.
    return np.maximum([value - low, high - value], 0.0)


def _ends(prefix: str) -> tuple[str, str]:
    """Names of the columns of an interval."""
    return f"{prefix}_low", f"{prefix}_high"


def _setting(row: Row) -> str:
    """Settings of a grid point in the list of the picture."""
    strength = {"max_deviation": "deviation", "inner_lr": "step size"}
    own = [f", {text} {row[name]:g}" for name, text in strength.items() if row[name] is not None]
    return f"{title_of(row)}, H {row['horizon']}, M {row['particles']}, E {row['inner_steps']}{''.join(own)}"
