"""Damaged and hostile input is refused in one line, and a killed command loses nothing."""

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, zip_longest

import bundles
import cells as cell_files
import command_lines
import datasets
import onnx_files
import pytest
import victims
from campaign import Tally, Worker, cases, run
from victims import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:minari")]


def check(tally: Tally, tell, title: str) -> None:
    tell(f"{title}: {tally}")
    assert not tally.failures, f"{tally}\n" + "\n".join(tally.failures[:20])
    # Some cases must be refused and some accepted.
    assert {"clean", "accepted"} <= tally.counts.keys()


@pytest.fixture(scope="module")
def worker():
    """One process for all kinds of files."""
    worker = Worker()
    worker.start()
    yield worker
    worker.close()


# Module, share of the time and title of each kind of case.
KINDS = {
    "bundle": (bundles, 0.25, "bundles"),
    "dataset": (datasets, 0.2, "datasets"),
    "onnx": (onnx_files, 0.1, "ONNX files"),
    "cell": (cell_files, 0.1, "cells"),
    "line": (command_lines, 0.05, "command lines"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_refused_in_one_line(kind, worker, seconds, seed, tell, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    module, share, title = KINDS[kind]
    (tmp_path / "base").mkdir()
    module.save_base(tmp_path / "base")
    mutations = module.Mutations(tmp_path / "base")
    check(run(worker, kind, mutations, seed, share * seconds, tmp_path), tell, f"faults, {title}")


def in_turn(kinds: list[str], rng: random.Random) -> Iterator[int]:
    """The numbers of a run's writes for ever: one of each kind, another one of each, .., each once before one again."""
    of_kind: dict[str, list[int]] = {}
    for number in rng.sample(range(1, len(kinds) + 1), len(kinds)):
        of_kind.setdefault(kinds[number - 1], []).append(number)
    rounds = zip_longest(*of_kind.values())
    return cycle([number for numbers in rounds for number in numbers if number is not None])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_any_write_loses_nothing_and_ends_as_if_it_had_not_been(
    name, worker, seconds, seed, tell, tmp_path, monkeypatch
):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    base, out, complete = (tmp_path / name for name in ("base", "out", "whole"))
    base.mkdir()
    victims.save_base(base)
    command, counts = COMMANDS[name], Counter()
    argv = [f"fastdwm.{name}", *command.argv(base, out)]
    environment = {"FASTDWM_CACHE": str(base / "cache"), "MINARI_DATASETS_PATH": str(out)}

    def run_command(number=None, half=False, together=False):
        how = {"number": number, "half": half, "together": together, "limit_s": 600.0}
        where = {"folder": str(out), "environment": environment, "said": str(tmp_path / "said")}
        return worker.ask(kind="command", argv=argv, **where, **how)

    def finish():
        ran = run_command()
        assert ran["code"] == 0, ran
        return ran["kinds"]

    def begin(again):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(*(complete, out) if again else (base / "bundle", out / "bundle"))

    begin(False)
    # The second run finds everything done.
    runs = [finish(), finish()]
    expected = command.left(out)
    # Every write must have a fair chance of being hit.
    assert len(runs[0]) < 200
    out.rename(complete)
    writes = [in_turn(kinds, random.Random(f"{seed}-{name}")) for kinds in runs]
    killed: list[set[int]] = [set(), set()]
    for i in cases(command.share * seconds, 1):
        rng = random.Random(f"{seed}-{name}-{i}")
        again, half, together = (rng.random() < share for share in (0.25, 0.5, 0.5))
        again &= bool(runs[1])
        kinds, number = runs[again], next(writes[again])
        kind = kinds[number - 1]
        killed[again].add(number)
        case = f"seed {seed}, case {i}: write {number} of {len(kinds)} ({kind}), {half=}, {together=}, {again=}"
        begin(again)
        before = command.left(out)
        ran = run_command(number, half, together)
        # A command whose worker was killed reports that.
        assert ran["code"] == -9 or (ran["code"], "Traceback" in ran["said"]) == (1, False), (case, ran)
        after = command.left(out)
        assert before.keys() <= after.keys(), case
        assert all(value in (before.get(key), expected[key]) for key, value in after.items()), case
        finish()
        assert command.left(out) == expected, case
        assert not [path for path in out.rglob(".*") if path.parent.name != "results"], case
        counts[kind] += 1
    summary = ", ".join(f"{n} at {kind.strip()}" for kind, n in sorted(counts.items()))
    share = f"{len(killed[0])} of {len(runs[0])} writes, {len(killed[1])} of {len(runs[1])} where all was done"
    tell(f"faults, {name}: {counts.total()} kills at {share}, and the same command ended well: {summary}")
