"""How many inner steps fit into a time limit, judged by the measured cost of those before."""

from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter

WINDOW = 20
"""latest costs that count; the slowest of them is what the next step is expected to take"""
LEARNING = 3
"""steps that are taken untested, until something is known about their cost"""


class Deadline:
    """Hands out the inner steps of one decision after the other, as many as end within `limit_s` seconds.

    What follows the last step (the action, its way to the host) is measured and reserved as well; what comes before the
    first (checks, noise) has passed when steps are handed out, and counts as used in every decision. A decision without
    room for a single step takes the slowest cost for the next slowest, so that one hiccup, be it among the first steps,
    does not end the adaptation for good; a limit that is too short for the fastest is not tried again and again.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = perf_counter):
        self.limit_s, self._clock = limit_s, clock
        self.decisions, self.missed, self.steps_done = 0, 0, 0
        self.forget()

    def forget(self) -> None:
        """Learn the costs anew; the counts of decisions and missed deadlines stay."""
        self._steps: deque[float] = deque(maxlen=WINDOW)
        self._rests: deque[float] = deque(maxlen=WINDOW)

    def start(self) -> None:
        """A decision begins."""
        self._started = self._steps_ended = self._clock()

    def finish(self) -> None:
        """The decision is in the caller's hands."""
        now = self._clock()
        self._rests.append(now - self._steps_ended)
        self.decisions += 1
        self.missed += now - self._started > self.limit_s

    def steps(self, limit: int) -> Iterator[int]:
        """0, 1, .. while another step fits, at most `limit` of them; a step lasts until the next one is asked for."""
        for i in range(limit):
            if self._room() < 1:
                self._lighten(i)
                break
            begun = self._clock()
            yield i
            self._steps.append(self._clock() - begun)
            self.steps_done += 1
        # Without a step too: what came before would otherwise be reserved a second time, and end the steps for good.
        self._steps_ended = self._clock()

    def at_once(self, limit: int, run: Callable[[int], None]) -> None:
        """run(n) with the number of steps n that fits, at most `limit`; it must return when they have ended."""
        n = int(min(self._room(), limit))
        begun = self._clock()
        run(n)
        self._steps_ended = self._clock()
        self.steps_done += n
        if n:
            self._steps.append((self._steps_ended - begun) / n)
        else:
            self._lighten(n)

    def _room(self) -> float:
        """Steps that fit into what is left."""
        if len(self._steps) < LEARNING:
            return 1
        left = self.limit_s - (self._clock() - self._started) - max(self._rests, default=0.0)
        return max(left // max(self._steps), 0)

    def _lighten(self, n_steps: int) -> None:
        for costs in (self._steps, self._rests) if n_steps == 0 else ():
            if len(costs) > 1:
                costs[costs.index(max(costs))] = sorted(costs)[-2]
