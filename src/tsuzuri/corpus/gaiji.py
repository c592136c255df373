"""Characters that Aozora Bunko's files, which are Shift_JIS, can only describe.

https://www.aozora.gr.jp/annotation/external_character.html names a character by its place in
JIS X 0213 (`第3水準1-85-57`) or in Unicode (`U+7A91`), or describes it in words.
https://www.aozora.gr.jp/accent_separation.html writes é as e' inside 〔〕.
"""

import re
import unicodedata

GETA = "〓"  # what printers set for a sort they lack: stands for what Unicode does not have

# Kana that have a small form in Unicode, and those, where JIS X 0213 may have no place for them.
_SMALL = dict(
    zip(
        "あいうえおかけこつやゆよわゐゑをアイウエオカケコツヤユヨワヰヱヲン",
        "ぁぃぅぇぉゕゖ𛄲っゃゅょゎ𛅐𛅑𛅒ァィゥェォヵヶ𛅕ッャュョヮ𛅤𛅥𛅦𛅧",
        strict=True,
    )
)
_ACCENTS = {
    "`": "\u0300",
    "'": "\u0301",
    "^": "\u0302",
    "~": "\u0303",
    ":": "\u0308",
    "_": "\u0304",
}
_LETTERS = {
    "a&": "å", "A&": "Å", "c,": "ç", "C,": "Ç", "n~": "ñ", "N~": "Ñ", "o/": "ø", "O/": "Ø",
    "s&": "ß", "ae&": "æ", "AE&": "Æ", "oe&": "œ", "OE&": "Œ", "!@": "¡", "?@": "¿",
}  # fmt: skip
_ACCENTED = re.compile("|".join([*map(re.escape, _LETTERS), "[AEIOUYaeiouy][`'^~:_]"]))


def resolve(note: str) -> str:
    """The character, or two that combine, that the note of a gaiji stands for; `GETA` for none.

    Args:
      note: such as `［＃「虫＋原」、第3水準1-91-60］`.
    """
    plain = unicodedata.normalize("NFKC", note)
    if place := re.search(r"(?<![\d-])([12])-(\d{1,2})-(\d{1,2})(?![\d-])", plain):
        plane, row, cell = map(int, place.groups())
        try:
            # EUC-JIS-2004 is rows and cells plus A0, and 8F before those of plane 2.
            code = bytes([0x8F] * (plane - 1) + [row + 0xA0, cell + 0xA0])
            return code.decode("euc_jis_2004")
        except ValueError:
            return GETA
    if point := re.search(r"U\+((?!D[89A-F]..\b)[0-9A-F]{4,5})\b", plain):  # no surrogate
        return chr(int(point[1], 16))
    if kana := re.search("＃(濁点付き)?(小書き)?(?:平仮名|片仮名)(.)", note):
        voiced, small, character = kana.groups()
        if small:
            character = _SMALL.get(character, GETA)
        if character != GETA and (voiced or small):
            return unicodedata.normalize("NFC", character + ("\u3099" if voiced else ""))
    return GETA


def compose_accents(passage: str) -> str:
    """〔passage〕 with its accents composed and the brackets gone; as it was if it has none.

    An apostrophe after a consonant stays one (L'Éternité), as on the site's own pages.
    """
    composed = _ACCENTED.sub(_compose, passage)
    return composed[1:-1] if composed != passage else passage


def _compose(match: re.Match[str]) -> str:
    pair = match[0]
    if pair in _LETTERS:
        return _LETTERS[pair]
    letter = unicodedata.normalize("NFC", pair[0] + _ACCENTS[pair[1]])
    return letter if len(letter) == 1 else pair
