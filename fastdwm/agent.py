"""The agent a user holds: observations in, actions of the policies that it adapts on the way out."""

import numpy as np
import torch
from torch import Tensor

from fastdwm.bundle import Bundle
from fastdwm.checks import require
from fastdwm.config import BACKENDS, ITPOConfig
from fastdwm.errors import InputError
from fastdwm.isolation import isolated, own_bundle, own_modes, own_rows
from fastdwm.itpo.deadline import LEARNING, Deadline
from fastdwm.itpo.decision import Decision, Objective, ReferenceObjective, act
from fastdwm.itpo.episodes import Adaptation, Episodes
from fastdwm.itpo.forks import THREADS
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.graphs import CapturedEpisodes
from fastdwm.itpo.rollout import World, terminal_value
from fastdwm.kernels.layout import Layout
from fastdwm.models.nets import map_params
from fastdwm.models.rebrac import policy


def make_objective(world: World, layout: Layout, config: ITPOConfig, backend: str) -> Objective:
    """The imagined return in plain torch ("reference"), or by the fused operators ("fused", and "auto")."""
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "reference":
        return ReferenceObjective(world, layout, config)
    return FusedObjective(world, layout, config)


class Agent:
    """Acts in B episodes at once, each with its own copy of the policy, adapted at every decision.

    The number of episodes follows from the first observation and stays until `reset()` or `keep`. What happens in an
    episode does not depend on the others. With `inner_steps=0` this is the base policy.
    Computes in float32 on its own device whatever torch's default type, device, autocast or grad mode are. A process
    that is forked after a decision with several threads needs `torch.set_num_threads(1)`: torch has lost the others.
    """

    def __init__(
        self,
        bundle: Bundle,
        config: ITPOConfig = ITPOConfig(),
        *,
        seed: int = 0,
        device: str = "cpu",
        backend: str = "auto",
        world: str = "diffusion",
        world_steps: int | None = None,
        temperature: float | None = None,
        deadline_ms: float | None = None,
    ):
        """backend: "reference" imagines in plain torch with autograd, "fused" with the fused operators and their
        hand-derived gradients; "auto" is fused. Both return the same actions up to rounding.
        world: the world model, "diffusion", "meanflow" or "mlp", with its settings as in `Bundle.world`.
        deadline_ms: limit of one call of `act`, all its episodes together: inner steps that would end later are left
        out, see `warm_up`. `deadline.missed` of `deadline.decisions` took longer all the same.
        Raises InputError for what the bundle does not hold, a value out of range, or a held-out test that could tell
        nothing: without noise, the unused particles are the used ones."""
        require(deadline_ms is None or deadline_ms > 0, f"deadline_ms: expected a positive number, got {deadline_ms}")
        self.config, self.seed, self.device = config, seed, torch.device(device)
        self.deadline = None if deadline_ms is None else Deadline(deadline_ms / 1e3)
        with own_modes(self.device), torch.device("cpu"):
            self.bundle = own_bundle(bundle)
            settings = dict(steps=world_steps, temperature=temperature)
            self.world = self.bundle.world(world, device=self.device, **settings)
            self.adaptation = self._adaptation(backend)
        random = config.horizon > 0 and self.world.dynamics.stochastic
        require(
            config.held_out_particles == 0 or random,
            "held_out_particles: expected 0 where nothing is random (world mlp, temperature 0 or horizon 0), "
            f"got {config.held_out_particles}",
        )
        self.layout, self.base_policy = self.adaptation.layout, self.adaptation.base_policy
        self.objective = self.adaptation.objective
        self.episodes: Episodes | CapturedEpisodes | None = None
        self._captured: CapturedEpisodes | None = None
        self.discarded = np.zeros(0, dtype=np.int64)
        self._last: tuple[Tensor, Decision] | None = None

    def _adaptation(self, backend: str) -> Adaptation:
        base = map_params(lambda value: value.unsqueeze(0).to(self.device), self.bundle.policy)
        layout = Layout.of(base)
        objective = make_objective(self.world, layout, self.config, backend)
        noise_shape = (self.world.dynamics.noise_steps, self.bundle.obs_dim)
        return Adaptation(layout, layout.pack(base), objective, self.config, noise_shape, self.seed, self.deadline)

    def _begin(self, n_episodes: int) -> Episodes | CapturedEpisodes:
        if self.device.type != "cuda" or not isinstance(self.objective, FusedObjective):
            return Episodes(self.adaptation, n_episodes)
        # A capture takes seconds: as many episodes as before use the same graphs.
        if self._captured is not None and self._captured.slots == n_episodes:
            self._captured.renew()
        else:
            self._captured = CapturedEpisodes(self.adaptation, n_episodes)
        return self._captured

    def warm_up(self, n_episodes: int = 1) -> None:
        """Compile, capture and learn what an inner step costs before the first decision, which then meets a deadline.

        Decides for `n_episodes` some times in the mean observation and forgets it; nothing to do within an episode.
        """
        if self.episodes is not None:
            return
        obs = self.world.dynamics.obs_mean.repeat(n_episodes, 1)
        for i in range(1 + LEARNING):
            self.act(obs)
            # The first decision is no measure of the others.
            if self.deadline is not None and i == 0:
                self.deadline.forget()
        self.episodes, self._last = None, None
        if self.deadline is not None:
            self.deadline.decisions = self.deadline.missed = 0

    @isolated
    def act(self, obs: np.ndarray | Tensor) -> np.ndarray:
        """Actions for one observation or for one of each episode.

        obs: (S,) or (B, S), raw units, finite.   Returns float32 (A,) or (B, A) in [-1, 1].
        Raises ValueError for another shape or a value that is not finite; the agent is as before then.
        Raises FloatingPointError rather than return an action that is not finite, which damaged weights of the base
        policy give, and RuntimeError in a forked process that has lost torch's threads.
        """
        THREADS.check()
        if self.deadline is not None:
            self.deadline.start()
        obs = self._check(obs)
        rows = obs.reshape(-1, obs.shape[-1])
        if self.episodes is None:
            self.episodes = self._begin(len(rows))
            self.discarded = np.zeros(len(rows), dtype=np.int64)
        decision = self.episodes.decide(rows)
        self.discarded += decision.discarded.cpu().numpy()
        self._last = (rows, decision)
        actions = decision.action.cpu().numpy().reshape(*obs.shape[:-1], -1)
        if not np.isfinite(actions).all():
            raise FloatingPointError("the base policy's own action is not finite: its weights must be damaged")
        if self.deadline is not None:
            self.deadline.finish()
        return actions

    def _check(self, obs: np.ndarray | Tensor) -> Tensor:
        obs = own_rows(obs, self.device)
        expected = self.bundle.obs_dim
        if obs.dim() not in (1, 2) or obs.shape[-1] != expected or obs.numel() == 0:
            raise ValueError(f"obs: expected shape ({expected},) or (B, {expected}), got {tuple(obs.shape)}")
        rows = 1 if obs.dim() == 1 else len(obs)
        if self.episodes is not None and rows != len(self.episodes):
            n, never = len(self.episodes), self.config.reset == "never"
            advice = "with reset='never' only a new agent has another number" if never else "reset() starts anew"
            raise ValueError(f"obs: expected one row for each of the {n} episodes, got {rows}; {advice}")
        if not obs.isfinite().all():
            raise ValueError("obs: expected finite values, got NaN or infinity")
        return obs

    @isolated
    def reset(self, mask: np.ndarray | None = None) -> None:
        """Start new episodes where mask (B,) holds: their policies are the base policy again.

        To be called after the last decision of the old episode and before the first of the new one. A vector
        environment of Gymnasium returns the last observation of an episode first, and the first of the next one only
        after another step (`AutoresetMode.NEXT_STEP`, its default): call reset(mask) after that step, with the mask of
        the step before, since the agent decides, and adapts, in that last observation too. With `SAME_STEP` the first
        observation is there at once, and reset(mask) belongs right after the step that ended the episode.
        Without a mask all episodes start anew, noise included, and the next observation decides how many there are.
        With the setting `reset="never"` the policies and the noise go on as they are, and so does their number.
        """
        mask = None if mask is None else self._mask(mask)
        if self.config.reset == "never":
            return
        if mask is None:
            self.episodes, self._last = None, None
            self.discarded = np.zeros(0, dtype=np.int64)
        elif self.episodes is not None:
            self.episodes.restart(mask)

    @isolated
    def keep(self, mask: np.ndarray) -> None:
        """Go on with the episodes in mask (B,) alone; the others leave the batch."""
        mask = self._mask(mask)
        self.episodes.keep(mask)
        self.discarded = self.discarded[mask.numpy()]
        self._last = None

    def _mask(self, mask: np.ndarray) -> Tensor:
        mask = mask.cpu() if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
        shape = (len(self.discarded),)
        if mask.dtype != torch.bool or mask.shape != shape:
            raise ValueError(f"mask: expected bool of shape {shape}, got {mask.dtype} of {tuple(mask.shape)}")
        return mask

    @isolated
    def diagnose(self) -> dict[str, np.ndarray]:
        """About the last decision, each (B,): the imagined return before and after it on the same noise, the gradient
        norm, the distance of the adapted parameters and of its action from the base policy's, the share of the update
        that was kept and the inner steps taken. Costs one more rollout. Empty for the base policy and before the first
        decision."""
        if self._last is None or self.config.inner_steps == 0:
            return {}
        rows, decision = self._last
        base, params = self.episodes.base, self.episodes.params
        after = self.objective.value(params, base, rows, self.episodes.noise[0].contiguous())
        values = {
            "objective_before": decision.objective,
            "objective_after": after,
            "grad_norm": decision.grad_norm,
            "policy_distance": (params - base).norm(dim=1),
            "action_distance": (decision.action - act(self.layout, base, rows)).abs().amax(1),
            "update_scale": decision.update_scale,
            "inner_steps": decision.inner_steps,
        }
        return {name: value.cpu().numpy() for name, value in values.items()}

    @isolated
    def value(self, obs: np.ndarray | Tensor) -> np.ndarray:
        """Terminal value (N,) of obs (N, S) under the base policy, in units of the trained reward."""
        obs = own_rows(obs, self.device)
        action = policy(map_params(lambda value: value[0], self.layout.views(self.base_policy)), obs)
        return terminal_value(self.world, obs, action, self.config.terminal_value).cpu().numpy()
