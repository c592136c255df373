"""The grid of a study: its cells, and the nested corpora that they are trained on.

All corpora of a study come from one text. The documents that are held out are the same for all, and
in none of them. The others have one order, drawn by the seed: a corpus is the beginning of it, so a
smaller one is a part of each larger one. A corpus of so many tokens cuts its last document. Of a
text of few documents the end of each is held out, and passages take the place of documents.
"""

import contextlib
import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tsuzuri.config import Config, ModelConfig, replace
from tsuzuri.errors import UserError
from tsuzuri.features import check_features
from tsuzuri.features.packing import Packing
from tsuzuri.features.parquet import Writer, describe
from tsuzuri.features.splits import SPLITS, Part
from tsuzuri.files import write_beside, write_json
from tsuzuri.tokenizer import Tokenizer

_BATCH = 1 << 20  # characters encoded at once
_PASSAGE = 2000  # characters


class Size(NamedTuple):
    """The shape of a model."""

    layers: int
    width: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"


class Corpus(NamedTuple):
    """A beginning of the training documents, of so many tokens or books; ALL is all of them."""

    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.number}-{self.unit}" if self.number else "all"


ALL = Corpus("", 0)


class Cell(NamedTuple):
    """One model, trained on one corpus."""

    size: Size
    corpus: Corpus
    seed: int  # of its first parameters and of the order of its batches, counted from the study's

    def __str__(self) -> str:
        return f"{self.size}-{self.corpus}" + (f"-seed{self.seed}" if self.seed else "")


@dataclass(frozen=True)
class Grid:
    """The cells of a study are all of these combined."""

    sizes: tuple[Size, ...]
    corpora: tuple[Corpus, ...]
    seeds: int = 1

    @property
    def cells(self) -> list[Cell]:
        seeds = range(self.seeds)
        return [Cell(*c) for c in itertools.product(self.sizes, self.corpora, seeds)]

    def with_(self, other: "Grid") -> "Grid":
        """Both grids as one; so a study grows, and never shrinks."""
        return Grid(
            tuple(dict.fromkeys(self.sizes + other.sizes)),
            tuple(dict.fromkeys(self.corpora + other.corpora)),
            max(self.seeds, other.seeds),
        )


def parse_sizes(text: str) -> list[Size]:
    """ "2x64,4x128" -> the sizes.

    Raises:
      UserError: one is no LxW, or there is none.
    """
    sizes = []
    for word in _words(text, "--sizes"):
        if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", word)):
            raise UserError(f"--sizes: {word!r} is no size; give layers x width, such as 4x128")
        sizes.append(Size(int(found[1]), int(found[2])))
    return sizes


def parse_corpora(text: str, unit: str) -> list[Corpus]:
    """ "12,37,all" -> the corpora.

    Raises:
      UserError: one is no number, or there is none.
    """
    corpora = []
    for word in _words(text, f"--{unit}"):
        if not re.fullmatch(r"[1-9]\d*|all", word):
            raise UserError(f"--{unit}: {word!r} is no number of {unit}; give 1000, or all")
        corpora.append(ALL if word == "all" else Corpus(unit, int(word)))
    return corpora


def _words(text: str, flag: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise UserError(f"{flag} names nothing: the grid has no cell")
    return words


def config_of_cell(cfg: Config, cell: Cell) -> Config:
    """The config of a cell's run: a wider model has more heads, as wide as those of `cfg`.

    Raises:
      UserError: there can be no such model.
    """
    layers, width = cell.size
    wanted = max(1, width * cfg.model.num_heads // cfg.model.embed_dim)
    changes = {
        "model.num_layers": layers,
        "model.embed_dim": width,
        "model.num_heads": next(n for n in range(wanted, 0, -1) if width % n == 0),
        "seed": cfg.seed + cell.seed,
    }
    try:
        return replace(cfg, changes)
    except UserError as error:
        raise UserError(f"size {cell.size}: {error}") from None


@functools.cache
def parameters(cfg: ModelConfig) -> tuple[int, int]:
    """How many parameters a resolved model has: all, and N: without embeddings and head.

    Kaplan et al. 2020 count so, because it makes models of other depths fall on one line.
    """
    import jax
    from flax import nnx

    from tsuzuri.model import Decoder
    from tsuzuri.sharding import path_of

    params = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0))))[1])
    sizes = {path_of(k): leaf.size for k, leaf in jax.tree_util.tree_leaves_with_path(params)}
    blocks = sum(n for path, n in sizes.items() if "embed" not in path and "head" not in path)
    return sum(sizes.values()), blocks


class Lengths(NamedTuple):
    """The tokens of each document of a text, its end counted, by split."""

    train: np.ndarray  # int64 [documents]
    held_out: np.ndarray

    @classmethod
    def of(cls, parts: Iterable[Part], tokenizer: Tokenizer) -> "Lengths":
        """Encodes the text once, and counts."""
        found: dict[str, list[int]] = {split: [] for split in SPLITS}
        sofar: dict[str, int] = dict.fromkeys(SPLITS, 0)  # of the document that is being read
        for part, ids in _encoded(parts, tokenizer):
            sofar[part.split] += len(ids)
            if part.ends:
                found[part.split].append(sofar[part.split] + 1)
                sofar[part.split] = 0
        return cls(*(np.array(found[split], np.int64) for split in ("train", "held_out")))


