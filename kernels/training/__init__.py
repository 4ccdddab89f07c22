"""MLPs in training on a CPU: compiled forward and backward passes for autograd.

pack_params(params)                           the parameters in one buffer, which the passes read
mlp(params, x, activation)                    outputs, differentiable in the parameters
mean_squared_error(params, x, target, ..)     a loss, whose gradient is computed with it
least_value(params, x)                        least output over the copies, differentiable in x
adam_step(optimiser, params, max_norm)        gradient clipping and Adam's step in one pass
"""

from fastdwm_kernels.training.op import (
    PackedParams,
    adam_step,
    least_value,
    mean_squared_error,
    mlp,
    pack_params,
)

__all__ = ["PackedParams", "adam_step", "least_value", "mean_squared_error", "mlp", "pack_params"]
