"""The policy by its own kernel, where decisions act: one launch on a GPU, one compiled call on a CPU."""

from dataclasses import dataclass, fields

from torch import Tensor

from fastdwm.models.policy import Policy
from fastdwm_kernels.policy import policy


@dataclass(frozen=True)
class FusedPolicy(Policy):
    """The project's MLP, which acts by its kernel."""

    def act(self, flat: Tensor, obs: Tensor) -> Tensor:
        # One policy for all episodes is read once, not for each of them.
        if flat.stride(0) == 0:
            return policy(self.layout, flat[:1], obs.unsqueeze(0))[0]
        return policy(self.layout, flat, obs.unsqueeze(1)).squeeze(1)

    @classmethod
    def of(cls, plain: Policy) -> Policy:
        """The same policy, by its kernel if that computes policies of its kind."""
        if not plain.fused:
            return plain
        return cls(**{field.name: getattr(plain, field.name) for field in fields(plain)})
