"""What every tokenizer can do, and what they share: a folder, checks of text and ids.

A tokenizer is a folder: config.json says its kind, its special ids, its fingerprint and the SHA-256
of the files beside it, which are in the format of the kind's own field.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tsuzuri import files
from tsuzuri.errors import UserError

# Text is encoded in slices of at most so many characters: the unit of work of a thread. It also
# bounds the regex engine, which gives up on a million spaces in a row.
_SLICE = 1 << 18


class Tokenizer(Protocol):
    """What every tokenizer can do. The lossless ones give `decode(encode(text)) == text`, always.

    Attributes:
      kind: `bpe`, `bytes`, `unigram`, `gpt2`, ...: what `load` reads the folder as.
      vocab_size: ids are 0 to vocab_size - 1.
      begin_of_text: the id that stands before a document; end_of_text where there is no other.
      end_of_text: the id that stands after a document, or between two.
      padding: the id that fills up the last block; never a target.
      unknown: the id of what the vocabulary lacks; None where every text fits.
      fingerprint: a SHA-256 of everything that decides the ids of a text.

    `end_of_text`, `padding` and `unknown` are always different ids.
    """

    @property
    def kind(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def begin_of_text(self) -> int: ...
    @property
    def end_of_text(self) -> int: ...
    @property
    def padding(self) -> int: ...
    @property
    def unknown(self) -> int | None: ...
    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text; never a special id but `unknown`.

        Raises:
          UserError: the text holds half of a surrogate pair, which no encoding can write.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, uint32 [its tokens], encoded on all cores.

        Raises:
          UserError: as for encode.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Bytes that are not UTF-8 show as U+FFFD, special ids as nothing.

        Raises:
          UserError: an id is outside the vocabulary.
        """
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids, each by itself: for streaming, where a character may end in a later
        token.

        Raises:
          UserError: an id is outside the vocabulary.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes the folder that `load` reads, whole or not at all.

        Raises:
          RunError: it cannot be written, or holds something else.
        """
        ...


def save_folder(tokenizer: Tokenizer, folder: Path, write_model: Callable[[Path], None]) -> None:
    """Writes the tokenizer's folder, whole or not at all; the same one there already is left be.

    Args:
      write_model: writes the kind's own files into the folder it is given.

    Raises:
      UserError: the same tokenizer is there, damaged.
      RunError: it cannot be written, or holds something else.
    """
    there = folder / "config.json"
    if there.exists():
        config = files.read_json(there)
        if isinstance(config, dict) and config.get("fingerprint") == tokenizer.fingerprint:
            check_files(folder, config)
            return
    with files.write_beside(folder) as beside:
        beside.mkdir()
        write_model(beside)
        hashes = {path.name: files.sha256(path) for path in sorted(beside.iterdir())}
        files.write_json(beside / "config.json", attributes(tokenizer) | {"files": hashes})


def attributes(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a tokenizer is, as its config.json and features.json record it."""
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "begin_of_text": tokenizer.begin_of_text,
        "end_of_text": tokenizer.end_of_text,
        "padding": tokenizer.padding,
        "unknown": tokenizer.unknown,
        "fingerprint": tokenizer.fingerprint,
    }


def check_files(folder: Path, config: dict[str, Any]) -> None:
    """Checks that the files of a tokenizer's folder are those that config.json names.

    Raises:
      UserError: it names none; one is absent, or not what it was.
    """
    named = config.get("files")
    if not isinstance(named, dict):
        raise UserError(
            f"{folder / 'config.json'}: does not name the tokenizer's files; it is damaged: "
            "make it again, or restore the folder"
        )
    for name, sha256 in named.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: no such file; make it again, or restore the folder")
        if files.sha256(path) != sha256:
            raise UserError(f"{path}: changed or damaged; make it again, or restore the folder")


def check_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids as a list.

    Raises:
      UserError: one is outside the vocabulary.
    """
    ids = list(ids)
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise UserError(
            f"token id {wrong} is outside the vocabulary of {vocab_size}; "
            "the ids come from another tokenizer"
        )
    return ids


def utf8(text: str) -> bytes:
    """The text's bytes.

    Raises:
      UserError: it holds half of a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {error.start} of the text is {text[error.start]!a}, half of a surrogate "
            "pair, which is no character; remove it, or decode the file with its real encoding"
        ) from None


def slices(text: str, before_newline: bool = False) -> Iterator[str]:
    """Cuts a long text where pre-tokenizers cut it anyway: at a newline before a non-space.

    Most end a piece after a run of newlines. GPT-2's joins a run of spaces but for the last one:
    for it the cut is `before_newline`. None is made before a slash, which o200k joins to newlines.
    """
    start = 0
    while len(text) - start > _SLICE:
        end = start + _SLICE
        while (end := text.rfind("\n", start + 1, end)) >= 0:
            if not text[end + 1].isspace() and text[end + 1] != "/":
                break
        # A line longer than a slice is cut anywhere: other ids there, but still the same text.
        end = start + _SLICE if end < 0 else end if before_newline else end + 1
        yield text[start:end]
        start = end
    yield text[start:]
