"""The kernel configurations that are compiled ahead of time, for the tests and for the table of resources.

By default they are one of each kind, and those that run out of registers first; `full` adds every shipped one.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import product

from fastdwm_kernels.aot_case import AotCase
from fastdwm_kernels.commit import kernel as commit
from fastdwm_kernels.frozen_mlp import kernel as frozen_mlp
from fastdwm_kernels.launch import MULTIPROCESSORS, PRECISIONS, sampler_launch
from fastdwm_kernels.layout import MLPLayout
from fastdwm_kernels.noise import kernel as noise
from fastdwm_kernels.policy import kernel as policy
from fastdwm_kernels.policy import weight_kernel
from fastdwm_kernels.rollout import step_kernel, terms_kernel
from fastdwm_kernels.sampler import kernel as sampler
from fastdwm_kernels.sampler.weights import DenoiserShape
from fastdwm_kernels.update import bound_kernel
from fastdwm_kernels.update import kernel as update

CAPABILITIES = (90, 80)
SMALL, LARGEST = (11, 3), (128, 32)
"""observation and action sizes"""


def denoiser_shapes(capability: int) -> Iterator[tuple[DenoiserShape, bool]]:
    """Every shipped denoiser, and whether it is among the default cases."""
    for width, layers, precision, sizes in product((128, 256, 512), (2, 3, 4), PRECISIONS, (SMALL, LARGEST)):
        # The number of hidden layers is a loop count, so one value represents all in most configurations.
        typical = layers == 3 and sizes == SMALL
        largest = layers == 3 and width == 512 and precision == "fp16"
        reference = sizes == SMALL and width == 256 and precision == "fp16" and capability == 90
        # Long observations with narrow layers are the first to run out of registers and of shared memory.
        long = sizes == LARGEST and width < 512 and layers == 2 and precision == "fp16" and capability == 90
        shape = DenoiserShape(*sizes, width, layers, precision, capability)
        yield shape, typical or largest or reference or long
        # Many rows have larger blocks, which leave fewer registers.
        for block in sampler_launch(width, sizes[0], precision, capability).larger:
            yield replace(shape, n_rows=block * MULTIPROCESSORS), typical and block == (32 if width == 256 else 64)


def sampler_cases(capability: int, full: bool) -> Iterator[AotCase]:
    for shape, default in denoiser_shapes(capability):
        if full or default:
            yield from sampler.aot_cases(shape)


def mlp_shapes(capability: int) -> Iterator[tuple[tuple[int, ...], int, int, str, bool]]:
    """Hidden widths, observation and action size, precision of every shipped MLP; and whether it is a default case."""
    for width, layers, precision, sizes in product((128, 256, 512), (2, 3, 4), PRECISIONS, (SMALL, LARGEST)):
        typical = width == 256 and layers == 3 and sizes == SMALL and (precision == "fp16" or capability == 90)
        # Without a bound on the registers the assembler spilled in these.
        spilled = (
            layers == 4 and width == (128 if sizes == LARGEST else 512) and precision == "ieee" and capability == 90
        )
        yield (width,) * layers, *sizes, precision, typical or spilled


def foreign_shapes(capability: int) -> Iterator[tuple[tuple[int, ...], int, int, str, bool]]:
    """The same of some MLPs as other libraries train them, with unequal widths."""
    widths = (64,), (64, 64), (400, 300), (512, 20, 300, 64)
    for hidden, precision, sizes in product(widths, PRECISIONS, (SMALL, LARGEST)):
        default = hidden == (400, 300) and precision == "fp16" and sizes == SMALL and capability == 90
        yield hidden, *sizes, precision, default


def policy_cases(capability: int, full: bool) -> Iterator[AotCase]:
    yield weight_kernel.sum_case()
    for shapes, functions in ((mlp_shapes, ("relu", "tanh")), (foreign_shapes, ("tanh", "clip"))):
        for hidden, obs_dim, action_dim, precision, default in shapes(capability):
            if full or default:
                layout = MLPLayout((obs_dim, *hidden, action_dim), False, *functions)
                yield from policy.aot_cases(layout, precision, capability)
                yield from weight_kernel.aot_cases(layout, precision)
                yield from step_kernel.aot_cases(layout, precision, capability)


def frozen_mlp_cases(capability: int, full: bool) -> Iterator[AotCase]:
    """The twin critics and the reward model, and ten critics as other libraries train them."""
    trained = (mlp_shapes, "relu", ((True, "min", 2), (False, "first", 1)))
    for shapes, activation, rules in (trained, (foreign_shapes, "tanh", ((False, "min", 10),))):
        for hidden, obs_dim, action_dim, precision, default in shapes(capability):
            for rule in rules if full or default else ():
                layout = MLPLayout((obs_dim + action_dim, *hidden, 1), rule[0], activation)
                yield from frozen_mlp.aot_cases(layout, frozen_mlp.Rule(*rule, precision), capability)


# A new operator adds its cases here.
OPERATORS = {
    "sampler": sampler_cases,
    "policy": policy_cases,
    "frozen_mlp": frozen_mlp_cases,
    "update": lambda capability, full: [*update.aot_cases(), *bound_kernel.aot_cases()],
    "noise": lambda capability, full: noise.aot_cases(),
    "terms": lambda capability, full: [case for size, _ in (SMALL, LARGEST) for case in terms_kernel.aot_cases(size)],
    "commit": lambda capability, full: commit.aot_cases(),
}


def cases(full: bool, only: Collection[str] = ()) -> list[tuple[AotCase, int]]:
    """Every case with its compute capability; only: the operators, all if empty."""
    selected = [list_cases for name, list_cases in OPERATORS.items() if not only or name in only]
    return [
        (case, capability)
        for list_cases in selected
        for capability in CAPABILITIES
        for case in list_cases(capability, full)
    ]
