"""Every kernel compiled without a GPU: no spills, shared memory within the limit, tensor cores in use.

The default is one configuration of each kind, a second or two each; AOT_FULL=1 compiles every shipped configuration.
The table of resources, as of `python -m fastdwm_kernels.aot --table`, goes to the path printed at the end.
"""

import os
import re
from collections.abc import Callable, Iterator

import pytest

triton = pytest.importorskip("triton")

from fastdwm_kernels.aot import Resources, cases, compile_case, compiled, table  # noqa: E402
from fastdwm_kernels.aot.cases import SMALL  # noqa: E402
from fastdwm_kernels.aot_case import AotCase  # noqa: E402
from fastdwm_kernels.launch import shared_limit  # noqa: E402
from fastdwm_kernels.sampler import kernel as sampler  # noqa: E402
from fastdwm_kernels.sampler.weights import DenoiserShape  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="needs the compiler, not the interpreter"),
]

FULL = bool(os.environ.get("AOT_FULL"))
CASES = cases.cases(FULL)


@pytest.fixture(scope="module")
def resources(request) -> Iterator[list[tuple[str, int, Resources]]]:
    """Collect one row per compiled kernel, and write the table at the end."""
    rows: list[tuple[str, int, Resources]] = []
    yield rows
    path = request.config.cache.mkdir("kernel_resources") / "kernel_resources.md"
    path.write_text(table(rows))
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\nregisters, stack and shared memory of {len(rows)} kernels: {path}")


@pytest.fixture(scope="module")
def used_by() -> Callable[[AotCase, int], Resources]:
    """`compile_case` with a cache."""
    results: dict[tuple[str, int], Resources] = {}

    def used(case: AotCase, capability: int) -> Resources:
        key = case.name, capability
        if key not in results:
            results[key] = compile_case(case, capability)
        return results[key]

    return used


@pytest.mark.parametrize("case, capability", [pytest.param(*c, id=f"{c[0].name} sm_{c[1]}") for c in CASES])
def test_kernel_fits(case, capability, resources, used_by):
    used = used_by(case, capability)
    resources.append((case.name, capability, used))
    assert used.spills == 0 and used.stack_bytes == 0, used
    assert used.shared_bytes <= shared_limit(capability), used
    # Registers are allocated in eights; a kernel that needs more than 65536 cannot be launched.
    assert 32 * case.options["num_warps"] * (-(-used.registers // 8) * 8) <= 65536, used
    if case.tensor_cores:
        assert used.tensor_core_instructions > 0, used


def test_names_tell_cases_apart():
    names = [(case.name, capability) for case, capability in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kernel, instructions", [("fwd", 700), ("fwd save", 700), ("bwd", 900)])
@pytest.mark.parametrize("hidden_layers", [2, 3, 4])
def test_a_hidden_layer_is_few_instructions_and_no_shuffle(kernel, instructions, hidden_layers, used_by):
    """In the sampler of the published results a warp selects its part of x among its own registers."""
    name, *save = kernel.split()
    shape = DenoiserShape(*SMALL, 256, hidden_layers, "fp16", 90)
    (case,) = (
        case for case in sampler.aot_cases(shape) if f"_{name}_" in case.name and ("save" in case.name) == bool(save)
    )
    layer = used_by(case, 90).layer
    # With two layers each step has one hidden layer, so the step's output product (64) counts as part of it.
    allowed = instructions + (64 if hidden_layers == 2 else 0)
    assert layer.shuffles == 0 and layer.instructions <= allowed, layer


def test_the_number_of_programs_is_multiplied_in_64_bits():
    """A million rows have more than 2^31 pre-activations."""
    cases = [*sampler.aot_cases(DenoiserShape(*SMALL, 128, 2, "fp16", 90))]
    n_uses = 0
    for case in cases:
        code = compiled(case, 90).asm["ttir"]
        for name in re.findall(r"(%\w+) = tt.get_num_programs", code):
            uses = re.findall(rf"= (\S+) .*{name}\b", code)
            assert set(uses) <= {"arith.extsi"}, (case.name, uses)
            n_uses += len(uses)
    assert n_uses


def test_spills_are_detected():
    """With twice the particles per program the registers do not suffice."""
    shape = DenoiserShape(128, 32, 512, 3, "ieee", 90)
    case = sampler.aot_cases(shape)[2]
    broken = AotCase(
        case.name, case.kernel, case.pointers, dict(case.constexprs) | {"BLOCK_M": 32}, case.options, False
    )
    assert compile_case(broken, 90).spills > 0
