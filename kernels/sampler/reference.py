"""The K-step sampler and its VJP in torch: the meaning of the kernels, in any dtype.

The sampler is y_K = noise[0], then the reverse step of `reverse_step/reference.py` for k = K..1, z = noise[K - k + 1];
sigma_1 = 0, so the last step reads no noise. In the VJP the steps run the other way. obs and action enter every step
through the same product (obs, action) W_c, so the gradients of the first pre-activations are summed over k first:
  d(obs, action) = (sum_k dz_k) W_c^T,   dy_k = c_y dy_{k-1} + dz_k W_y^T.
"""

import torch
from torch import Tensor

from fastdwm_kernels.launch import round_operand
from fastdwm_kernels.sampler.step_reference import condition, condition_vjp, denoise, denoise_vjp
from fastdwm_kernels.sampler.weights import SamplerWeights


def sampler_reference(
    weights: SamplerWeights, obs: Tensor, action: Tensor, noise: Tensor, save: bool
) -> tuple[Tensor, list[list[Tensor]]]:
    """y_0 (N, S) and the pre-activations of every step, step K first, valid only if `save`."""
    cond = condition(weights, obs, action)
    y, saved = noise[0], []
    for i, index in enumerate(reversed(range(weights.steps))):
        c_y, c_out, sigma = weights.affine[index]
        z = (cond + weights.table[index]).addmm_(round_operand(y, weights.precision), weights.w_in)
        h, pre_activations = denoise(weights, z, save)
        saved.append(pre_activations)
        y = (c_y * y).add_(weights.b_out, alpha=c_out).addmm_(h, weights.w_out.mT, alpha=c_out)
        if index > 0:
            y.add_(noise[i + 1], alpha=sigma)
    return y, saved


def sampler_backward_reference(weights: SamplerWeights, dy: Tensor, saved: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Gradients of obs (N, S) and action (N, A)."""
    total = None
    for index, (c_y, c_out, _) in enumerate(weights.affine):
        dz = denoise_vjp(weights, c_out * dy, saved[-1 - index])
        total = dz if total is None else total.add_(dz)
        if index < weights.steps - 1:
            dy = torch.addmm(dy, round_operand(dz, weights.precision), weights.w_in.mT, beta=c_y)
    return condition_vjp(weights, total)
