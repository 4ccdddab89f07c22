"""Grids, Pareto front, share of the gain and best setting, on numbers worked out by hand."""

import csv
import dataclasses
import io

import numpy as np
import pytest

from fastdwm.config import ITPOConfig
from fastdwm.errors import InputError
from fastdwm.eval.config import EvalConfig
from fastdwm.measure.statistics import ratio_of_means
from fastdwm.study.config import StudyConfig
from fastdwm.study.grid import BASE, GRIDS, Grid, GridPoint
from fastdwm.study.tables import confirmed, table_row
from fastdwm.study.tradeoff import best, confirmation, pareto_front, save_plot, summarise, title_of, verdict
from fastdwm.tables import csv_text

HELD = {"diffusion": 5, "meanflow": 1, "mlp": 1}
GRID = Grid(
    worlds=("diffusion", "mlp"),
    horizons=(8, 3, 0),
    particles=(2, 16),
    inner_steps=(1, 2),
    max_deviations=(None,),
    inner_lrs=(0.4,),
    split_step=True,
    design="star",
    episodes=3,
)
IDENTITY = {"bundle": "abc", "device": "cpu", "backend": "auto", "versions.torch": "1.0", "seeds": "0 to 2"}
DIFFUSION, MEANFLOW = GridPoint("diffusion", 5, 8, 2, 1, inner_lr=0.1), GridPoint("meanflow", 1, 8, 2, 1, inner_lr=0.1)


def test_a_star_changes_one_axis_at_a_time_and_a_product_has_every_combination():
    cells = GRID.points(HELD)
    assert cells[0] == BASE and len(cells) == len(set(cells))
    points = [(cell.horizon, cell.particles, cell.inner_steps) for cell in cells if cell.world == "mlp"]
    assert points == [(8, 2, 1), (3, 2, 1), (8, 16, 1), (8, 2, 2)]
    product = dataclasses.replace(GRID, design="product", horizons=(8, 3)).points(HELD)
    assert len(product) == 1 + 2 * 2 * 2 * 2
    # Without imagination all world models are the same point.
    assert [cell for cell in cells if cell.horizon == 0] == [BASE, GridPoint("critic", 0, 0, 1, 1, inner_lr=0.4)]


def test_several_inner_steps_share_the_step_size():
    assert {(cell.inner_steps, cell.inner_lr) for cell in GRID.points(HELD)[1:]} == {(1, 0.4), (2, 0.2)}
    undivided = dataclasses.replace(GRID, split_step=False)
    assert {cell.inner_lr for cell in undivided.points(HELD)[1:]} == {0.4}


def test_step_sizes_are_an_axis():
    points = dataclasses.replace(GRID, horizons=(8,), particles=(2,), inner_lrs=(0.4, 0.1)).points(HELD)
    steps = [(point.inner_steps, point.inner_lr) for point in points if point.world == "mlp"]
    assert steps == [(1, 0.4), (2, 0.2), (1, 0.1)]


def test_maximum_deviations_are_an_axis_of_their_own_and_not_divided():
    grid = dataclasses.replace(GRID, horizons=(8,), particles=(2,), max_deviations=(None, 0.1, 0.05), inner_lrs=(None,))
    points = [point for point in grid.points(HELD) if point.world == "mlp"]
    steps = [(point.inner_steps, point.max_deviation, point.inner_lr) for point in points]
    assert steps == [(1, None, None), (2, None, None), (1, 0.1, None), (1, 0.05, None)]
    # None is the bundle's own.
    assert [point.itpo(ITPOConfig()).max_deviation for point in points] == [None, None, 0.1, 0.05]


@pytest.mark.parametrize(
    ("settings", "optimiser", "max_deviations", "inner_lrs"),
    [
        ({}, "bound", (None,), (None,)),
        ({"max_deviations": (0.1, 0.03)}, "bound", (0.1, 0.03), (None,)),
        ({"itpo": ITPOConfig(optimiser="sgd")}, "sgd", (None,), (2e-5,)),
        ({"itpo": ITPOConfig(optimiser="adam"), "inner_lrs": (1e-6,)}, "adam", (None,), (1e-6,)),
        ({"grid": "paper"}, "sgd", (None,), (5e-5,)),
        ({"grid": "paper", "inner_lrs": (1e-4,)}, "sgd", (None,), (1e-4,)),
        ({"grid": "paper", "max_deviations": (0.05,)}, "bound", (0.05,), (None,)),
    ],
    ids=str,
)
def test_the_rule_decides_which_axis_its_strength_is(settings, optimiser, max_deviations, inner_lrs):
    config = StudyConfig(**settings)
    grid = config.resolved()
    assert config.flags()["itpo.optimiser"] == optimiser
    assert (grid.max_deviations, grid.inner_lrs) == (max_deviations, inner_lrs)
    decisions = [point.itpo(config.common) for point in grid.points(HELD)]
    assert {decision.optimiser for decision in decisions} == {optimiser}
    assert {decision.max_deviation for decision in decisions[1:]} == set(max_deviations)


