"""Any dataset of the Hugging Face hub, streamed row by row: nothing is stored, or held whole."""

import itertools
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tsuzuri.corpus import published, records, splits
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.text_files import pieces
from tsuzuri.errors import UserError

_PATIENCE = 10  # seconds to wait for the first answer


def documents(
    source: Path | None = None,
    split: str = "train",
    field: str = "text",
    *,
    dataset: str,
    config: str | None = None,
    say: Callable[[str], None],
) -> Iterator[Document]:
    """Yields a dataset's rows as documents: one field is the text, other strings are metadata.

    Args:
      source: the dataset's own .parquet, .jsonl or .csv, in a folder or an archive or alone; None
        fetches them.
      split: may be sliced, as splits.py says.
      field: the field that holds the text; rows where it is null are left out.
      dataset: owner/name on the hub.
      config: the dataset's configuration; None: the only one.
      say: hears of rows that are left out.

    Raises:
      UserError: there is no such field, and the message lists those there are; or as `rows` says.
    """
    told = False

    def parted(found: Iterable[records.Row]) -> Iterator[Document]:
        nonlocal told
        for where, row in found:
            if field not in row or row[field] is not None:
                yield from pieces(*records.text_of(where, row, field))
            elif not told:
                told = True
                say(f"{where}: {field} is null; such rows are left out")

    if source is None:
        bring = f"download its files from https://huggingface.co/datasets/{dataset} for --source"
        fetched = rows(dataset, config, split, bring=bring)
        yield from parted((dataset, row) for row in fetched)
    else:
        yield from published.documents(
            source, split, records.SUFFIXES, lambda file: parted(records.rows(file))
        )


def rows(
    dataset: str, config: str | None, split: str, *, bring: str, **load_options: Any
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a dataset, by `datasets.load_dataset(..., streaming=True)`.

    Args:
      dataset: owner/name on the hub; or text, json, csv or parquet, with `data_files=` the
        publisher's own address.
      config: the dataset's configuration; None: the only one.
      split: may be sliced, as splits.py says; train[:98%] needs a dataset that tells its size.
      bring: what to do instead; every error ends with it.
      load_options: go to `load_dataset` as they are.

    Raises:
      UserError: the package `datasets` or the network is not there; or the dataset, its
        configuration or its split is not, and the message lists those that are.
    """
    parts = splits.parse(split)
    datasets = _library(bring)
    address = _address(load_options)
    name = address or "/".join(filter(None, (dataset, config)))
    if not datasets.config.HF_HUB_OFFLINE:  # else it asks nobody, and says so
        _reach(address or datasets.config.HF_ENDPOINT, bring)
    try:
        streams = datasets.load_dataset(dataset, config, streaming=True, **load_options)
    except Exception as error:  # the hub's client raises of many kinds
        raise UserError(f"{name}: cannot be had ({_reason(error)}); {bring}") from error
    for part in parts:
        if part.name not in streams:
            raise UserError(f"{splits.unknown(part.name, streams, name)}; or {bring}")
    for part in parts:
        stream = streams[part.name]

        def count(name: str = name, part: splits.Part = part, info: Any = stream.info) -> int:
            known = (info.splits or {}).get(part.name)
            if not known or not known.num_examples:
                raise UserError(
                    f"--split {split}: how many rows {part.name} of {name} has is not known; count "
                    f"from its beginning, such as {part.name}[:1000], or {bring}"
                )
            return known.num_examples

        start, stop = part.rows(count)
        taken = stream.skip(start) if start else stream
        try:
            yield from itertools.islice(taken, None if stop is None else max(stop - start, 0))
        except Exception as error:
            reason = _reason(error)
            raise UserError(f"{name}: broke off ({reason}); try again, or {bring}") from error


def _library(bring: str) -> ModuleType:
    """`datasets`, quiet: what it would print and draw is for its own users."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "the package datasets, which fetches it, is not here; "
            f"pip install 'tsuzuri[hub]', or {bring}"
        ) from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    return datasets


def _address(load_options: dict[str, Any]) -> str:
    """The publisher's address where files of its own are streamed; empty for the hub."""
    files = load_options.get("data_files")
    while isinstance(files, (dict, list)):
        files = next(iter(files.values() if isinstance(files, dict) else files))
    return files if files and files.startswith("http") else ""


def _reach(address: str, bring: str) -> None:
    """Asks once whether anyone is there; the libraries would ask again and again, for minutes."""
    try:
        request = urllib.request.Request(address, method="HEAD")
        urllib.request.urlopen(request, timeout=_PATIENCE).close()
    except urllib.error.HTTPError as error:  # an answer, at least
        error.close()
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{address}: cannot be reached ({reason}); {bring}") from error


def _reason(error: Exception) -> str:
    return (
        " ".join(str(error).splitlines()[:2]) or type(error).__name__
    )  # what, and which there are
