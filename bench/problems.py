"""Problem sizes, and random models and inputs that are the same for all peers to the bit."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from fastdwm import Bundle, ITPOConfig
from fastdwm.bundle import TrainedModel
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.models.config import DiffusionConfig, MeanFlowConfig, MLPConfig, ReBRACConfig, RewardConfig
from fastdwm.models.diffusion import denoiser_shapes
from fastdwm.models.meanflow import meanflow_shapes
from fastdwm.models.mlp import mlp_world_shapes
from fastdwm.models.nets import init_mlp
from fastdwm.models.policy import Policy
from fastdwm.models.rebrac import init_critics, init_policy
from fastdwm.models.reward import reward_shapes
from fastdwm.tasks import get_task

TASK, OBS_DIM, ACTION_DIM, HIDDEN_LAYERS = "hopper-medium", 11, 3, 3

AXES = {"B": (1, 10, 33, 132), "M": (16, 64, 256, 4096), "K": (1, 5, 10), "H": (1, 5, 10), "D": (256, 512)}
MAX_ROWS = {"cpu": 2560, "cuda": 1 << 16}
"""most particles of all episodes; with more, eager autograd runs out of memory or one call takes minutes"""


@dataclass(frozen=True, order=True)
class Size:
    """B episodes with M particles, H imagined steps of K network calls, hidden width D; MeanFlow has K = 1."""

    B: int = 1
    M: int = 16
    K: int = 10
    H: int = 5
    D: int = 256
    world: str = "diffusion"
    device: str = "cpu"

    @property
    def rows(self) -> int:
        return self.B * self.M

    def __str__(self) -> str:
        axes = [f"{name}{getattr(self, name)}" for name in AXES]
        return "-".join([self.world, *axes, self.device])

    @property
    def shape(self) -> dict[str, str | int]:
        """Axes that identify a problem in a table."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "device"}


TARGETS = (Size(B=1, M=16), Size(B=1, M=64), Size(B=10, M=16), Size(M=64, device="cuda"))
"""sizes at which the fused operators have to beat the others"""

DEFAULT = {
    "cpu": (
        *TARGETS[:3],
        Size(M=256),
        Size(K=1, world="meanflow"),
        Size(M=64, K=1, world="meanflow"),
        Size(H=1),
        Size(K=5),
    ),
    "cuda": (
        Size(M=64),
        Size(M=64, K=1, world="meanflow"),
        Size(M=64, K=5),
        Size(M=16),
        Size(M=256),
        Size(B=33, M=16),
        Size(B=132, M=16),
        Size(M=4096, D=512),
    ),
}


def sizes(device: str, full: bool) -> list[Size]:
    """Sizes of DEFAULT, or all combinations of AXES up to MAX_ROWS."""
    if not full:
        return [replace(size, device=device) for size in DEFAULT[device]]
    every = [Size(*values, device=device) for values in product(*AXES.values())]
    # A diffusion sampler of one call costs what MeanFlow does.
    every = [replace(size, world="meanflow") if size.K == 1 else size for size in every]
    return [size for size in every if size.rows <= MAX_ROWS[device]]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Problem:
    """Random float32 models and inputs of one size, made when first used."""

    size: Size

    @cached_property
    def bundle(self) -> Bundle:
        """Networks as training initialises them, except a policy with larger actions."""
        hidden, task = (self.size.D,) * HIDDEN_LAYERS, get_task(TASK)
        dims = task.obs_dim, task.action_dim
        diffusion = DiffusionConfig(hidden=hidden, denoise_steps=self.size.K)
        meanflow, mlp, reward = (kind(hidden=hidden) for kind in (MeanFlowConfig, MLPConfig, RewardConfig))
        policy = init_policy(*dims, hidden, generator(0))
        policy[f"w{HIDDEN_LAYERS}"] *= 300
        scales = {"obs_mean": 0.1, "obs_std": 1.5, "delta_mean": 0.0, "delta_std": 0.3}
        return Bundle(
            task=task,
            dataset={"id": "made up"},
            policy=policy,
            critics=init_critics(*dims, hidden, generator(1)),
            reward=init_mlp(reward_shapes(*dims, reward), generator(3)),
            worlds={
                "diffusion": TrainedModel(diffusion, init_mlp(denoiser_shapes(*dims, diffusion), generator(2))),
                "meanflow": TrainedModel(meanflow, init_mlp(meanflow_shapes(*dims, meanflow), generator(7))),
                "mlp": TrainedModel(mlp, init_mlp(mlp_world_shapes(*dims, mlp), generator(8))),
            },
            statistics={name: torch.full((OBS_DIM,), x) for name, x in scales.items()},
            rebrac_config=ReBRACConfig(hidden=hidden).for_task(task),
            reward_config=reward,
            report={},
            versions={},
        )

    @cached_property
    def world(self):
        return self.bundle.world(self.size.world, device=self.size.device)

    @cached_property
    def policy(self) -> Policy:
        return Policy.mlp(self.bundle.policy).to(self.size.device)

    @cached_property
    def config(self) -> ITPOConfig:
        """Visible steps, always from the base policy, so that all decisions are alike."""
        return ITPOConfig(horizon=self.size.H, particles=self.size.M, optimiser="sgd", inner_lr=1e-3, reset="decision")

    @cached_property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """params (B, P), obs (B, S), noise (H, K, B, M, S) of an objective."""
        size = self.size
        base = self.policy.base.repeat(size.B, 1)
        params = base + 0.01 * self.normal(4, *base.shape)
        noise = self.normal(5, size.H, size.K, size.B, size.M, OBS_DIM)
        return params, self.normal(6, size.B, OBS_DIM), noise

    def normal(self, seed: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator(seed)).to(self.size.device)

    @cached_property
    def reference(self) -> ReferenceObjective:
        return ReferenceObjective(self.policy, self.world, self.config)

    @cached_property
    def fused(self) -> FusedObjective:
        return FusedObjective(self.policy, self.world, self.config)

    @property
    def precision(self) -> str:
        """Precision of the fused operators' operands."""
        return self.fused.models.sampler.precision
