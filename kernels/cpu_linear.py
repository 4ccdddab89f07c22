"""Matrix products of the references on a CPU, by the faster of torch's two libraries, oneDNN or MKL.

On an AMD Zen 5 core, float32, width 256: MKL reaches 80, 98, 100 GFLOP/s at 16, 64, 160 rows, oneDNN 90, 165, 200. A
call of oneDNN costs 15 us, one of MKL 4 us, so MKL computes the small products.
"""

import torch
from torch import Tensor

ONEDNN_MIN_PRODUCTS = 1 << 20
"""multiply-adds above which oneDNN is faster"""

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _use_onednn(x: Tensor, w: Tensor) -> bool:
    n_products = x.shape[-2] * w.shape[-2] * w.shape[-1]
    return HAS_ONEDNN and n_products > ONEDNN_MIN_PRODUCTS and x.dtype == torch.float32 and not x.is_cuda


def linear(x: Tensor, w: Tensor, b: Tensor | None = None, activation: str = "none") -> Tensor:
    """activation(x @ w + b), for "relu", "tanh" or "none"; any device and dtype; newly allocated.

    x: (N, d_in) and w: (d_in, d_out), b: (d_out,); or all with a leading axis B. Transposed views cost nothing.
    """
    if _use_onednn(x, w):
        if w.dim() == 2:
            return _onednn(x, w, b, activation)
        biases = [None] * len(w) if b is None else b
        return torch.stack([_onednn(*each, activation) for each in zip(x, w, biases, strict=True)])
    if b is None:
        y = x @ w
    else:
        y = torch.addmm(b, x, w) if w.dim() == 2 else torch.baddbmm(b.unsqueeze(1), x, w)
    return y if activation == "none" else y.relu_() if activation == "relu" else y.tanh_()


def activation_backward(grad: Tensor, y: Tensor, activation: str) -> Tensor:
    """Gradient of the argument of an activation from that of its result y."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, y, 0)
    return torch.ops.aten.tanh_backward(grad, y)


def _onednn(x: Tensor, w: Tensor, b: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, w.mT, b, activation, [], "")
