"""The sentences of the report: the verdicts, and the notes on the numbers."""

from collections.abc import Sequence
from dataclasses import asdict

from fastdwm.jobs.sweep import VARIANTS
from fastdwm.measure.statistics import MARGIN
from fastdwm.report.paper import published
from fastdwm.report.paper.published import LOCOMOTION
from fastdwm.report.paper.results import Results, Verdict
from fastdwm.report.paper.tables import TITLES
from fastdwm.tables import interval

# The question that the report answers: is ITPO harmless on at least this many of the 18 tasks?
ASKED_HARMLESS = 17
ASKED_OF = ("default", "tuned")


def verdicts(results: Results) -> list[str]:
    """One sentence per variant with results, then the answer to the question."""
    named = {name: results.verdicts[name] for name in VARIANTS if results.verdicts[name].missing < len(LOCOMOTION)}
    answers = [f"{TITLES[name]}: {answer(named[name])}" for name in ASKED_OF if name in named]
    asked = f"Is it harmless on {ASKED_HARMLESS} of {len(LOCOMOTION)}, and harmful on none? {', '.join(answers)}."
    return [sentence(TITLES[name], verdict) for name, verdict in named.items()] + ([asked] if answers else [])


def sentence(title: str, verdict: Verdict) -> str:
    """On how many tasks a variant is harmless, harmful, better, worse and missing."""
    counts = f"harmless on {verdict.harmless} of {verdict.tasks} [mean paired difference >= -{MARGIN:g}]"
    counts += f", harmful on {verdict.harmful} [interval below -{MARGIN:g}]"
    text = f"{title} is {counts}, significantly better on {verdict.better}, significantly worse on {verdict.worse}"
    if verdict.missing:
        text += f"; {verdict.missing} of {verdict.tasks} are missing and count as none of these"
    if verdict.difference:
        present = verdict.tasks - verdict.missing
        text += f"; mean difference over {present} tasks {interval(asdict(verdict.difference), '+')}"
    if verdict.improvement:
        value, low, high = asdict(verdict.improvement).values()
        text += f"; probability of improvement, trainings as runs, {value:.2f} [{low:.2f}, {high:.2f}]"
    return f"{text}."


def answer(verdict: Verdict) -> str:
    """The answer to the question; open while missing tasks could change it."""
    if verdict.harmful or verdict.harmless + verdict.missing < ASKED_HARMLESS:
        return "no"
    return "yes" if not verdict.missing else "still open"


def notes(results: Results) -> list[str]:
    """Notes on what the numbers mean and which are missing."""
    theirs = "The published columns are on D4RL v2."
    new = (
        "Our columns are on newly generated data of the same kind (published policies, current simulators),"
        " not on D4RL: they are no D4RL scores, and only the scale is D4RL's."
    )
    return [
        f"{'Our columns are on D4RL files.' if results.d4rl else new} {theirs}",
        evaluation(results),
        "At 95 %, about one in twenty true ties shows as better or worse by chance.",
        latencies(results),
        *missing(results),
        *departures(results),
        text_b(),
    ]


def evaluation(results: Results) -> str:
    """Sentence on episodes, trainings and the method for intervals."""
    episodes = _range({x.episodes for x in results.tasks.values()})
    trainings = _range({len(x.seeds) for x in results.tasks.values()})
    how = "resampling episodes"
    if any(len(x.seeds) > 1 for x in results.tasks.values()):
        how = "resampling trainings, then the episodes of each"
    return (
        f"{episodes} evaluation episodes per training, trainings per task: {trainings}; intervals by {how};"
        f" {', '.join(results.physics)}."
    )


def _range(values: set[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def latencies(results: Results) -> str:
    """Sentence on the machine of the latencies, and the evaluations on other machines."""
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items() if value is not None)
    text = f"ms per decision: on one machine alone ({machine})."
    if results.elsewhere:
        names = ", ".join(results.elsewhere)
        text += f" Latencies of {len(results.elsewhere)} evaluations of other machines are left out: {names}."
    return text


def missing(results: Results) -> list[str]:
    """Sentences on tasks that lack a variant, and variants with fewer trainings than their task."""
    lines = []
    for name in VARIANTS:
        absent = [t for t in published.LOCOMOTION if t not in results.tasks or name not in results.tasks[t].gains]
        if absent:
            lines.append(f"Missing, {TITLES[name]}: {_all_or(absent)}.")
        fewer = {t: x.gains[name].trainings for t, x in results.tasks.items() if name in x.gains}
        fewer = {t: n for t, n in fewer.items() if n < len(results.tasks[t].seeds)}
        lines += [f"{TITLES[name]}, {t}: {n} of {len(results.tasks[t].seeds)} trainings." for t, n in fewer.items()]
    return lines


def _all_or(absent: Sequence[str]) -> str:
    return "all tasks" if len(absent) == len(published.LOCOMOTION) else ", ".join(absent)


def departures(results: Results) -> list[str]:
    """Sentences on tasks that were evaluated in another simulator than their own."""
    texts = {task: ", ".join(x.departures) for task, x in results.tasks.items() if x.departures}
    return [f"{task}: not the task's own simulator: {text}." for task, text in texts.items()]


def text_b() -> str:
    """Sentence on numbers that differ between the paper's two texts."""
    other = ", ".join(f"{task} {value:g}" for task, value in published.SCORES_B.items())
    differs = f"The paper's other text prints for MPCwDWM {other} (average {published.AVERAGE_B})"
    return f"{differs}, and as ReBRAC the numbers of [RB]."
