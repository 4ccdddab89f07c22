"""The compiled passes of MLPs in training: float32 against automatic differentiation in float64."""

import pytest
import torch
import torch.nn.functional as F
from models import double, generator
from numerics import EPS, assert_close
from torch import Tensor

from fastdwm.models import nets
from fastdwm.models.nets import init_mlp, map_params, mlp_shapes

# Also for a machine that only has what the GPU tests need.
pytest.importorskip("numba")

from fastdwm_kernels import cpu, training  # noqa: E402
from fastdwm_kernels.training import op  # noqa: E402
from fastdwm_kernels.training.cpu import ROWS  # noqa: E402

BATCHES = (1, 17, 256)
CRITICS = {
    "one-layer": (2, (14, 33, 1), F.relu, True),
    "two-layers": (2, (5, 48, 17, 1), F.relu, True),
    "three-layers": (3, (14, 64, 100, 31, 1), F.relu, True),
    "four-layers": (2, (20, 130, 48, 100, 33, 1), F.relu, True),
    "without-norm": (2, (14, 33, 48, 1), F.relu, False),
}
SINGLE = {
    "policy": (None, (11, 100, 33, 3), F.relu, False),
    "world": (None, (41, 64, 100, 31, 11), F.silu, False),
    "one-layer-world": (None, (7, 33, 2), F.silu, False),
}
NETWORKS = CRITICS | SINGLE
SILU = [name for name in SINGLE if "world" in name]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def make_params(copies: int | None, sizes: tuple[int, ...], layer_norm: bool) -> dict[str, Tensor]:
    """Random parameters, with random scale and shift of the layer norms."""
    params = init_mlp(mlp_shapes(sizes, copies=copies, layer_norm=layer_norm), generator())
    for i, (name, value) in enumerate(params.items()):
        if name.startswith(("scale", "shift")):
            params[name] = value + 0.3 * normal(*value.shape, seed=10 + i)
    return params


def make_problem(name: str, n_rows: int):
    """Packed parameters, the same in float64, the activation, and inputs at which no relu is near 0."""
    copies, sizes, activation, layer_norm = NETWORKS[name]
    params = make_params(copies, sizes, layer_norm)
    expected = double(params)
    x = smooth(expected, normal(8 * n_rows, sizes[0], seed=1), activation)[:n_rows]
    assert len(x) == n_rows
    x = x if copies is None else x.expand(copies, *x.shape)
    return nets.trained(params), require(expected), activation, x


