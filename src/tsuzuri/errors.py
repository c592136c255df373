"""The two ways to end with a message instead of a traceback.

Each message is one line that says what is wrong, where, and what to do. `cli.main` prints it and
exits with the class's code; in Python both are ordinary exceptions.
"""


class UserError(ValueError):
    """What the user gave cannot be used: a file, a flag, a run folder. Exit code 2."""

    exit_code = 2


class RunError(RuntimeError):
    """The work itself failed: a full disk, a loss that is not a number. Exit code 1."""

    exit_code = 1


def interrupted(error: BaseException | None) -> bool:
    """Whether this is Ctrl-C, or what failed in a library's clean-up after one."""
    while error and not isinstance(error, KeyboardInterrupt) and not hasattr(error, "exit_code"):
        error = error.__context__
    return isinstance(error, KeyboardInterrupt)
