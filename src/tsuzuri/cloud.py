"""A run folder in a bucket: gs://BUCKET/runs/book, or another URL that fsspec knows.

Training works in a copy on this machine's disk, which may vanish at any moment. After each save
what has changed goes up, and a start without the copy brings down what it needs. As on disk a
checkpoint counts by its manifest, which goes up after all else that the checkpoint needs, and is
removed before the rest. While there is none, nothing in the bucket counts.
"""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tsuzuri import checkpoint, files, hosts
from tsuzuri.errors import RunError, UserError
from tsuzuri.storage import Storage, one_line, reason

Say = Callable[[str], None]

_NEEDED = ("config.json", "features.json", "metrics.jsonl", "samples.jsonl", "tokenizer/")
_NEEDED += ("wandb/id",)


def is_url(run: str | Path) -> bool:
    """Whether a run is in a bucket."""
    return "://" in str(run)


@contextlib.contextmanager
def opened(run: str, say: Say) -> Iterator[tuple[Path, "Bucket | None"]]:
    """The folder to train `run` in, and its bucket; a run that is a folder itself has none.

    A run in a bucket is held for this process alone. A block that ends well, or stopped and saved,
    leaves all of it in the bucket. Several hosts need their cache on a disk that all of them see.

    Raises:
      UserError: the bucket is not there or not permitted, or another process trains this run.
      RunError: the bucket cannot be reached, or, at the end, lacks something.
    """
    if not is_url(run):
        yield Path(run), None
        return
    bucket = Bucket(run, "training")
    try:
        hosts.shared(bucket.local)
    except UserError as error:
        raise UserError(
            f"{run}: several hosts train in one copy of it, and {bucket.local} is not on a disk "
            "that all of them see; set XDG_CACHE_HOME to such a disk, or train on one host"
        ) from error
    with contextlib.ExitStack() as held:
        hosts.first("bringing the run down", lambda: bucket.hold(held, say))
        try:
            yield bucket.local, bucket
        except Exception as error:
            if getattr(error, "exit_code", 1) == 42:
                hosts.first("sending the run up", bucket.send)
            raise
        hosts.first("sending the run up", bucket.send)


def fetched(run: str | Path, say: Say, features: bool = False) -> Path:
    """The folder to read `run` from: itself, or a copy of what its bucket holds now.

    Args:
      features: with those that it was trained on, where they are in the run.

    Raises:
      UserError: the bucket is not there or not permitted, or the run has no checkpoint yet.
      RunError: the bucket cannot be reached, or none of its checkpoints is sound.
    """
    if not is_url(run):
        return Path(run)
    bucket = Bucket(str(run), "reading")
    bucket.bring(say, features)
    if not checkpoint.steps(bucket.local / "checkpoints"):
        raise UserError(f"{run} holds no checkpoint yet: train it first")
    return bucket.local


