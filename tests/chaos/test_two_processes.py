"""Two processes with two devices each: any exit ends all, and all are started again."""

import signal

import pytest
from trainer import TINY, saved, two

from tsuzuri.track import read_jsonl

PAIR = TINY | {"steps": 128}
# Which host, by what; the coordinator is host 0.
FAULTS = (
    (0, signal.SIGKILL),
    (1, signal.SIGKILL),
    (1, signal.SIGTERM),
    (1, signal.SIGKILL),
    (0, signal.SIGKILL),
    (0, signal.SIGTERM),
    (1, signal.SIGKILL),
)
ASKED_DOWN, ASKED_STOP = 20, 10  # seconds at most


@pytest.fixture(scope="module")
def alone(starter, text, tmp_path_factory):
    """The parameters' SHA-256 of an undisturbed run of the two."""
    with starter() as start:
        pair = two(start, tmp_path_factory.mktemp("pair") / "run", PAIR, text)
        assert [trainer.end() for trainer in pair] == [0, 0], pair[0].err + pair[1].err
    return pair[0].sha256


def test_kills_and_stops_in_both_roles_change_no_bit(start, text, alone, tmp_path, tell):
    run, restored, down, stops = tmp_path / "run", [], [], []
    ended_at = None
    for host, fault in FAULTS:
        pair = two(start, run, PAIR, text)
        first_step = pair[0].until(lambda p=pair: p[0].done > 0)
        restored.append(pair[0].start)
        if ended_at:
            down.append(first_step - ended_at)
        pair[0].until(lambda p=pair: p[0].done >= 12)
        sent = pair[host].send(fault)
        if fault == signal.SIGKILL:
            ended_at = sent
            pair[1 - host].close()  # as Slurm and JobSet do: any exit ends all
        else:
            assert [trainer.end() for trainer in pair] == [42, 42], pair[0].err + pair[1].err
            stops.append(max(trainer.ended_at for trainer in pair) - sent)
            assert f"saved at step {saved(run)[-1]};" in pair[0].err
            assert read_jsonl(run / "metrics.jsonl")[-1]["step"] <= saved(run)[-1]
            ended_at = None
    pair = two(start, run, PAIR, text)
    down.append(pair[0].until(lambda: pair[0].done > 0) - ended_at)
    assert [trainer.end() for trainer in pair] == [0, 0], pair[0].err + pair[1].err
    restored.append(pair[0].start)
    assert pair[0].sha256 == alone
    kills = sum(fault == signal.SIGKILL for _, fault in FAULTS)
    tell("2 processes, both roles: kills", f"{kills}, restored at steps {restored}")
    tell("... final parameters", f"equal to the bit ({alone[:16]}...)")
    tell("... down, from kill to new step, seconds", ", ".join(f"{s:.1f}" for s in down))
    tell(
        "... SIGTERM to host 1, then to host 0",
        "both save the same step and exit with 42 in "
        + " and ".join(f"{s:.1f}" for s in stops)
        + " s",
    )
    assert max(down) <= ASKED_DOWN and max(stops) <= ASKED_STOP


def test_control_another_seed_is_told_apart(start, text, alone, tmp_path, tell):
    pair = two(start, tmp_path / "run", PAIR | {"seed": 1}, text)
    assert [trainer.end() for trainer in pair] == [0, 0]
    assert pair[0].sha256 and pair[0].sha256 != alone
    tell("control: another seed", "other parameters")


@pytest.mark.parametrize("host", [0, 1])
def test_without_a_supervisor_the_other_ends_by_itself(host, start, text, tmp_path, tell):
    pair = two(start, tmp_path / "run", PAIR | {"steps": 100_000}, text)
    pair[0].until(lambda: pair[0].done >= 12)
    killed_at = pair[host].send(signal.SIGKILL)
    assert pair[1 - host].end(60) not in (0, 42)
    took = pair[1 - host].ended_at - killed_at
    tell(f"kill -9 of host {host}, nobody there", f"the other ends by itself in {took:.1f} s")
    assert took <= ASKED_DOWN
