"""The decision of `episodes.py` captured as one CUDA graph: noise, all inner steps, the update and the action.

Holds no mathematics: it replays what `itpo.propose` defines on buffers that never move, and `kernels.finish` ends it.
Host cost per decision: one copy in, one replay, one copy out. A graph has a fixed number of inner steps: with a
deadline there is one for each number, in one pool of memory.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fastdwm.itpo.adapted import TENSORS, Adapted
from fastdwm.itpo.decision import Decision, Proposal, propose
from fastdwm.itpo.episodes import Adaptation
from fastdwm.itpo.guard import Guarded
from fastdwm.kernels.finish import NUMBERS, Outcome, finish
from fastdwm.kernels.noise import normal
from fastdwm.kernels.policy import policy
from fastdwm.kernels.trust import REWARD
from fastdwm.models.policy import Policy

NOISE, HELD_OUT = 0, 1
"""streams of the noise: that of the gradients, and that of the acceptance test"""

EAGER_DECISIONS = 3
"""eager runs before the capture: kernels are compiled and libraries initialised in them"""


@dataclass(frozen=True)
class OneLaunch(Policy):
    """The project's MLP, that acts by its kernel."""

    def act(self, flat: Tensor, obs: Tensor) -> Tensor:
        # One policy for all, which need not be read anew for each.
        if flat.stride(0) == 0:
            return policy(self.layout, flat[:1], obs.unsqueeze(0))[0]
        return policy(self.layout, flat, obs.unsqueeze(1)).squeeze(1)

    @classmethod
    def of(cls, given: Policy) -> Policy:
        """The same policy where the kernel is for its kind."""
        if not given.fused:
            return given
        return cls(**{field.name: getattr(given, field.name) for field in fields(given)})


