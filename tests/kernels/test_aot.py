"""Every kernel compiled for GPUs that are not there: no spills, shared memory within bounds, tensor cores in use.

By default one configuration of each kind, compilations of a second or two each; AOT_FULL=1 compiles every
shipped configuration. The table of registers, stack and shared memory is written to the path printed at the end.
"""

import os
import re
from collections.abc import Iterator
from itertools import product

import pytest

triton = pytest.importorskip("triton")

from fastdwm.kernels.aot import AotCase, Resources, compile_case, compiled, table  # noqa: E402
from fastdwm.kernels.finish import kernel as finish  # noqa: E402
from fastdwm.kernels.frozen_mlp import kernel as frozen_mlp  # noqa: E402
from fastdwm.kernels.launch import PRECISIONS, shared_limit  # noqa: E402
from fastdwm.kernels.layout import MLPLayout  # noqa: E402
from fastdwm.kernels.noise import kernel as noise  # noqa: E402
from fastdwm.kernels.policy import kernel as policy  # noqa: E402
from fastdwm.kernels.reverse_chain import kernel as reverse_chain  # noqa: E402
from fastdwm.kernels.reverse_step import kernel as reverse_step  # noqa: E402
from fastdwm.kernels.reverse_step.weights import DenoiserShape  # noqa: E402
from fastdwm.kernels.rollout import pair_kernel, step_kernel, terms_kernel  # noqa: E402
from fastdwm.kernels.trust import kernel as trust  # noqa: E402
from fastdwm.kernels.update import ascent_kernel  # noqa: E402
from fastdwm.kernels.update import kernel as update  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="needs the compiler, not the interpreter"),
]

FULL = bool(os.environ.get("AOT_FULL"))
SMALL, LARGEST = (11, 3), (128, 32)
"""observation and action sizes"""


def denoiser_shapes(capability: int) -> Iterator[tuple[DenoiserShape, bool]]:
    """Every shipped denoiser, and whether the default run includes it."""
    for width, layers, precision, sizes in product((128, 256, 512), (2, 3, 4), PRECISIONS, (SMALL, LARGEST)):
        # The number of hidden layers is a loop count, so one value stands for all in most configurations.
        typical = layers == 3 and sizes == SMALL
        largest = layers == 3 and width == 512 and precision == "bf16"
        reference = sizes == SMALL and width == 256 and precision == "bf16" and capability == 90
        # Long observations under narrower layers: the first to run out of registers and of shared memory.
        long = sizes == LARGEST and width < 512 and layers == 2 and precision != "ieee" and capability == 90
        yield DenoiserShape(*sizes, width, layers, precision, capability), typical or largest or reference or long


def chain_cases(capability: int) -> Iterator[AotCase]:
    for shape, default in denoiser_shapes(capability):
        if FULL or default:
            yield from reverse_chain.aot_cases(shape)


def step_cases(capability: int) -> Iterator[AotCase]:
    for shape, default in denoiser_shapes(capability):
        if FULL or (default and shape.width == 256 and shape.hidden_layers == 3 and capability == 90):
            yield from reverse_step.aot_cases(shape)


def mlp_shapes(capability: int) -> Iterator[tuple[tuple[int, ...], int, int, str, bool]]:
    """Hidden widths, observation and action size and precision of every shipped MLP; and whether by default."""
    for width, layers, precision, sizes in product((128, 256, 512), (2, 3, 4), PRECISIONS, (SMALL, LARGEST)):
        typical = width == 256 and layers == 3 and sizes == SMALL and (precision == "bf16" or capability == 90)
        # The first to run out of registers.
        wide = width == 512 and layers == 3 and sizes == SMALL and precision == "tf32" and capability == 90
        yield (width,) * layers, *sizes, precision, typical or wide


def policy_cases(capability: int) -> Iterator[AotCase]:
    for hidden, obs_dim, action_dim, precision, default in mlp_shapes(capability):
        if FULL or default:
            layout = MLPLayout((obs_dim, *hidden, action_dim))
            yield from policy.aot_cases(layout, precision, capability)
            yield from step_kernel.aot_cases(layout, precision, capability)


def frozen_mlp_cases(capability: int) -> Iterator[AotCase]:
    """The twin critics and the reward model; with FULL also with SiLU."""
    for hidden, obs_dim, action_dim, precision, default in mlp_shapes(capability):
        for activation in ("relu", "silu") if FULL else ("relu",):
            if FULL or default:
                for rule in (
                    frozen_mlp.Rule(activation, True, "min", 2, precision),
                    frozen_mlp.Rule(activation, False, "first", 1, precision),
                ):
                    layout = MLPLayout((obs_dim + action_dim, *hidden, 1), rule.layer_norm)
                    yield from frozen_mlp.aot_cases(layout, rule, capability)


# Operator: cases for one compute capability. To be extended by every new operator.
OPERATORS = {
    "reverse_chain": chain_cases,
    "reverse_step": step_cases,
    "policy": policy_cases,
    "frozen_mlp": frozen_mlp_cases,
    "update": lambda capability: update.aot_cases(),
    "noise": lambda capability: noise.aot_cases(),
    "terms": lambda capability: [case for size, _ in (SMALL, LARGEST) for case in terms_kernel.aot_cases(size)],
    "pair": lambda capability: pair_kernel.aot_cases(),
    "finish": lambda capability: [*finish.aot_cases(), *ascent_kernel.aot_cases()],
    "trust": lambda capability: trust.aot_cases(),
}

CASES = [(case, capability) for cases in OPERATORS.values() for capability in (90, 80) for case in cases(capability)]


@pytest.fixture(scope="module")
def resources(request) -> Iterator[list[tuple[str, int, Resources]]]:
    """Collects one row per compiled kernel and writes the table when the last is done."""
    rows: list[tuple[str, int, Resources]] = []
    yield rows
    path = request.config.cache.mkdir("kernel_resources") / "kernel_resources.md"
    path.write_text(table(rows))
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\nregisters, stack and shared memory of {len(rows)} kernels: {path}")


@pytest.mark.parametrize("case, capability", [pytest.param(*c, id=f"{c[0].name} sm_{c[1]}") for c in CASES])
def test_kernel_fits(case, capability, resources):
    used = compile_case(case, capability)
    resources.append((case.name, capability, used))
    assert used.spills == 0 and used.stack_bytes == 0, used
    assert used.shared_bytes <= shared_limit(capability), used
    if case.tensor_cores:
        assert used.tensor_core_instructions > 0, used


def test_the_number_of_programs_is_multiplied_in_64_bits():
    """A million rows have more than 2^31 pre-activations."""
    cases = [*reverse_chain.aot_cases(DenoiserShape(*SMALL, 128, 2, "bf16", 90))]
    cases += reverse_step.aot_cases(DenoiserShape(*SMALL, 128, 2, "bf16", 90))
    seen = 0
    for case in cases:
        code = compiled(case, 90).asm["ttir"]
        for name in re.findall(r"(%\w+) = tt.get_num_programs", code):
            uses = re.findall(rf"= (\S+) .*{name}\b", code)
            assert set(uses) <= {"arith.extsi"}, (case.name, uses)
            seen += len(uses)
    assert seen


def test_spills_are_seen():
    """The check itself: twice the particles per program need more registers than there are."""
    shape = DenoiserShape(128, 32, 512, 3, "ieee", 90)
    case = reverse_chain.aot_cases(shape)[2]
    broken = AotCase(
        case.name, case.kernel, case.pointers, dict(case.constexprs) | {"BLOCK_M": 32}, case.options, False
    )
    assert compile_case(broken, 90).spills > 0
