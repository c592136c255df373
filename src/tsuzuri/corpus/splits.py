"""Splits and their slices, as Hugging Face `datasets` writes them: train[:98%], train+test.

https://huggingface.co/docs/datasets/loading#slice-splits. Streams take no slices there, and the
publishers' own files know nothing of them; so both are cut here, to the same rows.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple

from tsuzuri.corpus.document import Document
from tsuzuri.errors import UserError

_BOUND = r"(-?\d+|-?(?:\d{1,2}|100)%)?"
_PART = re.compile(rf"\s*([\w.-]+)(?:\[{_BOUND}:{_BOUND}\])?\s*")


class Part(NamedTuple):
    """`name[start:stop]`; a bound is empty, rows such as 1000 or -5, or a share such as 98%."""

    name: str
    start: str
    stop: str

    def rows(self, count: Callable[[], int]) -> tuple[int, int | None]:
        """The first row, and the one after the last; None: to the end.

        A share is rounded to the nearest row, so `[:k%]` and `[k%:]` part all rows between them. A
        bound beyond the end is the end, as in Python.

        Args:
          count: gives the number of rows; called only where a bound depends on it.
        """

        def row(bound: str) -> int:
            number = int(bound.removesuffix("%"))
            if bound.endswith("%"):
                number = round(number * count() / 100)
            return number if number >= 0 else max(number + count(), 0)

        return row(self.start or "0"), row(self.stop) if self.stop else None


def parse(split: str) -> list[Part]:
    """The parts of a split such as `train[:98%]+test`.

    Raises:
      UserError: it is not of that form.
    """
    matches = [_PART.fullmatch(part) for part in split.split("+")]
    parts = [Part(*match.groups(default="")) for match in matches if match]
    if len(parts) < len(matches):
        raise UserError(
            f"--split {split}: not a split; it is such as train, train[:98%], train[1000:2000] "
            "or train+test"
        )
    return parts


def select(split: str, documents: Callable[[str], Iterable[Document]]) -> Iterator[Document]:
    """Yields the documents of a split, which may be sliced, out of files that are not.

    Args:
      documents: given a split's name, yields its documents. Where a slice counts in shares or from
        the end, they are gone through twice, the first time to count them.

    Raises:
      UserError: `split` is not of the form that `parse` takes.
    """
    for part in parse(split):

        @cache
        def count(name: str = part.name) -> int:
            return sum(not document.continues for document in documents(name))

        start, stop = part.rows(count)
        row = 0
        for document in documents(part.name):
            if stop is not None and row >= stop:
                break
            if row >= start:
                yield document
            row += not document.continues


def unknown(split: str, known: Iterable[str], where: str) -> UserError:
    """The error of a split that is not there."""
    return UserError(f"--split {split}: {where} has no such split; it has {', '.join(known)}")
