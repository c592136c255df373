"""WikiSplit++: English sentences, each with the simpler ones that say the same.

Tsukagoshi et al., 2024 (https://arxiv.org/abs/2404.09002), from the edits of Wikipedia. A row has
complex, simple_original (the simple sentences), simple_reversed (the same in reverse order),
simple_tokenized (the same as a list), id, entailment_prob and split.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from tsuzuri.corpus import containers, hub, published, records
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.text_files import pieces
from tsuzuri.errors import UserError

HUB = "cl-nagoya/wikisplit-pp"

_SENTENCES = ("complex", "simple_original", "simple_reversed")
_BRING = (
    f"bring the .parquet files of huggingface.co/datasets/{HUB} "
    "(data/train-00000-of-00001.parquet, …) by --source"
)


def documents(
    source: Path | None = None,
    split: str = "train",
    field: Literal["pair", "complex", "simple_original", "simple_reversed"] = "pair",
    *,
    say: Callable[[str], None],
) -> Iterator[Document]:
    """Yields the rows of a split, with their id as metadata.

    Args:
      source: the hub's .parquet files, in a folder or an archive or alone; None fetches them.
      split: train, validation or test; may be sliced.
      field: pair is the complex sentence on a line and its simple ones on the next; else the
        sentences of that field alone.

    Raises:
      UserError: the source is not WikiSplit++, or cannot be had.
    """
    if field not in ("pair", *_SENTENCES):
        raise UserError(f"--field {field}: WikiSplit++ has pair, {', '.join(_SENTENCES)}")
    wanted = ("complex", "simple_original") if field == "pair" else (field,)

    def read(file: containers.File) -> Iterator[Document]:
        for where, row in records.rows(file):
            yield from _document(where, row, wanted)

    if source is not None:
        return published.documents(source, split, (".parquet", ".jsonl"), read)
    rows = enumerate(hub.rows(HUB, None, split, bring=_BRING), 1)
    return (part for n, row in rows for part in _document(f"{HUB}, row {n}", row, wanted))


def _document(where: str, row: Mapping[str, Any], wanted: tuple[str, ...]) -> Iterator[Document]:
    sentences = [records.text_of(where, row, field)[0] for field in wanted]
    return pieces("\n".join(sentences), {"id": str(row.get("id"))})
