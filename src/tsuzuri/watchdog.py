"""The watchdog: a process that shows no sign of life is ended, with the stacks of all its threads.

A collective whose peer hangs, or a library that never gives Python's lock back, raises nothing and
dies of nothing, and its heartbeats go on. So the end must come from outside Python: the timer of
faulthandler is a thread in C that needs no lock.
"""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Iterator

_STDERR = 2  # the descriptor: there when sys.stderr is not


class Watchdog:
    """Ends the process, exit code 1, when `alive` is not called in time. See `watch`."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._doing = "", 0.0  # what, and how many seconds it may take
        self._until: float | None = None  # None: nothing is expected
        self._changed = threading.Condition()

    def alive(self, doing: str = "training", patience: float = 1) -> None:
        """A sign of life; the next one is due within `patience` times the watchdog's seconds.

        Args:
          doing: what begins now, for the message: training, evaluating, saving.
          patience: more than 1 for what takes longer than a call of steps.
        """
        if self._seconds:
            seconds = patience * self._seconds
            # A second more than the message below, so that it comes first if Python can speak.
            faulthandler.dump_traceback_later(seconds + 1, exit=True, file=_STDERR)
            with self._changed:
                self._doing, self._until = (doing, seconds), time.monotonic() + seconds
                self._changed.notify()

    def stop(self) -> None:
        """No sign of life is due any more."""
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
            with self._changed:
                self._until = None
                self._seconds = 0
                self._changed.notify()

    def speak(self) -> None:
        """Says what has happened, when the time is over: the work of a thread of its own."""
        with self._changed:
            while self._seconds:
                left = None if self._until is None else self._until - time.monotonic()
                if left is not None and left <= 0:
                    doing, seconds = self._doing
                    print(
                        f"error: {doing} has shown no sign of life for {seconds:g} s; this process "
                        "ends here, and its stacks follow: start it again to go on from the last "
                        "checkpoint, or give more --watchdog-seconds",
                        file=sys.stderr,
                        flush=True,
                    )
                    return
                self._changed.wait(left)


@contextlib.contextmanager
def watch(seconds: float) -> Iterator[Watchdog]:
    """A watchdog that waits from its first `alive` to the end of the block; 0 seconds: for ever."""
    watchdog = Watchdog(seconds)
    if seconds:
        threading.Thread(target=watchdog.speak, name="watchdog", daemon=True).start()
    try:
        yield watchdog
    finally:
        watchdog.stop()
