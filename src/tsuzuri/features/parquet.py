"""Blocks of token ids as Parquet, with checksums, and features.json, which describes them."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from tsuzuri import files
from tsuzuri.errors import RunError, UserError
from tsuzuri.features.packing import IGNORED, Blocks, Packing, packer
from tsuzuri.features.splits import Part
from tsuzuri.tokenizer import Tokenizer
from tsuzuri.tokenizer.protocol import attributes

FORMAT = 1
COUNTS = ("documents", "bytes", "characters", "dropped_tokens", "entropy_bits")
_ROW_GROUP = 1 << 20  # tokens
_FILE = 1 << 26  # tokens: about 100 MB


def describe(
    packing: Packing,
    tokenizer: Tokenizer,
    seed: int,
    held_out: float,
    source: Mapping[str, Any],
    splits: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """The content of features.json, with its fingerprint; `more` as it is."""
    features = {
        "format": FORMAT,
        "packing": packing.kind,
        "sequence_length": packing.length,
        "stride": packing.stride,
        "min_length": packing.min_length,
        "seed": seed,
        "held_out": held_out,
        "tokenizer": attributes(tokenizer),
        "source": dict(source),
        "splits": dict(splits),
        **more,
    }
    return features | {"fingerprint": _fingerprint(features)}


def read_features(folder: Path) -> dict[str, Any]:
    """Reads the features.json of a features folder; or a run's, which also says their `folder`.

    Raises:
      UserError: it is absent, damaged, or of another version.
    """
    path = folder / "features.json"
    features = files.read_json(path)
    if not isinstance(features, dict) or "fingerprint" not in features:
        raise UserError(f"{path}: not the description of features; make the features again")
    if features.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {features.get('format')!r}, and this version reads {FORMAT}; "
            "make the features again"
        )
    if features["fingerprint"] != _fingerprint(features):
        raise UserError(
            f"{path}: does not match its own fingerprint; it was changed or damaged: "
            "make the features again"
        )
    return features


def counts_of(part: Part, ids: np.ndarray, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a part of a document adds to its split's figures.

    Raises:
      RunError: an id is outside the vocabulary.
    """
    if ids.size and ids.max() >= tokenizer.vocab_size:
        raise RunError(
            f"the tokenizer gave id {ids.max()}, outside its vocabulary of "
            f"{tokenizer.vocab_size}, for a text that begins with {part.text[:20]!r}"
        )
    entropy = 0.0 if not part.text else part.entropy_bits
    return {
        "documents": int(part.ends),
        "bytes": part.bytes,
        "characters": len(part.text),
        "entropy_bits": math.nan if entropy is None else entropy,  # NaN once one is unknown
    }


def figures(counts: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of a split in features.json: its counts, and those of its files."""
    known = counts["documents"] and not math.isnan(counts["entropy_bits"])
    return {
        "documents": counts["documents"],
        "bytes": counts["bytes"],
        "characters": counts["characters"],
        "tokens": sum(file["tokens"] for file in rows),
        "blocks": sum(file["rows"] for file in rows),
        "dropped_tokens": counts["dropped_tokens"],
        "entropy_bits": counts["entropy_bits"] if known else None,
        "files": rows,
    }


def targets(blocks: Blocks, padding: int) -> int:
    """How many targets there are in blocks."""
    if "labels" in blocks:
        return int((blocks["labels"][:, 1:] != IGNORED).sum())
    return int((blocks["input_ids"][:, 1:] != padding).sum())


def dropped(ids: list[np.ndarray], tokenizer: Tokenizer) -> dict[str, Any]:
    """What ids that no block holds take from their split's figures."""
    if not ids:
        return {"dropped_tokens": 0, "bytes": 0, "characters": 0, "entropy_bits": 0.0}
    text = b"".join(tokenizer.decode_bytes(part.tolist()) for part in ids)
    characters = len(text.decode(errors="ignore"))
    return {
        "dropped_tokens": sum(map(len, ids)),
        "bytes": -len(text),
        "characters": -characters,
        "entropy_bits": math.nan,
    }


def open_parquet(where: Path | IO[bytes], columns: tuple[str, ...]) -> Any:
    """A ParquetWriter for blocks, which `write_blocks` writes to."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Of the encodings tried on Aozora, this one was the smallest (1.5 bytes a token at a vocabulary
    # of 8192) and the fastest to read.
    return pq.ParquetWriter(
        where,
        pa.schema([(name, pa.list_(pa.int32())) for name in columns]),
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        column_encoding="BYTE_STREAM_SPLIT",
        write_statistics=False,
        write_page_checksum=True,
    )


def write_blocks(file: Any, blocks: Blocks) -> None:
    """Writes blocks as one row group."""
    import pyarrow as pa

    # pa.array(numpy array) would import pandas, where that is installed: most of a second.
    def array(values: np.ndarray) -> pa.Array:
        return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])

    def lists(values: np.ndarray) -> pa.ListArray:
        offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
        return pa.ListArray.from_arrays(array(offsets), array(values.ravel()))

    columns = [lists(values) for values in blocks.values()]
    rows = len(blocks["input_ids"])
    file.write_table(pa.table(columns, schema=file.schema), row_group_size=rows)


class Writer:
    """One split: its documents packed into blocks and written; its counts."""

    def __init__(self, folder: Path, split: str, packing: Packing, tokenizer: Tokenizer):
        self._folder, self._split = folder, split
        self._packing, self._tokenizer = packing, tokenizer
        self._packer = packer(packing)
        self._file: Any = None  # the ParquetWriter of the last of self._files
        self._files: list[dict[str, Any]] = []
        self._counts: dict[str, Any] = dict.fromkeys(COUNTS, 0)

    def add(self, part: Part, ids: np.ndarray) -> None:
        """Takes the next part of a document, and its ids."""
        self._count(counts_of(part, ids, self._tokenizer))
        # Where blocks overlap, they hold many times the ids that are put into them.
        step = max(1, _ROW_GROUP * self._packing.stride // self._packing.length)
        for start in range(0, max(1, len(ids)), step):
            ends = part.ends and start + step >= len(ids)
            self._packer.add(ids[start : start + step], ends)
            if self._packer.waiting > max(_ROW_GROUP, self._packing.length):
                self._write(self._packer.take())

    def close(self) -> dict[str, Any]:
        """Writes what is left; returns the split's entry in features.json."""
        self._write(self._packer.take(last=True))
        if self._file:
            self._file.close()
        for file in self._files:
            file["sha256"] = files.sha256(self._folder / file["name"])
        return figures(self._counts, self._files)

    def _count(self, more: Mapping[str, Any]) -> None:
        for key, value in more.items():
            self._counts[key] += value

    def _write(self, blocks: Blocks) -> None:
        self._count(dropped(self._packer.dropped, self._tokenizer))
        self._packer.dropped.clear()
        rows, width = blocks["input_ids"].shape
        if not rows:
            return
        if self._file is None or self._files[-1]["rows"] * width >= _FILE:
            if self._file:
                self._file.close()
            name = f"{self._split}-{len(self._files):05d}.parquet"
            self._file = open_parquet(self._folder / name, tuple(blocks))
            self._files.append({"name": name, "rows": 0, "tokens": 0})
        write_blocks(self._file, blocks)
        self._files[-1]["rows"] += rows
        self._files[-1]["tokens"] += targets(blocks, self._packing.padding)


def _fingerprint(features: Mapping[str, Any]) -> str:
    content = {key: features[key] for key in features if key not in ("fingerprint", "folder")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
