"""Summarise an evaluation: scores with intervals, latencies, diagnostics."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from fastdwm.eval.compare import Evaluation
from fastdwm.measure import statistics
from fastdwm.measure.latency import latency_ms
from fastdwm.measure.simulate import Episode, Run


def summary(
    evaluation: Evaluation,
    score_pct: Callable[[float], float],
    deadline_ms: float | None = None,
    is_success: bool = False,
) -> dict[str, dict]:
    """The numbers of the result table as JSON values: for `base`, for `itpo`, and their paired `difference`.

    score_pct: normalised score of a return.   Latencies are in ms per decision, intervals as in `statistics`.
    deadline_ms: decisions that took longer are counted as `missed`.   is_success: the score of an episode is 0 or 100,
    so each policy also gets its `success_pct` with Wilson's interval.
    """
    samples = {policy: _samples(run, score_pct) for policy, run in evaluation.runs.items()}
    result: dict[str, dict] = {}
    for policy, run in evaluation.runs.items():
        result[policy] = {name: asdict(statistics.summarise(x)) for name, x in samples[policy].items()}
        result[policy] |= {
            "batch_size": run.batch_size,
            "batch_latency": latency_ms(run.batch_latency_s(), deadline_ms),
            "alone_latency": latency_ms(evaluation.alone_latency_s[policy], deadline_ms),
            "env_s": run.env_s,
            "decisions": run.decisions,
            "discarded": sum(episode.discarded for episode in run.episodes),
            "diagnostics": mean_diagnostics(run.episodes),
        }
        if is_success:
            result[policy]["success_pct"] = success_pct(run)
    result["difference"] = {
        name: asdict(statistics.paired_difference(samples["itpo"][name], x)) for name, x in samples["base"].items()
    }
    return result


def success_pct(run: Run) -> dict[str, float]:
    """Share of the episodes with a positive return in per cent, with Wilson's 95 % interval."""
    rate = statistics.success_rate(sum(episode.total > 0 for episode in run.episodes), len(run.episodes))
    return {name: 100.0 * value for name, value in asdict(rate).items()}


def _samples(run: Run, score_pct: Callable[[float], float]) -> dict[str, list[float]]:
    """Score, return and length of each episode."""
    return {
        "score_pct": [score_pct(episode.total) for episode in run.episodes],
        "return": [episode.total for episode in run.episodes],
        "length": [float(episode.length) for episode in run.episodes],
    }


def mean_diagnostics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Mean of each diagnostic over all diagnosed decisions for which it is finite; {} without diagnostics.

    `prediction_error` is predicted minus realised return, for the decisions that have both.
    """
    records = [record for episode in episodes for record in episode.diagnostics]
    columns: dict[str, list[float]] = {}
    for record in records:
        values = {name: x for name, x in record.items() if name != "decision" and x is not None}
        if "realised_return" in values:
            values["prediction_error"] = values["predicted_return"] - values["realised_return"]
        for name, x in values.items():
            columns.setdefault(name, []).extend([x] if np.isfinite(x) else [])
    return {name: float(np.mean(xs)) for name, xs in columns.items() if xs}
