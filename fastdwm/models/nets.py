"""Multi-layer perceptrons as plain functions of a parameter dictionary.

Every network of the project is an MLP, and some exist in several copies at once: Q critics, B policies of episodes.
One definition serves all: parameters may have a leading axis, and then so does the input.

Parameters of a network with L linear layers: `w0 (..., d_in, d_out)`, `b0 (..., d_out)`, ..., `w{L-1}`, `b{L-1}`,
and with layer norm also `scale{i}`, `shift{i}` (..., d_out) of every hidden layer. The layout (d_in, d_out) is the
one that the fused kernels read.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdwm.models.config import CriticSpec, MLPSpec
from fastdwm_kernels import training

Params = dict[str, Tensor]
ACTIVATIONS = {"relu": F.relu, "tanh": torch.tanh}
"""functions of the hidden layers of policies and critics, by their names"""
Loss = Callable[[Params, dict[str, Tensor], torch.Generator], Tensor]
"""loss(params, batch, generator): a scalar; the batch has float32 columns (N,) or (N, d) by name"""


def n_layers(params: Params) -> int:
    """Number of linear layers."""
    return sum(name.startswith("w") for name in params)


def mlp_shapes(sizes: Sequence[int], *, copies: int | None = None, layer_norm: bool = False) -> dict[str, tuple]:
    """Shape of every parameter of the network with layer widths `sizes = (d_in, hidden, ..., d_out)`."""
    lead = () if copies is None else (copies,)
    shapes = {}
    for i, (d_in, d_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        shapes[f"w{i}"] = (*lead, d_in, d_out)
        shapes[f"b{i}"] = (*lead, d_out)
        if layer_norm and i < len(sizes) - 2:
            shapes[f"scale{i}"] = shapes[f"shift{i}"] = (*lead, d_out)
    return shapes


def spec_shapes(spec: MLPSpec, d_in: int, d_out: int) -> dict[str, tuple]:
    """Shape of every parameter of a network, or of an ensemble of critics, with this architecture."""
    copies = spec.copies if isinstance(spec, CriticSpec) else None
    return mlp_shapes((d_in, *spec.hidden, d_out), copies=copies, layer_norm=spec.layer_norm)


def init_mlp(
    shapes: dict[str, tuple],
    generator: torch.Generator,
    *,
    hidden_bias: float | None = None,
    out_bound: float | None = None,
) -> Params:
    """Draw float32 parameters of the given shapes.

    Weights and biases are U(+-1/sqrt(fan_in)). `hidden_bias` replaces the hidden biases by a constant, `out_bound` is
    another uniform bound of the last weight and bias; layer norms start as the identity.
    """
    last = str(n_layers(shapes) - 1)
    params = {}
    for name, shape in shapes.items():
        kind, layer = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
        if kind in ("scale", "shift"):
            params[name] = torch.full(shape, float(kind == "scale"))
        elif kind == "b" and layer != last and hidden_bias is not None:
            params[name] = torch.full(shape, hidden_bias)
        else:
            fan_in = shapes[f"w{layer}"][-2]
            bound = out_bound if layer == last and out_bound is not None else 1 / math.sqrt(fan_in)
            params[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return params


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Affine map x @ w + b, with one weight matrix for all rows or one for each entry of the leading axis.

    x: (..., N, d_in).   w: (d_in, d_out) or (Q, d_in, d_out), then x is (Q, N, d_in).   b: (d_out,) or (Q, d_out).
    """
    if w.dim() == 2:
        return F.linear(x, w.mT, b)
    return torch.baddbmm(b.unsqueeze(1), x, w)


def mlp(params: Params, x: Tensor, activation: Callable[[Tensor], Tensor] = F.relu) -> Tensor:
    """Linear -> activation [-> layer norm] for every hidden layer, then a linear output.

    x: (..., N, d_in), or (Q, N, d_in) for parameters with a leading axis Q.   Returns (..., N, d_out).
    """
    if isinstance(params, training.PackedParams):
        return training.mlp(params, x, activation.__name__)
    last = n_layers(params) - 1
    for i in range(last):
        x = activation(linear(x, params[f"w{i}"], params[f"b{i}"]))
        if f"scale{i}" in params:
            scale, shift = params[f"scale{i}"].unsqueeze(-2), params[f"shift{i}"].unsqueeze(-2)
            x = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale)
    return linear(x, params[f"w{last}"], params[f"b{last}"])


