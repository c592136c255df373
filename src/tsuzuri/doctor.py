"""What this machine has, whether it computes rightly, and what to mend; nothing is changed.

Each check gives lines of a table. The last of them trains two steps, whose numbers are known.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tsuzuri import checkpoint, corpus, devices, features, run_folder, tokenizer
from tsuzuri.data import Batches, Blocks
from tsuzuri.errors import RunError, UserError
from tsuzuri.files import read_json, sha256
from tsuzuri.presets import preset
from tsuzuri.sharding import one_device
from tsuzuri.step import make_training, stack

# What two steps of `_training` give, in float32 on a CPU. In bfloat16, as TPUs multiply, they are
# up to 0.2 % away; an error in the data, a parameter, a gradient or an update takes them further.
KNOWN = {"loss": (5.5364, 4.2149), "gradient_norm": (8.1550, 6.7001)}
TOLERANCE = 0.01

_DEVELOPERS = {"dev", "docs", "peers"}  # extras that nobody else needs
_LITTLE_MEMORY, _LITTLE_DISK, _NO_DISK = 2 << 30, 2 << 30, 100 << 20  # bytes


class Finding(NamedTuple):
    """A line of the table."""

    state: Literal["ok", "warning", "wrong"]
    what: str
    found: str  # and what to do about it


def examine(run: Path | None, cache: Path) -> Iterator[Finding]:
    """All checks, each line as soon as it is known; a check that itself fails is a line too.

    Args:
      run: a run folder to look into as well.
      cache: the folder of JAX's compilation cache.

    Raises:
      UserError: there is no such run folder.
    """
    if run and not (run / "config.json").exists():
        raise UserError(f"{run} is not a run folder: it holds no config.json")
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": _packages,
        "devices": _devices,
        "memory": _memory,
        "run folder": lambda: _folder("run folder", run or Path("runs"), needed=True),
        "cache": lambda: _folder("cache", cache, needed=False),
    }
    if run:
        checks["run"] = lambda: _run(run)
    for name, check in (checks | {"training": _training}).items():
        try:
            yield from check()
        except Exception as error:
            told = str(error)
            if not isinstance(error, UserError | RunError):
                told = f"{type(error).__name__}: {told}"
            mend = "; bring it back from a copy, or train in another --run" if name == "run" else ""
            yield Finding("wrong", name, " ".join(told.split()) + mend)


def _packages() -> Iterator[Finding]:
    """Python and the packages against pyproject's bounds, and which extras are installed."""
    python = ".".join(map(str, sys.version_info[:3]))
    bounds = {"Python": (python, SpecifierSet(metadata("tsuzuri")["Requires-Python"]))}
    extras: dict[str, bool] = {}
    for line in requires("tsuzuri") or []:
        needed = Requirement(line)
        installed = _version(needed.name)
        if needed.marker is None:
            bounds[needed.name] = (installed, needed.specifier)
        for extra in set(metadata("tsuzuri").get_all("Provides-Extra") or []) - _DEVELOPERS:
            if needed.marker and needed.marker.evaluate({"extra": extra}):
                extras[extra] = extras.get(extra, True) and bool(installed)
    wrong = {
        name: f"{name} {found or 'is missing'}, needs {specifier}"
        for name, (found, specifier) in bounds.items()
        if not specifier.contains(found or "0", prereleases=True)
    }
    if wrong:
        needed = " ".join(f"'{name}{bounds[name][1]}'" for name in wrong)
        yield Finding("wrong", "packages", f"{'; '.join(wrong.values())}: pip install {needed}")
    else:
        named = ", ".join(f"{name} {bounds[name][0]}" for name in ("Python", "jax", "flax"))
        yield Finding("ok", "packages", f"{named}, and {len(bounds) - 3} more")
    there, absent = ([e for e in sorted(extras) if extras[e] is had] for had in (True, False))
    lacking = f"; not installed: {', '.join(absent)}" if absent else ""
    yield Finding("ok", "extras", (", ".join(there) or "none") + lacking)


def _devices() -> Iterator[Finding]:
    found = devices.local()
    stats = found[0].memory_stats() or {}
    each = f", {_size(stats['bytes_limit'])} each" if "bytes_limit" in stats else ""
    kind = f"{len(found)} x {found[0].device_kind} ({jax.default_backend()}){each}"
    if jax.default_backend() == "cpu" and (shutil.which("nvidia-smi") or _nvidia()):
        # docs.jax.dev/en/latest/installation.html
        mend = f"pip install 'jax[cuda13]=={version('jax')}' (driver 580 or newer; else cuda12)"
        has_cuda = _version("jax-cuda13-plugin") or _version("jax-cuda12-plugin")
        if has_cuda and (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
            mend = f"unset CUDA_VISIBLE_DEVICES, which is {visible!r}"
        if platforms := os.environ.get("JAX_PLATFORMS"):
            mend = f"unset JAX_PLATFORMS, which is {platforms!r}"
        yield Finding("warning", "devices", f"{kind}, but there is a GPU: {mend}")
    else:
        yield Finding("ok", "devices", kind)


def _nvidia() -> bool:
    """Whether the kernel has a GPU of NVIDIA's."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _memory() -> Iterator[Finding]:
    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    found = f"{_size(free)} free of {_size(total)}, {os.cpu_count()} CPU cores"
    if free < _LITTLE_MEMORY:
        yield Finding("warning", "memory", f"{found}: end other programs, or train a small model")
    else:
        yield Finding("ok", "memory", found)


def _folder(what: str, folder: Path, needed: bool) -> Iterator[Finding]:
    """Whether a folder, or the nearest one above that is there, can be written and has room."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    without = "wrong" if needed else "warning"  # without its cache, JAX compiles at every start
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"tsuzuri")
            file.flush()
    except OSError as error:
        mend = "choose another --run" if needed else "set XDG_CACHE_HOME to a folder of yours"
        yield Finding(without, what, f"{there} cannot be written ({error.strerror}): {mend}")
        return
    free = shutil.disk_usage(there).free
    found = f"{folder} can be written, {_size(free)} free"
    if free < _LITTLE_DISK:
        yield Finding(without if free < _NO_DISK else "warning", what, f"{found}: make room")
    else:
        yield Finding("ok", what, found)