class CapturedEpisodes:
    """B episodes with the interface of `Episodes`.

    The batch keeps its B slots when episodes leave; theirs are computed and ignored. The noise of slot i is a function
    of seed + i and of the number of the decision, which is counted on the device: it depends neither on who else is
    left nor on how many slots there are, but differs from that of `Episodes`.
    """

    def __init__(self, shared: Adaptation, n_episodes: int, obs_dim: int):
        """Captures the graphs on a CUDA device; elsewhere every decision runs the same body eagerly (for tests)."""
        self.shared, device = shared, shared.policy.base.device
        self._policy = OneLaunch.of(shared.policy)
        self._base = shared.policy.base.repeat(n_episodes, 1)
        start = shared.start(self._base)
        self._state = replace(start, **{name: getattr(start, name).clone() for name in TENSORS})
        self._given, self._here = self._both(n_episodes * (obs_dim + 1))
        self._obs, self._reward = parts(self._given, n_episodes)
        action_dim = self._policy.act(self._base, self._obs).shape[1]
        self._report, self._told = self._both(n_episodes, action_dim + len(NUMBERS))
        self._slots = torch.arange(n_episodes, device="cpu")
        self._seeds = shared.seed + self._slots.to(device)
        self._time = torch.zeros_like(self._seeds)
        self._noise: dict[int, Tensor | None] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._n_steps = most = shared.config.inner_steps
        if self._base.is_cuda:
            with torch.cuda.device(device):
                self._pool = torch.cuda.graph_pool_handle()
                for n_steps in [most] if shared.deadline is None else range(most + 1):
                    self._capture(n_steps)
            self.renew()

    def _both(self, *shape: int) -> tuple[Tensor, Tensor]:
        """Zeros on the device and on the host, from where they travel without waiting."""
        # Whatever the user has made torch's default type and device.
        here = torch.zeros(shape, dtype=torch.float32, device="cpu")
        return self._base.new_zeros(shape), here.pin_memory() if self._base.is_cuda else here

    @property
    def slots(self) -> int:
        """Episodes at the start."""
        return len(self._base)

    def renew(self) -> None:
        """Start all episodes anew, noise included: as just constructed, without another capture."""
        self._slots = torch.arange(self.slots, device="cpu")
        self._overwrite(self.shared.start(self._base))
        self._time.zero_()

    def _capture(self, n_steps: int) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(EAGER_DECISIONS):
                self._run(n_steps)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Without a stream of its own, the capture is on a stream of the device that was the first to capture.
        with torch.cuda.graph(graph, self._pool, stream):
            self._run(n_steps)
        self._graphs[n_steps] = graph

    def _run(self, n_steps: int) -> None:
        """One decision of all slots on the static buffers: what a graph holds."""
        shared, config = self.shared, self.shared.config
        state = shared.begin(self._state, self._base)
        noise = self._draw(config.noise_banks, config.particles, NOISE)
        held_out = self._draw(config.inner_steps, config.held_out_particles, HELD_OUT)
        given = shared.objective, self._obs, noise, held_out, config, range(n_steps), self._reward
        self._finish(propose(self._policy, state, self._base, *given))
        self._noise[n_steps] = noise

    def _finish(self, found: Proposal) -> None:
        """The end of a decision, in the buffers."""
        first, guarded, base_action = found.first, found.guarded, found.base_action
        outcome = Outcome(
            start=found.start.params,
            after=found.state.params,
            action=found.action,
            base_action=self._policy.act(self._base, self._obs) if base_action is None else base_action,
            evidence=guarded and found.state.evidence,
            objective=first and first.found.returns,
            norm=first and first.norm,
            finite=found.finite,
            scale=found.scale,
            trust=guarded and guarded.trust,
            distance=guarded and guarded.distance,
            reason=guarded and guarded.reason,
        )
        finish(outcome, REWARD, self._state.params, self._state.evidence, self._time, self._report)
        if self.shared.config.optimiser == "adam":
            kept = self._report[:, NUMBERS.index("discarded") - len(NUMBERS)] == 0
            moments = found.state.where(kept, found.start)
            for name in ("first", "second", "count"):
                getattr(self._state, name).copy_(getattr(moments, name))

    def _replay(self, n_steps: int) -> None:
        """One decision on what the host gave, and its report on the host."""
        self._n_steps = n_steps
        self._given.copy_(self._here, non_blocking=True)
        if n_steps in self._graphs:
            self._graphs[n_steps].replay()
        else:
            self._run(n_steps)
        self._told.copy_(self._report, non_blocking=True)
        if self._obs.is_cuda:
            torch.cuda.current_stream(self._obs.device).synchronize()

    def _draw(self, banks: int, particles: int, stream: int) -> Tensor | None:
        """Standard normal (banks, H, K, B, particles, S); none for no particles."""
        if particles == 0:
            return None
        config, steps, obs_dim = self.shared.config, self.shared.noise_steps, self._obs.shape[1]
        n_rows = banks * config.horizon * steps
        # By absolute time t + j, imagined step j has the noise that step j + 1 had a decision ago.
        period = max(steps if config.noise == "time" and stream == NOISE else n_rows, 1)
        noise = normal(self._seeds, self._time, n_rows, particles * obs_dim, period, stream)
        return noise.view(banks, config.horizon, steps, len(self._base), particles, obs_dim)

    def _overwrite(self, state: Adapted) -> None:
        for name in TENSORS:
            getattr(self._state, name).copy_(getattr(state, name))

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def obs_dim(self) -> int:
        """Numbers in an observation (S)."""
        return self._obs.shape[1]

    @property
    def _rows(self) -> Tensor:
        """The slots on the device."""
        return self._slots.to(self._base.device)

    @property
    def base(self) -> Tensor:
        return self._base[self._rows]

    @property
    def params(self) -> Tensor:
        return self._state.params[self._rows]

    @property
    def evidence(self) -> Tensor:
        return self._state.evidence[self._rows]

    @property
    def noise(self) -> Tensor:
        return self._noise[self._n_steps][:, :, :, self._rows]

    def decide(self, obs: Tensor, reward: Tensor | None = None) -> Decision:
        """Adapt and act in obs (B, S), reward as in `Episodes.decide`; on the host they cost no more than one copy.

        The result is on the host, and the caller's to keep.
        """
        here = parts(self._here, self.slots)
        here[0][self._slots] = obs.cpu()
        here[1][self._slots] = here[1].new_tensor(torch.nan) if reward is None else reward.cpu()
        deadline, most = self.shared.deadline, self.shared.config.inner_steps
        if deadline is None:
            self._replay(most)
        else:
            deadline.at_once(most, self._replay)
        return self._decision()

    def _decision(self) -> Decision:
        """What the last report says of the episodes that are left."""
        rows = self._told[self._slots]
        action, *columns = rows.split([rows.shape[1] - len(NUMBERS)] + [1] * len(NUMBERS), 1)
        objective, norm, scale, discarded, trust, distance, reason = (column.squeeze(1) for column in columns)
        config, n_steps = self.shared.config, self._n_steps
        if n_steps and config.trust_region is None and not config.held_out_particles:
            scale = torch.ones_like(scale)
        guarded = Guarded(trust, distance, reason.nan_to_num(0).long())
        taken = torch.full_like(scale, n_steps)
        return Decision(action, objective, norm, scale, taken, discarded != 0, guarded)

    def restart(self, mask: Tensor) -> None:
        """The policies of the episodes in mask (B,) are the base policy again; the noise goes on."""
        slots = self._slots[mask.cpu()].to(self._base.device)
        start = self.shared.start(self._base)
        for name in TENSORS:
            getattr(self._state, name)[slots] = getattr(start, name)[slots]

    def keep(self, mask: Tensor) -> None:
        """Go on with the episodes in mask (B,) alone."""
        self._slots = self._slots[mask.cpu()]


def parts(given: Tensor, n_episodes: int) -> tuple[Tensor, Tensor]:
    """Observations (B, S) and rewards (B,) in one buffer (B (S + 1),), as views that are contiguous."""
    return given[:-n_episodes].view(n_episodes, -1), given[-n_episodes:]
