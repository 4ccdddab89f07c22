"""The paper's tables: their columns, rows and averages, as texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from fastdwm.config import world_title
from fastdwm.jobs.sweep import VARIANTS
from fastdwm.report.paper import published
from fastdwm.report.paper.results import Gain, Results, Rmse, Scores, TaskResult
from fastdwm.tables import interval, spread

TITLES = {
    "default": "ITPO (default)",
    "tuned": "ITPO (tuned)",
    "meanflow": f"ITPO ({world_title('meanflow')})",
    "critic": "critic alone (H = 0)",
    "drift": "control (drift)",
}
MARKS = {"better": " ▲", "worse": " ▼", "tie": ""}
OURS = "here: newly generated data, not D4RL"
GAINS = "here: ITPO - base policy, paired"
ON_D4RL = "here: D4RL's data"
THEIRS = "published: D4RL v2, other data"
WORLDS = {name: world_title(name) for name in ("diffusion", "meanflow")}
MISSING = "-"
Part = TypeVar("Part")

SCORES = (
    "Score: 0 random, 100 expert; mean ± standard deviation over episodes. Differences are paired by environment seed: "
    "mean [95 % bootstrap interval], ▲ better and ▼ worse where the interval excludes 0. "
    "Data: mean score of the dataset. Averages compare only over the same tasks."
)
ROBUST = "[ ] 95 % bootstrap interval. ms: median of one episode deciding alone, all on one machine."
RATES = "Success: a score above 0; [ ] Wilson's 95 % interval. Differences of the mean, paired by environment seed."
ERRORS = (
    "Root of the mean square over 1000 held-out transitions, in raw units, of the next observation also over its "
    "coordinates and 16 samples; ± standard error, between trainings where there are several. "
    "The published text does not say how its numbers were measured."
)


MODELS = (
    "Means over the default's decisions, returns in units of the trained reward. Deviation: root mean square distance "
    "of the adapted policy's action from the base policy's, before it was clipped; clipped: share of the decisions "
    "in which it was. Predicted: the imagined return before the step; excess: the part of it that the next H steps "
    "did not bring. First states: value of the base policy in the data's first states by the critics that ITPO "
    "maximises and by fitted Q evaluation, and the discounted return of the data's own episodes."
)


@dataclass(frozen=True)
class Column:
    """A column of texts by task; tasks without a text are shown as missing."""

    header: str
    texts: dict[str, str]
    numbers: dict[str, float] = field(default_factory=dict)
    """numbers for the average, by task; empty: no average"""
    form: str = ".1f"
    printed: str | None = None
    """the published average"""

    def average(self, tasks: Sequence[str]) -> str:
        """Mean over these tasks; missing if one of them is missing."""
        complete = all(task in self.numbers for task in tasks)
        return format(sum(self.numbers[task] for task in tasks) / len(tasks), self.form) if complete else MISSING


@dataclass(frozen=True)
class Table:
    """A table with one row per task and columns in named groups."""

    key: str
    title: str
    tasks: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Column, ...]], ...]
    caption: str

    @property
    def columns(self) -> list[Column]:
        """The columns of all groups, from left to right."""
        return [column for _, columns in self.groups for column in columns]

    def rows(self, columns: Sequence[Column] | None = None) -> list[list[str]]:
        """Rows of a task's name and one text per column."""
        columns = self.columns if columns is None else columns
        return [[task, *(column.texts.get(task, MISSING) for column in columns)] for task in self.tasks]

    def averages(self, columns: Sequence[Column] | None = None) -> list[list[str]]:
        """Row of averages over all tasks; if some are missing, also over the tasks that every column has.

        Only these are comparable. Empty for a table without numbers to average.
        """
        columns = self.columns if columns is None else columns
        if not any(column.numbers for column in self.columns):
            return []
        averages = [column.printed or column.average(self.tasks) for column in columns]
        rows = [[f"average of {len(self.tasks)}", *averages]]
        kept = [column.numbers for column in self.columns if column.numbers]
        shared = [task for task in self.tasks if all(task in numbers for numbers in kept)]
        if 0 < len(shared) < len(self.tasks):
            rows.append([f"average of the {len(shared)} here", *(c.average(shared) for c in columns)])
        return rows


def all_tables(results: Results) -> list[Table]:
    """Tables 1, 2, 4 and 5, and Table 3 if a maze was evaluated."""
    tables = [locomotion(results), robust(results), generative(results)]
    if any(task in results.tasks for task in published.MAZES):
        tables.append(mazes(results))
    tables += [dynamics(results), reward(results), models(results)]
    names = {OURS: ON_D4RL} if results.d4rl else {}
    return [replace(x, groups=tuple((names.get(name, name), columns) for name, columns in x.groups)) for x in tables]


def locomotion(results: Results) -> Table:
    """Table 1: normalised scores."""
    ours = (_data(results), *_policies(results, score_text, lambda x: x.mean))
    groups = ((OURS, ours), _gains(results), (THEIRS, tuple(map(_published, published.SCORES))))
    return Table("table-1", "Table 1. Normalised scores, Gym-MuJoCo", published.LOCOMOTION, groups, SCORES)


def robust(results: Results) -> Table:
    """The continuation of Table 1: interquartile means, latencies, tuned settings."""
    iqm = _policies(results, lambda x: interval(vars(x.iqm)), lambda x: x.iqm.value)
    cost = _policies(results, lambda x: MISSING if x.latency_ms is None else f"{x.latency_ms:.2f}")
    chosen = _column(results, "tuned settings", lambda x: x.gains.get("tuned"), lambda gain: " or ".join(gain.settings))
    groups = (("interquartile mean of the score", iqm), ("ms per decision", cost), ("chosen by tune", (chosen,)))
    title = "Table 1, continued. Interquartile means and cost"
    return Table("table-1b", title, published.LOCOMOTION, groups, ROBUST)


