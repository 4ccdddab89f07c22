"""python bench/base_policies.py as a user meets it: from a list of base policies to the page, and on after a stop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from toy_bundles import make_bundle

from fastdwm.bundle import pack_tensors
from fastdwm.errors import InputError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import base_damage  # noqa: E402
import base_page  # noqa: E402
from base_cells import read_policies, read_settings  # noqa: E402

SHORT = ("--episodes", "2", "--tuning-episodes", "2", "--max-steps", "12", "--workers", "1")
BOLD = {"bold": {"optimiser": "sgd", "inner_lr": 0.1, "horizon": 2}}
TASK = "hopper-medium"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a list of two base policies, of one bundle, more settings and a small dataset."""
    folder = tmp_path_factory.mktemp("base-policies")
    make_bundle("diffusion", "meanflow").save(folder / "bundle")
    other = make_bundle(seed=5)
    weights = pack_tensors({"policy": other.policy, "critics": other.critics})
    (folder / "policy-10.safetensors").write_bytes(weights)
    early = {"task": TASK, "moment": "early", "bundle": "bundle", "checkpoint": "policy-10.safetensors"}
    last = {"task": TASK, "moment": "last", "bundle": "bundle", "critics": "policy-10.safetensors"}
    (folder / "list.json").write_text(json.dumps([early, last | {"dataset": str(folder / "data.hdf5")}]))
    (folder / "settings.json").write_text(json.dumps(BOLD))
    write_dataset(folder / "data.hdf5")
    return folder


def write_dataset(path):
    """A D4RL file: 10 episodes of 40 random hopper-sized transitions."""
    rng, n = np.random.default_rng(0), 400
    obs, action = (rng.normal(size=(n, size)).clip(-1, 1).astype(np.float32) for size in (11, 3))
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"], file["rewards"] = obs, action, obs[:, 0]
        file["next_observations"] = obs + 0.1 * action[:, :1]
        file["terminals"], file["timeouts"] = np.zeros(n, bool), np.arange(n) % 40 == 39


def call(lab, stage, *flags):
    """The finished process of a stage."""
    out = "--out", str(lab / "out"), "--pages", str(lab / "pages")
    argv = [sys.executable, str(ROOT / "bench" / "base_policies.py"), stage, str(lab / "list.json"), *out, *SHORT]
    paths = {"PYTHONPATH": str(ROOT), "FASTDWM_CACHE": str(lab / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*argv, *flags], capture_output=True, text=True, timeout=240, env=os.environ | paths)


@pytest.fixture(scope="module")
def finished(lab):
    """What the three stages that make the page said."""
    done = {"tune": call(lab, "tune")}
    done |= {stage: call(lab, stage, "--settings", str(lab / "settings.json")) for stage in ("run", "show")}
    assert all(process.returncode == 0 for process in done.values()), [process.stderr for process in done.values()]
    return done


def cells(lab):
    """Content of every cell's file, by name."""
    return {path.name: path.read_bytes() for path in (lab / "out").glob("*.json")}


def records(lab, moment, setting, seed):
    """The finished cells of a setting that start from a seed."""
    found = [json.loads(path.read_text()) for path in (lab / "out").glob(f"{TASK}-{moment}-*.json")]
    return [one for one in found if one["setting"] == setting and one["episodes"][0]["seed"] == seed]


def scores(record):
    return np.array([episode["score_pct"] for episode in record["episodes"]])


def test_page_json_and_picture_tell_the_paired_differences(lab, finished):
    page = json.loads((lab / "pages" / "base-policies.json").read_text())
    assert [row["moment"] for row in page["rows"]] == ["early", "last"]
    for row in page["rows"]:
        (base,), (bold,) = (records(lab, row["moment"], name, 10_000) for name in ("base", "bold"))
        assert row["base_score"] == pytest.approx(scores(base).mean())
        assert row["differences"]["bold"]["value"] == pytest.approx((scores(bold) - scores(base)).mean())
        assert row["differences"]["bold"]["value"] != 0
        assert row["differences"].keys() == {"default", "first", "bold", "tuned"}
    text = (lab / "pages" / "base-policies.md").read_text()
    assert text.count(f" {TASK} |") == 2 and "base_policies.py show list.json" in text
    assert "default: lower end >= -1 in" in text and str(lab) not in text
    assert (lab / "pages" / "base-policies.png").read_bytes().startswith(b"\x89PNG")


