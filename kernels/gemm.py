"""The matrix product of the CPU kernels, emitted as LLVM code, one tile of rows and columns at a time.

It is written by hand because LLVM does not keep a tile of sums in registers in the loops that numba compiles.
`bench/cpu_peak.py` measures how near it comes to the processor's peak.
"""

from functools import partial
from typing import NamedTuple

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic


def has_avx512() -> bool:
    """Whether numba's target has AVX-512: this processor, or the one that NUMBA_CPU_FEATURES describes."""
    if config.CPU_FEATURES is None:
        return bool(get_host_cpu_features().get("avx512f"))
    return "+avx512f" in config.CPU_FEATURES.split(",")


LANES, TALL = (16, 8) if has_avx512() else (8, 4)
"""lanes of a vector, and rows of the largest tile, whose sums just fit the registers with three vectors to a row"""

UNROLL = 2
"""unrolled steps along the depth, which share their address arithmetic"""

AHEAD = 32
"""distance, in vectors, of the prefetches of w, whose rows are too far apart for the processor to prefetch itself"""

INT, FLOAT, VECTOR = ir.IntType(64), ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)


class Operands(NamedTuple):
    """Operands of a product, as LLVM values: pointers, distances between rows, and sizes."""

    x: ir.Value
    x_row: ir.Value
    w: ir.Value
    w_row: ir.Value
    z: ir.Value
    z_row: ir.Value
    start: ir.Value
    start_row: ir.Value
    act_deriv: ir.Value
    rows: ir.Value
    depth: ir.Value
    columns: ir.Value


def emit_loop(b: ir.IRBuilder, count, carried: list, body) -> list:
    """for i in range(count): carried = body(i, carried)."""
    before, head, inside, after = b.block, *(b.append_basic_block(name) for name in ("head", "inside", "after"))
    b.branch(head)
    b.position_at_end(head)
    values = [b.phi(value.type) for value in (INT(0), *carried)]
    for phi, value in zip(values, (INT(0), *carried), strict=True):
        phi.add_incoming(value, before)
    b.cbranch(b.icmp_signed("<", values[0], count), inside, after)
    b.position_at_end(inside)
    results = body(values[0], values[1:])
    for phi, value in zip(values, (b.add(values[0], INT(1)), *results), strict=True):
        phi.add_incoming(value, b.block)
    b.branch(head)
    b.position_at_end(after)
    return values[1:]


def emit_access(b: ir.IRBuilder, columns, vectors: int):
    """load(pointer, v) and store(value, pointer, v) of vector v; of its first `columns` lanes if vectors is 1."""
    pointer, mask_type = VECTOR.as_pointer(), ir.VectorType(ir.IntType(1), LANES)
    name, align = f"v{LANES}f32.p0", ir.IntType(32)(4)
    if vectors == 1:
        lanes = ir.Constant(ir.VectorType(INT, LANES), list(range(LANES)))
        mask = b.icmp_signed("<", lanes, emit_broadcast(b, columns))
        read = ir.FunctionType(VECTOR, [pointer, align.type, mask_type, VECTOR])
        write = ir.FunctionType(ir.VoidType(), [VECTOR, pointer, align.type, mask_type])
        read = get_or_insert_function(b.module, read, f"llvm.masked.load.{name}")
        write = get_or_insert_function(b.module, write, f"llvm.masked.store.{name}")

    def place(p, v):
        return b.bitcast(b.gep(p, [INT(v * LANES)]), pointer)

    def load(p, v):
        if vectors > 1:
            return b.load(place(p, v), align=4)
        return b.call(read, [place(p, v), align, mask, ir.Constant(VECTOR, [0.0] * LANES)])

    def store(value, p, v):
        b.store(value, place(p, v), align=4) if vectors > 1 else b.call(write, [value, place(p, v), align, mask])

    return load, store


def emit_broadcast(b: ir.IRBuilder, scalar):
    """A vector with the scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    one = b.insert_element(undefined, scalar, ir.IntType(32)(0))
    return b.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def emit_prefetch(b: ir.IRBuilder, pointer) -> None:
    """Prefetch into the nearest cache; an invalid address does no harm."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    call = get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(call, [b.bitcast(pointer, byte), number(0), number(3), number(1)])


