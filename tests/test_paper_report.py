"""python -m fastdwm.report paper FOLDER: tables, verdicts, page, and refused input."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import sweep_cells
from commands import refused, run
from sweep_cells import DEFAULT, MACHINE, cell, errors, variant, write

from fastdwm.report.paper import published
from fastdwm.report.paper.evaluations import read_evaluations
from fastdwm.report.paper.results import summarise
from fastdwm.report.paper.sentences import verdicts
from fastdwm.report.paper.tables import all_tables

BASE = [50.0, 60.0, 70.0, 80.0]


def shifted(name, by, **settings):
    """Variant whose scores differ from the base policy's by `by`."""
    return variant(name, BASE, [x + by for x in BASE], **settings)


def evaluated(folder):
    """Results in a folder."""
    return summarise(read_evaluations(folder), published.LOCOMOTION)


def column(results, key, group, header):
    """Texts of a table's column by row label, averages included."""
    (table,) = (table for table in all_tables(results) if table.key == key)
    (match,) = (x for name, columns in table.groups if group in name for x in columns if x.header.startswith(header))
    return {label: text for label, text in (*table.rows([match]), *table.averages([match]))}


@pytest.mark.parametrize(
    "scores",
    [*published.SCORES, *published.GENERATIVE_SCORES, published.DYNAMICS_RMSE, published.REWARD_RMSE],
    ids=lambda x: f"{x.name}-{len(x.values)}",
)
def test_published_columns_have_the_averages_that_are_printed(scores):
    # The tolerance is half a unit of the last printed digit, as TD3+BC's 70.35 is printed as 70.3.
    digits = len(str(scores.average).partition(".")[2])
    assert np.mean(list(scores.values.values())) == pytest.approx(scores.average, abs=0.5001 * 10**-digits)


def test_the_other_text_has_its_average_too():
    other = published.SCORES[-1].values | published.SCORES_B
    assert np.mean(list(other.values())) == pytest.approx(published.AVERAGE_B, abs=0.005)


