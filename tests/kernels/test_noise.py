"""Stateless noise: Philox against published vectors, its distribution, and the kernel against the reference."""

import pytest
import torch

from fastdwm_kernels.noise import normal
from fastdwm_kernels.noise.reference import philox

SEEDS, TIMES = torch.tensor([3, 4, 2**40 + 5]), torch.tensor([0, 7, 2**31])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_matches_the_test_vectors_of_random123(counter, key, expected):
    words = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert [int(word) for word in words] == expected


def test_an_episode_has_the_same_noise_in_any_batch():
    together = normal(SEEDS, TIMES, 6, 5, period=6)
    for b in range(3):
        assert torch.equal(together[:, b], normal(SEEDS[b : b + 1], TIMES[b : b + 1], 6, 5, period=6)[:, 0])


def test_a_row_belongs_to_its_time():
    """With two rows for each time, one time later the same noise is two rows further up."""
    now, later = (normal(SEEDS, TIMES + t, 6, 5, period=2) for t in (0, 1))
    assert torch.equal(now[2:], later[:-2])
    assert not torch.equal(now[:2], later[:2])


def test_numbers_are_independent_standard_normal():
    n = 100_000
    draws = [
        normal(SEEDS[:1], TIMES[:1], n // 10, 10, period=n),
        normal(SEEDS[1:2], TIMES[:1], n // 10, 10, period=n),
        normal(SEEDS[:1], TIMES[1:2], n // 10, 10, period=n),
        normal(SEEDS[:1], TIMES[:1], n // 10, 10, period=n, stream=1),
    ]
    x = torch.stack([draw.flatten().double() for draw in draws])
    # Five standard errors of each estimate.
    torch.testing.assert_close(x.mean(1), torch.zeros(4).double(), rtol=0, atol=5 / n**0.5)
    torch.testing.assert_close(x.cov(), torch.eye(4).double(), rtol=0, atol=5 * (2 / n) ** 0.5)
    torch.testing.assert_close(x.pow(4).mean(1), torch.full((4,), 3.0).double(), rtol=0, atol=5 * (96 / n) ** 0.5)
    neighbours = (x[:, 1:] * x[:, :-1]).mean(1)
    torch.testing.assert_close(neighbours, torch.zeros(4).double(), rtol=0, atol=5 / n**0.5)


@pytest.mark.parametrize(("n_rows", "width", "period"), [(1, 1, 1), (6, 5, 6), (40, 22, 8), (0, 4, 1)])
def test_the_kernel_is_the_reference(interpreted, n_rows, width, period):
    pytest.importorskip("triton")
    from fastdwm_kernels.noise.kernel import normal_fwd

    actual = interpreted(normal_fwd, SEEDS, TIMES, n_rows, width, period, 1)
    expected = normal(SEEDS, TIMES, n_rows, width, period, stream=1)
    assert actual.shape == (n_rows, 3, width)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_wrong_arguments_raise():
    with pytest.raises(ValueError, match=r"times: expected shape \(3\), got \(2,\)"):
        normal(SEEDS, TIMES[:2], 1, 1, period=1)
    with pytest.raises(TypeError, match=r"seeds: expected torch.int64, got torch.int32"):
        normal(SEEDS.int(), TIMES, 1, 1, period=1)
