"""python -m fastdwm.study: files, resumed runs, refused input."""

import csv
import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import argv, input_error, refused, run
from processes import descendants, gone, until
from toy_bundles import ALL, make_bundle

from fastdwm.bundle import Bundle
from fastdwm.config import ITPOConfig
from fastdwm.study import __main__ as study
from fastdwm.study import cells
from fastdwm.study.config import StudyConfig

SGD = ("--itpo.optimiser", "sgd")
TINY = ("--worlds", "diffusion", "meanflow", "--horizons", "2", "--particles", "2", "--inner-steps", "1")
SHORT = ("--episodes", "2", "--max-steps", "15", "--inner-lrs", "0.1", *SGD, "--workers", "1", "--backend", "reference")
SHORT += ("--latency-decisions", "50")


def save_bundle(folder, *worlds, **changes):
    """Save an untrained bundle for hopper-medium; returns its folder."""
    make_bundle(*(worlds or ALL), settings={"diffusion": {"denoise_steps": 2}}, **changes).save(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return save_bundle(tmp_path_factory.mktemp("study") / "bundle")


def arguments(bundle, out, *flags):
    return ("hopper-medium", "--bundle", bundle, "--out", out, *flags)


def study_of(bundle, out, *flags):
    """Run the command."""
    return run("study", *arguments(bundle, out, *flags))


def read_cells(out, folder="cells"):
    """Records of finished runs, by name."""
    return {path.stem: json.loads(path.read_text()) for path in Path(out, folder).glob("*.json")}


@pytest.fixture(scope="module")
def finished(bundle, tmp_path_factory):
    """Process and folder of a finished study of three runs."""
    out = tmp_path_factory.mktemp("study") / "out"
    done = study_of(bundle, out, *TINY, *SHORT)
    assert done.returncode == 0, done.stderr
    return done, out


def test_a_study_leaves_table_csv_picture_and_json(finished):
    done, out = finished
    assert done.stdout.splitlines()[-4:] == [str(out / f"study.{kind}") for kind in ("md", "csv", "png", "json")]
    assert "MeanFlow (K = 1) gains" in done.stdout and "left" in done.stderr
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")
    with (out / "study.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["latency_p50_ms"]) for row in rows] == sorted(float(row["latency_p50_ms"]) for row in rows)
    by_world = {row["world"]: row for row in rows}
    assert by_world.keys() == {"base", "diffusion", "meanflow"}
    axes = ("world_steps", "horizon", "particles", "inner_steps", "inner_lr", "episodes", "latency_calls")
    assert [by_world["diffusion"][name] for name in axes] == ["2", "2", "2", "1", "0.1", "2", "50"]
    assert {"score_low", "score_iqm", "difference_high", "latency_p99_ms", "front", "bundle"} <= rows[0].keys()
    summary = json.loads((out / "study.json").read_text())
    assert summary["seeds"] == [20000, 20001] and "fastdwm.study hopper-medium" in summary["command"]
    assert summary["identity"]["versions.torch"] and summary["identity"]["machine.cpu_count"]


def test_every_cell_runs_the_same_seeds_and_is_compared_by_seed(finished):
    _, out = finished
    cells = read_cells(out)
    assert cells.keys() == {"base", "diffusion-K2-H2-M2-E1-lr0.1", "meanflow-K1-H2-M2-E1-lr0.1"}
    assert all([e["seed"] for e in record["episodes"]] == [20000, 20001] for record in cells.values())
    scores = {name: np.array([e["score_pct"] for e in record["episodes"]]) for name, record in cells.items()}
    rows = {row["cell"]: row for row in json.loads((out / "study.json").read_text())["cells"]}
    for name, row in rows.items():
        assert row["difference"] == pytest.approx((scores[name] - scores["base"]).mean())
        # Adapted policies score differently, so these runs are no copies of the base policy's.
        assert name == "base" or row["difference"] != 0


def test_the_best_cell_is_confirmed_on_seeds_that_it_was_not_chosen_on(finished):
    done, out = finished
    cells, again = read_cells(out), read_cells(out, "confirmation")
    rows = json.loads((out / "study.json").read_text())["cells"]
    chosen = max((row for row in rows if row["cell"] != "base"), key=lambda row: row["score_iqm"])["cell"]
    assert again.keys() == {"base", chosen}
    assert all([e["seed"] for e in record["episodes"]] == [10000, 10001] for record in again.values())
    confirmed = json.loads((out / "study.json").read_text())["confirmation"]
    base, score = (np.array([e["score_pct"] for e in again[name]["episodes"]]) for name in ("base", chosen))
    assert (confirmed["cell"], confirmed["seeds"]) == (chosen, [10000, 10001])
    assert confirmed["difference"]["value"] == pytest.approx((score - base).mean())
    assert confirmed["chosen"]["mean"] != np.mean([e["score_pct"] for e in cells[chosen]["episodes"]])
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Best by interquartile mean: ")]
    assert "On seeds 10000 to 10001, which were not used to choose it: score" in line
    assert line in (out / "study.md").read_text()


def test_a_study_writes_its_table_as_a_page(finished):
    _, out = finished
    page = (out / "study.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3 and len({len(row) for row in rows}) == 1
    assert "python -m fastdwm.study hopper-medium --bundle" in page and "environment seeds 20000 to 20001" in page


def test_without_confirmation_no_other_seed_is_run(finished, bundle, tmp_path):
    _, old = finished
    (tmp_path / "cells").mkdir()
    for path in (old / "cells").glob("*.json"):
        (tmp_path / "cells" / path.name).write_bytes(path.read_bytes())
    done = study_of(bundle, tmp_path, *TINY, *SHORT, "--no-confirm")
    assert done.returncode == 0 and "Best by" not in done.stdout
    assert not (tmp_path / "confirmation").exists()
    assert json.loads((tmp_path / "study.json").read_text())["confirmation"] is None


def test_finished_cells_are_not_repeated_and_a_missing_one_is(finished, bundle, tmp_path):
    _, old = finished
    out = tmp_path / "out"
    (out / "cells").mkdir(parents=True)
    for path in (old / "cells").glob("[bd]*.json"):
        (out / "cells" / path.name).write_bytes(path.read_bytes())
    done = study_of(bundle, out, *TINY, *SHORT)
    assert done.returncode == 0 and "1 of 3 grid points to run" in done.stderr
    before, after = read_cells(old), read_cells(out)
    assert all(before[name] == after[name] for name in ("base", "diffusion-K2-H2-M2-E1-lr0.1"))
    again = after["meanflow-K1-H2-M2-E1-lr0.1"]
    assert again["episodes"] == before["meanflow-K1-H2-M2-E1-lr0.1"]["episodes"]
    # If all runs are finished, the command only writes the summary again.
    assert study_of(bundle, out, *TINY, *SHORT).stderr == ""
    assert read_cells(out) == after


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(bundle, tmp_path):
    out = tmp_path / "out"
    # The longest run comes first, so that the kill hits the second one in its middle.
    flags = ("--worlds", "diffusion", "--horizons", "8", "7", "6", "--particles", "200", "--inner-steps", "1")
    flags += ("--episodes", "2", "--max-steps", "60", "--workers", "1", "--backend", "reference")
    flags += ("--latency-decisions", "10", "--no-confirm")
    process = subprocess.Popen(argv("study", *arguments(bundle, out, *flags)), stderr=subprocess.DEVNULL)
    assert until(lambda: read_cells(out))
    workers = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = read_cells(out)
    assert 1 <= len(before) < 4 and workers
    assert until(lambda: all(map(gone, workers))), "a worker outlived the study"
    assert read_cells(out).keys() == before.keys()

    done = study_of(bundle, out, *flags)
    after = read_cells(out)
    assert done.returncode == 0 and f"{4 - len(before)} of 4 grid points to run" in done.stderr
    assert len(after) == 4 and all("latency" in record for record in after.values())
    for name, record in before.items():
        assert after[name] == record | {"latency": after[name]["latency"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--episodes", "3"], "seeds: 20000 to 20001, now 20000 to 20002"),
        (["--max-steps", "9"], "max_steps: 15, now 9"),
        (["--itpo.reset", "decision"], "itpo.reset: episode, now decision"),
    ],
    ids=["episodes", "max-steps", "itpo"],
)
def test_cells_of_another_study_are_refused_and_kept(finished, bundle, change, message):
    _, out = finished
    before = read_cells(out)
    refused(study_of(bundle, out, *TINY, *SHORT, *change), message, "--out")
    assert read_cells(out) == before


@pytest.mark.parametrize(
    ("changes", "message"), [({"seed": 1}, "bundle: "), ({"max_deviation": 0.1}, "max_deviation: 0.05, now 0.1")]
)
def test_cells_of_another_bundle_or_bound_are_refused(finished, tmp_path, changes, message):
    other = save_bundle(tmp_path / "other", **changes)
    refused(study_of(other, finished[1], *TINY, *SHORT), f"holds another study ({message}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--worlds", "a b"], "worlds: expected NAME or NAME:CALLS, such as meanflow:2, got 'a b'"),
        (["--worlds", "meanflow:x"], "got 'meanflow:x'"),
        (["--worlds"], "worlds: expected at least one value"),
        (["--horizons", "-1"], r"horizons: expected numbers >= 0, got \[-1\]"),
        (["--inner-steps", "0"], r"inner_steps: expected numbers >= 1, got \[0\]"),
        (["--workers", "0"], "workers: expected a positive number, got 0"),
        ([*SGD, "--inner-lrs", "1e-5", "0"], r"inner_lrs: expected positive numbers, got \[1e-05, 0.0\]"),
        (["--max-deviations", "-1"], r"max_deviations: expected positive numbers, got \[-1.0\]"),
        (["--inner-lrs", "1e-5"], r"inner_lrs: expected none with the optimiser bound, got \[1e-05\]"),
        ([*SGD, "--max-deviations", "1"], r"max_deviations: expected none with the optimiser sgd, got \[1.0\]"),
        (["--grid", "paper", "--itpo.action-step", "1"], "action_step: expected 0.012 with the optimiser sgd"),
        (["--itpo.leash", "1"], "--itpo.leash is a setting of an earlier version: max_deviation bounds"),
        (["--itpo.max-deviation", "3"], "itpo.max_deviation: an axis of the study, expected as max_deviations, got 3"),
        (["--itpo.horizon", "3"], "itpo.horizon: an axis of the study, expected as horizons, got 3"),
    ],
    ids=lambda value: "-".join(text.lstrip("-") for text in value) if isinstance(value, list) else "",
)
def test_wrong_flags_are_refused_in_one_line(flags, message):
    with input_error(message):
        study.parse(["hopper-medium", *flags])


