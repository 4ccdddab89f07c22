"""Nothing that was damaged, or made to do damage, ends in a traceback, a hang or a result; no kill loses a training."""

import random
import shutil
from collections import Counter

import bundles
import cells
import command_lines
import datasets
import onnx_files
import pytest
from campaign import Tally, Worker, cases, run

from fastdwm import Bundle

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:minari")]


def check(tally: Tally, tell, title: str) -> None:
    tell(f"{title}: {tally}")
    assert not tally.failures, f"{tally}\n" + "\n".join(tally.failures[:20])
    # Neither did nothing get through nor everything.
    assert {"clean", "accepted"} <= tally.counts.keys() or tally.counts.total() < 100


@pytest.fixture(scope="module")
def worker():
    """One process for all kinds of files."""
    worker = Worker()
    worker.start()
    yield worker
    worker.close()


# The share of the time, and the title, of each kind of what somebody else made.
KINDS = {
    "bundle": (bundles, 0.25, "bundles"),
    "dataset": (datasets, 0.2, "datasets"),
    "onnx": (onnx_files, 0.1, "ONNX files"),
    "cell": (cells, 0.1, "cells"),
    "line": (command_lines, 0.05, "command lines"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_damaged_is_refused_in_one_line(kind, worker, seconds, seed, tell, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    module, share, title = KINDS[kind]
    (tmp_path / "base").mkdir()
    module.save_base(tmp_path / "base")
    mutations = module.Mutations(tmp_path / "base")
    check(run(worker, kind, mutations, seed, share * seconds, tmp_path), tell, f"faults, {title}")


def test_a_training_killed_at_any_write_resumes_to_the_same_bundle(seconds, seed, tell, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    datasets.save_base(tmp_path)
    worker, counts = Worker(), Counter()

    def train(out, number=None, after=False):
        places = {"out": str(out), "dataset": str(tmp_path / datasets.D4RL), "cache": str(tmp_path / "cache")}
        return worker.ask(kind="train", number=number, after=after, limit_s=120, **places)

    def weights(out):
        return (out / "bundle" / "weights.safetensors").read_bytes()

    try:
        whole = tmp_path / "whole"
        # The second run of the two finds everything trained, and writes the bundle again.
        runs = [train(whole)["kinds"], train(whole)["kinds"]]
        # No part writes so often that the others of its kind are hardly ever killed.
        assert len(runs[0]) < 100
        expected = weights(whole)
        for i in cases(0.3 * seconds):
            rng, out = random.Random(f"{seed}-train-{i}"), tmp_path / "out"
            again = rng.random() < 0.25
            if again:
                shutil.copytree(whole, out)
            # The kinds of writes count alike, however many there are of each.
            kinds = runs[again]
            kind = rng.choice(sorted(set(kinds)))
            number = rng.choice([n for n, other in enumerate(kinds, 1) if other == kind])
            after = rng.random() < 0.5
            case = f"seed {seed}, case {i}: write {number} of {len(kinds)} ({kind}), {after=}, {again=}"
            assert train(out, number, after)["code"] == -9, case
            assert train(out)["code"] == 0, case
            assert weights(out) == expected and Bundle.load(out / "bundle"), case
            assert not [path.name for path in out.iterdir() if path.name.startswith(".bundle")], case
            shutil.rmtree(out)
            counts[kind] += 1
    finally:
        worker.close()
    told = ", ".join(f"{n} at {kind.strip()}" for kind, n in sorted(counts.items()))
    tell(f"faults, trainings: {counts.total()} killed at a write and resumed to the same bundle: {told}")
