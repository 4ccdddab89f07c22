"""Fused operators, one folder each: checks, torch reference, Triton and CPU kernels. Imports torch,
triton and numba, nothing else.

sampler     all K steps of a world model's sampler in one launch; with K = 1 one network call
policy      the policy of every episode on its own particles, with weight gradients
frozen_mlp  reward model and critics
update      the optimiser steps of all policies, and the bound on how far their actions move
commit      keeps or rolls back a decision inside a CUDA graph
noise       normal noise as a function of seed, time and position
rollout     the imagined return and its gradient, composed of the others
decision    a whole decision by the default rule on a CPU, in one call
training    MLPs in training on a CPU: losses, all gradients, Adam

Every operator has a reference in torch, with gradients derived by hand, that runs on a CPU in any dtype. In float32 the
sampler and the rollout need the CPU kernels that numba compiles (`cpu.py`); the policy without a gradient, the default
rule's step and bound, and training use such kernels if numba is installed.
"""
