"""Cleaning that the user asked for: Unicode normalization, length, language, exact duplicates.

Off by default. Documents are kept or dropped whole, in bounded memory, however long they are.
`normalize` and `judge` look at one document alone, so they serve any runner; duplicates are found
among all of them, by the digest that `judge` gives.
"""

import functools
import hashlib
import itertools
import json
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO, Literal

from tsuzuri.config import TextConfig
from tsuzuri.corpus.document import Document
from tsuzuri.errors import RunError

_SCRIPTS = {
    "HIRAGANA": "kana",
    "KATAKANA": "kana",
    "KANA": "kana",  # 〱
    "CJK": "han",
    "IDEOGRAPHIC": "han",  # 々 and 〆
    "HANGUL": "hangul",
    "LATIN": "latin",
}
_IN_MEMORY = 16  # pieces of a document kept in memory while it is judged; the rest goes to disk


def clean(
    documents: Iterable[Document], cfg: TextConfig, say: Callable[[str], None]
) -> Iterator[Document]:
    """Yields the documents that the options keep, normalized, in their order.

    Of documents whose normalized text is the same the first is kept; to know them takes about 100
    bytes of memory a document.

    Args:
      say: hears at the end how many were kept, and how many were dropped and why.

    Raises:
      RunError: the disk is full that holds a long document while it is judged.
    """
    asked = cfg.normalize != "none" or cfg.min_characters or cfg.language != "any"
    return _clean(documents, cfg, say) if asked or cfg.deduplicate else iter(documents)


def normalize(
    pieces: Iterable[Document], form: Literal["none", "NFC", "NFKC"]
) -> Iterator[Document]:
    """Yields a document's pieces such that their text, joined, is the normal form of the whole.

    What begins a piece may combine with the end of the one before it (か and ﾞ, Hangul jamo), and
    then goes over to that one. A piece whose text changes no longer knows its entropy. NFKC may
    lengthen a piece, at worst eighteenfold (ﷺ).

    Args:
      form: as in Unicode Standard Annex #15.
    """
    if form == "none":
        yield from pieces
        return
    held: Document | None = None  # until it is known how the next piece begins
    for piece in pieces:
        if held is None:
            held = piece
            continue
        alone = (at for at, letter in enumerate(piece.text) if _stands_alone(letter))
        cut = next(alone, len(piece.text))
        held = _with_text(held, held.text + piece.text[:cut])
        if cut < len(piece.text):
            yield _with_text(held, unicodedata.normalize(form, held.text))
            held = _with_text(piece, piece.text[cut:])
        else:
            held = replace(held, continues=piece.continues, entropy_bits=None)
    if held:
        yield _with_text(held, unicodedata.normalize(form, held.text))


@dataclass(frozen=True)
class Verdict:
    """What is found out about one document.

    Attributes:
      reason: why it is to be dropped, such as "too short"; empty if it is to be kept.
      characters: of the whole document.
      digest: 128 bits of BLAKE2b over its text in UTF-8, the same for the same text however that
        is cut into pieces; empty if duplicates are not looked for.
    """

    reason: str
    characters: int
    digest: bytes


def judge(pieces: Iterable[Document], cfg: TextConfig) -> Verdict:
    """Goes through a document's normalized pieces; whether it is a duplicate is not asked here."""
    length, characters = 0, Counter()
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        length += len(piece.text)
        if cfg.language != "any":
            characters.update(piece.text)
        if cfg.deduplicate:
            digest.update(piece.text.encode("utf-8", "surrogatepass"))
    reason = ""
    if length < cfg.min_characters:
        reason = "too short"
    elif cfg.language != "any" and _share(characters, cfg.language) < cfg.min_language_share:
        reason = f"not in {cfg.language}"
    return Verdict(reason, length, digest.digest() if cfg.deduplicate else b"")


