"""tinyshakespeare: 40,000 lines of Shakespeare's plays, from Karpathy's char-rnn.

https://github.com/karpathy/char-rnn/blob/master/data/tinyshakespeare/input.txt. It is one document,
to the byte.
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from tsuzuri.corpus import containers, hub, splits
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.encodings import decode
from tsuzuri.corpus.text_files import pieces
from tsuzuri.errors import UserError

HUB = "karpathy/tiny_shakespeare"

_BEGINNING = "First Citizen:\n"
_BRING = (
    "bring input.txt (1.1 MB) of "
    "https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare by --source"
)


def documents(
    source: Path | None = None, split: str = "all", *, say: Callable[[str], None]
) -> Iterator[Document]:
    """Yields the text.

    Args:
      source: input.txt, or a folder or an archive that holds it; None fetches it from the hub.
      split: all; or train, validation or test: 90 %, 5 % and 5 % of the characters, as the hub's
        dataset cuts them.

    Raises:
      UserError: the source is another text, or cannot be had.
    """

    def read(part: str) -> Iterator[Document]:
        text = _fetch() if source is None else _from_file(source, say)
        train = int(len(text) * 0.9)
        validation = train + int((len(text) - train) * 0.5)
        parts = {
            "all": text,
            "train": text[:train],
            "validation": text[train:validation],
            "test": text[validation:],
        }
        if part not in parts:
            raise splits.unknown(part, parts, "tinyshakespeare")
        return pieces(parts[part], {"title": "tinyshakespeare"})

    return splits.select(split, read)


def _from_file(source: Path, say: Callable[[str], None]) -> str:
    names = ("input.txt", "tinyshakespeare.txt")
    for file in containers.walk(source):
        if file.name == str(source) or PurePosixPath(file.name).name in names:
            with containers.readable(file.name):
                text = "".join(decode(file, "utf-8", lambda name, what: say(f"{name}: {what}")))
            if not text.startswith(_BEGINNING):
                line = text.partition("\n")[0]
                raise UserError(
                    f"{file.name}:1: not tinyshakespeare; it begins with {line[:40]!r}, not with "
                    f"{_BEGINNING[:-1]!r}. Any other text needs no preparing: train on it"
                )
            return text
    raise UserError(f"{source}: holds neither {' nor '.join(names)}; {_BRING}")


def _fetch() -> str:
    """The hub's three splits, which are the text end to end. Its loader is a script, so a branch
    that the hub makes of it is read."""
    branch = {"revision": "refs/convert/parquet"}
    return "".join(
        row["text"]
        for split in ("train", "validation", "test")
        for row in hub.rows(HUB, None, split, bring=_BRING, **branch)
    )
