"""Features to batches. The batch of a step is a pure function of (seed, step).

The blocks are decoded once from Parquet into an array on disk that is memory-mapped. The rows of a
step come from a permutation of the blocks that is computed, never stored, and is the same on every
machine: so a run resumes at a step number alone, and on any number of hosts, each of which gathers
its own rows only.

Legend: B batch, L sequence length, N blocks.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from tsuzuri import files
from tsuzuri.errors import UserError
from tsuzuri.features import IGNORED, read_features
from tsuzuri.tokenizer import Tokenizer

_ROUNDS = 6  # of the Feistel network
_AHEAD = 1 << 14  # about so many rows are permuted at once: numpy's cost is per call
_CHUNK = 1 << 20  # token ids decoded at once
_STORED = {  # what is decoded, by packing; positions follow from segments
    "concat": ("input_ids",),
    "packed": ("input_ids", "segment_ids"),
    "document": ("input_ids", "labels"),
    "aligned": ("input_ids", "targets"),
}


class Batch(NamedTuple):
    """One step's input.

    Attributes:
      tokens_BL: int32 ids that the model sees; or [B, L, n], n of them at each place.
      targets_BL: int32, the id after each; or what features give for each place.
      weights_BL: float32, 1 where the target counts; 0 where it is padding, was a target in an
        earlier block, or begins another document of a packed block.
      segments_BL: int32, the document of each token in a packed block, from 1; 0 is padding. None
        where the model may see all that came before.
      positions_BL: int32, the token's place in its document; None together with segments.
    """

    tokens_BL: Any
    targets_BL: Any
    weights_BL: Any
    segments_BL: Any = None
    positions_BL: Any = None


class Blocks:
    """The blocks of one split, memory-mapped; a random-access source as Grain takes it.

    Attributes:
      array: the ids [N, L+1], uint16 where the vocabulary allows it, else uint32. In aligned blocks
        [N, L, n]: n ids at each place.
      padding: the id that is never a target.
      labels: bool [N, L+1], whether the id counts as a target; None where all but padding do.
      segments: uint16 [N, L+1], the document of each id in a packed block; None in the others.
      targets: int32 [N, L], what aligned blocks give at each place, or IGNORED; None in the others.
    """

    def __init__(
        self,
        array: np.ndarray,
        padding: int,
        labels: np.ndarray | None = None,
        segments: np.ndarray | None = None,
        targets: np.ndarray | None = None,
    ):
        self.array, self.padding = array, padding
        self.labels, self.segments, self.targets = labels, segments, targets

    @classmethod
    def open(
        cls, folder: Path, split: str, tokenizer: Tokenizer, say: Callable[[str], None]
    ) -> Self:
        """Opens a split of the features in `folder`; every byte is verified first.

        Raises:
          UserError: there are no features, no such split, or an empty one; they are another
            tokenizer's; a Parquet file is damaged, or not the one that features.json describes.
          RunError: the decoded blocks cannot be written beside the features.
        """
        features = read_features(folder)
        made_by = features["tokenizer"]
        if made_by["fingerprint"] != tokenizer.fingerprint:
            raise UserError(
                f"{folder} was made by another tokenizer ({made_by['kind']}, vocabulary "
                f"{made_by['vocab_size']}) than the given one ({tokenizer.kind}, vocabulary "
                f"{tokenizer.vocab_size}); make the features again with it"
            )
        if not features["splits"].get(split, {}).get("blocks"):
            raise UserError(
                f"{folder} has nothing in its {split} split: the text is too short; give more of "
                "it, or a larger --features.held-out"
            )
        for file in features["splits"][split]["files"]:
            _verify(folder / file["name"], file["sha256"])
        arrays = {}
        for column in _STORED[features["packing"]]:
            decoded = folder / "decoded" / f"{split}.{column}.npy"
            if not _is_sound(decoded, features, say):
                _decode(folder, features, split, column, decoded)
            arrays[column] = np.load(decoded, mmap_mode="r").view(np.ndarray)
        return cls(
            arrays["input_ids"],
            made_by["padding"],
            arrays.get("labels"),
            arrays.get("segment_ids"),
            arrays.get("targets"),
        )

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.array[index]

    def batch(self, rows: np.ndarray) -> Batch:
        """The blocks `rows` [B] as a Batch."""
        ids = self.array[rows].astype(np.int32)
        if self.targets is not None:
            given = self.targets[rows]
            counts = given != IGNORED
            return Batch(ids, np.where(counts, given, 0), counts.astype(np.float32))
        tokens, targets = ids[:, :-1], ids[:, 1:]
        if self.segments is not None:
            segments = self.segments[rows].astype(np.int32)
            counts = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
            return Batch(
                tokens,
                targets,
                counts.astype(np.float32),
                segments[:, :-1],
                _positions(segments[:, :-1]),
            )
        counts = targets != self.padding if self.labels is None else self.labels[rows][:, 1:]
        return Batch(tokens, targets, counts.astype(np.float32))


def _positions(segments_BL: np.ndarray) -> np.ndarray:
    """Each token's place in its segment, from 0."""
    places_1L = np.arange(segments_BL.shape[1], dtype=np.int32)[None, :]
    begins_BL = np.ones_like(segments_BL, bool)
    begins_BL[:, 1:] = segments_BL[:, 1:] != segments_BL[:, :-1]
    return places_1L - np.maximum.accumulate(np.where(begins_BL, places_1L, 0), axis=1)


