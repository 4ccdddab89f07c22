"""The decision of `episodes.py` as one compiled call on a CPU: all inner steps, the update and the action.

`kernels.decision` composes the operators that `decision.py` calls one by one. The kernels need numba, and are imported
only where they run.
"""

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
    """`Episodes` that decide in one compiled call; the actions are the same to the bit."""

    def decide(self, obs: Tensor) -> Decision:
        """Adapt and act in obs (B, S)."""
        from fastdwm_kernels.decision import decide

        shared, rule, objective = self.shared, self.shared.rule, self.shared.objective
        state = shared.begin(self.adapted, self.base)
        self.noise = self._noise()
        models, noise = (objective.models, objective.returns), objective.sampler_noise(self.noise)
        settings = shared.config.inner_steps, rule.action_step, rule.max_deviation
        params, memory, report = decide(*models, shared.policy.base, *state.tensors, obs, noise, *settings)
        self.adapted = PolicyState(params, (memory,))
        return Decision.of_report(report, shared.config.inner_steps)
