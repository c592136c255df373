"""Any text on disk as documents: .txt, .jsonl, .parquet, compressed, in folders and in archives.

`read` goes from a file's bytes to its encoding, its documents and their pieces. Nothing is held
whole but a piece, so files of any size pass through in bounded memory.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from tsuzuri.config import TextConfig
from tsuzuri.corpus import containers, records
from tsuzuri.corpus.cleaning import clean
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.encodings import decode
from tsuzuri.errors import UserError
from tsuzuri.files import read_json, sha256

PIECE = 1_000_000  # characters: a longer document comes in pieces of at most so many
MANIFEST = "corpus.json"  # what makes a folder a prepared corpus; prepare.py writes it
_AGAIN = "prepare the corpus again, into another folder"


def read(
    sources: Sequence[str | Path], text: TextConfig, say: Callable[[str], None]
) -> Iterator[Document]:
    """Yields the documents of files, folders and archives, in the order given, cleaned as asked.

    - A text file, whatever its name, is one document; or several, where `text.document_separator`
      ends each. The separator is dropped, and one newline right after it; that it is nowhere is
      said. The text is otherwise as it was, newlines included; only a byte order mark is dropped,
      and that is said.
    - .jsonl (UTF-8) holds a document a line, in `text.field`; its other strings are metadata.
    - .parquet holds a document a row, in the column `text.field`.
    - A folder that `prepare` wrote gives back its documents as they were, once its files are found
      to be whole.

    A document without a character is left out.

    Raises:
      UserError: a file is absent, unreadable, damaged, empty, binary, or not in the encoding it
        should be in; the message names the file and the byte or the line.
      RunError: see `cleaning.clean`.
    """
    return clean(_read(sources, text, say), text, say)


def _read(
    sources: Sequence[str | Path], text: TextConfig, say: Callable[[str], None]
) -> Iterator[Document]:
    if not sources:
        raise UserError("no text given; name a file, a folder or an archive")
    told = set()

    def say_once(name: str, what: str) -> None:
        if what not in told:  # a folder of ten thousand files says it for the first of them
            told.add(what)
            say(f"{name}: {what}")

    for source in map(Path, sources):
        empty = True
        for shard in shards(source):
            for document in read_shard(shard, text, say_once):
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
                name = os.fsencode(path.relative_to(source))  # which need not be UTF-8
                total.update(name + f" {sha256(path)}\n".encode())
    return total.hexdigest()


class Shard(NamedTuple):
    """A file on disk that can be read without the others of its source."""

    path: str
    sha256: str = ""  # of a file of a prepared corpus, as its manifest says


def shards(source: Path) -> list[Shard]:
    """The files that a source is made of, in the order in which `read` reads them.

    Raises:
      UserError: the source is absent or empty; a file of a prepared corpus is not there or not
        whole.
    """
    if not (source / MANIFEST).is_file():
        return [Shard(str(path)) for path in containers.paths(source)]
    found = prepared(source, read_json(source / MANIFEST))
    for shard, size in found:
        if not Path(shard.path).is_file():
            raise UserError(f"{shard.path}: missing, though {MANIFEST} names it; {_AGAIN}")
        if Path(shard.path).stat().st_size != size:
            raise UserError(
                f"{shard.path}: cut short or changed; it has {Path(shard.path).stat().st_size} "
                f"bytes, where {MANIFEST} says {size}; {_AGAIN}"
            )
    return [shard for shard, _ in found]


def prepared(folder: str | Path, manifest: Any) -> list[tuple[Shard, int]]:
    """The files of a prepared corpus as its manifest names them, each with its size in bytes.

    Raises:
      UserError: it is no such manifest.
    """
    try:
        return [
            (Shard(f"{folder}/{entry['name']}", entry["sha256"]), entry["bytes"])
            for entry in manifest["files"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/{MANIFEST}: not the manifest of a prepared corpus; {_AGAIN}"
        ) from error


def read_shard(
    shard: Shard,
    text: TextConfig,
    say: Callable[[str, str], None],
    opened: Callable[[str], Any] = partial(open, mode="rb"),  # noqa: B008 (it is never changed)
) -> Iterator[Document]:
    """Yields the documents of one file, as they are.

    Args:
      say: hears a file's name and what was found out about it.
      opened: opens a path, for files that lie elsewhere than on this disk.

    Raises:
      UserError, RunError: as `read`.
    """
    with containers.readable(shard.path):
        if shard.sha256:
            with opened(shard.path) as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != shard.sha256:
                    raise UserError(
                        f"{shard.path}: damaged; its SHA-256 is not that of {MANIFEST}; {_AGAIN}"
                    )
        with opened(shard.path) as stream:
            for file in containers.unpack(shard.path, stream):
                with containers.readable(file.name):
                    match file.suffix:
                        case ".jsonl":
                            yield from _jsonl(file, text.field)
                        case ".parquet":
                            yield from _parquet(file.name, file.stream, text.field)
                        case _:
                            chunks = decode(file, text.encoding, say)
                            heard = partial(say, file.name)
                            yield from _documents(chunks, text.document_separator, heard)


def _documents(
    chunks: Iterable[str], separator: str, say: Callable[[str], None]
) -> Iterator[Document]:
    """Parts a stream of text at the separator, and long documents into pieces."""
    # A separator at the end of what has been read waits: its newline may come with the next chunk.
    end = re.compile(re.escape(separator) + r"(?:\r?\n|(?!\r?\Z))")
    reserve = len(separator) + 2  # characters that may yet turn out to be a separator and newline
    rest, met = "", False
    for chunk in chunks:
        rest += chunk
        if separator:
            *whole, rest = end.split(rest)
            met = met or bool(whole)
            for document in whole:
                yield from pieces(document)
        while len(rest) > PIECE + reserve:
            cut = _cut(rest, 0)
            yield Document(rest[:cut], continues=True)
            rest = rest[cut:]
    last = rest.split(separator) if separator else [rest]
    if separator and rest and not met and len(last) == 1:
        say(f"the separator {separator!r} is nowhere in it, so it is one document")
    for document in last:
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
    for where, row in records.jsonl(file):
        yield from pieces(*records.text_of(where, row, field))


def _parquet(name: str, stream: IO[bytes], column: str) -> Iterator[Document]:
    with records.open_parquet(name, stream) as table:
        schema, strings = table.schema_arrow, records.strings(table)
        if column not in strings:
            raise UserError(f"{name}: {records.lacks('column', column, schema.names, strings)}")
        if (schema.metadata or {}).get(b"tsuzuri") == b"corpus 1":  # prepare.py wrote it
            for row in records.parquet(table, schema.names):
                yield Document(**row | {"metadata": json.loads(row["metadata"])})
            return
        for number, row in enumerate(records.parquet(table, [column]), 1):
            if row[column]:
                records.check(row[column], f"{name}, row {number}")
                yield from pieces(row[column])
