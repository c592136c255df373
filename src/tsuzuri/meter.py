"""What is measured while training: the lines of metrics.jsonl, and profiles of the device."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

from tsuzuri import devices
from tsuzuri.config import Config, ModelConfig
from tsuzuri.data import Batches
from tsuzuri.errors import RunError
from tsuzuri.model import flops_per_token
from tsuzuri.track import Log

# A run ends when so many steps in a row have a loss or a gradient that is not finite.
SKIPS_IN_A_ROW = 5


def its_time(step: int, *cadences: int) -> bool:
    """Whether a step ends one of the cadences; a cadence of 0 never comes."""
    return any(every and step % every == 0 for every in cadences)


class Meter:
    """Turns what the steps give into lines of metrics.jsonl, and watches for what is not finite.

    The speed is that of the steps alone: not of compilation, evaluations, saving or samples.
    """

    def __init__(self, cfg: Config, model_cfg: ModelConfig, batches: Batches):
        self._cfg, self._batches = cfg, batches
        self._flops = flops_per_token(model_cfg, cfg.sequence_length)
        peak = devices.peak(jax.devices()[0].device_kind)
        self._peak = peak * jax.device_count() if peak and model_cfg.dtype == "bfloat16" else None
        self._losses: list[float] = []  # since the last line
        self._skips = 0  # in a row
        self._timed_from: tuple[int, float] | None = None  # (step, time); None: the clock stands

    def stop_clock(self) -> None:
        """Something that is no step begins."""
        self._timed_from = None

    def take(
        self, first: int, metrics: dict[str, jax.Array], asked: jax.Array | bool, log: Log
    ) -> bool:
        """Waits for the metrics of one call, whose first step is `first`, and logs what is due.

        Returns:
          Whether some host had been asked to stop before that call: the same on all hosts.

        Raises:
          RunError: the loss or the gradient was not finite for SKIPS_IN_A_ROW steps.
        """
        values = {name: np.asarray(value) for name, value in metrics.items()}
        now = time.monotonic()
        for step, (loss, sound) in enumerate(
            zip(values["loss"], values["sound"], strict=True), first
        ):
            if sound:
                self._losses.append(float(loss))
                self._skips = 0
            else:
                self._skipped(step, log)
        step = first + len(values["loss"])
        if self._timed_from is None:
            self._timed_from = step, now
        if not its_time(step, self._cfg.log_every) and step < self._cfg.steps:
            return bool(asked)
        tokens = self._cfg.batch_size * self._cfg.sequence_length
        line: dict[str, Any] = {"tokens": step * tokens, "memory_gib": memory_gib()}
        for name in ("learning_rate", "gradient_norm"):
            line[name] = float(values[name][-1])
        if self._losses:
            line = {"loss": math.fsum(self._losses) / len(self._losses)} | line
        if step > self._timed_from[0]:
            speed = (step - self._timed_from[0]) * tokens / (now - self._timed_from[1])
            line["tokens_per_second"] = speed
            if self._peak:
                line["mfu"] = speed * self._flops / self._peak
            self._timed_from = step, now
        self._losses = []
        log(step, line | log.goodput.figures())
        return bool(asked)

    def _skipped(self, step: int, log: Log) -> None:
        self._skips += 1
        blocks = self._batches.indices(step).tolist()
        log(step + 1, {"skipped": True, "blocks": blocks})
        log.say(f"WARNING: step {step + 1} skipped: its loss or gradient is not finite")
        if self._skips == SKIPS_IN_A_ROW:
            raise RunError(
                f"loss or gradient not finite {self._skips} steps in a row, the last at step "
                f"{step + 1} with blocks {blocks[:4]}...; the checkpoints are sound: lower "
                "--learning-rate and train in another --run, or look at those blocks in "
                "metrics.jsonl"
            )


def memory_gib() -> float:
    """The most memory used so far: the first device's, or this process's where that is unknown."""
    stats = jax.local_devices()[0].memory_stats()
    used = stats["peak_bytes_in_use"] if stats else psutil.Process().memory_info().rss
    return round(used / 2**30, 3)


class Profiler:
    """Records what the device does in a few calls, after those that compile.

    `tensorboard --logdir RUN/profile` (with tensorboard-plugin-profile) shows it, and
    https://ui.perfetto.dev opens the perfetto_trace.json.gz in it.
    """

    _FIRST, _CALLS = 3, 3

    def __init__(self, folder: Path | None, say: Callable[[str], None]):
        self._folder, self._say = folder, say
        self._seen, self._recording = 0, False

    def call(self) -> None:
        """A call of the device begins."""
        self._seen += 1
        if self._seen == self._FIRST + self._CALLS:
            self.close()
        elif self._folder and self._seen == self._FIRST:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._recording = True

    def close(self) -> None:
        """Writes what was recorded, or says that there was nothing to record."""
        if self._folder and self._seen < self._FIRST:
            self._say(
                f"WARNING: no profile: the device was called {self._seen} times, and the first "
                f"{self._FIRST - 1} are not recorded; give more --steps"
            )
        if self._recording:
            jax.profiler.stop_trace()
            self._recording = False
            self._say(f"profile: {self._folder}; tensorboard --logdir, or ui.perfetto.dev")
