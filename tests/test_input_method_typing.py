import io
import os
import pty
import select
import signal
import sys
import termios
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri.apps.input_method.composer import BACKSPACE, ESCAPE, Composer
from tsuzuri.apps.input_method.engine import InputMethod
from tsuzuri.apps.input_method.ngram import KneserNey
from tsuzuri.apps.input_method.terminal import _wrapped, type_in_terminal
from tsuzuri.errors import UserError
from tsuzuri.tokenizer.first_two import FirstTwoTokenizer, words_of

TEXT = """the first two character input method is a way of typing words by their first two letters
she finds a fire in a field and fifty fish in the first fine river you find a fifth there and
those that this then these they i am a man in the town with a twin who made two characters in
his home the first two character input method"""


def tiny() -> InputMethod:
    words = words_of(TEXT)
    tok = FirstTwoTokenizer.of(words)
    ngrams = KneserNey.fit(np.array([tok.index(word) for word in words]), 3, len(tok.words) + 1)
    return InputMethod(tok, ngrams, None, [1.0], "committed")


METHOD = tiny()


def typed(keys: str, shown: int = 5) -> Composer:
    composer = Composer(METHOD.session(), shown)
    for key in keys:
        composer.key(key)
    return composer


def text(keys: str) -> str:
    composer = typed(keys)
    composer.finish()
    return composer.text


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("fitwchinme", "first two character input method"),
        ("fi tw ch in me ", "first two character input method"),
        ("FitwCHin", "First two CHARACTER input"),
        ("I am", "I am"),
        ("a ma", "a man"),
        ("a  ma", "a man"),
        ("z th", "z the"),  # a word of one letter is whole, even if it is new
        ("fi, tw", "first, two"),
        ("fi,tw.", "first, two."),
        ("fi\ntw", "first\ntwo"),
        ("fi\rtw", "first\ntwo"),
        ("(fi) tw-ch", "(first) two-character"),
        ("1 fi 2", "1 first2"),
        ("fi  2", "first 2"),
        ("h2", "h2"),
        ("fié日本 tw", "firsté日本 two"),
        ("日本tw", "日本 two"),
        (f"{ESCAPE}fiddle tw", "fiddle two"),
        (f"fi{ESCAPE}ddle tw", "fiddle two"),
        (f"fi{ESCAPE}ddle\ntw", "fiddle two"),
        (f"fi{ESCAPE}ddle.tw", "fiddle. two"),
        (f"fi{ESCAPE}{ESCAPE}tw", "two"),
        (f"{ESCAPE}McDonald ", "McDonald"),
        (f"{ESCAPE}café tw", "café two"),
        (f"fi{ESCAPE}ddle{BACKSPACE}{BACKSPACE}er ", "fidder"),
        (f"f{ESCAPE}{BACKSPACE}tw", "two"),
        ("qugga tw", "qugga two"),  # no word begins so: it is spelled without Esc
        (f"fi{BACKSPACE}i{BACKSPACE * 2}tw", "two"),
        (f"fi tw {BACKSPACE}ch", "first character"),
        (f"fi,{BACKSPACE} tw", "first two"),
        (f"a {BACKSPACE}m", "am"),
        (BACKSPACE, ""),
        ("\x00fi\x07tw", "first two"),
        ("", ""),
    ],
)
def test_what_keys_write(keys: str, expected: str) -> None:
    assert text(keys) == expected


def test_candidates_are_shown_at_once_and_a_digit_picks_one() -> None:
    composer = typed("fi")
    assert (composer.candidates[0], composer.pending, composer.text) == ("first", "first", "")
    assert [len(typed("fi", shown).candidates) for shown in (1, 5, 9)] == [1, 5, 9]
    second = composer.candidates[1]
    composer.key("2")
    assert (composer.text, composer.candidates, composer.pending) == (second, [], "")
    assert text("Fi2") == second.capitalize()


def test_a_digit_beyond_the_candidates_is_said_and_changes_nothing() -> None:
    composer = typed("tw")
    shown = list(composer.candidates)
    for digit in "90":
        composer.key(digit)
        assert composer.note == f"there is no candidate {digit}"
        assert (composer.candidates, composer.text, composer.code) == (shown, "", "tw")
    composer.key("1")
    assert (composer.note, composer.text) == ("", "two")


def test_a_spelled_word_is_learned_by_its_session_only() -> None:
    assert "twixt" in typed(f"{ESCAPE}Twixt tw").candidates
    assert "QUGGA" in typed("qugga QU").candidates
    assert "twixt" not in typed("tw").candidates


def test_that_no_word_begins_so_is_said() -> None:
    composer = typed("qu")
    assert composer.spelled == "qu" and "no word is known that begins with qu" in composer.note


@pytest.mark.parametrize("shown", [0, 10])
def test_more_candidates_than_digits_are_refused(shown: int) -> None:
    with pytest.raises(UserError, match="give 1 to 9"):
        Composer(METHOD.session(), shown)


def test_the_counters() -> None:
    composer = typed("fitwchinme")
    assert composer.keys == 10 and composer.characters == len("first two character input method")
    assert composer.keys_saved == pytest.approx(1 - 10 / 32)
    assert typed("").keys_saved == 0
    assert typed(f"tw{BACKSPACE * 2}").keys == 4