def _share(characters: Mapping[str, int], language: str) -> float:
    """How much of a document's letters (Unicode's category L) are in the language's script.

      ja  kana; and kanji (Han), if at least a twentieth of kana and kanji together are kana
      zh  Han, unless that many are kana: Chinese is not taken for Japanese, nor Japanese for it
      ko  Hangul
      en  Latin, in whatever language

    A document without a letter has a share of 0.
    """
    letters = Counter()
    for character, count in characters.items():
        letters[_script(character)] += count
    all_letters = letters.total() - letters["no letter"]
    cjk = letters["kana"] + letters["han"]
    japanese = 20 * letters["kana"] >= cjk
    theirs = {
        "ja": cjk if japanese else letters["kana"],
        "zh": 0 if japanese else letters["han"],
        "ko": letters["hangul"],
        "en": letters["latin"],
    }
    return theirs[language] / max(all_letters, 1)


@functools.cache
def _script(character: str) -> str:
    """The script of a letter, as its name in Unicode tells it."""
    if unicodedata.category(character)[0] != "L":
        return "no letter"
    name = unicodedata.name(character, "").replace("-", " ").split()
    return next((script for word, script in _SCRIPTS.items() if word in name), "another")


def _clean(
    documents: Iterable[Document], cfg: TextConfig, say: Callable[[str], None]
) -> Iterator[Document]:
    kept, dropped, characters = 0, Counter(), Counter()  # the dropped, by the reason
    seen: set[bytes] = set()
    stream = iter(documents)
    for first in stream:
        with _Shelf() as shelf:
            pieces = normalize(_document(first, stream), cfg.normalize)
            verdict = judge(map(shelf.add, pieces), cfg)
            if reason := verdict.reason or ("duplicates" if verdict.digest in seen else ""):
                dropped[reason] += 1
                characters[reason] += verdict.characters
                continue
            kept += 1
            if cfg.deduplicate:
                seen.add(verdict.digest)
            yield from shelf.pieces()
    line = f"cleaning kept {kept:,} of {kept + dropped.total():,} documents"
    if dropped:
        line += "; dropped " + ", ".join(
            f"{count:,} as {reason} ({characters[reason]:,} characters)"
            for reason, count in dropped.items()
        )
    say(line)


def _document(piece: Document | None, stream: Iterator[Document]) -> Iterator[Document]:
    """The pieces of the document that begins with `piece` and goes on in the stream."""
    while piece:
        yield piece
        piece = next(stream, None) if piece.continues else None


def _with_text(piece: Document, text: str) -> Document:
    return piece if text == piece.text else replace(piece, text=text, entropy_bits=None)


def _stands_alone(letter: str) -> bool:
    """Whether a character never reorders or composes with what is before it.

    Those that may are marks (category M), the vowels and finals of Hangul, and what decomposes
    into one of them first, such as ﾞ.
    """
    first = unicodedata.normalize("NFKD", letter)[0]
    jamo = "\u1160" <= first <= "\u11ff" or "\ud7b0" <= first <= "\ud7fb"
    return unicodedata.category(first)[0] != "M" and not unicodedata.combining(first) and not jamo


class _Shelf:
    """Keeps a document's pieces in order: the first in memory, those of a long one on disk."""

    def __init__(self) -> None:
        self._first: list[Document] = []
        self._rest: IO[bytes] | None = None

    def __enter__(self) -> "_Shelf":
        return self

    def __exit__(self, *_: object) -> None:
        if self._rest:
            self._rest.close()

    def add(self, piece: Document) -> Document:
        if len(self._first) < _IN_MEMORY:
            self._first.append(piece)
            return piece
        fields = [piece.text, dict(piece.metadata), piece.continues, piece.entropy_bits]
        try:
            self._rest = self._rest or tempfile.TemporaryFile()  # noqa: SIM115
            self._rest.write(json.dumps(fields).encode() + b"\n")
            self._rest.flush()
        except OSError as error:
            raise RunError(
                f"{tempfile.gettempdir()} cannot hold a long document while it is cleaned "
                f"({error.strerror or error}); set TMPDIR to a larger disk"
            ) from error
        return piece

    def pieces(self) -> Iterator[Document]:
        if self._rest:
            self._rest.seek(0)
        lines = self._rest or ()
        return itertools.chain(self._first, (Document(*json.loads(line)) for line in lines))
