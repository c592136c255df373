"""The two vocabularies of the First Two Character Input Method: codes are typed, words come out.

A text is its words in lower case; everything that is no letter from a to z parts them. A word's
code is its first two letters, or its one letter and a space: 26 + 26 x 26 = 702 codes. Words are
numbered by code and then from the most frequent on, so the candidates of a code are a range.

Ids of the tokenizer: the codes, then the words, then three special ones. Lossy: of a word that the
vocabulary lacks nothing comes back, and of the text only its words.

Source: Kazuaki Sugiura, "jax-llm and its application to input methods" (the slides of
github.com/speed1313/jax-llm).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from tsuzuri.errors import UserError
from tsuzuri.files import write_text
from tsuzuri.tokenizer.protocol import check_ids, save_folder, utf8

CODES = [a + " " for a in ascii_lowercase] + [
    a + b for a in ascii_lowercase for b in ascii_lowercase
]
_ID_OF_CODE = {code: i for i, code in enumerate(CODES)}


def words_of(text: str) -> list[str]:
    """The words of a text."""
    return re.findall("[a-z]+", text.lower())


def code_of(word: str) -> int:
    """What is typed for a word of letters from a to z, as an index of CODES."""
    return _ID_OF_CODE[word[:2].ljust(2)]


def split_keys(keys: str) -> list[int]:
    """What was typed, `fitwchinme`, as codes.

    Raises:
      UserError: a character is no letter from a to z; a letter alone is not followed by a space.
    """
    codes = []
    for at in range(0, len(keys), 2):
        pair = keys[at : at + 2].ljust(2)  # a last letter stands for itself
        if pair not in _ID_OF_CODE:
            raise UserError(
                f"{pair!r} at character {at} of the keys is no code: type the first two letters of "
                "each word (a-z), and a space after a word of one letter"
            )
        codes.append(_ID_OF_CODE[pair])
    return codes


class FirstTwoTokenizer:
    """Codes and words.

    Attributes:
      words: word w is words[w]; by code, the more frequent first.
      counts: how often each was seen, int64 [len(words)].
      first: int64 [703]; the words of code c are first[c] to first[c + 1] - 1.
    """

    kind = "first-two"

    def __init__(self, counts: Iterable[tuple[str, int]]):
        """Of words and how often each was seen, in any order."""
        ordered = sorted(counts, key=lambda pair: (code_of(pair[0]), -pair[1], pair[0]))
        self.words = [word for word, _ in ordered]
        self.counts = np.array([count for _, count in ordered], np.int64)
        codes = np.array([code_of(word) for word in self.words], np.int64)
        self.first = np.searchsorted(codes, np.arange(len(CODES) + 1))
        self._index = {word: w for w, word in enumerate(self.words)}
        self.end_of_text = self.begin_of_text = len(CODES) + len(self.words)
        self.padding = self.end_of_text + 1
        self.unknown = self.end_of_text + 2
        self.vocab_size = self.end_of_text + 3
        self.fingerprint = hashlib.sha256(f"first-two\n{self._content()}".encode()).hexdigest()

    @classmethod
    def of(cls, words: Iterable[str]) -> "FirstTwoTokenizer":
        """The vocabulary of a text's words."""
        return cls(Counter(words).items())

    def index(self, word: str) -> int:
        """The number of a word; len(words) for one that is not in the vocabulary."""
        return self._index.get(word, len(self.words))

    def candidates(self, code: int) -> range:
        """The words of a code, by their numbers, the most frequent first."""
        return range(self.first[code], self.first[code + 1])

    def encode(self, text: str) -> list[int]:
        """The words' ids."""
        utf8(text)
        unknown = len(self.words)
        found = [self._index.get(word, unknown) for word in words_of(text)]
        return [self.unknown if w == unknown else len(CODES) + w for w in found]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), np.uint32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode().removesuffix(" ")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        shown = [*CODES, *(f"{word} " for word in self.words), "", "", "\ufffd "]
        return "".join([shown[i] for i in check_ids(ids, self.vocab_size)]).encode()

    def save(self, folder: Path) -> None:
        save_folder(self, folder, lambda beside: write_text(beside / "words.tsv", self._content()))

    def _content(self) -> str:
        pairs = zip(self.words, self.counts, strict=True)
        return "".join(f"{word}\t{count}\n" for word, count in pairs)


def read(folder: Path, config: dict[str, Any]) -> FirstTwoTokenizer:
    """Reads what `save` wrote; `config` is the folder's config.json.

    Raises:
      UserError: it is damaged.
    """
    path = folder / "words.tsv"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        pairs = [(word, int(count)) for word, count in (line.split("\t") for line in lines)]
        return FirstTwoTokenizer(pairs)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
