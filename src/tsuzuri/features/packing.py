"""Ids of documents to blocks of L+1 ids, in one of three packings.

Each document is `BOS ids EOS`; where one id serves as both (ours, GPT-2's), the EOS of a document
is also the BOS of the next.

- `concat`: all documents end to end in one stream, cut into blocks. The last id of a block is the
  first of the next, so every id but the very first is a target once. Padding fills the last block.
- `packed`: several documents in a block, each with its own BOS and EOS; a document longer than a
  block goes on in the next. Attention and positions stay inside a segment. Best-fit-decreasing
  (Ding et al. 2024, "Fewer Truncations Improve Language Modeling") keeps short documents whole.
- `document`: each document in blocks of its own, beginning every `stride` ids and padded, as
  jax-lm-training does; what an earlier block has had as targets is masked in the next.

Blocks are dicts of int32 arrays [rows, L+1], by the names that transformers gives them:
`input_ids`; `labels`, the same with IGNORED where an id is no target; `segment_ids`, from 1, 0 for
padding; `position_ids`, from 0 in each segment. A label belongs to its own place: the model, or
`data`, shifts.
"""

import bisect
from typing import NamedTuple, Protocol

import numpy as np

from tsuzuri.config import FeaturesConfig, check_packing
from tsuzuri.tokenizer import Tokenizer

Blocks = dict[str, np.ndarray]

IGNORED = -100  # the label that PyTorch's and transformers' losses leave out
COLUMNS = {  # by packing
    "concat": ("input_ids",),
    "packed": ("input_ids", "labels", "segment_ids", "position_ids"),
    "document": ("input_ids", "labels"),
}
_GROUP = 1 << 20  # packed: documents that begin within so many ids of the stream share blocks


class Packing(NamedTuple):
    """All that decides the blocks of given documents."""

    kind: str
    length: int  # L
    stride: int  # ids from one block's beginning to the next
    min_length: int
    begin: int
    end: int
    padding: int

    @classmethod
    def make(cls, cfg: FeaturesConfig, sequence_length: int, tokenizer: Tokenizer) -> "Packing":
        """The packing that a config asks for.

        Raises:
          UserError: its numbers contradict each other.
        """
        check_packing(cfg, sequence_length)
        return cls(
            cfg.packing,
            sequence_length,
            cfg.stride or sequence_length,
            cfg.min_length,
            tokenizer.begin_of_text,
            tokenizer.end_of_text,
            tokenizer.padding,
        )

    @property
    def between(self) -> list[int]:
        """The ids after each document of a stream."""
        return [self.end] if self.begin == self.end else [self.end, self.begin]


class Packer(Protocol):
    """Takes the documents of one split, piece by piece, and gives blocks.

    Attributes:
      waiting: about how many ids are in blocks that `take` would give.
      dropped: ids of documents that are in no block, because `min_length` left them out.
    """

    waiting: int
    dropped: list[np.ndarray]

    def add(self, ids: np.ndarray, ends: bool) -> None:
        """Takes the next ids of a document, which ends here or goes on."""
        ...

    def take(self, last: bool = False) -> Blocks:
        """The blocks that are full; all that is left, if these are the last."""
        ...


def packer(packing: Packing, position: int = 0) -> Packer:
    """The Packer of a packing, for documents from a position in their split's stream on."""
    if packing.kind == "packed":
        return Packed(packing, position)
    return Document(packing) if packing.kind == "document" else Concat(packing)


class Concat:
    """One stream, cut."""

    def __init__(self, packing: Packing):
        self._packing = packing
        self._ids = [_array([packing.begin])]
        self.waiting = 1
        self.dropped: list[np.ndarray] = []

    def add(self, ids: np.ndarray, ends: bool) -> None:
        self._ids += [ids, _array(self._packing.between)] if ends else [ids]
        self.waiting += len(ids) + ends

    def take(self, last: bool = False) -> Blocks:
        ids = np.concatenate(self._ids)
        whole = len(ids) if last else (len(ids) - 1) // self._packing.length * self._packing.length
        self._ids = [ids[whole:]]
        self.waiting = len(self._ids[0])
        return {"input_ids": cut(ids[: whole + 1], self._packing)}


def cut(ids: np.ndarray, packing: Packing) -> np.ndarray:
    """A stream, or a part of it from the beginning of a block, as blocks; the last is padded."""
    length = packing.length
    padding = np.full(-(len(ids) - 1) % length, packing.padding, np.int32)
    ids = np.concatenate([ids.astype(np.int32), padding])
    if len(ids) <= length:
        return np.empty((0, length + 1), np.int32)
    return np.lib.stride_tricks.sliding_window_view(ids, length + 1)[::length]


