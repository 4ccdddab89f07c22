"""Standard normal noise without a state: what an episode draws depends on its own seed and its own time alone.

A generator hands out its numbers in the order in which they are asked for, so those of one episode depend on how many
others share it. Here every number is computed from where it belongs (Philox, a counter-based generator): the same in
any split of the episodes, and in a captured graph, which only needs to count the decisions on the device.
"""

import torch
from torch import Tensor

from fastdwm_kernels.checks import check_tensor
from fastdwm_kernels.noise.reference import normal_reference


@torch.no_grad()
def normal(seeds: Tensor, times: Tensor, n_rows: int, width: int, period: int, stream: int = 0) -> Tensor:
    """Independent standard normal float32 (n_rows, B, width) of B episodes.

    seeds, times: (B,) int64, contiguous, of one device. Only the lowest 32 bits of a time count.
    Row r holds the noise of time times + r // period: what it holds is a function of seed, that time, r % period and
    the column, and of `stream`, 0 <= stream < 2^31, which tells apart what is drawn for different purposes.
    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype.
    """
    check_tensor("seeds", seeds, (None,), torch.int64)
    check_tensor("times", times, (len(seeds),), torch.int64, seeds.device)
    if not seeds.is_cuda:
        return normal_reference(seeds, times, n_rows, width, period, stream)
    from fastdwm_kernels.noise.kernel import normal_fwd

    return normal_fwd(seeds, times, n_rows, width, period, stream)