class Bucket:
    """A run in a bucket, and its copy on this machine.

    Attributes:
      url: of the run.
      local: the copy. Its .bucket.json tells of the moment when both were last the same: which
        checkpoint was the newest, and the size and time of each file.
    """

    def __init__(self, url: str, purpose: str):
        self._storage = Storage(url)
        self.url = self._storage.url
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tsuzuri" / "runs"
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.local = cache / digest / purpose / self.url.rpartition("/")[2]
        self._there: set[str] = set()  # names in the bucket; nobody else writes to it
        self._same: dict[str, list[int]] = {}  # name: (size, time) of the file that is there too
        self._still_ours: Callable[[], None] = lambda: None

    def hold(self, held: contextlib.ExitStack, say: Say) -> None:
        """Takes the run for this process alone, until `held` closes, and brings it down."""
        with one_line(self.url):
            self._still_ours = held.enter_context(self._storage.held(say))
        self.bring(say, features=True, set_aside=True)

    def bring(self, say: Say, features: bool, set_aside: bool = False) -> None:
        """Makes the copy hold the newest sound checkpoint, and what belongs to it.

        A copy that is there may be ahead of the bucket, as where sending failed. It is kept, unless
        the bucket's newest checkpoint is no longer the one that it knows: others went on.

        Args:
          set_aside: rename damaged checkpoints in the bucket, for the process that holds the run.
        """
        with one_line(self.url):
            self._there = self._storage.names()
            steps = self._steps()
            record = self.local / ".bucket.json"
            known = files.read_json(record) if record.exists() else {}
            if known.get("newest") != self._newest():
                files.remove(self.local)
                known = {}
            if steps:
                self._same = known.get("same", {})
                self._bring_checkpoint(steps, say, set_aside)
                wanted = (*_NEEDED, "features/") if features else _NEEDED
                paths = {n: self.local / n for n in sorted(self._there) if n.startswith(wanted)}
                missing = {name: path for name, path in paths.items() if not path.exists()}
                self._storage.download(missing)
                self._same |= {name: _stat(path) for name, path in missing.items()}
            self._remember()

    def send(self, say: Say | None = None, alive: Callable[[], None] = lambda: None) -> None:
        """Sends up what the bucket lacks, and removes its oldest checkpoints.

        Args:
          say: is told of a failure, which the next call may make good; without it, it raises.
          alive: is called after each file.

        Raises:
          RunError: the bucket lacks something, which is named; or others hold the run now.
        """
        try:
            self._send(alive)
        except RunError:
            raise
        except Exception as error:
            lacking = [f"checkpoint {step}" for step in self._unsent()] + list(self._changed())
            lacking = lacking or ["the removal of its oldest checkpoints"]
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            message = f"{self.url} lacks {', '.join(lacking[:3])}{more}: {reason(error)}"
            if say is None:
                raise RunError(
                    f"{message}; {self.local} holds all, and the same command on this machine "
                    "sends it"
                ) from error
            say(f"WARNING: {message}; training goes on, and the next save tries again")

    def _send(self, alive: Callable[[], None]) -> None:
        self._still_ours()
        changed = self._changed()
        self._upload(changed, alive)
        self._same |= changed
        made = ("tokenizer/", "features/")  # and made anew, of another text, before any checkpoint
        stale = self._there - self._files().keys()
        self._remove({name for name in stale if name.startswith(made)})
        for step in self._unsent():
            self._remove(self._of(step))  # what an upload that was cut has left
            path = self.local / "checkpoints" / str(step)
            names = {f.relative_to(self.local).as_posix() for f in path.rglob("*") if f.is_file()}
            self._upload(names - {_manifest(step)}, alive)
            self._still_ours()
            self._upload({_manifest(step)}, alive)
        keep = files.read_json(self.local / "config.json")["keep_checkpoints"]
        for step in {_step(name) for name in self._there} - {-1, *self._steps()[-keep:]}:
            self._remove_checkpoint(step)
        self._remember()

    def _bring_checkpoint(self, steps: list[int], say: Say, set_aside: bool) -> None:
        ours = checkpoint.steps(self.local / "checkpoints")
        if ours and ours[-1] > steps[-1]:
            return
        damaged = []
        for step in reversed(steps):
            path = self.local / "checkpoints" / str(step)
            if checkpoint.damage_of(path):  # or it is not there
                files.remove(path)
                with files.write_beside(path) as beside:
                    names = {n: beside / n.split("/", 2)[2] for n in self._of(step)}
                    self._storage.download(names)
            damage = checkpoint.damage_of(path)
            if not damage:
                break
            files.remove(path)
            damaged.append(step)
            say(
                f"WARNING: {self.url}/checkpoints/{step} is damaged ({damage}); using the one "
                "before it"
            )
        else:
            raise RunError(f"{self.url} holds no sound checkpoint; move it away to train anew")
        for step in damaged if set_aside else []:
            aside = f"checkpoints/{step}.damaged.{secrets.token_hex(2)}/"
            copies = {name: aside + name.split("/", 2)[2] for name in self._of(step)}
            self._storage.copy(copies)
            self._there |= set(copies.values())
            self._remove_checkpoint(step)

    def _files(self) -> dict[str, list[int]]:
        """The copy's files beside the checkpoints: name -> (size, time)."""
        paths = {
            path.relative_to(self.local).as_posix(): path
            for path in sorted(self.local.rglob("*"))
            if path.is_file()
        }
        apart = (".", "checkpoints/", "features/decoded/")  # the last follows from the features
        return {name: _stat(path) for name, path in paths.items() if not name.startswith(apart)}

    def _changed(self) -> dict[str, list[int]]:
        """Those that the bucket lacks, or has as they were before."""
        return {
            name: stat
            for name, stat in self._files().items()
            if name not in self._there or self._same.get(name) != stat
        }

    def _unsent(self) -> list[int]:
        """The copy's checkpoints that the bucket lacks."""
        return sorted(set(checkpoint.steps(self.local / "checkpoints")) - set(self._steps()))

    def _steps(self) -> list[int]:
        """The steps of the bucket's checkpoints, oldest first."""
        return sorted(_step(name) for name in self._there if name == _manifest(_step(name)))

    def _of(self, step: int) -> set[str]:
        return {name for name in self._there if _step(name) == step}

    def _upload(self, names: Iterable[str], alive: Callable[[], None]) -> None:
        self._storage.upload({name: self.local / name for name in names}, alive)
        self._there |= set(names)

    def _remove(self, names: set[str]) -> None:
        self._storage.remove(names)
        self._there -= names

    def _remove_checkpoint(self, step: int) -> None:
        self._remove({_manifest(step)})
        self._remove(self._of(step))

    def _newest(self) -> str:
        """What tells the bucket's newest checkpoint from all others."""
        steps = self._steps()
        manifest = self._storage.read(_manifest(steps[-1])) if steps else b""
        return hashlib.sha256(manifest).hexdigest()

    def _remember(self) -> None:
        record = {"newest": self._newest(), "same": self._same}
        files.write_json(self.local / ".bucket.json", record)


def _manifest(step: int) -> str:
    return f"checkpoints/{step}/manifest.json"


def _step(name: str) -> int:
    """The step of the checkpoint that a file is of; -1 where it is of none."""
    match = re.match(r"checkpoints/(\d+)/", name)
    return int(match[1]) if match else -1


def _stat(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
