"""Documents to blocks of token ids, in Parquet, with features.json beside them.

Packing `concat`: each split is one stream, `EOT document EOT document EOT ... document EOT`.
Blocks of L+1 ids follow one another at a stride of L, so that the last id of a block is the first
of the next, and every id but the very first is a target exactly once. Padding fills the last one.

    features.json  train-00000.parquet ...  held_out-00000.parquet ...  tokenizer/

Each row of a file is one block: `input_ids`, a list of L+1 int32, in pages with checksums.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tsuzuri import files
from tsuzuri.config import FeaturesConfig
from tsuzuri.corpus.document import Document
from tsuzuri.errors import RunError, UserError
from tsuzuri.tokenizer import Tokenizer

FORMAT = 1
SPLITS = ("train", "held_out")
_BATCH = 1 << 23  # characters encoded at once
_ROW_GROUP = 1 << 20  # tokens
_FILE = 1 << 26  # tokens: about 100 MB
_NEAR = 1000  # characters: a document is cut at a line break if there is one so near

Corpus = Callable[[], Iterable[Document]]


class Part(NamedTuple):
    """A document or a piece of one, and the split it belongs to."""

    split: str
    text: str
    bytes: int  # of the text in UTF-8
    ends: bool  # the document ends here
    entropy_bits: float | None


def featurize(
    corpus: Corpus,
    tokenizer: Tokenizer,
    out: Path,
    sequence_length: int,
    cfg: FeaturesConfig,
    seed: int,
    source: dict[str, Any],
    say: Callable[[str], None],
    progress: bool,
) -> dict[str, Any]:
    """Writes the features of a corpus to the folder `out`, whole or not at all.

    Memory is bounded whatever the size of the corpus; the tokenizer encodes on all cores while the
    next documents are read and the last ones are written.

    Args:
      corpus: gives the documents, the same ones at each call.
      sequence_length: L, the tokens that a model sees at once.
      seed: chooses the documents that are held out.
      source: where the documents come from, kept in features.json.
      say: told what the user should know.
      progress: show a progress bar.

    Returns:
      The content of features.json. In each split `tokens` are the targets, `bytes` are of the text
      in UTF-8, and `entropy_bits` is null unless every document knows its own.

    Raises:
      UserError: there is no text, or less than one block; `out` is taken; see split_documents.
      RunError: the disk is full, or `out` cannot be written.
    """
    from tqdm import tqdm

    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is there already; choose another folder, or remove it first")
    with files.write_beside(out) as beside:
        beside.mkdir()
        writers = {s: _Writer(beside, s, sequence_length, tokenizer) for s in SPLITS}
        with (
            tqdm(disable=not progress, unit="B", unit_scale=True, desc="features") as bar,
            ThreadPoolExecutor(1) as background,
        ):

            def write(parts: list[Part], encoded: Future[list[np.ndarray]]) -> None:
                for part, ids in zip(parts, encoded.result(), strict=True):
                    writers[part.split].add(part, ids)
                    bar.update(part.bytes)

            parts: list[Part] = []
            encoded: Future[list[np.ndarray]] = background.submit(list)  # of nothing
            for batch in _batches(split_documents(corpus, cfg, seed, say)):
                last, parts = (parts, encoded), batch
                encoded = background.submit(tokenizer.encode_batch, [part.text for part in batch])
                write(*last)
            write(parts, encoded)
        splits = {split: writer.close() for split, writer in writers.items()}
        if not any(split["documents"] for split in splits.values()):
            raise UserError("there is no text to make features of: no document, or only empty ones")
        tokens = splits["train"]["tokens"]
        # With nothing held out the blocks may be meant for evaluation: one that is padded will do.
        if tokens < sequence_length and cfg.held_out > 0:
            raise UserError(
                f"the training text is {tokens} tokens, shorter than one block of "
                f"{sequence_length}; use --sequence-length {max(tokens, 1)} or less, or more text"
            )
        tokenizer.save(beside / "tokenizer")
        features = {
            "format": FORMAT,
            "packing": "concat",
            "sequence_length": sequence_length,
            "seed": seed,
            "held_out": cfg.held_out,
            "tokenizer": {
                "kind": tokenizer.kind,
                "vocab_size": tokenizer.vocab_size,
                "end_of_text": tokenizer.end_of_text,
                "padding": tokenizer.padding,
                "fingerprint": tokenizer.fingerprint,
            },
            "source": source,
            "splits": splits,
        }
        features["fingerprint"] = _fingerprint(features)
        files.write_json(beside / "features.json", features)
    return features


def read_features(folder: Path) -> dict[str, Any]:
    """Reads features.json.

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