def generative(results: Results) -> Table:
    """Table 2: comparison with generative models."""
    ours = _policies(results, score_text, lambda x: x.mean)
    groups = ((OURS, ours), _gains(results), (THEIRS, tuple(map(_published, published.GENERATIVE_SCORES))))
    return Table("table-2", "Table 2. Against generative models", published.GENERATIVE, groups, SCORES)


def mazes(results: Results) -> Table:
    """Table 3: success rates in AntMaze."""
    rates = _policies(results, rate_text, lambda x: x.mean)
    theirs = tuple(map(_published, (*published.MAZE_SCORES, *published.MAZE_SCORES_B)))
    groups = ((OURS, rates), _gains(results), (THEIRS, theirs))
    return Table("table-3", "Table 3. Success rates in %, AntMaze", published.MAZES, groups, RATES)


def dynamics(results: Results) -> Table:
    """Table 4: errors of the world models."""
    ours = tuple(_errors(results, title, partial(_dynamics_of, world)) for world, title in WORLDS.items())
    groups = ((OURS, ours), (THEIRS, (_published(published.DYNAMICS_RMSE, ".4f"),)))
    return Table("table-4", "Table 4. One-step RMSE of the world models", published.LOCOMOTION, groups, ERRORS)


def reward(results: Results) -> Table:
    """Table 5: errors of the reward model."""
    ours = (_errors(results, "reward model", lambda x: x.reward),)
    groups = ((OURS, ours), (THEIRS, (_published(published.REWARD_RMSE, ".4f"),)))
    return Table("table-5", "Table 5. RMSE of the reward model", published.LOCOMOTION, groups, ERRORS)


def models(results: Results) -> Table:
    """Predictions of the models and real results, for the default's decisions: first hints when ITPO loses."""
    shown = {"deviation": ("deviation", "{:.3f}"), "clipped": ("clipped", "{:.2f}")}
    shown |= {"predicted": ("predicted_return", "{:.1f}"), "excess": ("prediction_error", "{:+.1f}")}
    decisions = tuple(
        _column(results, title, partial(_diagnostic, name), form.format) for title, (name, form) in shown.items()
    )
    names = {"critics": "critics", "fqe": "FQE", "data": "data"}
    values = tuple(_column(results, title, partial(_value, name), "{:.1f}".format) for name, title in names.items())
    groups = (("default, means over decisions", decisions), ("value of first states", values))
    return Table("models", "Predictions of the models against real results", published.LOCOMOTION, groups, MODELS)


def _diagnostic(name: str, result: TaskResult) -> float | None:
    """One of the diagnostics of the default's decisions."""
    return result.gains["default"].diagnostics.get(name) if "default" in result.gains else None


def _value(name: str, result: TaskResult) -> float | None:
    """Value of the data's first states by one of `critics`, `fqe` and `data`."""
    return result.critic.get(name)


def score_text(scores: Scores) -> str:
    """Format as 98.2 ± 3.1, or the mean alone for one episode."""
    return spread(vars(scores))


def rate_text(scores: Scores) -> str:
    """Success rate in % with its interval."""
    return interval({name: 100 * value for name, value in vars(scores.success).items()})


def gain_text(gain: Gain) -> str:
    """Format as +1.2 [0.3, 2.1] ▲."""
    return interval(vars(gain.difference), "+") + MARKS[gain.difference.outcome]


def _column(
    results: Results,
    header: str,
    read: Callable[[TaskResult], Part | None],
    text: Callable[[Part], str],
    number: Callable[[Part], float] | None = None,
    form: str = ".1f",
) -> Column:
    """A column of our results; tasks for which `read` returns None are missing."""
    parts = {task: read(result) for task, result in results.tasks.items()}
    parts = {task: part for task, part in parts.items() if part is not None}
    numbers = {task: number(part) for task, part in parts.items()} if number else {}
    return Column(header, {task: text(part) for task, part in parts.items()}, numbers, form)


def _data(results: Results) -> Column:
    return _column(results, "data", lambda x: x.behaviour, lambda x: f"{x:z.1f}", float)


def _policies(
    results: Results, text: Callable[[Scores], str], number: Callable[[Scores], float] | None = None
) -> tuple[Column, ...]:
    """One column per policy, the base policy first."""
    base = _column(results, "base policy", lambda x: x.base, text, number)
    return base, *(_column(results, TITLES[name], partial(_scores_of, name), text, number) for name in VARIANTS)


def _scores_of(name: str, result: TaskResult) -> Scores | None:
    return result.gains[name].scores if name in result.gains else None


def _gains(results: Results) -> tuple[str, tuple[Column, ...]]:
    """The group of columns with the paired difference of every variant."""

    def gain_column(name: str) -> Column:
        return _column(
            results, TITLES[name], lambda x: x.gains.get(name), gain_text, lambda gain: gain.difference.value, "+z.1f"
        )

    return GAINS, tuple(map(gain_column, VARIANTS))


def _dynamics_of(world: str, result: TaskResult) -> Rmse | None:
    return result.dynamics.get(world)


def _errors(results: Results, header: str, read: Callable[[TaskResult], Rmse | None]) -> Column:
    def text(rmse: Rmse) -> str:
        return f"{rmse.value:.4f}" + ("" if rmse.error is None else f" ± {rmse.error:.4f}")

    return _column(results, header, read, text, lambda rmse: rmse.value, ".4f")


def _published(column: published.Column, form: str = "") -> Column:
    """A published column; an empty form keeps all digits."""
    texts = {task: format(value, form) for task, value in column.values.items()}
    average = format(column.average, form)
    return Column(f"{column.name} [{column.source}]", texts, column.values, form or ".1f", average)
