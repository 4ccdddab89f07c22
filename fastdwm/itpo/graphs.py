"""The decision of `episodes.py` captured as one CUDA graph: noise, all inner steps, the update and the action.

The graph replays `decision.propose` on buffers at fixed addresses, and `kernels.commit` commits the result. Host cost
per decision: one copy in, one replay, one copy out. A graph has a fixed number of inner steps: with a deadline there is
one graph for each number, and all share one memory pool.
"""

from math import prod

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.errors import InputError
from fastdwm.itpo.decision import Decision, Proposal, propose
from fastdwm.itpo.episodes import AgentContext
from fastdwm.itpo.fused_policy import FusedPolicy
from fastdwm.itpo.rules import PolicyState
from fastdwm_kernels.commit import NUMBERS, Candidate, commit
from fastdwm_kernels.launch import captured, on_stream
from fastdwm_kernels.noise import normal

EAGER_DECISIONS = 3
"""eager runs before the capture, which compile kernels and initialise libraries"""


class CudaGraphEpisodes:
    """B episodes with the interface of `Episodes`.

    The batch keeps its B slots when episodes leave, and ignores the results of empty slots. The noise of slot i depends
    only on seed + i and on the number of the decision, which is counted on the device; it differs from that of
    `Episodes`.
    """

    def __init__(self, shared: AgentContext, n_episodes: int, obs_dim: int):
        """Capture the graphs on a CUDA device; elsewhere every decision runs the same body eagerly (for tests)."""
        self.shared, device = shared, shared.policy.base.device
        self._policy = FusedPolicy.of(shared.policy)
        self._base = shared.policy.base.repeat(n_episodes, 1)
        start = shared.rule.init(self._base)
        self._state = PolicyState(start.params.clone(), start.memory)
        self._obs, self._obs_here = self._both(n_episodes, obs_dim)
        action_dim = self._policy.act(self._base, self._obs).shape[1]
        self._report, self._report_here = self._both(n_episodes, action_dim + len(NUMBERS))
        self._slots = torch.arange(n_episodes, device="cpu")
        self._seeds = shared.seed + self._slots.to(device)
        self._time = torch.zeros_like(self._seeds)
        self._noise: dict[int, Tensor] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._n_steps = most = shared.config.inner_steps
        if self._base.is_cuda:
            with torch.cuda.device(device):
                # Graphs share memory only if they are captured on one stream.
                self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
                for n_steps in [most] if shared.deadline is None else range(most + 1):
                    self._capture(n_steps)
            self.renew()

    def _both(self, *shape: int) -> tuple[Tensor, Tensor]:
        """Zeros on the device, and on the host in pinned memory, which is copied asynchronously."""
        # Independent of torch's default dtype and device, which the user may have set.
        here = torch.zeros(shape, dtype=torch.float32, device="cpu")
        return self._base.new_zeros(shape), here.pin_memory() if self._base.is_cuda else here

    @property
    def slots(self) -> int:
        """Number of slots (B)."""
        return len(self._base)

    def renew(self) -> None:
        """Start all episodes and their noise anew without another capture."""
        self._slots = torch.arange(self.slots, device="cpu")
        self._overwrite(self.shared.rule.init(self._base))
        self._time.zero_()

    def _capture(self, n_steps: int) -> None:
        with on_stream(self._stream):
            for _ in range(EAGER_DECISIONS):
                self._run(n_steps)
        graph = torch.cuda.CUDAGraph()
        try:
            with captured(graph, self._stream, self._pool):
                self._run(n_steps)
        except RuntimeError as error:
            # The project's own operators never wait for the device; a score may.
            if getattr(self.shared.objective, "score", None) is None:
                raise
            reason = str(error.__context__ or error).splitlines()[0]
            expected = "score: expected operations on the GPU alone, no .item() and no tensor made from numbers"
            raise InputError(f"{expected}, got {reason}; backend='reference' takes it") from error
        self._graphs[n_steps] = graph

    def _run(self, n_steps: int) -> None:
        """Run one decision of all slots on the static buffers; a graph captures this."""
        shared, config = self.shared, self.shared.config
        state, noise = shared.begin(self._state, self._base), self._draw(config)
        args = state, self._base, shared.objective, self._obs, noise, config, range(n_steps)
        self._commit(propose(self._policy, shared.rule, *args))
        self._noise[n_steps] = noise

    def _commit(self, proposal: Proposal) -> None:
        """Commit or roll back a decision in the buffers, and pack its results for one copy to the host."""
        names = ("action", "base_action", "objective", "grad_norm", "finite", "deviation")
        parts = {name: getattr(proposal, name) for name in names}
        candidate = Candidate(proposal.start.params, proposal.state.params, **parts)
        commit(candidate, self._state.params, self._time, self._report)
        if self._state.memory:
            kept = self._report[:, NUMBERS.index("discarded") - len(NUMBERS)] == 0
            # `PolicyState.where` would copy the parameters too.
            triples = zip(self._state.memory, proposal.state.memory, proposal.start.memory, strict=True)
            for buffer, after, before in triples:
                torch.where(kept.view(-1, *[1] * (after.dim() - 1)), after, before, out=buffer)

    def _replay(self, n_steps: int) -> None:
        """Run one decision on the observations in the host buffer, and copy its report to the host."""
        self._n_steps = n_steps
        self._obs.copy_(self._obs_here, non_blocking=True)
        if n_steps in self._graphs:
            self._graphs[n_steps].replay()
        else:
            self._run(n_steps)
        self._report_here.copy_(self._report, non_blocking=True)
        if self._obs.is_cuda:
            torch.cuda.current_stream(self._obs.device).synchronize()

    def _draw(self, config: ITPOConfig) -> Tensor:
        """Standard normal (E or 1, H, K, B, M, S)."""
        steps, obs_dim = self.shared.noise_steps, self._obs.shape[1]
        shape = config.noise_banks, config.horizon, steps
        n_rows = prod(shape)
        # With noise by absolute time t + j, step j reuses the noise of step j + 1 of the previous decision.
        period = max(steps if config.noise == "time" else n_rows, 1)
        noise = normal(self._seeds, self._time, n_rows, config.particles * obs_dim, period)
        return noise.view(*shape, len(self._base), config.particles, obs_dim)

    def _overwrite(self, state: PolicyState) -> None:
        for buffer, value in zip(self._state.tensors, state.tensors, strict=True):
            buffer.copy_(value)

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
    def noise(self) -> Tensor:
        return self._noise[self._n_steps][:, :, :, self._rows]

    def decide(self, obs: Tensor) -> Decision:
        """Adapt and act in obs (B, S), best on the host; the results are on the host, in tensors of their own."""
        self._obs_here[self._slots] = obs.cpu()
        deadline, most = self.shared.deadline, self.shared.config.inner_steps
        if deadline is None:
            self._replay(most)
        else:
            deadline.at_once(most, self._replay)
        return Decision.of_report(self._report_here[self._slots], self._n_steps)

    def restart(self, mask: Tensor) -> None:
        """Reset the policies of the episodes in mask (B,) to the base policy; their random streams go on."""
        slots = self._slots[mask.cpu()].to(self._base.device)
        start = self.shared.rule.init(self._base)
        for buffer, value in zip(self._state.tensors, start.tensors, strict=True):
            buffer[slots] = value[slots]

    def keep(self, mask: Tensor) -> None:
        """Go on with the episodes in mask (B,) alone."""
        self._slots = self._slots[mask.cpu()]
