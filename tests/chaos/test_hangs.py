"""A hang ends by the watchdog: exit code 1, with the stacks of all threads on stderr."""

import signal
import time

import pytest
from trainer import TINY, two

WATCHDOG = 5  # seconds
ASKED = WATCHDOG + 5  # at most from the hang to the exit
# Steps and nothing else, which are quicker than the watchdog under any load.
ONLY_STEPS = {"steps": 100_000, "eval_every": 100_000, "save_every": 100_000}
WATCHED = TINY | ONLY_STEPS | {"watchdog_seconds": WATCHDOG}
ENDLESS = WATCHED | {"watchdog_seconds": 0}


def test_a_hang_ends_by_the_watchdog(start, text, tmp_path, tell):
    """In a sleep that lets other threads run, and in one that holds Python's lock."""
    control = start(tmp_path / "control", ENDLESS, text, faults=["sleep:21"])
    control.until(lambda: "hangs from" in control.err)  # what it has compiled is in the cache now
    hung = {k: start(tmp_path / k, WATCHED, text, faults=[f"{k}:21"]) for k in ("sleep", "gil")}
    took = {}
    for kind, trainer in hung.items():
        assert trainer.end() == 1, trainer.err
        took[kind] = trainer.ended_at - trainer.told("hangs from")
        assert "Thread 0x" in trainer.err and "in faulty" in trainer.err  # where it hangs
    assert f"no sign of life for {WATCHDOG} s" in hung["sleep"].err  # the other could not say it
    time.sleep(max(0, control.told("hangs from") + ASKED - time.monotonic()))
    assert control.running
    tell(
        f"a hang, with a watchdog of {WATCHDOG} s",
        f"exit code 1 with stacks after {took['sleep']:.1f} s, with Python's lock held "
        f"{took['gil']:.1f} s",
    )
    tell("control: without a watchdog", f"still there {ASKED} s later")
    assert max(took.values()) <= ASKED, took


@pytest.fixture(scope="module")
def compiled(starter, text, tmp_path_factory):
    """What two hosts compile is in the cache: a small watchdog would take that for a hang."""
    with starter() as start:
        pair = two(start, tmp_path_factory.mktemp("pair") / "run", ENDLESS, text)
        pair[0].until(lambda: pair[0].done > 0)


@pytest.mark.parametrize("role", [0, 1])
def test_a_process_that_stands_still_ends_the_other(role, compiled, start, text, tmp_path, tell):
    """SIGSTOP to one of two. If it is the coordinator, JAX may notice before the watchdog does."""
    pair = two(start, tmp_path / "run", WATCHED, text)
    pair[0].until(lambda: pair[0].done >= 8)
    stopped_at = pair[role].send(signal.SIGSTOP)
    other = pair[1 - role]
    code = other.end(60)
    took = other.ended_at - stopped_at
    if code == 1:
        assert "Thread 0x" in other.err
    else:
        assert role == 0 and code == -signal.SIGABRT and "Heartbeat" in other.err, other.err
    assert pair[role].running
    by = "the watchdog, code 1, with stacks" if code == 1 else "JAX's heartbeat, SIGABRT"
    tell(f"SIGSTOP to host {role} of 2", f"the other ends in {took:.1f} s, by {by}")
    assert took <= ASKED
