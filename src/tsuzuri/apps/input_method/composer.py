"""What keys do to a text that is being typed: the same in a terminal and in a page.

A key is a character. Two letters of a word bring its candidates; a digit picks one; a space, or the
next word's letters, take the first. A word of one letter is that letter and a space. Esc spells a
word in full, until a space, and it is learned. What is no letter is kept as it is.
"""

import unicodedata
from typing import Protocol

from tsuzuri.apps.input_method.engine import Candidate
from tsuzuri.errors import UserError

ESCAPE, BACKSPACE, ENTER = "\x1b", "\x7f", "\n"
MOST_CANDIDATES = 9  # as many as digits


class Session(Protocol):
    """What is needed of `engine.Session`."""

    def candidates(self, keys: str, k: int = 5) -> list[Candidate]: ...

    def commit(self, word: str) -> None: ...


class Composer:
    """One text, what is being typed at its end, and what that has cost.

    Attributes:
      pieces: the text, in the pieces that Backspace removes: a word with the space before it, or
        one other character.
      code: the letters typed of the present word, with their capitals; at most two, or a letter and
        a space.
      candidates: the words shown for a whole code, the likeliest first, with the code's capitals.
      spelled: the letters of a word that is spelled in full; None while none is.
      note: what there is to say about the last key, in one line; or nothing.
      keys: how many were pressed.
    """

    def __init__(self, session: Session, shown: int = 5):
        """Args:
          session: a new one.
          shown: how many candidates at most, from 1 to 9.

        Raises:
          UserError: `shown` is something else.
        """
        if not 1 <= shown <= MOST_CANDIDATES:
            raise UserError(f"{shown} candidates cannot be picked by a digit; give 1 to 9")
        self._session, self._shown = session, shown
        self.pieces: list[str] = []
        self.code, self.candidates = "", list[str]()
        self.spelled: str | None = None
        self.note, self.keys = "", 0
        self._committed = 0  # characters of all pieces
        self._kept = 0  # pieces that `changes` has told of and that still stand

    def key(self, key: str) -> None:
        """One key: ESCAPE, BACKSPACE, or the character that it types; controls do nothing.

        Backspace takes back a letter; where none is being typed, the text's last piece. That is out
        of the text but not out of the session: what the session has learned of a word it keeps, and
        it still takes the word for the one before the next.
        """
        key = ENTER if key == "\r" else BACKSPACE if key == "\b" else key
        control = unicodedata.category(key) in ("Cc", "Cs")
        if control and key not in (ESCAPE, BACKSPACE, ENTER, "\t"):
            return
        self.keys += 1
        self.note = ""
        if key == ESCAPE:
            # A second one leaves the word.
            self.spelled = self.code.strip() if self.spelled is None else None
            self.code, self.candidates = "", []
        elif key == BACKSPACE:
            self._backspace()
        elif self.spelled is not None:
            self._spell(key)
        elif key.isascii() and key.isalpha():
            self._letter(key)
        elif key == " " and len(self.code) == 1:
            self._type(self.code + " ")
        elif key in "0123456789" and self.candidates:
            if not 1 <= int(key) <= len(self.candidates):
                self.note = f"there is no candidate {key}"
            else:
                self._commit(self.candidates[int(key) - 1])
        elif key == " " and self.code:
            self._commit(self.candidates[0])
        else:
            self.finish()
            self._add(key)

    def finish(self) -> None:
        """Commits the word that is being typed, if there is one."""
        if len(self.code) == 1:  # the space after it is not needed here
            self._type(self.code + " ")
        if self.code:
            self._commit(self.candidates[0])
        elif self.spelled is not None:
            self._spell(" ")

    @property
    def text(self) -> str:
        """What is committed."""
        return "".join(self.pieces)

    @property
    def pending(self) -> str:
        """What stands at the caret and is not committed: the first candidate, or letters."""
        if self.spelled is not None:
            return self.spelled
        return self.candidates[0] if self.candidates else self.code

    @property
    def gap(self) -> str:
        """The space that parts the next word from what is before it; or nothing.

        After a word, a digit or a mark that closes; not after "well-", "don'", "(" or a space.
        """
        last = self.pieces[-1][-1] if self.pieces else ""
        return " " if last.isalnum() or (last and last in ",.;:!?)]}”…") else ""

    @property
    def characters(self) -> int:
        """Of the text and what is pending."""
        return self._committed + (len(self.gap + self.pending) if self.pending else 0)

    @property
    def keys_saved(self) -> float:
        """The share of keys saved: of typing each character, spaces included, by a key of its own.

        Every key counts: Esc, Backspace, digits and the keys of what was removed again.
        """
        return 1 - self.keys / self.characters if self.characters else 0.0

    def changes(self) -> tuple[int, list[str]]:
        """How many pieces are as they were at the last call, and those that follow them now."""
        kept, self._kept = self._kept, len(self.pieces)
        return kept, self.pieces[kept:]

    def _letter(self, letter: str) -> None:
        if len(self.code) == 2:  # the next word begins
            self._commit(self.candidates[0])
        self._type(self.code + letter)

    def _type(self, code: str) -> None:
        """The code is now this; once it is whole, its candidates are shown."""
        self.code, self.candidates = code, []
        if len(code) < 2:
            return
        found = self._session.candidates(code.lower(), self._shown)
        self.candidates = [_capitals(code, candidate.word) for candidate in found]
        if not found and code.endswith(" "):  # nothing is missing of it
            self._commit(code[0])
        elif not found:
            self.code, self.spelled = "", code
            self.note = f"no word is known that begins with {code}: spell it, then a space"

    def _spell(self, key: str) -> None:
        assert self.spelled is not None
        if key.isalpha():
            self.spelled += key
            return
        word, self.spelled = self.spelled, None
        if word:
            self._commit(word)
        if key not in (" ", ENTER):
            self._add(key)

    def _commit(self, word: str) -> None:
        if word.isascii():  # others, spelled, are no words of the letters a to z
            self._session.commit(word.lower())
        self._add(self.gap + word)
        self.code, self.candidates = "", []

    def _backspace(self) -> None:
        if self.spelled is not None:
            self.spelled = self.spelled[:-1] or None
        elif self.code:
            self._type(self.code[:-1])
        elif self.pieces:
            self._committed -= len(self.pieces.pop())
            self._kept = min(self._kept, len(self.pieces))

    def _add(self, piece: str) -> None:
        self.pieces.append(piece)
        self._committed += len(piece)


def _capitals(code: str, word: str) -> str:
    """The word with the capitals of what was typed: Fi is First, FI is FIRST."""
    if code.isupper() and not code.endswith(" "):
        return word.upper()
    return word.capitalize() if code[0].isupper() else word
