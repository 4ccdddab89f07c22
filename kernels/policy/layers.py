"""The layers of one policy for a tile of its particles, shared by the kernels of policy and rollout."""

import triton
import triton.language as tl

from fastdwm_kernels.dense import activate, dense, limit, load_vector, through_activation, tile_offsets


@triton.jit
def forward_layers(x_ptr, weights_ptr, flat_ptr, hidden_ptr, rows, row_mask, NET: tl.constexpr,
                   BLOCK_D: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Actions (BLOCK_A, BLOCK_M) of one policy for the observations x (rows, S); writes hidden (rows, NET.n_cols).

    weights: the parameters in the operand dtype.   flat: the same in fp32, for the biases.
    """
    N_HIDDEN: tl.constexpr = len(NET.cols)
    S: tl.constexpr = NET.sizes[0]
    A: tl.constexpr = NET.sizes[N_HIDDEN + 1]
    C: tl.constexpr = NET.n_cols
    for i in tl.static_range(N_HIDDEN):
        D = NET.sizes[i + 1]
        w_ptr = weights_ptr + NET.w[i]
        if i == 0:
            z = dense(w_ptr, x_ptr, rows, row_mask, S, S, D, D, 1, BLOCK_D, BLOCK_K)
        else:
            D_IN = NET.sizes[i]
            h_ptr = hidden_ptr + NET.cols[i - 1]
            z = dense(w_ptr, h_ptr, rows, row_mask, C, D_IN, D, D, 1, BLOCK_D, BLOCK_K)
        z += load_vector(flat_ptr + NET.b[i], D, BLOCK_D)
        h = activate(z, NET)
        at, mask = tile_offsets(rows, row_mask, C, D, BLOCK_D)
        tl.store(hidden_ptr + NET.cols[i] + at, h.to(hidden_ptr.dtype.element_ty), mask=mask)
        tl.debug_barrier()
    D_LAST: tl.constexpr = NET.sizes[N_HIDDEN]
    w_ptr = weights_ptr + NET.w[N_HIDDEN]
    h_ptr = hidden_ptr + NET.cols[N_HIDDEN - 1]
    z = dense(w_ptr, h_ptr, rows, row_mask, C, D_LAST, A, A, 1, BLOCK_A, BLOCK_K)
    z += load_vector(flat_ptr + NET.b[N_HIDDEN], A, BLOCK_A)
    return limit(z, NET)


@triton.jit
def backward_layers(dz_out_ptr, weights_ptr, hidden_ptr, dz_ptr, rows, row_mask, NET: tl.constexpr,
                    BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Write the layer gradients dz (rows, NET.n_cols) of one policy from those of its last layer, dz_out (rows, A)."""
    N_HIDDEN: tl.constexpr = len(NET.cols)
    A: tl.constexpr = NET.sizes[N_HIDDEN + 1]
    C: tl.constexpr = NET.n_cols
    for i in tl.static_range(N_HIDDEN - 1, -1, -1):
        D = NET.sizes[i + 1]
        D_NEXT = NET.sizes[i + 2]
        w_ptr = weights_ptr + NET.w[i + 1]
        if i == N_HIDDEN - 1:
            dh = dense(w_ptr, dz_out_ptr, rows, row_mask, A, A, D, 1, A, BLOCK_D, BLOCK_K)
        else:
            above_ptr = dz_ptr + NET.cols[i + 1]
            dh = dense(w_ptr, above_ptr, rows, row_mask, C, D_NEXT, D, 1, D_NEXT, BLOCK_D, BLOCK_K)
        at, mask = tile_offsets(rows, row_mask, C, D, BLOCK_D)
        h = tl.load(hidden_ptr + NET.cols[i] + at, mask=mask, other=0.0)
        dz = through_activation(dh, h, NET)
        tl.store(dz_ptr + NET.cols[i] + at, dz.to(dz_ptr.dtype.element_ty), mask=mask)
        tl.debug_barrier()


@triton.jit
def input_gradient(dz_ptr, weights_ptr, rows, row_mask, NET: tl.constexpr, BLOCK_S: tl.constexpr,
                   BLOCK_K: tl.constexpr):  # fmt: skip
    """Gradient (BLOCK_S, BLOCK_M) of the observations, from the dz that `backward_layers` wrote."""
    S: tl.constexpr = NET.sizes[0]
    C: tl.constexpr = NET.n_cols
    D_FIRST: tl.constexpr = NET.sizes[1]
    w_ptr = weights_ptr + NET.w[0]
    return dense(w_ptr, dz_ptr, rows, row_mask, C, D_FIRST, S, 1, D_FIRST, BLOCK_S, BLOCK_K)
