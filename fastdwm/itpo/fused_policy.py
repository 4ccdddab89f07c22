"""The policy computed by its own kernel when it acts: one launch on a GPU, one compiled call on a CPU."""

from dataclasses import dataclass, fields

from torch import Tensor

from fastdwm.models.policy import Policy
from fastdwm_kernels.policy import policy


@dataclass(frozen=True)
class FusedPolicy(Policy):
    """The project's MLP, whose `act` runs its kernel."""

    def act(self, flat: Tensor, obs: Tensor) -> Tensor:
        # One policy that all episodes share is read once, not once per episode.
        if flat.stride(0) == 0:
            return policy(self.layout, flat[:1], obs.unsqueeze(0))[0]
        return policy(self.layout, flat, obs.unsqueeze(1)).squeeze(1)

    @classmethod
    def of(cls, plain: Policy) -> Policy:
        """The policy as a FusedPolicy if its kernel supports it, else unchanged."""
        if not plain.fused:
            return plain
        return cls(**{field.name: getattr(plain, field.name) for field in fields(plain)})
