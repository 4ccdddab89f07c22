"""python -m fastdwm.eval: files, tables, workers, the control, and bad input."""

import json
import math
import resource
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from commands import refused, run, spawn
from processes import descendants, gone, until
from toy_bundles import make_bundle, save_checkpoint

from fastdwm.bundle import Bundle
from fastdwm.config import REPLACED, ITPOConfig, Settings, read_settings
from fastdwm.errors import InputError
from fastdwm.eval import __main__ as eval
from fastdwm.eval.config import EvalConfig
from fastdwm.machine import package_versions
from fastdwm.measure import latency
from fastdwm.measure.control import Drift
from fastdwm.measure.simulate import run_episodes
from fastdwm.tasks import get_task

SGD = ("--itpo.optimiser", "sgd")


@pytest.fixture
def bundle(tmp_path):
    """Folder of a small untrained bundle for hopper-medium."""
    make_bundle().save(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_evaluation_leaves_table_json_and_picture(bundle, tmp_path, capsys, monkeypatch):
    # Time all decisions that a percentile needs, on a slow machine too.
    monkeypatch.setattr(latency, "BUDGET_S", 3600.0)
    itpo = ITPOConfig(horizon=2, particles=2, optimiser="sgd", inner_lr=0.1)
    out = tmp_path / "out"
    eval.main("hopper-medium", EvalConfig(bundle, episodes=2, max_steps=12, itpo=itpo, out=out, plot=True))
    stdout = capsys.readouterr().out
    (path,), (picture,) = out.glob("*.json"), out.glob("*.png")
    assert stdout.splitlines()[-2:] == [str(path), str(picture)]
    record = json.loads(path.read_text())
    assert f"{record['summary']['itpo']['score_pct']['mean']:.1f}" in stdout
    # A single episode is timed on 2000 decisions, the batch on its two decisions after the warm-up.
    alone, batch = (record["summary"]["itpo"][f"{name}_latency"] for name in ("alone", "batch"))
    assert f"{alone['p50_ms']:.2f} / {alone['p99_ms']:.2f}" in stdout
    assert batch["p99_ms"] is None and f"{batch['p50_ms']:.2f} / -" in stdout
    assert record["seeds"] == [10000, 10001]
    assert record["config"]["itpo"]["particles"] == 2
    assert {"python", "torch", "mujoco", "gymnasium"} <= record["versions"].keys()
    for episodes in record["episodes"].values():
        assert [episode["length"] for episode in episodes] == [12, 12]
        assert sum(episodes[0]["rewards"]) == episodes[0]["return"]
    diagnosis = record["episodes"]["itpo"][0]["diagnostics"][0]
    assert diagnosis["objective_after"] > diagnosis["objective_before"]
    assert diagnosis["realised_return"] is not None


def test_the_picture_shows_the_tables_scores_and_the_difference_over_time(bundle, tmp_path, monkeypatch, quick):
    figures = []
    monkeypatch.setattr("fastdwm.eval.plot.save_png", lambda figure, path: figures.append(figure))
    itpo = ITPOConfig(horizon=1, optimiser="sgd", inner_lr=0.1)
    settings = {"episodes": 3, "max_steps": 12, "itpo": itpo, "backend": "reference"}
    eval.main("hopper-medium", EvalConfig(bundle, out=tmp_path / "out", plot=True, **settings))
    record = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    (figure,) = figures
    title = figure.get_suptitle()
    assert "hopper-medium, 3 seeds" in title and "optimiser sgd" in title and "H 1" in title
    pairs, _, gap = figure.axes
    scores = [[episode["score_pct"] for episode in record["episodes"][policy]] for policy in ("base", "itpo")]
    drawn = [line for line in pairs.lines if line.get_marker() == "o"]
    for line, expected in zip(drawn, scores, strict=True):
        np.testing.assert_allclose(line.get_ydata(), expected)
        assert len(set(line.get_xdata())) == 3
    mean = record["summary"]["difference"]["score_pct"]["value"]
    assert gap.lines[1].get_ydata()[-1] == pytest.approx(mean, abs=1e-6)


def test_a_bundle_that_was_tuned_to_its_base_policy_says_so(tmp_path, quick):
    plain = make_bundle()
    settings = Settings(ITPOConfig(inner_steps=0), "diffusion").record()
    tuning = {"settings": settings, "weights_sha256": plain.fingerprint}
    replace(plain, tuning=tuning).save(tmp_path / "tuned")
    flags = ("--bundle", tmp_path / "tuned", "--out", tmp_path / "out", "--episodes", 1, "--max-steps", 4)
    done = run("eval", "hopper-medium", *flags)
    assert (
        "settings: base policy, as tuned: on the tuning seeds nothing beat it (E = 0); --preset default" in done.stdout
    )
    assert "as tuned" not in run("eval", "hopper-medium", *flags, "--preset", "default").stdout


def test_an_infinite_bound_is_not_taken_for_the_bundles(bundle, tmp_path, quick):
    flags = ("--bundle", bundle, "--episodes", 1, "--max-steps", 4, "--itpo.horizon", 1)
    for name, more, expected in (("infinite", ["--itpo.max-deviation", "inf"], "inf"), ("default", [], None)):
        done = run("eval", "hopper-medium", *flags, "--out", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
        config = json.loads(next((tmp_path / name).glob("*.json")).read_text())["config"]
        assert config["itpo"]["max_deviation"] == expected
    settings = Settings(ITPOConfig(max_deviation=math.inf))
    assert read_settings(json.loads(json.dumps(settings.record()))) == settings


def test_a_deadline_is_reported(bundle, tmp_path, capsys, quick):
    itpo = ITPOConfig(horizon=2, particles=2, optimiser="sgd", inner_lr=0.1, inner_steps=4)
    for deadline_ms, missed in ((1e-3, 12), (1e5, 0)):
        out = tmp_path / str(missed)
        eval.main(
            "hopper-medium",
            EvalConfig(bundle, episodes=1, max_steps=12, diagnose_every=1, itpo=itpo, out=out, deadline_ms=deadline_ms),
        )
        stdout = capsys.readouterr().out
        numbers = json.loads(next(out.glob("*.json")).read_text())["summary"]["itpo"]
        assert numbers["diagnostics"]["inner_steps"] == (0 if missed else 4)
        batch = numbers["batch_latency"]
        assert batch["missed"] == (batch["calls"] if missed else 0)
        assert f"{batch['missed']} of {batch['calls']}" in stdout
        assert "inner steps per decision" in stdout


@pytest.mark.slow
def test_a_full_disk_loses_no_table(bundle, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # noqa: E731
    flags = ["--episodes=1", "--max-steps=12", "--itpo.inner-steps=0", f"--bundle={bundle}", f"--out={tmp_path}/out"]
    done = spawn("eval", "hopper-medium", *flags, preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "interquartile mean" in done.stdout and "ITPO" in done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: cannot write {tmp_path}/out/hopper-medium-") and "File too large" in last
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("made_with", ["here", "3.6.0"])
def test_another_simulator_than_the_bundles_is_reported(made_with, tmp_path, capsys, quick):
    here = package_versions()
    versions = here | ({} if made_with == "here" else {"mujoco": made_with, "torch": "1.0"})
    make_bundle(versions=versions).save(tmp_path / "bundle")
    settings = {"episodes": 1, "max_steps": 2, "itpo": ITPOConfig(inner_steps=0), "backend": "reference"}
    eval.main("hopper-medium", EvalConfig(tmp_path / "bundle", out=tmp_path / "out", **settings))
    expected = [] if made_with == "here" else [f"mujoco {here['mujoco']} in place of 3.6.0"]
    assert json.loads(next((tmp_path / "out").glob("*.json")).read_text())["version_departures"] == expected
    table = " ".join(capsys.readouterr().out.split())
    assert ("scores may differ from the bundle's own: " + "".join(expected) in table) == bool(expected)


def scores(bundle, out, workers):
    settings = {"episodes": 3, "max_steps": 12, "itpo": ITPOConfig(horizon=1, particles=1), "backend": "reference"}
    eval.main("hopper-medium", EvalConfig(bundle, out=out, workers=workers, **settings))
    episodes = json.loads(next(out.glob("*.json")).read_text())["episodes"]
    return [episode["return"] for policy in episodes.values() for episode in policy]


@pytest.mark.slow
def test_processes_that_share_the_episodes_change_no_score(bundle, tmp_path, capfd, quick):
    shared = scores(bundle, tmp_path / "two", 2)
    assert "ITPO: 36/36" in capfd.readouterr().err
    assert shared == pytest.approx(scores(bundle, tmp_path / "one", 1), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_the_processes_of_an_evaluation_end_with_it(number, bundle, tmp_path):
    flags = ["--workers=2", "--episodes=2", "--backend=reference", f"--bundle={bundle}", f"--out={tmp_path}/out"]
    code = "import runpy; from fastdwm import command; command.PLAIN_PERIOD_S = 0; runpy.run_module('fastdwm.eval', "
    argv = [sys.executable, "-c", code + "run_name='__main__')", "hopper-medium", *flags, "--itpo.particles=20000"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Progress is reported when both workers have decided.
    assert any(line.startswith("ITPO:") for line in process.stderr)
    there = descendants(process.pid)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert len(there) >= 2 and until(lambda: all(map(gone, there)))


def test_a_checkpoint_takes_the_place_of_the_bundles_policy(bundle, tmp_path, capsys, quick):
    save_checkpoint(tmp_path / "policy.safetensors", max_deviation=0.25)
    settings = {"episodes": 1, "max_steps": 20, "itpo": ITPOConfig(horizon=1, particles=1), "backend": "reference"}
    rewards = []
    for i, checkpoint in enumerate((None, tmp_path / "policy.safetensors")):
        out = tmp_path / str(i)
        eval.main("hopper-medium", EvalConfig(bundle, checkpoint=checkpoint, out=out, **settings))
        record = json.loads(next(out.glob("*.json")).read_text())
        rewards.append(record["episodes"]["base"][0]["rewards"])
        used = Bundle.load(bundle) if checkpoint is None else Bundle.load(bundle).with_policy(checkpoint)
        assert record["bundle"]["weights_sha256"] == used.fingerprint
        assert record["bundle"]["max_deviation"] == (0.25 if checkpoint else 0.05)
        assert f"max_deviation {0.25 if checkpoint else 0.05:.4f} (the bundle's)" in capsys.readouterr().out
    assert rewards[0] != rewards[1]


SHORT = ("--episodes", 2, "--max-steps", 12, "--itpo.horizon", 2)


@pytest.mark.parametrize("of", ["bundle", "checkpoint"])
def test_a_policy_that_was_not_measured_needs_the_flag(of, bundle, tmp_path, quick):
    args = ["hopper-medium", "--bundle", bundle, "--out", tmp_path / "out", *SHORT]
    if of == "bundle":
        make_bundle(max_deviation=None).save(bundle)
    else:
        save_checkpoint(tmp_path / "policy.safetensors", max_deviation=None)
        args += ["--checkpoint", tmp_path / "policy.safetensors"]
    for more in ([], ["--control"]):
        refused(run("eval", *args, *more), "max_deviation", "report deviation", "--itpo.max-deviation")
    bound = ["--itpo.max-deviation", "0.1"]
    for more in (bound, ["--control", *bound], ["--itpo.inner-steps", "0"], ["--control", "--itpo.inner-steps", "0"]):
        done = run("eval", *args, *more)
        assert done.returncode == 0, done.stderr


def test_the_control_runs_in_the_place_of_itpo(bundle, tmp_path, quick):
    loaded, seeds = Bundle.load(bundle), [10_000, 10_001]
    for size, more in ((0.05, []), (0.2, ["--itpo.max-deviation", "0.2"])):
        out = tmp_path / str(size)
        done = run("eval", "hopper-medium", "--bundle", bundle, "--out", out, "--control", *SHORT, *more)
        assert "control - base" in done.stdout and "ITPO" not in done.stdout + done.stderr
        assert "control, one episode alone: " in done.stderr
        assert f"settings: control, pushed by {size:.4f}" in done.stdout
        record = json.loads(next(out.glob("*.json")).read_text())
        assert record["config"]["control"] is True
        control = run_episodes(Drift(loaded, size, seeds[0]), loaded.task.env, seeds, max_steps=12)
        assert [e["rewards"] for e in record["episodes"]["itpo"]] == [e.rewards for e in control.episodes]
        assert all(a["rewards"] != b["rewards"] for a, b in zip(*record["episodes"].values(), strict=True))


def test_without_inner_steps_there_is_nothing_to_control(bundle, tmp_path, quick):
    args = ("--bundle", bundle, "--out", tmp_path / "out", "--control", *SHORT, "--itpo.inner-steps", 0)
    done = run("eval", "hopper-medium", *args)
    assert "settings: base policy" in done.stdout and "pushed" not in done.stdout
    base, other = json.loads(next((tmp_path / "out").glob("*.json")).read_text())["episodes"].values()
    assert [e["rewards"] for e in base] == [e["rewards"] for e in other]


def test_bundle_of_another_task_is_an_input_error(bundle, tmp_path):
    with pytest.raises(InputError, match="expected one for walker2d-medium"):
        eval.main("walker2d-medium", EvalConfig(bundle, out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["hoper-medium"], "hopper-medium"),
        (["hopper-medium", "--epsodes", "3"], "--episodes"),
        (["hopper-medium", "--episodes", "0"], "episodes: expected a positive number, got 0"),
        (["hopper-medium", *SGD, "--itpo.inner-lr", "-1"], "inner_lr: expected a number >= 0, got -1.0"),
        (["hopper-medium", "--itpo.max-deviation", "0"], "max_deviation: expected a positive number, got 0.0"),
        (["hopper-medium", "--itpo.max-deviation", "nan"], "max_deviation: expected a positive number, got nan"),
        (["hopper-medium", "--itpo.action-step", "0"], "action_step: expected a positive number, got 0.0"),
        (["hopper-medium", "--itpo.inner-lr", "1e-5"], "inner_lr: expected 2e-05 with the optimiser bound"),
        (["hopper-medium", *SGD, "--itpo.max-deviation", "1"], "max_deviation: expected none with the optimiser sgd"),
        (["hopper-medium", *SGD, "--itpo.action-step", "1"], "action_step: expected 0.012 with the optimiser sgd"),
        (["hopper-medium", "--itpo.optimiser", "trust"], "'bound', 'sgd', 'adam'"),
        (["hopper-medium", "--bundle", "/nowhere"], "/nowhere"),
        (["hopper-medium", "--deadline-ms", "0"], "deadline_ms: expected a positive number, got 0.0"),
        (["hopper-medium", "--precision", "fp16"], "precision: expected auto or ieee on a CPU and in plain torch"),
    ],
    ids=lambda value: "-".join(text.lstrip("-") for text in value[1:]) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line_and_exit_code_2(args, message, tmp_path):
    refused(run("eval", *args, "--out", tmp_path), message)


@pytest.mark.parametrize("name", REPLACED)
def test_a_flag_of_an_earlier_version_names_what_serves_in_its_place(name, tmp_path):
    flag = f"--itpo.{name.replace('_', '-')}"
    for args in ((flag, "1"), (f"{flag}=1",)):
        done = run("eval", "hopper-medium", *args, "--out", tmp_path)
        refused(done, f"{flag} is a setting of an earlier version: {REPLACED[name]}")


def test_unwritable_folder_is_refused_before_the_run(tmp_path):
    # below a regular file, because root may write to any folder
    (tmp_path / "file").touch()
    done = run("eval", "hopper-medium", "--out", tmp_path / "file" / "results")
    refused(done, f"out: cannot write to {tmp_path}/file/results: Not a directory")


def test_two_evaluations_at_once_write_two_files(tmp_path):
    code = "import sys; from pathlib import Path; from fastdwm.measure.record import prepare_output; "
    code += "print(prepare_output(Path(sys.argv[1]), 'hopper-medium'))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert len({process.communicate()[0] for process in both}) == 2


def test_a_task_of_ones_own_comes_with_its_bundle(tmp_path, quick):
    task = replace(get_task("hopper-medium"), name="my-hopper")
    make_bundle(task=task).save(tmp_path / "bundle")
    settings = {"episodes": 1, "max_steps": 5, "out": tmp_path / "out"}
    eval.main("my-hopper", EvalConfig(tmp_path / "bundle", **settings))
    assert json.loads(next((tmp_path / "out").glob("my-hopper-*.json")).read_text())["task"] == "my-hopper"
    with pytest.raises(InputError, match="unknown task 'my-hopper'"):
        eval.main("my-hopper", EvalConfig(**settings))
