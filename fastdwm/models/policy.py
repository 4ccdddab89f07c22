"""The policy to adapt, the project's MLP or any torch module: its function and the layout of its parameters."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdwm.errors import InputError, first_line
from fastdwm.models.nets import ACTIVATIONS, Params, map_params, mlp
from fastdwm_kernels.layout import Layout, MLPLayout

Apply = Callable[[Params, Tensor], Tensor]


@dataclass(frozen=True)
class MLPFunction:
    """The action in [-1, 1] of an MLP.

    activation: of the hidden layers, "relu" or "tanh".
    output: "tanh", or "clip" for max(-1, min(1, z)), whose gradient is zero at and beyond +-1.
    """

    activation: str = "relu"
    output: str = "tanh"

    def __call__(self, params: Params, obs: Tensor) -> Tensor:
        """obs: (..., N, S) raw observations, or (B, N, S) for B policies with parameters (B, ...).

        Returns (..., N, A).
        """
        return OUTPUTS[self.output](mlp(params, obs, ACTIVATIONS[self.activation]))


OUTPUTS = {"tanh": torch.tanh, "clip": F.hardtanh}
mlp_policy = MLPFunction()
"""the policies that this project trains"""


def unchanged(params: Params) -> Params:
    """The parameters themselves, for a policy that came from no module."""
    return params


@dataclass(frozen=True)
class Policy:
    """A deterministic policy of which every episode adapts its own copy.

    apply(params, obs): actions (B, N, A) in [-1, 1] of B copies, parameters (B, ...), in observations (B, N, S), raw
    units; differentiable in both, and no copy's actions depend on another's.
    layout: names and shapes of one copy's parameters.   base: the unadapted parameters (1, P) in this layout.
    export(params): the parameters (...) of one copy, with the names and shapes of the module that they came from.
    """

    apply: Apply
    layout: Layout
    base: Tensor
    export: Callable[[Params], Params] = unchanged

    @classmethod
    def mlp(cls, params: Params, activation: str = "relu", output: str = "tanh") -> "Policy":
        """An MLP from w0 (S, D), b0 (D,), w1, ..., with hidden layers of any widths.

        It runs fused unless it has layer norms.
        activation, output: as in `MLPFunction`.
        Raises ValueError for an unknown function, or if the shapes of consecutive layers do not match.
        """
        single = map_params(lambda value: _own(value).unsqueeze(0), params)
        layout = MLPLayout.of(single, activation, output)
        return cls(MLPFunction(activation, output), layout, layout.pack(single))

    @classmethod
    def of(cls, module: nn.Module) -> "Policy":
        """The policy of any module that maps observations (N, S) to actions (N, A) in [-1, 1], row by row.

        All its parameters are copied to float32 and adapted; its buffers are copied and stay constant; the module
        itself never changes. nn.Sequential of Linear, ReLU, .., Linear, Tanh becomes `Policy.mlp`, which runs fused; so
        does one with Tanh between all layers, or with Hardtanh, which clips to [-1, 1], at its end.
        Any other module runs by torch.func.functional_call under torch.vmap, which refuses modules that change tensors
        in place or branch on their values.
        Raises InputError for a module without parameters, for one in training mode with buffers, and for a TorchScript
        module, whose copies cannot have parameters of their own.
        """
        layers, function = _linear_layers(module)
        if layers:
            return _from_layers(layers, function, [name for name, _ in module.named_parameters()])
        return _from_module(module)

    @property
    def fused(self) -> bool:
        """Whether the fused operators support it: an MLP (`Policy.mlp`) with hidden layers, without layer norm."""
        return isinstance(self.apply, MLPFunction) and len(self.layout.sizes) > 2 and not self.layout.layer_norm

    def to(self, device: torch.device | str) -> "Policy":
        """A copy of the policy in float32 on a device."""
        return replace(self, base=_own(self.base).to(device, torch.float32))

    def act(self, flat: Tensor, obs: Tensor) -> Tensor:
        """Actions (B, A) of B policies (B, P) in their own states (B, S)."""
        return self.apply(self.layout.views(flat), obs.unsqueeze(1)).squeeze(1)

    def parameters(self, flat: Tensor) -> Params:
        """Copy the parameters flat (P,) of one policy to the CPU, named as in the module that they came from."""
        views = self.layout.views(flat.detach().unsqueeze(0))
        return self.export({name: value[0].cpu().clone() for name, value in views.items()})


def _own(value: Tensor) -> Tensor:
    """A detached copy that autograd accepts, even of a tensor made in inference mode."""
    with torch.inference_mode(False):
        return value.detach().clone()


def _own_float32(value: Tensor) -> Tensor:
    """A detached copy, in float32 if the values are floating-point."""
    return _own(value).float() if value.is_floating_point() else _own(value)


def _linear_layers(module: nn.Module) -> tuple[list[nn.Linear], MLPFunction]:
    """The linear layers and their functions if the module is exactly such an MLP and without hooks, else no layers."""
    parts = list(leaves(module))
    linear, between = parts[::2], [_name(leaf) for leaf in parts[1::2]]
    activation, output = between[0] if between else "", between[-1] if between else ""
    plain = len(parts) % 2 == 0 and len(linear) > 1 and all(type(layer) is nn.Linear for layer in linear)
    plain = plain and activation in ACTIVATIONS and output in OUTPUTS and set(between[:-1]) == {activation}
    plain = plain and not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    plain = plain and all(layer.bias is not None for layer in linear)
    plain = plain and all(a.out_features == b.in_features for a, b in pairwise(linear))
    # Parameters that layers share are adapted as one, which separate copies would not be.
    plain = plain and len(list(module.parameters())) == 2 * len(linear)
    return (linear, MLPFunction(activation, output)) if plain else ([], mlp_policy)


def _name(leaf: nn.Module) -> str:
    """The name in `MLPFunction` of an activation module; empty if it has none there."""
    if type(leaf) is nn.Hardtanh and (leaf.min_val, leaf.max_val) == (-1, 1):
        return "clip"
    return {nn.ReLU: "relu", nn.Tanh: "tanh"}.get(type(leaf), "")


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The modules inside nested Sequentials, in the order of their calls; any other module is a leaf."""
    if type(module) is nn.Sequential:
        for child in module:
            yield from leaves(child)
    else:
        yield module


