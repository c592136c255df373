"""Typing in a terminal: the text, its candidates below the caret, what it has cost.

The screen is drawn on stderr and the text goes to stdout, so that `tsuzuri ime type RUN > FILE`
works. Where stdin is no terminal, all that it holds are keys.
"""

import codecs
import os
import re
import select
import signal
import sys
import termios
import time
import tty
import unicodedata
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from tsuzuri.apps.input_method.composer import Composer
from tsuzuri.apps.input_method.engine import InputMethod
from tsuzuri.errors import UserError

_HELP = "1-5 picks · space takes the first · Esc spells · Ctrl-D ends"
_LEAVE = "\x03\x04"  # Ctrl-C, Ctrl-D: in raw mode they are characters
# What arrow and function keys send; a terminal sends each in one piece.
_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O[A-Z])")


def type_in_terminal(method: InputMethod) -> None:
    """Lets the user type a text; prints it at the end.

    Raises:
      UserError: stdin is no terminal and holds bytes that are not UTF-8.
    """
    composer = Composer(method.session())
    if sys.stdin.isatty() and sys.stderr.isatty():
        with _raw(sys.stdin.fileno()):
            _interact(composer, sys.stdin.fileno())
    else:
        for key in _keys_of(sys.stdin.buffer.read()):
            composer.key(key)
    composer.finish()
    if composer.text:
        print(composer.text.removesuffix("\n"))


def _keys_of(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"stdin: byte {error.start} is not UTF-8; give keys as text") from error


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Each key as it is pressed, on a screen of its own; afterwards all is as it was."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)  # by way of `finally`

    before, handler = termios.tcgetattr(fd), signal.signal(signal.SIGTERM, end)
    try:
        tty.setraw(fd, termios.TCSADRAIN)  # what was typed ahead stays
        sys.stderr.write("\x1b[?1049h")
        yield
    finally:
        sys.stderr.write("\x1b[?1049l")
        sys.stderr.flush()
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, handler)


def _interact(composer: Composer, fd: int) -> None:
    """Keys until the user leaves. Where many wait, only what is at their end is drawn."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    latencies: deque[float] = deque(maxlen=1000)  # ms from a key read to its screen drawn
    _draw(composer, latencies)
    while data := os.read(fd, 4096):
        began = time.perf_counter()
        for key in _SEQUENCE.sub("", decoder.decode(data)):
            if key in _LEAVE:
                return
            composer.key(key)
        if not select.select([fd], [], [], 0)[0]:
            _draw(composer, latencies)
            latencies.append((time.perf_counter() - began) * 1e3)


def _draw(composer: Composer, latencies: deque[float]) -> None:
    """The end of the text, as much as fits, with the candidates below the caret."""
    size = os.get_terminal_size(sys.stderr.fileno())
    columns, room = max(size.columns, 20), max(size.lines - 4, 1)
    pending = composer.gap + composer.pending if composer.pending else ""
    text = _wrapped(composer.text, pending, columns - 1, room)
    caret = _width(text[-1])
    below = _below(composer)[: columns - 1]
    start = max(0, min(caret - _width(composer.pending), columns - 1 - _width(below)))
    screen = [*text, " " * start + below, "", _counters(composer, latencies)[: columns - 1]]
    screen.append(f"\x1b[2m{_HELP[: columns - 1]}\x1b[m")
    drawn = "".join(f"\x1b[{y};1H{line}\x1b[K" for y, line in enumerate(screen, 1))
    sys.stderr.write(f"{drawn}\x1b[J\x1b[{len(text)};{caret + 1}H")
    sys.stderr.flush()


def _wrapped(text: str, pending: str, columns: int, room: int) -> list[str]:
    """The last rows of the text, at most `room`."""
    # Of a long text no more than can be seen; and its beginning moves seldom, so that rows stay.
    size = columns * room
    seen = text[max(len(text) // size - 1, 0) * size :]
    rows, width = [""], 0
    for char in seen + pending:
        if char == "\n":
            rows.append("")
            width = 0
            continue
        char = char if char.isprintable() else " "
        if width + _width(char) > columns:
            row, _, word = rows[-1].rpartition(" ")
            rows[-1:] = [row, word] if row else [word, ""]
            width = _width(rows[-1])
        rows[-1] += char
        width += _width(char)
    return rows[-room:]


def _below(composer: Composer) -> str:
    if composer.note:
        return composer.note
    if composer.spelled is not None:
        return "spelled in full: a space ends the word"
    return "  ".join(f"{n} {word}" for n, word in enumerate(composer.candidates, 1))


def _counters(composer: Composer, latencies: deque[float]) -> str:
    told = (
        f"{composer.keys} keys, {composer.characters} characters, {composer.keys_saved:.0%} saved"
    )
    if not latencies:
        return told
    late = sorted(latencies)[int(0.95 * (len(latencies) - 1))]
    return f"{told}; {latencies[-1]:.1f} ms, 95th percentile {late:.1f} ms"


def _width(text: str) -> int:
    """How many columns a terminal gives a text: two to a full-width character."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
