"""Stateless standard normal noise: the numbers of an episode depend only on its own seed and time.

With a generator that has a state, an episode's numbers depend on how many others share it. Here a counter-based
generator (Philox) computes each number from its position, so an episode gets the same noise in any batch, and a
captured graph only has to count the decisions on the device.
"""

import torch
from torch import Tensor

from fastdwm_kernels.checks import check_tensor
from fastdwm_kernels.noise.reference import normal_reference


@torch.no_grad()
def normal(seeds: Tensor, times: Tensor, n_rows: int, width: int, period: int, stream: int = 0) -> Tensor:
    """Independent standard normal float32 numbers (n_rows, B, width) for B episodes.

    seeds, times: (B,) int64, contiguous, of one device; only the lowest 32 bits of a time count.
    Row r holds the noise of time t = times + r // period, a function of seed, t, r % period, column and `stream`
    (0 <= stream < 2^31), which separates the noise of different purposes.
    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype.
    """
    check_tensor("seeds", seeds, (None,), torch.int64)
    check_tensor("times", times, (len(seeds),), torch.int64, seeds.device)
    if not seeds.is_cuda:
        return normal_reference(seeds, times, n_rows, width, period, stream)
    from fastdwm_kernels.noise.kernel import normal_fwd

    return normal_fwd(seeds, times, n_rows, width, period, stream)
