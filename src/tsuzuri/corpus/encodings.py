"""From bytes to characters, strictly: UTF-8, UTF-16, Shift_JIS, EUC-JP; detected only if sure."""

import codecs
import collections
import io
import re
from collections.abc import Callable, Iterator
from typing import IO

from tsuzuri.corpus.containers import File
from tsuzuri.errors import UserError

# Names of encodings -> Python's codecs. Shift_JIS in the wild is cp932, as browsers read it too.
ENCODINGS = {
    **{name: name for name in ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "cp932")},
    "shift-jis": "cp932",
    "euc-jp": "euc_jp",
}

_CHUNK = 1 << 20  # bytes read at a time
_SAMPLE = 4 << 20  # bytes looked at, at most, to tell an encoding
_UNDEFINED = frozenset("\x80\xa0\uf8f1\uf8f2\uf8f3")  # Python's for bytes cp932 does not define
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def decode(file: File, encoding: str, say: Callable[[str, str], None]) -> Iterator[str]:
    """Yields a text file's characters in chunks, decoded strictly, without a byte order mark.

    Args:
      encoding: one of `ENCODINGS`, or auto, as `_codec` says.
      say: hears the file's name and what was found out about it.

    Raises:
      UserError: the file is in another encoding, or cannot be told to be in one, or holds a NUL;
        the message names the byte, counted from 0.
    """
    sample = file.stream.read(_SAMPLE)
    codec, mark = _codec(sample, encoding, file.name, say)
    decoder = codecs.getincrementaldecoder(codec)("strict")
    offset = len(mark)  # of the chunk in the file, in bytes
    for chunk in _chunks(io.BytesIO(sample[offset:]), file.stream):
        # The bytes of a character that was cut in two come again, before the chunk's.
        begin = offset - len(decoder.getstate()[0])
        try:
            characters = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = begin + error.start
            raise UserError(
                f"{file.name}: byte {at} is not {codec}, though what comes before it is; "
                f"mend the file, or give --encoding, one of {', '.join(ENCODINGS)}"
            ) from error
        if "\0" in characters:
            at = begin + len(characters[: characters.index("\0")].encode(codec))
            raise _nul(file.name, at)
        yield characters
        offset += len(chunk)


def _chunks(*streams: IO[bytes]) -> Iterator[bytes]:
    """Yields the streams' bytes, and b"" at the end."""
    for stream in streams:
        while chunk := stream.read(_CHUNK):
            yield chunk
    yield b""


def _codec(
    sample: bytes, encoding: str, name: str, say: Callable[[str, str], None]
) -> tuple[str, bytes]:
    """The codec of a file that begins with `sample`, and the byte order mark to drop.

    `auto` takes a byte order mark's word; then UTF-8, where all of the sample is valid, but for
    ISO-2022-JP, whose bytes are ASCII's; then the one of cp932 and EUC-JP that decodes it strictly
    with at least a tenth of what is not ASCII being full-width kana. Both cannot be: such kana
    begin with the bytes 82 and 83 in cp932, which EUC-JP never uses. Text without kana, such as
    half-width katakana or a few accented letters, decodes as many things and is nobody's guess.
    """
    mark = next((mark for mark in _MARKS if sample.startswith(mark)), b"")
    wanted = encoding.lower().replace("_", "-")
    if wanted == "auto":
        codec = _MARKS[mark] if mark else _detect(sample, name)
        if codec != "utf-8":
            say(name, f"read as {codec}; if that is wrong, give --encoding")
    elif wanted == "utf-16":
        codec = _MARKS.get(mark, "")
        if not codec.startswith("utf-16"):
            raise UserError(
                f"{name}: byte 0 is not UTF-16's byte order mark; "
                "give --encoding utf-16-le or utf-16-be, or another"
            )
    elif wanted in ENCODINGS:
        codec = ENCODINGS[wanted]
    else:
        raise UserError(
            f"--encoding {encoding}: unknown; it is auto or one of {', '.join(ENCODINGS)}"
        )
    if _MARKS.get(mark) != codec:
        return codec, b""
    if codec == "utf-8":
        say(name, "the byte order mark at the beginning is dropped")
    return codec, mark


def _detect(sample: bytes, name: str) -> str:
    final = len(sample) < _SAMPLE
    if sample.isascii() and (jis := re.search(rb"\x1b\$[@B]", sample)):
        raise UserError(
            f"{name}: byte {jis.start()} begins Japanese in ISO-2022-JP (JIS), which is not read "
            "here; make it UTF-8, such as by iconv -f ISO-2022-JP -t UTF-8"
        )

    def decode(codec: str) -> str:
        return codecs.getincrementaldecoder(codec)("strict").decode(sample, final)

    try:
        decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError as error:
        offset = error.start
    if (nul := sample.find(0)) >= 0:
        raise _nul(name, nul)
    for codec in ("cp932", "euc_jp"):
        try:
            characters = decode(codec)
        except UnicodeDecodeError:
            continue
        counts = collections.Counter(characters)
        if not _UNDEFINED.isdisjoint(counts):
            continue
        foreign = sum(counts[character] for character in counts if character > "\x7f")
        if 10 * sum(counts[kana] for kana in counts if "ぁ" <= kana <= "ヶ") >= foreign:
            return codec
    raise UserError(
        f"{name}: byte {offset} is not UTF-8, and which other encoding it is cannot be told; "
        f"give --encoding, one of {', '.join(ENCODINGS)}"
    )


def _nul(name: str, at: int) -> UserError:
    return UserError(
        f"{name}: a NUL at byte {at}; it is no text file, or UTF-16 without a byte order mark, "
        "which --encoding utf-16-le or utf-16-be reads"
    )