def test_all_cells_share_the_settings_that_are_no_axis():
    common = ITPOConfig(noise="step", reset="decision", optimiser="sgd")
    assert DIFFUSION.itpo(common) == dataclasses.replace(common, horizon=8, particles=2, inner_steps=1, inner_lr=0.1)
    assert BASE.itpo(common) == dataclasses.replace(common, inner_steps=0)


def test_a_study_chooses_on_tuning_seeds_alone():
    config = StudyConfig(episodes=40)
    chosen_on = {config.seed + i for i in range(40)}
    assert not chosen_on & {EvalConfig().seed + i for i in range(1000)} and config.confirm_seed == EvalConfig().seed
    for seed in (9_961, 10_000, 10_039):
        with pytest.raises(InputError, match=f"confirm_seed: .*got 10000 beside {seed} to {seed + 39}"):
            StudyConfig(episodes=40, seed=seed).resolved()
    assert StudyConfig(episodes=40, seed=9_960).resolved() == StudyConfig(episodes=40).resolved()


def test_the_bundles_own_number_of_calls_is_no_second_cell():
    grid = dataclasses.replace(GRID, worlds=("diffusion", "diffusion:5", "diffusion:1"))
    assert [point.world_steps for point in grid.centre(HELD)] == [5, 1]


def test_every_cell_has_its_own_file_name():
    for name in GRIDS:
        points = StudyConfig(grid=name).resolved().points(HELD)
        assert len({point.name for point in points}) == len(points)


def test_axes_replace_those_of_the_named_grid():
    grid = StudyConfig(grid="quick", horizons=(4, 2), episodes=7).resolved()
    assert grid == dataclasses.replace(StudyConfig(grid="quick").resolved(), horizons=(4, 2), episodes=7)


def test_pareto_front_of_hand_made_points():
    axes = [
        (1.0, 5.0, True),  # the cheapest
        (1.0, 5.0, True),  # its equal
        (2.0, 5.0, False),  # worth no more, but dearer
        (2.0, 4.0, False),
        (3.0, 9.0, True),  # the best
        (3.0, 8.0, False),  # costs no less, but worse
    ]
    costs, values, front = zip(*axes, strict=True)
    assert pareto_front(costs, values) == list(front)


def test_share_of_the_gain():
    reference = np.array([1.0, 2.0, 3.0, 4.0])
    kept = ratio_of_means(0.5 * reference, reference)
    assert (kept.value, kept.low, kept.high) == pytest.approx((0.5, 0.5, 0.5))
    # A gain of the reference that may be zero gives no interval.
    uncertain = ratio_of_means(reference, np.array([-3.0, -1.0, 2.0, 4.0]))
    assert uncertain.value == pytest.approx(5.0) and uncertain.low is None


def record(scores, latency_ms):
    episodes = [
        {"seed": i, "score_pct": score, "length": 10, "terminated": score < 50, "discarded": 0}
        for i, score in enumerate(scores)
    ]
    latency = {"calls": 200, "p50_ms": latency_ms, "p99_ms": 2 * latency_ms}
    return {"episodes": episodes, "latency": latency, "batch_latency": {"size": 3, "p50_ms": 1.0}, "wall_s": 1.0}


RECORDS = {
    DIFFUSION: record([94.0, 96.0, 98.0], 8.0),
    BASE: record([90.0, 92.0, 40.0], 0.5),
    MEANFLOW: record([92.0, 94.0, 69.0], 2.0),
}


def test_rows_hold_falls_differences_and_the_front():
    rows = {row["world"]: row for row in summarise(RECORDS, IDENTITY)}
    assert list(rows) == ["base", "meanflow", "diffusion"]
    assert [row["front"] for row in rows.values()] == [True, True, True]
    assert [row["terminated"] for row in rows.values()] == [1, 0, 0]
    assert rows["meanflow"]["difference"] == pytest.approx((2 + 2 + 29) / 3)
    assert (rows["diffusion"]["network_calls"], rows["base"]["network_calls"]) == (40, 0)


def test_verdict_names_the_share_of_gain_and_time():
    reference, kept = verdict(RECORDS, summarise(RECORDS, IDENTITY), [MEANFLOW, DIFFUSION])
    assert "diffusion (K = 5) gains +22.0 [4.0, 58.0]" in reference and "8.00 ms" in reference
    assert "MeanFlow (K = 1) gains +11.0" in kept and ": 50 % [50, 50] of that gain, in 25 % of the time" in kept
    assert kept.endswith("paired difference -11.0 [-29.0, -2.0].")


def test_there_is_no_share_of_a_gain_of_zero():
    records = RECORDS | {DIFFUSION: record([90.0, 92.0 + 1e-7, 40.0], 8.0)}
    reference, other = verdict(records, summarise(records, IDENTITY), [MEANFLOW, DIFFUSION])
    assert "gains +0.0" in reference
    assert "gains +11.0 [2.0, 29.0], in 25 % of the time" in other


