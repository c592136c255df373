"""kill -9 of one process, at 20 places of a run."""

import random
import shutil
import signal
import statistics
import time

from faulty import changed
from trainer import TINY

from tsuzuri.data import Batches
from tsuzuri.presets import preset
from tsuzuri.track import read_jsonl
from tsuzuri.train import train

# Places that pass too fast to be seen from outside: the process kills itself there, by the audit
# events of faulty.py. The run goes through them in this order.
BEFORE_TRAINING = (
    "kill:os.rename */tokenizer",  # written, but without its name
    "kill:os.rename */tokenizer/inputs.json",  # there, but nothing says what it was made of
    "kill:os.rename */features",  # Parquet written, but without its name
    "kill:open */decoded/.held_out*",  # one of two splits decoded
    "kill:open */jit_train_steps*",  # while it compiles
    "kill:os.rename */checkpoints/8",  # the first checkpoint is written, but without its name
)
WHILE_TRAINING = (
    "kill:os.rename */checkpoints/[0-9]* > open */checkpoints",  # named, but not flushed
    "kill:os.rename */checkpoints/[0-9]* > os.rename */manifest.json",  # the next one's
    "kill:shutil.rmtree */checkpoints/[0-9]* > os.rmdir state",  # an old one is half removed
    "kill:os.rename */metrics.jsonl",  # what will be done again is being taken out
    "kill:shutil.rmtree */checkpoints/[0-9]* > os.remove manifest.json",
)
FROM_OUTSIDE = 8


def test_twenty_kills_change_no_bit(start, text, undisturbed, tmp_path, tell):
    run, chance = tmp_path / "run", random.Random(0)
    places = list(BEFORE_TRAINING)
    rest = [*WHILE_TRAINING, *["progress"] * (FROM_OUTSIDE - 3), *["saving"] * 3]
    chance.shuffle(rest)
    places += [*rest, "kill:os.rename */plots/loss.png"]  # at last, all steps are done
    assert len(places) == 20

    restored, down, killed_at = [], [], None
    for place in places:
        inside = place.startswith("kill:")
        trainer = start(run, TINY, text, faults=[place] if inside else [])
        seen = trainer.until(lambda t=trainer: t.done or not t.running)
        if killed_at and trainer.done:
            down.append(seen - killed_at)
        if place == "progress":
            more = chance.randrange(10, 18)  # past the next checkpoint, so that it is another step
            trainer.until(lambda t=trainer, n=more: t.done >= n)
        elif place == "saving":
            trainer.until(lambda t=trainer: t.done >= 10 and t.saving)
        if not inside:
            trainer.send(signal.SIGKILL)
        assert trainer.end() == -signal.SIGKILL, (place, trainer.err)
        killed_at = time.monotonic()
        restored += [trainer.start] if trainer.start is not None else []
    last = start(run, TINY, text)
    assert last.end() == 0, last.err
    restored.append(last.start)

    assert last.sha256 == undisturbed[1]
    assert not list(run.rglob(".*.partial"))
    ours, theirs = (read_jsonl(folder / "metrics.jsonl") for folder in (run, undisturbed[0]))
    for name in ("step", "loss", "held_out_loss"):
        assert [line.get(name) for line in ours] == [line.get(name) for line in theirs]
    assert len(set(restored)) >= 10, restored
    goodput, undisturbed_goodput = ours[-1]["seconds"], theirs[-1]["seconds"]
    assert goodput["lost"] > 0 and "lost" not in undisturbed_goodput
    tell("kill -9 of one process: kills", len(places))
    tell("... restored at distinct steps", f"{len(set(restored))}: {sorted(set(restored))}")
    tell("... final parameters", f"equal to the bit ({last.sha256[:16]}...)")
    tell(
        "... kill to the next new step",
        f"median {statistics.median(down):.1f} s, at most {max(down):.1f} s",
    )


def test_control_other_parameters_are_told_apart(undisturbed, text, tmp_path, monkeypatch, tell):
    """A resumed run that is given one batch too few, and a run of another seed."""
    resumed = shutil.copytree(undisturbed[0], tmp_path / "run")
    shutil.rmtree(resumed / "checkpoints" / "240")
    cfg = preset("llama", **TINY)
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "batch", changed(Batches.batch, "skip", "232"))
        skipping = train(cfg, resumed, progress=False)["parameters_sha256"]
    other = preset("llama", **TINY | {"seed": 1})
    seeded = train(other, tmp_path / "seeded", [text], progress=False)["parameters_sha256"]
    assert len({undisturbed[1], skipping, seeded}) == 3
    tell("control: one batch left out; another seed", "other parameters, both")
