"""Print the table of an evaluation."""

from collections.abc import Mapping
from typing import Any

from fastdwm.jobs.sweep import physics
from fastdwm.tables import digits_for, interval, latency, print_table, spread
from fastdwm.tasks import Task


def print_evaluation(
    task: Task,
    seeds: list[int],
    numbers: dict[str, Any],
    departures: list[str],
    versions: list[str],
    policy: str = "ITPO",
) -> None:
    """Print the numbers of both policies side by side.

    departures: how the simulator differs from the task's, in words.   versions: how its packages differ from those
    that the bundle was made with.   policy: name of the policy that is compared with the base policy.
    """
    title = f"{task.name}, episodes per policy: {len(seeds)}, environment seeds: {seeds[0]} to {seeds[-1]}"
    kind = "95 % interval, Wilson's of a rate and else bootstrap" if task.ends_at_success else "95 % bootstrap interval"
    caption = f"± standard deviation over episodes; [ ] {kind}; difference by seed;"
    caption += " p99 of 2,000 decisions or more"
    caption += "" if task.ends_at_success else f"\n{task.scale}"
    caption += f"\nnot the task's own simulator: {', '.join(departures)}" if departures else ""
    caption += f"\nscores may differ from the bundle's own: {', '.join(versions)}" if versions else ""
    header = ("", "base policy", policy, f"{policy} - base")
    print_table(header, table_rows(numbers, task.score_name), title=title, caption=caption)


def other_versions(made_with: Mapping[str, str]) -> list[str]:
    """Versions of the simulator's packages that differ from the bundle's, in words.   made_with: version by package."""
    return [
        f"{name} {version} in place of {made_with[name][:20]}"
        for name, version in physics().items()
        if made_with.get(name, version) != version
    ]


def table_rows(numbers: dict[str, Any], score_name: str = "score") -> list[list[str]]:
    """Rows of (label, base policy, ITPO, difference).   score_name: `return` leaves out the row of returns, which would
    repeat the scores."""
    policies, gap = [numbers["base"], numbers["itpo"]], numbers["difference"]
    # Plain returns have any size.
    digits = digits_for(policies[0]["return"]["mean"]) if score_name == "return" else 1
    iqm = [interval(policy["score_pct"]["iqm"], digits=digits) for policy in policies]
    scores = [spread(policy["score_pct"], digits) for policy in policies]
    lost = [f"{policy['discarded']} of {policy['decisions']}" for policy in policies]
    alone, batch = (
        [latency(policy[name]["p50_ms"], policy[name]["p99_ms"]) for policy in policies]
        for name in ("alone_latency", "batch_latency")
    )
    returns = ["return", *(spread(policy["return"]) for policy in policies), interval(gap["return"], "+")]
    rows = [
        [score_name, *scores, interval(gap["score_pct"], "+", digits)],
        ["interquartile mean", *iqm, ""],
        *([] if score_name == "return" else [returns]),
    ]
    if "success_pct" in policies[0]:
        rates = [interval(policy["success_pct"]) for policy in policies]
        rows = [["success rate in %", *rates, interval(gap["score_pct"], "+")]]
    return [
        *rows,
        ["length in steps", *(spread(policy["length"]) for policy in policies), interval(gap["length"], "+")],
        ["ms to decide, p50 / p99", *alone, ""],
        [f"ms to decide for {numbers['base']['batch_size']}", *batch, ""],
        ["discarded updates", *lost, ""],
        *deadline_rows(policies),
    ]


def deadline_rows(policies: list[dict[str, Any]]) -> list[list[str]]:
    """Rows on missed deadlines; empty without a deadline."""
    if "missed" not in policies[0]["alone_latency"]:
        return []

    def missed(latency: dict[str, Any]) -> str:
        return f"{latency['missed']} of {latency['calls']}"

    steps = f"{policies[1]['diagnostics'].get('inner_steps', 0):.2f}"
    return [
        ["inner steps per decision", "", steps, ""],
        ["missed deadlines, deciding alone", *(missed(policy["alone_latency"]) for policy in policies), ""],
        [
            f"missed deadlines, {policies[0]['batch_size']} at once",
            *(missed(policy["batch_latency"]) for policy in policies),
            "",
        ],
    ]