def held_out(seed: int, index: int, share: float) -> bool:
    """Whether document `index` is held out: one, chosen by the seed, of every round(1 / share).

    One of each group, not each by its own luck, so that the share is kept however few they are.
    """
    if share == 0:
        return False
    group = round(1 / share)
    digest = hashlib.sha256(f"{seed} {index // group}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % group == index % group


def training_texts(corpus: Corpus, cfg: FeaturesConfig, seed: int) -> Iterator[str]:
    """The texts of the training split alone, for a tokenizer that has not seen what is held out.

    Raises:
      UserError: as for split_documents.
    """
    for part in split_documents(corpus, cfg, seed, say=lambda message: None):
        if part.split == "train":
            yield part.text


def split_documents(
    corpus: Corpus, cfg: FeaturesConfig, seed: int, say: Callable[[str], None]
) -> Iterator[Part]:
    """The corpus in its order, each document in its split; empty documents are left out.

    Whole documents are held out. A corpus of fewer than round(1 / share) documents, such as one
    book, has too few for that: there the last `share` of each document's text is held out, as a
    document of its own.

    Raises:
      UserError: the share is no share; a text holds half of a surrogate pair.
    """
    if not 0 <= cfg.held_out <= 0.5:
        raise UserError(f"--features.held-out {cfg.held_out} is no share from 0 to 0.5")
    few = _lengths_if_few(corpus, cfg.held_out)
    if few:
        say(
            f"documents: {len(few)}, too few to hold out whole ones; "
            f"the last {cfg.held_out:.0%} of each is held out"
        )
    index = empty = 0  # the document, counting from 0; the empty documents before it
    start = cut = 0  # characters of the document before this piece; where its held-out end begins
    for document in corpus():
        text, entropy = document.text, document.entropy_bits
        ends = not document.continues
        if text or start:  # not an empty document, as far as we know
            if few is None:
                split = "held_out" if held_out(seed, index, cfg.held_out) else "train"
                yield _part(split, text, ends, entropy, index)
            else:
                if start == 0:
                    cut = few[index] - round(few[index] * cfg.held_out)
                if start <= cut < start + len(text):
                    near = cut - start + min(_NEAR, (few[index] - cut) // 2)
                    line_end = text.find("\n", cut - start, near)
                    here = cut - start if line_end < 0 else line_end + 1
                    yield _part("train", text[:here], True, None, index)
                    yield _part("held_out", text[here:], ends, None, index)
                else:
                    yield _part("train" if start < cut else "held_out", text, ends, None, index)
        start += len(text)
        if ends:
            index, empty = (index + 1, empty) if start else (index, empty + 1)
            start = 0
    if empty:
        say(f"empty documents left out: {empty}")


def _lengths_if_few(corpus: Corpus, share: float) -> list[int] | None:
    """Each document's characters, or None as soon as there are enough to hold whole ones out."""
    lengths: list[int] = []
    length = 0
    if share == 0:
        return None
    for document in corpus():
        length += len(document.text)
        if not document.continues:
            if length:
                lengths.append(length)
            if len(lengths) >= round(1 / share):
                return None
            length = 0
    return lengths


def _part(split: str, text: str, ends: bool, entropy: float | None, index: int) -> Part:
    try:
        return Part(split, text, len(text.encode()), ends, entropy)
    except UnicodeEncodeError as error:
        raise UserError(
            f"document {index + 1}: {text[error.start]!a} after {text[: error.start][-20:]!r} is "
            "half of a surrogate pair, which is no character; remove it, or decode the text anew"
        ) from None


def _batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part.text) + 100  # tiny documents have their weight too
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    yield batch


class _Writer:
    """One split: its stream of ids, cut into blocks and written; its counts."""

    def __init__(self, folder: Path, split: str, sequence_length: int, tokenizer: Tokenizer):
        self._folder, self._split = folder, split
        self._length, self._tokenizer = sequence_length, tokenizer
        self._end = np.array([tokenizer.end_of_text], np.uint32)
        self._waiting = [self._end]  # ids that are not written yet
        self._num_waiting = 1
        self._file: Any = None  # the ParquetWriter of the last of self._files
        self._files: list[dict[str, Any]] = []
        self._counts = {"documents": 0, "bytes": 0, "characters": 0, "tokens": 0, "blocks": 0}
        self._entropy = 0.0  # bits; NaN as soon as one is unknown

    def add(self, part: Part, ids: np.ndarray) -> None:
        if ids.size and ids.max() >= self._tokenizer.vocab_size:
            raise RunError(
                f"the tokenizer gave id {ids.max()}, outside its vocabulary of "
                f"{self._tokenizer.vocab_size}, for a text that begins with {part.text[:20]!r}"
            )
        self._waiting += [ids, self._end] if part.ends else [ids]
        self._num_waiting += len(ids) + part.ends
        self._counts["tokens"] += len(ids) + part.ends
        self._counts["documents"] += part.ends
        self._counts["bytes"] += part.bytes
        self._counts["characters"] += len(part.text)
        if part.text:
            self._entropy += math.nan if part.entropy_bits is None else part.entropy_bits
        if self._num_waiting > max(_ROW_GROUP, self._length):
            self._write_blocks()

    def close(self) -> dict[str, Any]:
        """Writes what is left, padded; returns the split's entry in features.json."""
        left_over = (self._num_waiting - 1) % self._length
        if left_over:
            padding = np.full(self._length - left_over, self._tokenizer.padding, np.uint32)
            self._waiting.append(padding)
        self._write_blocks()
        if self._file:
            self._file.close()
        for file in self._files:
            file["sha256"] = files.sha256(self._folder / file["name"])
        known = self._counts["documents"] and not math.isnan(self._entropy)
        entropy = self._entropy if known else None
        return self._counts | {"entropy_bits": entropy, "files": self._files}

    def _write_blocks(self) -> None:
        ids = np.concatenate(self._waiting).astype(np.int32)
        rows = (len(ids) - 1) // self._length
        if rows:
            width = self._length + 1
            blocks = np.lib.stride_tricks.sliding_window_view(ids, width)[:: self._length]
            self._write(blocks[:rows])
        self._waiting = [ids[rows * self._length :].astype(np.uint32)]
        self._num_waiting = len(self._waiting[0])

    def _write(self, blocks: np.ndarray) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows, width = blocks.shape
        offsets = pa.array(np.arange(0, rows * width + 1, width, dtype=np.int32))
        column = pa.ListArray.from_arrays(offsets, pa.array(blocks.ravel()))
        table = pa.table({"input_ids": column})
        if self._file is None or self._files[-1]["rows"] * width >= _FILE:
            if self._file:
                self._file.close()
            name = f"{self._split}-{len(self._files):05d}.parquet"
            # Of the encodings tried on Aozora, this one was the smallest (1.5 bytes a token at a
            # vocabulary of 8192) and the fastest to read.
            self._file = pq.ParquetWriter(
                self._folder / name,
                table.schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                column_encoding="BYTE_STREAM_SPLIT",
                write_statistics=False,
                write_page_checksum=True,
            )
            self._files.append({"name": name, "rows": 0})
        self._file.write_table(table, row_group_size=rows)
        self._files[-1]["rows"] += rows
        self._counts["blocks"] += rows


def _fingerprint(features: dict[str, Any]) -> str:
    content = {key: value for key, value in features.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
