"""python bench/base_policies.py: runs, pages, resumed runs and bad input."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run
from toy_bundles import make_bundle, save_checkpoint
from toy_data import write_dataset

from fastdwm import Agent, Bundle, ITPOConfig
from fastdwm.errors import InputError
from fastdwm.measure.control import Drift
from fastdwm.measure.simulate import run_episodes

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import base_damage  # noqa: E402
import base_page  # noqa: E402
from base_cells import read_policies, read_settings  # noqa: E402

SHORT = ("--episodes", "2", "--max-steps", "12", "--workers", "1")
MORE = {"bold": {"optimiser": "sgd", "inner_lr": 0.1, "horizon": 2}, "twice": {"horizon": 2, "factor": 2.0}}
TASK = "hopper-medium"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Folder with a list of two base policies of one bundle, more settings and a small dataset."""
    folder = tmp_path_factory.mktemp("base-policies")
    make_bundle("diffusion", "meanflow").save(folder / "bundle")
    save_checkpoint(folder / "policy-10.safetensors", max_deviation=0.2)
    early = {"task": TASK, "moment": "early", "bundle": "bundle", "checkpoint": "policy-10.safetensors"}
    last = {"task": TASK, "moment": "last", "bundle": "bundle", "critics": "policy-10.safetensors"}
    (folder / "list.json").write_text(json.dumps([early, last | {"dataset": str(folder / "data.hdf5")}]))
    (folder / "settings.json").write_text(json.dumps(MORE))
    write_dataset(folder / "data.hdf5", n_episodes=10)
    return folder


def call(lab, stage, *flags):
    """Run a stage."""
    out = "--out", str(lab / "out"), "--pages", str(lab / "pages")
    cache = {"FASTDWM_CACHE": lab / "cache"}
    return run(ROOT / "bench" / "base_policies.py", stage, lab / "list.json", *out, *SHORT, *flags, env=cache)


@pytest.fixture(scope="module")
def finished(lab):
    """Finished processes of the stages that make the page."""
    done = {stage: call(lab, stage, "--settings", str(lab / "settings.json")) for stage in ("run", "show")}
    assert all(process.returncode == 0 for process in done.values()), [process.stderr for process in done.values()]
    return done


def cells(lab):
    """Content of every run's file, by name."""
    return {path.name: path.read_bytes() for path in (lab / "out").glob("*.json")}


def path_of(lab, moment, setting):
    """File of the finished run of a setting."""
    paths = (lab / "out").glob(f"{TASK}-{moment}-*.json")
    (path,) = (path for path in paths if json.loads(path.read_text())["setting"] == setting)
    return path


def record_of(lab, moment, setting):
    return json.loads(path_of(lab, moment, setting).read_text())


def scores(record):
    return np.array([episode["score_pct"] for episode in record["episodes"]])