def test_rounding_makes_a_cell_neither_best_nor_part_of_the_front():
    other = GridPoint("mlp", 1, 8, 2, 1, 0.1)
    records = RECORDS | {other: record([94.0, 96.0, 98.0 + 1e-7], 16.0)}
    rows = summarise(records, IDENTITY)
    assert best(list(records), rows) == DIFFUSION
    assert [row["front"] for row in rows if row["world"] == "mlp"] == [False]


def test_the_best_cell_has_the_highest_interquartile_mean_then_the_least_cost():
    slow, fall = GridPoint("mlp", 1, 8, 2, 1, 0.1), GridPoint("mlp", 1, 3, 2, 1, 0.1)
    records = {
        BASE: record([99.0] * 8, 0.5),
        slow: record([90.0, 91.0, 92.0, 93.0, 94.0, 95.0, 96.0, 97.0], 8.0),
        MEANFLOW: record([90.0, 91.0, 92.0, 93.0, 94.0, 95.0, 96.0, 97.0], 2.0),
        fall: record([0.0, 0.0, 92.0, 93.0, 94.0, 95.0, 96.0, 97.0], 1.0),
    }
    # Falls do not count, the base policy is no candidate, and the fastest of three equals is chosen.
    assert best(list(records), summarise(records, IDENTITY)) == fall
    del records[fall]
    assert best(list(records), summarise(records, IDENTITY)) == MEANFLOW


def test_confirmation_pairs_the_seeds():
    result = confirmation(RECORDS, MEANFLOW)
    assert result["difference"]["value"] == pytest.approx((2 + 2 + 29) / 3) and result["seeds"] == [0, 1, 2]
    assert confirmed(result) == (
        "Best by interquartile mean: MeanFlow (K = 1), H = 8, M = 2, E = 1, strength 0.1. On seeds 0 to 2, which "
        "were not used to choose it: score 85.0 ± 13.9, base policy 74.0 ± 29.5, difference +11.0 [2.0, 29.0]."
    )


def test_an_unknown_world_model_is_in_the_picture(tmp_path):
    own = GridPoint("own", 3, 8, 2, 1, 0.1)
    rows = summarise({BASE: record([90.0, 92.0], 0.5), own: record([92.0, 93.0], 2.0)}, IDENTITY)
    save_plot(rows, tmp_path / "a.png", "title")
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert [title_of(row) for row in rows] == ["base policy", "own (K = 3)"]


def drawn(rows, path, monkeypatch):
    """The two panels of the picture, and the text of its list."""
    figures = []
    monkeypatch.setattr("fastdwm.study.tradeoff.save_png", lambda figure, path: figures.append(figure))
    save_plot(rows, path, "title")
    plots, legend = figures[0].subfigs
    return plots.axes, [line for text in legend.texts for line in text.get_text().splitlines()]


def test_the_picture_numbers_its_points_as_the_table_and_lists_them(tmp_path, monkeypatch):
    rows = summarise({**RECORDS, BASE: record([90.0, 92.0, 40.0], 0.01)}, IDENTITY)
    panels, lines = drawn(rows, tmp_path / "a.png", monkeypatch)
    numbers = {row["cell"]: row["number"] for row in rows}
    assert numbers.pop("base") is None and sorted(numbers.values()) == list(range(1, len(rows)))
    for axes in panels:
        assert sorted(text.get_text() for text in axes.texts) == sorted(map(str, numbers.values()))
        # The base policy decides in a hundredth of the others' time, and gets no room.
        assert axes.get_xlim()[0] > 0.3
    for row in rows[1:]:
        assert any(line.split()[0] == str(row["number"]) and title_of(row) in line for line in lines)
        assert table_row(row)[0].split()[0] == str(row["number"])


@pytest.mark.parametrize(("scores", "span"), [([95.0, 95.01], 1.0), ([90.0, 99.0], 9.0)], ids=["narrow", "wide"])
def test_small_differences_are_not_blown_up(scores, span, tmp_path, monkeypatch):
    records = {BASE: record([scores[0]] * 2, 0.1), MEANFLOW: record([scores[1]] * 2, 2.0)}
    panels, _ = drawn(summarise(records, IDENTITY), tmp_path / "a.png", monkeypatch)
    for axes in panels:
        low, high = axes.get_ylim()
        assert span - 1e-6 <= high - low < 1.5 * span and low < scores[0] and high > scores[1]


def test_one_episode_has_no_intervals_but_a_csv_and_a_picture(tmp_path):
    records = {point: record([score], ms) for point, score, ms in ((BASE, 90.0, 0.5), (MEANFLOW, 92.0, 2.0))}
    rows = summarise(records, IDENTITY)
    save_plot(rows, tmp_path / "a.png", "title")
    assert [row["score_low"] for row in csv.DictReader(io.StringIO(csv_text(rows)))] == ["", ""]
    assert (tmp_path / "a.png").stat().st_size > 1000
