"""A module of simulators of one's own, for tests: `write_module` writes it where it can be imported by its name."""

import sys
from pathlib import Path

SOURCE = '''
from pathlib import Path
import gymnasium, numpy as np
from gymnasium.spaces import Box, Dict, Discrete

Path(__file__).with_suffix(".trace").touch()


class Cart(gymnasium.Env):
    """A pushed cart: observes a dict, acts in [-3, 1], ends beyond a position of 4."""

    observation_space = Dict({"velocity": Box(-np.inf, np.inf, (1,)), "position": Box(-np.inf, np.inf, (1,))})
    action_space = Box(np.float32([-3]), np.float32([1]))

    def __init__(self, mass=1.0, name=""):
        self.mass = mass

    def observe(self):
        return {"velocity": self.state[1:], "position": self.state[:1]}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=2).astype(np.float32)
        return self.observe(), {}

    def step(self, action):
        velocity = 0.9 * self.state[1] + 0.2 * (action[0] + 1) / self.mass
        self.state = np.array([self.state[0] + 0.1 * velocity, velocity], np.float32)
        return self.observe(), -float(np.square(self.state).sum()), bool(abs(self.state[0]) > 4), False, {}


class Pixels(Cart):
    observation_space = Box(0, 255, (8, 8, 3), np.uint8)


class Unbounded(Cart):
    action_space = Box(-np.inf, np.inf, (1,))


for name, entry_point in {"Cart": "MODULE:Cart", "Pixels": "MODULE:Pixels", "Unbounded": "MODULE:Unbounded"}.items():
    gymnasium.register(f"{name}-v0", entry_point=entry_point, max_episode_steps=20)
gymnasium.register("ByClass-v0", entry_point=Cart, max_episode_steps=20)
'''


def write_module(folder: Path, name: str = "own_cart") -> Path:
    """Write the module; it touches `name`.trace beside it whenever it is imported. Returns the path of that file."""
    sys.modules.pop(name, None)
    (folder / f"{name}.py").write_text(SOURCE.replace("MODULE", name))
    return folder / f"{name}.trace"
