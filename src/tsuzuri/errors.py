"""The two ways to end with a message instead of a traceback, and Ctrl-C.

Each message is one line that says what is wrong, where, and what to do. `cli.main` prints it and
exits with the class's code; in Python both are ordinary exceptions.
"""

import signal
import threading
from types import FrameType


class UserError(ValueError):
    """What the user gave cannot be used: a file, a flag, a run folder. Exit code 2."""

    exit_code = 2


class RunError(RuntimeError):
    """The work itself failed: a full disk, a loss that is not a number. Exit code 1."""

    exit_code = 1


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handles a signal as Python does Ctrl-C; but while JAX is called by the garbage collector,
    whatever is raised would be printed and lost: there the signal comes again a moment later.

    Raises:
      KeyboardInterrupt: elsewhere.
    """
    while frame and frame.f_code.co_name != "_xla_gc_callback":
        frame = frame.f_back
    if not frame:
        raise KeyboardInterrupt
    here = threading.get_ident()  # so that it also ends what this thread will wait for
    threading.Timer(0.01, signal.pthread_kill, [here, number]).start()


def interrupted(error: BaseException | None) -> bool:
    """Whether this is Ctrl-C, or what failed in a library's clean-up after one."""
    while error and not isinstance(error, KeyboardInterrupt) and not hasattr(error, "exit_code"):
        error = error.__context__
    return isinstance(error, KeyboardInterrupt)
