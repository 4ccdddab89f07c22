"""The end of a captured decision: what it means, and the kernel against the reference."""

from math import inf, nan

import pytest
import torch
from torch import Tensor

from fastdwm.kernels.finish import NUMBERS, Outcome, finish
from fastdwm.kernels.finish.reference import finish_reference

pytest.importorskip("triton")

from fastdwm.kernels.finish.kernel import finish_into  # noqa: E402

EPISODES, WIDTH, ACTIONS, COLUMNS, NEWS = 6, 2100, 3, 8, 5
BUFFERS = ("params", "evidence", "times", "report")


def make_problem(dtype: torch.dtype = torch.float32, bare: bool = False) -> tuple[Outcome, dict[str, Tensor]]:
    """One episode that is fine, and one each with something that is not; bare: without all that may be missing."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(EPISODES, *shape, generator=generator, dtype=torch.float64).to(dtype)

    rows = {name: numbers(WIDTH) for name in ("start", "after")}
    rows |= {name: numbers(ACTIONS) for name in ("action", "base_action")}
    rows["action"][1, 2] = nan
    rows |= {"evidence": numbers(COLUMNS)} | {n: numbers() for n in ("objective", "norm", "scale", "trust", "distance")}
    rows["objective"][2], rows["norm"][3] = -inf, nan
    rows["finite"] = torch.arange(EPISODES) != 4
    rows["reason"] = torch.arange(EPISODES) % 4
    kept = ("start", "after", "action", "base_action")
    found = Outcome(**{name: None if bare and name not in kept else value for name, value in rows.items()})
    buffers = {"params": numbers(WIDTH), "evidence": numbers(COLUMNS), "times": torch.arange(EPISODES)}
    return found, buffers | {"report": numbers(ACTIONS + len(NUMBERS))}


def by_kernel(found: Outcome, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """The buffers afterwards, for changes stay in the interpreter's process."""
    finish_into(found, NEWS, *(buffers[name] for name in BUFFERS))
    return buffers


def by_operator(found: Outcome, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    buffers = {name: value.clone() for name, value in buffers.items()}
    finish(found, NEWS, *(buffers[name] for name in BUFFERS))
    return buffers


def test_what_is_not_finite_is_undone():
    found, before = make_problem(torch.float64)
    after = by_operator(found, before)
    undone = torch.tensor([False, True, True, True, True, False])
    assert torch.equal(after["report"][:, ACTIONS + NUMBERS.index("discarded")] != 0, undone)
    assert torch.equal(after["params"], torch.where(undone.unsqueeze(1), found.start, found.after))
    assert torch.equal(after["report"][undone, :ACTIONS], found.base_action[undone])
    assert torch.equal(after["report"][~undone, :ACTIONS], found.action[~undone])
    assert torch.equal(after["evidence"][~undone], found.evidence[~undone])
    assert torch.equal(after["evidence"][undone, :NEWS], before["evidence"][undone, :NEWS])
    assert after["evidence"][undone, NEWS:].isnan().all()
    assert torch.equal(after["times"], before["times"] + 1)
    assert torch.equal(after["report"][:, -1], found.reason.double())


def test_what_does_not_exist_undoes_nothing():
    found, before = make_problem(bare=True)
    after = by_operator(found, before)
    assert torch.equal(after["params"][0], found.after[0]) and torch.equal(after["params"][1], found.start[1])
    assert torch.equal(after["evidence"], before["evidence"])
    unknown = [name != "discarded" for name in NUMBERS]
    assert after["report"][:, ACTIONS:][:, unknown].isnan().all()


def test_a_state_may_be_returned_to_where_it_is():
    found, buffers = make_problem()
    buffers = {name: value.clone() for name, value in buffers.items()}
    start = buffers["params"].clone()
    finish(found._replace(start=buffers["params"]), NEWS, *(buffers[name] for name in BUFFERS))
    assert torch.equal(buffers["params"][1], start[1]) and torch.equal(buffers["params"][0], found.after[0])


@pytest.mark.parametrize("bare", [False, True], ids=["all", "bare"])
def test_the_kernel_is_the_reference(interpreted, bare):
    found, buffers = make_problem(bare=bare)
    expected = {name: value.clone() for name, value in buffers.items()}
    finish_reference(found, NEWS, *(expected[name] for name in BUFFERS))
    actual = interpreted(by_kernel, found, buffers)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "wrong", "error", "match"),
    [
        ("after", torch.zeros(EPISODES, 3), ValueError, "after: expected shape"),
        ("finite", torch.zeros(EPISODES), TypeError, "finite: expected torch.bool"),
        ("norm", torch.zeros(EPISODES).double(), TypeError, "norm: expected torch.float32"),
        ("action", torch.zeros(ACTIONS, EPISODES).T, ValueError, "action: expected contiguous"),
    ],
)
def test_wrong_inputs_raise(name, wrong, error, match):
    found, buffers = make_problem()
    with pytest.raises(error, match=match):
        by_operator(found._replace(**{name: wrong}), buffers)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bare", [False, True], ids=["all", "bare"])
def test_the_kernel_on_a_gpu_is_the_reference(bare):
    found, buffers = make_problem(bare=bare)
    expected = by_operator(found, buffers)
    on_gpu = Outcome(*(None if value is None else value.cuda() for value in found))
    actual = by_operator(on_gpu, {name: value.cuda() for name, value in buffers.items()})
    for name, value in expected.items():
        torch.testing.assert_close(actual[name].cpu(), value, rtol=0, atol=0, equal_nan=True)
