"""Fused operators, one folder each: contract, reference and Triton kernel. Imports torch and triton, nothing else.

Empty so far: every model runs on the plain torch path of `fastdwm`.
"""
