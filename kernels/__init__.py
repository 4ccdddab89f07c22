"""Fused operators, one folder each: contract, torch reference, Triton and CPU kernels. Imports torch,
triton and numba, nothing else.

reverse_step   one reverse-diffusion step of the frozen denoiser
reverse_chain  all K of them, one launch; with K = 1 one network call
policy         the policy of every episode on its own particles, with weight gradients
frozen_mlp     reward model and critics
update         the optimiser steps of all policies, and the limit of how far they go
commit         the end of a captured decision: what is kept, what is rolled back
rollout        the imagined return and its gradient, composed of the others
decision       a whole decision by the default rule on a CPU, one call

Every operator runs on a CPU, in any dtype, by its reference, which is derived by hand and needs no autograd tape. The
chain and the whole rollout in float32 run by kernels that numba compiles (`compiled.py`), without a fallback; the
policy without a gradient and the default's step and limit by such kernels where numba is installed.
"""
