"""Where a run's numbers go: a line on the screen, metrics.jsonl, TensorBoard, W&B.

A tracker has `log(step, metrics)` and `close()`. What a resumed run will do again is removed first,
so that each step stands once in every file.
"""

import contextlib
import json
import os
import secrets
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_float
from importlib.metadata import PackageNotFoundError, version
from io import RawIOBase
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from tsuzuri.errors import RunError, UserError
from tsuzuri.files import write_text

# A key ends in its unit where it has one; held_out_* stand only in the lines of an evaluation.
Metrics = Mapping[str, Any]


class Tracker(Protocol):
    def log(self, step: int, metrics: Metrics) -> None: ...

    def close(self) -> None: ...


class Jsonl:
    """metrics.jsonl: one object a line, written through at once, so that it can be followed."""

    def __init__(self, path: Path, resumed_at: int):
        kept = [line for line in read_jsonl(path) if line["step"] <= resumed_at]
        write_text(path, "".join(json.dumps(k, ensure_ascii=False) + "\n" for k in kept))
        self._path, self._file = path, path.open("ab", buffering=0)

    def log(self, step: int, metrics: Metrics) -> None:
        line = json.dumps({"step": step, **metrics}, ensure_ascii=False) + "\n"
        _append(self._path, self._file, line.encode())

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars that `tensorboard --logdir RUN` draws: an event file of TensorFlow's.

    It is written here because tensorboardX's thread dies alone, with a traceback, on a full disk,
    and because it imports PyTorch, 5 seconds of every start where that is installed. A record is
    a length, its checksum, an Event and its checksum (TensorFlow's core/lib/io/record_writer.cc);
    an Event is in Protocol Buffers' wire format (core/util/event.proto, core/framework/
    summary.proto).
    """

    def __init__(self, folder: Path, resumed_at: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"events.out.tfevents.{time.time():.0f}.{os.uname().nodename}"
        self._file = self._path.open("ab", buffering=0)
        self._write(0, _field(3, b"brain.Event:2"))
        # START of a session: TensorBoard hides what was written before of these and later steps.
        self._write(resumed_at + 1, _field(7, b"\x08\x01"))

    def log(self, step: int, metrics: Metrics) -> None:
        values = b""
        for key, number in metrics.items():
            if isinstance(number, int | float):
                value = struct.pack("<f", c_float(number).value)  # what is too large is infinite
                values += _field(1, _field(1, key.encode()) + b"\x15" + value)
        self._write(step, _field(5, values))

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, what: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step) + what
        length = struct.pack("<Q", len(event))
        record = length + _checksum(length) + event + _checksum(event)
        _append(self._path, self._file, record)


class WandB:
    """Charts at wandb.ai; or, under WANDB_MODE=offline, in RUN/wandb until `wandb sync` sends them.

    wandb's environment variables come before what is set here. The step is a metric like the
    others: W&B's own step never goes back, and would drop the lines of steps that a resumed run
    does again. Whatever fails is told in one line, and the training goes on without a chart.

    Args:
      config: the run's, flat.
    """

    def __init__(self, run: Path, config: Metrics, say: Callable[[str], None]):
        self._say, self._run = say, None
        defaults = {
            "WANDB_PROJECT": {"project": "tsuzuri"},
            "WANDB_NAME": {"run_name": run.resolve().name},
            "WANDB_DIR": {"root_dir": str(run)},
            "WANDB_RESUME": {"resume": "allow"},
            "WANDB_CONSOLE": {"console": "off"},
            "WANDB_INIT_TIMEOUT": {"init_timeout": 15},  # seconds
            "WANDB_FINISH_TIMEOUT": {"finish_timeout": 30},
        }
        options: dict[str, Any] = {
            "silent": True,
            "finish_timeout_raises": True,
            "reinit": "create_new",  # whatever else this process has at W&B stays as it is
        }
        for variable, option in defaults.items():
            options |= {} if variable in os.environ else option
        try:
            import wandb

            # The same id in every start makes them one run at W&B.
            if "WANDB_RUN_ID" not in os.environ:
                file = run / "wandb" / "id"
                if not file.exists():
                    write_text(file, secrets.token_hex(4))
                options["run_id"] = file.read_text()
            wandb.setup(wandb.Settings(silent=True))  # it does not ask for a password either
            try:
                self._run = wandb.init(config=dict(config), settings=wandb.Settings(**options))
            except wandb.Error as error:
                self._warn(error, "recording offline")
                wandb.teardown()  # it still holds the id
                wandb.setup(wandb.Settings(silent=True))
                options["mode"] = "offline"
                self._run = wandb.init(config=dict(config), settings=wandb.Settings(**options))
            self._run.define_metric("*", step_metric="step")
            self._where = Path(self._run.dir).parent
            if not self._run.disabled:
                say(f"W&B: {self._run.url or f'{self._where}, for `wandb sync`'}")
        except Exception as error:
            self._give_up(error)

    def log(self, step: int, metrics: Metrics) -> None:
        if self._run:
            try:
                self._run.log({"step": step, **metrics})
            except Exception as error:
                self._give_up(error)

    def close(self) -> None:
        if self._run:
            try:
                self._run.finish()
            except Exception as error:
                self._warn(error, f"`wandb sync {self._where}` sends what is missing")

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._warn(error, "going on without it")
        with contextlib.suppress(Exception):
            import wandb

            wandb.teardown()  # else it shows a traceback of the same failure at the end

    def _warn(self, error: Exception, then: str) -> None:
        what = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        self._say(f"WARNING: W&B: {what}; {then}")


def check(track: str) -> None:
    """Whether the tracker that was asked for is installed.

    Raises:
      UserError: it is not.
    """
    if track == "wandb":
        try:
            version("wandb")  # an import would find the folder ./wandb too, which W&B itself makes
        except PackageNotFoundError:
            raise UserError("--track wandb needs W&B: pip install 'tsuzuri[wandb]'") from None


class Console:
    """One live line on a terminal; elsewhere a line for each evaluation, or every ten seconds."""

    def __init__(self, total_steps: int, show: bool = True):
        self._total, self._show = total_steps, show
        self._live = show and sys.stderr.isatty()
        self._last: dict[str, Any] = {}
        self._first: tuple[int, float] | None = None  # the first step seen, and when
        self._shown_at = 0.0

    def log(self, step: int, metrics: Metrics) -> None:
        self._last |= metrics
        now = time.monotonic()
        self._first = self._first or (step, now)
        if not self._live and "held_out_loss" not in metrics and now - self._shown_at < 10:
            return
        self._shown_at = now
        self._print(self._line(step, now), end="" if self._live else "\n")

    def say(self, message: str) -> None:
        """A message of its own, above the live line."""
        self._print(message)

    def close(self) -> None:
        if self._live and self._last:
            self._print("")

    def _print(self, text: str, end: str = "\n") -> None:
        if self._show:
            text = f"\r\x1b[2K{text}" if self._live else text
            with tqdm.external_write_mode(sys.stderr):  # above a progress bar, if there is one
                print(text, end=end, file=sys.stderr, flush=True)

    def _line(self, step: int, now: float) -> str:
        m = self._last
        parts = [f"step {step}/{self._total}"]
        if "loss" in m:
            parts.append(f"loss {m['loss']:.4f}")
        if "held_out_loss" in m:
            parts.append(f"held-out {m['held_out_loss']:.4f}")
        if "tokens_per_second" in m:
            parts.append(f"{m['tokens_per_second']:,.0f} tokens/s")
        if "mfu" in m:
            parts.append(f"MFU {m['mfu']:.1%}")
        if "memory_gib" in m:
            parts.append(f"{m['memory_gib']:.1f} GiB")
        first, began = self._first or (step, now)
        if step > first:
            parts.append(f"ETA {duration((now - began) / (step - first) * (self._total - step))}")
        return "  ".join(parts)


class Log:
    """The trackers of a run as one; and its samples, to samples.jsonl and the screen.

    Args:
      write: of several hosts only one does.
      wandb: the run's config, flat, where the run is followed at W&B as well.
    """

    def __init__(
        self,
        run: Path,
        resumed_at: int,
        console: Console,
        write: bool = True,
        wandb: Metrics | None = None,
    ):
        self.say = console.say
        lines = read_jsonl(run / "metrics.jsonl")
        self.goodput = Goodput(lines, resumed_at)
        # Whether a run that ended at this step has said so.
        last = [line for line in lines if line["step"] == resumed_at]
        self.ended = any("held_out_bits_per_byte" in line for line in last)
        self._trackers: list[Tracker] = [console]
        self._samples: list[Tracker] = []
        if write:
            self._samples = [Jsonl(run / "samples.jsonl", resumed_at)]
            self._trackers += [
                Jsonl(run / "metrics.jsonl", resumed_at),
                TensorBoard(run / "tensorboard", resumed_at),
            ]
            if wandb:
                tracker = WandB(run, wandb, console.say)
                self._trackers.append(tracker)
                self._samples.append(tracker)

    def __call__(self, step: int, metrics: Metrics) -> None:
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def sample(self, step: int, prompt: str, text: str) -> None:
        for tracker in self._samples:
            tracker.log(step, {"prompt": prompt, "text": text})
        self.say(f"--- step {step}: {prompt}{text}")

    def close(self) -> None:
        for tracker in dict.fromkeys([*self._samples, *self._trackers]):
            tracker.close()


class Goodput:
    """Where the time of a run goes, over all its starts, in seconds by cause.

    `training` is what counts; `lost` lies between the last line that was kept and this start: the
    work that was lost, and the time until someone started the run again.
    """

    def __init__(self, lines: Sequence[Metrics], resumed_at: int):
        kept = [line for line in lines if line["step"] <= resumed_at and "seconds" in line]
        self._seconds: dict[str, float] = dict(kept[-1]["seconds"]) if kept else {}
        if kept:
            self._seconds["lost"] = self._seconds.get("lost", 0) + max(
                time.time() - kept[-1]["time"], 0
            )
        self._doing, self._since = "starting", time.monotonic()

    def now(self, doing: str) -> None:
        """Something else begins: training, compiling, evaluating, saving, sampling."""
        now = time.monotonic()
        spent = self._seconds.get(self._doing, 0) + now - self._since
        self._seconds[self._doing] = spent
        self._doing, self._since = doing, now

    def figures(self) -> dict[str, Any]:
        """What stands in a line of metrics.jsonl: goodput is the share of the training."""
        self.now(self._doing)
        return {
            "goodput": round(self._seconds.get("training", 0) / sum(self._seconds.values()), 4),
            "time": round(time.time(), 3),
            "seconds": {doing: round(s, 3) for doing, s in self._seconds.items()},
        }


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; a last line cut short by a kill is left out.

    Raises:
      UserError: another line is not JSON.
    """
    if not path.exists():
        return []
    # Not splitlines(): a text may hold U+2028 and other characters that end a line elsewhere.
    lines = path.read_bytes().decode("utf-8", errors="replace").removesuffix("\n").split("\n")
    objects = []
    for number, line in enumerate(lines):
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise UserError(f"{path}:{number + 1}: not JSON; mend or remove the line") from None
    return objects


def duration(seconds: float) -> str:
    """93.2 -> "1:33"; 3723 -> "1:02:03"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def _append(path: Path, file: RawIOBase, data: bytes) -> None:
    """Writes all of it through.

    Raises:
      RunError: the disk is full, ...
    """
    try:
        while data:  # a disk that is nearly full takes a part, and then none
            data = data[file.write(data) :]
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def _varint(number: int) -> bytes:
    """A number in protobuf's wire format: 7 bits a byte, the lowest first."""
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _field(number: int, content: bytes) -> bytes:
    """A field of a message in protobuf's wire format, of bytes, text or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _crc32c_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reflected
    return byte


_CRC32C = [_crc32c_of_byte(byte) for byte in range(256)]


def _checksum(data: bytes) -> bytes:
    """TensorFlow's masked CRC-32C (core/lib/hash/crc32c.h)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
