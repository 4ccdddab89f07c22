"""The CPU kernels and the torch references, both in float32, against float64; memory and cache of the kernels."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from denoisers import make_problem
from models import make_noise, make_obs, make_policies, make_world
from numerics import EPS, assert_close, assert_within_twice
from test_cpu_functions import normal
from test_imagined_rollout import LAYOUT, LIMITS, POLICY, arguments, single_precision

from fastdwm.config import ITPOConfig
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.models.nets import map_params
from fastdwm_kernels.frozen_mlp import pack_frozen_mlp
from fastdwm_kernels.frozen_mlp.reference import frozen_mlp_backward_reference, frozen_mlp_forward_reference
from fastdwm_kernels.layout import MLPLayout
from fastdwm_kernels.policy import policy
from fastdwm_kernels.policy.reference import policy_forward_reference
from fastdwm_kernels.rollout import RolloutModels, stepwise
from fastdwm_kernels.sampler import sample
from fastdwm_kernels.sampler.reference import sampler_backward_reference, sampler_reference

pytest.importorskip("numba")

from fastdwm_kernels import cpu, memory  # noqa: E402
from fastdwm_kernels.frozen_mlp.cpu import reduce, scalar_gradient  # noqa: E402
from fastdwm_kernels.rollout import cpu_ops  # noqa: E402
from fastdwm_kernels.sampler.cpu import (  # noqa: E402
    sampler_backward_cpu,
    sampler_cpu,
)

# The sampler.
CASES = {
    "width48": dict(hidden=(48, 48)),
    "width100": dict(hidden=(100, 100, 100), steps=10),
    "one-layer": dict(hidden=(20,)),
    "four-layers": dict(hidden=(32, 48, 16, 24)),
    "one-step": dict(steps=1, hidden=(256,)),
    "wide-input": dict(obs_dim=128, action_dim=32, hidden=(96, 70)),
    "noise-prediction": dict(target="eps"),
}


def sampler(forward, backward, problem):
    """y_0 and the gradients of obs and action."""
    weights = problem.weights()
    y, saved = forward(weights, problem.obs, problem.action, problem.noise, True)
    return y, *backward(weights, problem.upstream, saved)


@pytest.mark.parametrize("rows", [1, 17, 257])
@pytest.mark.parametrize("case", CASES)
def test_sampler_error_is_at_most_twice_that_of_torch(case, rows, threads):
    problem = make_problem(rows, **CASES[case])
    actual = sampler(sampler_cpu, sampler_backward_cpu, problem)
    eager = sampler(sampler_reference, sampler_backward_reference, problem)
    for ours, theirs, expected in zip(actual, eager, problem.truth(), strict=True):
        assert_within_twice(ours, theirs, expected, "ieee")
        assert_close(ours, expected, EPS["ieee"])


def test_sampler_without_saving_is_the_same():
    problem = make_problem(17, steps=10)
    inputs = problem.weights(), problem.obs, problem.action, problem.noise
    assert torch.equal(sampler_cpu(*inputs, False)[0], sampler_cpu(*inputs, True)[0])


def test_a_row_does_not_depend_on_the_others(threads):
    problem = make_problem(83, hidden=(100, 100))
    together = sampler(sampler_cpu, sampler_backward_cpu, problem)
    for rows in (slice(0, 1), slice(5, 12), slice(40, 83)):
        inputs = {name: getattr(problem, name)[rows] for name in ("obs", "action", "upstream")}
        part = replace(problem, noise=problem.noise[:, rows].contiguous(), **inputs)
        alone = sampler(sampler_cpu, sampler_backward_cpu, part)
        assert all(torch.equal(a[rows], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_row_stays_visible_and_changes_no_other(bad):
    problem = make_problem(19, steps=10)
    weights, clean = problem.weights(), problem.obs.clone()
    expected = sample(weights, clean, problem.action, problem.noise)
    problem.obs[4, 1] = bad
    y = sample(weights, problem.obs, problem.action, problem.noise)
    assert y[4].isnan().all()
    assert torch.equal(y[torch.arange(19) != 4], expected[torch.arange(19) != 4])


def test_strided_memory_is_refused():
    with pytest.raises(Exception, match="C-contiguous"):
        cpu.multiply(np.ones((4, 6), np.float32)[:, ::2], np.ones((3, 2), np.float32), np.ones((4, 2), np.float32))


@pytest.mark.parametrize("particles", [1, 3, 17])
@pytest.mark.parametrize(
    ("sizes", "functions"),
    [
        ((5, 48, 100, 2), ("relu", "tanh")),
        ((5, 33, 2), ("tanh", "tanh")),
        ((5, 40, 40, 40, 2), ("relu", "clip")),
        ((5, 40, 64, 24, 32, 2), ("tanh", "clip")),
    ],
    ids=str,
)
def test_rollout_of_any_widths_and_functions(sizes, functions, particles, threads):
    """States, actions, and the backward pass from a random gradient of them."""
    layout, n_policies, horizon = MLPLayout(sizes, False, *functions), 3, 2
    params = {name: 0.3 * normal(n_policies, *shape, seed=i) for i, (name, shape) in enumerate(layout.shapes.items())}
    problem, n_rows = make_problem(hidden=(100, 48)), n_policies * particles
    scales = normal(5), normal(5, seed=1).exp(), normal(5, seed=2), 0.1 * normal(5, seed=3).exp()
    args = layout.pack(params), normal(horizon, 3, n_policies, particles, 5), normal(n_policies, 5, seed=4)
    direct = normal(horizon + 1, n_rows, 7, seed=5)

    def derivatives(kind, dtype):
        models = RolloutModels(layout, problem.weights(dtype=dtype), *(scale.to(dtype) for scale in scales))
        flat, noise, obs = (value.to(dtype) for value in args)
        rollout = kind(models, flat, noise, True)
        states, actions = rollout.forward(obs)
        grads, partial_sq_norms, action_grads = rollout.backward(direct.to(dtype))
        return states, actions, grads, partial_sq_norms.sum(1, keepdim=True), action_grads

    eager, expected = (derivatives(stepwise.Rollout, dtype) for dtype in (torch.float32, torch.float64))
    for ours, theirs, truth in zip(derivatives(cpu_ops.Rollout, torch.float32), eager, expected, strict=True):
        assert_within_twice(ours, theirs, truth, "ieee")


@pytest.mark.parametrize("particles", [1, 3, 17])
@pytest.mark.parametrize(
    ("sizes", "functions"),
    [
        ((5, 48, 100, 2), ("relu", "tanh")),
        ((11, 33, 3), ("tanh", "clip")),
        ((128, 40, 40, 40, 32), ("relu", "tanh")),
    ],
    ids=str,
)
def test_policies_act_without_a_tape(sizes, functions, particles, threads):
    layout = MLPLayout(sizes, False, *functions)
    params = {name: 0.5 * normal(3, *shape, seed=i) for i, (name, shape) in enumerate(layout.shapes.items())}
    flat, x = layout.pack(params), normal(3, particles, sizes[0], seed=20)
    expected = policy(layout, flat.double(), x.double())
    assert_within_twice(
        policy(layout, flat, x), policy_forward_reference(layout, layout.views(flat), x)[0], expected, "ieee"
    )
    # One policy for all acts as its copies do.
    copies = flat[:1].repeat(particles, 1)
    assert torch.equal(policy(layout, copies, x[0].unsqueeze(1)).squeeze(1), policy(layout, flat[:1], x[:1])[0])


@pytest.mark.parametrize("rows", [1, 17, 83])
@pytest.mark.parametrize(
    ("layer_norm", "copies", "activation"), [(False, 3, "relu"), (True, 3, "relu"), (False, 10, "tanh")]
)
@pytest.mark.parametrize("reduce", ["first", "mean", "min"])
def test_frozen_networks(reduce, layer_norm, copies, activation, rows):
    shapes = MLPLayout((9, 48, 100, 1), layer_norm).shapes.items()
    params = {name: 0.3 * normal(copies, *shape, seed=i) for i, (name, shape) in enumerate(shapes)}
    single = pack_frozen_mlp(params, activation=activation, reduce=reduce)
    x, value, gradient = normal(rows, 9), torch.empty(rows), torch.empty(rows, 9)
    cpu.run(scalar_gradient, rows, 1, *single.for_cpu, x, value, gradient)

    def derivatives(mlp, x):
        value, saved = frozen_mlp_forward_reference(mlp, x)
        return value.unsqueeze(1), frozen_mlp_backward_reference(mlp, saved, torch.ones_like(value))

    double = map_params(torch.Tensor.double, params)
    exact = derivatives(pack_frozen_mlp(double, activation=activation, reduce=reduce), x.double())
    for ours, theirs, truth in zip((value.unsqueeze(1), gradient), derivatives(single, x), exact, strict=True):
        assert_within_twice(ours, theirs, truth, "ieee")


@pytest.mark.parametrize("sizes", [(3, 5), (16, 40), (37, 64, 19)], ids=str)
def test_transposed_parameters(sizes, threads):
    layout = MLPLayout(sizes)
    flat = normal(2, layout.width)
    views, turned = layout.views(flat), layout.views(cpu.transposed(layout, flat))
    for name in views:
        if name.startswith("w"):
            assert torch.equal(turned[name].flatten(1), views[name].mT.flatten(1))


@pytest.mark.parametrize("values", [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0), (float("nan"), 1.0), (1.0, float("nan"))])
def test_the_least_copy_is_that_of_torch(values):
    value = np.empty(1, dtype=np.float32)
    shares = reduce(np.array(values, dtype=np.float32).reshape(2, 1, 1), True, value)
    expected, owner = torch.tensor(values).min(0)
    np.testing.assert_equal(value[0], np.float32(expected))
    assert shares[:, 0].argmax() == owner and shares.sum() == 1


# The whole rollout.
@pytest.mark.parametrize("termination", ["none", "mask", "soft"])
@pytest.mark.parametrize("terminal_value", ["min", "mean"])
def test_rollout_error_is_at_most_twice_that_of_autograd(terminal_value, termination, threads):
    world, args = make_world(limits=LIMITS), [x.float() for x in arguments(4, 3, 17)]
    config = ITPOConfig(termination=termination, termination_temperature=0.5, terminal_value=terminal_value)
    single = single_precision(world)
    fused = FusedObjective(POLICY, single, config)
    expected = ReferenceObjective(POLICY, world, config).gradient(*(x.double() for x in args))
    eager, actual = ReferenceObjective(POLICY, single, config).gradient(*args), fused.gradient(*args)
    for ours, theirs, truth in zip(actual[:3], eager[:3], expected[:3], strict=True):
        assert_within_twice(ours, theirs, truth, "ieee")
    norms = (gradient.partial_sq_norms.sum(1, keepdim=True).sqrt() for gradient in (actual, eager, expected))
    assert_within_twice(*norms, "ieee")
    assert_within_twice(fused.value(*args), eager.returns, expected.returns, "ieee")


@pytest.mark.parametrize("horizon", [0, 1])
def test_short_rollouts(horizon):
    world, args = single_precision(make_world()), [x.float() for x in arguments(2, horizon, 5)]
    fused, reference = (kind(POLICY, world, ITPOConfig()) for kind in (FusedObjective, ReferenceObjective))
    torch.testing.assert_close(fused.gradient(*args)[:3], reference.gradient(*args)[:3], rtol=1e-5, atol=1e-6)


def test_results_survive_the_next_rollout_of_another_size():
    world = single_precision(make_world())
    fused = FusedObjective(POLICY, world, ITPOConfig())

    def inputs(n, seed):
        base = LAYOUT.pack(make_policies(n, seed=seed)).float()
        return base, make_obs(n).float() + seed, make_noise(2, 4, n, 3).float()

    first = fused.gradient(*inputs(4, 5))[:3]
    kept = [x.clone() for x in first]
    for n in (2, 6, 4):
        fused.gradient(*inputs(n, 7))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(fused.gradient(*inputs(4, 5))[:3], kept, strict=True))


def test_memory_is_used_again_when_no_tensor_uses_it():
    large, small = memory.recycled(3, 4), memory.recycled(2, 2)
    addresses, view = (large.data_ptr(), small.data_ptr()), large[1:]
    del large
    # A view keeps the memory in use.
    assert memory.recycled(3, 4).data_ptr() not in addresses
    view.fill_(7.0)
    del view, small
    small, large = memory.recycled(4), memory.recycled(2, 5)
    assert small.data_ptr() == addresses[1] and large.data_ptr() != small.data_ptr()


def test_memory_is_aligned_to_cache_lines(monkeypatch):
    monkeypatch.undo()
    for size in (1, 5, 1000):
        lent = memory.recycled(size)
        assert len(lent) == size and lent.data_ptr() % 64 == 0


def test_a_larger_buffer_replaces_the_largest():
    lent = memory.recycled(12), memory.recycled(4)
    del lent
    kept = memory.recycled(100)
    assert [len(buffer) for buffer in memory.POOL.free] == [4]
    assert len(kept) == 100


# Import, errors and the cache.
def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_numba_is_loaded_only_when_needed():
    assert python("import fastdwm.agent, fastdwm.itpo.fused, sys; print('numba' in sys.modules)").strip() == "False"


def test_without_numba_the_error_says_what_to_do():
    attempt = "try: import fastdwm_kernels.cpu\nexcept ImportError as error: print(error)"
    message = python(f"import sys; sys.modules['numba'] = None\n{attempt}")
    assert "need numba: install it, or use --backend reference" in message


TRANSPOSES = """
import warnings
warnings.simplefilter("always")
import torch
from fastdwm_kernels.cpu import transposed
from fastdwm_kernels.layout import MLPLayout
layout = MLPLayout((2, 3))
flat = torch.arange(9.0)[None]
print(transposed(layout, flat)[:, :6].tolist())
"""


def transpose_with_cache(folder, first=""):
    """stderr of a process that runs the code `first` and then transposes some parameters."""
    env = os.environ | {"NUMBA_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", first + TRANSPOSES]
    result = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]]"
    return result.stderr


@pytest.mark.slow
def test_a_full_disk_under_the_cache_costs_a_warning(tmp_path):
    # Files cannot grow, as on a full disk; the output goes to pipes.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    stderr = transpose_with_cache(tmp_path, limit)
    assert stderr.count("compiled in every run") == 1 and "File too large" in stderr


@pytest.mark.slow
def test_a_damaged_cache_costs_a_warning_and_is_repaired(tmp_path):
    assert transpose_with_cache(tmp_path) == ""
    (index, *_), codes = sorted(tmp_path.rglob("*.nbi")), sorted(tmp_path.rglob("*.nbc"))
    index.write_bytes(index.read_bytes()[:-20])
    # Machine code that is cut off, and some that would run and crash or compute other numbers.
    codes[1].write_bytes(codes[1].read_bytes()[:5000])
    content = codes[2].read_bytes()
    codes[2].write_bytes(content[:20_000] + bytes(2000) + content[22_000:])
    stderr = transpose_with_cache(tmp_path)
    assert stderr.count("damaged, so that a CPU kernel is compiled anew") == 3 == len(codes)
    assert all(str(path) in stderr for path in (index, *codes[1:]))
    assert transpose_with_cache(tmp_path) == ""
