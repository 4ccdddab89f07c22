"""Measure and summarise how long the decisions of one episode alone take."""

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from fastdwm.agent import Agent
from fastdwm.command import StageProgress, unwatched

UNTIMED_DECISIONS = 10
"""the first decisions also allocate memory and initialise lazily, so they are not timed"""
TIMED_DECISIONS = 2_000
"""enough for the 99th percentile to rest on twenty slow decisions"""
BUDGET_S = 20.0


def decision_latency(
    agent: Agent,
    observations: Sequence[np.ndarray],
    on_progress: StageProgress = unwatched,
    decisions: int = TIMED_DECISIONS,
) -> list[float]:
    """Seconds per decision of one episode alone, after UNTIMED_DECISIONS decisions that are not timed.

    observations: (S,) each, in the order of a real episode; a new episode starts each time they run out.
    Measures `decisions`, or as many as BUDGET_S allows, but at least one.
    """
    times: list[float] = []
    total, spent = UNTIMED_DECISIONS + decisions, 0.0
    while len(times) < total and spent < BUDGET_S:
        turn = len(times) % len(observations)
        if turn == 0:
            agent.reset()
        start = perf_counter()
        agent.act(observations[turn])
        times.append(perf_counter() - start)
        spent += times[-1]
        on_progress(len(times), total)
    if len(times) < total:
        on_progress(total, total)
    return times[UNTIMED_DECISIONS:] or times[-1:]


def latency_ms(seconds: Sequence[float], deadline_ms: float | None = None) -> dict[str, float | None]:
    """Number of calls, median and 99th percentile of their duration in ms, and the number that missed a deadline.

    The 99th percentile is None for fewer than TIMED_DECISIONS calls, because it would rest on too few of them.
    """
    ms = np.asarray(seconds) * 1e3
    p99 = float(np.percentile(ms, 99)) if len(ms) >= TIMED_DECISIONS else None
    missed = {} if deadline_ms is None else {"missed": int((ms > deadline_ms).sum())}
    return {"calls": len(ms), "p50_ms": float(np.median(ms)), "p99_ms": p99, **missed}
