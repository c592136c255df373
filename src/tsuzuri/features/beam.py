"""Features made by Apache Beam: the same rows, by as many machines as there are.

The difficulty is the order. Which documents are held out depends on their number in the whole
corpus, and where a block is cut on all the ids before it; yet no worker sees all. So documents are
read in chunks, in parallel, and only the chunks' totals go through one place:

    shards ─ read ─ chunks ─┬─ encode ─┬─ fragments ─ group by file ─ pack ─ Parquet
                            └ documents └ ids of each split
                              of each

Running totals over the chunks say which number a chunk's first document has, and at which place of
its split's stream its first id stands. From there each chunk knows by itself to which file every id
goes; the fragments of a file meet, are put in order, and are packed as the local runner packs them.

Every step gives the same result when it is run again, so workers may die and be replaced. The
manifest, features.json, is written last: without it a folder holds no features.
"""

import contextlib
import hashlib
import io
import json
import logging
import re
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports]
import numpy as np
import psutil
from apache_beam.io.filesystems import FileSystems  # pyright: ignore[reportMissingImports]
from apache_beam.metrics.metric import Metrics  # pyright: ignore[reportMissingImports]
from apache_beam.options import pipeline_options  # pyright: ignore[reportMissingImports]
from apache_beam.pvalue import AsSingleton  # pyright: ignore[reportMissingImports]

from tsuzuri import files, tokenizer
from tsuzuri.config import FeaturesConfig, TextConfig
from tsuzuri.corpus import cleaning
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.text_files import MANIFEST, Shard, prepared, read_shard, shards
from tsuzuri.errors import RunError, UserError
from tsuzuri.features import check_features, free
from tsuzuri.features.packing import Packing, cut, packer
from tsuzuri.features.parquet import (
    COUNTS,
    counts_of,
    describe,
    dropped,
    figures,
    open_parquet,
    targets,
    write_blocks,
)
from tsuzuri.features.splits import SPLITS, Part, held_out, lengths_if_few
from tsuzuri.tokenizer import Tokenizer

_CHUNK = 1 << 22  # characters read and encoded at once
_FILE = 1 << 22  # ids in one file; a multiple of packing's groups
_ROW_GROUP = 1 << 20  # ids

Key = tuple[int, int]  # a chunk: its shard, and its place in that


def featurize(
    sources: Sequence[str],
    text: TextConfig,
    tok: Tokenizer,
    out: str,
    sequence_length: int,
    cfg: FeaturesConfig,
    seed: int,
    source: dict[str, Any],
    say: Callable[[str], None],
    flags: Sequence[str],
) -> dict[str, Any]:
    """Writes features as `features.featurize` does, by a Beam pipeline; waits until it is done.

    A document is read whole by one worker, so it must fit in a worker's memory.

    Args:
      sources: as for `corpus.read`; also of a file system that Beam knows (gs://, s3://, hdfs://).
      out: a folder, of such a file system too; all workers must see the same.
      flags: Beam's own, such as --runner.

    Raises:
      UserError: what `features.featurize` raises; too few documents to hold whole ones out.
      RunError: the pipeline failed; what was written is no features, or is removed.
    """
    packing = Packing.make(cfg, sequence_length, tok)
    # Workers tell their errors to the runner, which raises them here; the rest is for who asks.
    quiet = "--default_sdk_harness_log_level=CRITICAL"
    options = pipeline_options.PipelineOptions([quiet, *flags], pipeline_type_check=False)
    listed = [shard for name in sources for shard in _shards(name)]

    def corpus() -> Iterator[Document]:
        for shard in listed:
            yield from read_shard(shard, text, lambda name, what: None, _open)

    if few := lengths_if_few(corpus, cfg.held_out):
        raise UserError(
            f"{len(few)} documents are too few to hold out whole ones; leave out --runner beam, "
            "and the end of each is held out"
        )
    with _folder(out) as folder:
        plan = _Plan(text, cfg.held_out, seed, packing, _saved(tok), folder)
        _run(listed, plan, options)
        summary = json.loads(_read(f"{folder}/summary.json"))
        splits = {}
        for split in SPLITS:
            rows = sorted(summary["files"][split], key=lambda file: file["name"])
            for file in rows:
                if not FileSystems.exists(f"{folder}/{file['name']}"):
                    raise RunError(
                        f"{folder}/{file['name']} was written where this machine does not see it; "
                        "give an --out that all workers share"
                    )
            splits[split] = figures(summary["counts"][split], rows)
        check_features(splits, packing, cfg, say)
        found = describe(packing, tok, seed, cfg.held_out, source, splits)
        for name, content in plan.tokenizer.items():
            _write(f"{folder}/tokenizer/{name}", content)
        FileSystems.delete([f"{folder}/summary.json"])
        _write(f"{folder}/features.json", json.dumps(found, indent=2).encode())
    return found


