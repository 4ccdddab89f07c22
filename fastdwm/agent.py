"""The agent of the public API: it takes observations, adapts its policies and returns their actions."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdwm.bundle import Bundle
from fastdwm.checks import require
from fastdwm.config import BACKENDS, PRECISIONS, ITPOConfig, Settings
from fastdwm.isolation import isolated, own, own_modes, own_rows
from fastdwm.itpo.cpu_episodes import episodes_class
from fastdwm.itpo.deadline import LEARNING, Deadline
from fastdwm.itpo.decision import Decision
from fastdwm.itpo.episodes import AgentContext, Episodes
from fastdwm.itpo.forks import THREADS
from fastdwm.itpo.fused import FusedObjective, obstacles
from fastdwm.itpo.fused_policy import FusedPolicy
from fastdwm.itpo.graphs import CudaGraphEpisodes
from fastdwm.itpo.objective import Objective, ReferenceObjective
from fastdwm.itpo.rollout import Score
from fastdwm.itpo.rules import make_rule
from fastdwm.models.policy import Policy
from fastdwm.models.world import World, sizes_of, terminal_value
from fastdwm_kernels.layout import MLPLayout, Params


def make_objective(
    policy: Policy, world: World, config: ITPOConfig, score: Score | None, backend: str, precision: str
) -> Objective:
    """The imagined return in plain torch ("reference") or by the fused operators ("fused"; "auto" if they can run)."""
    require(precision in PRECISIONS, f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    require(backend in BACKENDS, f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    fused = backend == "fused" or (backend == "auto" and not obstacles(policy, world, score))
    where = "expected auto or ieee on a CPU and in plain torch; fp16 is for the fused operators on a GPU"
    require(precision != "fp16" or (fused and policy.base.is_cuda), f"precision: {where}")
    if fused:
        return FusedObjective(policy, world, config, score, precision=precision)
    return ReferenceObjective(policy, world, config, score)


class Agent:
    """Act in B episodes at once, each with its own copy of the policy, which every decision adapts.

    The first observation sets the number of episodes until `reset()` or `keep`. Episodes do not influence each other.
    With `inner_steps=0` this is the base policy. The agent computes in float32 on its own device, independent of
    torch's default dtype, device, autocast and grad mode. In a process forked after a decision with several threads,
    call `torch.set_num_threads(1)`: the other threads do not exist there.
    """

    def __init__(
        self,
        policy: Policy | nn.Module,
        world: World,
        config: ITPOConfig = ITPOConfig(),
        *,
        score: Score | None = None,
        seed: int = 0,
        device: str = "cpu",
        backend: str = "auto",
        precision: str = "auto",
        deadline_ms: float | None = None,
    ):
        """policy: the policy to adapt, or a module for `Policy.of`; it is copied. Actions are clipped to [-1, 1].
        world: the models of imagination, float32 tensors on `device`; they are used as they are, and never changed.
        score: your own objective to maximise, see `imagined_return`; none: the default J.
        backend: "reference" imagines in plain torch with autograd, "fused" with the fused operators and their
        hand-derived gradients; "auto" is fused if policy and world allow it. `agent.backend` says which one runs, and
        `agent.why_reference` why not the fused one. In float32 both return the same actions up to rounding; on a CPU
        the reference takes 1.5 to 11 times as long (bench/results/cpu.md).
        precision: of the operands of the fused operators' products, "fp16" on a GPU or "ieee"; sums and states are
        float32. "auto" is fp16 on a GPU and ieee on a CPU.
        deadline_ms: time limit of one call of `act` for all its episodes; inner steps that would end later are left
        out, see `warm_up`. `deadline` counts `decisions`, `steps_done` and the decisions that `missed` the limit.
        Raises InputError for parts that the backend cannot run, a value out of range, or settings without
        max_deviation, which only a bundle can supply."""
        timed = deadline_ms is None or (isinstance(deadline_ms, int | float) and deadline_ms > 0)
        require(timed, f"deadline_ms: expected a positive number, got {deadline_ms!r}")
        own = "expected a number for parts of your own (how far an action may go from the base policy's), or math.inf"
        require(not config.lacks_bound, f"max_deviation: {own} for models that are exact, got none")
        self.config, self.world, self.seed, self.device = config, world, seed, torch.device(device)
        self.deadline = None if deadline_ms is None else Deadline(deadline_ms / 1e3)
        with own_modes(self.device), torch.device("cpu"):
            policy = Policy.of(policy) if isinstance(policy, nn.Module) else policy
            self.policy = policy.to(self.device)
            if isinstance(self.policy.layout, MLPLayout):
                self._check_sizes(self.policy.layout.sizes[0], self.policy.layout.sizes[-1])
            self.objective = make_objective(self.policy, world, config, score, backend, precision)
        self.backend = "fused" if isinstance(self.objective, FusedObjective) else "reference"
        self.why_reference = "; ".join(obstacles(self.policy, world, score)) if self.backend == "reference" else ""
        if backend == "auto" and self.why_reference and config.adapts:
            warnings.warn(f"the agent imagines in plain torch, which is slow: {self.why_reference}", stacklevel=2)
        _check_settings(config, world)
        acting = FusedPolicy.of(self.policy) if self.backend == "fused" else self.policy
        parts = make_rule(config), self.objective, config, world.dynamics.noise_steps
        self.context = AgentContext(acting, *parts, seed, self.deadline)
        self._episodes_class = episodes_class(self.context)
        self.episodes: Episodes | CudaGraphEpisodes | None = None
        self._captured: CudaGraphEpisodes | None = None
        self._forget_counts(0)
        self._last: tuple[Tensor, Decision] | None = None

    def _forget_counts(self, n_episodes: int) -> None:
        self.discarded = np.zeros(n_episodes, dtype=np.int64)
        self.clipped = self.discarded.copy()

    def _count(self, decision: Decision) -> None:
        _, _, discarded, deviation = decision.numbers.detach().cpu().numpy().T
        self.discarded += discarded != 0
        if self.config.max_deviation is not None:
            self.clipped += deviation > self.config.max_deviation

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        config: ITPOConfig | None = None,
        *,
        world: str | None = None,
        world_steps: int | None = None,
        temperature: float | None = None,
        device: str = "cpu",
        **settings: Any,
    ) -> "Agent":
        """The agent of a trained bundle.

        config, world, world_steps: settings of the decision and the world model, as in `Bundle.world`; if all are None,
        those that the bundle was tuned to, `Bundle.settings`.   settings: further arguments of `Agent`.
        Raises InputError if the bundle lacks the world model, and as `Agent` does.
        """
        tuned = config is None and world is None and world_steps is None
        chosen = bundle.settings if tuned else Settings(config or ITPOConfig(), world, world_steps)
        itpo = replace(chosen.itpo, max_deviation=bundle.bound) if chosen.itpo.lacks_bound else chosen.itpo
        with own_modes(torch.device(device)), torch.device("cpu"):
            bundle = own(bundle)
            policy = bundle.base_policy
            model = bundle.world(chosen.world, steps=chosen.world_steps, temperature=temperature, device=device)
        return cls(policy, model, itpo, device=device, **settings)

    @property
    def obs_dim(self) -> int | None:
        """Size of an observation (S); none while only the first observation can tell."""
        if self.episodes is not None:
            return self.episodes.obs_dim
        layout = self.policy.layout
        return layout.sizes[0] if isinstance(layout, MLPLayout) else None

    def _begin(self, n_episodes: int, obs_dim: int) -> Episodes | CudaGraphEpisodes:
        if self.device.type != "cuda" or self.backend != "fused":
            return self._episodes_class(self.context, n_episodes, obs_dim)
        # A capture takes seconds, so an equal number of episodes reuses the graphs.
        if self._captured is not None and self._captured.slots == n_episodes:
            self._captured.renew()
        else:
            self._captured = CudaGraphEpisodes(self.context, n_episodes, obs_dim)
        return self._captured

    def warm_up(self, obs: np.ndarray | Tensor) -> None:
        """Compile, capture and measure the cost of an inner step, so that the first decision meets a deadline.

        obs: a typical observation (S,), or one of each episode (B, S). Makes some decisions and discards them; does
        nothing within an episode.
        """
        if self.episodes is not None:
            return
        for i in range(1 + LEARNING):
            self.act(obs)
            # The first decision compiles, so its costs are not typical.
            if self.deadline is not None and i == 0:
                self.deadline.forget()
        self.episodes, self._last = None, None
        if self.deadline is not None:
            self.deadline.decisions = self.deadline.missed = self.deadline.steps_done = 0

    @isolated
    def act(self, obs: np.ndarray | Tensor) -> np.ndarray:
        """Adapt the policies and return an action for each observation.

        obs: (S,) or (B, S), raw units, finite.   Returns float32 (A,) or (B, A) in [-1, 1].
        `clipped` (B,) counts the decisions whose action was clipped to max_deviation, `discarded` (B,) those whose
        update was rolled back.
        Raises ValueError for another shape or a value that is not finite, and leaves the agent unchanged.
        Raises InputError if the policy, the world or the score returns another shape than expected, or if a score
        waits for the GPU.
        Raises FloatingPointError instead of returning an action that is not finite (damaged weights of the base
        policy), and RuntimeError in a forked process that lacks torch's threads.
        """
        THREADS.check()
        if self.deadline is not None:
            self.deadline.start()
        obs = self._check(obs)
        rows = obs.reshape(-1, obs.shape[-1])
        if self.episodes is None and not isinstance(self.policy.layout, MLPLayout) and sizes_of(self.world.dynamics):
            action = self.policy.act(self.policy.base, rows[:1].to(self.device))
            self._check_sizes(rows.shape[1], action.shape[1])
        episodes = self._begin(*rows.shape) if self.episodes is None else self.episodes
        decision = episodes.decide(rows)
        if self.episodes is None:
            self.episodes = episodes
            self._forget_counts(len(rows))
        self._count(decision)
        self._last = (rows, decision)
        actions = decision.action.detach().cpu().numpy().reshape(*obs.shape[:-1], -1)
        largest = np.abs(actions).max()
        if not np.isfinite(largest):
            raise FloatingPointError("the base policy's own action is not finite: its weights must be damaged")
        actions = actions if largest <= 1 else actions.clip(-1, 1)
        if self.deadline is not None:
            self.deadline.finish()
        return actions

    def predict(
        self,
        obs: np.ndarray | Tensor,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, Any]:
        """`act` with the interface of Stable-Baselines3's models, for its `VecEnv` and its `evaluate_policy`.

        episode_start: (B,) bool, whether an episode begins with its row of obs, and so from the base policy; if all
        begin, their number may differ from before. None: all episodes go on.
        state is returned as it is, because the agent keeps the adapted policies itself; deterministic changes nothing,
        because the agent adds no noise to its actions.   Raises as `act` and `reset`.
        """
        if episode_start is not None and self.episodes is not None:
            begins = np.atleast_1d(episode_start)
            same = len(begins) == len(self.episodes) or not begins.all()
            self.reset(begins if same else None)
        return self.act(obs), state

    def _check_sizes(self, *actual: int) -> None:
        """Raise InputError if the policy's sizes of observation and action are not the world model's."""
        expected = sizes_of(self.world.dynamics)
        message = "policy: expected one from {} numbers to {}, as the world model's, got one from {} to {}"
        require(expected in (None, actual), message.format(*expected or actual, *actual))

    def _check(self, obs: np.ndarray | Tensor) -> Tensor:
        # Checked on the host, for reading values of a GPU has to wait for it.
        obs, expected = own_rows(obs, torch.device("cpu")), self.obs_dim
        if obs.dim() not in (1, 2) or obs.numel() == 0 or expected not in (None, obs.shape[-1]):
            size = "S" if expected is None else expected
            raise ValueError(f"obs: expected shape ({size},) or (B, {size}), got {tuple(obs.shape)}")
        rows = 1 if obs.dim() == 1 else len(obs)
        if self.episodes is not None and rows != len(self.episodes):
            n, never = len(self.episodes), self.config.reset == "never"
            advice = "with reset='never' only a new agent has another number" if never else "reset() starts anew"
            raise ValueError(f"obs: expected one row for each of the {n} episodes, got {rows}; {advice}")
        if not np.isfinite(obs.numpy()).all():
            raise ValueError("obs: expected finite values, got NaN or infinity")
        return obs

    @isolated
    def reset(self, mask: np.ndarray | None = None) -> None:
        """Start new episodes where mask (B,) holds: reset their policies to the base policy.

        Call it after the last decision of the old episode and before the first of the new one. A vector environment of
        Gymnasium returns the last observation of an episode first, and the first of the next one only after another
        step (`AutoresetMode.NEXT_STEP`, its default): call reset(mask) after that step, with the mask of the step
        before, since the agent also decides, and adapts, in the last observation. With `SAME_STEP` the first
        observation comes at once: call reset(mask) right after the step that ended the episode.
        Without a mask all episodes and their noise start anew, and the next observation sets their number.
        With the setting `reset="never"` this does nothing.
        """
        mask = None if mask is None else self._mask(mask)
        if self.config.reset == "never":
            return
        if mask is None:
            self.episodes, self._last = None, None
            self._forget_counts(0)
        elif self.episodes is not None:
            self.episodes.restart(mask)

    @isolated
    def keep(self, mask: np.ndarray) -> None:
        """Keep only the episodes in mask (B,); the others leave the batch."""
        mask = self._mask(mask)
        self.episodes.keep(mask)
        self.discarded, self.clipped = self.discarded[mask.numpy()], self.clipped[mask.numpy()]
        self._last = None

    def _mask(self, mask: np.ndarray) -> Tensor:
        mask = mask.cpu() if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
        shape = (len(self.discarded),)
        if mask.dtype != torch.bool or mask.shape != shape:
            raise ValueError(f"mask: expected bool of shape {shape}, got {mask.dtype} of {tuple(mask.shape)}")
        return mask

    @isolated
    def diagnose(self) -> dict[str, np.ndarray]:
        """Measurements of the last decision, each (B,), by one more rollout: the imagined return before and after it on
        the same noise, the gradient norm, the distance of the adapted parameters and of the executed action (largest
        coordinate) from the base policy's, the inner steps taken, the action's deviation (root mean square) before
        clipping, and whether it was clipped. Empty for the base policy and before the first decision."""
        if self._last is None or self.config.inner_steps == 0:
            return {}
        (rows, decision), device = self._last, self.device
        rows, action = rows.to(device), decision.action.to(device)
        base, params = self.episodes.base, self.episodes.params
        after = self.objective.value(params, rows, self.episodes.noise[0].contiguous())
        values = {
            "objective_before": decision.objective,
            "objective_after": after,
            "grad_norm": decision.grad_norm,
            "policy_distance": (params - base).norm(dim=1),
            "action_distance": (action - self.policy.act(base, rows)).abs().amax(1),
            "inner_steps": decision.inner_steps,
            "deviation": decision.deviation,
        }
        if self.config.max_deviation is not None:
            values["clipped"] = (decision.deviation > self.config.max_deviation).float()
        return {name: value.detach().cpu().numpy() for name, value in values.items()}

    @isolated
    @torch.no_grad()
    def value(self, obs: np.ndarray | Tensor) -> np.ndarray:
        """Terminal value (N,) of obs (N, S) under the base policy, in units of the trained reward."""
        obs = own_rows(obs, self.device)
        action = self.policy.apply(self.policy.layout.views(self.policy.base), obs.unsqueeze(0))[0]
        return terminal_value(self.world, obs, action, self.config.terminal_value).cpu().numpy()

    def policy_parameters(self, episode: int = 0) -> Params:
        """Copy one episode's adapted parameters to the CPU, named as in the module that the policy came from:
        `module.load_state_dict(agent.policy_parameters(), strict=False)`. Between episodes, the base policy's."""
        params = self.policy.base if self.episodes is None else self.episodes.params
        return self.policy.parameters(params[0 if self.episodes is None else episode])


def _check_settings(config: ITPOConfig, world: World) -> None:
    """Raise InputError for settings that the world does not support."""
    scaled = config.termination != "soft" or not world.limits or hasattr(world.dynamics, "obs_std")
    require(scaled, "termination: soft needs a dynamics with obs_std, the unit of its width")
