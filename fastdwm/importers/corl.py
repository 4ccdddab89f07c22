"""CORL: the checkpoint_*.pt of td3_bc.py, iql.py, cql.py, sac_n.py, edac.py and awac.py, a dict of state dicts.

A config.yaml beside it says the discount, and whether observations or rewards were normalised.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdwm.checks import require
from fastdwm.files import read_bytes
from fastdwm.importers.archives import MAX_BYTES, read_checkpoint, state_dict
from fastdwm.importers.imported import Imported
from fastdwm.importers.layers import Tensors, critic_spec, ensemble, indices, network, policy_spec, refuse_others
from fastdwm.models.nets import Params, n_layers

MAX_CONFIG_BYTES = 2**16
EPS = 1e-3
"""added to the standard deviation of observations"""
SPREADS = ("log_std", "_log_std", "log_sigma")
"""beginnings of the names of tensors that only random actions use"""


def read_corl(path: Path, with_critics: bool) -> Imported:
    """Policy and critics of a checkpoint; raises InputError as `read_sb3` does."""
    where = str(path)
    saved = read_checkpoint(read_bytes(path, MAX_BYTES), where)
    known = isinstance(saved, dict) and "actor" in saved
    require(known, f"{where}: expected a checkpoint of CORL, which holds an actor")
    config = _config(path.with_name("config.yaml"))
    actor = state_dict(saved["actor"], f"{where}: actor")
    standardise = _standardise(actor, config, where)
    actor = {name: value for name, value in actor.items() if not name.startswith(SPREADS)}
    params, output = _policy(actor, f"{where}: actor")
    refuse_others(actor, f"{where}: actor")
    result = Imported(params, policy_spec(params, "relu", output), standardise=standardise)
    if with_critics:
        result = _with_critics(result, saved, config, where)
    if result.standardise is not None:
        note = "observations are standardised with mean and standard deviation of --dataset: the file does not hold "
        result = result.noting(note + "those that it was trained with")
    return result


def _config(path: Path) -> dict[str, str]:
    """The settings, as text, of the lines NAME: VALUE of a config.yaml; empty without the file."""
    if not path.exists():
        return {}
    text = read_bytes(path, MAX_CONFIG_BYTES).decode("utf-8", "replace")
    return {name: value.strip() for name, value in re.findall(r"^(\w+):(.*)$", text, re.MULTILINE)}


def _policy(actor: Tensors, where: str) -> tuple[Params, str]:
    """Parameters of the deterministic policy, and the function of its output."""
    kinds = {name.split(".")[0] for name in actor}
    if "trunk" in kinds:
        return network(actor, [*indices(actor, "trunk"), "mu"], where), "tanh"
    if "base_network" in kinds:
        params = network(actor, indices(actor, "base_network"), where)
        return _first_half(params, where), "tanh"
    if "_mlp" in kinds:
        return network(actor, indices(actor, "_mlp"), where), "clip"
    prefix = "net.net" if any(name.startswith("net.net.") for name in actor) else "net"
    return network(actor, indices(actor, prefix), where), "tanh"


def _first_half(params: Params, where: str) -> Params:
    """The network whose outputs are the first half, the means, of means and log standard deviations."""
    last = n_layers(params) - 1
    size = params[f"b{last}"].shape[0]
    require(size % 2 == 0, f"{where}: base_network: expected means and standard deviations, got {size} outputs")
    w, b = (params[f"{kind}{last}"][..., : size // 2].contiguous() for kind in "wb")
    return params | {f"w{last}": w, f"b{last}": b}


def _standardise(actor: Tensors, config: dict[str, str], where: str) -> float | None:
    """EPS if the observations were standardised: AWAC always does so, SAC-N and EDAC never, for others config.yaml says
    it."""
    kinds = {name.split(".")[0] for name in actor}
    if "_mlp" in kinds or "trunk" in kinds:
        return EPS if "_mlp" in kinds else None
    choice = config.get("normalize", "")
    known = choice in ("true", "false")
    require(known, f"{where}: expected config.yaml beside it, whose `normalize` says whether observations were scaled")
    return EPS if choice == "true" else None


def _with_critics(policy: Imported, saved: dict[str, Any], config: dict[str, str], where: str) -> Imported:
    """The policy with the critics of the checkpoint, if it has any."""
    groups = ("critic_1", "critic_2"), ("critic1", "critic2"), ("qf",), ("critic",)
    group = next((names for names in groups if all(name in saved for name in names)), ())
    tensors = {name: state_dict(saved[name], f"{where}: {name}") for name in group}
    if group == ("critic",):
        critics = _vectorised(tensors["critic"], f"{where}: critic")
    elif group == ("qf",):
        qf, place = tensors["qf"], f"{where}: qf"
        critics = ensemble([network(qf, indices(qf, f"q{i}.net"), place) for i in (1, 2)], place)
    else:
        critics = ensemble([_single(values, f"{where}: {name}") for name, values in tensors.items()], where)
    for name, left in tensors.items():
        refuse_others(left, f"{where}: {name}")
    if critics is None:
        return policy
    if config.get("normalize_reward") == "true":
        return policy.noting("its rewards were scaled, so its critics are left out")
    discount = config.get("discount", config.get("gamma"))
    soft = group == ("critic",) or config.get("backup_entropy") == "true"
    discount = None if discount is None else _number(discount, where)
    return policy.with_critics(critics, critic_spec(critics, "relu"), discount, soft)


def _single(tensors: Tensors, where: str) -> Params:
    """Parameters of one critic, a Sequential under the name net, network or _mlp."""
    prefix = next(iter(tensors), "").split(".")[0]
    return network(tensors, indices(tensors, prefix), where)


def _vectorised(tensors: Tensors, where: str) -> Params | None:
    """Critics of layers with weights (Q, d_in, d_out) and biases (Q, 1, d_out)."""
    names = indices(tensors, "critic")
    pairs = [(tensors.pop(f"{name}.weight", None), tensors.pop(f"{name}.bias", None)) for name in names]
    shaped = all(isinstance(x, Tensor) and x.dim() == 3 for pair in pairs for x in pair)
    copies = {len(x) for pair in pairs for x in pair} if shaped else set()
    require(len(copies) == 1, f"{where}: expected layers of weights (Q, d_in, d_out) and biases (Q, 1, d_out)")

    def single(i: int) -> Params:
        layers = {f"{name}.weight": w[i].mT for name, (w, _) in zip(names, pairs, strict=True)}
        layers |= {f"{name}.bias": b[i].flatten() for name, (_, b) in zip(names, pairs, strict=True)}
        return network(layers, names, where)

    return ensemble([single(i) for i in range(copies.pop())], where)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    require(0 < value < 1, f"{where}: config.yaml: discount: expected a number in (0, 1), got {text[:40]!r}")
    return value
