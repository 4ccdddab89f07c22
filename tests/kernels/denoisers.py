"""A random denoiser with inputs and upstream gradient; the truth is autograd through the plain model in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdwm.models.diffusion import reverse_coefficients, time_embedding, vp_schedule
from fastdwm.models.nets import Params, init_mlp, map_params, mlp_shapes
from fastdwm.models.sampler import Sampler
from fastdwm_kernels.sampler import SamplerWeights, pack_sampler

FEATURES = 6


@dataclass(frozen=True)
class Problem:
    """A denoiser and its inputs on the CPU; coefficients and embedding are float64, all else float32."""

    params: Params
    coefficients: Tensor
    embedding: Tensor
    obs: Tensor
    action: Tensor
    noise: Tensor
    upstream: Tensor

    def weights(
        self, precision: str = "ieee", dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> SamplerWeights:
        params = map_params(lambda p: p.to(device, dtype), self.params)
        obs_dim, action_dim = self.obs.shape[1], self.action.shape[1]
        coefficients, embedding = self.coefficients.to(device), self.embedding.to(device)
        return pack_sampler(params, embedding, coefficients, obs_dim, action_dim, precision)

    def model(self) -> Sampler:
        """The plain model in float64, whose normalisation is the identity."""
        zero, one = torch.zeros(self.obs.shape[1]).double(), torch.ones(self.obs.shape[1]).double()
        steps = self.coefficients, self.embedding, len(self.coefficients)
        return Sampler(map_params(Tensor.double, self.params), *steps, 1.0, zero, one, zero, one)

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """obs and action as leaves that require gradients, and noise."""
        leaves = [t.to(device, dtype).requires_grad_() for t in (self.obs, self.action)]
        return *leaves, self.noise.to(device, dtype)

    def truth(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y_0 and the gradients of obs, action and y_K, float64, by autograd through the plain model."""
        obs, action, noise = self.inputs(torch.float64)
        y = self.model().next_obs(obs, action, noise.requires_grad_()) - obs
        dobs, daction, dnoise = torch.autograd.grad(y, (obs, action, noise), self.upstream.double())
        return y.detach(), dobs, daction, dnoise[0]


def make_problem(
    rows: int = 7,
    hidden: tuple[int, ...] = (48, 33),
    steps: int = 3,
    obs_dim: int = 5,
    action_dim: int = 2,
    target: str = "x0",
    seed: int = 0,
) -> Problem:
    g = torch.Generator().manual_seed(seed)
    params = init_mlp(mlp_shapes((2 * obs_dim + action_dim + FEATURES, *hidden, obs_dim)), g)
    return Problem(
        params=map_params(lambda p: 1.7 * p, params),
        coefficients=reverse_coefficients(vp_schedule(steps), target),
        embedding=time_embedding(steps, FEATURES),
        obs=torch.randn(rows, obs_dim, generator=g),
        action=torch.rand(rows, action_dim, generator=g) * 2 - 1,
        noise=torch.randn(steps, rows, obs_dim, generator=g),
        upstream=torch.randn(rows, obs_dim, generator=g),
    )
