"""The matrix product of the CPU kernels, emitted as LLVM code, a tile of rows and columns at a time.

By hand, since numba leaves loops to LLVM, which does not keep a tile of sums in registers. What limits it is measured
by `bench/cpu_peak.py`.
"""

from functools import partial
from typing import NamedTuple

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic


def has_avx512() -> bool:
    """Of the processor that numba compiles for: this one, unless NUMBA_CPU_FEATURES names another."""
    if config.CPU_FEATURES is None:
        return bool(get_host_cpu_features().get("avx512f"))
    return "+avx512f" in config.CPU_FEATURES.split(",")


LANES, TALL = (16, 8) if has_avx512() else (8, 4)
"""of a vector, and rows of the largest tile: with three vectors to a row, its sums just fit the registers"""

UNROLL = 2
"""steps along the depth that share the arithmetic of their addresses, which takes the place of products otherwise"""

AHEAD = 32
"""vectors of w that are asked for ahead of their use: its rows are too far apart for the processor to guess"""

INT, FLOAT, VECTOR = ir.IntType(64), ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)


class Operands(NamedTuple):
    """What a product reads and writes, as LLVM values: pointers, distances between rows, and sizes."""

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
    """load(pointer, v) and store(value, pointer, v) of vector v; if vectors is 1, of its first `columns` lanes."""
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
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    one = b.insert_element(undefined, scalar, ir.IntType(32)(0))
    return b.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def emit_prefetch(b: ir.IRBuilder, pointer) -> None:
    """Into the nearest cache, to be read; any address will do."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    call = get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(call, [b.bitcast(pointer, byte), number(0), number(3), number(1)])


def emit_optional(b: ir.IRBuilder, base, load, place, instead, default: float):
    """What is at a place; or, where its base is null, the default: then something else is read and forgotten."""
    absent = b.icmp_unsigned("==", b.ptrtoint(base, INT), INT(0))
    found = load(b.select(absent, instead, place))
    return b.select(absent, ir.Constant(VECTOR, [default] * LANES), found)


def emit_opaque(b: ir.IRBuilder, pointer):
    """The same pointer, of which the compiler knows nothing: it would compute each row's from the one before."""
    return b.asm(ir.FunctionType(pointer.type, [pointer.type]), "", "=r,0", [pointer], False)


