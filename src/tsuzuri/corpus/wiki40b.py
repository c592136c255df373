"""Wiki-40B (Guo et al. 2020, https://aclanthology.org/2020.lrec-1.297): Wikipedia's articles.

A row of https://huggingface.co/datasets/google/wiki40b is an article: wikidata_id, version_id, and
text in which each mark but the last stands on a line of its own. What becomes of them:

  _START_ARTICLE_    goes; the title that follows is the first line, then a blank one
  _START_SECTION_    goes; the heading that follows has a blank line before it
  _START_PARAGRAPH_  goes; its text begins a line
  _NEWLINE_          becomes a newline: it parts the paragraphs of a section

Nothing is dropped; an article that is too long for a block is for `featurize` to divide.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tsuzuri.corpus import CORPORA, hub, published, records
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.text_files import pieces
from tsuzuri.errors import UserError

_HUB = "google/wiki40b"
_MARK = re.compile(r"(?:^|\n)_START_(ARTICLE|SECTION|PARAGRAPH)_(?:\n|\Z)")


def documents(
    source: Path | None = None, split: str = "train", *, say: Callable[[str], None]
) -> Iterator[Document]:
    """Yields the Japanese articles, with title, wikidata_id and version_id as metadata.

    Args:
      source: the dataset's files (ja/*.parquet), in a folder or alone; None fetches them.
      split: train, validation or test; may be sliced, as splits.py says.

    Raises:
      UserError: the source is absent, damaged or holds something else; or None was given and the
        network or the package `datasets` is not there.
    """
    if source is None:
        bring = f"bring {CORPORA['wiki40b-ja'].bring} and give --source"
        yield from _articles((_HUB, row) for row in hub.rows(_HUB, "ja", split, bring=bring))
    else:
        yield from published.documents(
            source, split, (".parquet",), lambda file: _articles(records.rows(file))
        )


def clean(text: str) -> tuple[str, str]:
    """An article's title and its text without the marks, as the head of this file says.

    Raises:
      ValueError: there is no title, or something stands before it.
    """
    before, *marked = _MARK.split(text)
    blocks = list(zip(marked[::2], marked[1::2], strict=True))
    if before.strip() or not blocks or blocks[0][0] != "ARTICLE":
        raise ValueError("an article begins with _START_ARTICLE_ and its title")
    title = blocks[0][1].strip()
    lines = [title, ""]
    for mark, content in blocks[1:]:
        if mark == "SECTION" and lines[-1]:
            lines.append("")
        if content:
            lines.append(content.replace("_NEWLINE_", "\n"))
    return title, "\n".join(lines).rstrip("\n") + "\n"


def _articles(rows: Iterable[records.Row]) -> Iterator[Document]:
    for where, row in rows:
        try:
            row = {key: _decoded(row[key]) for key in ("wikidata_id", "version_id", "text")}
            title, text = clean(row.pop("text"))
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            raise UserError(
                f"{where}: not a row of {_HUB}, with wikidata_id, version_id and text ({error})"
            ) from error
        records.check(text, where)
        yield from pieces(text, {"title": title, **row})


def _decoded(value: str) -> str:
    """The hub's files hold Python's repr of bytes, b'\\xe3\\x81...'; copies elsewhere hold text."""
    return ast.literal_eval(value).decode() if re.match("b['\"]", value) else value
