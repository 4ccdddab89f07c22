"""The decision of `episodes.py` as one compiled call on a CPU: all inner steps, the update and the action.

`kernels.decision` composes the operators that `decision.py` calls one by one. The kernels need numba, and are imported
only where they run.
"""

from collections.abc import Callable

from torch import Tensor

from fastdwm.itpo.decision import Decision
from fastdwm.itpo.episodes import AgentContext, Episodes
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.rules import Bound, PolicyState
from fastdwm_kernels.sampler.op import has_cpu_kernels


def episodes_class(shared: AgentContext) -> type[Episodes]:
    """Choose the class of an agent's episodes, and compile its functions so that no decision waits for it.

    `CpuEpisodes` serve the default rule and objective without a deadline, which may leave out inner steps.
    """
    objective = shared.objective
    fused = isinstance(objective, FusedObjective) and has_cpu_kernels(objective.models.sampler)
    if not fused or not shared.config.adapts:
        return Episodes
    if isinstance(shared.rule, Bound) and objective.score is None and shared.deadline is None:
        from fastdwm_kernels.decision import prepare

        prepare()
        return CpuEpisodes
    from fastdwm_kernels.rollout.cpu_ops import prepare

    prepare()
    return Episodes


class CpuEpisodes(Episodes):
    """`Episodes` that decide in one compiled call; the actions are the same to the bit.

    A decision overwrites the adapted parameters of the decision before the last.
    """

    def __init__(self, shared: AgentContext, n_episodes: int, obs_dim: int):
        super().__init__(shared, n_episodes, obs_dim)
        self._decider = self._make_decider()

    def _make_decider(self) -> Callable:
        from fastdwm_kernels.decision import Decider

        config, rule, objective = self.shared.config, self.shared.rule, self.shared.objective
        sizes = len(self), config.horizon, config.particles, config.inner_steps
        parts = objective.models, objective.returns, self.shared.policy.base
        return Decider(*parts, *sizes, rule.action_step, rule.max_deviation)

    def decide(self, obs: Tensor) -> Decision:
        """Adapt and act in obs (B, S)."""
        shared = self.shared
        state = shared.begin(self.adapted, self.base)
        self.noise = self._noise()
        params, memory, report = self._decider(*state.tensors, obs, shared.objective.sampler_noise(self.noise))
        self.adapted = PolicyState(params, (memory,))
        return Decision.of_report(report, shared.config.inner_steps)

    def keep(self, mask: Tensor) -> None:
        """Go on with the episodes in mask (B,) alone."""
        super().keep(mask)
        self._decider = self._make_decider()
