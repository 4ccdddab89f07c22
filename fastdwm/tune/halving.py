"""Successive halving: all candidates on a few episodes, the better half of them on as many again, and so on.

[Successive halving] Jamieson and Talwalkar, arXiv 1502.07943. Deviations: the base policy and the default stay to the
end, whatever their scores, because they are what the choice is compared with; and while there is time, the last of the
others goes on beside them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from fastdwm.config import Settings
from fastdwm.measure import statistics

TIE = 0.1
"""score: what is nearer than this is as good, and the cheaper is chosen"""
SURE = 0.84
"""of resampled seeds: what the best exceeds in fewer than this, one standard error, is as good as well"""
FIRST_SHARE = 0.5
"""of the time, after which the first round leaves out the candidates that it has not come to"""
AS_CHEAP = 1.25
"""times the cost of the cheapest: what is measured beside other work scatters as much"""
MOST_EPISODES = 64
"""of a candidate: more would tell little"""

# run(settings, environment seeds): scores in the order of the seeds, and seconds per decision of an episode
Run = Callable[[Settings, list[int]], tuple[list[float], float]]


@dataclass
class Trial:
    """Settings, and what came of them on the first so many tuning seeds."""

    settings: Settings
    scores: list[float] = field(default_factory=list)
    decision_s: float = 0.0
    """seconds of a decision, in one of the episodes that decide at once"""
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
        """Run the seeds that it has not had yet."""
        start = perf_counter()
        scores, self.decision_s = run(self.settings, seeds[len(self.scores) :])
        self.scores += scores
        self.spent_s += perf_counter() - start

    def record(self, base: "Trial") -> dict[str, Any]:
        """The line of the table, as JSON values; the difference is paired by seed, over the seeds it has had."""
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
    """Run rounds of ever fewer candidates, but for the default and the best other one, as long as the time will do.

    trials: the candidates, the default first.   episodes: of each in the first round; every other round doubles them.
    on_round(episodes of each, trials done, trials in this round).   Even without time there is a first round, of base
    policy and default.   Returns those of the last round.
    """
    start, alive, total = perf_counter(), list(trials), episodes
    while True:
        seeds = [first_seed + i for i in range(total)]
        run_round([base, *alive], run, seeds, start + FIRST_SHARE * budget_s, on_round)
        # The first round may have left some out.
        alive = [trial for trial in alive if len(trial.scores) == total]
        left = budget_s - (perf_counter() - start)
        default, *others = alive
        better = sorted(others, key=lambda trial: -trial.iqm)[: max(len(alive) // 2 - 1, 1)]
        # Twice the episodes take as long again as all of a trial's so far.
        lasts = sum(trial.spent_s for trial in (base, default, *better))
        if 2 * total > MOST_EPISODES or lasts > left:
            return alive
        alive, total = [default, *better], 2 * total


def run_round(
    trials: list[Trial], run: Run, seeds: list[int], until_s: float, on_round: Callable[[int, int, int], None]
) -> None:
    """All trials on the seeds; in the first round only those that are begun before `until_s`."""
    on_round(len(seeds), 0, len(trials))
    for i, trial in enumerate(trials):
        first = not trial.scores
        if first and i > 1 and perf_counter() > until_s:
            break
        trial.go_on(run, seeds)
        on_round(len(seeds), i + 1, len(trials))
    on_round(len(seeds), len(trials), len(trials))


def choose(base: Trial, finalists: list[Trial]) -> Trial:
    """Of those that are as good as the best interquartile mean, and as cheap as the cheapest, the best mean; the base
    policy where nothing beats it.

    The best of many is the luckiest too: what the seeds do not tell from it counts as good (the one-standard-error rule
    of Breiman et al., Classification and Regression Trees, 1984). An interquartile mean does not see rare falls: what
    is worse than the base policy in the mean is not chosen.
    """
    trials = [trial for trial in (base, *finalists) if trial.mean >= base.mean]
    best = max(trials, key=lambda trial: trial.iqm)
    good = [trial for trial in trials if as_good(trial, best)]
    least = min(trial.decision_s for trial in good)
    return max((trial for trial in good if trial.decision_s <= AS_CHEAP * least), key=lambda trial: trial.mean)


def as_good(trial: Trial, best: Trial) -> bool:
    """Whether the best, on the same seeds, exceeds it by no more than a tie, or not surely."""
    near = best.iqm - trial.iqm <= TIE
    return near or statistics.confidence_above(best.scores, trial.scores, TIE) < SURE
