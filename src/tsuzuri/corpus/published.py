"""The files that a publisher serves, each of which holds one split and says so in its name."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from tsuzuri.corpus import containers, records, splits
from tsuzuri.corpus.document import Document
from tsuzuri.errors import UserError

_SPLITS = {name: name for name in ("train", "validation", "test")}
_SPLITS |= dict.fromkeys(("valid", "val", "dev"), "validation")
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(_SPLITS)})(?![a-z])", re.IGNORECASE)
_SHARDS = records.SUFFIXES  # a split may be many of these; any other file is all of it


def documents(
    source: Path,
    split: str,
    suffixes: Collection[str],
    read: Callable[[containers.File], Iterator[Document]],
) -> Iterator[Document]:
    """Yields the documents of one split, which may be sliced, from the files that hold it.

    A file is of the split that its name has in it, or that its folder is called: wiki.valid.raw and
    validation/0000.parquet of validation. Without either, shards are of train, and a file that is
    itself the source is of any split.

    Args:
      source: a file, a folder or an archive.
      suffixes: of the files looked at, such as `.raw`; others may lie beside them.
      read: yields a file's documents.

    Raises:
      UserError: there is no such file, or the split is there in two versions; see also `read`.
    """

    def whole(split: str) -> Iterator[Document]:
        found: set[str] = set()  # the splits that are here
        used: list[str] = []  # the names of ours
        kind = ""
        for file in containers.walk(source):
            name = PurePosixPath(file.name).name
            shard = file.suffix in _SHARDS
            theirs = _said(PurePosixPath(source.name + file.name.removeprefix(str(source))))
            theirs = theirs or (split if file.name == str(source) else "train" if shard else "")
            if file.suffix not in suffixes or not theirs:
                continue
            found.add(theirs)
            if theirs != split:
                continue
            if used and not (shard and file.suffix == kind and name not in used):
                raise UserError(
                    f"{source}: holds the split {split} as {', '.join(used)} and as {file.name}; "
                    "give --source one of them"
                )
            used.append(name)
            kind = file.suffix
            with containers.readable(file.name):
                yield from read(file)
        if not found:
            wanted = " or ".join(suffixes)
            raise UserError(f"{source}: holds no {wanted} whose name says train, valid or test")
        if not used:
            raise splits.unknown(split, sorted(found), str(source))

    return splits.select(split, whole)


def lines(chunks: Iterable[str]) -> Iterator[str]:
    r"""Text in chunks as lines, each with its newline; parted at \n alone."""
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n")
        yield from (line + "\n" for line in whole)
    if rest:
        yield rest


def _said(path: PurePosixPath) -> str:
    said = _SPLIT.findall(path.name) or [part for part in path.parts if part.lower() in _SPLITS]
    return _SPLITS[said[-1].lower()] if said else ""
