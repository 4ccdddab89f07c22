"""Activations of the CPU kernels and their derivatives, in place on the rows z (n, d) of a layer."""

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy import float32, int32

from fastdwm_kernels.cpu import RELU, TANH, helper, noinline


@intrinsic
def bits_of(typing, x):
    """The bits of a float32 as an int32."""
    return types.int32(types.float32), lambda context, b, signature, args: b.bitcast(args[0], ir.IntType(32))


@intrinsic
def from_bits(typing, x):
    """The float32 with the bits of an int32."""
    return types.float32(types.int32), lambda context, b, signature, args: b.bitcast(args[0], ir.FloatType())


@helper
def exp_of(x):
    """e^x to two units in the last place, for |x| <= 87: 2^n e^r with n an integer and |r| <= log(2) / 2."""
    # Adding 1.5 * 2^23 leaves the integer n in the lowest bits.
    shifted = x * float32(1.44269504) + float32(12582912.0)
    n = shifted - float32(12582912.0)
    r = x - n * float32(0.693359375) + n * float32(2.12194440e-4)
    p = float32(1.9875691500e-4) * r + float32(1.3981999507e-3)
    p = p * r + float32(8.3334519073e-3)
    p = p * r + float32(4.1665795894e-2)
    p = p * r + float32(1.6666665459e-1)
    p = p * r + float32(5.0000001201e-1)
    return (p * r * r + r + float32(1)) * from_bits(int32((bits_of(shifted) << 23) + (127 << 23)))


@helper
def silu(z, act_deriv):
    """z becomes z sigmoid(z), and act_deriv its derivative; NaN stays NaN, since z is a factor."""
    noinline()
    for i in range(len(z)):
        for j in range(z.shape[1]):
            v = z[i, j]
            e = exp_of(min(max(-v, float32(-87)), float32(87)))
            s = float32(1) / (float32(1) + e)
            z[i, j] = v * s
            act_deriv[i, j] = s * (float32(1) + v * (e * s))


@helper
def relu(z, act_deriv):
    """z becomes max(z, 0), and act_deriv its derivative, 0 at 0; NaN stays NaN."""
    noinline()
    for i in range(len(z)):
        for j in range(z.shape[1]):
            off = z[i, j] <= 0
            z[i, j] = float32(0) if off else z[i, j]
            act_deriv[i, j] = float32(0) if off else float32(1)


@helper
def fast_tanh(z, act_deriv):
    """`tanh` as accurate but in vectors, for the many numbers of hidden layers; NaN stays NaN."""
    noinline()
    for i in range(len(z)):
        for j in range(z.shape[1]):
            v = z[i, j]
            square = v * v
            # The series near zero, where 1 - exp(-2v) cancels.
            p = square * float32(62 / 2835) - float32(17 / 315)
            p = square * p + float32(2 / 15)
            p = square * p - float32(1 / 3)
            e = exp_of(float32(-2) * min(abs(v), float32(20)))
            far = (float32(1) - e) / (float32(1) + e)
            # A comparison that is false for NaN, which the series keeps.
            if square >= float32(1 / 16):
                t = -far if v < 0 else far
            else:
                t = v + v * square * p
            z[i, j] = t
            act_deriv[i, j] = float32(1) - t * t


@helper
def clip(z, act_deriv):
    """z becomes max(-1, min(1, z)), and act_deriv its derivative, 0 at and beyond +-1; NaN stays NaN."""
    for i in range(len(z)):
        for j in range(z.shape[1]):
            low, high = z[i, j] <= -1, z[i, j] >= 1
            z[i, j] = float32(-1) if low else float32(1) if high else z[i, j]
            act_deriv[i, j] = float32(0) if low or high else float32(1)


@helper
def activate(kind, z, act_deriv):
    """Apply the activation of a hidden layer to z in place, and write its derivative."""
    if kind == RELU:
        relu(z, act_deriv)
    else:
        fast_tanh(z, act_deriv)


@helper
def tanh(z, act_deriv):
    """z becomes tanh(z), and act_deriv its derivative.

    For the actions, which are few: with `fast_tanh` those of the trained policies would change in their last bit.
    """
    noinline()
    for i in range(len(z)):
        for j in range(z.shape[1]):
            z[i, j] = math.tanh(z[i, j])
            act_deriv[i, j] = float32(1) - z[i, j] * z[i, j]


@helper
def limit(kind, z, act_deriv):
    """Apply the output function to z in place, and write its derivative."""
    if kind == TANH:
        tanh(z, act_deriv)
    else:
        clip(z, act_deriv)