def test_tuning_chooses_on_its_own_seeds_what_scores_best(lab, finished):
    for line, moment in zip(finished["tune"].stdout.splitlines(), ("early", "last"), strict=True):
        found = {name: records(lab, moment, name, 20_000) for name in ("base", *("2e-06 5e-06 1e-05 2e-05".split()))}
        means = {name: scores(record).mean() for name, (record,) in found.items()}
        assert line == f"{TASK}-{moment}: {max(means, key=means.get)}"


def test_a_cell_tells_length_latency_and_mean_diagnostics(lab, finished):
    (record,) = records(lab, "last", "bold", 10_000)
    assert all(0 < episode["length"] <= 12 for episode in record["episodes"]) and record["ms_per_decision"] > 0
    means = [episode["diagnostics"]["action_distance"] for episode in record["episodes"]]
    assert record["diagnostics"]["action_distance"] == pytest.approx(np.mean(means)) and min(means) > 0


def test_only_what_is_missing_is_run_and_cells_of_other_code_when_asked(lab, finished):
    flags, before = ("--settings", str(lab / "settings.json")), cells(lab)
    missing, stale = (path_of_bold(lab, moment) for moment in ("early", "last"))
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


def path_of_bold(lab, moment):
    (path,) = (
        p for p in (lab / "out").glob(f"{TASK}-{moment}-*.json") if json.loads(p.read_text())["setting"] == "bold"
    )
    return path


def test_a_page_tells_which_cells_ran_with_other_code(lab, finished):
    policy = read_policies(lab / "list.json")[1]
    (base,), (bold,) = (records(lab, "last", name, 10_000) for name in ("base", "bold"))
    told = [
        base_page.made_with([base_page.summarise(policy, {"base": base, "bold": one})], base_page.circumstances())
        for one in (bold, bold | {"code": "another"})
    ]
    assert "changed" not in told[0] and told[1].endswith(
        "The code of the rule has changed since these ran: bold 1 times."
    )


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


def test_damaged_bundles_are_made_once(lab, monkeypatch):
    policy, folder = read_policies(lab / "list.json")[1], lab / "damaged"
    monkeypatch.setenv("FASTDWM_CACHE", str(lab / "cache"))
    made = base_damage.prepare(policy, folder)
    monkeypatch.setattr(base_damage.damage.Rows, "of", lambda *given: pytest.fail("calibrated anew"))
    assert base_damage.prepare(policy, folder) == made and len(list(folder.iterdir())) == 5


def test_verdict_counts_who_is_never_worse_and_compares_gains():
    def row(**values):
        return {"differences": {name: {"value": v, "low": low, "high": v} for name, (v, low) in values.items()}}

    rows = [row(default=(3.0, -1.0), tuned=(4.0, 3.0)), row(default=(1.0, -1.1), tuned=(1.0, 0.0))]
    found = base_page.verdict(rows)
    assert found["default"] == {"base_policies": 2, "never_worse": 1, "mean_gain": 2.0, "share_of_tuned": 0.8}
    assert "default: lower end >= -1 in 1 of 2; mean gain +2.0, 80 % of tuned SGD's." in base_page.sentences(found)


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
        ({"a": {"inner_lr": -1.0}}, "inner_lr: expected a number >= 0"),
    ],
)
def test_settings_that_cannot_be_used_are_an_input_error(tmp_path, content, message):
    (tmp_path / "settings.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_settings(tmp_path / "settings.json")


def test_bad_input_is_one_line_and_exit_code_2(lab):
    done = call(lab, "run", "--only", "walker2d-last")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "has no walker2d-last" in done.stderr


def test_help_answers_before_torch_is_loaded():
    code = "import base_policies, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}"}
    )
    assert done.returncode == 0 and not {"torch", "numpy", "matplotlib"} & set(done.stdout.split())