@dataclass(frozen=True)
class _Plan:
    """What every worker has to know; it travels to each of them."""

    text: TextConfig
    share: float  # of the documents, held out
    seed: int
    packing: Packing
    tokenizer: dict[str, bytes]  # its files
    folder: str

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, made once in a process."""
        key = hashlib.sha256(b"".join(self.tokenizer.values())).hexdigest()
        if key not in _LOADED:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in self.tokenizer.items():
                    (Path(folder) / name).write_bytes(content)
                _LOADED[key] = tokenizer.load(Path(folder))
        return _LOADED[key]


_LOADED: dict[str, Tokenizer] = {}


def _pipeline(pipeline: beam.Pipeline, listed: list[Shard], plan: _Plan) -> None:
    chunks = (
        pipeline
        | "shards" >> beam.Create(list(enumerate(map(tuple, listed))))
        | "to all workers" >> beam.Reshuffle()
        | "read" >> beam.ParDo(_Read(plan))
        | "chunks to all workers" >> beam.Reshuffle()
    )
    if plan.text.deduplicate:
        repeated = (
            chunks
            | "digests" >> beam.FlatMap(_digests)
            | "same digest" >> beam.GroupByKey()
            | "all but the first" >> beam.FlatMap(lambda pair: sorted(pair[1])[1:])
            | "repeated" >> _listed()
            | "as a set" >> beam.Map(frozenset)
        )
        chunks |= "drop repeated" >> beam.FlatMap(_without, AsSingleton(repeated))
    first_documents = (
        chunks
        | "documents in each" >> beam.Map(lambda chunk: ((chunk[0], ""), len(chunk[1])))
        | "documents" >> _listed()
        | "first document of each" >> beam.Map(_running_totals)
    )
    encoded = chunks | "encode" >> beam.ParDo(_Encode(plan), AsSingleton(first_documents))
    positions = (
        encoded
        | "ids in each" >> beam.Map(lambda part: (part[:2], part[3]))
        | "ids" >> _listed()
        | "position of each" >> beam.Map(_running_totals)
    )
    written = (
        encoded
        | "fragments" >> beam.FlatMap(_fragments, AsSingleton(positions), plan.packing)
        | "of one file" >> beam.GroupByKey()
        | "pack and write" >> beam.ParDo(_Pack(plan))
    )
    counted = encoded | "counts" >> beam.Map(lambda part: ("counts", part[1], part[4]))
    _ = (
        (written, counted)
        | beam.Flatten()
        | "summary" >> _listed()
        | "write summary" >> beam.Map(_summarize, plan.folder)
    )


def _listed() -> beam.PTransform:
    """All elements as one list: of totals, never of documents."""
    return beam.CombineGlobally(beam.combiners.ToListCombineFn())


class _Read(beam.DoFn):
    """(number, shard) -> (chunk's key, documents: [digest, [(piece, its entropy)]])."""

    def __init__(self, plan: _Plan):
        self._text = plan.text

    def process(self, element: tuple[int, tuple[str, str]]) -> Iterator[tuple[Key, list]]:
        number, shard = element[0], Shard(*element[1])

        def say(name: str, what: str) -> None:
            logging.getLogger(__name__).info("%s: %s", name, what)

        chunk, size, place = [], 0, 0
        for document in _documents(read_shard(shard, self._text, say, _open)):
            pieces = list(cleaning.normalize(document, self._text.normalize))
            verdict = cleaning.judge(pieces, self._text)
            if verdict.reason or not verdict.characters:
                _count(f"documents dropped: {verdict.reason or 'empty'}")
                continue
            _count("documents")
            chunk.append((verdict.digest, [(piece.text, piece.entropy_bits) for piece in pieces]))
            size += verdict.characters
            if size >= _CHUNK:
                yield (number, place), chunk
                chunk, size, place = [], 0, place + 1
        if chunk:
            yield (number, place), chunk


def _digests(chunk: tuple[Key, list]) -> Iterator[tuple[bytes, tuple[Key, int]]]:
    for place, (digest, _) in enumerate(chunk[1]):
        yield digest, (chunk[0], place)


def _without(chunk: tuple[Key, list], repeated: frozenset) -> Iterator[tuple[Key, list]]:
    kept = [doc for place, doc in enumerate(chunk[1]) if (chunk[0], place) not in repeated]
    _count("documents dropped: duplicates", len(chunk[1]) - len(kept))
    if kept:
        yield chunk[0], kept


def _running_totals(totals: list[tuple[tuple[Key, str], int]]) -> dict[tuple[Key, str], int]:
    """{(chunk, split): what the split's chunks before it have}"""
    running, sums = {}, {}
    for (chunk, split), count in sorted(totals):
        running[chunk, split] = sums.get(split, 0)
        sums[split] = running[chunk, split] + count
    return running


class _Encode(beam.DoFn):
    """A chunk -> for each split in it: (chunk, split, ids of each document, their sum, counts)."""

    def __init__(self, plan: _Plan):
        self._plan = plan

    def setup(self) -> None:
        self._tokenizer = self._plan.load_tokenizer()

    def process(self, chunk: tuple[Key, list], first: dict) -> Iterator[tuple]:
        key, documents = chunk
        between = len(self._plan.packing.between)
        texts = [text for _, pieces in documents for text, _ in pieces]
        encoded = iter(self._tokenizer.encode_batch(texts))
        ids: dict[str, list[bytes]] = {split: [] for split in SPLITS}
        counts: dict[str, dict[str, Any]] = {split: dict.fromkeys(COUNTS, 0) for split in SPLITS}
        for number, (_, pieces) in enumerate(documents, first[key, ""]):
            held = held_out(self._plan.seed, number, self._plan.share)
            split = "held_out" if held else "train"
            of_pieces = []
            for place, (text, entropy) in enumerate(pieces, 1):
                part = Part(split, text, len(text.encode()), place == len(pieces), entropy)
                of_pieces.append(next(encoded))
                for name, more in counts_of(part, of_pieces[-1], self._tokenizer).items():
                    counts[split][name] += more
            ids[split].append(np.concatenate(of_pieces).astype(np.uint32).tobytes())
        for split in SPLITS:
            if ids[split]:
                total = sum(len(content) // 4 + between for content in ids[split])
                _count("tokens", total)
                yield key, split, ids[split], total, counts[split]


def _fragments(part: tuple, positions: dict, packing: Packing) -> Iterator[tuple]:
    """((split, file), (position in the split's stream, ids of a document or several as bytes))."""
    key, split, documents, _, _ = part
    position = positions[key, split]
    if packing.kind == "concat":
        between = np.array(packing.between, np.uint32).tobytes()
        stream = b"".join(content + between for content in documents)
        if position == 0:
            stream = np.array([packing.begin], np.uint32).tobytes() + stream
        else:
            position += 1  # that first id's place
        yield from _cut_by_file(split, position, stream, _ids_in_file(packing))
        return
    for content in documents:
        yield (split, position // _FILE), (position, content)
        position += len(content) // 4 + len(packing.between)


def _cut_by_file(split: str, position: int, stream: bytes, span: int) -> Iterator[tuple]:
    """The last id of a file's blocks is the first of the next file's: it goes to both."""
    end = position + len(stream) // 4
    for file in range(max(position - 1, 0) // span, (end - 1) // span + 1):
        first, last = max(position, file * span), min(end, (file + 1) * span + 1)
        yield (split, file), (first, stream[4 * (first - position) : 4 * (last - position)])


def _ids_in_file(packing: Packing) -> int:
    return max(1, _FILE // packing.length) * packing.length


class _Pack(beam.DoFn):
    """The fragments of a file, in any order -> that file, and what features.json says of it."""

    def __init__(self, plan: _Plan):
        self._plan = plan

    def setup(self) -> None:
        self._tokenizer = self._plan.load_tokenizer()

    def process(self, file: tuple[tuple[str, int], Iterable[tuple[int, bytes]]]) -> Iterator[tuple]:
        (split, number), packing = file[0], self._plan.packing
        fragments = [(at, np.frombuffer(ids, np.uint32)) for at, ids in sorted(file[1])]
        if packing.kind == "concat":
            blocks = {"input_ids": cut(np.concatenate([ids for _, ids in fragments]), packing)}
        else:
            documents = packer(packing, fragments[0][0])
            for _, ids in fragments:
                documents.add(ids, ends=True)
            blocks = documents.take(last=True)
            yield "counts", split, dropped(documents.dropped, self._tokenizer)
        rows, width = blocks["input_ids"].shape
        if not rows:
            return
        content = io.BytesIO()
        with open_parquet(content, tuple(blocks)) as parquet:
            step = max(1, _ROW_GROUP // width)
            for row in range(0, rows, step):
                write_blocks(parquet, {name: c[row : row + step] for name, c in blocks.items()})
        entry = {
            "name": f"{split}-{number:05d}.parquet",
            "rows": rows,
            "tokens": targets(blocks, packing.padding),
            "sha256": hashlib.sha256(content.getbuffer()).hexdigest(),
        }
        _write(f"{self._plan.folder}/{entry['name']}", content.getvalue())
        yield "file", split, entry


def _summarize(found: list[tuple[str, str, dict]], folder: str) -> None:
    summary: dict[str, Any] = {
        "files": {split: [] for split in SPLITS},
        "counts": {split: dict.fromkeys(COUNTS, 0) for split in SPLITS},
    }
    for kind, split, value in found:
        if kind == "file":
            summary["files"][split].append(value)
        else:
            for name, more in value.items():
                summary["counts"][split][name] += more
    _write(f"{folder}/summary.json", json.dumps(summary).encode())


def _documents(pieces: Iterable[Document]) -> Iterator[list[Document]]:
    """Each document as the list of its pieces."""
    document = []
    for piece in pieces:
        document.append(piece)
        if not piece.continues:
            yield document
            document = []


def _count(what: str, how_many: int = 1) -> None:
    Metrics.counter("tsuzuri", what).inc(how_many)


def _run(listed: list[Shard], plan: _Plan, options: pipeline_options.PipelineOptions) -> None:
    """Runs the pipeline to its end.

    Raises:
      UserError, RunError: what a worker raised, wherever that was.
    """
    try:
        with _watched_workers():
            pipeline = beam.Pipeline(options=options)
            _pipeline(pipeline, listed, plan)
            state = pipeline.run().wait_until_finish()
        if state not in (None, "DONE"):
            raise RunError(f"the Beam pipeline ended as {state}; its runner's log says why")
    except Exception as error:  # what a worker raised, or that in Beam's words, or as text only
        pattern = r"errors\.(UserError|RunError): (.*?)(?: \[while running|\\n|\n|$)"
        raised = re.findall(pattern, f"errors.{type(error).__name__}: {error}")
        if raised:
            kind = {"UserError": UserError, "RunError": RunError}[raised[-1][0]]
            raise kind(raised[-1][1]) from error
        if "Channel closed prematurely" in str(error):  # DirectRunner has noticed it by itself
            raise _death("its channel closed") from error
        last = [line for line in str(error).splitlines() if line.strip()][-1:]
        raise RunError(
            f"the Beam pipeline failed: {''.join(last) or type(error).__name__}"
        ) from error


def _death(how: str) -> RunError:
    return RunError(f"a Beam worker died ({how}), perhaps out of memory; nothing is written")


@contextlib.contextmanager
def _watched_workers() -> Iterator[None]:
    """Ends a run one of whose worker processes has died: DirectRunner would wait for ever, for that
    one and then for those that are left.
    """
    deaths: list[str] = []
    over = threading.Event()
    before = threading.excepthook

    def notice(thread: threading.ExceptHookArgs) -> None:
        if "Worker subprocess exited" not in str(thread.exc_value):
            before(thread)
            return
        deaths.append(str(thread.exc_value))
        # SIGINT is the one thing that ends the main thread's waiting; in its clean-up it may wait
        # once more, for another worker.
        while not over.wait(2):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                    if "sdk_worker_main" in " ".join(process.cmdline()):
                        process.kill()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.excepthook = notice
    try:
        yield
    except KeyboardInterrupt:
        if deaths:
            raise _death(deaths[0]) from None
        raise
    finally:
        over.set()
        for thread in threading.enumerate():
            if deaths and thread.name == "run_worker":  # each notices the end of its worker
                with contextlib.suppress(KeyboardInterrupt):  # a last one, on its way already
                    thread.join()
        threading.excepthook = before


@contextlib.contextmanager
def _folder(out: str) -> Iterator[str]:
    """Where the pipeline writes: beside a local folder, which appears at the end; else in `out`."""
    if not _is_remote(out):
        free(Path(out))
        with files.write_beside(Path(out).absolute()) as beside:
            (beside / "tokenizer").mkdir(parents=True)
            yield str(beside)
            for unfinished in beside.glob("*.partial"):  # of workers that died
                unfinished.unlink()
        return
    if FileSystems.match([out.rstrip("/") + "/*"])[0].metadata_list:
        raise UserError(f"{out} is there already; choose another folder, or remove it first")
    yield out.rstrip("/")


def _shards(source: str) -> list[Shard]:
    if not _is_remote(source):
        return shards(Path(source).absolute())
    source = source.rstrip("/")
    if FileSystems.exists(f"{source}/{MANIFEST}"):
        manifest = json.loads(_read(f"{source}/{MANIFEST}"))
        return [shard for shard, _ in prepared(source, manifest)]
    inside, itself = FileSystems.match([f"{source}/**", source])
    paths = sorted({file.path for file in (inside.metadata_list or itself.metadata_list)})
    if not paths:
        raise UserError(f"{source}: no such file or folder")
    return [Shard(path) for path in paths]


def _is_remote(path: str) -> bool:
    return "://" in path


def _saved(tok: Tokenizer) -> dict[str, bytes]:
    """The files of a saved tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        tok.save(Path(folder) / "tokenizer")
        return {path.name: path.read_bytes() for path in (Path(folder) / "tokenizer").iterdir()}


def _open(path: str) -> Any:
    return (
        FileSystems.open(path, compression_type="uncompressed")
        if _is_remote(path)
        else Path(path).open("rb")
    )


def _read(path: str) -> bytes:
    with FileSystems.open(path) as stream:
        return stream.read()


def _write(path: str, content: bytes) -> None:
    """Writes a file whole or not at all: a worker that dies leaves at most a .partial."""
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    with FileSystems.create(partial) as stream:
        stream.write(content)
    FileSystems.rename([partial], [path])
