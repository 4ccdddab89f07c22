"""Commit and roll back of a decision: the operator, and the kernel against the reference."""

from math import inf, nan

import pytest
import torch
from torch import Tensor

from fastdwm_kernels.commit import NUMBERS, Candidate, commit
from fastdwm_kernels.commit.reference import commit_reference

pytest.importorskip("triton")

from fastdwm_kernels.commit.kernel import commit_into  # noqa: E402

EPISODES, WIDTH, ACTIONS = 6, 2100, 3
BUFFERS = ("params", "times", "report")
ROLLED_BACK = torch.tensor([False, True, True, True, True, False])


def make_problem(dtype: torch.dtype = torch.float32, bare: bool = False) -> tuple[Candidate, dict[str, Tensor]]:
    """Two episodes to commit, and four with one value each that is not finite; bare: optional fields are None."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(EPISODES, *shape, generator=generator, dtype=torch.float64).to(dtype)

    rows = {name: numbers(WIDTH) for name in ("start", "after")}
    rows |= {name: numbers(ACTIONS) for name in ("action", "base_action")}
    rows["action"][1, 2] = nan
    rows |= {name: numbers() for name in ("objective", "grad_norm", "deviation")}
    # An infinite deviation is reported but rolls nothing back.
    rows["objective"][2], rows["grad_norm"][3], rows["deviation"][5] = -inf, nan, inf
    rows["finite"] = torch.arange(EPISODES) != 4
    always = ("start", "after", "action", "base_action")
    candidate = Candidate(**{name: None if bare and name not in always else value for name, value in rows.items()})
    return candidate, {"params": numbers(WIDTH), "times": torch.arange(EPISODES), "report": numbers(ACTIONS + 4)}


def by_kernel(candidate: Candidate, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run the kernel; returns the buffers, since changes in place stay in the interpreter's process."""
    commit_into(candidate, *(buffers[name] for name in BUFFERS))
    return buffers


def by_operator(candidate: Candidate, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    buffers = {name: value.clone() for name, value in buffers.items()}
    commit(candidate, *(buffers[name] for name in BUFFERS))
    return buffers


def test_an_episode_that_is_not_finite_is_rolled_back():
    candidate, before = make_problem(torch.float64)
    after = by_operator(candidate, before)
    kept = ~ROLLED_BACK.unsqueeze(1)
    assert torch.equal(after["params"], torch.where(kept, candidate.after, candidate.start))
    assert torch.equal(after["report"][:, :ACTIONS], torch.where(kept, candidate.action, candidate.base_action))
    assert torch.equal(after["times"], before["times"] + 1)
    reported = dict(zip(NUMBERS, after["report"][:, ACTIONS:].T, strict=True))
    assert torch.equal(reported.pop("discarded") != 0, ROLLED_BACK)
    for name, value in reported.items():
        torch.testing.assert_close(value, getattr(candidate, name), rtol=0, atol=0, equal_nan=True)


def test_fields_that_are_none_roll_nothing_back():
    candidate, before = make_problem(bare=True)
    after = by_operator(candidate, before)
    assert (after["params"] == candidate.after).all(1).tolist() == [True, False, True, True, True, True]
    optional = [name != "discarded" for name in NUMBERS]
    assert after["report"][:, ACTIONS:][:, optional].isnan().all()


def test_start_may_be_params():
    candidate, buffers = make_problem()
    start = buffers["params"].clone()
    commit(candidate._replace(start=buffers["params"]), *(buffers[name] for name in BUFFERS))
    assert torch.equal(buffers["params"], torch.where(ROLLED_BACK.unsqueeze(1), start, candidate.after))


@pytest.mark.parametrize("bare", [False, True], ids=["all", "bare"])
def test_the_kernel_is_the_reference(interpreted, bare):
    candidate, buffers = make_problem(bare=bare)
    expected = {name: value.clone() for name, value in buffers.items()}
    commit_reference(candidate, *(expected[name] for name in BUFFERS))
    actual = interpreted(by_kernel, candidate, buffers)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "wrong", "error", "match"),
    [
        ("after", torch.zeros(EPISODES, 3), ValueError, "after: expected shape"),
        ("finite", torch.zeros(EPISODES), TypeError, "finite: expected torch.bool"),
        ("grad_norm", torch.zeros(EPISODES).double(), TypeError, "grad_norm: expected torch.float32"),
        ("action", torch.zeros(ACTIONS, EPISODES).T, ValueError, "action: expected contiguous"),
    ],
)
def test_wrong_inputs_raise(name, wrong, error, match):
    candidate, buffers = make_problem()
    with pytest.raises(error, match=match):
        by_operator(candidate._replace(**{name: wrong}), buffers)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bare", [False, True], ids=["all", "bare"])
def test_the_kernel_on_a_gpu_is_the_reference(bare):
    candidate, buffers = make_problem(bare=bare)
    expected = by_operator(candidate, buffers)
    on_gpu = Candidate(*(None if value is None else value.cuda() for value in candidate))
    actual = by_operator(on_gpu, {name: value.cuda() for name, value in buffers.items()})
    for name, value in expected.items():
        torch.testing.assert_close(actual[name].cpu(), value, rtol=0, atol=0, equal_nan=True)
