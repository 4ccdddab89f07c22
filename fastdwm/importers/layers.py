"""Find the linear layers of an MLP among the named tensors of a checkpoint."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdwm.checks import MAX_LAYERS, MAX_WIDTH, require
from fastdwm.importers.imported import averaged_outputs
from fastdwm.models.config import CriticSpec, PolicySpec
from fastdwm.models.nets import Params, n_layers

Tensors = dict[str, Tensor]
"""tensors by name; the functions here take out those that they use, so that the others can be named"""


def indices(tensors: Tensors, prefix: str) -> list[str]:
    """Names PREFIX.I of the layers with weights in a Sequential, in their order."""
    start = f"{prefix}."
    inner = [name.removeprefix(start).removesuffix(".weight") for name in tensors if name.startswith(start)]
    return [f"{start}{i}" for i in sorted({int(name) for name in inner if name.isdecimal() and len(name) < 5})]


def network(tensors: Tensors, names: Sequence[str], where: str) -> Params:
    """Parameters of the MLP with these layers, as in a bundle: w{i} (d_in, d_out), b{i}, and scale{i}, shift{i} if a
    layer norm follows the activation.

    names: of linear layers, NAME.weight (d_out, d_in) and NAME.bias, and of layer norms, whose weight has one axis.
    Raises InputError if a tensor is missing, or the layers do not chain.
    """
    params: Params = {}
    for name in names:
        weight, bias = (_take(tensors, f"{name}.{part}", where) for part in ("weight", "bias"))
        last = n_layers(params) - 1
        if weight.dim() == 1 and last >= 0 and f"scale{last}" not in params:
            params |= {f"scale{last}": weight, f"shift{last}": bias}
            width = params[f"b{last}"].shape[0]
        else:
            require(weight.dim() == 2, f"{where}: {name}.weight: expected two axes, got shape {tuple(weight.shape)}")
            width = params[f"b{last}"].shape[0] if params else weight.shape[1]
            chains = weight.shape[1] == width
            require(chains, f"{where}: {name} takes {weight.shape[1]} numbers, the layer before it gives {width}")
            params |= {f"w{last + 1}": weight.mT.contiguous(), f"b{last + 1}": bias}
            width = weight.shape[0]
        same = bias.shape == (width,) and weight.shape[0] == width
        require(same, f"{where}: {name}: expected {width} biases, got shape {tuple(bias.shape)}")
    count = n_layers(params)
    require(1 < count <= MAX_LAYERS, f"{where}: expected 1 to {MAX_LAYERS - 1} hidden layers, got {max(count - 1, 0)}")
    widest = max(max(params[f"w{i}"].shape) for i in range(count))
    require(widest <= MAX_WIDTH, f"{where}: expected layers up to {MAX_WIDTH} wide, got {widest}")
    norms = sum(name.startswith("scale") for name in params)
    require(norms in (0, count - 1), f"{where}: expected a layer norm after each hidden layer or none, got {norms}")
    return params


def _take(tensors: Tensors, name: str, where: str) -> Tensor:
    """Take out a tensor in float32."""
    require(name in tensors, f"{where}: {name} is missing")
    value = tensors.pop(name)
    floating = value.is_floating_point() and value.dim() in (1, 2) and value.numel() > 0
    require(floating, f"{where}: {name}: expected a matrix or a vector of numbers, got {value.dtype} {value.dim()}-d")
    return value.detach().float().contiguous()


def policy_spec(params: Params, activation: str, output: str) -> PolicySpec:
    """Architecture of a policy with these parameters."""
    return PolicySpec(_hidden(params), activation, "scale0" in params, output)


def critic_spec(params: Params, activation: str) -> CriticSpec:
    """Architecture of critics with these parameters (Q, ...)."""
    return CriticSpec(_hidden(params), activation, "scale0" in params, params["w0"].shape[0])


def _hidden(params: Params) -> tuple[int, ...]:
    return tuple(params[f"w{i}"].shape[-1] for i in range(n_layers(params) - 1))


def ensemble(critics: Sequence[Params], where: str) -> Params | None:
    """Critics (Q, ...) of single ones, several outputs (quantiles) averaged; none if there are none.

    Raises InputError for critics of several shapes.
    """
    if not critics:
        return None
    shapes = {tuple((name, value.shape) for name, value in sorted(params.items())) for params in critics}
    require(len(shapes) == 1, f"{where}: expected critics of one shape, got {len(shapes)} shapes")
    return averaged_outputs({name: torch.stack([params[name] for params in critics]) for name in critics[0]})


def refuse_others(tensors: Tensors, where: str) -> None:
    """Raise InputError, which names one, if tensors are left over: the network is no plain MLP."""
    name = next(iter(tensors), "")
    require(not tensors, f"{where}: {name[:80]!r} is part of no MLP of linear layers")
