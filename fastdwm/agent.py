"""The agent a user holds: observations in, actions of the policies that it adapts on the way out."""

import numpy as np
import torch
from torch import Tensor

from fastdwm.bundle import Bundle
from fastdwm.config import BACKENDS, ITPOConfig
from fastdwm.errors import InputError
from fastdwm.fused import FusedObjective
from fastdwm.itpo import Adapted, Objective, ReferenceObjective, act, decide
from fastdwm.kernels.layout import Layout
from fastdwm.nets import map_params
from fastdwm.rebrac import policy
from fastdwm.rollout import World, terminal_value


def make_objective(world: World, layout: Layout, config: ITPOConfig, backend: str) -> Objective:
    """The imagined return in plain torch ("reference"), or by the fused operators ("fused", and "auto")."""
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "reference":
        return ReferenceObjective(world, layout, config)
    return FusedObjective(world, layout, config)


class Agent:
    """Acts in B episodes at once, each with its own copy of the policy, adapted at every decision.

    The number of episodes follows from the first observation and stays until `reset()` or `keep`. Episode i draws its
    noise from its own generator, seeded by seed + i, on the CPU: its actions depend neither on the other episodes nor
    on the device. With `inner_steps=0` this is the base policy.
    """

    def __init__(
        self,
        bundle: Bundle,
        config: ITPOConfig = ITPOConfig(),
        *,
        seed: int = 0,
        device: str = "cpu",
        backend: str = "auto",
    ):
        """backend: "reference" imagines in plain torch with autograd, "fused" with the fused operators and their
        hand-derived gradients; "auto" is fused. Both return the same actions up to rounding."""
        self.bundle, self.config, self.seed, self.device = bundle, config, seed, torch.device(device)
        self.world = bundle.world(self.device)
        base = map_params(lambda value: value.unsqueeze(0).to(self.device), bundle.policy)
        self.layout = Layout.of(base)
        self.base_policy = self.layout.pack(base)
        self.objective = make_objective(self.world, self.layout, config, backend)
        self._forget()

    def _forget(self) -> None:
        """Back to no episodes."""
        self.adapted: Adapted | None = None
        self.generators: list[torch.Generator] = []
        self.discarded = np.zeros(0, dtype=np.int64)
        self._last = None
        self._base_rows: Tensor | None = None

    def _begin(self, n_episodes: int) -> None:
        self.adapted = self._start(n_episodes)
        self.generators = [torch.Generator().manual_seed(self.seed + i) for i in range(n_episodes)]
        self.discarded = np.zeros(n_episodes, dtype=np.int64)

    def _base(self, n_episodes: int) -> Tensor:
        """The base policy's parameters (B, P), a row for each episode: unadapted copies then act alike to the bit."""
        if self._base_rows is None or len(self._base_rows) != n_episodes:
            self._base_rows = self.base_policy.repeat(n_episodes, 1)
        return self._base_rows

    def _start(self, n_episodes: int) -> Adapted:
        return Adapted.start(self.layout, self._base(n_episodes), self.config)

    def _noise(self, particles: int, banks: int) -> Tensor:
        """Standard normal (banks, H, K, B, M, S), each episode's from its own generator."""
        steps, obs_dim = self.world.dynamics.noise_steps, self.bundle.obs_dim
        shape = (banks, self.config.horizon, steps, particles, obs_dim)
        draws = [torch.randn(shape, generator=generator) for generator in self.generators]
        return torch.stack(draws, 3).to(self.device)

    def act(self, obs: np.ndarray | Tensor) -> np.ndarray:
        """Actions for one observation or for one of each episode.

        obs: (S,) or (B, S), raw units, finite.   Returns float32 (A,) or (B, A) in [-1, 1].
        Raises ValueError for another shape or a value that is not finite; the agent is as before then.
        """
        obs = self._check(obs)
        rows = obs.reshape(-1, obs.shape[-1])
        if self.adapted is None:
            self._begin(len(rows))
        base, config = self._base(len(rows)), self.config
        state = self._start(len(rows)) if config.reset == "decision" else self.adapted
        banks = config.inner_steps if config.redraw_noise else min(config.inner_steps, 1)
        noise = self._noise(config.particles, banks)
        held_out = self._noise(config.held_out_particles, 1)[0]
        self.adapted, decision = decide(state, base, self.objective, rows, noise, held_out, config)
        self.discarded += decision.discarded.cpu().numpy()
        self._last = (rows, noise, decision)
        return decision.action.cpu().numpy().reshape(*obs.shape[:-1], -1)

    def _check(self, obs: np.ndarray | Tensor) -> Tensor:
        obs = torch.as_tensor(obs).to(self.device, torch.float32)
        n, expected = len(self.generators), self.bundle.obs_dim
        if obs.dim() not in (1, 2) or obs.shape[-1] != expected or obs.numel() == 0:
            raise ValueError(f"obs: expected shape ({expected},) or (B, {expected}), got {tuple(obs.shape)}")
        rows = 1 if obs.dim() == 1 else len(obs)
        if self.adapted is not None and rows != n:
            raise ValueError(f"obs: expected one row for each of the {n} episodes, got {rows}; reset() starts anew")
        if not obs.isfinite().all():
            raise ValueError("obs: expected finite values, got NaN or infinity")
        return obs

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Start new episodes where mask (B,) holds: their policies are the base policy again.

        Without a mask all episodes start anew, noise included, and the next observation decides how many there are.
        With the setting `reset="never"` the policies and the noise go on as they are.
        """
        mask = None if mask is None else self._mask(mask)
        if self.config.reset == "never":
            return
        if mask is None:
            self._forget()
        elif self.adapted is not None:
            self.adapted = self._start(len(mask)).where(mask.to(self.device), self.adapted)

    def keep(self, mask: np.ndarray) -> None:
        """Go on with the episodes in mask (B,) alone; the others leave the batch."""
        mask = self._mask(mask)
        self.adapted = self.adapted.keep(mask.to(self.device))
        self.generators = [g for g, kept in zip(self.generators, mask.tolist(), strict=True) if kept]
        self.discarded = self.discarded[mask.numpy()]
        self._last = None

    def _mask(self, mask: np.ndarray) -> Tensor:
        mask = torch.as_tensor(mask)
        if mask.dtype != torch.bool or mask.shape != (len(self.generators),):
            shape = (len(self.generators),)
            raise ValueError(f"mask: expected bool of shape {shape}, got {mask.dtype} of {tuple(mask.shape)}")
        return mask

    @torch.no_grad()
    def diagnose(self) -> dict[str, np.ndarray]:
        """About the last decision, each (B,): the imagined return before and after it on the same noise, the gradient
        norm, the distance of the adapted parameters and of its action from the base policy's, and the share of the
        update that was kept. Costs one more rollout. Empty for the base policy and before the first decision."""
        if self._last is None or self.config.inner_steps == 0:
            return {}
        rows, noise, decision = self._last
        base, params = self._base(len(rows)), self.adapted.params
        after = self.objective.value(params, base, rows, noise[0])
        values = {
            "objective_before": decision.objective,
            "objective_after": after,
            "grad_norm": decision.grad_norm,
            "policy_distance": (params - base).norm(dim=1),
            "action_distance": (decision.action - act(self.layout, base, rows)).abs().amax(1),
            "update_scale": decision.update_scale,
        }
        return {name: value.cpu().numpy() for name, value in values.items()}

    @torch.no_grad()
    def value(self, obs: np.ndarray | Tensor) -> np.ndarray:
        """Terminal value (N,) of obs (N, S) under the base policy, in units of the trained reward."""
        obs = torch.as_tensor(obs).to(self.device, torch.float32)
        action = policy(map_params(lambda value: value[0], self.layout.views(self.base_policy)), obs)
        return terminal_value(self.world, obs, action, self.config.terminal_value).cpu().numpy()
