"""Checkpoints that are whole, sound and of this run, or are not used.

    checkpoints/<step>/state/         the train state, by Orbax
    checkpoints/<step>/manifest.json  what it belongs to, and the SHA-256 of every file of state/

The folder is written beside and renamed, so a name that is a number is a committed checkpoint. The
position in the data is the step, so nothing else has to be kept.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath  # the paths that Orbax's handlers take
from jax.experimental import multihost_utils

from tsuzuri import hosts
from tsuzuri.errors import RunError, UserError
from tsuzuri.files import read_json, remove, sha256, write_beside, write_json
from tsuzuri.sharding import path_of

# Orbax logs, with tracebacks, what it raises as well, and asyncio what Orbax then leaves undone.
for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


def _quietly(told: Any, before: Callable[[Any], None] = sys.unraisablehook) -> None:
    """tensorstore's other writes may fail after Orbax has left, and then show a traceback each."""
    if "Event loop is closed" not in str(told.exc_value):
        before(told)


sys.unraisablehook = _quietly


def save(folder: Path, step: int, state: Any, belongs_to: Mapping[str, str], keep: int) -> None:
    """Commits `state` as folder/<step>, then removes all but the newest `keep` checkpoints.

    All hosts call it, each writes the parts that it holds, and host 0 does the rest.

    Args:
      folder: the run's checkpoints folder, which all hosts see.
      step: the steps done; a checkpoint that is there already is left as it is.
      state: a pytree of arrays.
      belongs_to: fingerprints (of features, tokenizer, model) that `restore` will compare.

    Raises:
      RunError: a host could not write, as on a full disk; on all hosts. The older ones are
        untouched.
    """
    path = folder / str(step)
    handler = ocp.PyTreeCheckpointHandler()
    on_host_0 = contextlib.ExitStack()  # holds the folder beside, which its end renames

    def begin() -> str | None:
        if path.exists():
            return None
        beside = on_host_0.enter_context(write_beside(path))
        with _one_line(path):
            (beside / "state").mkdir(parents=True)
        return beside.name

    def write() -> None:
        with _one_line(path):
            handler.save(epath.Path(beside / "state"), args=ocp.args.PyTreeSave(state))

    def commit() -> None:
        with _one_line(path):
            handler.finalize(epath.Path(beside / "state"))
            hashes = {str(f.relative_to(beside)): sha256(f) for f in _files(beside)}
        manifest = {"step": step, "belongs_to": dict(belongs_to), "sha256": hashes}
        write_json(beside / "manifest.json", manifest | {"manifest_sha256": _digest(manifest)})
        on_host_0.close()
        for old in steps(folder)[:-keep]:
            remove(folder / str(old))

    # Orbax's handler, not its Checkpointer: there, where one host fails, the others wait for ever.
    with contextlib.closing(handler), on_host_0:
        if name := hosts.first(f"beginning checkpoint {step}", begin):
            beside = folder.absolute() / name
            hosts.each(f"writing checkpoint {step}", write)
            hosts.first(f"committing checkpoint {step}", commit)


def restore(
    folder: Path,
    target: Any,
    belongs_to: Mapping[str, str],
    say: Callable[[str], None],
    set_aside: bool = False,
) -> tuple[Any, int] | None:
    """The newest sound checkpoint and its step, or None where there is no checkpoint at all.

    Args:
      folder: the run's checkpoints folder, which all hosts see; host 0 chooses for all.
      target: the pytree to fill, of jax.ShapeDtypeStruct with shardings; a part of what was saved
        (only {"params": ...}) is enough.
      belongs_to: the fingerprints it must have been saved with.
      say: is told of every checkpoint that is damaged and passed over.
      set_aside: rename damaged ones to <step>.damaged, for the process that holds the run.

    Raises:
      UserError: it belongs to other features, another tokenizer or another model.
      RunError: there are checkpoints, and none is sound.
    """

    def newest_sound() -> int | None:
        all_steps = steps(folder)
        for step in reversed(all_steps):
            path = folder / str(step)
            damage = damage_of(path)
            if damage:
                say(f"WARNING: checkpoint {path} is damaged ({damage}); using the one before it")
                if set_aside:
                    path.rename(_free_name(path.with_name(f"{step}.damaged")))
                continue
            saved_with = read_json(path / "manifest.json")["belongs_to"]
            for what, fingerprint in belongs_to.items():
                if saved_with.get(what) != fingerprint:
                    raise UserError(
                        f"{path} was saved with another {what} than this run folder now holds; "
                        f"bring back the {what} it was trained with, or start in another --run"
                    )
            return step
        if all_steps:
            raise RunError(
                f"{folder} holds no sound checkpoint; move it away to train from the start"
            )
        return None

    step = hosts.first("choosing a checkpoint", newest_sound)
    if step is None:
        return None
    arguments = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    state = folder.absolute() / str(step) / "state"
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        return handler.restore(epath.Path(state), args=arguments), step


def steps(folder: Path) -> list[int]:
    """The steps of the committed checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def shapes(tree: Any, shardings: Any) -> Any:
    """`tree` as jax.ShapeDtypeStruct with shardings: the target of `restore`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def parameters_sha256(params: Any) -> str:
    """The fingerprint of a model: SHA-256 over every parameter's path, shape, type and bytes.

    Where the parameters are split over hosts, all hosts call it, and each sees one parameter whole
    at a time.
    """
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in sorted(((path_of(k), leaf) for k, leaf in leaves), key=lambda pair: pair[0]):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
        digest.update(f"{path} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What fails here becomes a RunError, whoever's error it is."""
    try:
        yield
    except Exception as error:  # tensorstore reports a full disk as a ValueError
        code = re.search(r"os_error_code='(\d+)'", str(error))
        first_line = str(error).partition("\n")[0]
        reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", "") or first_line
        raise RunError(
            f"cannot write {path}: {reason}; nothing that was there is changed"
        ) from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def damage_of(path: Path) -> str:
    """What is wrong with a checkpoint, in words; nothing where it is sound."""
    try:
        manifest = read_json(path / "manifest.json")
        if manifest.pop("manifest_sha256") != _digest(manifest):
            return "the SHA-256 of manifest.json differs"
        hashes = manifest["sha256"]
        found = {str(f.relative_to(path)) for f in _files(path)} - {"manifest.json"}
        for name in sorted(hashes.keys() | found):
            if name not in found:
                return f"{name} is missing"
            if name in hashes and sha256(path / name) != hashes[name]:
                return f"the SHA-256 of {name} differs"
            if name not in hashes and not Path(name).name.startswith("."):  # Finder's .DS_Store
                return f"{name} does not belong to it"
    except (UserError, OSError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read: {error}"
    return ""


def _free_name(path: Path) -> Path:
    numbered = (path.with_name(f"{path.name}.{n}") for n in range(1, 1_000_000))
    return path if not path.exists() else next(p for p in numbered if not p.exists())
