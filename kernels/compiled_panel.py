"""The matrix product of the CPU kernels, a panel of columns at a time, emitted as LLVM code.

By hand, since numba leaves loops to LLVM, which does not keep a tile of sums in registers. Float32, width 256, on a
Zen 5 core: 230 GFLOP/s from 8 rows on, where MKL does 80 to 100 and oneDNN 90 to 210.
"""

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

LANES, TALL = (16, 8) if get_host_cpu_features().get("avx512f") else (8, 4)
"""of a vector, and rows of the largest tile: with two vectors to a row, its sums just fit the registers"""

INT, FLOAT, VECTOR = ir.IntType(64), ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)


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


def panel(vectors: int):
    """The intrinsic z += x w for `vectors` vectors of columns of w and z; one vector: for its first `columns` lanes.

    x (rows, depth) with strides x_row and x_k, w (depth, .) and z (rows, .) with row strides w_row and z_row. Rows are
    taken in tiles of 8 (TALL), then 4, 2 and 1. The sums of a tile stay in registers for the whole depth; one vector
    of w feeds all its rows.
    """

    def emit(context, b, signature, args):
        x, x_row, x_k, w, w_row, z, z_row, rows, depth, columns = args
        load, store = emit_access(b, columns, vectors)

        def tile(height, first):
            starts = [b.gep(z, [b.mul(b.add(first, INT(r)), z_row)]) for r in range(height)]

            def add_products(k, sums):
                weights = [load(b.gep(w, [b.mul(k, w_row)]), v) for v in range(vectors)]
                column = b.gep(x, [b.add(b.mul(first, x_row), b.mul(k, x_k))])
                factors = [emit_broadcast(b, b.load(b.gep(column, [b.mul(INT(r), x_row)]))) for r in range(height)]
                products = [b.fmul(f, each, flags=("contract",)) for f in factors for each in weights]
                return [b.fadd(p, total, flags=("contract",)) for p, total in zip(products, sums, strict=True)]

            sums = emit_loop(b, depth, [load(p, v) for p in starts for v in range(vectors)], add_products)
            for i, total in enumerate(sums):
                store(total, starts[i // vectors], i % vectors)

        left, height = rows, TALL
        while height:
            first = b.sub(rows, left)
            count = b.sdiv(left, INT(height))
            emit_loop(b, count, [], lambda i, _, h=height, f=first: tile(h, b.add(f, b.mul(i, INT(h)))) or [])
            left, height = b.srem(left, INT(height)), height // 2
        return context.get_dummy_value()

    def typed(typing, x, x_row, x_k, w, w_row, z, z_row, rows, depth, columns):
        pointer, size = types.CPointer(types.float32), types.int64
        return types.void(pointer, size, size, pointer, size, pointer, size, size, size, size), emit

    return intrinsic(typed)


wide_panel, narrow_panel = panel(2), panel(1)
