"""MLPs in training on a CPU: compiled passes forward and backward, with all gradients, for autograd.

pack_params(params)             the parameters in one buffer, which the passes read
mlp(params, x, activation)      outputs, differentiable in the parameters
mlp_and_tangent(params, x, dx)  outputs, and their derivative along dx
least_value(params, x)          least output over the copies, differentiable in x
"""

from fastdwm_kernels.training.op import PackedParams, least_value, mlp, mlp_and_tangent, pack_params

__all__ = ["PackedParams", "least_value", "mlp", "mlp_and_tangent", "pack_params"]
