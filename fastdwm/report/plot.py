"""Draw the picture of a model report: prediction, calibration and gradients of every world model."""

from pathlib import Path
from typing import Any

from fastdwm.config import world_title
from fastdwm.models.registry import WORLD_MODELS
from fastdwm.pictures import save_png

# Styles of the world models in the order of WORLD_MODELS, readable in black and white.
STYLES = (
    {"color": "black", "linestyle": "-", "marker": "o"},
    {"color": "0.35", "linestyle": "--", "marker": "s"},
    {"color": "0.6", "linestyle": ":", "marker": "^"},
    {"color": "0.2", "linestyle": "-.", "marker": "D"},
    {"color": "0.5", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
)


def style_of(world: str) -> dict[str, Any]:
    """The style of a world model, independent of the other models in the picture."""
    return STYLES[list(WORLD_MODELS).index(world) % len(STYLES)]


def save_model_plot(measurements: dict[str, Any], path: Path, title: str) -> Path:
    """Save a PNG of open-loop error, reliability and, if it was measured, gradient agreement."""
    from matplotlib.figure import Figure

    with_gradients = "left_out" in measurements
    # A Figure of its own needs no display and does not touch pyplot's global state.
    figure = Figure(figsize=(10, 8 if with_gradients else 4), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots(2 if with_gradients else 1, 2, squeeze=False)
    draw_open_loop(axes[0, 0], measurements["worlds"])
    draw_reliability(axes[0, 1], measurements["worlds"])
    if with_gradients:
        draw_agreement(axes[1, 0], measurements["worlds"], "cosine", "cosine with the simulator's gradient")
        draw_agreement(axes[1, 1], measurements["worlds"], "relative_error", "relative error (log scale)")
        axes[1, 1].set_yscale("log")
    return save_png(figure, path)


def draw_open_loop(axes: Any, worlds: dict[str, dict]) -> None:
    for name, world in worlds.items():
        steps, errors = [[line[key] for line in world["open_loop"]] for key in ("h", "obs_rmse_normalised")]
        axes.plot(steps, errors, label=world_title(name), **style_of(name))
    axes.set(xlabel="imagined steps, recorded actions", ylabel="RMSE in std of the observation", ylim=(0, None))
    axes.set_title("open-loop error", fontsize="medium")
    axes.legend()


def draw_reliability(axes: Any, worlds: dict[str, dict]) -> None:
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=4, label="calibrated")
    for name, world in worlds.items():
        calibration = world["calibration"]
        axes.plot(calibration["levels"], calibration["coverage"], label=world_title(name), **style_of(name))
    axes.set(
        xlabel="central share of the samples", ylabel="share of recorded values inside", xlim=(0, 1), ylim=(-0.02, 1)
    )
    axes.set_title("reliability of the samples", fontsize="medium")
    axes.legend()


def draw_agreement(axes: Any, worlds: dict[str, dict], measure: str, label: str) -> None:
    """Draw median and quartiles of the cosine or the relative error: Jacobians, then the gradient of the return."""
    first = next(iter(worlds.values()))
    ticks = [
        "next obs\nby action",
        "change\nby state",
        *(f"return\nH = {line['H']}" for line in first["return_gradient"]),
    ]
    for i, (name, world) in enumerate(worlds.items()):
        parts = [world["jacobian"][part] for part in ("next_obs_by_action", "next_obs_by_state")]
        values = [x[measure] for x in (*parts, *world["return_gradient"])]
        median, low, high = ([x[key] for x in values] for key in ("median", "low", "high"))
        bars = [[m - a for m, a in zip(median, low, strict=True)], [b - m for m, b in zip(median, high, strict=True)]]
        x = [tick + 0.2 * (i - (len(worlds) - 1) / 2) for tick in range(len(ticks))]
        style = style_of(name) | {"linestyle": "none"}
        axes.errorbar(x, median, yerr=bars, capsize=3, label=world_title(name), **style)
    axes.set(xticks=range(len(ticks)), xticklabels=ticks, ylabel=label)
    axes.set_title("gradients against the simulator: median, quartiles over states", fontsize="medium")
    axes.legend()