@pytest.mark.parametrize(
    ("worlds", "message"),
    [
        (("gan",), "worlds: the bundle holds diffusion, meanflow, got 'gan'"),
        (("meanflow:3",), "world_steps: expected 1, 2 or 4 for meanflow, got 3"),
    ],
    ids=["unknown", "calls"],
)
def test_world_models_that_the_bundle_lacks_are_refused_before_anything_runs(worlds, message, tmp_path):
    folder = save_bundle(tmp_path / "bundle", "diffusion", "meanflow")
    refused(study_of(folder, tmp_path / "out", "--worlds", *worlds), message)
    assert not list((tmp_path / "out").rglob("*.json"))


def test_by_default_a_study_takes_the_world_models_that_the_bundle_holds(tmp_path):
    small = ("--horizons", "1", "--particles", "1", "--inner-steps", "1", "--episodes", "1", "--max-steps", "3")
    small += ("--no-confirm", "--latency-decisions", "5", "--backend", "reference", "--workers", "1")
    # Its diffusion model has two steps, fewer than the grid's.
    folder = save_bundle(tmp_path / "bundle", "diffusion", "mlp")
    assert study_of(folder, tmp_path / "out", "--grid", "paper", *small).returncode == 0
    summary = json.loads((tmp_path / "out" / "study.json").read_text())
    assert {cell["world"] for cell in summary["cells"]} == {"base", "diffusion", "mlp"}
    assert summary["grid"]["worlds"] == ["diffusion", "mlp"]


