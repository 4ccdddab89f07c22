"""Triton kernel of what reward and critics are asked about a decision that was really made."""

import triton
import triton.language as tl
from torch import Tensor

from fastdwm.kernels.aot import AotCase
from fastdwm.kernels.launch import pad_block, run

NUM_WARPS = 1


@triton.jit
def pair_kernel(obs_ptr, action_ptr, last_ptr, scales_ptr, pairs_ptr, S: tl.constexpr, A: tl.constexpr,
                BLOCK: tl.constexpr):  # fmt: skip
    """Inputs of the reward and of the critics in one real state.

    Grid      (B,)
    Reads     obs (B, S), action and last (B, A), scales (4, S)
    Writes    pairs (2, B, S + A): the normalised state and action, the state and last
    Requires  BLOCK >= S + A
    """
    episode, n_episodes = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    of_state, of_action = column < S, (column >= S) & (column < S + A)
    obs = tl.load(obs_ptr + episode * S + column, mask=of_state, other=0.0)
    seen = obs - tl.load(scales_ptr + column, mask=of_state, other=0.0)
    seen /= tl.load(scales_ptr + S + column, mask=of_state, other=1.0)
    at = episode * A + column - S
    action = tl.load(action_ptr + at, mask=of_action, other=0.0)
    last = tl.load(last_ptr + at, mask=of_action, other=0.0)
    inside = column < S + A
    tl.store(pairs_ptr + episode * (S + A) + column, seen + action, mask=inside)
    tl.store(pairs_ptr + (n_episodes + episode) * (S + A) + column, obs + last, mask=inside)


def pairs_of(obs: Tensor, action: Tensor, last_action: Tensor, scales: Tensor) -> Tensor:
    """(2, B, S + A): the inputs of the reward and those of the critics; one launch."""
    (n_episodes, obs_dim), action_dim = obs.shape, action.shape[1]
    pairs = obs.new_empty(2, n_episodes, obs_dim + action_dim)
    sizes = dict(S=obs_dim, A=action_dim, BLOCK=pad_block(obs_dim + action_dim))
    run(pair_kernel, (n_episodes,), obs, action, last_action, scales, pairs, **sizes, num_warps=NUM_WARPS)
    return pairs


def aot_cases() -> list[AotCase]:
    """The one there is."""
    return [
        AotCase(
            name="pair_kernel",
            kernel=pair_kernel,
            pointers={p: "fp32" for p in pair_kernel.arg_names if p.endswith("_ptr")},
            constexprs=dict(S=11, A=3, BLOCK=16),
            options={"num_warps": NUM_WARPS},
            tensor_cores=False,
        )
    ]