def mean_squared_error(
    params: Params,
    x: Tensor,
    target: Tensor,
    activation: Callable[[Tensor], Tensor],
    weights: Tensor | None = None,
    along: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean of (y - target)^2 weights for y = mlp(params, x), summed over copies; and y, for the log.

    target: (N, d_out), or (Q, N, d_out), one for each copy.   weights: (N,), none: all one.
    along: (dx (n, d_in), shares (2, n)), for a single SiLU network: shares[0] times the derivative of y along dx plus
    shares[1] times y is added to the target of the last n rows, both as constants for autograd.
    """
    if isinstance(params, training.PackedParams):
        return training.mean_squared_error(params, x, target, activation.__name__, weights, along)
    if along is None:
        y = mlp(params, x, activation)
    else:
        (dx, shares), n = along, len(x) - len(along[0])
        y, rate = mlp_and_tangent(params, x, dx)
        change = shares[0].unsqueeze(-1) * rate + shares[1].unsqueeze(-1) * y[n:].detach()
        target = torch.cat([target[:n], target[n:] + change])
    rows = (y - target).square().mean(-1)
    return (rows if weights is None else rows * weights).mean(-1).sum(), y.detach()


def mlp_and_tangent(params: Params, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """Output (N, d_out) of one SiLU network for x (N, d_in), and its derivative (n, d_out) in the last n rows along
    dx (n, d_in), which is a constant for autograd."""
    first, last = len(x) - len(dx), n_layers(params) - 1
    for i in range(last):
        z = linear(x, params[f"w{i}"], params[f"b{i}"])
        x = F.silu(z)
        with torch.no_grad():
            sigmoid = z[first:].sigmoid()
            dx = (dx @ params[f"w{i}"]) * (sigmoid + x[first:] * (1 - sigmoid))
    with torch.no_grad():
        dx = dx @ params[f"w{last}"]
    return linear(x, params[f"w{last}"], params[f"b{last}"]), dx


def trained(params: Params, compiled: bool = True) -> Params:
    """Make the parameters require gradients; if the compiled training passes apply, copy them to one buffer.

    compiled: False for an activation that those passes lack.
    """
    params = (training.pack_params(params) if compiled else None) or params
    for value in leaves(params):
        value.requires_grad_(True)
    return params


def leaves(params: Params) -> list[Tensor]:
    """The tensors that autograd and the optimisers handle: the parameters, or the one buffer that holds them."""
    return [params.flat] if isinstance(params, training.PackedParams) else list(params.values())


def copy_params(params: Params) -> Params:
    """Copy the parameters without gradients, into one buffer if they lie in one."""
    if isinstance(params, training.PackedParams):
        return params.clone()
    return map_params(lambda value: value.detach().clone(), params)


def map_params(fn: Callable[[Tensor], Tensor], params: Params) -> Params:
    """Apply `fn` to every tensor."""
    return {name: fn(value) for name, value in params.items()}


@torch.no_grad()
def move_towards(target: Params, source: Params, rate: float) -> None:
    """Exponential moving average in place: target += rate (source - target)."""
    torch._foreach_lerp_(leaves(target), leaves(source), rate)


def minimise(optimiser: torch.optim.Adam, params: Params, loss: Tensor, max_norm: float | None = None) -> Tensor | None:
    """Take one optimiser step, the gradient clipped to `max_norm`; return its norm before that, None if unclipped."""
    values, norm = leaves(params), None
    for value, grad in zip(values, torch.autograd.grad(loss, values), strict=True):
        value.grad = grad
    if isinstance(params, training.PackedParams):
        norm = training.adam_step(optimiser, params, max_norm)
        # Freed now, this memory serves the next gradient while it is still in the cache.
        params.flat.grad = None
        return None if norm is None else torch.tensor(norm)
    if max_norm is not None:
        norm = torch.nn.utils.clip_grad_norm_(values, max_norm).detach()
    optimiser.step()
    return norm


def cosine(n_updates: int, total: int) -> float:
    """Factor on a learning rate that decays from 1 to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * n_updates / total))


def adam(params: Params, lr: float) -> torch.optim.Adam:
    """Adam on all parameters; on a GPU its update can be captured as a graph and its learning rate is there."""
    values = leaves(params)
    if values[0].is_cuda:
        return torch.optim.Adam(values, torch.tensor(lr, device=values[0].device), fused=True, capturable=True)
    return torch.optim.Adam(values, lr, fused=True)


def moments(optimiser: torch.optim.Adam, params: Params) -> dict[str, dict[str, Tensor]]:
    """The optimiser's state by parameter, also if they lie in one buffer."""
    if not isinstance(params, training.PackedParams):
        return {name: optimiser.state[value] for name, value in params.items()}
    named = {
        key: params.views(value) if value.dim() else {name: value.clone() for name in params}
        for key, value in optimiser.state[params.flat].items()
    }
    return {name: {key: values[name] for key, values in named.items()} for name in params}


def set_moments(optimiser: torch.optim.Adam, params: Params, state: dict[str, dict[str, Tensor]]) -> None:
    """Restore the state that `moments` returned."""
    if isinstance(params, training.PackedParams):
        flat = {key: value.clone() for key, value in next(iter(state.values())).items() if not value.dim()}
        for key in ("exp_avg", "exp_avg_sq"):
            flat[key] = torch.zeros_like(params.flat)
            for name, view in params.views(flat[key]).items():
                view.copy_(state[name][key])
        optimiser.state[params.flat] = flat
        return
    # The update count stays on the host unless a captured graph reads it.
    on_device = optimiser.defaults["capturable"]
    for name, value in params.items():
        optimiser.state[value] = {
            key: t.to(value.device) if key != "step" or on_device else t for key, t in state[name].items()
        }


def set_lr(optimiser: torch.optim.Adam, lr: float) -> None:
    """Set the learning rate, in place where a captured graph reads it."""
    group = optimiser.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr
