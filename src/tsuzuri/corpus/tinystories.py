"""TinyStories: short stories in the words of a small child, written by GPT-3.5 and GPT-4.

Eldan and Li, 2023 (https://arxiv.org/abs/2305.07759). The hub serves them as text, where a line
<|endoftext|> ends each story; as Parquet; and, with their prompts, as an archive of JSON. The mark
is structure: it is in no document, nor are the newlines before and after it. So a story is the same
in each form.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tsuzuri.corpus import containers, hub, published, records
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.encodings import decode
from tsuzuri.corpus.text_files import PIECE
from tsuzuri.errors import UserError

HUB = "roneneldan/TinyStories"
END = "<|endoftext|>"

_BRING = (
    f"bring TinyStories-train.txt and -valid.txt, or TinyStoriesV2-GPT4-…, of "
    f"https://huggingface.co/datasets/{HUB} by --source"
)
_BETWEEN = re.compile(r"[\s,\[]*")  # what stands before an object of a JSON array


def documents(
    source: Path | None = None, split: str = "train", *, say: Callable[[str], None]
) -> Iterator[Document]:
    """Yields the stories of a split; empty ones are left out.

    Args:
      source: one of the publisher's files, or a folder or an archive with one version of them:
        .txt, .parquet, or TinyStories_all_data.tar.gz, which is all train; None fetches the first
        version from the hub.
      split: train or validation; may be sliced.

    Raises:
      UserError: the source is not TinyStories, or cannot be had.
    """

    def read(file: containers.File) -> Iterator[Document]:
        chunks = decode(file, "utf-8", lambda name, what: say(f"{name}: {what}"))
        match file.suffix:
            case ".parquet":
                for where, row in records.rows(file):
                    yield from _story(records.text_of(where, row, "text")[0])
            case ".json":
                yield from _from_json(file.name, chunks)
            case _:
                yield from _from_text(file.name, chunks)

    if source is not None:
        return published.documents(source, split, (".txt", ".parquet", ".json"), read)
    rows = hub.rows(HUB, None, split, bring=_BRING)
    return (story for row in rows for story in _story(row["text"]))


def _story(text: str) -> Iterator[Document]:
    text = text.strip("\r\n")
    if text:
        yield Document(text)


def _from_text(name: str, chunks: Iterator[str]) -> Iterator[Document]:
    line, rest, marks = 1, "", 0  # the line in which `rest`, a story, begins
    for chunk in chunks:
        *stories, rest = (rest + chunk).split(END)
        for story in stories:
            marks += 1
            line += story.count("\n")
            yield from _story(story)
        if len(rest) > PIECE:
            raise UserError(
                f"{name}:{line}: not TinyStories; {PIECE:,} characters from here on without a line "
                f"{END}, which ends each story"
            )
    if not marks:
        raise UserError(f"{name}:{line}: not TinyStories; no line {END} ends a story in it")
    yield from _story(rest)


def _from_json(name: str, chunks: Iterator[str]) -> Iterator[Document]:
    """The stories of an array of objects, one object in memory at a time."""
    decoder = json.JSONDecoder()
    rest, number = "", 0
    for chunk in chunks:
        rest += chunk
        at = 0
        while True:
            begin = _BETWEEN.match(rest, at).end()  # pyright: ignore[reportOptionalMemberAccess]
            try:
                record, at = decoder.raw_decode(rest, begin)
            except ValueError:  # the rest of it is in the next chunk
                break
            number += 1
            where = f"{name}, record {number}"
            if not isinstance(record, dict):
                raise UserError(f"{where}: not TinyStories; an object with a story was expected")
            yield from _story(records.text_of(where, record, "story")[0])
        rest = rest[at:]
        if len(rest) > PIECE:
            raise UserError(f"{name}, record {number + 1}: not JSON; fetch the file anew")
    if _BETWEEN.sub("", rest, count=1).rstrip() != "]":
        raise UserError(f"{name}, record {number + 1}: cut short or not JSON; fetch the file anew")