def test_the_command_leaves_every_format(tmp_path):
    sweep_cells.sweep(tmp_path / "sweep", episodes=8)
    done = run("report", "paper", tmp_path / "sweep", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    paths = [str(tmp_path / "out" / f"paper.{kind}") for kind in ("json", "md", "csv", "html")]
    assert done.stdout.splitlines()[-4:] == paths and "…" not in done.stdout
    record = json.loads((tmp_path / "out" / "paper.json").read_text())
    markdown = (tmp_path / "out" / "paper.md").read_text()
    for line in record["sentences"]:
        assert line in markdown and line[:40] in done.stdout
    for number in (1, 2, 4, 5):
        assert f"## Table {number}" in markdown and f"Table {number}." in done.stdout
    (row,) = (
        x
        for x in csv.DictReader(io.StringIO((tmp_path / "out" / "paper.csv").read_text()))
        if x["task"] == "hopper-medium"
    )
    gain = record["tasks"]["hopper-medium"]["gains"]["tuned"]
    assert float(row["tuned_difference"]) == gain["difference"]["value"]
    assert float(row["tuned_mean"]) - float(row["base_mean"]) == pytest.approx(gain["difference"]["value"])
    assert row["published_MPCwDWM"] == "103.38" and row["published_Diffuser"] == "74.3"


def test_differences_are_paired_and_marked(tmp_path):
    variants = {"default": shifted("default", 2), "tuned": shifted("tuned", -3), "meanflow": shifted("meanflow", 0)}
    results = evaluated(write(tmp_path, cell("hopper-medium", variants)))
    texts = [
        column(results, "table-1", "paired", f"ITPO ({name})")["hopper-medium"]
        for name in ("default", "tuned", "MeanFlow")
    ]
    assert texts == ["+2.0 [2.0, 2.0] ▲", "-3.0 [-3.0, -3.0] ▼", "+0.0 [0.0, 0.0]"]
    outcomes = {name: gain.difference.outcome for name, gain in results.tasks["hopper-medium"].gains.items()}
    assert outcomes == {"default": "better", "tuned": "worse", "meanflow": "tie"}


def test_missing_tasks_and_variants_are_shown_and_counted(tmp_path):
    write(tmp_path, cell("hopper-medium", {"default": shifted("default", 2)}))
    results = evaluated(write(tmp_path, cell("hopper-expert", {"tuned": shifted("tuned", 2)})))
    verdict = results.verdicts["default"]
    assert (verdict.harmless, verdict.harmful, verdict.better, verdict.worse, verdict.missing) == (1, 0, 1, 0, 17)
    assert "on 1 of 18 " in verdicts(results)[0] and "17 of 18 are missing" in verdicts(results)[0]
    texts = column(results, "table-1", "not D4RL", "ITPO (default)")
    assert list(texts)[:18] == list(published.LOCOMOTION)
    assert [task for task, text in texts.items() if text != "-"] == ["hopper-medium"]


def test_predictions_stand_beside_results(tmp_path):
    said = {"deviation": 0.0625, "clipped": 0.25, "predicted_return": 90.0, "prediction_error": 4.0, "grad_norm": 0.1}
    default = shifted("default", -1) | {"diagnostics": said}
    diagnosed = cell("hopper-medium", {"default": default})
    diagnosed["result"]["critic"] = {"critics": 219.0, "fqe": 242.0, "data": 241.0}
    # Evaluations without diagnostics, or of old bundles, lack these values.
    results = evaluated(write(tmp_path, diagnosed, cell("hopper-expert", {"default": shifted("default", 1)})))

    def texts(group, header):
        by_task = column(results, "models", group, header)
        return by_task["hopper-medium"], by_task["hopper-expert"]

    assert texts("decisions", "deviation") == ("0.062", "-")
    assert texts("decisions", "clipped") == ("0.25", "-")
    assert texts("decisions", "predicted") == ("90.0", "-")
    assert texts("decisions", "excess") == ("+4.0", "-")
    assert texts("first states", "FQE") == ("242.0", "-")


def test_averages_compare_over_the_tasks_that_every_column_has(tmp_path):
    for task, by in (("hopper-medium", 1), ("walker2d-medium", 3)):
        names = ("default", "tuned", "meanflow") if by == 1 else ("default",)
        write(tmp_path, cell(task, {name: shifted(name, by) for name in names}))
    results = evaluated(tmp_path)
    texts = column(results, "table-1", "paired", "ITPO (default)")
    assert (texts["average of 18"], texts["average of the 1 here"]) == ("-", "+1.0")
    texts = column(results, "table-1", "published", "MPCwDWM")
    assert (texts["average of 18"], texts["average of the 1 here"]) == ("85.33", "103.4")


@pytest.mark.parametrize(
    ("by", "missing", "answer"),
    [
        ([0] * 17 + [-1], 0, "yes"),
        ([0] * 16 + [-0.5, -2], 0, "no"),
        ([2] * 10, 8, "still open"),
        ([2] * 10 + [-2], 7, "no"),
    ],
    ids=["yes", "harm", "open", "harm among some"],
)
def test_the_question_is_answered_as_far_as_it_can_be(tmp_path, by, missing, answer):
    for task, change in zip(published.LOCOMOTION, by, strict=False):
        write(tmp_path, cell(task, {"default": shifted("default", change)}))
    results = evaluated(tmp_path)
    assert results.verdicts["default"].missing == missing
    assert f"ITPO (default): {answer}." in verdicts(results)[-1]


def test_latencies_of_different_machines_share_no_table(tmp_path):
    other = MACHINE | {"cpu": "arm"}
    for task, machine, ms in (
        ("hopper-random", MACHINE, 1),
        ("hopper-medium", other, 7),
        ("hopper-expert", MACHINE, 2),
    ):
        write(tmp_path, cell(task, {"default": shifted("default", 1, ms=ms)}, machine=machine))
    results = evaluated(tmp_path)
    texts = column(results, "table-1b", "ms per decision", "ITPO (default)")
    assert [texts[f"hopper-{level}"] for level in ("random", "medium", "expert")] == ["1.00", "-", "2.00"]
    assert results.elsewhere == ("hopper-medium-s0-eval.json",)
    assert column(results, "table-1", "paired", "ITPO (default)")["hopper-medium"] == "+1.0 [1.0, 1.0] ▲"


def test_several_trainings_widen_the_interval_and_give_a_probability(tmp_path):
    for seed, by in enumerate((4, -2, 1)):
        write(tmp_path, cell("hopper-medium", {"default": shifted("default", by)}, seed))
    results = evaluated(tmp_path)
    gain = results.tasks["hopper-medium"].gains["default"]
    # Without spread within trainings, the interval reaches from the lowest to the highest training.
    assert (gain.difference.value, gain.difference.low, gain.difference.high) == (1.0, -2.0, 4.0)
    assert gain.difference.outcome == "tie" and gain.trainings == 3
    # Every run of the base has mean 65: 69 and 66 of three exceed it.
    assert results.verdicts["default"].improvement.value == pytest.approx(2 / 3)
    assert "probability of improvement" in verdicts(results)[0]


def test_a_difference_of_rounding_counts_as_none(tmp_path):
    results = evaluated(write(tmp_path, cell("hopper-medium", {"default": shifted("default", -1e-7)})))
    verdict = results.verdicts["default"]
    assert (verdict.harmless, verdict.harmful, verdict.better, verdict.worse) == (1, 0, 0, 0)
    assert column(results, "table-1", "paired", "ITPO (default)")["hopper-medium"] == "+0.0 [0.0, 0.0]"


def test_errors_of_the_models_stand_beside_the_published(tmp_path):
    worlds = {"diffusion": errors(0.25, reward=0.5), "mlp": errors(0.1)}
    results = evaluated(write(tmp_path, cell("hopper-medium", {"default": shifted("default", 1)}, worlds=worlds)))
    assert column(results, "table-4", "not D4RL", "diffusion")["hopper-medium"] == "0.2500 ± 0.0010"
    assert column(results, "table-4", "not D4RL", "MeanFlow")["hopper-medium"] == "-"
    assert column(results, "table-4", "published", "paper")["hopper-medium"] == "0.0784"
    assert column(results, "table-5", "not D4RL", "reward")["hopper-medium"] == "0.5000 ± 0.0005"


def test_mazes_show_success_rates(tmp_path):
    scores = [0.0, 100.0, 100.0, 100.0]
    write(tmp_path, cell("antmaze-umaze", {"default": variant("default", scores, [100.0] * 4)}))
    results = evaluated(tmp_path)
    # Wilson's interval of 3 in 4 with z = 1.96, by its formula.
    z, p, n = 1.959964, 0.75, 4
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (100 * (centre + side * half) / (1 + z**2 / n) for side in (-1, 1))
    assert column(results, "table-3", "not D4RL", "base")["antmaze-umaze"] == f"75.0 [{low:.1f}, {high:.1f}]"
    assert results.verdicts["default"].missing == 18
    # The numbers of the paper's two texts stand beside ours, with the averages that they print.
    for source, text, average in (("A", "99.0", "85.07"), ("B", "98.3", "81.77")):
        shown = column(results, "table-3", "published", f"MPCwDWM [{source}]")
        assert (shown["antmaze-umaze"], shown["average of 6"]) == (text, average)


class Page(HTMLParser):
    """Links, captions, ids and tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.open, self.captions, self.ids, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [(tag, attrs[name]) for name in ("href", "src", "xlink:href", "srcset", "data") if name in attrs]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.captions += [data] if self.open[-1:] == ["caption"] else []


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(tmp_path):
    sweep_cells.sweep(tmp_path / "sweep", tasks=published.LOCOMOTION[:3], episodes=4)
    assert run("report", "paper", tmp_path / "sweep", "--out", tmp_path).returncode == 0
    text = (tmp_path / "paper.html").read_text()
    page = Page(text)
    assert not page.open and not {"script", "link", "img", "iframe"} & set(page.tags)
    for tag, address in page.links:
        assert (
            address[1:] in page.ids
            if address.startswith("#")
            else (tag, address[:22]) == ("a", "https://arxiv.org/abs/")
        )
    assert "url(http" not in text and "@import" not in text
    assert len(set(page.ids)) == len(page.ids)
    assert [caption.partition(".")[0] for caption in page.captions] == [
        "Table 1",
        "Table 1, continued",
        "Table 2",
        "Table 4",
        "Table 5",
        "Predictions of the models against real results",
    ]
    assert page.tags.count("svg") == 2 and page.tags.count("table") == 6
    # Of the other fifteen tasks there are neither rows nor places in the pictures.
    rows = re.findall(r'<th scope="row">([a-z0-9-]+)</th>', text)
    assert set(rows) == set(published.LOCOMOTION[:3]) and "(missing)" not in text
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert [task for task in published.LOCOMOTION if f">{task}<" in drawn] == list(published.LOCOMOTION[:3])
    assert "@page { size: A4 landscape" in text
    # All colours follow the page, so that it is readable in dark mode.
    assert "currentColor" in text and "#000000" not in text and "prefers-color-scheme: dark" in text


def test_no_axis_of_the_page_has_an_offset(tmp_path):
    scores = [99.9999 + i * 1e-6 for i in range(4)]
    variants = {"default": variant("default", scores, [score + 1e-7 for score in scores])}
    write(tmp_path / "sweep", cell("hopper-medium", variants))
    assert run("report", "paper", tmp_path / "sweep", "--out", tmp_path).returncode == 0
    ticks = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "paper.html").read_text())
    assert ticks and not [text for text in ticks if text.startswith("+") or "e" in text and text[0].isdigit()]


GOOD = {"default": variant("default", BASE, BASE)}


def spoilt(**changes):
    """Cell with other top-level values."""
    return cell("hopper-medium", GOOD) | changes


def spoilt_result(**changes):
    """Cell with another result."""
    return spoilt(result=cell("hopper-medium", GOOD)["result"] | changes)


def spoilt_variant(**changes):
    """Cell with another evaluation of the default."""
    return spoilt_result(variants={"default": GOOD["default"] | changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON"),
        ("[1]", "is not a finished job of a sweep"),
        ("{}", "is not a finished job of a sweep (format: None); move it away"),
        (json.dumps(spoilt(format=2)), "is not a finished job of a sweep (format: 2)"),
        (json.dumps(spoilt(task="hopper-expert")), "holds hopper-expert, seed 0"),
        (json.dumps(cell("hopper-medium", {"default": variant("default", BASE, BASE[:3])})), "got 4 and 3 scores on 4"),
        (
            json.dumps(cell("hopper-medium", {"default": variant("tuned", BASE, BASE)})),
            "expected the world model diffusion",
        ),
        (json.dumps(cell("hopper-medium", {"other": variant("default", BASE, BASE)})), "got ['other']"),
        (
            json.dumps(cell("hopper-medium", {"default": variant("default", BASE, [None] * 4)})),
            "scores: expected float",
        ),
        (json.dumps(spoilt(seed=True)), "(seed: True)"),
        (json.dumps(spoilt_result(critic={"fqe": "nan"})), "critic: fqe: expected float, got 'nan'"),
        (json.dumps(spoilt_result(critic={"fqe": 1e300})), "critic: fqe: expected numbers up to 1e+09"),
        (json.dumps(spoilt_result(dataset={"mean_score_pct": "nan"})), "mean_score_pct: expected float, got 'nan'"),
        (json.dumps(spoilt_result(errors={"diffusion": {"one_step": {"obs_rmse": [1]}}})), "obs_rmse: expected float"),
        (json.dumps(spoilt_result(env_departures="text")), "env_departures: expected list[str], got 'text'"),
        (json.dumps(spoilt_variant(seeds=[[1], 2, 3, 4])), "seeds: expected int"),
        (json.dumps(spoilt_variant(settings={"horizon": "8"})), "settings: horizon: expected int, got '8'"),
        (json.dumps(spoilt_variant(settings={"horizon": -8})), "horizon: expected a number >= 0, got -8"),
        # This rule is of an earlier version.
        (json.dumps(spoilt_variant(settings={"optimiser": "trust"})), "settings: optimiser: expected"),
        (json.dumps(spoilt_variant(base={"scores": [1e308] * 4})), "base: scores: expected numbers up to 1e+09"),
    ],
)
def test_a_damaged_or_foreign_cell_is_one_line_and_exit_code_2(tmp_path, content, message):
    write(tmp_path, cell("hopper-random", GOOD))
    (tmp_path / "cells" / "hopper-medium-s0-eval.json").write_text(content)
    refused(run("report", "paper", tmp_path, "--out", tmp_path / "out"), "hopper-medium-s0-eval.json", message)
    assert not (tmp_path / "out").exists()


def test_a_value_that_a_cell_does_not_know_is_missing(tmp_path):
    default = GOOD["default"] | {"diagnostics": {"deviation": None, "predicted_return": 90.0}}
    write(tmp_path, cell("hopper-medium", {"default": default}, worlds={"diffusion": {"one_step": {"obs_rmse": None}}}))
    results = evaluated(tmp_path)
    for header in ("deviation", "clipped"):
        assert column(results, "models", "decisions", header)["hopper-medium"] == "-"
    assert column(results, "table-4", "not D4RL", "diffusion")["hopper-medium"] == "-"


def test_texts_of_a_cell_are_escaped_in_the_pages(tmp_path):
    hostile = ["<script>alert(1)</script>", "[x](javascript:alert(1))", "a|b", "![x](http://x.test/x.png)"]
    write(
        tmp_path, spoilt(machine=MACHINE | {"cpu": hostile[0]}, result=spoilt_result(env_departures=hostile)["result"])
    )
    assert run("report", "paper", tmp_path, "--out", tmp_path / "out").returncode == 0
    text = (tmp_path / "out" / "paper.md").read_text()
    assert "&lt;script>alert(1)" in text and "<script" not in text
    assert "](" not in text and r"a\|b" in text
    assert "<script" not in (tmp_path / "out" / "paper.html").read_text()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            cell("hopper-expert", GOOD, mujoco="3.5.0"),
            "jobs of different simulator versions: hopper-expert-s0-eval has {'mujoco': '3.5.0', 'gymnasium': '1.2.1'}",
        ),
        (cell("hopper-medium", {"default": variant("default", BASE[:3], BASE[:3])}, seed=1), "their episodes differ"),
        (
            cell("hopper-expert", {"default": GOOD["default"] | {"settings": DEFAULT | {"horizon": 3}}}),
            "default settings differ",
        ),
        (cell("hopper-expert", GOOD) | {"identity": {}}, "simulator versions: hopper-expert-s0-eval has None"),
        (cell("ant-medium", GOOD), "'ant-medium' is none of the paper's tasks"),
    ],
    ids=["physics", "episodes", "default", "unknown", "task"],
)
def test_cells_that_do_not_belong_together_are_refused(tmp_path, other, message):
    refused(
        run("report", "paper", write(tmp_path, cell("hopper-medium", GOOD), other), "--out", tmp_path / "out"), message
    )


def test_a_folder_without_evaluations_is_refused(tmp_path):
    refused(run("report", "paper", tmp_path / "nowhere"), "nowhere: no such folder")
    refused(run("report", "paper", tmp_path), "expected cells/*-eval.json of a sweep, found none")


def test_tuned_settings_are_shown_if_the_cell_has_them(tmp_path):
    tuned = shifted("tuned", 1)
    silent = {name: value for name, value in tuned.items() if name != "settings"}
    write(tmp_path, cell("hopper-medium", {"tuned": tuned}), cell("hopper-expert", {"tuned": silent}))
    texts = column(evaluated(tmp_path), "table-1b", "tune", "tuned settings")
    assert (texts["hopper-medium"], texts["hopper-expert"]) == ("MeanFlow, H 5", "MeanFlow")
