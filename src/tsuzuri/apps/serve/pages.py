"""The pages: the playground at /, the runs of a folder at /runs, and the JSON that those show.

/runs/list                        "runs": their figures, config.json's steps; "serving": a name
/runs/metrics?run=NAME&have=MARK  "train", "held_out": points [step, tokens, loss], those after MARK
/runs/samples?run=NAME            "samples": step, prompt and text
/runs/differences?a=NAME&b=NAME   "differences": [key, a's value, b's value]

Names are those of the list and no others: nothing that is asked for becomes a path. What is not
there, or cannot be read, is a 404 whose JSON says so.
"""

import functools
import json
import math
import os
import secrets
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsuzuri.apps import web
from tsuzuri.config import Config, differences
from tsuzuri.errors import UserError
from tsuzuri.run_folder import read_config
from tsuzuri.track import read_jsonl

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

MOST_POINTS = 2000  # of one curve in one answer
MOST_SAMPLES = 500  # of one run: the newest
_READ = os.R_OK | os.X_OK
_RECENT = 60  # seconds in which a run that trains has written something
_FIGURES = ("step", "loss", "held_out_loss", "held_out_bits_per_byte", "tokens_per_second")


def routes(name: str, runs: Path) -> "list[Route]":
    """The pages and what they ask for.

    Args:
      name: of the model that is served: its run folder's.
      runs: a folder of run folders, or of folders of them.
    """
    from starlette.responses import HTMLResponse
    from starlette.routing import Route

    folder = _Runs(runs)

    def page(file: str) -> Callable[["Request"], "Response"]:
        html = Path(__file__).with_name(file).read_text(encoding="utf-8")
        shared = Path(__file__).with_name("shared.html").read_text(encoding="utf-8")
        html = html.replace("<!-- shared.html -->\n", shared)
        return lambda request: HTMLResponse(html, headers=web.HEADERS)

    return [
        Route("/", page("playground.html")),
        Route("/runs", page("runs.html")),
        Route("/runs/list", _answer(lambda: {"serving": name, "runs": folder.rows()})),
        Route("/runs/metrics", _answer(folder.metrics, "run", "have")),
        Route("/runs/samples", _answer(folder.samples, "run")),
        Route("/runs/differences", _answer(folder.differences, "a", "b")),
    ]


def _answer(
    content: Callable[..., dict[str, Any]], *keys: str
) -> Callable[["Request"], "Response"]:
    """An endpoint that answers what `content` makes of the query's values.

    It is no coroutine, so that Starlette runs it beside the event loop.
    """
    from starlette.responses import Response

    def endpoint(request: "Request") -> Response:
        try:
            status, found = 200, content(*(request.query_params.get(key, "") for key in keys))
        except (UserError, OSError) as error:
            said = {"message": str(error), "type": "not_found_error", "param": None, "code": None}
            status, found = 404, {"error": said}
        # As ASCII: half a surrogate pair in a file is no reason to fail.
        text = json.dumps(found, allow_nan=False)
        return Response(text, status, web.HEADERS, "application/json")

    return endpoint


class _Runs:
    """The run folders of a folder."""

    def __init__(self, folder: Path):
        self._folder = folder.resolve()
        self._metrics: dict[Path, _Metrics] = {}
        self._lock = threading.Lock()  # of the metrics: each request is a thread

    def rows(self) -> list[dict[str, Any]]:
        """The figures of each run, the last that were written; by name."""
        found = dict(sorted(self._named()))
        with self._lock:  # what is gone is forgotten
            self._metrics = {p: m for p, m in self._metrics.items() if p in found.values()}
        return [{"name": name} | self._figures(path) for name, path in found.items()]

    def metrics(self, run: str, have: str) -> dict[str, Any]:
        """The curves of a run, thinned where they have many points.

        Args:
          have: the mark of an earlier answer: only what was written since is told, unless the run
            began anew; then, and without one, all of it is, and `whole` says so.
        """
        path = self._path(run)
        with self._lock:
            followed = self._metrics.setdefault(path, _Metrics(path / "metrics.jsonl"))
            followed.read(self._holds(path, "metrics.jsonl"))
            return followed.since(have)

    def samples(self, run: str) -> dict[str, Any]:
        """What the run wrote while it was trained, by step."""
        path = self._path(run)
        lines = read_jsonl(path / "samples.jsonl") if self._holds(path, "samples.jsonl") else []
        return {
            "samples": [
                {"step": _plain(line.get("step")), "prompt": str(line.get("prompt", "")),
                 "text": str(line.get("text", ""))}
                for line in lines[-MOST_SAMPLES:] if isinstance(line, dict)
            ]
        }  # fmt: skip

    def differences(self, a: str, b: str) -> dict[str, Any]:
        """The fields in which two configs differ, as JSON writes the values."""
        found = differences(_config(self._path(a)), _config(self._path(b)))
        words = functools.partial(json.dumps, ensure_ascii=False)
        return {"differences": [[key, words(x), words(y)] for key, (x, y) in found.items()]}

    def _figures(self, run: Path) -> dict[str, Any]:
        steps, size, notes = None, 0, []
        with self._lock:
            followed = self._metrics.setdefault(run, _Metrics(run / "metrics.jsonl"))
            try:
                followed.read(self._holds(run, "metrics.jsonl"))
                size = self._holds(run, "samples.jsonl") and (run / "samples.jsonl").stat().st_size
                steps = _config(run).steps
            except (UserError, OSError) as error:
                notes.append(str(error))
            figures, changed = dict(followed.latest), followed.changed
            notes += [followed.note] * bool(followed.note)
        step = figures["step"]
        if step is None:
            state = "new"
        elif steps is not None and step >= steps:
            state = "finished"
        else:
            state = "training" if time.time() - changed < _RECENT else "stopped"
        return figures | {"steps": steps, "state": state, "samples": int(size), "notes": notes}

    def _path(self, name: str) -> Path:
        for known, path in self._named():
            if known == name:
                return path
        raise UserError(f"there is no run {name[:80]!r} here (any more)")

    def _named(self) -> Iterator[tuple[str, Path]]:
        """Name and path of each run folder, at most one folder below."""
        for path in _folders(self._folder):
            inside = [path] if (path / "config.json").exists() else _folders(path)
            for run in inside:
                is_run = any((run / made).exists() for made in ("metrics.jsonl", "checkpoints"))
                if is_run and self._holds(run, "config.json"):
                    yield run.relative_to(self._folder).as_posix(), run

    def _holds(self, run: Path, file: str) -> bool:
        """Whether it is a file (no pipe, say), and no link leads out of the folder."""
        path = run / file
        return path.is_file() and path.resolve().is_relative_to(self._folder)


