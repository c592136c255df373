"""Tables on disk, row by row: .parquet, .jsonl and .csv. A document is one of a row's strings."""

import contextlib
import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from tsuzuri.corpus import containers
from tsuzuri.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_LINE = 64 << 20  # bytes of the longest line of .jsonl

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")  # of tables; .json as the hub uses it: .jsonl

Row = tuple[str, dict[str, Any]]  # where it stands, such as a.jsonl:3; and its values by field


def rows(file: containers.File) -> Iterator[Row]:
    """Yields the rows of a table, whichever of the three it is.

    Raises:
      UserError: it is none of them, or damaged; the message names the file and the line.
    """
    match file.suffix:
        case ".jsonl" | ".json":
            yield from jsonl(file)
        case ".csv":
            yield from _csv(file)
        case ".parquet":
            with open_parquet(file.name, file.stream) as table:
                for number, row in enumerate(parquet(table, table.schema_arrow.names), 1):
                    yield f"{file.name}, row {number}", row
        case _:
            raise UserError(f"{file.name}: not a table; those are .parquet, .jsonl and .csv")


def jsonl(file: containers.File) -> Iterator[Row]:
    """Yields the objects of a .jsonl, one a line, in UTF-8.

    Raises:
      UserError: a line is no such thing.
    """
    for number in itertools.count(1):
        line, where = file.stream.readline(_LINE + 1), f"{file.name}:{number}"
        if not line:
            return
        if len(line) > _LINE:
            raise UserError(f"{where}: longer than {_LINE >> 20} MB; .jsonl is one object a line")
        if line.isspace():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not a line of JSON in UTF-8 ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f'{where}: not a JSON object; a line is such as {{"text": "…"}}')
        yield where, row


@contextlib.contextmanager
def open_parquet(name: str, stream: IO[bytes]) -> Iterator["pq.ParquetFile"]:
    """A Parquet file whose pages are verified where they carry checksums.

    Raises:
      UserError: it is damaged, found when it is opened or when its rows are read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with containers.seekable(stream) as content:
            yield pq.ParquetFile(content, page_checksum_verification=True, buffer_size=1 << 20)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}: damaged, or not Parquet ({reason}); make it anew") from error


def parquet(table: "pq.ParquetFile", columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of an open Parquet file, a few in memory at a time."""
    batches = table.iter_batches(batch_size=16, columns=list(columns), use_threads=False)
    return itertools.chain.from_iterable(batch.to_pylist() for batch in batches)


def strings(table: "pq.ParquetFile") -> list[str]:
    """The columns that hold text."""
    text = re.compile(r"(dictionary<values=)?(large_)?string")
    return [field.name for field in table.schema_arrow if text.match(str(field.type))]


def text_of(where: str, row: Mapping[str, Any], field: str) -> tuple[str, dict[str, str]]:
    """The row's text and, as metadata, its other strings.

    Raises:
      UserError: the field is not there, or what it holds is no text.
    """
    held = {key: value for key, value in row.items() if isinstance(value, str)}
    if field not in held:
        raise UserError(f"{where}: {lacks('field', field, row, held)}")
    for key, value in held.items():
        check(value, f"{where}, field {key!r}")
    return held.pop(field), held


def lacks(kind: str, wanted: str, names: Iterable[str], held: Iterable[str]) -> str:
    """What to say of a table whose column or field `wanted` is not among those of strings."""
    names, held = list(names), list(held)
    what = "holds no string" if wanted in names else "is not there"
    others = [name for name in names if name not in held and name != wanted]
    return (
        f"the {kind} {wanted!r} {what}; "
        f"give --field, one of those that do: {', '.join(held) or 'there is none'}"
        + (f" (no strings: {', '.join(others)})" if others else "")
    )


def check(value: str, where: str) -> None:
    """Refuses what strings can hold and text cannot.

    Raises:
      UserError: there is a NUL or half a surrogate pair in it.
    """
    if "\0" in value:
        raise UserError(f"{where}: a NUL at character {value.index(chr(0))}; it is no text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half of a surrogate pair at character {error.start}; mend or drop the line"
        ) from error


def _csv(file: containers.File) -> Iterator[Row]:
    csv.field_size_limit(_LINE)
    table = csv.reader(_lines(file), strict=True)
    names: list[str] = []
    try:
        for values in table:
            where = f"{file.name}:{table.line_num}"
            if not names:
                names = values
            elif len(values) != len(names):
                raise UserError(f"{where}: {len(values)} values, where {len(names)} are named")
            else:
                yield where, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise UserError(f"{file.name}:{table.line_num}: not CSV ({error})") from error


def _lines(file: containers.File) -> Iterator[str]:
    for number, line in enumerate(file.stream, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{file.name}:{number}: not UTF-8 ({error.reason})") from error