def emit_optional(b: ir.IRBuilder, base, load, place, instead, default: float):
    """The vector at `place`, or the default if its base is null; in that case a load from `instead` is discarded."""
    absent = b.icmp_unsigned("==", b.ptrtoint(base, INT), INT(0))
    value = load(b.select(absent, instead, place))
    return b.select(absent, ir.Constant(VECTOR, [default] * LANES), value)


def emit_opaque(b: ir.IRBuilder, pointer):
    """The same pointer, hidden from the optimiser, which would derive each row's pointer from the row before."""
    return b.asm(ir.FunctionType(pointer.type, [pointer.type]), "", "=r,0", [pointer], False)


def emit_tile(b: ir.IRBuilder, op: Operands, height: int, vectors: int, transposed: bool, first, column) -> None:
    """Compute `height` rows from `first` and `vectors` vectors of columns from `column`; a single vector is masked."""
    load, store = emit_access(b, b.sub(op.columns, column), vectors)
    positions = [(r, v) for r in range(height) for v in range(vectors)]
    rows = [b.add(first, INT(r)) for r in range(height)]

    def place(base, stride):
        return [b.gep(base, [b.add(b.mul(row, stride), column)]) for row in rows]

    z, starts, act_derivs = place(op.z, op.z_row), place(op.start, op.start_row), place(op.act_deriv, op.z_row)
    w = b.gep(op.w, [column])
    # The unit stride of x must be a constant for the compiler.
    x = [emit_opaque(b, b.gep(op.x, [row if transposed else b.mul(row, op.x_row)])) for row in rows]

    def add_products(k, sums):
        row = b.gep(w, [b.mul(k, op.w_row)])
        weights = [load(row, v) for v in range(vectors)]
        later = b.gep(row, [b.mul(op.w_row, INT(AHEAD // vectors))])
        for v in range(vectors):
            emit_prefetch(b, b.gep(later, [INT(v * LANES)]))
        offset = b.mul(k, op.x_row) if transposed else k
        factors = [emit_broadcast(b, b.load(b.gep(each, [offset]))) for each in x]
        products = [b.fmul(factors[r], weights[v], flags=("contract",)) for r, v in positions]
        return [b.fadd(p, total, flags=("contract",)) for p, total in zip(products, sums, strict=True)]

    def unrolled(i, sums):
        for k in range(UNROLL):
            sums = add_products(b.add(b.mul(i, INT(UNROLL)), INT(k)), sums)
        return sums

    # act_deriv was saved long ago: prefetch it, or without it the destination, while the sums are computed.
    absent = b.icmp_unsigned("==", b.ptrtoint(op.act_deriv, INT), INT(0))
    ends = [b.select(absent, *pair) for pair in zip(z, act_derivs, strict=True)]
    for r, v in positions:
        emit_prefetch(b, b.gep(ends[r], [INT(v * LANES)]))
    sums = [emit_optional(b, op.start, partial(load, v=v), starts[r], z[r], 0.0) for r, v in positions]
    n_unrolled = b.sdiv(op.depth, INT(UNROLL))
    sums = emit_loop(b, n_unrolled, sums, unrolled)
    depth_done = b.mul(n_unrolled, INT(UNROLL))
    sums = emit_loop(b, b.sub(op.depth, depth_done), sums, lambda i, sums: add_products(b.add(depth_done, i), sums))
    for (r, v), total in zip(positions, sums, strict=True):
        act_deriv = emit_optional(b, op.act_deriv, partial(load, v=v), act_derivs[r], z[r], 1.0)
        store(b.fmul(total, act_deriv), z[r], v)


def widths(height: int) -> list[int]:
    """Widths, in vectors, of the tiles of this height, the widest first; fewer rows leave room for more vectors."""
    widest = 3 if height == TALL else min(2 * TALL // height, TALL)
    return sorted({widest, 2, 1}, reverse=True)


def emit_count(b: ir.IRBuilder, columns, vectors: int):
    """Number of panels of `vectors` vectors that are taken from the remaining columns."""
    if vectors == 1:
        return b.sdiv(b.add(columns, INT(LANES - 1)), INT(LANES))
    full = b.sdiv(columns, INT(LANES))
    if vectors == 3:
        # Four vectors make two panels of two, rather than one of three and one of one.
        full = b.sub(full, b.mul(INT(2), b.srem(b.mul(INT(2), full), INT(3))))
        full = b.select(b.icmp_signed("<", full, INT(0)), INT(0), full)
    return b.sdiv(full, INT(vectors))


def product(transposed: bool):
    """The intrinsic z = (start + x w) act_deriv, where x w is the matrix product and the rest is elementwise.

    x: (rows, depth), or (depth, rows) if transposed.   w: (depth, columns).   z, start, act_deriv: (rows, columns).
    x_row, ..: distance between rows; act_deriv has that of z.   A null start is 0; start_row = 0 repeats one row of it;
    a null act_deriv is 1.

    Rows are taken in tiles of 8 (TALL), then 4, 2 and 1. The sums of a tile stay in registers over the depth, which
    they run through in order, so that a row's result does not depend on its tile.
    """

    def emit(context, b, signature, args):
        op, first, height = Operands(*args), INT(0), TALL
        while height:
            count, column = b.sdiv(b.sub(op.rows, first), INT(height)), INT(0)
            for vectors in widths(height):
                n_panels = emit_count(b, b.sub(op.columns, column), vectors)
                emit_panels(b, op, (height, vectors, transposed), first, count, column, n_panels)
                column = b.add(column, b.mul(n_panels, INT(vectors * LANES)))
            first = b.add(first, b.mul(count, INT(height)))
            height //= 2
        return context.get_dummy_value()

    def typed(typing, x, x_row, w, w_row, z, z_row, start, start_row, act_deriv, rows, depth, columns):
        p, size = types.CPointer(types.float32), types.int64
        return types.void(p, size, p, size, p, size, p, size, p, size, size, size), emit

    return intrinsic(typed)


def emit_panels(b: ir.IRBuilder, op: Operands, kind: tuple, first, count, column, n_panels) -> None:
    """Compute `count` tiles of rows in each of `n_panels` panels of columns, which stays in the cache meanwhile."""
    height, vectors, _ = kind

    def in_panel(j, _):
        place = b.add(column, b.mul(j, INT(vectors * LANES)))

        def in_tile(i, _):
            emit_tile(b, op, *kind, b.add(first, b.mul(i, INT(height))), place)
            return []

        emit_loop(b, count, [], in_tile)
        return []

    emit_loop(b, n_panels, [], in_panel)


product_of_rows, product_of_columns = product(transposed=False), product(transposed=True)


@intrinsic
def transpose_tile(typing, x, x_row, z, z_row):
    """z = x^T of LANES rows and columns, in registers; x and z are pointers, x_row and z_row distances between rows."""

    def emit(context, b, signature, args):
        x, x_row, z, z_row = args
        load, store = emit_access(b, None, 2)
        rows = [load(b.gep(x, [b.mul(INT(i), x_row)]), 0) for i in range(LANES)]
        lane, size = range(LANES), ir.VectorType(ir.IntType(32), LANES)
        for s in (1 << i for i in range(LANES.bit_length() - 1)):
            # In each pair of rows i and i + s, swap blocks of s columns across the diagonal.
            upper = ir.Constant(size, [LANES + n - s if n & s else n for n in lane])
            lower = ir.Constant(size, [LANES + n if n & s else n + s for n in lane])
            for i in lane:
                if not i & s:
                    pair = rows[i], rows[i + s]
                    rows[i], rows[i + s] = b.shuffle_vector(*pair, upper), b.shuffle_vector(*pair, lower)
        for i, row in enumerate(rows):
            store(row, b.gep(z, [b.mul(INT(i), z_row)]), 0)
        return context.get_dummy_value()

    pointer, size = types.CPointer(types.float32), types.int64
    return types.void(pointer, size, pointer, size), emit
