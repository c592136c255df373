"""WikiText-2 and WikiText-103: good and featured articles of the English Wikipedia.

Merity et al., 2016 (https://arxiv.org/abs/1609.07843). Published in two forms, raw and tokenized
(rare words as <unk>); both part words and punctuation by spaces and write @-@ @,@ @.@ inside words
and numbers. All of that is kept as it is, since published perplexities rest on it.

A document is an article, with its title as metadata. The documents of a split, one after another,
are its file to the byte: an article begins with the empty line (a space) before its title.

  ␠                                  an empty line, then a title, then an empty line
  ␠= Homarus gammarus =␠
  ␠
  ␠Homarus gammarus , known as …
  ␠= = Description = =␠              a section; a table's row may begin with = too
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from tsuzuri.corpus import containers, hub, published, records, splits
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.encodings import decode
from tsuzuri.corpus.text_files import pieces
from tsuzuri.errors import UserError

HUB = "Salesforce/wikitext"

_TITLE = re.compile(r" = (?!= )(.+) = \r?\n?")
_BRING = (
    "bring {0}-raw-v1.zip or {0}-v1.zip (wiki.train.raw or .tokens, …), or the .parquet of "
    "huggingface.co/datasets/" + HUB + ", by --source"
)


def documents(
    name: Literal["wikitext-2", "wikitext-103"],
    source: Path | None = None,
    split: str = "train",
    form: Literal["raw", "tokenized"] = "raw",
    *,
    say: Callable[[str], None],
) -> Iterator[Document]:
    """Yields the articles of a split.

    Args:
      source: the publisher's zip, the folder in it, one of its files, or the hub's .parquet; None
        fetches from the hub.
      split: train, validation or test; may be sliced, and slices count articles.
      form: which of the two to fetch; files are what they are.

    Raises:
      UserError: the source is not WikiText, or cannot be had.
    """
    if form not in ("raw", "tokenized"):
        raise UserError(f"--form {form}: WikiText comes raw or tokenized")
    if source is not None:
        suffixes = (".raw", ".tokens", ".txt", ".parquet")
        return published.documents(source, split, suffixes, lambda file: _read(file, say))
    config = f"{name}-raw-v1" if form == "raw" else f"{name}-v1"

    def fetch(part: str) -> Iterator[Document]:
        rows = hub.rows(HUB, config, part, bring=_BRING.format(name))
        return articles(map(_line, rows), f"{HUB}/{config}")

    return splits.select(split, fetch)


def articles(lines: Iterable[str], where: str) -> Iterator[Document]:
    """Parts lines, each with its newline, into articles; a title stands between empty lines.

    Raises:
      UserError: there is text before the first title; the message names the line of `where`.
    """
    article: list[str] = []
    title, before = "", ""
    for number, (line, after) in enumerate(_with_next(lines), 1):
        heading = None if before.strip() or after.strip() else _TITLE.fullmatch(line)
        if heading:
            start = [article.pop()] if article else []
            yield from pieces("".join(article), {"title": title})
            article, title = start, heading[1]
        elif not title and line.strip():
            raise UserError(
                f"{where}:{number}: not WikiText; an article's title such as "
                f"' = Homarus gammarus = ' between empty lines was expected, not {line[:40]!r}"
            )
        article.append(line)
        before = line
    yield from pieces("".join(article), {"title": title})


def _read(file: containers.File, say: Callable[[str], None]) -> Iterator[Document]:
    if file.suffix == ".parquet":
        lines = (_line(row) for _, row in records.rows(file))
    else:
        lines = published.lines(decode(file, "utf-8", lambda name, what: say(f"{name}: {what}")))
    return articles(lines, file.name)


def _line(row: dict[str, str]) -> str:
    return row["text"] or " \n"  # the hub has made the file's empty lines emptier


def _with_next(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each line with the one after it, which is empty for the last."""
    last = None
    for line in lines:
        if last is not None:
            yield last, line
        last = line
    if last is not None:
        yield last, ""