def _run(run: Path) -> Iterator[Finding]:
    """A run folder: its config, tokenizer, features, and checkpoints from the newest down."""
    cfg = run_folder.read_config(run)
    yield Finding("ok", "config", f"{cfg.preset} {cfg.size}, {cfg.steps} steps")
    tok = tokenizer.load(run / "tokenizer")
    yield Finding("ok", "tokenizer", f"{tok.kind}, {tok.vocab_size:,} tokens")
    described = None
    if (run / "features.json").exists():  # an imported model has none
        folder, described = run_folder.features_of(run)
        parts = [file for split in described["splits"].values() for file in split["files"]]
        bad = [f["name"] for f in parts if sha256(folder / f["name"]) != f["sha256"]]
        if bad:
            mend = f"{folder} is damaged ({', '.join(bad)}): restore it, or train in another --run"
            yield Finding("wrong", "features", mend)
        else:
            yield Finding("ok", "features", f"{len(parts)} files, each as it was written")
    belongs_to = run_folder.identity(tok, cfg.resolved_model(tok.vocab_size), described)
    steps = checkpoint.steps(run / "checkpoints")
    if not steps:
        yield Finding("warning", "checkpoints", "none yet: train it first")
    for step in reversed(steps):
        path = run / "checkpoints" / str(step)
        if damage := checkpoint.damage_of(path):
            mend = f"{path} is damaged ({damage}): the one before it will be used, if it is sound"
            yield Finding("wrong", "checkpoint", mend)
            continue
        saved_with = read_json(path / "manifest.json")["belongs_to"]
        if other := [what for what in belongs_to if saved_with.get(what) != belongs_to[what]]:
            yield Finding(
                "wrong",
                "checkpoint",
                f"{path} was saved with another {other[0]}: bring that one back",
            )
        else:
            yield Finding("ok", "checkpoint", f"step {step} is sound; {len(steps)} in all")
        return


def _training() -> Iterator[Finding]:
    """Two steps of a tiny model on the embedded tales, and the same again for their time."""
    devices.local()
    cfg = preset(
        "llama",
        "tiny",
        steps=2,
        batch_size=4,
        sequence_length=64,
        learning_rate=1e-2,
        **{"tokenizer.kind": "bytes"},
    )
    tok = tokenizer.load("bytes")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "features"

        def tales() -> Iterator[corpus.Document]:
            return corpus.named("tales").documents(say=_unheard, count=200)

        features.featurize(
            tales, tok, folder, cfg.sequence_length, cfg.features, cfg.seed, {}, _unheard, False
        )
        blocks = Blocks.open(folder, "train", tok, _unheard)
        batches = stack(Batches(blocks, cfg.batch_size, cfg.seed), 0, 2, 1, one_device())
    _, init, train_steps = make_training(cfg, cfg.resolved_model(tok.vocab_size), one_device())
    state, metrics = train_steps(init(jax.random.key(cfg.seed)), batches)
    found = {name: np.asarray(metrics[name]) for name in KNOWN}
    began = time.monotonic()
    jax.block_until_ready(train_steps(state, batches))
    each = (time.monotonic() - began) / 2
    numbers = "; ".join(
        f"{name.replace('_', ' ')} {', '.join(f'{value:.4f}' for value in values)}"
        for name, values in found.items()
    )
    if all(np.allclose(found[name], KNOWN[name], rtol=TOLERANCE, atol=0) for name in KNOWN):
        yield Finding("ok", "training", f"{numbers}, as they must be; {1000 * each:.0f} ms a step")
    else:
        known = "; ".join(f"{name.replace('_', ' ')} {KNOWN[name]}" for name in KNOWN)
        yield Finding(
            "wrong",
            "training",
            f"THIS MACHINE COMPUTES WRONGLY: {numbers}, where it must be {known}: train nothing "
            "here before another version of jax, or another device, computes rightly",
        )


def _version(package: str) -> str:
    """The version that is installed; nothing where none is."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _size(number: float) -> str:
    return f"{number / 2**30:.1f} GiB"


def _unheard(message: str) -> None:
    """What the small training says, nobody needs to hear."""
