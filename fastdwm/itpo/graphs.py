"""The decision of `episodes.py` captured as one CUDA graph: noise, all inner steps, the update and the action.

Holds no mathematics: it replays what `itpo.decide` defines on buffers that never move. Host cost per decision: one copy
in, one replay, one copy out. A graph has a fixed number of inner steps: with a deadline there is one for each number.
"""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from fastdwm.itpo.adapted import TENSORS, Adapted
from fastdwm.itpo.decision import Decision, decide
from fastdwm.itpo.episodes import Adaptation
from fastdwm.kernels.noise import normal

NOISE, HELD_OUT = 0, 1
"""streams of the noise: that of the gradients, and that of the acceptance test"""

EAGER_DECISIONS = 3
"""eager runs before the capture: kernels are compiled and libraries initialised in them"""


class CapturedEpisodes:
    """B episodes with the interface of `Episodes`.

    The batch keeps its B slots when episodes leave; theirs are computed and ignored. The noise of slot i is a function
    of seed + i and of the number of the decision, which is counted on the device: it depends neither on who else is
    left nor on how many slots there are, but differs from that of `Episodes`.
    """

    def __init__(self, shared: Adaptation, n_episodes: int, obs_dim: int):
        """Captures the graphs on a CUDA device; elsewhere every decision runs the same body eagerly (for tests)."""
        self.shared, device = shared, shared.policy.base.device
        self._base = shared.policy.base.repeat(n_episodes, 1)
        start = shared.start(self._base)
        self._state = replace(start, **{name: getattr(start, name).clone() for name in TENSORS})
        self._obs = self._base.new_zeros(n_episodes, obs_dim)
        self._reward = torch.full_like(self._obs[:, 0], torch.nan)
        self._slots = torch.arange(n_episodes, device=device)
        self._seeds = shared.seed + self._slots
        self._time = torch.zeros_like(self._seeds)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._captured: dict[int, tuple[Decision, Tensor]] = {}
        if self._base.is_cuda:
            most = shared.config.inner_steps
            with torch.cuda.device(device):
                for n_steps in [most] if shared.deadline is None else range(most + 1):
                    self._capture(n_steps)
            self.renew()

    @property
    def slots(self) -> int:
        """Episodes at the start."""
        return len(self._base)

    def renew(self) -> None:
        """Start all episodes anew, noise included: as just constructed, without another capture."""
        self._slots = torch.arange(self.slots, device=self._base.device)
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
        with torch.cuda.graph(graph, stream=stream):
            self._captured[n_steps] = self._run(n_steps)
        self._graphs[n_steps] = graph

    def _run(self, n_steps: int) -> tuple[Decision, Tensor]:
        """One decision of all slots on the static buffers: what a graph holds."""
        shared, config = self.shared, self.shared.config
        state = shared.begin(self._state, self._base, self._reward)
        noise = self._draw(config.noise_banks, config.particles, NOISE)
        held_out = self._draw(config.inner_steps, config.held_out_particles, HELD_OUT)
        self._time += 1
        steps = range(n_steps)
        given = shared.objective, self._obs, noise, held_out, config, steps
        state, decision = decide(shared.policy, state, self._base, *given)
        self._overwrite(state)
        return decision, noise

    def _replay(self, n_steps: int) -> None:
        if n_steps in self._graphs:
            self._graphs[n_steps].replay()
            self._outputs = self._captured[n_steps]
        else:
            self._outputs = self._run(n_steps)

    def _replay_and_wait(self, n_steps: int) -> None:
        self._replay(n_steps)
        if self._obs.is_cuda:
            torch.cuda.synchronize(self._obs.device)

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
    def base(self) -> Tensor:
        return self._base[self._slots]

    @property
    def params(self) -> Tensor:
        return self._state.params[self._slots]

    @property
    def evidence(self) -> Tensor:
        return self._state.evidence[self._slots]

    @property
    def noise(self) -> Tensor:
        return self._outputs[1][:, :, :, self._slots]

    def decide(self, obs: Tensor, reward: Tensor | None = None) -> Decision:
        """Adapt and act in obs (B, S), reward as in `Adaptation.begin`; the result is the caller's to keep."""
        self._obs[self._slots] = obs
        self._reward[self._slots] = torch.full_like(obs[:, 0], torch.nan) if reward is None else reward
        deadline, most = self.shared.deadline, self.shared.config.inner_steps
        if deadline is None:
            self._replay(most)
        else:
            deadline.at_once(most, self._replay_and_wait)
        return self._of_slots(self._outputs[0])

    def _of_slots(self, found: Any) -> Any:
        """A copy of a dataclass of tensors with the rows of the episodes that are left."""
        values = {field.name: getattr(found, field.name) for field in fields(found)}
        rows = {k: v[self._slots] if isinstance(v, Tensor) else self._of_slots(v) for k, v in values.items()}
        return type(found)(**rows)

    def restart(self, mask: Tensor) -> None:
        """The policies of the episodes in mask (B,) are the base policy again; the noise goes on."""
        slots = self._slots[mask.to(self._slots.device)]
        start = self.shared.start(self._base)
        for name in TENSORS:
            getattr(self._state, name)[slots] = getattr(start, name)[slots]

    def keep(self, mask: Tensor) -> None:
        """Go on with the episodes in mask (B,) alone."""
        self._slots = self._slots[mask.to(self._slots.device)]
