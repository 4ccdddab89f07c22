"""Compare imported d3rlpy policies and critics with d3rlpy itself, in an environment that has d3rlpy and fastdwm.

    python bench/d3rlpy_equality.py

Prints, for each algorithm and scaler, the largest difference of actions and of critic values on 1,000 observations.
"""

import tempfile
from pathlib import Path

import d3rlpy
import numpy as np
import torch
from d3rlpy.models import QRQFunctionFactory, VectorEncoderFactory
from d3rlpy.preprocessing import MinMaxActionScaler, MinMaxObservationScaler, StandardObservationScaler

from fastdwm.importers.read import read_policy

OBS_DIM, ACTION_DIM, N = 11, 3, 1000
MEAN, STD = np.linspace(-1, 1, OBS_DIM), np.linspace(0.5, 2, OBS_DIM)
TANH = VectorEncoderFactory([32, 16], activation="tanh", use_layer_norm=True)
CASES = {
    "TD3PlusBC": {"observation_scaler": StandardObservationScaler(mean=MEAN, std=STD)},
    "IQL": {},
    "CQL": {"observation_scaler": MinMaxObservationScaler(minimum=MEAN - 3, maximum=MEAN + 4)},
    "AWAC": {},
    "ReBRAC": {"actor_encoder_factory": TANH, "critic_encoder_factory": TANH},
    "SAC": {"action_scaler": MinMaxActionScaler(minimum=-np.ones(ACTION_DIM), maximum=np.ones(ACTION_DIM))},
    "TD3": {"q_func_factory": QRQFunctionFactory(n_quantiles=7)},
    "DDPG": {},
    "BC": {},
}


def compare(name: str, settings: dict, folder: Path) -> tuple[float, float | None]:
    """Largest difference of actions, and of the least critic's value; none without critics."""
    algorithm = getattr(d3rlpy.algos, f"{name}Config")(**settings).create()
    algorithm.create_impl((OBS_DIM,), ACTION_DIM)
    rng, path = np.random.default_rng(0), folder / f"{name}.d3"
    obs = rng.normal(size=(N, OBS_DIM)).astype(np.float32)
    action = rng.uniform(-1, 1, (N, ACTION_DIM)).astype(np.float32)
    algorithm.save(str(path))
    policy = read_policy(f"d3rlpy:{path}")
    with torch.no_grad():
        actions = policy.actions(torch.from_numpy(obs)).numpy()
        apart = float(np.abs(actions - algorithm.predict(obs)).max())
        if policy.critics is None:
            return apart, None
        # d3rlpy's own value is the mean over its critics.
        values = policy.values(torch.from_numpy(obs), torch.from_numpy(action)).mean(0).numpy()
    return apart, float(np.abs(values - algorithm.predict_value(obs, action)).max())


def main() -> None:
    torch.set_num_threads(1)
    d3rlpy.seed(0)
    print(f"d3rlpy {d3rlpy.__version__}: largest difference of actions and of values")
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in CASES.items():
            actions, values = compare(name, settings, Path(folder))
            print(f"{name:10} {actions:.1e}  {'no critics' if values is None else f'{values:.1e}'}")


if __name__ == "__main__":
    main()
