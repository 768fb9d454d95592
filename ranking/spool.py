"""Encoded training rows on disk, read back in a random order within bounded memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from ranking.atomic import atomic_directory
from ranking.errors import UserError

__all__ = ["TARGET", "WEIGHT", "Spool", "SpoolWriter", "supervised"]

FILE = "rows.parquet"
GROUP = 8_192  # rows of a row group: read at once, and neighbours on their way into the buffer
DTYPES = (np.dtype("int32"), np.dtype("float32"))
AHEAD = 4  # batches made before they are asked for
TARGET, WEIGHT = "target:", "weight:"  # then the name of an output; other names are the model's inputs


def supervised(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Inputs, targets and sample weights of a batch, by the prefixes of its names: what `model.fit` takes."""
    inputs = {name: values for name, values in batch.items() if not name.startswith((TARGET, WEIGHT))}
    targets, weights = (
        {name.removeprefix(prefix): values for name, values in batch.items() if name.startswith(prefix)}
        for prefix in (TARGET, WEIGHT)
    )
    return inputs, targets, weights


class SpoolWriter:
    """Writes arrays to a folder, chunk by chunk; after the `with` the folder is there whole, or not at all.

    Args:
        folder: str or Path. Should not exist.

    Raises:
        UserError: the folder exists, or no rows were appended.

    Example:
        >>> with SpoolWriter(folder) as writer:
        ...     for chunk in chunks:
        ...         writer.append({"item": chunk.item, "tags": chunk.tags, "target:click_logit": chunk.click})
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._stack = ExitStack()
        self._waiting: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "SpoolWriter":
        self._temporary = self._stack.enter_context(atomic_directory(self.folder))
        self._stack.callback(lambda: self._writer and self._writer.close())
        self._stack.push(self._finish)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def _finish(self, kind: type[BaseException] | None, value: BaseException | None, trace: Any) -> None:
        if kind is None:
            self._write(whole=False)
            if self._writer is None:
                raise UserError(f"there are no training rows to write to {self.folder}.")

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds rows.

        Args:
            arrays: dict of int32 or float32 arrays `[n]` or `[n, L]`; names, types and L as in the first call.

        Raises:
            ValueError: other types, lengths that differ, or another set of arrays than before.
        """
        lengths = {name: len(values) for name, values in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"`arrays` should be of one length. Received: {lengths}.")
        columns = {name: _column(name, values) for name, values in arrays.items()}
        schema = pa.schema([pa.field(name, column.type, nullable=False) for name, column in columns.items()])
        if self._waiting and schema != self._waiting[0].schema:
            raise ValueError(f"`arrays` should be as in the first call. Received: {schema.names} or other types.")
        self._waiting.append(pa.Table.from_arrays(list(columns.values()), schema=schema))
        if sum(table.num_rows for table in self._waiting) >= 16 * GROUP:
            self._write(whole=True)

    def _write(self, *, whole: bool) -> None:
        """Writes what waits; `whole`: row groups of GROUP rows only, the rest goes on waiting."""
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        end = table.num_rows // GROUP * GROUP if whole else table.num_rows
        if end:
            if self._writer is None:
                # Uncompressed is no faster to train from: reading is some thousandths of the cost of a step.
                self._writer = pq.ParquetWriter(
                    self._temporary / FILE,
                    table.schema,
                    compression="lz4",
                    use_dictionary=False,
                    write_statistics=False,
                )
            self._writer.write_table(table.slice(0, end), row_group_size=GROUP)
        self._waiting = [table.slice(end).combine_chunks()]


def _column(name: str, values: np.ndarray) -> pa.Array:
    if values.dtype not in DTYPES or values.ndim not in (1, 2):
        raise ValueError(
            "`arrays` should be int32 or float32, [n] or [n, L]. "
            f"Received: {values.dtype} {list(values.shape)} of {name!r}."
        )
    flat = pa.array(np.array(values, order="C").reshape(-1))  # a copy: the caller may fill its array anew
    if values.ndim == 1:
        return flat
    item = pa.field("item", flat.type, nullable=False)
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(item, values.shape[1]))


