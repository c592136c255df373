"""Documents to blocks of token ids, in Parquet, with features.json beside them.

    features.json  train-00000.parquet ...  held_out-00000.parquet ...  tokenizer/

splits.py says which documents are held out, packing.py how ids become blocks, parquet.py how blocks
are written. `featurize` does it in this process, over the tokenizer's own threads; beam.py does the
same as an Apache Beam pipeline.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tsuzuri import files
from tsuzuri.config import FeaturesConfig
from tsuzuri.errors import UserError
from tsuzuri.features.packing import IGNORED, Packing
from tsuzuri.features.parquet import Writer, describe, read_features
from tsuzuri.features.splits import SPLITS, Corpus, Part, split_documents, training_texts
from tsuzuri.tokenizer import Tokenizer

__all__ = [
    "IGNORED",
    "Corpus",
    "check_features",
    "featurize",
    "free",
    "read_features",
    "split_documents",
    "training_texts",
]

_BATCH = 1 << 20  # characters encoded at once
_AHEAD = 2  # batches read while one is encoded


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
      UserError: there is no text, less than one block, or nothing to hold out; `out` is taken; the
        packing's numbers contradict each other; see split_documents.
      RunError: the disk is full, or `out` cannot be written.
    """
    from tqdm import tqdm

    free(out)
    packing = Packing.make(cfg, sequence_length, tokenizer)
    with files.write_beside(out) as beside:
        beside.mkdir()
        writers = {split: Writer(beside, split, packing, tokenizer) for split in SPLITS}
        with (
            tqdm(disable=not progress, unit="B", unit_scale=True, desc="features") as bar,
            ThreadPoolExecutor(1) as background,
        ):

            def write(parts: list[Part], encoded: Future[list[np.ndarray]]) -> None:
                for part, ids in zip(parts, encoded.result(), strict=True):
                    writers[part.split].add(part, ids)
                    bar.update(part.bytes)

            waiting: deque[tuple[list[Part], Future[list[np.ndarray]]]] = deque()
            for parts in _batches(split_documents(corpus, cfg, seed, say)):
                texts = [part.text for part in parts]
                waiting.append((parts, background.submit(tokenizer.encode_batch, texts)))
                if len(waiting) > _AHEAD:
                    write(*waiting.popleft())
            while waiting:
                write(*waiting.popleft())
        splits = {split: writer.close() for split, writer in writers.items()}
        check_features(splits, packing, cfg, say)
        tokenizer.save(beside / "tokenizer")
        features = describe(packing, tokenizer, seed, cfg.held_out, source, splits)
        files.write_json(beside / "features.json", features)
    return features


def free(out: Path) -> None:
    """Refuses a folder that holds something.

    Raises:
      UserError: it does.
    """
    if (out / "features.json").exists():
        raise UserError(f"{out} is there already, and holds features; choose another folder")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is there already; choose another folder, or remove it first")


def check_features(
    splits: dict[str, Any], packing: Packing, cfg: FeaturesConfig, say: Callable[[str], None]
) -> None:
    """Refuses splits that nothing can be trained on, and says what was dropped.

    Raises:
      UserError: no text; less than a block; nothing held out, though a share was asked for.
    """
    if not any(split["documents"] for split in splits.values()):
        raise UserError("there is no text to make features of: no document, or only empty ones")
    tokens = splits["train"]["tokens"]
    # With nothing held out the blocks may be meant for evaluation: one that is padded will do.
    if packing.kind == "concat" and tokens < packing.length and cfg.held_out > 0:
        raise UserError(
            f"the training text is {tokens} tokens, shorter than one block of "
            f"{packing.length}; use --sequence-length {max(tokens, 1)} or less, or more text"
        )
    if lost := sum(split["dropped_tokens"] for split in splits.values()):
        say(f"tokens dropped, in blocks of fewer than {packing.min_length}: {lost:,}")
    if not splits["train"]["blocks"]:
        raise UserError(
            f"no block has --features.min-length {packing.min_length} tokens; give a smaller one"
        )
    if cfg.held_out > 0 and not splits["held_out"]["blocks"]:
        raise UserError(
            f"--features.held-out {cfg.held_out} of so little text is nothing; give a larger share"
        )


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
