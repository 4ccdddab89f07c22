"""The K-step sampler and its VJP in torch, in any dtype, without an autograd tape: the reference of the kernels.

It starts from y_K = noise[0] and takes the steps k = K..1 with z = noise[K - k + 1],
  y_{k-1} = c_y y_k + c_out net(y_k, k, obs, action) + sigma z     [ITPO] v1 section 3, with the corrected reverse step;
sigma_1 = 0, so the last step reads no noise. The first pre-activation is split as in `weights.py`. The VJP takes the
steps in reverse order. With a layer h = silu(z), z = h_prev W + b:  dz = silu'(z) dh,  dh_prev = dz W^T. obs and action
enter every step through the same product (obs, action) W_c, so the gradients dz_k of the first pre-activations are
summed over k first:
  d(obs, action) = (sum_k dz_k) W_c^T,   dy_k = c_y dy_{k-1} + dz_k W_y^T.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdwm_kernels.cpu_linear import linear
from fastdwm_kernels.sampler.weights import SamplerWeights


def sampler_reference(
    weights: SamplerWeights, obs: Tensor, action: Tensor, noise: Tensor, save: bool
) -> tuple[Tensor, list[list[Tensor]]]:
    """y_0 (N, S), and the pre-activations of all steps, step K first, valid only if `save`."""
    cond = linear(torch.cat([obs, action], 1), weights.w_cond)
    y, saved = noise[0], []
    for i, index in enumerate(reversed(range(weights.steps))):
        c_y, c_out, sigma = weights.affine[index]
        z = (cond + weights.table[index]).addmm_(y, weights.w_in)
        h, pre_activations = denoise(weights, z, save)
        saved.append(pre_activations)
        y = (c_y * y).add_(weights.b_out, alpha=c_out).addmm_(h, weights.w_out.mT, alpha=c_out)
        if index > 0:
            y.add_(noise[i + 1], alpha=sigma)
    return y, saved


def sampler_backward_reference(
    weights: SamplerWeights, dy: Tensor, saved: list[list[Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of obs (N, S), action (N, A) and the start y_K (N, S)."""
    total = torch.zeros_like(saved[0][0])
    for index, (c_y, c_out, _) in enumerate(weights.affine):
        dz = denoise_vjp(weights, c_out * dy, saved[-1 - index])
        total += dz
        dy = torch.addmm(dy, dz, weights.w_in.mT, beta=c_y)
    dcond = linear(total, weights.w_cond.mT)
    return dcond[:, : weights.obs_dim].contiguous(), dcond[:, weights.obs_dim :].contiguous(), dy


def denoise(weights: SamplerWeights, z: Tensor, save: bool) -> tuple[Tensor, list[Tensor]]:
    """Last hidden activation and all pre-activations; overwrites z unless `save`."""
    saved = [z]
    h = F.silu(z, inplace=not save)
    for w, b in zip(weights.w_hidden, weights.b_hidden, strict=True):
        z = linear(h, w, b)
        saved.append(z)
        h = F.silu(z, inplace=not save)
    return h, saved


def denoise_vjp(weights: SamplerWeights, dout: Tensor, saved: list[Tensor]) -> Tensor:
    """Gradient (N, D) of the first pre-activation from that of the network output (N, S)."""
    dh = dout @ weights.w_out
    for z, w in zip(reversed(saved[1:]), reversed(weights.w_hidden), strict=True):
        dz = silu_vjp(dh, z)
        dh = linear(dz, w.mT)
    return silu_vjp(dh, saved[0])


def silu_vjp(dh: Tensor, z: Tensor) -> Tensor:
    """dh silu'(z), in place of dh."""
    return torch.ops.aten.silu_backward.grad_input(dh, z, grad_input=dh)
