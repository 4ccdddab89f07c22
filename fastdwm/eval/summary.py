"""The numbers of an evaluation's table: scores with intervals, latencies, diagnostics."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from fastdwm.eval.compare import Evaluation
from fastdwm.measure import statistics
from fastdwm.measure.latency import latency_ms
from fastdwm.measure.simulate import Episode, Run


def summary(
    evaluation: Evaluation, score_pct: Callable[[float], float], deadline_ms: float | None = None
) -> dict[str, dict]:
    """The numbers of the result table, ready for JSON: those of `base`, of `itpo`, and the paired `difference`.

    score_pct: normalised score of a return.   Latencies in ms per decision; intervals as `statistics` defines them.
    deadline_ms: count the decisions that took longer, `missed` of latencies.
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
    result["difference"] = {
        name: asdict(statistics.paired_difference(samples["itpo"][name], x)) for name, x in samples["base"].items()
    }
    return result


def _samples(run: Run, score_pct: Callable[[float], float]) -> dict[str, list[float]]:
    """What is summarised over episodes."""
    return {
        "score_pct": [score_pct(episode.total) for episode in run.episodes],
        "return": [episode.total for episode in run.episodes],
        "length": [float(episode.length) for episode in run.episodes],
    }


def mean_diagnostics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Mean of each diagnostic over all diagnosed decisions where it is known and finite.

    `prediction_error` is predicted minus realised return, over the decisions that have both; {} without diagnostics.
    """
    records = [record for episode in episodes for record in episode.diagnostics]
    columns: dict[str, list[float]] = {}
    for record in records:
        known = {name: x for name, x in record.items() if name != "decision" and x is not None}
        if "realised_return" in known:
            known["prediction_error"] = known["predicted_return"] - known["realised_return"]
        for name, x in known.items():
            columns.setdefault(name, []).extend([x] if np.isfinite(x) else [])
    return {name: float(np.mean(xs)) for name, xs in columns.items() if xs}
