"""Nodes of a captured decision, counted by bench/nodes.py without a GPU, and their limits."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import nodes  # noqa: E402

WORLDS, GATE = ("diffusion", "meanflow"), 41
"""most nodes of a decision with five imagined steps; a further step adds four"""
WIDTH = 32
"""hidden width, on which the count does not depend"""


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("rule", nodes.RULES)
@pytest.mark.parametrize("size", [(1, 1), (1, 64), (3, 17), (33, 16), (1, 1024)], ids=str)
def test_a_decision_is_few_launches_at_any_size(world, rule, size):
    launched = nodes.nodes(nodes.size_of(world, *size, width=WIDTH), **nodes.RULES[rule])
    assert len(launched) <= GATE, launched
    # The count is not of an empty function.
    assert launched.count("sampler_fwd_kernel") == launched.count("sampler_bwd_kernel") == 5


def test_hardly_anything_is_left_to_torch():
    """Torch's own operators round the weights, measure the actions' slope and update the memory."""
    launched = nodes.nodes(nodes.size_of("diffusion", 1, 16, width=WIDTH), **nodes.RULES["bound"])
    ours = [name for name in launched if name.endswith("_kernel")]
    assert len(ours) >= 30 and sorted({*launched} - {*ours}) == ["_to_copy", "eq", "linalg_vector_norm", "mul", "where"]
    assert len(launched) - len(ours) == 5


def test_other_episodes_do_not_change_how_rows_are_summed():
    sums = [nodes.nodes(nodes.size_of("meanflow", b, 256, WIDTH)).count("policy_sum_kernel") for b in (1, 33)]
    assert sums == [1, 1]


@pytest.mark.parametrize("rule", nodes.RULES)
def test_a_further_inner_step_begins_nothing_anew(rule):
    one, two = (
        nodes.nodes(nodes.size_of("meanflow", 2, 4, width=WIDTH), inner_steps=n, **nodes.RULES[rule]) for n in (1, 2)
    )
    # Noise, both policies' actions, the clip and the commit run once.
    again = len(two) - len(one)
    assert again <= len(one) - 4


def test_the_counter_sees_what_launches():
    """Views and allocations cost nothing; arithmetic and copies do."""
    import torch

    recorder = nodes.Recorder()
    x = torch.zeros(4, 3)
    with recorder:
        x.view(3, 4).unsqueeze(0).transpose(0, 1)
        torch.empty_like(x)
        (x + 1).mul_(2)
        x.clone()
    assert recorder.nodes == ["add", "mul_", "clone"]


def test_the_recorder_refuses_what_no_graph_can_hold():
    """A copy from the host, and a number read back."""
    import torch

    device = torch.zeros(3, device="meta")
    with nodes.Recorder(), pytest.raises(RuntimeError, match="cpu and meta"):
        device.copy_(torch.zeros(3))
    with nodes.Recorder(), pytest.raises(RuntimeError, match="cpu and meta"):
        torch.as_tensor([1.0, 2.0]).to(device.device)
    with nodes.Recorder(), pytest.raises(RuntimeError):
        float(device.sum())


@pytest.mark.parametrize("part", nodes.PARTS)
def test_an_update_of_training_can_be_captured(part):
    """Nothing in it comes from the host or is read by it, once it has run."""
    launched = nodes.update_nodes(part, width=WIDTH)
    assert len(launched) >= 30 and "index" in launched


SETTINGS = [
    {"optimiser": "adam"},
    {"noise": "step", "inner_steps": 2},
    {"noise": "time", "reset": "decision"},
    {"inner_steps": 0},
    {"termination": "soft", "terminal_value": "mean"},
    {"termination": "mask", "terminal_value": "first"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_a_decision_of_any_setting_can_be_captured(backend, world, settings):
    settings = nodes.RULES["bound"] | settings
    if settings.get("optimiser", "bound") != "bound":
        del settings["max_deviation"]
    assert nodes.nodes(nodes.size_of(world, 3, 5, width=WIDTH), backend, **settings)


class Watcher(nodes.Recorder):
    """Recorder that also lists tensors that do not start at 16 bytes, for which kernels would be compiled again."""

    misaligned: list[tuple[str, str]] = []

    def launch(self, kernel, grid, *args, **kwargs):
        super().launch(kernel, grid, *args, **kwargs)
        for param, value in zip(kernel.params, args, strict=False):
            if getattr(value, "dtype", None) is not None and not param.do_not_specialize_on_alignment:
                if value.storage_offset() * value.element_size() % 16:
                    self.misaligned.append((kernel.__name__, param.name))


@pytest.mark.parametrize("rule", nodes.RULES)
def test_no_slice_asks_for_a_second_compilation(rule, monkeypatch):
    """The AOT cases compile every kernel for pointers as it declares them; an odd M S must need no others."""
    monkeypatch.setattr(nodes, "Recorder", Watcher)
    monkeypatch.setattr(Watcher, "misaligned", [])
    assert nodes.nodes(nodes.size_of("diffusion", 3, 17, width=WIDTH), **nodes.RULES[rule])
    assert not Watcher.misaligned
