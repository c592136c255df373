"""`tsuzuri` with faults in it: python faulty.py [FAULT ...] -- ARGUMENTS OF tsuzuri.

    kill:CHAIN    kill -9 of itself, at an exact place: see `_at`
    term:CHAIN    SIGTERM to itself, at an exact place
    nan:5,9       the weights of batches 5 and 9 are not numbers
    skip:17       from batch 17 on, each step is given the batch after its own
    sleep:7       batch 7 never comes, in a sleep that lets other threads run
    gil:7         batch 7 never comes, and no other Python thread runs any more
    deaf:         SIGTERM finds no handler

Tests that need no process of their own take `changed` from here.
"""

import ctypes
import fnmatch
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tsuzuri import cli

FOREVER = 100_000  # seconds


def changed(batch: Callable[..., Any], kind: str, steps: str) -> Callable[..., Any]:
    """`Batches.batch`, but that a fault of this kind happens at these steps ("5,9")."""
    at = [int(step) for step in steps.split(",")]

    def faulty(self: Any, step: int, *rest: Any, **named: Any) -> Any:
        if kind == "skip" and step >= at[0]:
            step += 1
        elif step in at and kind in ("sleep", "gil"):
            print(f"hangs from {time.monotonic()}", file=sys.stderr, flush=True)
            time.sleep(FOREVER) if kind == "sleep" else ctypes.PyDLL(None).sleep(FOREVER)
        found = batch(self, step, *rest, **named)
        if kind == "nan" and step in at:
            found = found._replace(weights_BL=found.weights_BL * np.float32(np.nan))
        return found

    return faulty


def _at(number: int, chain: str) -> None:
    """Sends itself a signal just before the last event of `chain`, once the others have been.

    An event is one of Python's audit events (PEP 578) and a pattern that one of its arguments
    matches: "os.rename */checkpoints/8 > open */checkpoints" is after the checkpoint of step 8 got
    its name and before its folder is flushed to the disk.
    """
    waiting = [part.split(maxsplit=1) for part in chain.split(" > ")]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not waiting or event != waiting[0][0]:
            return
        paths = [os.fspath(a) for a in arguments if isinstance(a, str | os.PathLike)]
        if any(fnmatch.fnmatch(path, waiting[0][1]) for path in paths):
            waiting.pop(0)
            if not waiting:
                print(f"signal at {time.monotonic()}", file=sys.stderr, flush=True)
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def _install(fault: str) -> None:
    kind, _, argument = fault.partition(":")
    if kind in ("kill", "term"):
        _at(signal.SIGKILL if kind == "kill" else signal.SIGTERM, argument)
    elif kind == "deaf":
        from tsuzuri.train import StopSignals

        StopSignals.__enter__ = lambda self: self
    else:
        from tsuzuri.data import Batches

        Batches.batch = changed(Batches.batch, kind, argument)


if __name__ == "__main__":
    end = sys.argv.index("--")
    for given in sys.argv[1:end]:
        _install(given)
    sys.exit(cli.main(sys.argv[end + 1 :]))