def require(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return map_params(lambda value: value.requires_grad_(True), params)


def smooth(params: dict[str, Tensor], x: Tensor, activation) -> Tensor:
    """The rows of x at which no relu is near 0, where a small error makes the gradient jump."""
    closest = []

    def watched(z: Tensor) -> Tensor:
        closest.append(z.abs().amin(-1).reshape(-1, len(x)).amin(0))
        return activation(z)

    with torch.no_grad():
        rows = x.double() if params["w0"].dim() == 2 else x.double().expand(len(params["w0"]), *x.shape)
        nets.mlp(params, rows, watched)
    return x[torch.stack(closest).amin(0) > 1e-5] if activation is F.relu else x


def assert_same_gradients(packed: training.PackedParams, flat: Tensor, expected: list[Tensor]) -> None:
    """Each parameter's gradient within 12 eps, twice the largest error measured."""
    for actual, grad in zip(packed.views(flat).values(), expected, strict=True):
        assert_close(actual.reshape(1, -1), grad.reshape(1, -1), EPS["ieee"], 12)
    padding = flat[:, packed.layout.n_params :]
    assert torch.equal(padding, torch.zeros_like(padding))


@pytest.mark.parametrize("n_rows", BATCHES)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_float64(name, n_rows):
    packed, expected, activation, x = make_problem(name, n_rows)
    y, reference = nets.mlp(packed, x, activation), nets.mlp(expected, x.double(), activation)
    assert_close(y, reference, EPS["ieee"])
    with torch.no_grad():
        assert torch.equal(nets.mlp(packed, x, activation), y)
    upstream = normal(*y.shape, seed=2)
    (flat,) = torch.autograd.grad(y, packed.flat, upstream)
    assert_same_gradients(packed, flat, torch.autograd.grad(reference, list(expected.values()), upstream.double()))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_rows", BATCHES)
@pytest.mark.parametrize("name", NETWORKS)
def test_squared_error_and_its_gradients_are_those_of_float64(name, n_rows, weighted):
    packed, expected, activation, x = make_problem(name, n_rows)
    with torch.no_grad():
        target = normal(*nets.mlp(packed, x, activation).shape, seed=3)
    weights = torch.rand(n_rows, generator=generator(4)) if weighted else None
    loss, y = nets.mean_squared_error(packed, x, target, activation, weights)
    double_weights = None if weights is None else weights.double()
    reference, outputs = nets.mean_squared_error(expected, x.double(), target.double(), activation, double_weights)
    assert_close(loss.view(1, 1), reference.view(1, 1), EPS["ieee"])
    assert_close(y, outputs, EPS["ieee"])
    (flat,) = torch.autograd.grad(3 * loss, packed.flat)
    assert_same_gradients(packed, flat, torch.autograd.grad(3 * reference, list(expected.values())))


@pytest.mark.parametrize("n_last", [0, 1, 9, 17])
@pytest.mark.parametrize("name", SILU)
def test_target_along_a_direction_is_that_of_float64(name, n_last, threads):
    packed, expected, activation, x = make_problem(name, 17)
    target, dx = normal(17, packed.layout.sizes[-1], seed=3), normal(n_last, x.shape[1], seed=4)
    shares = normal(2, n_last, seed=5)
    loss, _ = nets.mean_squared_error(packed, x, target, activation, None, (dx, shares))
    double_along = dx.double(), shares.double()
    reference, _ = nets.mean_squared_error(expected, x.double(), target.double(), activation, None, double_along)
    assert_close(loss.detach().view(1, 1), reference.detach().view(1, 1), EPS["ieee"])
    (flat,) = torch.autograd.grad(loss, packed.flat)
    assert_same_gradients(packed, flat, torch.autograd.grad(reference, list(expected.values())))


@pytest.mark.parametrize("n_rows", BATCHES)
@pytest.mark.parametrize("name", CRITICS)
def test_least_value_is_that_of_float64(name, n_rows):
    packed, expected, activation, x = make_problem(name, n_rows)
    rows, precise = x[0].clone().requires_grad_(True), x[0].double().requires_grad_(True)
    value = training.least_value(packed, rows)
    reference = nets.mlp(expected, precise.expand(x.shape), activation).squeeze(-1).amin(0)
    # Absolute, since a value may be near zero though its terms are not.
    torch.testing.assert_close(value.double(), reference, rtol=0, atol=16 * EPS["ieee"])
    upstream = normal(n_rows, seed=2)
    (actual,), (grad,) = torch.autograd.grad(value, rows, upstream), torch.autograd.grad(reference, precise, upstream)
    # Measured: 16.02 eps, plain torch in float32 18.1.
    assert_close(actual, grad, EPS["ieee"], 32)
    assert packed.flat.grad is None


def test_results_depend_on_no_other_row_and_on_no_thread(monkeypatch):
    packed, _, activation, x = make_problem("three-layers", 2 * ROWS + 5)
    target = normal(*x.shape[1:2], 1, seed=3)
    monkeypatch.setattr(cpu, "MIN_PRODUCTS", 1)
    before, results = torch.get_num_threads(), []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        loss, y = nets.mean_squared_error(packed, x, target, activation)
        results.append((loss.detach(), y, *torch.autograd.grad(loss, packed.flat)))
    torch.set_num_threads(before)
    assert all(map(torch.equal, *results))
    with torch.no_grad():
        assert torch.equal(nets.mlp(packed, x[:, 7:20].contiguous(), activation), results[0][1][:, 7:20])


@pytest.mark.parametrize("max_norm", [None, 0.1, 1e6])
def test_adam_step_is_torchs(max_norm):
    packed = nets.trained(make_params(2, (14, 33, 48, 1), True))
    plain = packed.flat.detach().double().requires_grad_(True)
    optimiser, reference = nets.adam(packed, 1e-2), torch.optim.Adam([plain], 1e-2)
    for seed in range(5):
        grads = normal(*plain.shape, seed=seed)
        packed.flat.grad, plain.grad = grads.clone(), grads.double()
        norm = training.adam_step(optimiser, packed, max_norm)
        if max_norm is not None:
            expected = torch.nn.utils.clip_grad_norm_([plain], max_norm)
            assert norm == pytest.approx(float(expected), rel=1e-6)
        reference.step()
    assert_close(packed.flat, plain, EPS["ieee"], 4)
    for key in ("exp_avg", "exp_avg_sq"):
        assert_close(optimiser.state[packed.flat][key], reference.state[plain][key], EPS["ieee"], 4)
    assert float(optimiser.state[packed.flat]["step"]) == 5


def test_nan_stays_nan():
    packed, _, activation, x = make_problem("two-layers", 17)
    x = x.clone()
    x[:, 3] = torch.nan
    loss, y = nets.mean_squared_error(packed, x, torch.zeros(17, 1), activation)
    assert y[:, 3].isnan().all() and y[:, :3].isfinite().all() and loss.isnan()
    (packed.flat.grad,) = torch.autograd.grad(loss, packed.flat)
    assert training.adam_step(nets.adam(packed, 1e-3), packed, 1.0) != 1
    assert packed["w0"].isnan().all()


def test_networks_without_compiled_passes_are_not_packed(monkeypatch):
    params = make_params(None, (5, 8, 2), False)
    assert isinstance(nets.trained(params), training.PackedParams)
    for other in (double(params), make_params(None, (5, 2), False), params | {"extra": torch.ones(1)}):
        assert training.pack_params(other) is None
        plain = nets.trained(other)
        assert plain is other and all(value.requires_grad for value in plain.values())
    # As without numba.
    monkeypatch.setattr(op, "cpu_kernels", lambda operator: None)
    assert training.pack_params(make_params(None, (5, 8, 2), False)) is None


def test_misuse_raises():
    packed, _, activation, x = make_problem("policy", 4)
    with pytest.raises(ValueError, match="x: expected shape"):
        nets.mlp(packed, x[:, 1:], activation)
    with pytest.raises(TypeError, match="x: expected torch.float32"):
        nets.mlp(packed, x.double(), activation)
    with pytest.raises(ValueError, match="activation: expected one of relu, silu"):
        nets.mlp(packed, x, torch.tanh)
    with pytest.raises(ValueError, match="target: expected shape"):
        nets.mean_squared_error(packed, x, torch.zeros(4, 2), activation)
    with pytest.raises(NotImplementedError, match="gradients of the input"):
        nets.mlp(packed, x.requires_grad_(True), activation)
    y = nets.mlp(packed, x.detach(), activation).sum()
    torch.autograd.grad(y, packed.flat, retain_graph=True)
    with pytest.raises(RuntimeError, match="no second gradient"):
        torch.autograd.grad(y, packed.flat)
    critics, _, activation, x = make_problem("one-layer", 4)
    with pytest.raises(ValueError, match="activation: expected one of relu"):
        nets.mlp(critics, x, F.silu)
    with pytest.raises(ValueError, match="one network without layer norm"):
        nets.mean_squared_error(critics, x, torch.zeros(4, 1), activation, None, (x[0], torch.zeros(2, 4)))
