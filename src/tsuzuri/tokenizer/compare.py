"""Tokenizers side by side on a text: a table, and how each cuts a sentence, as lines or picture."""

import html
import re
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tsuzuri.errors import UserError
from tsuzuri.tokenizer.protocol import Tokenizer, utf8

_SECONDS = 1.0  # encoding is measured for at least so long
_WARM_UP = 100_000  # characters encoded before that


@dataclass(frozen=True)
class Row:
    """A tokenizer on a text.

    Attributes:
      characters: a token has so many, on average; likewise `bytes`, of UTF-8.
      torn: the share of tokens that are not whole characters.
      difference: the first place where the text does not come back; empty where it does.
      speed: of encode_batch, in MB of UTF-8 a second.
    """

    name: str
    kind: str
    vocab_size: int
    characters: float
    bytes: float
    torn: float
    difference: str
    speed: float


def compare(tokenizers: Mapping[str, Tokenizer], texts: Sequence[str]) -> list[Row]:
    """Encodes and decodes the documents `texts` by each tokenizer.

    Raises:
      UserError: there is no text, or it holds half of a surrogate pair.
    """
    characters, size = sum(map(len, texts)), sum(len(utf8(text)) for text in texts)
    if not characters:
        raise UserError("there is no text to compare tokenizers on")
    rows = []
    for name, tokenizer in tokenizers.items():
        ids, speed = _encode(tokenizer, texts, size)
        counts = np.bincount(np.concatenate(ids), minlength=tokenizer.vocab_size)
        tokens = max(counts.sum(), 1)
        torn = sum(counts[i] for i in counts.nonzero()[0] if _is_torn(tokenizer, int(i)))
        rows.append(
            Row(
                name=name,
                kind=tokenizer.kind,
                vocab_size=tokenizer.vocab_size,
                characters=characters / tokens,
                bytes=size / tokens,
                torn=torn / tokens,
                difference=_difference(tokenizer, texts, ids),
                speed=speed,
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text; under it, what became of the text where it did not come back."""
    head = ["tokenizer", "kind", "vocabulary", "characters/token", "bytes/token"]
    head += ["torn", "lossless", "MB/s"]
    cells = [
        [
            *(row.name, row.kind, f"{row.vocab_size:,}"),
            *(f"{row.characters:.2f}", f"{row.bytes:.2f}", f"{row.torn:.1%}"),
            *("no" if row.difference else "yes", f"{row.speed:.1f}"),
        ]
        for row in rows
    ]
    widths = [max(map(_width, column)) for column in zip(head, *cells, strict=True)]
    lines = []
    for line in (head, *cells):
        padded = [
            (cell, " " * (width - _width(cell))) for cell, width in zip(line, widths, strict=True)
        ]
        left, right = padded[:2], padded[2:]  # names to the left, figures to the right
        lines.append("  ".join([c + pad for c, pad in left] + [pad + c for c, pad in right]))
    notes = [f"{row.name} is lossy; {row.difference}" for row in rows if row.difference]
    return "\n".join(lines + notes)


def first_sentence(texts: Sequence[str]) -> str:
    """The first sentence of 25 to 60 characters; where there is none, the first 40 characters."""
    start = "".join(texts[:100])[:100_000]
    for sentence in re.split(r"(?<=[。．！？!?\n])|(?<=\. )", start):
        sentence = sentence.strip()
        if 25 <= len(sentence) <= 60 and sum(map(str.isalpha, sentence)) > len(sentence) / 2:
            return sentence
    return start.strip()[:40]


def segmentation(tokenizers: Mapping[str, Tokenizer], sentence: str) -> str:
    """How each tokenizer cuts the sentence, a line each: `name (tokens)  山の│上に│…`."""
    tokens = {name: _segments(tokenizer, sentence) for name, tokenizer in tokenizers.items()}
    heads = {name: f"{name} ({len(tokens[name])})" for name in tokens}
    width = max(map(_width, heads.values()))
    return "\n".join(
        head + " " * (width - _width(head)) + "  " + "│".join(label for label, _ in tokens[name])
        for name, head in heads.items()
    )


# The picture, in pixels. A column is half the width of a kanji.
_COLUMN, _PADDING, _GAP, _HEIGHT, _MARGIN, _WIDTH = 8, 4, 2, 28, 12, 800
_TINTS, _TORN_TINT = ("#cfe3f7", "#f9e2bd"), "#f3bcc6"
_INK, _GRAY = "#1b1b1b", "#767676"  # the gray reads on white and on black
_FONTS = "'Hiragino Sans','Yu Gothic','Noto Sans CJK JP','Noto Sans JP',Meiryo,sans-serif"


def picture(tokenizers: Mapping[str, Tokenizer], sentence: str) -> str:
    """How each tokenizer cuts the sentence, as SVG: a box a token, in two tints by turns.

    A token that is not whole characters has a third tint and shows the odd bytes in hexadecimal.
    """
    body, y, any_torn = [], _MARGIN, False
    for name, tokenizer in tokenizers.items():
        segments = _segments(tokenizer, sentence)
        body.append(_note(y, f"{name}: {len(segments)} tokens"))
        x, y = _MARGIN, y + 20
        for number, (label, torn) in enumerate(segments):
            any_torn |= torn
            length = _width(label, ambiguous=2) * _COLUMN
            if x > _MARGIN and x + length + 2 * _PADDING > _WIDTH - _MARGIN:
                x, y = _MARGIN, y + _HEIGHT + _GAP
            tint = _TORN_TINT if torn else _TINTS[number % 2]
            # Whatever the font, a token fills its box; a single character stands in the middle.
            fit = (
                f' textLength="{length}" lengthAdjust="spacingAndGlyphs"' if len(label) > 1 else ""
            )
            body.append(
                f'<rect x="{x}" y="{y}" width="{length + 2 * _PADDING}" height="{_HEIGHT}" rx="4" '
                f'fill="{tint}"/><text x="{x + _PADDING + length / 2:g}" y="{y + 20}" '
                f'fill="{_INK}" text-anchor="middle"{fit}>{html.escape(label)}</text>'
            )
            x += length + 2 * _PADDING + _GAP
        y += _HEIGHT + 14
    if any_torn:
        body.append(_note(y, "red: not whole characters; the odd bytes are in hexadecimal"))
        y += 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" '
        f'viewBox="0 0 {_WIDTH} {y}" font-family="{_FONTS}" font-size="16">\n'
        f"<title>{html.escape(_visible(sentence))}</title>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _note(y: int, text: str) -> str:
    return (
        f'<text x="{_MARGIN}" y="{y + 13}" fill="{_GRAY}" font-size="13">{html.escape(text)}</text>'
    )


def _encode(
    tokenizer: Tokenizer, texts: Sequence[str], size: int
) -> tuple[list[np.ndarray], float]:
    """The ids, and how fast they came, in MB/s."""
    tokenizer.encode_batch(["".join(texts[:1000])[:_WARM_UP]])
    start, rounds = time.perf_counter(), 0
    while True:
        ids = tokenizer.encode_batch(texts)
        rounds += 1
        if (seconds := time.perf_counter() - start) >= _SECONDS:
            return ids, rounds * size / seconds / 1e6


def _difference(tokenizer: Tokenizer, texts: Sequence[str], ids: Sequence[np.ndarray]) -> str:
    for number, (text, of_text) in enumerate(zip(texts, ids, strict=True), 1):
        back = tokenizer.decode(of_text.tolist())
        if back != text:
            pairs = enumerate(zip(text, back, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(text), len(back)))
            line = text.count("\n", 0, at) + 1
            where = f"document {number}, line {line}" if len(texts) > 1 else f"line {line}"
            excerpt = slice(max(0, at - 4), at + 8)
            return f"{where}: {text[excerpt]!r} became {back[excerpt]!r}"
    return ""


def _is_torn(tokenizer: Tokenizer, i: int) -> bool:
    try:
        tokenizer.decode_bytes([i]).decode()
    except UnicodeDecodeError:
        return True
    return False


def _segments(tokenizer: Tokenizer, sentence: str) -> list[tuple[str, bool]]:
    """The tokens of a sentence as they can be shown, and whether each is torn."""
    return [
        (
            _visible(tokenizer.decode_bytes([i]).decode(errors="surrogateescape")),
            _is_torn(tokenizer, i),
        )
        for i in tokenizer.encode(sentence)
    ]


_SIGNS = {" ": "␣", "\u3000": "□", "\n": "↵", "\r": "␍", "\t": "⇥"}


def _visible(text: str) -> str:
    """White space by signs, bytes that are no character in hexadecimal, controls as U+0000."""

    def sign(character: str) -> str:
        if "\udc80" <= character <= "\udcff":  # how surrogateescape decodes such a byte
            return f"{ord(character) - 0xDC00:02X}"
        return character if character.isprintable() else f"U+{ord(character):04X}"

    return "".join(_SIGNS.get(character) or sign(character) for character in text)


def _width(text: str, ambiguous: int = 1) -> int:
    """Columns of a text: two for East Asian wide characters (Unicode Annex 11), at least one.

    Japanese fonts draw signs such as … and ① wide too, which Unicode leaves `ambiguous`.
    """
    columns = 0
    for character in text:
        kind = unicodedata.east_asian_width(character)
        if unicodedata.combining(character):
            continue
        columns += 2 if kind in "WF" else ambiguous if kind == "A" and character > "\u2000" else 1
    return max(columns, 1)
