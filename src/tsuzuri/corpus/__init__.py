"""Where documents come from: any text on disk (text_files.py), and corpora known by name."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tsuzuri.corpus.document import Document
from tsuzuri.corpus.text_files import fingerprint, read
from tsuzuri.errors import UserError

__all__ = ["CORPORA", "Document", "NamedCorpus", "fingerprint", "named", "read"]


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus that `tsuzuri prepare` knows by name.

    Attributes:
      description: what it is, and what its cleaner does, in one line.
      licence: under what terms its text may be used.
      language: ISO 639 codes.
      options: the keywords that `documents` takes, each of which has a default.
      documents: called with `say`, which hears what the user should know, and with options.
    """

    description: str
    licence: str
    language: str
    options: tuple[str, ...]
    documents: Callable[..., Iterator[Document]]


def _tales(say: Callable[[str], None], **options: Any) -> Iterator[Document]:
    from tsuzuri.corpus import tales

    return tales.documents(**options)


def _aozora(say: Callable[[str], None], **options: Any) -> Iterator[Document]:
    from tsuzuri.corpus import aozora

    return aozora.documents(say=say, **options)


CORPORA = {
    "tales": NamedCorpus(
        "short Japanese tales made by rule, of known entropy: no network, no foreign text",
        "MIT, as this package",
        "ja",
        ("seed", "count"),
        _tales,
    ),
    "aozora": NamedCorpus(
        "Aozora Bunko, Japanese literature: ruby and notes taken out, gaiji and accents resolved",
        "public domain, works still in copyright aside; keep each work's credits with it",
        "ja",
        ("source", "books", "orthography"),
        _aozora,
    ),
}


def named(name: str) -> NamedCorpus:
    """The corpus of that name.

    Raises:
      UserError: there is none; the message suggests one.
    """
    if name in CORPORA:
        return CORPORA[name]
    close = difflib.get_close_matches(name, CORPORA, n=1)
    hint = f"did you mean {close[0]}?" if close else "a text file needs no preparing: train on it"
    raise UserError(f"no corpus is called {name!r}; there are {', '.join(CORPORA)}; {hint}")
