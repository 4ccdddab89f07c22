"""Fused operators, one folder each: checks, torch reference, Triton and CPU kernels. Imports torch,
triton and numba, nothing else.

sampler     all K steps of a world model's sampler in one launch; with K = 1 one network call
policy      the policy of every episode on its own particles, with weight gradients
frozen_mlp  reward model and critics
update      the optimiser steps of all policies, and the limit of how far they go
commit      the end of a captured decision: what is kept, what is rolled back
rollout     the imagined return and its gradient, composed of the others
decision    a whole decision by the default rule on a CPU, one call
training    MLPs in training on a CPU: losses, all gradients, Adam

Every operator runs on a CPU, in any dtype, by its reference, which is derived by hand and needs no autograd tape. The
sampler and the whole rollout in float32 run by kernels that numba compiles (`cpu.py`), without a fallback; the
policy without a gradient, the default's step and limit, and trainings by such kernels where numba is installed.
"""
