"""CC-100 (https://data.statmt.org/cc-100/): text of the web, from Common Crawl of 2018 by CCNet.

The file is plain UTF-8, a paragraph a line, and a blank line ends each document. A document here
is its lines, without the blank one.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from tsuzuri.config import TextConfig
from tsuzuri.corpus import CORPORA, containers, hub, splits, text_files
from tsuzuri.corpus.document import Document
from tsuzuri.errors import UserError

_ADDRESS = "https://data.statmt.org/cc-100/ja.txt.xz"


def documents(
    source: Path | None = None, split: str = "train", *, say: Callable[[str], None]
) -> Iterator[Document]:
    """Yields the Japanese documents.

    Args:
      source: ja.txt.xz, or ja.txt, or a folder of such parts; None streams it from its publisher.
      split: there is only train, which may be sliced, as splits.py says.
      say: hears what is found out about the file.

    Raises:
      UserError: the source is absent, damaged or in another format; or None was given and the
        network or the package `datasets` is not there.
    """
    if source is None:
        bring = f"bring {CORPORA['cc100-ja'].bring} and give --source"
        for row in hub.rows(
            "text",
            None,
            split,
            bring=bring,
            data_files={"train": _ADDRESS},
            sample_by="paragraph",  # its word for what blank lines part
        ):
            yield from text_files.pieces(row["text"].strip("\n"))
    else:
        yield from splits.select(split, lambda name: _from_files(source, name, say))


def _from_files(source: Path, split: str, say: Callable[[str], None]) -> Iterator[Document]:
    if split != "train":
        raise splits.unknown(split, ["train"], "CC-100")
    for path in containers.paths(source):
        if ".txt" not in path.suffixes[-2:]:
            raise UserError(f"{path}: not a file of CC-100; that is ja.txt.xz, or parts of ja.txt")
        parted = TextConfig(encoding="utf-8", document_separator="\n\n")
        for number, document in enumerate(text_files.read([path], parted, say)):
            if not number and document.continues:
                raise UserError(
                    f"{path}: no blank line in its first {len(document.text):,} characters; "
                    "CC-100 ends each document with one"
                )
            yield document
