"""Episodes in progress, each with its own adapted policy and its own random stream."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.deadline import Deadline
from fastdwm.itpo.decision import Decision, decide
from fastdwm.itpo.objective import Objective
from fastdwm.itpo.rules import PolicyState, Rule
from fastdwm.models.policy import Policy


@dataclass(frozen=True)
class AgentContext:
    """The parts that all episodes of an agent share.

    noise_steps: Gaussian vectors per imagined transition.
    """

    policy: Policy
    rule: Rule
    objective: Objective
    config: ITPOConfig
    noise_steps: int
    seed: int
    deadline: Deadline | None = None

    def begin(self, state: PolicyState, base: Tensor) -> PolicyState:
        """The state that a decision starts from; base (B, P)."""
        return self.rule.init(base) if self.config.reset == "decision" else state


class Episodes:
    """B episodes that call the operators of a decision one by one.

    noise: (E or 1, H, K, B, M, S) of the last decision, none before the first.
    Episode i draws its noise on the CPU from a generator of its own, seeded by seed + i, so its noise depends neither
    on the other episodes nor on the device.
    """

    def __init__(self, shared: AgentContext, n_episodes: int, obs_dim: int):
        self.shared, self.obs_dim = shared, obs_dim
        # A row per episode rather than a view, so that unadapted copies act alike to the bit.
        self.base = shared.policy.base.repeat(n_episodes, 1)
        self.adapted = shared.rule.init(self.base)
        self.generators = [torch.Generator("cpu").manual_seed(shared.seed + i) for i in range(n_episodes)]
        self.noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.generators)

    @property
    def params(self) -> Tensor:
        """Adapted parameters (B, P)."""
        return self.adapted.params

    def decide(self, obs: Tensor) -> Decision:
        """Adapt and act in obs (B, S)."""
        shared, config = self.shared, self.shared.config
        obs, state = obs.to(self.base.device), shared.begin(self.adapted, self.base)
        self.noise = self._noise()
        steps = shared.deadline and shared.deadline.steps(config.inner_steps)
        # The fused policy reads one shared row, which stays in the cache; its actions equal those of copies to the bit.
        base = shared.policy.base.expand(len(self), -1) if shared.policy.fused else self.base
        args = state, base, shared.objective, obs, self.noise, config, steps
        self.adapted, decision = decide(shared.policy, shared.rule, *args)
        return decision

    def _noise(self) -> Tensor:
        """Noise (E or 1, H, K, B, M, S) of the next decision."""
        config = self.shared.config
        if config.noise != "time" or self.noise is None:
            return self._draw(config.noise_banks, config.horizon, config.particles)
        newest = self._draw(config.noise_banks, 1, config.particles)
        return torch.cat([self.noise[:, 1:], newest], 1)[:, : config.horizon]

    def _draw(self, banks: int, horizon: int, particles: int) -> Tensor:
        """Standard normal (banks, horizon, K, B, particles, S)."""
        shape = (banks, horizon, self.shared.noise_steps, particles, self.obs_dim)
        # Independent of torch's default dtype and device, which the user may have set.
        kind = dict(dtype=torch.float32, device="cpu")
        draws = [torch.randn(shape, generator=generator, **kind) for generator in self.generators]
        noise = torch.stack(draws, 3) if len(draws) > 1 else draws[0].unsqueeze(3)
        return noise.to(self.base.device)

    def restart(self, mask: Tensor) -> None:
        """Reset the policies of the episodes in mask (B,) to the base policy; their random streams go on."""
        self.adapted = self.shared.rule.init(self.base).where(mask.to(self.base.device), self.adapted)

    def keep(self, mask: Tensor) -> None:
        """Go on with the episodes in mask (B,) alone."""
        rows = mask.to(self.base.device)
        self.base, self.adapted = self.base[rows], self.adapted.keep(rows)
        self.generators = [g for g, kept in zip(self.generators, mask.tolist(), strict=True) if kept]
        self.noise = None if self.noise is None else self.noise[:, :, :, rows]
