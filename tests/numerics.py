"""Tolerances in units of the dtype's eps, for the worst row: a global ratio would hide one wrong row."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

EPS = {"ieee": 2.0**-23, "fp16": 2.0**-10}
"""relative spacing of the operands of a product in each precision"""

BOUND = {"ieee": 16.0, "fp16": 2.0}
"""largest accepted error in eps; a test that accepts more states the measured value"""


OPERANDS = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "addmm_": (1, 2),
    "baddbmm": (1, 2),
    "_linear_pointwise": (0, 1),
}
"""positions of the multiplied arguments of torch's products"""


class Products(TorchDispatchMode):
    """Round the operands of torch's products to a precision; sums and results keep their dtype."""

    def __init__(self, precision: str):
        super().__init__()
        self.precision = precision

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        rounded = OPERANDS.get(func._schema.name.split("::")[1], ()) if self.precision == "fp16" else ()
        args = [x.half().to(x.dtype) if i in rounded else x for i, x in enumerate(args)]
        return func(*args, **(kwargs or {}))


def row_error(actual: Tensor, expected: Tensor) -> Tensor:
    """RMS error of each row over the RMS of the whole expected tensor, (N,) float64."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    scale = expected.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return (actual - expected).flatten(0, -2).square().mean(-1).sqrt() / scale


def assert_close(actual: Tensor, expected_fp64: Tensor, eps: float, bound: float = 16.0) -> None:
    """Fail unless every row of `actual` is within `bound * eps` of `expected_fp64`.

    Rejects a wrong shape and any non-finite value first; the message shows the row, its values and the ratio reached.
    """
    assert actual.shape == expected_fp64.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected_fp64.shape)}"
    assert torch.isfinite(expected_fp64).all(), "the expected values are not finite"
    bad = (~torch.isfinite(actual)).nonzero()
    assert len(bad) == 0, f"{len(bad)} values are not finite, first at {tuple(bad[0].tolist())}"
    error = row_error(actual, expected_fp64)
    row = int(error.argmax())
    ratio = float(error[row]) / eps
    values = [t.detach().flatten(0, -2)[row][:6].tolist() for t in (actual, expected_fp64)]
    assert ratio <= bound, f"row {row}: {ratio:.3g} eps > {bound:.3g}\n  actual   {values[0]}\n  expected {values[1]}"


def assert_within_twice(actual: Tensor, eager: Tensor, expected_fp64: Tensor, precision: str) -> None:
    """Fail unless the error of `actual` is at most twice that of plain torch in the same precision, over all values.

    Errors below half of BOUND pass: for a few rows torch may use more exact products than requested.
    """
    expected = expected_fp64.double().cpu()
    error, torch_error = (float((t.detach().double().cpu() - expected).norm()) for t in (actual, eager))
    floor = 0.5 * BOUND[precision] * EPS[precision] * float(expected.norm())
    assert error <= max(2 * torch_error, floor), f"error {error:.3g}, plain torch {torch_error:.3g}, floor {floor:.3g}"