def test_more_episodes_than_run_at_once_change_nothing(bundle, tmp_path, monkeypatch):
    # With this large step, other noise would change a return by more than the tolerance.
    axes = {"worlds": ("diffusion",), "horizons": (2,), "particles": (2,), "inner_steps": (1,)}
    axes |= {"itpo": ITPOConfig(optimiser="sgd"), "backend": "reference"}
    config = StudyConfig(bundle, **axes, inner_lrs=(0.1,), episodes=5, max_steps=15)
    grid, records = config.resolved(), []
    loaded = Bundle.load(bundle)
    for at_once in (2, 10):
        (tmp_path / str(at_once)).mkdir()
        plan = cells.plan(loaded, config, grid.episodes, config.seed, tmp_path / str(at_once))
        cell = grid.points(cells.held_worlds(loaded))[1]
        monkeypatch.setattr(cells, "AT_ONCE", at_once)
        cells.run_point(plan, cell)
        records.append(json.loads(plan.path(cell).read_text()))
    assert [record["batch_latency"]["size"] for record in records] == [2, 5]
    split, together = (record["episodes"] for record in records)
    assert [e["seed"] for e in split] == [e["seed"] for e in together] == list(range(20000, 20005))
    assert [e["return"] for e in split] == pytest.approx([e["return"] for e in together], abs=5e-3)
