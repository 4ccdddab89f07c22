"""Stable-Baselines3 and sb3-contrib: the .zip of `model.save`, of SAC, TD3, DDPG, TQC, PPO and A2C.

VecNormalize's statistics, if a file of them lies beside the model, are folded into the first layers.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from fastdwm.checks import require
from fastdwm.files import parse_json, read_bytes
from fastdwm.importers.archives import MAX_BYTES, open_zip, read_checkpoint, state_dict
from fastdwm.importers.imported import Imported, scaled_outputs
from fastdwm.importers.layers import (
    Tensors,
    critic_spec,
    ensemble,
    indices,
    network,
    policy_spec,
    refuse_others,
)
from fastdwm.importers.pickles import Instance, as_array, read_pickle
from fastdwm.models.nets import n_layers

MAX_STATISTICS_BYTES = 2**22
UNUSED = ("actor_target.", "critic_target.", "actor.log_std", "log_std", "value_net.", "mlp_extractor.value_net.")
"""beginnings of the names of tensors that the deterministic policy and its critics do not use"""


def read_sb3(path: Path, with_critics: bool) -> Imported:
    """Policy and critics of a model.

    with_critics: False leaves the critics unread.
    Raises InputError for another file, and for a network that is no MLP with ReLU or tanh.
    """
    where = str(path)
    entries = open_zip(read_bytes(path, MAX_BYTES), where)
    named = "policy.pth" in entries and "data" in entries
    require(named, f"{where}: expected a model of Stable-Baselines3, which holds policy.pth and data")
    data = parse_json(entries["data"], path, printable=False)
    require(isinstance(data, dict), f"{where}: data: expected a JSON object")
    require(data.get("use_sde") is not True, f"{where}: use_sde: state-dependent exploration is not supported")
    tensors = state_dict(read_checkpoint(entries["policy.pth"], f"{where}: policy.pth"), f"{where}: policy.pth")
    tensors = {name: value for name, value in tensors.items() if not name.startswith(UNUSED)}
    result = _networks(tensors, data, where, with_critics)
    beside = [name for name in ("vecnormalize.pkl", "vec_normalize.pkl") if path.with_name(name).exists()]
    return _normalised(result, path.with_name(beside[0])) if beside else result


def _networks(tensors: Tensors, data: dict[str, Any], where: str, with_critics: bool) -> Imported:
    """Policy and critics from the tensors of policy.pth without UNUSED ones."""
    squashed = any(name.startswith("actor.") for name in tensors)
    activation = _activation(data, where, default="relu" if squashed else "tanh")
    if squashed:
        hidden = indices(tensors, "actor.latent_pi")
        params = network(tensors, [*hidden, "actor.mu"] if hidden else indices(tensors, "actor.mu"), where)
    else:
        params = network(tensors, [*indices(tensors, "mlp_extractor.policy_net"), "action_net"], where)
        params = scaled_outputs(params, *_box(data, params[f"b{n_layers(params) - 1}"].shape[0], where))
    result = Imported(params, policy_spec(params, activation, "tanh" if squashed else "clip"))
    if not with_critics:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("critic.")}
    count = len({name.split(".")[1] for name in tensors if name.startswith("critic.qf")})
    critics = ensemble([network(tensors, indices(tensors, f"critic.qf{i}"), where) for i in range(count)], where)
    refuse_others(tensors, where)
    if critics is None:
        return result
    soft = data.get("ent_coef") not in (None, 0)
    return result.with_critics(critics, critic_spec(critics, activation), _discount(data, where), soft)


def _discount(data: dict[str, Any], where: str) -> float:
    gamma = data.get("gamma")
    valid = isinstance(gamma, float) and 0 < gamma < 1
    require(valid, f"{where}: data: gamma: expected a discount in (0, 1), got {gamma!r:.40}")
    return gamma


def _activation(data: dict[str, Any], where: str, default: str) -> str:
    """The hidden activation, from the text beside the serialised `policy_kwargs`."""
    kwargs = data.get("policy_kwargs")
    name = kwargs.get("activation_fn") if isinstance(kwargs, dict) else None
    if name is None:
        return default
    names = {f"<class 'torch.nn.modules.activation.{kind}'>": kind.lower() for kind in ("ReLU", "Tanh")}
    require(name in names, f"{where}: activation_fn: expected ReLU or Tanh, got {name!r:.80}")
    return names[name]


def _box(data: dict[str, Any], action_dim: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Factor and shift (A,) from an action in the units of the environment to [-1, 1]."""
    space = data.get("action_space")
    ends = [space.get(name) if isinstance(space, dict) else None for name in ("low", "high")]
    try:
        low, high = (np.array([float(x) for x in end.strip("[]").split()]) for end in ends)
        valid = low.shape == high.shape == (action_dim,) and bool((low < high).all() and np.isfinite(high - low).all())
    except (AttributeError, ValueError):
        valid = False
    require(valid, f"{where}: data: action_space: expected a box of {action_dim} actions, got {ends!r:.120}")
    return 2 / (high - low), -(high + low) / (high - low)


def _normalised(model: Imported, path: Path) -> Imported:
    """The model for raw observations, by the statistics of a VecNormalize."""
    where = str(path)
    saved = read_pickle(read_bytes(path, MAX_STATISTICS_BYTES), where)
    known = isinstance(saved, Instance) and saved.name.endswith(".VecNormalize")
    require(known, f"{where}: expected the statistics of a VecNormalize")
    if saved.get("norm_reward") is not False and model.critics is not None:
        note = "VecNormalize scaled its rewards, so its critics are left out"
        model = Imported(model.policy, model.policy_spec).noting(note)
    if saved.get("norm_obs") is False:
        return model
    statistics, clip = saved.get("obs_rms"), float(as_array(saved.get("clip_obs"), f"{where}: clip_obs"))
    require(isinstance(statistics, Instance), f"{where}: obs_rms: expected statistics of flat observations")
    mean, var = (as_array(statistics.get(name), f"{where}: {name}") for name in ("mean", "var"))
    epsilon = float(as_array(saved.get("epsilon"), f"{where}: epsilon"))
    require(math.isfinite(epsilon) and bool((var + epsilon > 0).all()), f"{where}: var: expected positive numbers")
    note = f"{path.name}'s normalisation is part of the first layers, without its clipping at {clip:g}"
    return model.normalised(mean, np.sqrt(var + epsilon)).noting(note)
