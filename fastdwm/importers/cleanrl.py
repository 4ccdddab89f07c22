"""cleanrl: the .cleanrl_model of td3_continuous_action.py and ddpg_continuous_action.py, a tuple of state dicts.

The policy's action_scale and action_bias map [-1, 1] to the environment's box of actions. The critics take actions in
that box, so both are folded into their first layer.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from fastdwm.checks import require
from fastdwm.files import read_bytes
from fastdwm.importers.archives import MAX_BYTES, read_checkpoint, state_dict
from fastdwm.importers.imported import Imported, scaled_inputs
from fastdwm.importers.layers import Tensors, critic_spec, ensemble, network, policy_spec, refuse_others

BOX = {"action_scale": 1.0, "action_bias": 0.0}
"""tensors of the box of actions, with their values for [-1, 1]"""


def read_cleanrl(path: Path, with_critics: bool) -> Imported:
    """Policy and critics of a model; raises InputError as `read_sb3` does."""
    where = str(path)
    saved = read_checkpoint(read_bytes(path, MAX_BYTES), where)
    several = isinstance(saved, tuple | list) and len(saved) > 0
    require(several, f"{where}: expected a tuple of state dicts, of the policy and its critics")
    policy, *critics = (state_dict(value, where) for value in saved)
    box = {name: policy.pop(name, None) for name in BOX}
    params = network(policy, [*_numbered(policy), "fc_mu"], where)
    refuse_others(policy, where)
    result = Imported(params, policy_spec(params, "relu", "tanh"))
    if not with_critics or not critics:
        return result
    ensembled = ensemble([network(critic, _numbered(critic), where) for critic in critics], where)
    for critic in critics:
        refuse_others(critic, where)
    obs_dim, action_dim = result.sizes
    scale, bias = (_numbers(box[name], fill, action_dim, where) for name, fill in BOX.items())
    result = result.with_critics(ensembled, critic_spec(ensembled, "relu"), None, soft=False)
    # The environment's action scale a + bias is (a - shift) / width.
    shift, width = np.append(np.zeros(obs_dim), -bias / scale), np.append(np.ones(obs_dim), 1 / scale)
    return replace(result, critics=scaled_inputs(ensembled, shift, width))


def _numbered(tensors: Tensors) -> list[str]:
    """The layers fc1, fc2, ... in their order."""
    count = sum(name.startswith("fc") and name[2:].removesuffix(".weight").isdecimal() for name in tensors)
    return [f"fc{i + 1}" for i in range(count)]


def _numbers(value: Tensor | None, fill: float, size: int, where: str) -> np.ndarray:
    """A vector (A,) in float64; `fill` if there is none."""
    array = np.full(1, fill) if value is None else value.double().flatten().numpy()
    array = np.full(size, array[0]) if array.size == 1 else array
    fits = array.shape == (size,) and bool(np.isfinite(array).all()) and (fill == 0 or bool((array > 0).all()))
    require(fits, f"{where}: expected action_scale and action_bias of {size} actions")
    return array
