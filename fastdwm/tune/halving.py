"""Successive halving: run all candidates on a few episodes, the better half on as many again, and so on.

[Successive halving] Jamieson and Talwalkar, arXiv 1502.07943. Deviations: the base policy and the default stay until
the end, because the choice is compared with them; and while there is time, the last other candidate continues beside
them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from fastdwm.config import Settings
from fastdwm.measure import statistics

TIE = 0.1
"""difference in score below which two candidates count as equally good"""
SURE = 0.84
"""a candidate also counts as equally good if the best exceeds it in a smaller share of resamples; one standard error"""
FIRST_SHARE = 0.5
"""share of the time after which the first round drops the candidates that it has not run"""
AS_CHEAP = 1.25
"""factor of the lowest cost within which costs count as equal; measured costs vary about as much"""
MOST_EPISODES = 64
"""most episodes of a candidate; more would add little"""

# run(settings, environment seeds): scores in the order of the seeds, and seconds per decision of an episode
Run = Callable[[Settings, list[int]], tuple[list[float], float]]


@dataclass
class Trial:
    """Settings, and their scores on the first tuning seeds."""

    settings: Settings
    scores: list[float] = field(default_factory=list)
    decision_s: float = 0.0
    """seconds per decision and episode, for episodes that decide at once"""
    spent_s: float = 0.0

    @property
    def iqm(self) -> float:
        """Interquartile mean of the scores."""
        return float(statistics.interquartile_mean(np.array(self.scores)))

    @property
    def mean(self) -> float:
        """Mean of the scores."""
        return float(np.mean(self.scores))

    def go_on(self, run: Run, seeds: list[int]) -> None:
        """Run the seeds that have no scores yet."""
        start = perf_counter()
        scores, self.decision_s = run(self.settings, seeds[len(self.scores) :])
        self.scores += scores
        self.spent_s += perf_counter() - start

    def record(self, base: "Trial") -> dict[str, Any]:
        """The trial as JSON values; the difference is paired by seed, over the seeds of this trial."""
        n = len(self.scores)
        difference = statistics.paired_difference(self.scores, base.scores[:n])
        return {
            "settings": self.settings.record(),
            "episodes": n,
            "score_iqm": self.iqm,
            "score_mean": self.mean,
            "difference": {name: getattr(difference, name) for name in ("value", "low", "high")},
            "decision_ms": 1e3 * self.decision_s,
            "scores": self.scores,
        }


def halve(
    base: Trial,
    trials: list[Trial],
    run: Run,
    first_seed: int,
    episodes: int,
    budget_s: float,
    on_round: Callable[[int, int, int], None],
) -> list[Trial]:
    """Run rounds with fewer and fewer candidates while time remains; the default and the best other one always stay.

    trials: the candidates, the default first.   episodes: per candidate in the first round; each round doubles them.
    on_round(episodes per candidate, trials done, trials in this round).   The first round runs at least the base policy
    and the default.   Returns the trials of the last round.
    """
    start, alive, total = perf_counter(), list(trials), episodes
    while True:
        seeds = [first_seed + i for i in range(total)]
        run_round([base, *alive], run, seeds, start + FIRST_SHARE * budget_s, on_round)
        # The first round may have dropped some.
        alive = [trial for trial in alive if len(trial.scores) == total]
        left = budget_s - (perf_counter() - start)
        default, *others = alive
        better = sorted(others, key=lambda trial: -trial.iqm)[: max(len(alive) // 2 - 1, 1)]
        # Doubling a trial's episodes takes as long as the trial has taken so far.
        next_s = sum(trial.spent_s for trial in (base, default, *better))
        if 2 * total > MOST_EPISODES or next_s > left:
            return alive
        alive, total = [default, *better], 2 * total


def run_round(
    trials: list[Trial], run: Run, seeds: list[int], until_s: float, on_round: Callable[[int, int, int], None]
) -> None:
    """Run all trials on the seeds; the first round starts no trial after `until_s`."""
    on_round(len(seeds), 0, len(trials))
    for i, trial in enumerate(trials):
        first = not trial.scores
        if first and i > 1 and perf_counter() > until_s:
            break
        trial.go_on(run, seeds)
        on_round(len(seeds), i + 1, len(trials))
    on_round(len(seeds), len(trials), len(trials))


def choose(base: Trial, finalists: list[Trial], tie: float = TIE) -> Trial:
    """Drop trials whose mean is below the base policy's, keep those as good as the best interquartile mean, of these
    the cheapest, and return the one with the best mean. It is the base policy if nothing beats it.

    The best of many trials is partly lucky, so those within one standard error of it count as equally good (the rule of
    Breiman et al., Classification and Regression Trees, 1984). The interquartile mean ignores rare falls, hence the
    condition on the mean.   tie: difference in score below which two candidates count as equally good.
    """
    trials = [trial for trial in (base, *finalists) if trial.mean >= base.mean]
    best = max(trials, key=lambda trial: trial.iqm)
    good = [trial for trial in trials if as_good(trial, best, tie)]
    least = min(trial.decision_s for trial in good)
    return max((trial for trial in good if trial.decision_s <= AS_CHEAP * least), key=lambda trial: trial.mean)


def as_good(trial: Trial, best: Trial, tie: float = TIE) -> bool:
    """Whether the best trial, on the same seeds, exceeds this one by at most `tie`, or in a share below SURE."""
    near = best.iqm - trial.iqm <= tie
    return near or statistics.confidence_above(best.scores, trial.scores, tie) < SURE
