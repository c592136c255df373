"""Files that are either whole or not there: write beside, then rename; hash; lock."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tsuzuri.errors import RunError, UserError

LEASE_SECONDS = 30.0  # a lease that is not renewed for so long is nobody's


@contextlib.contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, of a file or folder, and renames it at the end.

    If the body raises, the temporary is removed and whatever was at `path` is as it was. A file
    that is there is replaced; a folder that is there must be empty.

    Raises:
      RunError: the disk is full, or `path` cannot be written; the message names the path.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(beside)
        yield beside
        for file in [beside] if beside.is_file() else sorted(beside.rglob("*")):
            if file.is_file():
                _sync(file)
        beside.replace(path)
        _sync(path.parent)
    except OSError as error:
        remove(beside)
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; nothing that was there is changed"
        ) from error
    except BaseException:
        remove(beside)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file whole, or not at all."""
    with write_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes readable JSON (Japanese as it is) whole, or not at all."""
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    # A file name that is not UTF-8 has surrogates; those become JSON's own escapes.
    write_text(path, text.encode(errors="backslashreplace").decode())


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
      UserError: the file is absent, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not JSON ({error}); it is damaged, or another program's"
        ) from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(NotADirectoryError):  # its parent is a file: it cannot be there
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(
    folder: Path, say: Callable[[str], None] = lambda line: None
) -> Iterator[Callable[[], None]]:
    """Holds `folder` for this process alone.

    On one machine the kernel keeps others out, and lets go however the process ends. For machines
    that share the folder there is a lease beside: folder/.lease, which is renewed as long as the
    folder is held. Who comes from another machine watches it for LEASE_SECONDS; no clocks are
    compared.

    Args:
      folder: made if need be.
      say: is told of a lease that is watched, and taken over.

    Yields:
      A function to call before something is written: it raises RunError when another process has
      taken the lease over, as it may after this one has stood still.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    with file:
        kernel_decides = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise in_use(folder, f"process {file.read().strip() or 'unknown'}") from None
        except OSError:  # a file system without locks
            kernel_decides = False
        with _writing_to(folder):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        with _lease(folder, kernel_decides, say) as still_ours:
            yield still_ours


def machine() -> str:
    """What tells this machine, as it runs since its last start, from all others."""
    with contextlib.suppress(OSError):  # Linux only
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot}"
    return socket.gethostname()


@contextlib.contextmanager
def _lease(
    folder: Path, kernel_decides: bool, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    path = folder / ".lease"
    mine = {"machine": machine(), "process": os.getpid(), "id": secrets.token_hex(8)}
    renewals = itertools.count()

    def text() -> str:
        return json.dumps(mine | {"renewals": f"{next(renewals):09}"})  # always of one length

    def renew() -> None:
        try:
            with path.open("r+") as file:
                found = file.read()
                if mine["id"] in found:
                    file.seek(0)
                    file.write(text())
                    return
        except FileNotFoundError:
            raise RunError(
                f"{path} is gone: the folder was moved or removed, or taken over by a process that "
                "has ended since; this one writes no more"
            ) from None
        except OSError:  # the storage cannot be reached: what is to be written will tell
            return
        raise RunError(
            f"{folder} was taken over by {holder(found)} while this process stood still; "
            "this one writes no more"
        )

    def keep_renewing() -> None:
        with contextlib.suppress(RunError):  # the next to write is told
            while not done.wait(LEASE_SECONDS / 6):
                renew()

    theirs = _read(path)
    if theirs is not None and not (kernel_decides and machine() in theirs):
        say(f"{folder} was held by {holder(theirs)}; watching {LEASE_SECONDS:g} s if it still is")
        until = time.monotonic() + LEASE_SECONDS
        while (now := _read(path)) is not None and time.monotonic() < until:
            if now not in ("", theirs):
                raise in_use(folder, holder(now))
            time.sleep(LEASE_SECONDS / 60)
        say(f"WARNING: {holder(theirs)} no longer renews its lease; {folder} is taken over")
    with _writing_to(folder):
        path.write_text(text())
    done = threading.Event()
    thread = threading.Thread(target=keep_renewing, name="lease", daemon=True)
    thread.start()
    try:
        yield renew
    finally:
        done.set()
        thread.join()
        if mine["id"] in (_read(path) or ""):
            path.unlink()


def _read(path: Path) -> str | None:
    """A lease; nothing where it cannot be read just now, None where there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def holder(lease: str) -> str:
    """Who holds a lease, in words."""
    try:
        found = json.loads(lease)
        return f"process {found['process']} on {found['machine'].split()[0]}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "an unknown process"


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error


def in_use(run: Path | str, by: str) -> UserError:
    """The error for who comes to a run that another process holds."""
    return UserError(f"{run} is in use by {by}; wait for it, or choose another --run")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of folders not every file system knows it
            raise
    finally:
        os.close(descriptor)
