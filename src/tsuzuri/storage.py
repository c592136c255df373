"""The objects under one URL of a bucket, by fsspec: gs:// (gcsfs), s3:// (s3fs), ...

Names are relative to the URL. What fails is tried again; what fails for good raises whatever the
library raises, which `one_line` turns into a UserError or RunError.
"""

import contextlib
import errno
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tsuzuri import files
from tsuzuri.errors import RunError, UserError

# Seconds before a request is tried again; gcsfs tries each six times, over half a minute.
WAITS = (2,)
_AT_ONCE = 8  # transfers
_LEASE = ".lease"


class Storage:
    """The objects under `url`.

    Raises:
      UserError: the package for such a URL is not installed, or nobody knows such a URL.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        # They log, with tracebacks, what they raise as well.
        for name in ("gcsfs", "google", "s3fs", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            from fsspec.core import url_to_fs

            with one_line(self.url):
                self._fs, root = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise UserError(
                f"{self.url}: {error}; for gs:// pip install 'tsuzuri[cloud]', for s3:// pip "
                "install s3fs"
            ) from error
        self._root = root.rstrip("/") + "/"

    def names(self) -> set[str]:
        """Of all objects there."""
        found = _tried(self._fs.find, self._root.rstrip("/"))
        return {n.removeprefix(self._root) for n in found if n.startswith(self._root)} - {_LEASE}

    def read(self, name: str) -> bytes:
        """The content of an object."""
        return _tried(self._fs.cat_file, self._root + name)

    def download(self, targets: Mapping[str, Path]) -> None:
        """Writes each object to a file, whole or not at all."""

        def one(name: str, path: Path) -> None:
            with files.write_beside(path) as beside, one_line(self.url):
                _tried(self._fs.get_file, self._root + name, str(beside))

        _at_once(one, targets.items())

    def upload(self, sources: Mapping[str, Path], alive: Callable[[], None] = lambda: None) -> None:
        """Makes each object from a file; calls `alive` after each."""

        def one(name: str, path: Path) -> None:
            _tried(self._fs.put_file, str(path), self._root + name)

        _at_once(one, sources.items(), alive)

    def copy(self, names: Mapping[str, str]) -> None:
        """Makes objects of the second names from those of the first."""

        def one(name: str, to: str) -> None:
            _tried(self._fs.cp_file, self._root + name, self._root + to)

        _at_once(one, names.items())

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects, if they are there."""

        def one(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                _tried(self._fs.rm_file, self._root + name)

        _at_once(one, [(name,) for name in names])

    @contextlib.contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
        """Holds the URL for this process alone, by an object that is renewed: see files.locked.

        Yields:
          A function to call before something is written: it raises RunError when another process
          has taken the lease over.

        Raises:
          UserError: another process holds it.
        """
        mine = {"machine": files.machine(), "process": os.getpid(), "id": secrets.token_hex(8)}

        def read() -> str:
            with contextlib.suppress(FileNotFoundError):
                return self.read(_LEASE).decode()
            return ""

        def write(mode: str) -> None:
            lease = json.dumps(mine | {"renewed": time.time()}).encode()
            self._fs.pipe_file(self._root + _LEASE, lease, mode=mode)

        def still_ours() -> None:
            if mine["id"] not in (now := read()):
                raise RunError(
                    f"{self.url} was taken over by {files.holder(now)} while this process stood "
                    "still; this one writes no more"
                )

        def keep_renewing() -> None:
            while not done.wait(files.LEASE_SECONDS / 6):
                with contextlib.suppress(Exception):  # who is to write is told
                    if mine["id"] not in read():
                        return
                    write("overwrite")

        if theirs := read():
            holder, patience = files.holder(theirs), files.LEASE_SECONDS
            say(f"{self.url} was held by {holder}; watching {patience:g} s if it still is")
            until = time.monotonic() + patience
            while (now := read()) and time.monotonic() < until:
                if now != theirs:
                    raise files.in_use(self.url, files.holder(now))
                time.sleep(patience / 30)
            if now:
                say(f"WARNING: {holder} no longer renews its lease; {self.url} is taken over")
                self.remove([_LEASE])
        with contextlib.suppress(FileExistsError):  # of several at this moment, one wins
            write("create")
        if mine["id"] not in (now := read()):
            raise files.in_use(self.url, files.holder(now))
        done = threading.Event()
        thread = threading.Thread(target=keep_renewing, name="lease in the bucket", daemon=True)
        thread.start()
        try:
            yield still_ours
        finally:
            done.set()
            thread.join()
            with contextlib.suppress(Exception):
                if mine["id"] in read():
                    self.remove([_LEASE])


@contextlib.contextmanager
def one_line(url: str) -> Iterator[None]:
    """What a library raises here becomes a UserError or RunError of one line."""
    try:
        yield
    except (UserError, RunError, ImportError):
        raise
    except FileNotFoundError as error:
        raise UserError(f"{url}: there is no such bucket or object ({reason(error)})") from error
    except Exception as error:
        if getattr(error, "errno", 0) == errno.ENOSPC:  # this machine's disk: files.py names it
            raise
        why = reason(error)
        if isinstance(error, ValueError) and "Protocol not known" in why:
            raise UserError(f"{url}: {why}; gs://, s3:// and what else fsspec knows") from error
        if any(sign in why for sign in ("Forbidden", "401", "403", "redentials", "denied")):
            raise UserError(
                f"{url}: not permitted ({why}); for gs:// see `gcloud auth application-default "
                "login`, or the roles of the VM's service account"
            ) from error
        raise RunError(f"{url} cannot be reached: {why}") from error


def reason(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _tried(work: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `work`, again and again if need be."""
    for wait in WAITS:
        try:
            return work(*arguments)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:
            time.sleep(wait)
    return work(*arguments)


def _at_once(
    work: Callable[..., None],
    arguments: Iterable[tuple[Any, ...]],
    alive: Callable[[], None] = lambda: None,
) -> None:
    """Calls `work` with each of `arguments`, several at a time; the first failure ends it."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        calls = [pool.submit(work, *each) for each in arguments]
        try:
            for call in calls:
                call.result()
                alive()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
