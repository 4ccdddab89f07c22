"""Choose how many inner steps fit into a time limit, from the measured cost of earlier ones."""

from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter

WINDOW = 20
"""number of recorded costs; the next step is expected to take as long as the slowest of them"""
LEARNING = 3
"""number of costs to record before steps are left out"""


class Deadline:
    """Limit the inner steps of each decision to those that end within `limit_s` seconds.

    The time after the last step (the action, its copy to the host) is measured and reserved as well; the time before
    the first (checks, noise) has passed when steps are requested, and counts as used. If no step fits, the slowest
    recorded cost is replaced by the second slowest, so that one outlier cannot disable adaptation; a limit that is too
    short even for the fastest step is not tried again and again.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = perf_counter):
        self.limit_s, self._clock = limit_s, clock
        self.decisions, self.missed, self.steps_done = 0, 0, 0
        self.forget()

    def forget(self) -> None:
        """Forget the recorded costs; the counts of decisions and missed deadlines stay."""
        self._steps: deque[float] = deque(maxlen=WINDOW)
        self._rests: deque[float] = deque(maxlen=WINDOW)

    def start(self) -> None:
        """Note that a decision begins."""
        self._started = self._steps_ended = self._clock()

    def finish(self) -> None:
        """Note that the decision has been returned, and count it."""
        now = self._clock()
        self._rests.append(now - self._steps_ended)
        self.decisions += 1
        self.missed += now - self._started > self.limit_s

    def steps(self, limit: int) -> Iterator[int]:
        """Yield 0, 1, .. while another step fits, at most `limit`; a step lasts until the next one is requested."""
        for i in range(limit):
            if self._remaining_steps() < 1:
                self._drop_outlier(i)
                break
            step_start = self._clock()
            yield i
            self._steps.append(self._clock() - step_start)
            self.steps_done += 1
        # Also without a step: the time before it would otherwise be reserved twice, and no step would ever fit again.
        self._steps_ended = self._clock()

    def at_once(self, limit: int, run: Callable[[int], None]) -> None:
        """Call run(n) with the number of steps n that fits, at most `limit`; it must return when they have ended."""
        n = int(min(self._remaining_steps(), limit))
        step_start = self._clock()
        run(n)
        self._steps_ended = self._clock()
        self.steps_done += n
        if n:
            self._steps.append((self._steps_ended - step_start) / n)
        else:
            self._drop_outlier(n)

    def _remaining_steps(self) -> float:
        """Number of steps that fit into the remaining time."""
        if len(self._steps) < LEARNING:
            return 1
        left = self.limit_s - (self._clock() - self._started) - max(self._rests, default=0.0)
        return max(left // max(self._steps), 0)

    def _drop_outlier(self, n_steps: int) -> None:
        """If no step was taken, replace the slowest recorded costs by the second slowest."""
        for costs in (self._steps, self._rests) if n_steps == 0 else ():
            if len(costs) > 1:
                costs[costs.index(max(costs))] = sorted(costs)[-2]
