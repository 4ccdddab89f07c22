"""Scores of tasks without a name: on a scale that the user or the dataset gives, else plain returns, as it is said."""

from dataclasses import replace

import pytest
from commands import input_error
from toy_bundles import make_bundle

from fastdwm import EnvSpec, Task
from fastdwm.data.task import resolve
from fastdwm.env_config import EnvConfig
from fastdwm.eval import __main__ as eval
from fastdwm.eval.config import EvalConfig
from fastdwm.study import tables
from fastdwm.tables import digits_for
from fastdwm.tasks import get_task, is_d4rl
from fastdwm.tune.halving import Trial, choose

HOPPER = get_task("hopper-medium")
PLAIN = Task("my-hopper", EnvSpec("Hopper-v5", {}, 1000), 11, 3)


def test_without_references_a_score_is_the_return():
    assert (PLAIN.score_name, PLAIN.score_pct(-123.456)) == ("return", -123.456)
    assert (HOPPER.score_name, get_task("antmaze-umaze").score_name) == ("score", "score")


def test_references_of_the_user_replace_those_of_a_named_task():
    task = resolve("hopper-medium", EnvConfig(), ref_scores=(-10.0, 10.0))
    assert task.score_pct(5.0) == 75.0
    assert task.departures() == ["ref_min_score = -10.0", "ref_max_score = 10.0"]
    with input_error("ref_max_score: expected more than ref_min_score"):
        resolve("hopper-medium", EnvConfig(), ref_scores=(1.0, 1.0))


@pytest.mark.parametrize(
    ("task", "rows", "scale"),
    [
        (PLAIN, ["return"], "scores are returns, for there are no reference scores"),
        (HOPPER, ["score", "return"], "score: 0 is a return of -20.27, 100 one of 3234"),
    ],
)
def test_the_table_says_what_it_shows(task, rows, scale, tmp_path, quick, capsys):
    make_bundle(task=task).save(tmp_path / "bundle")
    eval.main(task.name, EvalConfig(tmp_path / "bundle", episodes=2, max_steps=3, out=tmp_path))
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines() if line[2:8] in ("score ", "return")] == rows
    assert scale in " ".join(printed.split())


def test_a_study_says_what_it_shows():
    assert tables.columns("return")[6:9] == ("return", "IQM", "return - base")


def test_equally_good_candidates_depend_on_the_size_of_returns():
    """With returns of a hundredth, a gain of a tenth of them is no tie."""
    base, better = Trial(make_settings()), Trial(make_settings())
    base.scores, better.scores = [0.01] * 8, [0.011] * 8
    base.decision_s, better.decision_s = 1.0, 2.0
    assert choose(base, [better]) is base
    assert choose(base, [better], tie=1e-5) is better


def make_settings():
    from fastdwm.config import Settings

    return Settings()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("D4RL/antmaze/umaze-v1", True),
        ("/data/hopper_medium-v2.hdf5", True),
        ("antmaze-large-play-v2.hdf5", True),
        ("hopper_medium_replay-v2.hdf5", True),
        ("deepope/hopper/medium-v0", False),
        ("mujoco/hopper/medium-v0", False),
        ("mine.hdf5", False),
    ],
)
def test_only_d4rls_data_have_its_name(source, expected):
    assert is_d4rl(source) == expected


def test_a_shipped_bundle_keeps_its_scale():
    assert replace(HOPPER, env=EnvSpec("Hopper-v4", {}, 1000)).scale == HOPPER.scale


def test_small_returns_are_shown_with_three_figures():
    value = {"value": 0.01234, "low": 0.01, "high": 0.02}
    assert tables.interval(value, "+", digits_for(0.01234)) == "+0.0123 [0.0100, 0.0200]"
    assert [digits_for(size) for size in (-1027.7, 10.0, -8.4, 0.5, 0.0, 1e-9)] == [1, 1, 2, 3, 1, 6]
