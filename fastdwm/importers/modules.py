"""A policy and critics that are torch modules of the user's own."""

from collections.abc import Sequence

from torch import nn

from fastdwm.checks import require
from fastdwm.errors import InputError
from fastdwm.importers.imported import Imported
from fastdwm.importers.layers import critic_spec, ensemble, network, policy_spec
from fastdwm.models.nets import Params
from fastdwm.models.policy import MLPFunction, Policy, leaves

ACTIVATIONS = {nn.ReLU: "relu", nn.Tanh: "tanh"}


def from_modules(policy: nn.Module, critics: Sequence[nn.Module] = (), discount: float | None = None) -> Imported:
    """The policy, and critics of observation and action side by side, as a bundle holds them.

    policy: nn.Sequential of Linear, ReLU or Tanh, ..., Linear, and Tanh or Hardtanh.
    critics: each nn.Sequential of Linear, ReLU or Tanh[, LayerNorm], ..., Linear, with one output.
    discount: of the critics.
    Raises InputError for other modules, which only an `Agent` takes.
    """
    own = Policy.of(policy)
    expected = "an nn.Sequential of Linear, ReLU or Tanh, ..., Linear, and Tanh or Hardtanh; an Agent takes any module"
    require(isinstance(own.apply, MLPFunction), f"policy: expected {expected}, got {type(policy).__name__}")
    params = {name: value[0] for name, value in own.layout.views(own.base).items()}
    result = Imported(params, policy_spec(params, own.apply.activation, own.apply.output))
    if not critics:
        return result
    networks, activations = zip(*(_critic(module) for module in critics), strict=True)
    require(len(set(activations)) == 1, f"critics: expected one activation for all, got {', '.join(activations)}")
    stacked = ensemble(networks, "critics")
    return result.with_critics(stacked, critic_spec(stacked, activations[0]), discount, soft=False)


def _critic(module: nn.Module) -> tuple[Params, str]:
    """Parameters of a critic, and the activation of its hidden layers."""
    kinds, tensors, names = [], {}, []
    for i, leaf in enumerate(leaves(module)):
        kinds.append(type(leaf))
        tensors |= {f"{i}.{name}": value for name, value in leaf.named_parameters()}
        names += [str(i)] * isinstance(leaf, nn.Linear | nn.LayerNorm)
    activation = kinds[1] if len(kinds) > 1 else None
    # A layer norm belongs to the activation before it.
    plain = [kind for i, kind in enumerate(kinds) if kind is not nn.LayerNorm or kinds[i - 1] is not activation]
    n_hidden = len(plain) // 2
    right = activation in ACTIVATIONS and plain == [nn.Linear, activation] * n_hidden + [nn.Linear]
    expected = "an nn.Sequential of Linear, ReLU or Tanh, perhaps LayerNorm, ..., Linear"
    if not right:
        raise InputError(f"critics: expected {expected}, got {', '.join(kind.__name__ for kind in kinds)[:120]}")
    params = network(tensors, names, "critics")
    return params, ACTIVATIONS[activation]
