"""Behaviour that all commands share: quick help, presets and flags, exit codes, one-line errors, progress."""

import os
import subprocess
import sys

import pytest
from commands import HANG_S, input_error, refused, run

from fastdwm import command
from fastdwm.config import ITPOConfig
from fastdwm.errors import InputError
from fastdwm.eval.config import EvalConfig
from fastdwm.files import reserved

# This kills every worker process before it has read its job.
DEADLY = "import os, sys\nif '--multiprocessing-fork' in sys.orig_argv: os.kill(os.getpid(), 9)\n"
TINY = ["--episodes", "2", "--max-steps", "2", "--backend", "reference", "--workers", "2"]
PRESETS = {"default": EvalConfig(), "paper": EvalConfig(itpo=ITPOConfig(particles=4096))}


HEAVY = {"torch", "triton", "numpy", "gymnasium", "mujoco", "scipy", "rich", "matplotlib"}
HELP = {
    "collect": ["--policy", "--transitions"],
    "doctor": ["caches with their sizes"],
    "eval": ["--itpo.horizon", "imagined transitions per rollout (H)", "--preset {tuned,default,paper}"],
    "export": ["--to {onnx,torchscript}", "--decision"],
    "report": ["models BUNDLE", "deviation BUNDLE", "paper [FOLDER]"],
    "report deviation": ["BUNDLE"],
    "report models": ["BUNDLE", "--jacobian-states"],
    "report paper": ["[FOLDER]", "results/sweep"],
    "study": ["--grid {default,quick,paper}"],
    "sweep": ["--tasks", "--train-flags", "--engine {processes,ray}", "names of tasks; locomotion stands for the 18"],
    "train": ["--preset {cpu,paper}", "--rebrac.updates"],
    "tune": ["--minutes", "tuning seeds"],
    "kernels": ["--table", "compile, and write the table"],
}


@pytest.mark.parametrize("name", HELP)
def test_help_shows_every_field_with_its_text_and_loads_nothing_heavy(name):
    """Start every command as a process; other tests run commands in this one."""
    module = {"kernels": "fastdwm_kernels.aot"}.get(name, f"fastdwm.{name}")
    argv = [sys.executable, "-X", "importtime", "-m", *module.split(), "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=HANG_S)
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time")]
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in imports}
    assert done.returncode == 0 and "argparse" in loaded and not loaded & HEAVY
    shown = " ".join(done.stdout.replace("│", " ").split())
    assert not [text for text in HELP[name] if text not in shown]


def parse(*argv):
    return command.parse(PRESETS, "prog", "", list(argv))


def test_flags_override_the_preset():
    task, config = parse("hopper-medium", "--itpo.horizon", "3", "--preset", "paper")
    assert task == "hopper-medium"
    assert (config.itpo.particles, config.itpo.horizon) == (4096, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "fast"], "--preset.*'paper'"),
        (["--nonsense", "3"], "Unrecognized options: --nonsense, 3"),
        (["--episodes", "x"], "--episodes.*'x'"),
        (["--itpo.optimiser", "foo"], "'foo'.*'sgd', 'adam'"),
    ],
    ids=["preset", "unknown", "unparsable", "choice"],
)
def test_what_does_not_parse_is_refused_in_one_line(flags, message):
    with input_error(message):
        parse("hopper-medium", *flags)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("two\nlines"), 2, "error: two lines"),
        (InputError("a\x1b[2J\x9b\u202eb\ud800\u2028c\r\x07 ±"), 2, r"error: a\x1b[2J\x9b\u202eb\ud800 c \x07 ±"),
        (InputError("x" * 10**6), 2, f"error: {'x' * 2000}..."),
        (
            OSError(28, "No space", "a\x1b[2J\nb"),
            1,
            r"error: cannot write a\x1b[2J b: No space; make room and give the"
            " same command again, what was saved before is kept",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["input-error", "escapes", "long", "full-disk", "ctrl-c"],
)
def test_exit_codes(error, code, line, capsys, monkeypatch):
    def main(task, config):
        raise error

    monkeypatch.setattr(sys, "argv", ["prog", "hopper-medium"])
    with pytest.raises(SystemExit) as stop:
        command.run(main, lambda: PRESETS, "prog")
    assert stop.value.code == code
    assert capsys.readouterr().err.splitlines() == [line]


