"""Episodes of a dataset: shares, chunks and turns; and the published files."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fastdwm.collect import __main__ as collect
from fastdwm.collect.config import read_env, split_share
from fastdwm.collect.episodes import CHUNK, Chunk, Portion, episodes_of, plan, save, turns
from fastdwm.collect.published import PUBLISHED, SHA256, tables
from fastdwm.errors import InputError
from fastdwm.tasks import TASKS

STEPS = ("actions", "rewards", "terminations", "truncations")
PAGE = Path(__file__).parent.parent / "fastdwm" / "collect" / "README.md"


def test_every_policy_has_its_share_of_the_transitions():
    portions = plan([3, 1], 100_000, by_episodes=False)
    assert [portion.transitions for portion in portions] == [75_000, 25_000]
    for portion, shares in zip(portions, [(1.0, 0.0), (0.0, 1.0)], strict=True):
        assert sum(chunk.transitions for chunk in portion.chunks) == portion.transitions
        assert all(chunk.shares == shares and chunk.transitions <= CHUNK for chunk in portion.chunks)
    chunks = [chunk for portion in portions for chunk in portion.chunks]
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))


@pytest.mark.parametrize("shares", [(1, 1, 1), (0.1, 0.2, 0.7), (1,)])
def test_shares_that_do_not_divide_add_up_all_the_same(shares):
    assert sum(portion.transitions for portion in plan(shares, 100_001, by_episodes=False)) == 100_001


def test_turns_follow_the_shares_all_the_time():
    shares = (0.5, 0.3, 0.2)
    for n in (10, 100, 1000):
        had = Counter(islice(turns(shares), n))
        assert [had[i] for i in range(3)] == [n * share for share in shares]
    assert list(islice(turns((1, 1, 1)), 6)) == [0, 1, 2, 0, 1, 2]
    assert set(islice(turns((0.0, 1.0)), 50)) == {1}


def test_a_portion_ends_with_the_episode_that_fills_it(tmp_path):
    chunks = (Chunk(0, (1.0,), 10), Chunk(1, (1.0,), 10))
    lengths = [[6, 7], [4, 5, 5]]
    for chunk, of_chunk in zip(chunks, lengths, strict=True):
        steps, first = sum(of_chunk), 100 * chunk.index
        arrays = {name: np.arange(first, first + steps) for name in STEPS}
        observations = np.arange(first, first + steps + len(of_chunk))
        seeds = np.arange(first, first + len(of_chunk))
        save(chunk, arrays | {"observations": observations, "lengths": of_chunk, "seeds": seeds}, tmp_path)
    episodes = list(episodes_of(Portion(chunks, 20), tmp_path))
    assert [len(episode["rewards"]) for episode in episodes] == [6, 7, 4, 5]
    assert [episode["seed"] for episode in episodes] == [0, 1, 100, 101]
    assert [episode["observations"][0] for episode in episodes] == [0, 7, 100, 105]
    assert [episode["observations"][-1] for episode in episodes] == [6, 14, 104, 110]
    assert [episode["actions"][0] for episode in episodes] == [0, 6, 100, 104]


def test_a_damaged_chunk_is_bad_input(tmp_path):
    chunk = Chunk(0, (1.0,), 10)
    (tmp_path / chunk.file).write_bytes(b"no chunk")
    with pytest.raises(InputError, match="damaged .*; delete it and give the same command again"):
        list(episodes_of(Portion((chunk,), 10), tmp_path))


def test_turns_of_all_policies_are_one_portion():
    (portion,) = plan([1, 2], 50_000, by_episodes=True)
    assert portion.transitions == 50_000
    assert {chunk.shares for chunk in portion.chunks} == {(1, 2)}


def test_a_share_follows_the_last_colon_if_it_is_a_number():
    assert split_share("a.onnx") == ("a.onnx", 1.0)
    assert split_share("a.onnx:0.25") == ("a.onnx", 0.25)
    assert split_share("a:b.onnx") == ("a:b.onnx", 1.0)


def test_every_task_can_be_collected_from_files_that_are_named():
    assert PUBLISHED.keys() == TASKS.keys()
    for item in PUBLISHED.values():
        assert set(item.policies) <= SHA256.keys() | {"random"}
    assert len(SHA256) == 34 and all(len(digest) == 64 for digest in SHA256.values())


@pytest.mark.parametrize("task", PUBLISHED)
def test_the_line_of_a_task_parses_and_names_a_simulator_that_is_known(task):
    item = PUBLISHED[task]
    env, config = collect.parse(item.arguments("folder of/files"))
    assert (config.out, config.transitions) == (item.out, item.transitions)
    assert [Path(text).name for text in config.policy] == list(item.policies)
    spec = read_env(env, config)
    assert spec.family == TASKS[task].env.family
    assert spec.kwargs.get("xml_file") == ("walker2d.xml" if env == "walker2d" else None)
    if task.startswith("antmaze"):
        assert (spec, config.steer, config.noise) == (TASKS[task].env, True, 0.2)


def test_the_examples_on_the_page_are_among_the_lines_that_are_printed():
    lines = [line for line in PAGE.read_text().splitlines() if "--policy $POLICIES" in line]
    printed = tables()
    assert len(lines) == 2 and set(lines) <= set(printed.splitlines())
    assert all(digest in printed for digest in SHA256.values())