KEYS = st.text(st.sampled_from("fitwchaIT 19.,'é(\n" + ESCAPE + BACKSPACE), max_size=60)


@settings(max_examples=100, deadline=None)
@given(KEYS)
def test_changes_add_up_to_the_text_whatever_is_typed(keys: str) -> None:
    composer, page = Composer(METHOD.session()), list[str]()
    for at, key in enumerate(keys):
        composer.key(key)
        if at % 3 == 0:  # a page does not see each state
            kept, pieces = composer.changes()
            page = page[:kept] + pieces
            assert page == composer.pieces
        shown = composer.gap + composer.pending if composer.pending else ""
        assert composer.characters == len(composer.text + shown)
    composer.finish()
    assert (composer.pending, composer.code, composer.spelled) == ("", "", None)


def test_ten_thousand_keys() -> None:
    assert text("fitwchinme" * 1000) == " ".join(["first two character input method"] * 1000)


@pytest.mark.parametrize(
    ("typed", "pending", "rows"),
    [
        ("", "", [""]),
        ("the first two", " ch", ["the first", "two ch"]),
        ("abcdefghijkl", "", ["abcdefghij", "kl"]),
        ("the first ab", "", ["the first", "ab"]),
        ("日本語日本語", "", ["日本語日本", "語"]),
        ("a\n\nb\tc", "", ["a", "", "b c"]),
        ("one two three four five six seven", "", ["four five", "six seven"]),
    ],
)
def test_rows_of_a_terminal_part_between_words(typed: str, pending: str, rows: list[str]) -> None:
    assert _wrapped(typed, pending, 10, 2 if len(typed) > 20 else 9) == rows


class Terminal:
    """The user of a pseudo-terminal, in a thread: what type_in_terminal reads and draws on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, user: Callable[["Terminal"], None]):
        self.fd, self._inside = pty.openpty()
        termios.tcsetwinsize(self.fd, (24, 80))
        before = termios.tcgetattr(self._inside)
        self.seen = ""
        with (
            ThreadPoolExecutor(1) as thread,
            open(self._inside, closefd=False) as stdin,
            open(self._inside, "w", closefd=False) as stderr,
            monkeypatch.context() as patch,
        ):
            patch.setattr(sys, "stdin", stdin)
            patch.setattr(sys, "stderr", stderr)
            done = thread.submit(self._used_by, user)
            try:
                type_in_terminal(METHOD)
            finally:
                done.result()
                self._see()
                assert termios.tcgetattr(self._inside) == before
                assert self.seen.endswith("\x1b[?1049l")  # the screen before it is back
                os.close(self.fd)
                os.close(self._inside)

    def _used_by(self, user: Callable[["Terminal"], None]) -> None:
        try:
            user(self)
        except BaseException:
            self.press("\x04")  # nothing waits for who has failed
            raise

    def press(self, keys: str) -> None:
        data = keys.encode()
        while data:  # a terminal takes some thousand at once
            data = data[os.write(self.fd, data[:1000]) :]

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            self._see(0.1)

    def _see(self, patience: float = 0) -> None:
        while select.select([self.fd], [], [], patience)[0]:
            self.seen += os.read(self.fd, 65536).decode(errors="replace")


@pytest.mark.parametrize("leave", ["\x03", "\x04"])
def test_a_terminal_shows_candidates_and_prints_the_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], leave: str
) -> None:
    def user(terminal: Terminal) -> None:
        terminal.wait_for("Esc spells")
        terminal.press("fi")
        terminal.wait_for("1 first  2 field")
        terminal.press("9")
        terminal.wait_for("there is no candidate 9")
        terminal.press("\x1b[A\x1bOBtw")  # arrows do nothing
        terminal.wait_for("1 two")
        terminal.wait_for("percentile")
        terminal.press("\x1b")
        terminal.wait_for("spelled in full")
        terminal.press("ixt" + leave)

    Terminal(monkeypatch, user)
    assert capsys.readouterr().out == "first twixt\n"


def test_many_keys_at_once_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def user(terminal: Terminal) -> None:
        terminal.wait_for("Esc spells")
        terminal.press("fitwchinme" * 300 + "\n日本\x04")

    Terminal(monkeypatch, user)
    text = " ".join(["first two character input method"] * 300)
    assert capsys.readouterr().out == f"{text}\n日本\n"


def test_a_terminal_is_restored_when_the_program_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def user(terminal: Terminal) -> None:
        terminal.wait_for("Esc spells")
        terminal.press("fi")
        terminal.wait_for("1 first")
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        Terminal(monkeypatch, user)
    assert ended.value.code == 128 + signal.SIGTERM


def test_where_stdin_is_no_terminal_it_holds_the_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def given(data: bytes) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        type_in_terminal(METHOD)
        return capsys.readouterr().out

    assert given(b"fitwchinme\n") == "first two character input method\n"
    assert given(b"") == ""
    with pytest.raises(UserError, match="stdin: byte 2 is not UTF-8"):
        given(b"fi\xff")
