"""The picture of an evaluation in a maze: walls, goals, trajectories, falls, and the critic's value by position."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdwm.bundle import Bundle
from fastdwm.envs import EnvSpec
from fastdwm.eval.compare import Evaluation
from fastdwm.measure.simulate import Episode
from fastdwm.pictures import save_png

COLORS = {"base": "tab:purple", "itpo": "tab:blue"}
GOAL_RADIUS = 0.45
MAX_TRACKS = 20
"""episodes whose trajectories are drawn, the first ones"""
POINTS_PER_CELL = 12
"""positions along a side of a cell at which the value is computed"""
POSTURES = 16
"""recorded postures over which the value of a position is averaged"""


@dataclass(frozen=True)
class Track:
    """An episode of the ant in a maze."""

    obs: np.ndarray
    """observations (T + 1, S), the last one included; the position comes first"""
    goal: np.ndarray
    """position (2,) of the goal"""
    reached: bool
    """whether the episode reached its goal"""

    @property
    def fall(self) -> np.ndarray | None:
        """Position (2,) at which the ant fell on its back and stayed there until the end; none if it did not."""
        upright = np.flatnonzero(upside_up(self.obs))
        first = upright[-1] + 1 if len(upright) else 0
        return self.obs[first, :2] if first < len(self.obs) else None


def upside_up(obs: np.ndarray) -> np.ndarray:
    """Whether the torso's vertical axis points upward (...), by the quaternion (w, x, y, z) in obs (..., S)."""
    x, y = obs[..., 4], obs[..., 5]
    return 1 - 2 * (x**2 + y**2) >= 0


def is_maze(env: EnvSpec) -> bool:
    """Whether the simulator is an ant in a maze, for which `save_maze_plot` works."""
    return env.id.startswith("AntMaze")


def save_maze_plot(evaluation: Evaluation, bundle: Bundle, path: Path) -> Path:
    """Save a PNG with one panel per policy, on the same seeds: the maze, the goals, the trajectories, and where ants
    fell, over the value of the base policy by position: the smaller critic's, averaged over recorded postures."""
    from matplotlib.figure import Figure

    env = bundle.task.env
    tracks = {
        policy: [replay(env, episode) for episode in run.episodes[:MAX_TRACKS]]
        for policy, run in evaluation.runs.items()
    }
    with env.make() as simulator:
        maze = simulator.unwrapped.maze
        field = value_field(bundle, maze, postures(tracks["base"]))
    figure = Figure(figsize=(11, 1.2 + 4.6 * maze.map_length / maze.map_width), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, (policy, title) in zip(panels, evaluation.titles.items(), strict=True):
        image = panel.imshow(field, extent=extent(maze), origin="upper", cmap="Greens")
        draw_tracks(panel, tracks[policy], COLORS[policy])
        episodes = evaluation.runs[policy].episodes
        n_reached = sum(episode.total > 0 for episode in episodes)
        panel.set_title(f"{bundle.task.name}, {title}: {n_reached} of {len(episodes)} reach the goal", fontsize=10)
        panel.set(facecolor="0.75", xlabel="x in m")
    panels[0].set_ylabel("y in m")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.colorbar(image, ax=panels, label="value of the base policy by the critics")
    return save_png(figure, path)


def replay(env: EnvSpec, episode: Episode) -> Track:
    """Repeat the recorded actions on the recorded seed, to obtain the states of the episode that was scored."""
    with env.make() as simulator:
        states = [simulator.reset(seed=episode.seed)[0]]
        goal = np.array(simulator.unwrapped.goal)
        states += [simulator.step(action)[0] for action in episode.actions]
    return Track(np.stack(states), goal, episode.total > 0)


def draw_tracks(panel: Any, tracks: list[Track], color: str) -> None:
    """Draw trajectories, their ends, falls and goals; each kind is named once in the legend."""
    from matplotlib.patches import Circle

    for i, track in enumerate(tracks):
        label = "trajectory" if i == 0 else None
        panel.plot(*track.obs[:, :2].T, color=color, linewidth=0.8, alpha=0.8, label=label)
        circle = {"facecolor": "none", "edgecolor": "black", "linestyle": ":", "label": "goal" if i == 0 else None}
        panel.add_patch(Circle(track.goal, GOAL_RADIUS, **circle))
    starts = np.stack([track.obs[0, :2] for track in tracks])
    failed = [track.obs[-1, :2] for track in tracks if not track.reached and track.fall is None]
    falls = [track.fall for track in tracks if track.fall is not None]
    marks = {"start": (starts, "k."), "fall": (falls, "rx"), "end of an episode without a goal": (failed, "ks")}
    for label, (positions, mark) in marks.items():
        positions = np.reshape(positions, (-1, 2))
        panel.plot(*positions.T, mark, markersize=6, markerfacecolor="none", label=label)


def postures(tracks: list[Track]) -> np.ndarray:
    """Observations (POSTURES, S) of upright ants, evenly spaced over the tracks."""
    obs = np.concatenate([track.obs for track in tracks])
    obs = obs[upside_up(obs)]
    return obs[np.linspace(0, len(obs) - 1, POSTURES).astype(int)]


@torch.no_grad()
def value_field(bundle: Bundle, maze: Any, obs: np.ndarray) -> np.ndarray:
    """Value by position, (rows, columns) from the upper left; NaN inside walls.

    obs: postures (P, S), whose position is replaced.   Values are in the unit of the trained reward.
    """
    free = np.kron(np.array(maze.maze_map, dtype=object) != 1, np.ones((POINTS_PER_CELL,) * 2, bool))
    left, right, low, high = extent(maze)
    rows, columns = free.shape
    x = left + (np.arange(columns) + 0.5) / columns * (right - left)
    y = high - (np.arange(rows) + 0.5) / rows * (high - low)
    positions = np.stack([axis[free] for axis in np.meshgrid(x, y)], 1)
    field = np.full(free.shape, np.nan)
    field[free] = np.mean([position_values(bundle, posture, positions) for posture in obs], 0)
    return field


def position_values(bundle: Bundle, posture: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Value (N,) of one posture (S,) at positions (N, 2)."""
    obs = np.tile(posture, (len(positions), 1))
    obs[:, :2] = positions
    states: Tensor = torch.from_numpy(obs).float()
    critics = bundle.world().critic
    return critics(states, bundle.policy_function(bundle.policy, states)).amin(0).numpy()


def extent(maze: Any) -> tuple[float, float, float, float]:
    """The maze's left, right, lower and upper edge in m."""
    return -maze.x_map_center, maze.x_map_center, -maze.y_map_center, maze.y_map_center