class Document:
    """Each document by itself, in windows."""

    def __init__(self, packing: Packing):
        self._packing = packing
        self._windows = _Windows(packing.length + 1, packing.stride)
        self._rows: list[tuple[np.ndarray, int]] = []  # ids, and how many of them were seen before
        self.waiting = 0
        self.dropped: list[np.ndarray] = []

    def add(self, ids: np.ndarray, ends: bool) -> None:
        for window, seen in _windows_of(self._packing, self._windows, ids, ends):
            if len(window) < self._packing.min_length:
                # Neither BOS nor EOS is text, but they decode to nothing.
                self.dropped.append(window[seen:])
                continue
            self._rows.append((window, seen))
            self.waiting += self._packing.length + 1

    def take(self, last: bool = False) -> Blocks:
        width = self._packing.length + 1
        input_ids = np.full((len(self._rows), width), self._packing.padding, np.int32)
        labels = np.full((len(self._rows), width), IGNORED, np.int32)
        for row, (window, seen) in enumerate(self._rows):
            input_ids[row, : len(window)] = window
            first = max(seen, 1)  # nothing comes before the first id: it is no target
            labels[row, first : len(window)] = window[first:]
        self._rows, self.waiting = [], 0
        return {"input_ids": input_ids, "labels": labels}


class Packed:
    """Several documents in a block, each a segment."""

    def __init__(self, packing: Packing, position: int):
        self._packing = packing
        self._windows = _Windows(packing.length + 1, packing.length)
        self._ready: list[list[np.ndarray]] = []  # blocks: the segments of each
        self._group: list[np.ndarray] = []  # segments shorter than a block, to be fitted together
        self._position = self._begins = position  # of the next id; where the document began
        self.waiting = 0
        self.dropped: list[np.ndarray] = []

    def add(self, ids: np.ndarray, ends: bool) -> None:
        if not self._windows.open:
            if group_of(self._begins) != group_of(self._position):
                self._fit()
            self._begins = self._position
        self._position += len(ids) + ends * len(self._packing.between)
        for segment, _ in _windows_of(self._packing, self._windows, ids, ends):
            if len(segment) > self._packing.length:
                self._ready.append([segment])
                self.waiting += len(segment)
            else:
                self._group.append(segment)

    def take(self, last: bool = False) -> Blocks:
        if last:
            self._fit()
        blocks = to_blocks(self._ready, self._packing)
        self._ready, self.waiting = [], 0
        return blocks

    def _fit(self) -> None:
        self._ready += best_fit(self._group, self._packing.length + 1)
        self.waiting += sum(map(len, self._group))
        self._group = []


def group_of(position: int) -> int:
    """Packed: the group of a document that begins after so many ids of its split's documents."""
    return position // _GROUP


def best_fit(segments: list[np.ndarray], width: int) -> list[list[np.ndarray]]:
    """Segments to blocks of at most `width` ids: the longest first, each where it leaves least."""
    blocks: list[list[np.ndarray]] = []
    room: list[tuple[int, int]] = []  # (ids free, block), sorted
    for segment in sorted(segments, key=len, reverse=True):
        at = bisect.bisect_left(room, (len(segment), -1))
        free, block = room.pop(at) if at < len(room) else (width, len(blocks))
        if block == len(blocks):
            blocks.append([])
        blocks[block].append(segment)
        if left := free - len(segment):
            bisect.insort(room, (left, block))
    return blocks


def to_blocks(segments: list[list[np.ndarray]], packing: Packing) -> Blocks:
    """Segments of each block to the columns of `packed`."""
    shape = (len(segments), packing.length + 1)
    blocks = {
        "input_ids": np.full(shape, packing.padding, np.int32),
        "labels": np.full(shape, IGNORED, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "position_ids": np.zeros(shape, np.int32),
    }
    for row, parts in enumerate(segments):
        start = 0
        for number, ids in enumerate(parts, 1):
            end = start + len(ids)
            blocks["input_ids"][row, start:end] = ids
            blocks["labels"][row, start + 1 : end] = ids[1:]
            blocks["segment_ids"][row, start:end] = number
            blocks["position_ids"][row, start:end] = np.arange(len(ids))
            start = end
    return blocks


class _Windows:
    """A document's ids in windows of `width`, beginning every `stride`; it may come in parts."""

    def __init__(self, width: int, stride: int):
        self._width, self._stride = width, stride
        self._ids = _array([])
        self._seen = 0  # of these ids, how many an earlier window held
        self.open = False  # in the middle of a document

    def add(self, ids: np.ndarray, ends: bool) -> list[tuple[np.ndarray, int]]:
        """(window, how many of its ids an earlier window held); the last may be short."""
        self._ids = np.concatenate([self._ids, ids]) if len(self._ids) else ids
        found, start = [], 0
        while start + self._width <= len(self._ids):
            found.append((self._ids[start : start + self._width], self._seen))
            start, self._seen = start + self._stride, self._width - self._stride
        self._ids = self._ids[start:]
        self.open = not ends
        if ends:
            if len(self._ids) > self._seen:
                found.append((self._ids, self._seen))
            self._ids, self._seen = _array([]), 0
        return found


def _windows_of(
    packing: Packing, windows: _Windows, ids: np.ndarray, ends: bool
) -> list[tuple[np.ndarray, int]]:
    first = [] if windows.open else [packing.begin]
    return windows.add(np.concatenate([_array(first), ids, _array([packing.end] * ends)]), ends)


def _array(ids: list[int]) -> np.ndarray:
    return np.array(ids, np.uint32)
