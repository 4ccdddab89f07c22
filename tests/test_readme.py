"""README and the pages that it links: links to files in git, commands that parse, examples that run."""

import importlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

from fastdwm import Bundle, command

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"python -m fastdwm\.(\w+(?:\.\w+)*)([^`\n&|;]*)")
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
EXAMPLES = {"TASK": "hopper-medium", "BUNDLE": "hopper-medium"}


@pytest.fixture(scope="module")
def tracked():
    """Files in git, relative to the root."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {Path(name) for name in listed.split("\0") if name}


def links(page):
    """Targets of the page's relative links and pictures, relative to the root."""
    targets = [target for target in LINK.findall((ROOT / page).read_text()) if not re.match(r"[a-z]+:|#", target)]
    return [Path(os.path.normpath(page.parent / target.partition("#")[0])) for target in targets]


def pages():
    """README, CHANGELOG and every Markdown page that they lead to."""
    visited, todo = [], [Path("README.md"), Path("CHANGELOG.md")]
    while todo:
        page = todo.pop()
        if page not in visited and (ROOT / page).is_file():
            visited.append(page)
            todo += [target for target in links(page) if target.suffix == ".md"]
    return visited


def parse(module, text):
    """Parse the arguments as the command does."""
    loaded = importlib.import_module(f"fastdwm.{module}.__main__")
    argv = [EXAMPLES.get(word, word) for word in shlex.split(text)]
    if hasattr(loaded, "parse"):
        return loaded.parse(argv)
    return command.parse(loaded.presets(), module, "", argv)


def test_every_relative_link_and_picture_is_in_git(tracked):
    folders = {parent for path in tracked for parent in path.parents}
    dead = [f"{page}: {target}" for page in pages() for target in links(page) if target not in tracked | folders]
    assert not dead


def test_the_readme_leads_to_the_pages_of_the_folders():
    folders = (
        "bench",
        "bench/results",
        "profiles",
        *(f"fastdwm/{x}" for x in ("collect", "itpo", "sweep", "train", "tune")),
    )
    assert {Path(folder, "README.md") for folder in folders} <= set(pages())


@pytest.mark.parametrize("page", pages(), ids=str)
def test_every_command_parses(page):
    commands = COMMAND.findall((ROOT / page).read_text().replace("\\\n", " "))
    assert commands or page != Path("README.md")
    for module, text in commands:
        # A command's name without arguments is a mention in the text.
        if text.strip():
            parse(module, text)
        else:
            importlib.import_module(f"fastdwm.{module}.__main__")


@pytest.mark.parametrize("page", ["README.md", "fastdwm/usage.md"])
def test_the_python_examples_of_a_page_run_in_order(page):
    names, examples = {}, PYTHON.findall((ROOT / page).read_text())
    assert examples
    for code in examples:
        exec(code.replace('make("Hopper-v5")', 'make("Hopper-v5", max_episode_steps=30)'), names)
    assert names["agent"].episodes is None
    if page != "README.md":
        assert [episode.length for episode in names["run"].episodes] == [50, 50]
        assert names["agent"].deadline is not None and names["mean"] > 0


@pytest.mark.slow
def test_the_page_on_an_environment_of_ones_own_runs_from_data_to_agent(tmp_path, monkeypatch, private_folders):
    monkeypatch.chdir(tmp_path)
    before, names = set(gymnasium.registry), {}
    try:
        for code in PYTHON.findall((ROOT / "fastdwm/own_environment.md").read_text()):
            exec(code, names)
        # The same call returns the finished training.
        again = names["train_bundle"](names["task"], names["transitions"], "runs/own-cart", names["config"])
        assert again.fingerprint == names["bundle"].fingerprint
        assert Bundle.load("runs/own-cart/bundle", trust_env=True).task.name == "own-cart"
    finally:
        for name in set(gymnasium.registry) - before:
            del gymnasium.registry[name]
    assert [episode.length for episode in names["run"].episodes] == [50] * 20 and len(names["scores"]) == 20


STAND_IN = """#!{python}
import json, os, pathlib, sys
argv = sys.argv[1:]
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(argv) + "\\n")
if "fastdwm.study" in argv:
    out = pathlib.Path(argv[argv.index("--out") + 1])
    out.mkdir(parents=True)
    for kind in ("md", "csv", "png"):
        (out / ("study." + kind)).write_text(str(out))
"""


@pytest.mark.parametrize(
    ("what", "files"),
    [
        ("evaluation", {"hopper-medium-evaluation.txt"}),
        ("study", {"hopper-medium-study.md", "hopper-medium-study.csv", "hopper-medium-study.png"}),
        ("settings", {"hopper-medium-settings.md"}),
        ("models", {"hopper-medium-models.txt"}),
        ("benchmark", {"benchmarks-cpu.md"}),
    ],
)
def test_results_are_made_by_commands_that_parse(what, files, tmp_path):
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    folders = {"SCRATCH": str(tmp_path / "scratch"), "RESULTS": str(tmp_path / "results")}
    environment = os.environ | folders | {"PYTHON": str(python), "CALLS": str(calls)}
    subprocess.run([ROOT / "bench" / "results.sh", what], env=environment, check=True, capture_output=True, timeout=60)
    assert {path.name for path in (tmp_path / "results").iterdir()} == files
    for argv in map(json.loads, calls.read_text().splitlines()):
        if argv[0] == "-m" and argv[1].startswith("fastdwm."):
            parse(argv[1].removeprefix("fastdwm."), shlex.join(argv[2:]))
    # Every study has a folder of its own, and all of them are in the page.
    studies = [argv for argv in map(json.loads, calls.read_text().splitlines()) if "fastdwm.study" in argv]
    assert len({argv[argv.index("--out") + 1] for argv in studies}) == len(studies)
    if what == "settings":
        page = (tmp_path / "results" / "hopper-medium-settings.md").read_text()
        assert len(studies) > 1 and all(argv[argv.index("--out") + 1] in page for argv in studies)
