"""SIGTERM: saved, exit code 42, and the run goes on as if nothing had been."""

import signal

from trainer import TINY, saved

# Where it comes: inside by faulty.py's audit events, the others seen from outside.
PLACES = (
    "term:open */jit_init*",  # while it compiles
    "term:open */jit_train_steps*",
    "term:os.rename */checkpoints/[0-9]*",  # a checkpoint is written, but without its name
    "steps",
    "saving",
)
ASKED = 10  # seconds at most from SIGTERM to the exit


def test_sigterm_saves_and_exits_with_42(start, text, undisturbed, tmp_path, tell):
    run, took, stopped_at = tmp_path / "run", {}, []
    for place in PLACES:
        trainer = start(run, TINY, text, faults=[place] if ":" in place else [])
        if place == "steps":
            trainer.until(lambda t=trainer: t.done >= 30)
        elif place == "saving":
            trainer.until(lambda t=trainer: t.done and t.saving)
        sent = trainer.send(signal.SIGTERM) if ":" not in place else 0
        assert trainer.end() == 42, (place, trainer.err)
        took[place] = trainer.ended_at - (sent or trainer.told("signal at"))
        stopped_at.append(saved(run)[-1])
        assert trainer.complaints[-1].endswith(f"saved at step {stopped_at[-1]}; the same command "
                                               "goes on from there")  # fmt: skip
        assert trainer.step in (-1, stopped_at[-1])  # no step after the one that is saved
    last = start(run, TINY, text)
    assert last.end() == 0 and last.sha256 == undisturbed[1]
    tell("SIGTERM to saved exit 42, seconds", ", ".join(f"{s:.1f}" for s in took.values()))
    tell("... saved at steps", f"{stopped_at}; the end is equal to the bit")
    assert max(took.values()) <= ASKED


def test_control_without_a_handler_nothing_is_saved(start, text, tmp_path, tell):
    endless = TINY | {"steps": 100_000, "save_every": 10_000}
    trainer = start(tmp_path / "run", endless, text, faults=["deaf:"])
    trainer.until(lambda: trainer.done >= 30)
    trainer.send(signal.SIGTERM)
    assert trainer.end() == -signal.SIGTERM
    assert not saved(trainer.run)
    tell("control: SIGTERM without a handler", f"no code 42; {trainer.done} steps lost")
