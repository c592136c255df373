"""Any text on disk as documents: .txt, .jsonl, .parquet, compressed, in folders and in archives.

`read` goes from a file's bytes to its encoding, its documents and their pieces. Nothing is held
whole but a piece, so files of any size pass through in bounded memory.
"""

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tsuzuri.config import TextConfig
from tsuzuri.corpus import containers
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.encodings import decode
from tsuzuri.errors import UserError
from tsuzuri.files import read_json, sha256

PIECE = 1_000_000  # characters: a longer document comes in pieces of at most so many
MANIFEST = "corpus.json"  # what makes a folder a prepared corpus; prepare.py writes it

_LINE = 64 << 20  # bytes of the longest line of .jsonl


def read(
    sources: Sequence[str | Path], text: TextConfig, say: Callable[[str], None]
) -> Iterator[Document]:
    """Yields the documents of files, folders and archives, in the order given.

    - A text file, whatever its name, is one document; or several, where `text.document_separator`
      ends each. The separator is dropped, and one newline right after it. The text is otherwise as
      it was, newlines included; only a byte order mark is dropped, and that is said.
    - .jsonl (UTF-8) holds a document a line, in `text.field`; its other strings are metadata.
    - .parquet holds a document a row, in the column `text.field`.
    - A folder that `prepare` wrote gives back its documents as they were, once its files are found
      to be whole.

    A document without a character is left out.

    Raises:
      UserError: a file is absent, unreadable, damaged, empty, binary, or not in the encoding it
        should be in; the message names the file and the byte or the line.
    """
    if not sources:
        raise UserError("no text given; name a file, a folder or an archive")
    for source in map(Path, sources):
        empty = True
        for document in _source(source, text, say):
            empty = False
            yield document
        if empty:
            raise UserError(f"{source}: empty; there is not one character of text in it")


def pieces(text: str, metadata: Mapping[str, str] | None = None) -> Iterator[Document]:
    """Yields a document, in pieces of at most `PIECE` characters where it is longer."""
    start = 0
    while len(text) - start > PIECE:
        end = _cut(text, start)
        yield Document(text[start:end], metadata or {}, continues=True)
        start = end
    if text:
        yield Document(text[start:], metadata or {})


def fingerprint(sources: Sequence[str | Path], text: TextConfig) -> str:
    """A SHA-256 over how text is read and over every byte of it, in hexadecimal.

    Contents count, not times, so a file that was copied or touched is the same. A prepared corpus
    is known by its manifest, which holds its files' hashes, so a great one costs nothing.

    Raises:
      UserError: a source is absent or unreadable.
    """
    total = hashlib.sha256(repr(text).encode())
    for source in map(Path, sources):
        manifest = source / MANIFEST
        for path in [manifest] if manifest.is_file() else containers.paths(source):
            with containers.readable(path):
                total.update(f"{path.relative_to(source)} {sha256(path)}\n".encode())
    return total.hexdigest()


def _source(source: Path, text: TextConfig, say: Callable[[str], None]) -> Iterator[Document]:
    if (source / MANIFEST).is_file():
        yield from _prepared(source)
        return
    told = set()

    def say_once(name: str, what: str) -> None:
        if what not in told:  # a folder of ten thousand files says it for the first of them
            told.add(what)
            say(f"{name}: {what}")

    for file in containers.walk(source):
        with containers.readable(file.name):
            match file.suffix:
                case ".jsonl":
                    yield from _jsonl(file, text.field)
                case ".parquet":
                    yield from _parquet(file.name, file.stream, text.field)
                case _:
                    chunks = decode(file, text.encoding, say_once)
                    yield from _documents(chunks, text.document_separator)


def _documents(chunks: Iterable[str], separator: str) -> Iterator[Document]:
    """Parts a stream of text at the separator, and long documents into pieces."""
    # A separator at the end of what has been read waits: its newline may come with the next chunk.
    end = re.compile(re.escape(separator) + r"(?:\r?\n|(?!\r?\Z))")
    reserve = len(separator) + 2  # characters that may yet turn out to be a separator and newline
    rest = ""
    for chunk in chunks:
        rest += chunk
        if separator:
            *whole, rest = end.split(rest)
            for document in whole:
                yield from pieces(document)
        while len(rest) > PIECE + reserve:
            cut = _cut(rest, 0)
            yield Document(rest[:cut], continues=True)
            rest = rest[cut:]
    for document in rest.split(separator) if separator else [rest]:
        yield from pieces(document)