@pytest.mark.slow
def test_page_json_and_picture_tell_the_paired_differences(lab, finished):
    page = json.loads((lab / "pages" / "base-policies.json").read_text())
    assert [row["moment"] for row in page["rows"]] == ["early", "last"]
    for row in page["rows"]:
        base, bold = (record_of(lab, row["moment"], name) for name in ("base", "bold"))
        assert row["base_score"] == pytest.approx(scores(base).mean())
        assert row["differences"]["bold"]["value"] == pytest.approx((scores(bold) - scores(base)).mean())
        assert row["differences"]["bold"]["value"] != 0
        assert list(row["differences"]) == ["default", "drift", "bold", "twice"]
    text = (lab / "pages" / "base-policies.md").read_text()
    assert text.count(f" {TASK} |") == 2 and "base_policies.py show list.json" in text
    assert "- control (drift): mean difference >= -1 on" in text and str(lab) not in text
    assert (lab / "pages" / "base-policies.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "bound"), [("early", 0.2), ("last", 0.05)])
def test_cells_run_the_bound_the_control_and_factors_of_the_bound(lab, finished, moment, bound):
    """The checkpoint of the early moment has its own bound."""
    bundle, seeds = Bundle.load(lab / "bundle"), [10_000, 10_001]
    bundle = bundle.with_policy(lab / "policy-10.safetensors") if moment == "early" else bundle
    agents = {
        "default": Agent.of(bundle, ITPOConfig(max_deviation=bound), seed=seeds[0]),
        "twice": Agent.of(bundle, ITPOConfig(max_deviation=2 * bound, horizon=2), seed=seeds[0]),
        "drift": Drift(bundle, bound),
    }
    for name, agent in agents.items():
        expected = run_episodes(agent, bundle.task.env, seeds, max_steps=12)
        returns = [episode["return"] for episode in record_of(lab, moment, name)["episodes"]]
        assert returns == pytest.approx([episode.total for episode in expected.episodes], abs=1e-4)


@pytest.mark.slow
def test_only_what_is_missing_is_run_and_cells_of_other_code_when_asked(lab, finished):
    flags, before = ("--settings", str(lab / "settings.json")), cells(lab)
    missing, stale = (path_of(lab, moment, "bold") for moment in ("early", "last"))
    missing.unlink()
    stale.write_text(json.dumps(json.loads(before[stale.name]) | {"code": "another", "ms_per_decision": -1}))
    left = cells(lab)
    assert call(lab, "run", *flags).returncode == 0
    after = cells(lab)
    assert after.keys() == before.keys() and all(after[name] == left[name] for name in left)
    again, old = json.loads(after[missing.name]), json.loads(before[missing.name])
    assert again["episodes"] == old["episodes"] and again["wall_s"] != old["wall_s"]

    assert call(lab, "run", *flags, "--again", "bold").returncode == 0
    renewed = cells(lab)
    assert [name for name in after if renewed[name] != after[name]] == [stale.name]
    assert json.loads(renewed[stale.name])["code"] == old["code"]


@pytest.mark.slow
def test_a_page_tells_which_cells_ran_with_other_code(lab, finished):
    policy = read_policies(lab / "list.json")[1]
    base, bold = (record_of(lab, "last", name) for name in ("base", "bold"))
    texts = [
        base_page.made_with([base_page.summarise(policy, {"base": base, "bold": one})], base_page.circumstances())
        for one in (bold, bold | {"code": "another"})
    ]
    assert "changed" not in texts[0] and texts[1].endswith(
        "The code of the rule has changed since these ran: bold 1 times."
    )


@pytest.mark.slow
def test_damaged_models_are_compared_with_the_undamaged_base_policy(lab):
    done = call(lab, "damage", "--only", f"{TASK}-last")
    assert done.returncode == 0, done.stderr
    page = json.loads((lab / "pages" / "damaged-models.json").read_text())
    damages = [(row["damage"], row["world"]) for row in page["rows"]]
    assert damages == [
        ("none", "diffusion"), ("none", "meanflow"), ("critic-x3", "diffusion"), ("critic-tenth", "diffusion"),
        ("reward-3x", "diffusion"), ("diffusion-5x", "diffusion"), ("meanflow-5x", "meanflow"),
    ]  # fmt: skip
    assert len({row["base_score"] for row in page["rows"]}) == 1


@pytest.mark.slow
def test_damaged_bundles_are_made_once(lab, monkeypatch):
    policy, folder = read_policies(lab / "list.json")[1], lab / "damaged"
    monkeypatch.setenv("FASTDWM_CACHE", str(lab / "cache"))
    cases = base_damage.prepare(policy, folder)
    monkeypatch.setattr(base_damage.damage.Rows, "of", lambda *args: pytest.fail("calibrated anew"))
    assert base_damage.prepare(policy, folder) == cases and len(list(folder.iterdir())) == 5


def test_verdict_counts_harm_and_gains_beyond_chance():
    def row(**values):
        named = {name: dict(zip(("low", "value", "high"), x, strict=True)) for name, x in values.items()}
        return {"differences": named}

    rows = [row(default=(0.5, 3.0, 4.0), drift=(-9.0, -4.0, -1.1)), row(default=(-2.0, -1.0, 0.5))]
    # One episode has no interval.
    rows.append(row(default=(None, -1.1, None), drift=(-9.0, -4.0, -0.9)))
    verdicts = base_page.verdict(rows)
    names = ("base_policies", "harmless", "harmful", "better")
    assert [verdicts["default"][name] for name in names] == [3, 2, 0, 1]
    assert [verdicts["drift"][name] for name in names] == [2, 0, 1, 0]
    assert verdicts["default"]["mean_gain"] == pytest.approx(0.3) and verdicts["drift"]["mean_gain"] == -4.0
    first, second = base_page.sentences(verdicts).splitlines()
    assert first.startswith("- ITPO (default): mean difference >= -1 on 2 of 3, below beyond chance on 0, above 0 ")
    assert second.startswith("- control (drift): mean difference >= -1 on 0 of 2, below beyond chance on 1, above 0 ")
    assert second.endswith(" beyond chance on 0; mean gain -4.0.")


ENTRY = {"task": TASK, "moment": "last", "bundle": "bundle"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list of base policies"),
        ([{"task": TASK, "moment": "last"}], "bundle is missing"),
        ([ENTRY | {"seed": 1}], "'seed' is not a setting"),
        ([ENTRY | {"moment": "a/b"}], "expected letters, digits"),
        ([ENTRY, ENTRY], "hopper-medium-last stands in it twice"),
    ],
)
def test_a_list_that_cannot_be_used_is_an_input_error(tmp_path, content, message):
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_policies(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "expected an object of objects"),
        ({"a": {"stepsize": 1.0}}, "ITPOConfig has no 'stepsize'"),
        ({"a": {"inner_steps": "2"}}, "inner_steps cannot be '2'"),
        ({"a": {"optimiser": "sgd", "inner_lr": -1.0}}, "inner_lr: expected a number >= 0"),
        ({"a": {"leash": 0.1}}, "ITPOConfig has no 'leash'"),
        ({"a": {"factor": "2"}}, "factor cannot be '2'"),
        ({"a": {"control": 1}}, "control cannot be 1"),
    ],
)
def test_settings_that_cannot_be_used_are_an_input_error(tmp_path, content, message):
    (tmp_path / "settings.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_settings(tmp_path / "settings.json")


def test_bad_input_is_one_line_and_exit_code_2(lab):
    done = call(lab, "run", "--only", "walker2d-last")
    refused(done, "has no walker2d-last")