def _from_layers(layers: list[nn.Linear], function: MLPFunction, names: list[str]) -> Policy:
    ours = [f"{kind}{i}" for i in range(len(layers)) for kind in "wb"]
    params = {f"w{i}": _own_float32(layer.weight.mT) for i, layer in enumerate(layers)}
    params |= {f"b{i}": _own_float32(layer.bias) for i, layer in enumerate(layers)}

    def export(params: Params) -> Params:
        pairs = zip(names, ours, strict=True)
        return {name: params[own].mT.contiguous() if own[0] == "w" else params[own] for name, own in pairs}

    return replace(Policy.mlp(params, function.activation, function.output), export=export)


def _from_module(module: nn.Module) -> Policy:
    params, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("policy: expected a plain nn.Module, got a TorchScript module, which cannot be adapted")
    if not params:
        raise InputError(f"policy: expected a module with parameters to adapt, got {type(module).__name__}")
    if module.training and buffers:
        raise InputError(
            f"policy: expected a module in evaluation mode, for training may change its buffer {next(iter(buffers))}: "
            "call its eval() first"
        )
    body = copy.deepcopy(module).requires_grad_(False)
    buffers = {name: _own_float32(value) for name, value in buffers.items()}

    def one(params: Params, buffers: Params, obs: Tensor) -> Tensor:
        return torch.func.functional_call(body, (params, buffers), (obs,))

    def apply(params: Params, obs: Tensor) -> Tensor:
        constants = map_params(lambda value: value.to(obs.device), buffers)
        try:
            actions = torch.vmap(one, in_dims=(0, None, 0))(params, constants, obs)
        except (RuntimeError, ValueError, TypeError) as error:
            expected = f"a module from (N, {obs.shape[-1]}) to (N, A) that torch.func.functional_call and vmap can run"
            raise InputError(f"policy: expected {expected}, got {first_line(error)}") from error
        if not isinstance(actions, Tensor):
            kind = type(actions).__name__
            raise InputError(f"policy: expected a module that returns a tensor of actions, got one of {kind}")
        if actions.shape[:-1] != obs.shape[:-1]:
            n, shape = obs.shape[1], tuple(actions.shape[1:])
            raise InputError(f"policy: expected actions ({n}, A) of {n} observations, got {shape}")
        return actions

    single = map_params(lambda value: _own_float32(value).unsqueeze(0), params)
    layout = Layout.of(single)
    return Policy(apply, layout, layout.pack(single))
