"""The policies whose actions are recorded: ONNX files, bundles, uniform noise.

A behaviour is a value that goes to every worker as it is; there `start` makes a function of it. Whoever acts draws from
the generator that it is given and from nothing else, so what it does depends on nothing that went before.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastdwm.checks import require
from fastdwm.collect.onnx_file import read_onnx
from fastdwm.data.recordings import ACTION_TOLERANCE
from fastdwm.envs import EnvSpec
from fastdwm.errors import InputError, one_line

# act(obs (S,), generator) -> action (A,)
Act = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Behaviour(Protocol):
    """A policy as it was read."""

    name: str
    sha256: str | None
    """of what it is made of; none for `random`"""
    draws: bool
    """whether it draws its actions itself"""

    def start(self) -> Act:
        """A function that acts, in this process."""


@dataclass(frozen=True)
class Uniform:
    """Every action in [-1, 1] alike."""

    action_dim: int
    name: str = "random"
    sha256: None = None
    draws: bool = True

    def start(self) -> Act:
        return lambda obs, rng: rng.uniform(-1.0, 1.0, self.action_dim)


@dataclass(frozen=True)
class BasePolicy:
    """The base policy of a bundle, without ITPO.   params: as in the bundle."""

    name: str
    sha256: str
    # Not compared: the SHA-256 tells as much, and arrays compared with == have no truth value.
    params: dict[str, np.ndarray] = field(compare=False, repr=False)
    draws: bool = False

    def start(self) -> Act:
        import torch

        from fastdwm.models.policy import mlp_policy

        torch.set_num_threads(1)
        params = {name: torch.from_numpy(values) for name, values in self.params.items()}

        @torch.inference_mode()
        def act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return mlp_policy(params, torch.from_numpy(obs.astype(np.float32))[None])[0].numpy()

        return act


@dataclass(frozen=True)
class OnnxPolicy:
    """A network in an ONNX file.   content: the model with all its weights.   draws: it has an input `noise`.
    sha256: of the file and of those that held its weights."""

    name: str
    sha256: str
    content: bytes
    draws: bool

    def start(self) -> Act:
        session = _open_onnx(self.name, self.content)
        inputs = {item.name: item for item in session.get_inputs()}
        obs_name = next(name for name in inputs if name != "noise")
        noise_dim = inputs["noise"].shape[-1] if self.draws else 0
        outputs = [_output_name(self.name, session)]

        def act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            feed = {obs_name: obs.astype(np.float32)[None]}
            if self.draws:
                feed["noise"] = rng.standard_normal((1, noise_dim), np.float32)
            return session.run(outputs, feed)[0][0]

        return act


def read_behaviour(what: str, env: EnvSpec, sizes: tuple[int, int], trust_env: bool = False) -> Behaviour:
    """The policy that the user names, checked against the simulator.

    what: `random`, an .onnx file, the folder of a bundle or the name of a shipped one.   sizes: of observation and
    action.   Raises InputError for one that cannot be read or does not fit.
    """
    if what == "random":
        return Uniform(sizes[1])
    return _read_onnx(Path(what), *sizes) if what.endswith(".onnx") else _read_bundle(what, env, trust_env)


def checked(behaviour: Behaviour, act: Act, noise: float = 0.0) -> Act:
    """`act` with Gaussian noise, if the policy draws nothing itself, and held to [-1, 1]; float32.

    Beyond rounding, an action outside, or NaN, is no action of this simulator: InputError.
    """
    std = 0.0 if behaviour.draws else noise

    def checked_act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        action = act(obs, rng)
        if not np.abs(action).max() <= 1 + ACTION_TOLERANCE:
            came = np.array2string(action, precision=3, max_line_width=200, threshold=8)
            raise InputError(f"policy: {behaviour.name}: expected actions in [-1, 1], got {came}")
        if std:
            action = action + std * rng.standard_normal(len(action))
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    return checked_act


def _read_bundle(what: str, env: EnvSpec, trust_env: bool) -> BasePolicy:
    """A bundle's base policy; InputError for a bundle of another environment."""
    from fastdwm.bundle import Bundle

    bundle = Bundle.load(what, trust_env)
    family = bundle.task.env.family
    require(family == env.family, f"policy: expected a bundle of {env.family}, {what} is one of {family}")
    params = {name: values.numpy() for name, values in bundle.policy.items()}
    return BasePolicy(Path(what).name, bundle.fingerprint, params)


def _read_onnx(path: Path, obs_dim: int, action_dim: int) -> OnnxPolicy:
    """A policy in an ONNX file, tried once."""
    from hashlib import sha256

    content, files = read_onnx(path)
    session = _open_onnx(path.name, content)
    inputs = {item.name: item for item in session.get_inputs()}
    right = len(inputs.keys() - {"noise"}) == 1 and all(item.type == "tensor(float)" for item in inputs.values())
    expected = "an input of float32 observations and at most one more, noise"
    require(right, f"policy: {path}: expected {expected}, got {_words(session.get_inputs())}")
    if "noise" in inputs:
        shape = inputs["noise"].shape
        fixed = len(shape) == 2 and isinstance(shape[-1], int) and 0 < shape[-1] <= action_dim
        require(fixed, f"policy: {path}: expected noise of shape (batch, up to {action_dim}), got {shape}")
    _check_sizes(path, session, obs_dim, action_dim)
    policy = OnnxPolicy(path.name, sha256(b"".join(files)).hexdigest(), content, "noise" in inputs)
    try:
        action = policy.start()(np.zeros(obs_dim), np.random.default_rng(0))
    except InputError:
        raise
    except Exception as error:  # onnxruntime has a type of its own for each kind of failure
        raise InputError(f"policy: {path}: cannot act on {obs_dim} observations: {one_line(str(error))}") from None
    came = getattr(action, "shape", None), getattr(action, "dtype", None)
    right = came == ((action_dim,), np.float32)
    require(right, f"policy: {path}: expected float32 actions of shape (batch, {action_dim}), got {came} in each row")
    return policy


def _open_onnx(name: str, content: bytes) -> Any:
    """A session of one thread; InputError for what onnxruntime does not take, or where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError("policy: onnxruntime is not installed; pip install 'fastdwm[collect]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # The weights are all in it: onnxruntime has no business with other files.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/dev/null/none")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise InputError(f"policy: {name}: not a model that onnxruntime takes: {one_line(str(error))}") from None


def _check_sizes(path: Path, session: Any, obs_dim: int, action_dim: int) -> None:
    """Raise InputError, with the sizes of both, where the model says that it is of another simulator."""
    own = next(item.shape for item in session.get_inputs() if item.name != "noise")
    output = _output_name(path.name, session)
    theirs = own, next(item.shape for item in session.get_outputs() if item.name == output)
    # Another size than a number may be any.
    sizes = [shape[-1] if shape and isinstance(shape[-1], int) else None for shape in theirs]
    same = all(size in (None, expected) for size, expected in zip(sizes, (obs_dim, action_dim), strict=True))
    came = " and ".join("any" if size is None else str(size) for size in sizes)
    require(same, f"policy: {path}: the simulator has {obs_dim} observations and {action_dim} actions, it has {came}")


def _output_name(name: str, session: Any) -> str:
    """The output `action`, or the only one."""
    names = [item.name for item in session.get_outputs()]
    found = "action" in names or len(names) == 1
    require(found, f"policy: {name}: expected an output named action, got {', '.join(names)}")
    return "action" if "action" in names else names[0]


def _words(items: list) -> str:
    return ", ".join(f"{item.name} {item.type}" for item in items) or "none"