def passages(parts: Iterable[Part]) -> Iterator[Part]:
    """Cuts what is trained on into passages, each a document, at a line's end where one is near.

    A book's beginning is no sample of it: each chapter has words of its own, and the last ones are
    the nearest to the end, which is held out. So losses of beginnings follow no law.
    """
    for part in parts:
        if part.split != "train":
            yield part
            continue
        start = 0
        while start < len(part.text):
            line_end = part.text.find("\n", start + _PASSAGE, start + 2 * _PASSAGE)
            end = start + _PASSAGE if line_end < 0 else line_end + 1
            text = part.text[start:end]
            yield Part("train", text, len(text.encode()), ends=True, entropy_bits=None)
            start = end


def chosen(corpus: Corpus, train: np.ndarray, seed: int) -> np.ndarray:
    """How much of each training document is in a corpus: int64 [documents], its end counted.

    Args:
      train: the whole lengths.

    Raises:
      UserError: there is not so much.
    """
    if corpus == ALL:
        return train
    there = {"tokens": int(train.sum()), "books": len(train)}[corpus.unit]
    if corpus.number > there:
        raise UserError(
            f"--{corpus.unit} {corpus.number:,}: the text has {there:,} {corpus.unit} to train on, "
            "besides those held out; give at most so many, or all"
        )
    kept = np.zeros_like(train)
    order = _order(len(train), seed)
    if corpus.unit == "books":
        kept[order[: corpus.number]] = train[order[: corpus.number]]
    else:
        before = np.cumsum(train[order]) - train[order]
        kept[order] = np.clip(corpus.number - before, 0, train[order])
    return kept


def beginnings(held_out: np.ndarray, tokens: int) -> np.ndarray:
    """How much of each held-out document is looked at, for about so many tokens: the same share."""
    share = min(1.0, tokens / held_out.sum())
    return np.maximum(2, np.ceil(held_out * share)).astype(np.int64)


def _order(count: int, seed: int) -> np.ndarray:
    """The documents in an order drawn by the seed, which no version of a library changes."""
    keys = [hashlib.sha256(f"{seed} order {index}".encode()).digest() for index in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__), np.int64)


def write_corpora(
    wanted: Mapping[Path, np.ndarray],
    held_out: np.ndarray,
    parts: Iterable[Part],
    tokenizer: Tokenizer,
    cfg: Config,
    source: Mapping[str, Any],
) -> None:
    """Writes features folders, all in one pass over the text.

    Args:
      wanted: by folder, how much of each training document is in it.
      held_out: how much of each held-out document is in all of them.
      source: where the text comes from, kept in each features.json.

    Raises:
      UserError: a corpus is shorter than one block.
      RunError: the disk is full, or a folder cannot be written.
    """
    packing = Packing.make(cfg.features, cfg.sequence_length, tokenizer)
    with contextlib.ExitStack() as open_:
        writers: list[tuple[Path, dict[str, Writer], dict[str, np.ndarray]]] = []
        for folder, train in wanted.items():
            beside = open_.enter_context(write_beside(folder))
            beside.mkdir()
            splits = {split: Writer(beside, split, packing, tokenizer) for split in SPLITS}
            writers.append((beside, splits, {"train": train, "held_out": held_out}))
        index: dict[str, int] = dict.fromkeys(SPLITS, 0)
        seen: dict[str, int] = dict.fromkeys(SPLITS, 0)  # of that document
        for part, ids in _encoded(parts, tokenizer):
            split = part.split
            for _, splits, kept in writers:
                left = int(kept[split][index[split]]) - 1 - seen[split]
                if left > 0:
                    splits[split].add(*_cut(part, ids, left, tokenizer))
            seen[split] += len(ids)
            if part.ends:
                index[split], seen[split] = index[split] + 1, 0
        for beside, splits, _ in writers:
            found = {split: writer.close() for split, writer in splits.items()}
            check_features(found, packing, cfg.features, lambda message: None)
            tokenizer.save(beside / "tokenizer")
            described = describe(packing, tokenizer, cfg.seed, cfg.features.held_out, source, found)
            write_json(beside / "features.json", described)


def _cut(part: Part, ids: np.ndarray, left: int, tokenizer: Tokenizer) -> tuple[Part, np.ndarray]:
    """A piece of a document, of which only `left` more tokens are taken; then it ends."""
    if len(ids) > left:
        ids = ids[:left]
        text = tokenizer.decode_bytes(ids.tolist())
        part = part._replace(text=text.decode(errors="ignore"), bytes=len(text), entropy_bits=None)
    return part._replace(ends=len(ids) == left), ids


def _encoded(parts: Iterable[Part], tokenizer: Tokenizer) -> Iterator[tuple[Part, np.ndarray]]:
    def encode(batch: Sequence[Part]) -> Iterator[tuple[Part, np.ndarray]]:
        return zip(batch, tokenizer.encode_batch([part.text for part in batch]), strict=True)

    batch: list[Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part.text) + 100
        if size >= _BATCH:
            yield from encode(batch)
            batch, size = [], 0
    yield from encode(batch)
