"""Wikitext-JA (Mori et al.): featured and good articles of the Japanese Wikipedia.

http://www.lsta.media.kyoto-u.ac.jp/resource/data/wikitext-ja/ serves two text files,
Featured_Contents.txt (秀逸な記事) and Good_Contents.txt (良質な記事). A line with one = on either
side is an article's title and begins a document; with more of them (== 歴史 ==) it is a section's.
The text is kept as it is.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from tsuzuri.corpus import containers, hub, published, splits
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.encodings import decode
from tsuzuri.corpus.text_files import pieces
from tsuzuri.errors import UserError

SITE = "http://www.lsta.media.kyoto-u.ac.jp/resource/data/wikitext-ja/"

_TITLE = re.compile(r"[ 　]*[=＝][ 　]*([^=＝\s](?:.*[^=＝\s])?)[ 　]*[=＝][ 　]*\r?\n?")


def documents(
    grade: Literal["Featured", "Good"],
    source: Path | None = None,
    split: str = "train",
    *,
    say: Callable[[str], None],
) -> Iterator[Document]:
    """Yields the articles, with their titles as metadata.

    Args:
      source: the publisher's file, or a folder or an archive that holds it; None fetches it, and
        then a CR LF comes as LF.
      split: train, which is all there is; may be sliced, and slices count articles.

    Raises:
      UserError: the source does not hold that file, or cannot be had.
    """
    name = f"{grade}_Contents.txt"
    bring = f"bring {name} from {SITE} by --source"

    def read(part: str) -> Iterator[Document]:
        if part != "train":
            raise splits.unknown(part, ["train"], "Wikitext-JA")
        if source is None:
            options = {"data_files": {"train": SITE + name}, "keep_linebreaks": True}
            rows = hub.rows("text", None, "train", bring=bring, **options)
            yield from _articles((row["text"] for row in rows), SITE + name, say)
            return
        files = containers.walk(source)
        wanted = (f for f in files if f.name == str(source) or PurePosixPath(f.name).name == name)
        file = next(wanted, None)
        if file is None:
            raise UserError(f"{source}: does not hold {name}; {bring}")
        with containers.readable(file.name):
            chunks = decode(file, "auto", lambda name, what: say(f"{name}: {what}"))
            yield from _articles(published.lines(chunks), file.name, say)

    return splits.select(split, read)


def _articles(lines: Iterable[str], where: str, say: Callable[[str], None]) -> Iterator[Document]:
    article: list[str] = []
    title = ""
    for line in lines:
        heading = _TITLE.fullmatch(line)
        if heading:
            yield from pieces("".join(article), {"title": title} if title else {})
            article, title = [], heading[1]
        article.append(line)
    if not title:
        say(f"{where}: no line in it is a title such as '= 東京 ='; it is kept as one document")
    yield from pieces("".join(article), {"title": title} if title else {})