class _Metrics:
    """What stands in a metrics.jsonl; of a file that grows only what is new is read."""

    def __init__(self, path: Path):
        self._path = path
        self._begin(None, b"")

    def _begin(self, file: Any, head: bytes) -> None:
        self._file, self._head = file, head  # the inode and the first bytes: what file it is
        self._read_to, self._lines = 0, 0
        self._mark = secrets.token_hex(4)
        # Step, tokens and loss of a point, and then the next point's.
        self._curves = {"train": array("d"), "held_out": array("d")}
        self._tokens = math.nan
        self.latest: dict[str, float | None] = dict.fromkeys(_FIGURES)
        self.changed, self.note = 0.0, ""

    def read(self, there: bool) -> None:
        """Takes in what was written since; begins anew where that is another file."""
        if not there:
            if self._file:
                self._begin(None, b"")
            return
        with self._path.open("rb") as file:
            status, head = os.fstat(file.fileno()), file.read(256)
            which = status.st_dev, status.st_ino
            same = which == self._file and head.startswith(self._head)
            if not same or status.st_size < self._read_to:
                self._begin(which, head)
            self._head, self.changed = head, status.st_mtime
            file.seek(self._read_to)
            written = file.read()
        whole = written[: written.rfind(b"\n") + 1]  # the last line may be half written
        self._read_to += len(whole)
        for line in whole.splitlines():
            self._lines += 1
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            found = dict(json.loads(line))
        except (ValueError, TypeError, RecursionError):
            found = {}
        step = _number(found.get("step"))
        if math.isnan(step):
            self.note = f"metrics.jsonl:{self._lines} is no line of metrics"
            return
        self._tokens = _number(found.get("tokens", self._tokens))
        self.latest |= {key: _plain(found[key]) for key in _FIGURES if key in found}
        for curve, key in (("train", "loss"), ("held_out", "held_out_loss")):
            if key in found:
                self._curves[curve].extend((step, self._tokens, _number(found[key])))

    def since(self, have: str) -> dict[str, Any]:
        """The points after the mark `have`, all of them where it is none of this file's."""
        counts = {name: len(numbers) for name, numbers in self._curves.items()}
        mark, _, place = have.partition(".")
        place = [int(n) if n.isdecimal() and len(n) < 12 else 0 for n in place.split(".")]
        whole = mark != self._mark or len(place) != 2
        curves = {
            name: _thinned(self._curves[name][0 if whole else 3 * begin :])
            for name, begin in zip(counts, [0, 0] if whole else place, strict=True)
        }
        mark = ".".join([self._mark, *(str(count // 3) for count in counts.values())])
        return {"mark": mark, "whole": whole} | curves


def _thinned(numbers: "array[float]") -> list[list[float | None]]:
    """Points of [step, tokens, loss] * points: of a stretch of many its lowest and its highest."""
    points = list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
    stretch = 2 * math.ceil(len(points) / MOST_POINTS)
    if stretch > 2:
        kept = []
        for begin in range(0, len(points), stretch):
            part = points[begin : begin + stretch]
            kept += sorted({min(part, key=_height), max(part, key=_height)})
        points = kept
    return [[_plain(number) for number in point] for point in points]


def _height(point: tuple[float, float, float]) -> float:
    return math.inf if math.isnan(point[2]) else point[2]  # a loss that is none is worth seeing


def _number(value: Any) -> float:
    """A number of a file; NaN where there is none."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def _plain(value: Any) -> float | None:
    """A number as JSON can write it, whole ones as such; None where it is not finite."""
    number = _number(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _config(run: Path) -> Config:
    """The config of a run.

    Raises:
      UserError: it is none, or another version's.
    """
    return _config_of(run, (run / "config.json").stat().st_mtime_ns)


@functools.lru_cache(1024)  # reading one takes milliseconds, and a folder may hold hundreds
def _config_of(run: Path, changed: int) -> Config:
    try:
        return read_config(run)
    except (TypeError, RecursionError) as error:  # a list where a number belongs
        raise UserError(f"{run / 'config.json'} is no config ({error})") from error


def _folders(folder: Path) -> Iterator[Path]:
    """The folders in a folder that can be named; no hidden ones, and no links."""
    try:
        for path in folder.iterdir():
            named = path.name.isprintable() and not path.name.startswith(".")
            if named and path.is_dir() and not path.is_symlink() and os.access(path, _READ):
                yield path
    except OSError:  # not ours to read, or gone
        return
