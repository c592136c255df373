"""A corpus written once: documents as Parquet beside a manifest that says what they are.

Columns: `text`; `metadata`, a JSON object of strings; `continues`, that the next row is the rest of
this document; `entropy_bits`, null where it is not known. `text_files.read` gives them back.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tsuzuri.corpus.document import Document
from tsuzuri.corpus.text_files import MANIFEST
from tsuzuri.errors import UserError
from tsuzuri.files import read_json, sha256, write_beside, write_json

_FILE = 256 << 20  # bytes of text in one file, about
_GROUP = 8 << 20  # bytes of text in one row group, about: what is held in memory


def prepare(
    documents: Iterable[Document],
    out: Path,
    provenance: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Writes documents to the folder `out`, whole or not at all, and returns its manifest.

    `provenance`, of JSON's types, says all that the documents follow from. A folder that holds the
    corpus of the same provenance is used as it is, and `documents` is then not looked at.

    Raises:
      UserError: `out` holds something else, or there is not one document.
      RunError: the disk is full, or `out` cannot be written.
    """
    provenance = json.loads(json.dumps(dict(provenance)))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _reuse(out, provenance, say)
    counts = {"documents": 0, "characters": 0, "bytes": 0, "entropy_bits": 0.0}
    with write_beside(out) as folder:
        folder.mkdir()
        _write(_counted(documents, counts), folder)
        if not counts["documents"]:
            raise UserError(f"{provenance}: gave not one document, so {out} is not written")
        manifest = {
            "provenance": provenance,
            **counts,
            "files": [
                {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
                for path in sorted(folder.iterdir())
            ],
        }
        write_json(folder / MANIFEST, manifest)
    say(f"{out}: {counts['documents']:,} documents, {counts['characters']:,} characters")
    return manifest


def _reuse(out: Path, provenance: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out}: not empty, and not a corpus; choose another --out")
    manifest = read_json(out / MANIFEST)
    try:
        held, count = dict(manifest["provenance"]), int(manifest["documents"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{out / MANIFEST}: not the manifest of a prepared corpus; choose another --out"
        ) from error
    if held != provenance:
        keys = sorted(key for key in {**held, **provenance} if held.get(key) != provenance.get(key))
        differences = ", ".join(f"{key} {held.get(key)} not {provenance.get(key)}" for key in keys)
        raise UserError(f"{out}: holds another corpus ({differences}); choose another --out")
    say(f"{out}: holds this corpus already, {count:,} documents; nothing is done")
    return manifest


def _counted(documents: Iterable[Document], counts: dict[str, Any]) -> Iterator[tuple[int, dict]]:
    """Yields each document's size in bytes and its row, and counts them."""
    for document in documents:
        size = len(document.text.encode())
        counts["documents"] += not document.continues
        counts["characters"] += len(document.text)
        counts["bytes"] += size
        if document.entropy_bits is None:
            counts["entropy_bits"] = None  # of all of the text, or of none
        elif counts["entropy_bits"] is not None:
            counts["entropy_bits"] += document.entropy_bits
        metadata = json.dumps(dict(document.metadata), ensure_ascii=False)
        yield (
            size,
            {
                "text": document.text,
                "metadata": metadata,
                "continues": document.continues,
                "entropy_bits": document.entropy_bits,
            },
        )


def _write(rows: Iterator[tuple[int, dict]], folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "text": pa.string(),
            "metadata": pa.string(),
            "continues": pa.bool_(),
            "entropy_bits": pa.float64(),
        },
        metadata={"tsuzuri": "corpus 1"},
    )
    for number in itertools.count():
        group = _take(rows, _GROUP)
        if not group:
            return
        written = 0
        with pq.ParquetWriter(
            folder / f"documents-{number:05}.parquet",
            schema,
            compression="zstd",
            write_page_checksum=True,
        ) as writer:
            while group:
                writer.write_table(pa.Table.from_pylist(group, schema))
                written += _GROUP
                # A file ends where a document does, so that each can be read by itself.
                group = _take(rows, _GROUP) if written < _FILE or group[-1]["continues"] else []


def _take(rows: Iterator[tuple[int, dict]], limit: int) -> list[dict]:
    """The next rows, until they hold `limit` bytes of text."""
    group, held = [], 0
    while held < limit and (row := next(rows, None)):
        held += row[0]
        group.append(row[1])
    return group