def emit_tile(b: ir.IRBuilder, at: Operands, height: int, vectors: int, transposed: bool, first, column) -> None:
    """Rows first.., `height` of them, and columns column.., so many vectors (one: only as many lanes as there are)."""
    load, store = emit_access(b, b.sub(at.columns, column), vectors)
    cells = [(r, v) for r in range(height) for v in range(vectors)]
    rows = [b.add(first, INT(r)) for r in range(height)]

    def place(base, stride):
        return [b.gep(base, [b.add(b.mul(row, stride), column)]) for row in rows]

    z, starts, act_derivs = place(at.z, at.z_row), place(at.start, at.start_row), place(at.act_deriv, at.z_row)
    w = b.gep(at.w, [column])
    # The compiler has to know which of the strides of x is one.
    x = [emit_opaque(b, b.gep(at.x, [row if transposed else b.mul(row, at.x_row)])) for row in rows]

    def add_products(k, sums):
        row = b.gep(w, [b.mul(k, at.w_row)])
        weights = [load(row, v) for v in range(vectors)]
        later = b.gep(row, [b.mul(at.w_row, INT(AHEAD // vectors))])
        for v in range(vectors):
            emit_prefetch(b, b.gep(later, [INT(v * LANES)]))
        along = b.mul(k, at.x_row) if transposed else k
        factors = [emit_broadcast(b, b.load(b.gep(each, [along]))) for each in x]
        products = [b.fmul(factors[r], weights[v], flags=("contract",)) for r, v in cells]
        return [b.fadd(p, total, flags=("contract",)) for p, total in zip(products, sums, strict=True)]

    def several(i, sums):
        for k in range(UNROLL):
            sums = add_products(b.add(b.mul(i, INT(UNROLL)), INT(k)), sums)
        return sums

    # What was saved long ago comes while the sums are made; without it the place that they go to does.
    absent = b.icmp_unsigned("==", b.ptrtoint(at.act_deriv, INT), INT(0))
    ends = [b.select(absent, *pair) for pair in zip(z, act_derivs, strict=True)]
    for r, v in cells:
        emit_prefetch(b, b.gep(ends[r], [INT(v * LANES)]))
    sums = [emit_optional(b, at.start, partial(load, v=v), starts[r], z[r], 0.0) for r, v in cells]
    whole = b.sdiv(at.depth, INT(UNROLL))
    sums = emit_loop(b, whole, sums, several)
    done = b.mul(whole, INT(UNROLL))
    sums = emit_loop(b, b.sub(at.depth, done), sums, lambda i, sums: add_products(b.add(done, i), sums))
    for (r, v), total in zip(cells, sums, strict=True):
        act_deriv = emit_optional(b, at.act_deriv, partial(load, v=v), act_derivs[r], z[r], 1.0)
        store(b.fmul(total, act_deriv), z[r], v)


def widths(height: int) -> list[int]:
    """Vectors of columns in the tiles of this height, the widest first: few rows need more to fill the registers."""
    widest = 3 if height == TALL else min(2 * TALL // height, TALL)
    return sorted({widest, 2, 1}, reverse=True)


def emit_count(b: ir.IRBuilder, columns, vectors: int):
    """How many panels of so many vectors are taken of the columns that are left."""
    if vectors == 1:
        return b.sdiv(b.add(columns, INT(LANES - 1)), INT(LANES))
    whole = b.sdiv(columns, INT(LANES))
    if vectors == 3:
        # Two of two, rather than one of three and one of one.
        whole = b.sub(whole, b.mul(INT(2), b.srem(b.mul(INT(2), whole), INT(3))))
        whole = b.select(b.icmp_signed("<", whole, INT(0)), INT(0), whole)
    return b.sdiv(whole, INT(vectors))


def product(transposed: bool):
    """The intrinsic z = (start + x w) act_deriv, element by element but for x w.

    x (rows, depth), or (depth, rows) if transposed, with distance x_row between its rows; w (depth, columns), z, start
    and act_deriv (rows, columns) likewise, act_deriv with z's distance. start null: 0; with distance 0: one row for
    all. act_deriv null: 1.

    Rows are taken in tiles of 8 (TALL), then 4, 2 and 1. The sums of a tile stay in registers for the whole depth,
    which is in order, so that a row's result does not depend on its tile.
    """

    def emit(context, b, signature, args):
        at, first, height = Operands(*args), INT(0), TALL
        while height:
            count, column = b.sdiv(b.sub(at.rows, first), INT(height)), INT(0)
            for vectors in widths(height):
                n_panels = emit_count(b, b.sub(at.columns, column), vectors)
                emit_panels(b, at, (height, vectors, transposed), first, count, column, n_panels)
                column = b.add(column, b.mul(n_panels, INT(vectors * LANES)))
            first = b.add(first, b.mul(count, INT(height)))
            height //= 2
        return context.get_dummy_value()

    def typed(typing, x, x_row, w, w_row, z, z_row, start, start_row, act_deriv, rows, depth, columns):
        p, size = types.CPointer(types.float32), types.int64
        return types.void(p, size, p, size, p, size, p, size, p, size, size, size), emit

    return intrinsic(typed)


def emit_panels(b: ir.IRBuilder, at: Operands, kind: tuple, first, count, column, n_panels) -> None:
    """`count` tiles of rows in each of `n_panels` panels of columns, which stays in the cache for them."""
    height, vectors, _ = kind

    def in_panel(j, _):
        place = b.add(column, b.mul(j, INT(vectors * LANES)))

        def in_tile(i, _):
            emit_tile(b, at, *kind, b.add(first, b.mul(i, INT(height))), place)
            return []

        emit_loop(b, count, [], in_tile)
        return []

    emit_loop(b, n_panels, [], in_panel)


product_of_rows, product_of_columns = product(transposed=False), product(transposed=True)


@intrinsic
def transpose_tile(typing, x, x_row, z, z_row):
    """z = x^T of LANES rows and columns, in registers; pointers, and the distances between rows."""

    def emit(context, b, signature, args):
        x, x_row, z, z_row = args
        load, store = emit_access(b, None, 2)
        rows = [load(b.gep(x, [b.mul(INT(i), x_row)]), 0) for i in range(LANES)]
        lane, size = range(LANES), ir.VectorType(ir.IntType(32), LANES)
        for s in (1 << i for i in range(LANES.bit_length() - 1)):
            # Blocks of s rows and columns change places across the diagonal, of every two rows i and i + s.
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
