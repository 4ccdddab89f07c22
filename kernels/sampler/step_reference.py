"""One reverse step and its VJP in torch: any dtype and device, no autograd tape, few large operations.

With x -> net(x) the denoiser and a first pre-activation split as in `weights.py`,
  y' = c_y y + c_out net(y, k, obs, action) + sigma z        [ITPO] v1 section 3, with the corrected reverse step
  dy = c_y dy' + c_out (d net / d y)^T dy',   d(obs, action) = c_out (d net / d (obs, action))^T dy'
and for a layer h = silu(z), z = h_prev W + b:  dz = silu'(z) dh,  dh_prev = dz W^T.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdwm_kernels.cpu_linear import linear
from fastdwm_kernels.launch import round_operand
from fastdwm_kernels.sampler.weights import SamplerWeights


def condition(weights: SamplerWeights, obs: Tensor, action: Tensor) -> Tensor:
    """(N, D) part of the first pre-activation that obs and action contribute."""
    return linear(round_operand(torch.cat([obs, action], 1), weights.precision), weights.w_cond)


def condition_vjp(weights: SamplerWeights, dz: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of obs (N, S) and action (N, A) from that of the first pre-activation."""
    dcond = linear(round_operand(dz, weights.precision), weights.w_cond.mT)
    return dcond[:, : weights.obs_dim].contiguous(), dcond[:, weights.obs_dim :].contiguous()


def denoise(weights: SamplerWeights, z: Tensor, save: bool) -> tuple[Tensor, list[Tensor]]:
    """Last hidden activation, as an operand, and all pre-activations; overwrites z unless `save`."""
    saved = [z]
    h = round_operand(F.silu(z, inplace=not save), weights.precision)
    for w, b in zip(weights.w_hidden, weights.b_hidden, strict=True):
        z = linear(h, w, b)
        saved.append(z)
        h = round_operand(F.silu(z, inplace=not save), weights.precision)
    return h, saved


def denoise_vjp(weights: SamplerWeights, dout: Tensor, saved: list[Tensor]) -> Tensor:
    """Gradient (N, D) of the first pre-activation from that of the network output (N, S)."""
    dh = round_operand(dout, weights.precision) @ weights.w_out
    for z, w in zip(reversed(saved[1:]), reversed(weights.w_hidden), strict=True):
        dz = silu_vjp(dh, z)
        dh = linear(round_operand(dz, weights.precision), w.mT)
    return silu_vjp(dh, saved[0])


def silu_vjp(dh: Tensor, z: Tensor) -> Tensor:
    """dh silu'(z), written over dh."""
    return torch.ops.aten.silu_backward.grad_input(dh, z, grad_input=dh)


def reverse_step_reference(
    weights: SamplerWeights, index: int, y: Tensor, obs: Tensor, action: Tensor, noise: Tensor, save: bool
) -> tuple[Tensor, list[Tensor]]:
    """y_{k-1} (N, S) of step k = index + 1 and the pre-activations, valid only if `save`."""
    c_y, c_out, sigma = weights.affine[index]
    z = condition(weights, obs, action).add_(weights.table[index])
    z.addmm_(round_operand(y, weights.precision), weights.w_in)
    h, saved = denoise(weights, z, save)
    out = torch.addmm(weights.b_out, h, weights.w_out.mT)
    return out.mul_(c_out).add_(y, alpha=c_y).add_(noise, alpha=sigma), saved


def reverse_step_backward_reference(
    weights: SamplerWeights, index: int, dout: Tensor, saved: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, obs and action."""
    c_y, c_out, _ = weights.affine[index]
    dz = denoise_vjp(weights, c_out * dout, saved)
    dy = torch.addmm(dout, round_operand(dz, weights.precision), weights.w_in.mT, beta=c_y)
    return dy, *condition_vjp(weights, dz)
