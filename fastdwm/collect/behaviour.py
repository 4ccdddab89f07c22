"""Policies whose actions are recorded: ONNX files, base policies of bundles, uniform random actions.

A behaviour is pickled to every worker, where `start` makes a function of it. The function draws random numbers only
from the generator in its arguments, so its actions do not depend on earlier calls.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastdwm.checks import require
from fastdwm.data.recordings import ACTION_TOLERANCE
from fastdwm.envs import EnvSpec, Trust
from fastdwm.errors import InputError, one_line
from fastdwm.importers.onnx_file import read_onnx

if TYPE_CHECKING:
    from fastdwm.models.policy import MLPFunction

# act(obs (S,), generator) -> action (A,)
Act = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Behaviour(Protocol):
    """A policy that can be sent to a worker."""

    name: str
    sha256: str | None
    """hash of the file's or the bundle's content; none for `random`"""
    draws: bool
    """whether its actions are random by themselves, so that no noise is added"""

    def start(self) -> Act:
        """Load the policy in this process and return the function that acts."""


@dataclass(frozen=True)
class Uniform:
    """Draws actions uniformly from [-1, 1]."""

    action_dim: int
    name: str = "random"
    sha256: None = None
    draws: bool = True

    def start(self) -> Act:
        return lambda obs, rng: rng.uniform(-1.0, 1.0, self.action_dim)


@dataclass(frozen=True)
class BasePolicy:
    """The base policy of a bundle, without ITPO.   params: as in the bundle.   function: from them to actions."""

    name: str
    sha256: str
    # Not compared: the SHA-256 stands for it, and == of arrays has no truth value.
    params: dict[str, np.ndarray] = field(compare=False, repr=False)
    function: "MLPFunction" = field(compare=False, repr=False)
    draws: bool = False

    def start(self) -> Act:
        import torch

        torch.set_num_threads(1)
        params = {name: torch.from_numpy(values) for name, values in self.params.items()}

        @torch.inference_mode()
        def act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return self.function(params, torch.from_numpy(obs.astype(np.float32))[None])[0].numpy()

        return act


@dataclass(frozen=True)
class OnnxPolicy:
    """A network in an ONNX file.   content: the model with its weights.   draws: whether its input `noise` gets random
    numbers, if it has one; otherwise zeros.   sha256: hash of the file and of the files of its external weights."""

    name: str
    sha256: str
    content: bytes
    draws: bool

    def start(self) -> Act:
        session = _open_onnx(self.name, self.content)
        inputs = {item.name: item for item in session.get_inputs()}
        obs_name = next(name for name in inputs if name != "noise")
        noise = np.zeros((1, inputs["noise"].shape[-1]), np.float32) if "noise" in inputs else None
        outputs = [_output_name(self.name, session)]

        def act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            feed = {obs_name: obs.astype(np.float32)[None]}
            if noise is not None:
                feed["noise"] = rng.standard_normal(noise.shape, np.float32) if self.draws else noise
            return session.run(outputs, feed)[0][0]

        return act


def read_behaviour(name: str, env: EnvSpec, sizes: tuple[int, int], trust_env: Trust = False) -> Behaviour:
    """Read a policy and check that it fits the simulator.

    name: `random`, an .onnx file, the folder of a bundle or the name of a shipped one.   sizes: (S, A).
    Raises InputError for a policy that cannot be read or does not fit.
    """
    if name == "random":
        return Uniform(sizes[1])
    return _read_onnx(Path(name), *sizes) if name.endswith(".onnx") else _read_bundle(name, env, trust_env)


def read_walker(name: str, sizes: tuple[int, int]) -> OnnxPolicy:
    """Read the ant's policy that is steered through a maze; it does not draw its actions, but takes the likeliest.

    sizes: of its observation and action.   Raises InputError for a policy that cannot be read or has other sizes.
    """
    require(name.endswith(".onnx"), f"policy: expected an .onnx file of an ant's policy to steer, got {name}")
    return replace(_read_onnx(Path(name), *sizes), draws=False)


def checked(behaviour: Behaviour, act: Act, noise: float = 0.0) -> Act:
    """`act`, plus Gaussian noise unless the policy draws its actions itself, clipped to [-1, 1]; float32.

    The function raises InputError if the policy's own action is NaN or outside [-1, 1] by more than rounding.
    """
    std = 0.0 if behaviour.draws else noise

    def checked_act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        action = act(obs, rng)
        if not np.abs(action).max() <= 1 + ACTION_TOLERANCE:
            text = np.array2string(action, precision=3, max_line_width=200, threshold=8)
            raise InputError(f"policy: {behaviour.name}: expected actions in [-1, 1], got {text}")
        if std:
            action = action + std * rng.standard_normal(len(action))
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    return checked_act


def _read_bundle(name: str, env: EnvSpec, trust_env: Trust) -> BasePolicy:
    """The base policy of a bundle; InputError for a bundle of another simulator."""
    from fastdwm.bundle import Bundle

    bundle = Bundle.load(name, trust_env)
    family = bundle.task.env.family
    require(family == env.family, f"policy: expected a bundle of {env.family}, {name} is one of {family}")
    params = {name: values.numpy() for name, values in bundle.policy.items()}
    return BasePolicy(Path(name).name, bundle.fingerprint, params, bundle.policy_function)


def _read_onnx(path: Path, obs_dim: int, action_dim: int) -> OnnxPolicy:
    """The policy in an ONNX file, after one trial call."""
    from hashlib import sha256

    content, files = read_onnx(path)
    session = _open_onnx(path.name, content)
    inputs = {item.name: item for item in session.get_inputs()}
    valid = len(inputs.keys() - {"noise"}) == 1 and all(item.type == "tensor(float)" for item in inputs.values())
    expected = "an input of float32 observations and at most one more, noise"
    require(valid, f"policy: {path}: expected {expected}, got {_words(session.get_inputs())}")
    if "noise" in inputs:
        shape = inputs["noise"].shape
        valid = len(shape) == 2 and isinstance(shape[-1], int) and 0 < shape[-1] <= action_dim
        require(valid, f"policy: {path}: expected noise of shape (batch, up to {action_dim}), got {shape}")
    _check_sizes(path, session, obs_dim, action_dim)
    policy = OnnxPolicy(path.name, sha256(b"".join(files)).hexdigest(), content, "noise" in inputs)
    try:
        action = policy.start()(np.zeros(obs_dim), np.random.default_rng(0))
    except InputError:
        raise
    except Exception as error:  # onnxruntime has a type of its own for each kind of failure
        raise InputError(f"policy: {path}: cannot act on {obs_dim} observations: {one_line(str(error))}") from None
    actual = getattr(action, "shape", None), getattr(action, "dtype", None)
    same = actual == ((action_dim,), np.float32)
    require(same, f"policy: {path}: expected float32 actions of shape (batch, {action_dim}), got {actual} in each row")
    return policy


def _open_onnx(name: str, content: bytes) -> Any:
    """A session with one thread; InputError if onnxruntime is not installed or does not accept the model."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError("policy: onnxruntime is not installed; pip install 'fastdwm[collect]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # The content holds all weights, so onnxruntime must not read other files.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/dev/null/none")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise InputError(f"policy: {name}: not a model that onnxruntime takes: {one_line(str(error))}") from None


def _check_sizes(path: Path, session: Any, obs_dim: int, action_dim: int) -> None:
    """Raise InputError if the sizes that the model declares are not those of the simulator."""
    obs_shape = next(item.shape for item in session.get_inputs() if item.name != "noise")
    output = _output_name(path.name, session)
    action_shape = next(item.shape for item in session.get_outputs() if item.name == output)
    # A size that is not a number may have any value.
    sizes = [shape[-1] if shape and isinstance(shape[-1], int) else None for shape in (obs_shape, action_shape)]
    same = all(size in (None, expected) for size, expected in zip(sizes, (obs_dim, action_dim), strict=True))
    own = " and ".join("any" if size is None else str(size) for size in sizes)
    require(same, f"policy: {path}: the simulator has {obs_dim} observations and {action_dim} actions, it has {own}")


def _output_name(name: str, session: Any) -> str:
    """Name of the output `action`, or of the only output."""
    names = [item.name for item in session.get_outputs()]
    clear = "action" in names or len(names) == 1
    require(clear, f"policy: {name}: expected an output named action, got {', '.join(names)}")
    return "action" if "action" in names else names[0]


def _words(items: list) -> str:
    return ", ".join(f"{item.name} {item.type}" for item in items) or "none"
