"""The One Billion Word Benchmark (Chelba et al. 2013, https://arxiv.org/abs/1312.3005).

News of 2006 to 2011 in English, tokenized, its sentences shuffled, so each line is a document of
its own. In 1-billion-word-language-modeling-benchmark-r13output.tar.gz lie

  training-monolingual.tokenized.shuffled/news.en-00001-of-00100 to 00099   the split train
  heldout-monolingual.tokenized.shuffled/news.en.heldout-000NN-of-00050     the split test
  heldout-monolingual.tokenized.shuffled/news.en-00000-of-00100             test once more, whole
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tsuzuri.corpus import CORPORA, containers, hub, splits
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.text_files import pieces
from tsuzuri.errors import UserError

_HUB = "billion-word-benchmark/lm1b"
_FILES = {
    "train": re.compile(r"news\.en-(?!00000)\d{5}-of-00100$"),
    "test": re.compile(r"news\.en\.heldout-\d{5}-of-00050$"),
}


def documents(
    source: Path | None = None, split: str = "train", *, say: Callable[[str], None]
) -> Iterator[Document]:
    """Yields the sentences, without their newlines.

    Args:
      source: the .tar.gz, a folder of its files, or one of them; None fetches them.
      split: train or test; may be sliced, as splits.py says.

    Raises:
      UserError: the source is absent, damaged or holds something else; or None was given and the
        network or the package `datasets` is not there.
    """
    if source is not None:
        yield from splits.select(split, lambda name: _sentences(source, name))
        return
    bring = f"bring {CORPORA['lm1b'].bring} and give --source"
    # The dataset itself is a script, which `datasets` runs no more; the hub made Parquet of it.
    parquet = {name: f"plain_text/{name}/*.parquet" for name in _FILES}
    for row in hub.rows(
        _HUB, None, split, bring=bring, revision="refs/convert/parquet", data_files=parquet
    ):
        yield from pieces(row["text"])


def _sentences(source: Path, split: str) -> Iterator[Document]:
    if split not in _FILES:
        raise splits.unknown(split, _FILES, "lm1b")
    met = False
    for file in containers.walk(source):
        if not _FILES[split].search(file.name):
            continue
        met = True
        with containers.readable(file.name):
            for number, line in enumerate(file.stream, 1):
                try:
                    yield from pieces(line.decode().rstrip("\n"))
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{file.name}:{number}: not UTF-8 at byte {error.start} of the line; "
                        "a line is a sentence"
                    ) from error
    if not met:
        example = {"train": "news.en-00001-of-00100", "test": "news.en.heldout-00000-of-00050"}
        raise UserError(f"{source}: no file of the split {split}, such as {example[split]}, in it")
