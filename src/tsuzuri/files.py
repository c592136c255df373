"""Files that are either whole or not there: write beside, then rename; hash; lock."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tsuzuri.errors import RunError, UserError


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
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


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
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process alone; the kernel lets go of it however the process ends.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder} is in use by process {file.read().strip() or 'unknown'}; "
                "wait for it, or choose another --run"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