def _cut(text: str, start: int) -> int:
    """Where a piece from `start` ends: after a line, or else between two characters.

    Never inside CR LF, nor between a character and the marks that combine with it.
    """
    limit = start + PIECE
    newline = text.rfind("\n", start, limit)
    if newline >= 0:
        return newline + 1
    for end in range(limit, max(start, limit - 64), -1):
        if unicodedata.category(text[end])[0] != "M" and text[end - 1 : end + 1] != "\r\n":
            return end
    return limit


def _jsonl(file: containers.File, field: str) -> Iterator[Document]:
    for number in itertools.count(1):
        line, where = file.stream.readline(_LINE + 1), f"{file.name}:{number}"
        if not line:
            return
        if len(line) > _LINE:
            raise UserError(f"{where}: longer than {_LINE >> 20} MB; .jsonl is one object a line")
        if line.isspace():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not a line of JSON in UTF-8 ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f'{where}: not a JSON object; a line is such as {{"{field}": "…"}}')
        strings = {key: value for key, value in record.items() if isinstance(value, str)}
        if field not in strings:
            raise UserError(f"{where}: {_lacks('field', field, record, strings)}")
        for key, value in strings.items():
            _check(value, f"{where}, field {key!r}")
        yield from pieces(strings.pop(field), strings)


def _parquet(name: str, stream: IO[bytes], column: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with containers.seekable(stream) as content:
            file = pq.ParquetFile(content, page_checksum_verification=True, buffer_size=1 << 20)
            schema = file.schema_arrow
            text = re.compile(r"(dictionary<values=)?(large_)?string")
            strings = [field.name for field in schema if text.match(str(field.type))]
            if column not in strings:
                raise UserError(f"{name}: {_lacks('column', column, schema.names, strings)}")
            ours = (schema.metadata or {}).get(b"tsuzuri") == b"corpus 1"
            columns = schema.names if ours else [column]
            batches = file.iter_batches(batch_size=16, columns=columns, use_threads=False)
            records = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for row, record in enumerate(records, 1):
                if ours:
                    yield Document(**record | {"metadata": json.loads(record["metadata"])})
                elif record[column]:
                    _check(record[column], f"{name}, row {row}")
                    yield from pieces(record[column])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}: damaged, or not Parquet ({reason}); make it anew") from error


def _lacks(kind: str, wanted: str, names: Iterable[str], strings: Iterable[str]) -> str:
    what = "holds no string" if wanted in names else "is not there"
    return (
        f"the {kind} {wanted!r} {what}; "
        f"give --field, one of those that do: {', '.join(strings) or 'there is none'}"
    )


def _check(value: str, where: str) -> None:
    """Refuses what strings can hold and text cannot."""
    if "\0" in value:
        raise UserError(f"{where}: a NUL at character {value.index(chr(0))}; it is no text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half of a surrogate pair at character {error.start}; mend or drop the line"
        ) from error


def _prepared(folder: Path) -> Iterator[Document]:
    manifest, again = folder / MANIFEST, "prepare the corpus again, into another folder"
    try:
        entries = [
            (folder / e["name"], e["bytes"], e["sha256"]) for e in read_json(manifest)["files"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"{manifest}: not the manifest of a prepared corpus; {again}") from error
    for path, size, digest in entries:
        if not path.is_file():
            raise UserError(f"{path}: missing, though {MANIFEST} names it; {again}")
        if path.stat().st_size != size:
            raise UserError(
                f"{path}: cut short or changed; it has {path.stat().st_size} bytes, "
                f"where {MANIFEST} says {size}; {again}"
            )
        with containers.readable(path), path.open("rb") as stream:
            if sha256(path) != digest:
                raise UserError(f"{path}: damaged; its SHA-256 is not that of {MANIFEST}; {again}")
            yield from _parquet(str(path), stream, "text")
