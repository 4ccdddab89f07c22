"""Compare an exported file in onnxruntime with the agent that it came from."""

from typing import Any

import numpy as np

from fastdwm.agent import Agent
from fastdwm.bundle import Bundle

N_DECISIONS = 20


def largest_difference(content: bytes, agent: Agent, bundle: Bundle, decides: bool) -> float:
    """Largest difference of an action's coordinate between the file and the agent, on random observations.

    decides: the file is a decision, which gets the agent's noise; else it is the base policy.
    """
    session = open_session(content)
    rng = np.random.default_rng(0)
    mean, std = (bundle.statistics[name].numpy() for name in ("obs_mean", "obs_std"))
    observations = (mean + std * rng.normal(size=(N_DECISIONS, len(mean)))).astype(np.float32)
    if not decides:
        import torch

        (actions,) = session.run(None, {"obs": observations})
        rows = torch.from_numpy(observations)
        expected = agent.policy.act(agent.policy.base.expand(len(rows), -1), rows).clamp(-1, 1).numpy()
        return float(np.abs(actions - expected).max())
    largest, state = 0.0, first_state(session)
    for i, obs in enumerate(observations):
        expected = agent.act(obs)
        arguments = {"obs": obs, "begins": np.array(i == 0), "noise": agent.episodes.noise[:, :, :, 0].numpy(), **state}
        action, state["params"], state["memory"] = session.run(None, arguments)
        largest = max(largest, float(np.abs(action - expected).max()))
    return largest


def open_session(content: bytes) -> Any:
    """A session of onnxruntime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def first_state(session: Any) -> dict[str, np.ndarray]:
    """Zeros for params and memory, which a decision that begins an episode does not read."""
    shapes = {item.name: item.shape for item in session.get_inputs()}
    return {name: np.zeros(shapes[name], np.float32) for name in ("params", "memory")}