class Spool:
    """Rows that a `SpoolWriter` wrote.

    Args:
        folder: str or Path.

    Attributes:
        rows: int. How many.
        names: tuple of str. The arrays of a row.

    Raises:
        UserError: the folder holds no rows.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._path = self.folder / FILE
        if not self._path.is_file():
            raise UserError(f"{folder} holds no training rows ({FILE}).")
        with pq.ParquetFile(self._path) as file:
            self.rows = int(file.metadata.num_rows)
            schema = file.schema_arrow
        self.names: tuple[str, ...] = tuple(schema.names)
        self._types = {field.name: field.type for field in schema}

    def batches(
        self,
        names: Sequence[str],
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        buffer: int = 262_144,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> tf.data.Dataset:
        """One pass over the rows, each once, in an order that `seed` and `epoch` fix.

        Row groups are read in a random order into a buffer. A batch is the rows of random slots of it, gathered
        column by column, and the next rows read take their slots: tf.data's shuffle, without its row by row. Batches
        are made ahead, in a thread of tf.data's.

        Args:
            names: sequence of str. The arrays to read, of `names`.
            batch_size: int. The last batch may be smaller.
            seed: int.
            epoch: int.
            buffer: int. Rows in memory. Defaults to `262_144`; one that holds all rows gives every order alike.
            start: int. How many batches to pass over, when training goes on from a checkpoint. Defaults to `0`.
            part: tuple `(index, count)`. Of each batch only this share: worker `index` of `count`. A share may be
                empty. Defaults to `(0, 1)`: the whole.

        Returns:
            tf.data.Dataset of dicts of `[b]` and `[b, L]`, int32 and float32.

        Raises:
            ValueError: an argument out of its range.
        """
        names = list(dict.fromkeys(names))
        if unknown := sorted(set(names) - set(self.names)):
            raise ValueError(f"`names` should be arrays of the rows. Received: {unknown}, not in {sorted(self.names)}.")
        if not names:
            raise ValueError("`names` should hold the name of an array. Received: none.")
        if batch_size < 1 or buffer < batch_size:
            raise ValueError(
                "`batch_size` should be positive, and `buffer` no smaller. "
                f"Received: batch_size={batch_size}, buffer={buffer}."
            )
        if start < 0 or not 0 <= part[0] < part[1]:
            raise ValueError(
                "`start` should not be negative, and `part` (index, count) with index < count. "
                f"Received: start={start}, part={part}."
            )

        def generate() -> Iterator[dict[str, np.ndarray]]:
            return self._generate(names, batch_size, np.random.default_rng((seed, epoch)), buffer, start, part)

        signature = {
            name: tf.TensorSpec((None, *_shape(self._types[name])), tf.as_dtype(_dtype(self._types[name])))
            for name in names
        }
        dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
        count = max(-(-self.rows // batch_size) - start, 0)
        return dataset.apply(tf.data.experimental.assert_cardinality(count)).prefetch(AHEAD)

    def _generate(
        self,
        names: list[str],
        batch_size: int,
        generator: np.random.Generator,
        buffer: int,
        start: int,
        part: tuple[int, int],
    ) -> Iterator[dict[str, np.ndarray]]:
        size = min(buffer, self.rows)
        held = {name: np.empty((size, *_shape(self._types[name])), _dtype(self._types[name])) for name in names}
        with pq.ParquetFile(self._path, pre_buffer=False, buffer_size=1 << 20) as file:
            source = _Source(file, names, generator.permutation(file.num_row_groups))
            every = _slots(size, batch_size, generator, lambda slots: source.fill(held, slots))
            for number, slots in enumerate(every):
                if number >= start:
                    low, high = (len(slots) * side // part[1] for side in (part[0], part[0] + 1))
                    yield {name: values[slots[low:high]] for name, values in held.items()}


def _slots(
    size: int, batch_size: int, generator: np.random.Generator, fill: Callable[[np.ndarray], int]
) -> Iterator[np.ndarray]:
    """The slots of each batch; `fill` puts the next rows into the slots it is given, and says into how many."""
    fill(np.arange(size))
    while True:
        slots = generator.choice(size, min(batch_size, size), replace=False)
        yield slots
        filled = fill(slots)
        if filled < len(slots):
            break
    left = generator.permutation(np.delete(np.arange(size), slots[filled:]))
    for first in range(0, len(left), batch_size):
        yield left[first : first + batch_size]


class _Source:
    """The rows of a file, group by group in a given order."""

    def __init__(self, file: pq.ParquetFile, names: list[str], order: np.ndarray) -> None:
        self.file, self.names, self.groups = file, names, iter(order)
        self.read: dict[str, np.ndarray] = {}
        self.left = self.done = 0  # of the group that was read last

    def fill(self, held: Mapping[str, np.ndarray], slots: np.ndarray) -> int:
        """Writes the next rows to these slots; how many there were, less than asked for only at the end."""
        filled = 0
        while filled < len(slots):
            if not self.left:
                group = next(self.groups, None)
                if group is None:
                    break
                table = self.file.read_row_group(int(group), columns=self.names, use_threads=False)
                self.read = {name: _array(table.column(name)) for name in self.names}
                self.left, self.done = table.num_rows, 0
            count = min(self.left, len(slots) - filled)
            for name, values in held.items():
                values[slots[filled : filled + count]] = self.read[name][self.done : self.done + count]
            filled, self.done, self.left = filled + count, self.done + count, self.left - count
        return filled


def _shape(kind: pa.DataType) -> tuple[int, ...]:
    return (kind.list_size,) if pa.types.is_fixed_size_list(kind) else ()


def _dtype(kind: pa.DataType) -> np.dtype:
    return np.dtype((kind.value_type if pa.types.is_fixed_size_list(kind) else kind).to_pandas_dtype())


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """The values without a copy, `[n]` or `[n, L]`."""
    whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_fixed_size_list(whole.type):
        return whole.flatten().to_numpy(zero_copy_only=True).reshape(-1, whole.type.list_size)
    return whole.to_numpy(zero_copy_only=True)
