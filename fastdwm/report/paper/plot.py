"""The pictures of the report as SVG, which use the page's text colour and background."""

import io
import re
from collections.abc import Sequence
from typing import Any

from fastdwm.jobs.sweep import VARIANTS
from fastdwm.report.paper.results import Gain, Results
from fastdwm.report.paper.tables import TITLES

# Variants differ by marker, fill and position. INK and PAPER are replaced by the page's colours, so that the picture is
# readable in light and dark.
INK, PAPER = "#010203", "#fdfeff"
STYLES = {
    "default": {"marker": "o", "markerfacecolor": INK},
    "tuned": {"marker": "s", "markerfacecolor": PAPER},
    "meanflow": {"marker": "^", "markerfacecolor": INK},
    "critic": {"marker": "v", "markerfacecolor": PAPER},
    "drift": {"marker": "x"},
}
MIN_SPAN = 1.0
"""least span of the score's axis in points: smaller differences are noise"""
BASE_STYLE = {"marker": "|", "markersize": 13, "markeredgewidth": 2.2}
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "paper", "font.family": "sans-serif", "font.size": 10}
COLOURS = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")


def differences(results: Results, tasks: Sequence[str]) -> str:
    """Draw a forest plot: the paired difference of every variant with its interval, one row per finished task."""
    tasks = finished(results, tasks)

    def draw(axes: Any) -> None:
        axes.axvline(0, color=INK, linewidth=1)
        for name in VARIANTS:
            points = _points(results, tasks, name)
            for y, gain in points:
                if gain.difference.low is not None:
                    axes.plot([gain.difference.low, gain.difference.high], [y] * 2, color=INK, linewidth=1.2)
            _mark(axes, name, [(gain.difference.value, y) for y, gain in points])
        axes.set_xlabel("score difference, 95 % interval")

    return _figure("differences", draw, tasks)


def scores(results: Results, tasks: Sequence[str]) -> str:
    """Draw the mean scores of the base policy and of every variant, one row per finished task."""
    tasks = finished(results, tasks)

    def draw(axes: Any) -> None:
        base = [(i, results.tasks[t].base.mean) for i, t in enumerate(tasks) if t in results.tasks]
        style = {"color": INK, "linestyle": "none", **BASE_STYLE}
        axes.plot([x for _, x in base], [i for i, _ in base], label="base policy", **style)
        for name in VARIANTS:
            _mark(axes, name, [(gain.scores.mean, y) for y, gain in _points(results, tasks, name)])
        axes.set_xlabel("normalised score, mean")

    return _figure("scores", draw, tasks)


def finished(results: Results, tasks: Sequence[str]) -> list[str]:
    """Those of the tasks that have results."""
    return [task for task in tasks if task in results.tasks]


def _points(results: Results, tasks: Sequence[str], name: str) -> list[tuple[float, Gain]]:
    """Vertical position and gain of a variant, for every task that has it."""
    place = 0.18 * (VARIANTS.index(name) - (len(VARIANTS) - 1) / 2)
    rows = [(i + place, results.tasks.get(task)) for i, task in enumerate(tasks)]
    return [(y, result.gains[name]) for y, result in rows if result and name in result.gains]


def _mark(axes: Any, name: str, points: list[tuple[float, float]]) -> None:
    style = {"color": INK, "linestyle": "none", "markersize": 5, "markeredgecolor": INK, **STYLES[name]}
    axes.plot([x for x, _ in points], [y for _, y in points], label=TITLES[name] if points else None, **style)


def _figure(name: str, draw: Any, tasks: Sequence[str]) -> str:
    """The <svg> of a picture with one row per task; it is narrow, so that it is readable on a phone."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**SETTINGS, **dict.fromkeys(COLOURS, INK)}):
        figure = Figure(figsize=(5, 1.2 + 0.36 * len(tasks)), layout="constrained")
        axes = figure.subplots()
        axes.set(yticks=range(len(tasks)), yticklabels=tasks, ylim=(len(tasks) - 0.5, -0.5))
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.tick_params(length=0)
        axes.set_frame_on(False)
        for i in range(1, len(tasks), 2):
            axes.axhspan(i - 0.5, i + 0.5, color=INK, alpha=0.06, linewidth=0)
        draw(axes)
        low, high = axes.get_xlim()
        margin = max(0.0, MIN_SPAN - (high - low)) / 2
        axes.set_xlim(low - margin, high + margin)
        axes.ticklabel_format(axis="x", style="plain", useOffset=False)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, handletextpad=0.3)
        file = io.StringIO()
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=none)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    # The ids of two pictures on a page must differ.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{name} by task" ', 1)
