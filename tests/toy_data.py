"""A small dataset whose dynamics are known."""

from pathlib import Path

import h5py
import numpy as np

NETS = ("rebrac", "diffusion", "meanflow", "mlp", "reward")


def filled(values, size: int) -> np.ndarray:
    """Rows (N, size) filled with the values (N,), float32."""
    return np.repeat(np.asarray(values, np.float32)[:, None], size, axis=1)


def training_flags(updates: int, batch_size: int = 32, hidden: int = 16) -> list[str]:
    """Flags of `train` for few updates of small networks."""
    flags = f"--NET.updates={updates} --NET.batch-size={batch_size} --NET.hidden {hidden} {hidden}"
    return [flag.replace("NET", net) for net in NETS for flag in flags.split()]


def write_dataset(path: Path, n_episodes: int = 20, length: int = 40) -> Path:
    """Write a D4RL file of random hopper-sized transitions; returns its path.

    s' = s + 0.1 (first action) in every coordinate, r = s_0. Hopper does not repeat them, so `train` needs --trust-env.
    """
    rng, n = np.random.default_rng(0), n_episodes * length
    action = rng.uniform(-1, 1, (n, 3)).astype(np.float32)
    step = 0.1 * action[:, :1].reshape(-1, length, 1)
    start = rng.normal(size=(n_episodes, 1, 11)).astype(np.float32)
    obs = (start + step.cumsum(1) - step).reshape(n, 11)
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"], file["rewards"] = obs, action, obs[:, 0]
        file["next_observations"] = obs + 0.1 * action[:, :1]
        file["terminals"], file["timeouts"] = np.zeros(n, bool), np.arange(n) % length == length - 1
    return path
