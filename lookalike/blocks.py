"""Points in blocks of vector lanes: their products with many rows, and the nearest row, out of registers."""

from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = ["BLOCK", "REASSOCIATE", "ROWS", "add_row", "nearest_rows", "pack", "products", "squared_distance", "squares"]

# The kernels hold ROWS x VECTORS vectors of LANES sums in registers: 20 of AVX-512's 32, 10 of AVX2's 16.
LANES, VECTORS, ROWS = (16, 4, 5) if binding.get_host_cpu_features().get("avx512f") else (8, 2, 5)
BLOCK = LANES * VECTORS  # points a block
REASSOCIATE = {"reassoc", "contract", "nsz"}  # sums as vector instructions; infinities stay what they are


@numba.njit(nogil=True, cache=True)
def pack(points, blocks):
    """Copy the points into `blocks` `[blocks, dim, BLOCK]`, where a vector holds one coordinate of LANES points."""
    n, dim = points.shape
    for low in range(0, n, LANES):
        block, lane = low // BLOCK, low % BLOCK
        whole = dim // LANES * LANES if low + LANES <= n else 0
        for d in range(0, whole, LANES):
            _transpose(points, low, d, blocks, block, lane)
        for i in range(low, min(low + LANES, n)):
            for d in range(whole, dim):
                blocks[block, d, lane + i - low] = points[i, d]
    if n % BLOCK:
        blocks[n // BLOCK, :, n % BLOCK :] = 0.0


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def squares(points):
    """Squared length of each row."""
    found = np.zeros(len(points), np.float32)
    for i in range(len(points)):
        for d in range(points.shape[1]):
            found[i] += points[i, d] * points[i, d]
    return found


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def squared_distance(a, b):
    """Squared distance of two vectors."""
    total = np.float32(0)
    for d in range(len(a)):
        difference = a[d] - b[d]
        total += difference * difference
    return total


def _kernel(generator: Any) -> Any:
    return intrinsic(generator)  # to a type checker: without its first argument, which numba gives


class _Emitter:
    """Writes the instructions of one kernel: `args` are its arguments, numbered as in its signature."""

    def __init__(self, context, builder, signature, args):
        self.context, self.builder, self.kinds, self.args = context, builder, signature.args, args
        self.floats, self.ints = (ir.VectorType(kind, LANES) for kind in (ir.FloatType(), ir.IntType(32)))

    def number(self, value):
        return ir.IntType(64)(value)

    def array(self, which):
        return self.context.make_array(self.kinds[which])(self.context, self.builder, self.args[which])

    def pointer(self, which, *indices):
        return cgutils.get_item_pointer(self.context, self.builder, self.kinds[which], self.array(which), indices)

    def load(self, which, *indices):
        return self.builder.load(self.builder.bitcast(self.pointer(which, *indices), self.floats.as_pointer()), align=4)

    def store(self, vector, which, *indices):
        place = self.builder.bitcast(self.pointer(which, *indices), vector.type.as_pointer())
        self.builder.store(vector, place, align=4)

    def repeat(self, scalar):
        vector = ir.VectorType(scalar.type, LANES)
        one = self.builder.insert_element(vector(ir.Undefined), scalar, ir.IntType(32)(0))
        return self.builder.shuffle_vector(one, vector(ir.Undefined), self.ints([0] * LANES))

    def sums(self, block, first, rows=1, norms=2):
        """`norms[j] + rows[j] . point` for the rows `first` to `first + ROWS`: `[ROWS][VECTORS]` vectors."""
        builder = self.builder
        js = [builder.add(first, self.number(r)) for r in range(ROWS)]
        starts = [self.repeat(builder.load(self.pointer(norms, j))) for j in js]
        totals = [[cgutils.alloca_once_value(builder, start) for _ in range(VECTORS)] for start in starts]
        for start, row in zip(starts, totals, strict=True):
            for total in row:
                builder.store(start, total)
        with cgutils.for_range(builder, builder.extract_value(self.array(rows).shape, 1)) as loop:
            own = [self.load(0, block, loop.index, self.number(v * LANES)) for v in range(VECTORS)]
            for j, row in zip(js, totals, strict=True):
                factor = self.repeat(builder.load(self.pointer(rows, j, loop.index)))
                for x, total in zip(own, row, strict=True):
                    product = builder.fmul(x, factor, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        return [[builder.load(total) for total in row] for row in totals]


@_kernel
def _transpose(typingctx, points, row, column, blocks, block, lane):
    """Copy LANES rows of `points` from `[row, column]` to as many columns of `blocks` from `[block, column, lane]`."""

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, signature, args)
        _, row, column, _, block, lane = args
        vectors = [emit.load(0, builder.add(row, emit.number(i)), column) for i in range(LANES)]
        halves = [[low // 2 + low % 2 * LANES + start for low in range(LANES)] for start in (0, LANES // 2)]
        for _ in range(LANES.bit_length() - 1):  # each round interleaves the first half of the rows with the second
            pairs = zip(vectors[: LANES // 2], vectors[LANES // 2 :], strict=True)
            vectors = [builder.shuffle_vector(a, b, emit.ints(half)) for a, b in pairs for half in halves]
        for i, vector in enumerate(vectors):
            emit.store(vector, 3, block, builder.add(column, emit.number(i)), lane)
        return context.get_dummy_value()

    return types.void(points, types.intp, types.intp, blocks, types.intp, types.intp), generate


@_kernel
def products(typingctx, blocks, rows, norms, block, out):
    """Write `norms[j] + rows[j] . point` for the points of a block and ROWS rows into `out` `[ROWS, BLOCK]`."""

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, signature, args)
        for r, row in enumerate(emit.sums(args[3], emit.number(0))):
            for v, total in enumerate(row):
                emit.store(total, 4, emit.number(r), emit.number(v * LANES))
        return context.get_dummy_value()

    return types.void(blocks, rows, norms, types.intp, out), generate


@_kernel
def nearest_rows(typingctx, blocks, rows, norms, block, out):
    """Write into `out` `[BLOCK]` int32 the row with the least `norms[j] + rows[j] . point` for the points of a block.

    The first of equal ones. The number of rows is a multiple of ROWS; those of norm infinity are never chosen.
    """

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, signature, args)
        infinite, none = emit.floats([float("inf")] * LANES), emit.ints([0] * LANES)
        least = [cgutils.alloca_once_value(builder, infinite) for _ in range(VECTORS)]
        index = [cgutils.alloca_once_value(builder, none) for _ in range(VECTORS)]
        for v in range(VECTORS):
            builder.store(infinite, least[v])
            builder.store(none, index[v])
        count = builder.extract_value(emit.array(1).shape, 0)
        with cgutils.for_range_slice(builder, emit.number(0), count, emit.number(ROWS), inc=True) as (first, _):
            for r, row in enumerate(emit.sums(args[3], first)):
                j = emit.repeat(builder.trunc(builder.add(first, emit.number(r)), ir.IntType(32)))
                for v, total in enumerate(row):
                    closer = builder.fcmp_ordered("<", total, builder.load(least[v]))
                    builder.store(builder.select(closer, total, builder.load(least[v])), least[v])
                    builder.store(builder.select(closer, j, builder.load(index[v])), index[v])
        for v in range(VECTORS):
            emit.store(builder.load(index[v]), 4, emit.number(v * LANES))
        return context.get_dummy_value()

    return types.void(blocks, rows, norms, types.intp, out), generate


@_kernel
def add_row(typingctx, sums, j, points, i, factor):
    """Add `factor` times row `i` of float32 `points` to row `j` of float64 `sums`."""

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, signature, args)
        _, j, _, i, factor = args
        dim, lanes = builder.extract_value(emit.array(2).shape, 1), emit.number(LANES)
        whole = builder.mul(builder.udiv(dim, lanes), lanes)

        def add(pointer, addend, factor):
            product = builder.fmul(builder.fpext(addend, factor.type), factor, flags=("contract",))
            total = builder.fadd(builder.load(pointer, align=8), product, flags=("contract",))
            builder.store(total, pointer, align=8)

        with cgutils.for_range_slice(builder, emit.number(0), whole, lanes, inc=True) as (d, _):
            pointer = builder.bitcast(emit.pointer(0, j, d), ir.VectorType(ir.DoubleType(), LANES).as_pointer())
            add(pointer, emit.load(2, i, d), emit.repeat(factor))
        with cgutils.for_range_slice(builder, whole, dim, emit.number(1), inc=True) as (d, _):
            add(emit.pointer(0, j, d), builder.load(emit.pointer(2, i, d)), factor)
        return context.get_dummy_value()

    return types.void(sums, types.intp, points, types.intp, types.double), generate
