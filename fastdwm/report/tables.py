"""The tables of a model report: one column per world model, and the reward model that they share."""

import math
from typing import Any

from fastdwm.config import world_title
from fastdwm.tables import print_table

JACOBIANS = {
    "next_obs_by_action": "d next observation / d action",
    "next_obs_by_state": "d change of observation / d state",
}
UNDEFINED = "-"
REWARD_JACOBIANS = {"reward_by_action": "d reward / d action", "reward_by_state": "d reward / d state"}


def print_tables(task: str, source: str, measurements: dict[str, Any]) -> None:
    """Print the measurements: one column per world model, then the reward model."""
    worlds = list(measurements["worlds"].values())
    sections = [prediction_rows(worlds), calibration_rows(worlds)]
    sections += [gradient_rows(worlds)] if "left_out" in measurements else []
    header = ("", *map(world_title, measurements["worlds"]))
    print_table(header, *sections, title=f"{task}: {source}", caption=caption(measurements), width=120)
    title, rows = "the reward model, shared by the world models", reward_rows(measurements["reward"])
    note = f"{UNDEFINED}: the simulator's gradient is 0, as that of a reward for success is"
    undefined = any(UNDEFINED in row for row in rows)
    header = ("reward model", "")
    print_table(header, rows, title=title, caption=note if undefined else "", width=120, left=None)


def caption(measurements: dict[str, Any]) -> str:
    """Explanation of the columns."""
    text = "std: standard deviation over the data; ± standard error"
    if "left_out" not in measurements:
        return text
    shares = (f"{100 * share:.0f} %" for share in measurements["left_out"].values())
    return (
        f"{text}; gradients against finite differences of the simulator: median [quartiles] over states;"
        f" states left out because the observation cuts their velocities: {' and '.join(shares)}"
    )


def prediction_rows(worlds: list[dict]) -> list[list[str]]:
    """Rows of a label and one value per world model."""
    one_step = [world["one_step"] for world in worlds]
    rows = [
        ["network calls per step", *(str(world["network_calls"]) for world in worlds)],
        ["one step: RMSE", *(f"{x['obs_rmse']:.4f} ± {x['obs_rmse_se']:.4f}" for x in one_step)],
        ["one step: in std of the change", *(f"{x['obs_rmse_normalised']:.4f}" for x in one_step)],
    ]
    for h, *errors in zip(*([e["h"] for e in worlds[0]["open_loop"]], *(s["open_loop"] for s in worlds)), strict=True):
        if h in (1, 5, 10):
            steps = f"{h} steps" if h > 1 else "1 step"
            values = (f"{error['obs_rmse_normalised']:.4f}" for error in errors)
            rows.append([f"open loop, {steps}: in std of the observation", *values])
            rows += group_rows(errors)
    return rows


def group_rows(errors: list[dict]) -> list[list[str]]:
    """Rows of the open-loop error by group of coordinates, beside that of the prediction that nothing changes."""
    rows = []
    for name, unchanged in errors[0].get("groups_unchanged", {}).items():
        values = (f"{error['groups'][name]:.4f}" for error in errors)
        rows.append([f"    {name} (no change: {unchanged:.4f})", *values])
    return rows


def calibration_rows(worlds: list[dict]) -> list[list[str]]:
    """Rows of a label and one value per world model."""
    calibrations = [world["calibration"] for world in worlds]
    measures = {
        "spread_to_error": "spread of samples / error of mean",
        "perfect_spread_to_error": "    the same of a perfect network, all error noise",
    }
    rows = []
    for name, label in measures.items():
        rows.append([label, *("-" if x[name] is None else f"{x[name]:.2f}" for x in calibrations)])
    for level in (0.5, 0.9):
        shares = (f"{100 * x['coverage'][x['levels'].index(level)]:.0f} %" for x in calibrations)
        rows.append([f"recorded values in central {100 * level:.0f} % of samples", *shares])
    return rows


def gradient_rows(worlds: list[dict]) -> list[list[str]]:
    """Rows of a label and one value per world model; a row of cosines, then one of relative errors."""
    rows = []
    for part, label in JACOBIANS.items():
        rows += pair(label, [world["jacobian"][part] for world in worlds])
    for i, line in enumerate(worlds[0]["return_gradient"]):
        label = f"d return / d policy, H = {line['H']}"
        rows += pair(label, [world["return_gradient"][i] for world in worlds])
    return rows


def reward_rows(reward: dict[str, Any]) -> list[list[str]]:
    """Rows of a label and a value; for gradients, the cosine, then the relative error."""
    rows = [["one step: RMSE", f"{reward['reward_rmse']:.4f} ± {reward['reward_rmse_se']:.4f}"]]
    for part, label in REWARD_JACOBIANS.items() if "jacobian" in reward else ():
        rows += pair(label, [reward["jacobian"][part]])
    for line in reward.get("return_gradient", ()):
        rows += pair(f"d return / d policy with the simulator's dynamics, H = {line['H']}", [line])
    return rows


def pair(label: str, summaries: list[dict[str, Any]]) -> list[list[str]]:
    """A row of cosines and a row of relative errors."""
    measures = {"cosine": f"{label}: cosine", "relative_error": "    relative error"}
    return [[text, *(quartiles(x[name]) for x in summaries)] for name, text in measures.items()]


def quartiles(x: dict[str, float]) -> str:
    """Format as median [first quartile, third quartile]; UNDEFINED if they are not finite."""
    if not math.isfinite(x["median"]):
        return UNDEFINED
    return f"{x['median']:.3f} [{x['low']:.3f}, {x['high']:.3f}]"
