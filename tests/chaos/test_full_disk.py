"""A full disk: what was saved stays whole, the error is a line, and with room the run goes on."""

import contextlib
import os
import subprocess

import pytest
from trainer import TINY, saved

from tsuzuri.checkpoint import damage_of

KEEP = TINY | {"keep_checkpoints": 100}  # 30 checkpoints of 200 kB
ASKED = 5  # lines of error at most


@pytest.fixture
def small_disk(tmp_path):
    """A folder of 3 MB, and a function that makes it 60 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    more = ["mount", "-o", "remount,size=60m", str(tmp_path)]
    yield tmp_path, lambda: subprocess.run(more, check=True)
    subprocess.run(["umount", str(tmp_path)], check=True)


def _fill(folder):
    """Another program takes all the room that is left."""
    with (folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


@pytest.mark.parametrize("when", ["before training", "between two checkpoints", "by checkpoints"])
def test_a_full_disk_costs_nothing_that_was_saved(when, start, text, undisturbed, small_disk, tell):
    folder, make_room = small_disk
    run = folder / "run"
    trainer = start(run, KEEP, text, logs=undisturbed[0].parent)
    if when == "before training":
        _fill(folder)
    elif when == "between two checkpoints":
        trainer.until(lambda: trainer.done >= 20 and not trainer.saving)
        _fill(folder)
    assert trainer.end() == 1, trainer.err
    assert "No space left on device" in trainer.complaints[-1]
    assert len(trainer.complaints) <= ASKED, trainer.err
    kept = saved(run)
    assert kept == list(range(8, 8 * len(kept) + 1, 8))
    assert not any(damage_of(run / "checkpoints" / str(step)) for step in kept)
    assert not list(run.rglob(".*.partial"))
    make_room()
    again = start(run, KEEP, text, logs=undisturbed[0].parent)
    assert again.end() == 0 and again.sha256 == undisturbed[1], again.err
    assert again.start == max(kept, default=0)
    tell(
        f"disk full {when}",
        f"exit code 1, {len(trainer.complaints)} line; {len(kept)} older checkpoints whole; "
        f"with room it goes on from step {again.start} to the same parameters",
    )