def test_an_interrupted_command_that_resumes_says_so(capsys):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        command.finish(stopped, resumes=True)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from what is saved\n"


@pytest.mark.parametrize("name", ["collect", "study", "sweep", "train"])
def test_the_commands_that_keep_what_is_finished_say_so_when_interrupted(name, monkeypatch):
    monkeypatch.setattr(command, "finish", lambda action, resumes=False: print(resumes))
    assert run(name).stdout == "True\n"


def test_progress_in_a_log_is_a_line_a_minute(monkeypatch, capsys):
    seconds = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
    with command.progress() as on_progress:
        for done in range(301):
            on_progress("stage", done, 300)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and lines[-1] == "stage: 300/300, 5:00 elapsed, 0:00 left"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("collect", ["hopper", "--policy", "hopper-medium", "--out", "new-v0", "--transitions", "100"]),
        ("study", ["hopper-medium", "--grid", "quick", "--worlds", "diffusion", "--out", "out", *TINY]),
        ("eval", ["hopper-medium", "--out", "out", *TINY]),
    ],
    ids=["collect", "study", "eval"],
)
def test_a_worker_that_dies_at_its_start_fails_the_command_in_one_line(name, args, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.chdir(tmp_path)
    done = run(name, *args, env={"PYTHONPATH": tmp_path, "MINARI_DATASETS_PATH": tmp_path})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: a worker process was ended by signal 9 (Killed")


@pytest.mark.parametrize(
    ("name", "args", "folder"),
    [
        ("collect", ["hopper", "--policy=random", "--out=x-v0"], ".x-v0.collect"),
        ("study", ["hopper-medium", "--out=x"], "x"),
        ("sweep", ["--tasks", "hopper-medium", "--stages", "eval", "--out=x"], "x"),
        ("train", ["hopper-medium", "--out=x"], "x"),
    ],
)
def test_a_second_command_in_the_same_folder_is_refused(name, args, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    with reserved(tmp_path / folder):
        refused(run(name, *args, env={"MINARI_DATASETS_PATH": tmp_path}), f"{folder} is in use by a command that runs")
    assert not [path for path in (tmp_path / folder).rglob("*") if path.is_file()]


def test_a_broken_pipe_to_another_process_is_no_success(capfd, monkeypatch):
    monkeypatch.setattr(os, "_exit", sys.exit)

    def action():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        command.finish(action)


def python(code, **how):
    """Start a process that calls `command.finish` on an action with this code."""
    call = f"from fastdwm import command\ndef action(): {code}\ncommand.finish(action)"
    return subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


def test_a_reader_that_leaves_early_is_no_failure():
    process = python("print('x' * 2**20)")
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    # The same holds if the output was still in a buffer.
    process = python("print('x')", stdin=subprocess.PIPE)
    process.stdout.close()
    assert process.communicate(timeout=HANG_S)[1] == b"" and process.returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_cannot_print_a_character_shows_another(encoding):
    process = python(r"print('3 \u00b1 1 \u2265 \udce4')", env=os.environ | {"PYTHONIOENCODING": encoding})
    out, err = process.communicate(timeout=HANG_S)
    sign = "?" if encoding == "ascii" else "\u00b1"
    assert (process.returncode, err, out.decode(encoding)[:5]) == (0, b"", f"3 {sign} 1")


def test_progress_for_a_log_file_estimates_the_time_left(capsys, monkeypatch):
    clock = iter([0.0, 2.0, 60.0, 120.0])
    monkeypatch.setattr(command.time, "perf_counter", lambda: next(clock))
    with command.progress() as on_progress:
        for done in (0, 10, 300, 600):
            on_progress("ITPO", done, 600)
    assert capsys.readouterr().err.splitlines() == [
        "ITPO: 300/600, 1:00 elapsed, 1:00 left",
        "ITPO: 600/600, 2:00 elapsed, 0:00 left",
    ]
