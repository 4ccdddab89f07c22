"""d3rlpy 2: the .d3 of `algo.save`, or the .pt of `algo.save_model` with the params.json of its folder beside it.

Scalers of observations are folded into the first layers.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fastdwm.checks import require
from fastdwm.errors import InputError
from fastdwm.files import parse_json, read_bytes, read_json
from fastdwm.importers.archives import MAX_BYTES, read_checkpoint, state_dict
from fastdwm.importers.imported import Imported
from fastdwm.importers.layers import Tensors, critic_spec, ensemble, indices, network, policy_spec, refuse_others
from fastdwm.importers.pickles import read_pickle
from fastdwm.models.nets import Params

MAX_CONFIG_BYTES = 2**22
DISCRETE = "discrete_"
"""beginning of the types of algorithms with discrete actions"""


def read_d3rlpy(path: Path, with_critics: bool) -> Imported:
    """Policy and critics of an algorithm; raises InputError as `read_sb3` does."""
    where = str(path)
    content, config = _read(path)
    kind, params = config["type"], config["params"]
    require(not kind.startswith(DISCRETE), f"{where}: expected an algorithm with continuous actions, got {kind:.40}")
    saved = read_checkpoint(content, where)
    name = "imitator" if isinstance(saved, dict) and "imitator" in saved else "policy"
    require(isinstance(saved, dict) and name in saved, f"{where}: expected an algorithm of d3rlpy, which has a policy")
    place = f"{where}: {name}"
    policy = {k: v for k, v in state_dict(saved[name], place).items() if not k.startswith("_logstd")}
    encoder = params.get("actor_encoder_factory", params.get("encoder_factory"))
    activation = _activation(encoder, place)
    weights = _head(policy, "", place)
    refuse_others(policy, place)
    result = Imported(weights, policy_spec(weights, activation, "tanh"))
    if with_critics and "q_funcs" in saved:
        result = _with_critics(result, state_dict(saved["q_funcs"], f"{where}: q_funcs"), kind, params, where)
    return _scaled(result, params, where)


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The checkpoint of torch in the file, and the algorithm's type and params."""
    content, beside = read_bytes(path, MAX_BYTES), path.with_name("params.json")
    if content[:2] == b"PK":
        require(beside.exists(), f"{path}: expected params.json beside it, as d3rlpy writes it into a run's folder")
        config = read_json(beside, MAX_CONFIG_BYTES)
    else:
        saved = read_pickle(content, str(path))
        known = isinstance(saved, dict) and [type(saved.get(name)) for name in ("torch", "config")] == [bytes, str]
        require(known, f"{path}: expected an algorithm of d3rlpy, which holds torch and config")
        content, config = saved["torch"], parse_json(saved["config"].encode("utf-8", "replace"), path)
    config = config.get("config", config) if isinstance(config, dict) else None
    known = isinstance(config, dict) and isinstance(config.get("type"), str) and isinstance(config.get("params"), dict)
    require(known, f"{path}: expected the config of an algorithm of d3rlpy, with type and params")
    return content, config


def _head(tensors: Tensors, prefix: str, where: str) -> Params:
    """The network of an encoder and the linear layer after it."""
    last = f"{prefix}_mu" if f"{prefix}_mu.weight" in tensors else f"{prefix}_fc"
    return network(tensors, [*indices(tensors, f"{prefix}_encoder._layers"), last], where)


def _activation(encoder: Any, where: str) -> str:
    """The hidden activation of an encoder's config."""
    params = encoder.get("params") if isinstance(encoder, dict) else None
    params = params if isinstance(params, dict) else {}
    name = params.get("activation")
    require(name in ("relu", "tanh"), f"{where}: expected an encoder with relu or tanh, got {name!r:.40}")
    last = params.get("exclude_last_activation") or params.get("last_activation") not in (None, name)
    require(not last, f"{where}: expected an encoder with the same activation after every layer")
    return name


def _with_critics(policy: Imported, tensors: Tensors, kind: str, params: dict[str, Any], where: str) -> Imported:
    """The policy with its critics; without them if their rewards were scaled."""
    if _type(params, "reward_scaler") != "none":
        return policy.noting("its rewards were scaled, so its critics are left out")
    place = f"{where}: q_funcs"
    copies = sorted({int(name.split(".")[0]) for name in tensors if name.split(".")[0].isdecimal()} & set(range(1000)))
    critics = ensemble([_head(tensors, f"{i}.", place) for i in copies], place)
    refuse_others(tensors, place)
    gamma = params.get("gamma")
    valid = isinstance(gamma, float) and 0 < gamma < 1
    require(valid, f"{where}: gamma: expected a number in (0, 1), got {gamma!r:.40}")
    soft = kind == "sac" or params.get("soft_q_backup") is True
    spec = critic_spec(critics, _activation(params.get("critic_encoder_factory"), place))
    return policy.with_critics(critics, spec, gamma, soft)


def _type(params: dict[str, Any], name: str) -> str:
    """The type of a scaler; "none" without one."""
    scaler = params.get(name)
    return str(scaler.get("type", "none"))[:40] if isinstance(scaler, dict) else "none"


def _scaled(model: Imported, params: dict[str, Any], where: str) -> Imported:
    """The model for raw observations; raises InputError for scalers that cannot be folded into the networks."""
    obs_dim, action_dim = model.sizes
    kind = _type(params, "action_scaler")
    if kind != "none":
        low, high = _vectors(params, "action_scaler", ("minimum", "maximum"), action_dim, where)
        unit = kind == "min_max" and bool((abs(low + 1) + abs(high - 1) < 1e-6).all())
        require(unit, f"{where}: action_scaler: expected actions from -1 to 1, got {kind} from {low} to {high}")
    kind = _type(params, "observation_scaler")
    if kind == "none":
        return model
    require(kind in ("standard", "min_max"), f"{where}: observation_scaler: expected standard or min_max, got {kind}")
    if kind == "min_max":
        low, high = _vectors(params, "observation_scaler", ("minimum", "maximum"), obs_dim, where)
        shift, scale = (low + high) / 2, (high - low) / 2
    else:
        shift, std = _vectors(params, "observation_scaler", ("mean", "std"), obs_dim, where)
        scale = std + _vectors(params, "observation_scaler", ("eps",), None, where)[0]
    try:
        return model.normalised(shift, scale)
    except InputError as error:
        raise InputError(f"{where}: observation_scaler: {error}") from None


def _vectors(params: dict, name: str, keys: tuple[str, ...], size: int | None, where: str) -> list[np.ndarray]:
    """Numbers of a scaler, in float64: vectors of that size, or single numbers for none."""
    values = params[name].get("params")
    try:
        arrays = [np.array(values[key], dtype=np.float64) for key in keys]
        fits = all(array.shape == (() if size is None else (size,)) for array in arrays)
    except (KeyError, TypeError, ValueError):
        fits = False
    require(fits, f"{where}: {name}: expected {' and '.join(keys)} of {size or 1} numbers")
    return arrays
