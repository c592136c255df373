"""A `tsuzuri train` in a process of its own, watched through what it leaves on disk."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tsuzuri import checkpoint

# A run of 30 checkpoints in a few seconds; dropout, so that resuming has to find its key too.
TINY = {
    "tokenizer.kind": "bytes",
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.embed_dim": 16,
    "model.dropout": 0.1,
    "sequence_length": 32,
    "batch_size": 8,
    "steps": 240,
    "steps_per_call": 2,
    "log_every": 2,
    "eval_every": 40,
    "save_every": 8,
    "sample_every": 0,
    "learning_rate": 1e-2,
}

_PROGRESS = re.compile(r"step \d+/|training the tok|turning the text|[\d,]+ parameters|features:")


class Trainer:
    """One process.

    Attributes:
      run: its run folder.
      pid: its process id.
      ended_at: when `end` saw that it had ended, by time.monotonic().
    """

    def __init__(
        self,
        run: Path,
        config: dict[str, object],
        *arguments: str,
        faults: Sequence[str] = (),
        env: dict[str, str] | None = None,
        logs: Path | None = None,
    ):
        self.run = run
        flags = [f for k, v in config.items() for f in (f"--{k.replace('_', '-')}", str(v))]
        driver = [sys.executable, str(Path(__file__).with_name("faulty.py")), *faults, "--"]
        command = [*driver, "train", *arguments, "--run", str(run), *flags]
        logs = logs or run.parent
        self._out, self._err = (logs / f"{time.monotonic_ns()}.{name}" for name in ("out", "err"))
        # A run that goes on writes metrics.jsonl anew, without the steps that it will do again.
        self._metrics_before = self._metrics_inode()
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=err, env=os.environ | (env or {})
            )
        self.pid = self._process.pid

    @property
    def start(self) -> int | None:
        """The step it begins at; None while that is not known."""
        told = re.search(r"held out(?:; going on from step (\d+))?\n", self.err)
        return int(told[1] or 0) if told else None

    @property
    def step(self) -> int:
        """The last step that this process has logged; -1 while there is none."""
        path = self.run / "metrics.jsonl"
        if self._metrics_inode() in (None, self._metrics_before) or self.start is None:
            return -1
        *_, last = [b"", *re.findall(rb".+\n", path.read_bytes())]
        step = json.loads(last)["step"] if last else -1
        return step if step > self.start else -1

    @property
    def done(self) -> int:
        """How many steps this process has done, as far as they are logged."""
        return max(0, self.step - (self.start or 0))

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.run / "checkpoints").glob(".*.partial/state*"))

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def complaints(self) -> list[str]:
        """The lines on stderr that are no progress."""
        lines = self.err.splitlines()
        return [line for line in lines if line and not _PROGRESS.match(line)]

    @property
    def sha256(self) -> str:
        """The fingerprint of the parameters, printed at the end of a whole run."""
        told = re.search(r"parameters SHA-256 +(\w{64})\n", self._out.read_text())
        return told[1] if told else ""

    def until(self, condition: Callable[[], bool], seconds: float = 300) -> float:
        """Waits until the condition holds, looking a thousand times a second; returns when."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.running, f"it ended by itself, code {self._process.poll()}:\n{self.err}"
            assert time.monotonic() < end, f"nothing happened within {seconds} s:\n{self.err}"
            time.sleep(0.001)
        return time.monotonic()

    def send(self, number: signal.Signals) -> float:
        """Sends a signal; returns when."""
        now = time.monotonic()
        self._process.send_signal(number)
        return now

    def end(self, seconds: float = 300) -> int:
        """Waits until the process has ended; its exit code, negative for a signal."""
        code = self._process.wait(seconds)
        self.ended_at = time.monotonic()
        return code

    def told(self, what: str) -> float:
        """When a fault inside it said that something happened ("signal at", "hangs from")."""
        found = re.search(rf"{what} ([\d.]+)\n", self.err)
        assert found, f"it did not say '{what}':\n{self.err}"
        return float(found[1])

    def close(self) -> None:
        if self.running:
            self._process.kill()
        self._process.wait()

    def _metrics_inode(self) -> int | None:
        try:
            return (self.run / "metrics.jsonl").stat().st_ino
        except FileNotFoundError:
            return None


def two(
    start: Callable[..., Trainer], run: Path, config: dict[str, object], text: str, devices: int = 2
) -> list[Trainer]:
    """Two hosts that train one model, on virtual devices of the CPU; host 0 is the coordinator."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id"]
    env = {"JAX_NUM_CPU_DEVICES": str(devices)}
    return [start(run, config, text, *joined, str(host), env=env) for host in (0, 1)]


def saved(run: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return checkpoint.steps(run / "checkpoints")
