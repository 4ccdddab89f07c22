"""Steer an ant through the cells of a maze, as D4RL recorded its AntMaze data.

A breadth-first search gives the path from cell to cell. Where episodes start and where they go depends on the task, as
in D4RL; the reward is always that of the evaluation's goal, wherever the ant is heading.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastdwm.collect.ant import Walker, is_on_its_back
from fastdwm.collect.behaviour import Act

Cell = tuple[int, int]

TURN_DISTANCE, ARRIVAL_DISTANCE = 1.2, 0.7
"""distance at which the next cell on the path, and the target, count as reached (m)"""
WAYPOINT_NOISE, TARGET_NOISE = 0.4, 1.0
"""largest distance of a waypoint and of a target from the middle of their cell, in x and y (m)"""
MOST_BACK_STEPS = 50
"""steps on its back after which an episode is truncated, for the ant never gets up"""


@dataclass(frozen=True)
class Course:
    """Where the episodes of a task start and go.

    fixed_start: they start where the evaluation does; otherwise in any free cell.   targets: `goal`, the evaluation's;
    `any`, any free cell; or cells (row, column). A new target is drawn whenever one is reached.
    """

    fixed_start: bool
    targets: Literal["goal", "any"] | tuple[Cell, ...]


# The hand-picked cells of `play` are D4RL's, with the evaluation's goal.
COURSES = {
    "antmaze-umaze": Course(True, "goal"),
    "antmaze-umaze-diverse": Course(False, "any"),
    "antmaze-medium-play": Course(False, ((2, 6), (5, 1), (6, 5), (6, 6))),
    "antmaze-medium-diverse": Course(False, "any"),
    "antmaze-large-play": Course(False, ((1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9))),
    "antmaze-large-diverse": Course(False, "any"),
}


class Guide:
    """Leads a walker through the maze of one simulator; `start` before each episode."""

    def __init__(self, env: Any, course: Course):
        """env: a simulator of AntMaze."""
        self.env, self.maze = env.unwrapped, env.unwrapped.maze
        self.course = course
        rows = enumerate(self.maze.maze_map)
        self.free: list[Cell] = [(i, j) for i, row in rows for j, mark in enumerate(row) if mark != 1]
        self.goal = next((i, j) for i, j in self.free if self.maze.maze_map[i][j] == "g")
        self.targets = {"goal": [self.goal], "any": self.free}.get(course.targets) or list(course.targets)
        self.walker: Walker | None = None
        self.target: Cell | None = None
        self.back_steps = 0

    def start(self, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        """Begin an episode; returns the options of the simulator's reset."""
        self.walker, self.target, self.back_steps = None, None, 0
        if self.course.fixed_start:
            return None
        starts = [cell for cell in self.free if cell != self.goal]
        return {"reset_cell": np.array(starts[rng.integers(len(starts))])}

    def steered(self, act: Act) -> Act:
        """The policy `act`, which walks along +x, as one that walks to the targets."""

        def steered_act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            position = obs[:2]
            if self.walker is None:
                self.walker = Walker(act)
            if self.target is None or np.linalg.norm(self.target_point - position) < ARRIVAL_DISTANCE:
                self._choose_target(position, rng)
            if self.waypoint != self.target and np.linalg.norm(self.point - position) < TURN_DISTANCE:
                self._head_for(self.next_cells[self.waypoint], rng)
            return self.walker(obs, self.point, rng)

        return steered_act

    def is_stuck(self, obs: np.ndarray) -> bool:
        """Whether the ant of obs (29,) has lain on its back for MOST_BACK_STEPS steps; called after every step."""
        self.back_steps = self.back_steps + 1 if is_on_its_back(obs) else 0
        return self.back_steps >= MOST_BACK_STEPS

    def _choose_target(self, position: np.ndarray, rng: np.random.Generator) -> None:
        """Draw a target in another cell, and find the way from each cell to it."""
        here = tuple(int(index) for index in self.maze.cell_xy_to_rowcol(position))
        choices = [cell for cell in self.targets if cell != here] or self.targets
        self.target = choices[rng.integers(len(choices))]
        if self.target == self.goal:
            self.target_point = self.env.goal.copy()
        else:
            self.target_point = self._middle(self.target) + rng.uniform(-TARGET_NOISE, TARGET_NOISE, 2)
        self.next_cells = next_cells(self.target, self.free)
        if here not in self.next_cells:
            # The middle of the ant is above a wall.
            here = min(self.free, key=lambda cell: np.linalg.norm(self._middle(cell) - position))
        self._head_for(self.next_cells[here], rng)

    def _head_for(self, cell: Cell, rng: np.random.Generator) -> None:
        self.waypoint = cell
        if cell == self.target:
            self.point = self.target_point
        else:
            self.point = self._middle(cell) + rng.uniform(-WAYPOINT_NOISE, WAYPOINT_NOISE, 2)

    def _middle(self, cell: Cell) -> np.ndarray:
        return self.maze.cell_rowcol_to_xy(np.array(cell))


def next_cells(target: Cell, free: list[Cell]) -> dict[Cell, Cell]:
    """The next cell on a shortest path to the target, for each free cell that is connected with it."""
    result, queue = {target: target}, deque([target])
    while queue:
        i, j = queue.popleft()
        for cell in ((i, j + 1), (i + 1, j), (i, j - 1), (i - 1, j)):
            if cell in free and cell not in result:
                result[cell] = (i, j)
                queue.append(cell)
    return result
