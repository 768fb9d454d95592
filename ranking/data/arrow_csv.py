"""Delimited text files in batches of pyarrow, for files that are larger than memory."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from ranking.errors import UserError

__all__ = ["read_batches"]

_BLOCK = 1 << 24  # bytes


def read_batches(
    path: Path,
    columns: Mapping[str, pa.DataType],
    *,
    delimiter: str = ",",
    header: bool = True,
    told: Callable[[int, int], None] | None = None,
    block: int = _BLOCK,
) -> Iterator[pa.RecordBatch]:
    """The wanted columns of a file without quotes, in its order.

    Args:
        path: Path. The file.
        columns: dict. Name -> type of the wanted columns; without a header, of all.
        delimiter: str. Defaults to `","`.
        header: bool. Whether the first line names the columns; spaces around a name do not count. Defaults to `True`.
        told: callable or None. Called with (bytes done, bytes in all).
        block: int. Bytes that are read at once. Defaults to `1 << 24`.

    Raises:
        UserError: the file or a column is missing, or a line breaks the format.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    names = list(columns)
    if header:
        with open(path, encoding="utf-8-sig") as stream:
            names = [name.strip() for name in stream.readline().rstrip("\r\n").split(delimiter)]
        missing = [name for name in columns if name not in names]
        if missing:
            raise UserError(f"{path}: should have a column `{missing[0]}`. Received: {', '.join(names)}.")
    read = pa.csv.ReadOptions(column_names=names, skip_rows=int(header), block_size=block, use_threads=False)
    parse = pa.csv.ParseOptions(delimiter=delimiter, quote_char=False)
    convert = pa.csv.ConvertOptions(
        include_columns=list(columns), column_types=dict(columns), strings_can_be_null=True, null_values=["", "NULL"]
    )
    total = path.stat().st_size
    try:
        with pa.OSFile(str(path)) as source, pa.csv.open_csv(source, read, parse, convert) as reader:
            for batch in reader:
                yield batch
                if told is not None:
                    told(source.tell(), total)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
