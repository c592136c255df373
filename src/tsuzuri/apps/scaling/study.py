"""A study in its folder: the cells are trained one after the other, and what came of them is read.

study.json    the config, the text's and the tokenizer's fingerprints, and the grid
tokenizer/    of the training side of the whole text, for all cells
corpora/      a features folder for each corpus
cells/        a run folder for each cell
results.json  fit.json  loss.png  gap.png  isoflop.png
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsuzuri import corpus as corpora_of
from tsuzuri import tokenizer as tokenizers
from tsuzuri.apps.scaling import grid
from tsuzuri.apps.scaling.grid import Cell, Corpus, Grid, Size
from tsuzuri.config import Config, differences, flatten, replace
from tsuzuri.errors import RunError, UserError
from tsuzuri.features import read_features, split_documents, training_texts
from tsuzuri.features.splits import Part, lengths_if_few
from tsuzuri.files import locked, read_json, remove, write_json
from tsuzuri.model import flops_per_token
from tsuzuri.optim import warmup_steps
from tsuzuri.run_folder import check_sources
from tsuzuri.tokenizer import Tokenizer
from tsuzuri.track import duration, read_jsonl

Say = Callable[[str], None]

FORMAT = 1
# What may change when a study goes on: what moves no loss but by rounding.
_MAY_CHANGE = ("save_every", "keep_checkpoints", "log_every", "watchdog_seconds", "mesh.")
_MAY_CHANGE += ("compute.", "sample.", "sample_every")


@dataclass(frozen=True)
class Result:
    """What came of a cell. Losses are in nats a token."""

    cell: str
    size: str
    corpus: str
    seed: int
    parameters: int
    n: int  # of them, those of the blocks: without embeddings and head
    books: int  # documents of the corpus
    d: int  # its tokens
    tokens: int  # that were trained on, those that came again counted again
    flops: float  # for them
    train_loss: float  # of the last steps, since the evaluation before the last
    held_out_loss: float  # at the end
    bits_per_byte: float  # at the end
    best_loss: float  # the lowest held-out loss, at best_step
    best_step: int
    steps: int
    curve: list[tuple[int, float]]  # after warmup: tokens trained on, and the held-out loss then

    @property
    def seen(self) -> int:
        """The tokens of the corpus that the model has met."""
        return min(self.d, self.tokens)

    @property
    def epochs(self) -> float:
        return self.tokens / self.d

    @property
    def gap(self) -> float:
        return self.held_out_loss - self.train_loss

    @property
    def best_bits_per_byte(self) -> float:
        return self.bits_per_byte * self.best_loss / self.held_out_loss


def run(
    cfg: Config,
    out: Path,
    sources: Sequence[str],
    wanted: Grid,
    held_out_tokens: int,
    say: Say,
) -> tuple[list[Result], dict[str, str]]:
    """Trains the cells of a study that are not trained yet, those of few FLOPs first.

    Args:
      cfg: of all cells; the grid's numbers in it do not count.
      out: the study's folder; made if need be, and held for this process alone.
      sources: the text; may be empty to go on.
      wanted: added to the grid that the study has. Without a corpus: all of the text, and a third,
        a ninth and a 27th of its tokens.
      held_out_tokens: look at about so many of the held-out documents.
      say: told how it goes.

    Returns:
      What came of the cells that are trained; and, by cell, why one could not be.

    Raises:
      UserError: what was given cannot be used; `out` holds another study, or something else.
      Stopped: Ctrl-C or SIGTERM came; the same command goes on from there.
    """
    check_sources(sources, out)
    if not (out / "study.json").exists() and (out.is_file() or list(out.glob("[!.]*"))):
        raise UserError(f"{out} is there already, and is no study; choose another --out")
    if not sources and not begun(out):
        raise UserError(f"{out} holds no study yet: give a text to make it of")
    for size in wanted.sizes:  # what can be no model is known before anything is done
        grid.config_of_cell(cfg, Cell(size, grid.ALL, 0))
    with locked(out, say):
        for left_behind in out.rglob(".*.partial"):  # by a process that was killed
            remove(left_behind)
        text = corpora_of.fingerprint(sources, cfg.text) if sources else None
        study = {"format": FORMAT, "text": text, "held_out_tokens": held_out_tokens}
        study["config"] = flatten(cfg)
        if begun(out):
            there = _same_study(out, study, cfg)
            study["text"] = study["text"] or read_json(out / "study.json")["text"]
        else:
            there = Grid((), ())
            for unused in ("tokenizer", "corpora"):
                remove(out / unused)
        wanted = there.with_(wanted)
        write_json(out / "study.json", study | {"grid": dataclasses.asdict(there)})
        tok = _tokenizer(sources, cfg, out, say)
        wanted = _write_corpora(sources, cfg, out, tok, wanted, study, say)
        write_json(out / "study.json", study | {"grid": dataclasses.asdict(wanted)})
        return _train_all(cfg, out, wanted, tok, say)


def begun(out: Path) -> bool:
    """Whether there is a study with cells, to which others must compare."""
    return (out / "study.json").exists() and (out / "cells").exists()


def read_grid(out: Path) -> Grid:
    """The grid of a study."""
    stored = read_json(out / "study.json")["grid"]
    return Grid(
        tuple(Size(*size) for size in stored["sizes"]),
        tuple(Corpus(*corpus) for corpus in stored["corpora"]),
        stored["seeds"],
    )


def read_config(out: Path) -> tuple[Config, int]:
    """The config that all cells of a study have, and its held_out_tokens.

    Raises:
      UserError: study.json is of another version, or damaged.
    """
    stored = read_json(out / "study.json")
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise UserError(f"{out}/study.json: not the description of a study of this version")
    return replace(Config(), stored["config"]), stored["held_out_tokens"]


def _same_study(out: Path, study: dict[str, Any], cfg: Config) -> Grid:
    """The grid of the study that is in `out`, whose cells must compare with what is asked now.

    Raises:
      UserError: they would not.
    """
    stored = read_json(out / "study.json")
    changed = [
        f"{key} {old!r} -> {new!r}"
        for key, (old, new) in differences(read_config(out)[0], cfg).items()
        if not key.startswith(_MAY_CHANGE)
    ]
    if stored["held_out_tokens"] != study["held_out_tokens"]:
        changed.append(f"held_out_tokens {stored['held_out_tokens']} -> {study['held_out_tokens']}")
    if study["text"] not in (None, stored["text"]):
        changed.append("another text")
    if changed:
        raise UserError(
            f"{out} holds a study whose cells would not compare ({', '.join(changed)}); "
            "give its own values, or another --out"
        )
    return read_grid(out)


def _tokenizer(sources: Sequence[str], cfg: Config, out: Path, say: Say) -> Tokenizer:
    if not (out / "tokenizer").exists():
        if cfg.tokenizer.path:
            tokenizers.load(cfg.tokenizer.path).save(out / "tokenizer")
        else:
            say("training the tokenizer")
            texts = training_texts(
                lambda: corpora_of.read(sources, cfg.text, say), cfg.features, cfg.seed
            )
            tokenizers.train(texts, cfg.tokenizer, say, True).save(out / "tokenizer")
    return tokenizers.load(out / "tokenizer")


def _write_corpora(
    sources: Sequence[str],
    cfg: Config,
    out: Path,
    tok: Tokenizer,
    wanted: Grid,
    study: dict[str, Any],
    say: Say,
) -> Grid:
    """Writes the corpora that are not there; returns the grid with those that stand for none.

    Raises:
      UserError: the text has not so much, or too few documents to be counted in books.
    """

    def documents() -> Iterator[corpora_of.Document]:
        return corpora_of.read(sources, cfg.text, say)

    folder = out / "corpora"
    missing = [c for c in wanted.corpora if not (folder / str(c) / "features.json").exists()]
    if wanted.corpora and not missing:
        return wanted
    if not sources:
        raise UserError(f"{', '.join(map(str, missing))}: give the text to make this corpus of")
    few = lengths_if_few(documents, cfg.features.held_out)
    if few and (books := [corpus for corpus in missing if corpus.unit == "books"]):
        raise UserError(
            f"--books {books[0].number}: a text of {len(few)} documents is too small to be counted "
            "in books; give --tokens"
        )

    def parts() -> Iterator[Part]:
        found = split_documents(documents, cfg.features, cfg.seed, lambda message: None)
        return grid.passages(found) if few else found

    say("counting the tokens of the text")
    lengths = grid.Lengths.of(parts(), tok)
    if not wanted.corpora:
        total = int(lengths.train.sum())
        thirds = [Corpus("tokens", total // share) for share in (27, 9, 3)]
        wanted = dataclasses.replace(wanted, corpora=(*thirds, grid.ALL))
        missing = list(wanted.corpora)
    kept = {folder / str(c): grid.chosen(c, lengths.train, cfg.seed) for c in missing}
    say(f"writing {len(kept)} corpora")
    held_out = grid.beginnings(lengths.held_out, study["held_out_tokens"])
    source = {"sources": list(map(str, sources)), "text": study["text"]}
    grid.write_corpora(kept, held_out, parts(), tok, cfg, source)
    return wanted


def _train_all(
    cfg: Config, out: Path, wanted: Grid, tok: Tokenizer, say: Say
) -> tuple[list[Result], dict[str, str]]:
    import jax

    from tsuzuri.train import Stopped, train

    cells = {}  # with config, and FLOPs
    for cell in wanted.cells:
        cell_cfg = grid.config_of_cell(cfg, cell)
        tokens = cfg.steps * cfg.batch_size * cfg.sequence_length
        model_cfg = cell_cfg.resolved_model(tok.vocab_size)
        cells[cell] = cell_cfg, tokens * flops_per_token(model_cfg, cfg.sequence_length)
    ordered = sorted(cells, key=lambda cell: cells[cell][1])
    found = {cell: result for cell in ordered if (result := read(out, cell, cells[cell][0], tok))}
    todo = [cell for cell in ordered if cell not in found]
    failed: dict[str, str] = {}
    spent, seconds = 0.0, 0.0  # in this process: FLOPs, and how long they took
    if found:
        say(f"{len(found)} of {len(cells)} cells are trained already")
    for number, cell in enumerate(todo):
        left = sum(cells[other][1] for other in todo[number:])
        eta = f"; about {duration(left * seconds / spent)} left" if spent else ""
        say(f"\ncell {len(cells) - len(todo) + number + 1} of {len(cells)}: {cell}{eta}")
        began = time.monotonic()
        try:
            features = [str(out / "corpora" / str(cell.corpus))]
            train(cells[cell][0], out / "cells" / str(cell), features)
            result = read(out, cell, cells[cell][0], tok)
            if result is None:
                raise RunError("its losses are not finite")
        except Stopped:
            raise
        except Exception as error:  # whatever it was: the others go on, and it is told at the end
            failed[str(cell)] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            say(f"FAILED {cell}: {failed[str(cell)]}")
        else:
            found[cell] = result
            spent, seconds = spent + cells[cell][1], seconds + time.monotonic() - began
            say(table([result]))
        jax.clear_caches()  # the next cell is of another shape; on disk they are kept
    results = sorted(found.values(), key=lambda r: (r.n, r.d, r.seed))
    write_json(
        out / "results.json",
        {"cells": [dataclasses.asdict(result) for result in results], "failed": failed},
    )
    return results, failed


def read(out: Path, cell: Cell, cfg: Config, tok: Tokenizer) -> Result | None:
    """What came of a cell; None if it is not trained to its end, or to no number.

    Args:
      cfg: the cell's.
    """
    lines = read_jsonl(out / "cells" / str(cell) / "metrics.jsonl")
    ended = [m for m in lines if m["step"] == cfg.steps and "held_out_bits_per_byte" in m]
    held_out = [(m["step"], m["held_out_loss"]) for m in lines if "held_out_loss" in m]
    before = (cfg.steps - 1) // cfg.eval_every * cfg.eval_every
    train = [m["loss"] for m in lines if m["step"] > before and "loss" in m]
    if not ended or not train or not all(math.isfinite(loss) for _, loss in held_out):
        return None
    features = read_features(out / "corpora" / str(cell.corpus))
    model_cfg = cfg.resolved_model(tok.vocab_size)
    parameters, n = grid.parameters(model_cfg)
    a_step = cfg.batch_size * cfg.sequence_length
    best_loss, best_step = min((loss, step) for step, loss in held_out)
    return Result(
        cell=str(cell),
        size=str(cell.size),
        corpus=str(cell.corpus),
        seed=cell.seed,
        parameters=parameters,
        n=n,
        books=features["splits"]["train"]["documents"],
        d=features["splits"]["train"]["tokens"],
        tokens=cfg.steps * a_step,
        flops=float(cfg.steps * a_step * flops_per_token(model_cfg, cfg.sequence_length)),
        train_loss=sum(train) / len(train),
        held_out_loss=ended[-1]["held_out_loss"],
        bits_per_byte=ended[-1]["held_out_bits_per_byte"],
        best_loss=best_loss,
        best_step=best_step,
        steps=cfg.steps,
        curve=[(step * a_step, loss) for step, loss in held_out if step > warmup_steps(cfg)],
    )


def table(results: Sequence[Result], failed: dict[str, str] | None = None) -> str:
    """The cells for a person."""
    lines = [
        f"{'cell':22}{'N':>12}{'D':>13}{'epochs':>8}{'FLOPs':>10}{'train':>8}{'held out':>10}"
        f"{'gap':>7}{'best':>8}{'at step':>9}{'bits/byte':>11}"
    ]
    for r in results:
        lines.append(
            f"{r.cell:22}{r.n:12,}{r.d:13,}{r.epochs:8.2f}{r.flops:10.2g}{r.train_loss:8.3f}"
            f"{r.held_out_loss:10.3f}{r.gap:7.3f}{r.best_loss:8.3f}"
            f"{r.best_step:8}{'*' if r.best_step == r.steps else ' '}{r.best_bits_per_byte:11.4f}"
        )
    for cell, why in (failed or {}).items():
        lines.append(f"{cell:22}  FAILED  {why}")
    return "\n".join(lines)