class Batches:
    """The endless batches of a training run: every block once an epoch, in another order each."""

    def __init__(self, blocks: Blocks, batch_size: int, seed: int):
        self._blocks, self.batch_size = blocks, batch_size
        self._seed = seed
        self._steps = max(1, _AHEAD // batch_size)  # permuted in one call
        self._last_call = -1, np.empty(0)

    def indices(self, step: int) -> np.ndarray:
        """The blocks of step `step`, int64 [B]."""
        call, row = divmod(step, self._steps)
        if self._last_call[0] != call:
            count = self._steps * self.batch_size
            positions = np.arange(call * count, (call + 1) * count, dtype=np.uint64)
            rows = permuted(positions, len(self._blocks), self._seed)
            self._last_call = call, rows.reshape(self._steps, self.batch_size)
        return self._last_call[1][row]

    def batch(self, step: int, rows: slice | np.ndarray | None = None) -> Batch:
        """The batch of step `step`, or only its `rows`, for a host that feeds only those."""
        indices = self.indices(step)
        return self._blocks.batch(indices if rows is None else indices[rows])


def in_order(
    blocks: Blocks, batch_size: int, limit: int = 0, rows: slice | np.ndarray | None = None
) -> Iterator[Batch]:
    """The blocks in their order, for evaluation; each batch has the same shape.

    Args:
      batch_size: B; the last batch is filled with rows of weight 0.
      limit: look at so many blocks at most, evenly spaced; 0 for all.
      rows: only these rows of each batch, for a host that feeds only those.
    """
    total = len(blocks)
    count = min(limit, total) if limit else total
    for first in range(0, count, batch_size):
        places = np.arange(first, first + batch_size)[slice(None) if rows is None else rows]
        batch = blocks.batch(np.minimum(places, count - 1) * total // count)
        batch.weights_BL[places >= count] = 0
        yield batch


def permuted(positions: np.ndarray, total: int, seed: int) -> np.ndarray:
    """The block at each position of an endless stream of shuffled epochs.

    Position p is in epoch p // total, which has a permutation of its own: a Feistel network over
    the next power of 4 (Luby and Rackoff 1988), walked until it falls below `total` (Black and
    Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). Nothing is stored, and any position is
    reached at once.

    Args:
      positions: uint64, any shape.

    Returns:
      int64 indices below `total`, of the same shape.
    """
    epoch, x = np.divmod(positions, np.uint64(total))
    half = np.uint64(max(1, ((total - 1).bit_length() + 1) // 2))  # bits
    mask = np.uint64((1 << int(half)) - 1)
    # One key for each round of each epoch.
    rounds = np.arange(_ROUNDS, dtype=np.uint64).reshape(-1, *[1] * x.ndim)
    keys = _mix(_mix(np.uint64(seed % 2**64) ^ _mix(epoch)) + rounds)

    def network(x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << half | right

    x = network(x, keys)
    while (outside := x >= total).any():
        x[outside] = network(x[outside], keys[:, outside])
    return x.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014), on uint64."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _verify(path: Path, sha256: str) -> None:
    try:
        found = files.sha256(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); make the features again"
        ) from error
    if found != sha256:
        raise UserError(
            f"{path}: damaged or changed: its SHA-256 is not the one in features.json; "
            "make the features again"
        )


def _is_sound(decoded: Path, features: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Whether blocks decoded earlier are there, are of these features, and are undamaged."""
    label = decoded.with_suffix(".json")
    if not decoded.exists() or not label.exists():
        return False
    try:
        if files.read_json(label) == _label(features, files.sha256(decoded)):
            return True
    except (UserError, OSError):
        pass
    say(f"{decoded} is damaged or out of date; decoding the features again")
    return False


def _label(features: dict[str, Any], sha256: str) -> dict[str, str]:
    return {"features": features["fingerprint"], "sha256": sha256}


def _decode(folder: Path, features: dict[str, Any], split: str, column: str, decoded: Path) -> None:
    """Writes one column of the split's blocks as one .npy, and then its label with the SHA-256."""
    import pyarrow as pa

    vocab_size = features["tokenizer"]["vocab_size"]
    ids = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    # (the least value, what it must stay below, as what it is kept); of labels only what is ignored
    least, limit, kept_as = {
        "input_ids": (0, vocab_size, ids),
        "labels": (IGNORED, vocab_size, np.bool_),
        "segment_ids": (0, 1 << 16, np.uint16),
        "targets": (IGNORED, features.get("outputs", 0), np.int32),
    }[column]
    dtype, length = np.dtype(kept_as), features["sequence_length"]
    if features["packing"] != "aligned":
        row = (length + 1,)
    else:
        row = (length, features["ids_a_place"]) if column == "input_ids" else (length,)
    width = math.prod(row)
    shape = (features["splits"][split]["blocks"], *row)
    # Written, not mapped: on a full disk a write is an error, a mapping a crash.
    with files.write_beside(decoded) as beside, beside.open("wb") as out:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        rows = 0
        for file in features["splits"][split]["files"]:
            path = folder / file["name"]
            try:
                for values in _read(path, column, width):
                    if values.size and not least <= values.min() <= values.max() < limit:
                        raise UserError(
                            f"{path}: holds {'a token id' if column == 'input_ids' else column} "
                            f"outside of {least} to {limit - 1}"
                        )
                    if column == "labels":
                        values = values != IGNORED
                    rows += len(values)
                    out.write(values.astype(dtype).tobytes())
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{path}: damaged ({error}); make the features again") from error
        if rows != shape[0]:
            raise UserError(f"{folder}: {rows} blocks in {split}, not the {shape[0]} announced")
    files.write_json(decoded.with_suffix(".json"), _label(features, files.sha256(decoded)))


def _read(path: Path, column: str, width: int) -> Iterator[np.ndarray]:
    """A column of a Parquet file, int32 [some, L+1], its page checksums verified."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(max(1, _CHUNK // width), columns=[column]):
            ids = batch.column(0)
            if ids.null_count or ids.flatten().null_count or len(ids.flatten()) != width * len(ids):
                raise UserError(
                    f"{path}: a block is not {width} token ids; make the features again"
                )
            yield ids.flatten().to_numpy().reshape(-1, width)
