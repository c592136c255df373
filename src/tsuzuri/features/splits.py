"""Which documents are trained on, and which are held out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from tsuzuri.config import FeaturesConfig
from tsuzuri.corpus.document import Document
from tsuzuri.errors import UserError

SPLITS = ("train", "held_out")
_NEAR = 1000  # characters: a document is cut at a line break if there is one so near

Corpus = Callable[[], Iterable[Document]]


class Part(NamedTuple):
    """A document or a piece of one, and the split it belongs to."""

    split: str
    text: str
    bytes: int  # of the text in UTF-8
    ends: bool  # the document ends here
    entropy_bits: float | None


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
      UserError: the share is no share; a text holds half of a surrogate pair; the corpus has
        changed since it was counted.
    """
    if not 0 <= cfg.held_out <= 0.5:
        raise UserError(f"--features.held-out {cfg.held_out} is no share from 0 to 0.5")
    few = lengths_if_few(corpus, cfg.held_out)
    if few:
        say(
            f"documents: {len(few)}, too few to hold out whole ones; "
            f"the last {100 * cfg.held_out:g}% of each is held out"
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
                if index == len(few):
                    raise UserError("the text has grown while it was read; begin again")
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


def lengths_if_few(corpus: Corpus, share: float) -> list[int] | None:
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
