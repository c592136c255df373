"""Trackers: a resumed run has each step once, and a killed one is read all the same."""

import json

import pytest

from tsuzuri.errors import UserError
from tsuzuri.files import write_json
from tsuzuri.plots import loss_plot
from tsuzuri.run_folder import draw_loss
from tsuzuri.track import Console, Goodput, Jsonl, Log, duration, read_jsonl


def test_what_will_be_done_again_is_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = Jsonl(path, 0)
    for step in (10, 20, 30):
        first.log(step, {"loss": step / 10, "text": "綴"})
    first.close()
    again = Jsonl(path, 20)
    again.log(30, {"loss": 9.0})
    again.close()
    assert [(line["step"], line["loss"]) for line in read_jsonl(path)] == [
        (10, 1),
        (20, 2),
        (30, 9),
    ]
    assert "綴" in path.read_text(encoding="utf-8")


def test_a_line_cut_short_by_a_kill_is_left_out_and_damage_is_not(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_jsonl(path) == [{"step": 1}]
    Jsonl(path, 5).close()
    assert path.read_text() == '{"step": 1}\n'
    path.write_text('{"step": 1, "lo\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"m\.jsonl:1"):
        read_jsonl(path)


def test_the_console_tells_what_is_known(capsys):
    console = Console(100)
    console.log(10, {"loss": 2.5})
    console.log(50, {"held_out_loss": 1.25, "tokens_per_second": 12345.6, "mfu": 0.5})
    said = capsys.readouterr().err
    assert "step 50/100  loss 2.5000  held-out 1.2500  12,346 tokens/s  MFU 50.0%  ETA" in said
    Console(100, show=False).log(1, {"held_out_loss": 1.0})
    assert not capsys.readouterr().err


def test_tensorboard_reads_what_is_written(tmp_path):
    log = Log(tmp_path, 0, Console(10, show=False))
    log(5, {"loss": 1.5, "skipped": True})
    log.sample(5, "綴", "り")
    log.close()
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    raw = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    events, at = [], 0
    while at < len(raw):  # TFRecord: length (8 bytes), its CRC (4), the record, its CRC (4)
        length = int.from_bytes(raw[at : at + 8], "little")
        event = raw[at + 12 : at + 12 + length]
        events.append(Event.FromString(event))
        assert raw[at + 8 : at + 12] == masked_crc32c(raw[at : at + 8]).to_bytes(4, "little")
        assert raw[at + 12 + length : at + 16 + length] == masked_crc32c(event).to_bytes(
            4, "little"
        )
        at += 16 + length
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (1, 1)  # purges from step 1
    scalars = {v.tag: (e.step, v.simple_value) for e in events for v in e.summary.value}
    assert scalars["loss"] == (5, 1.5)
    assert read_jsonl(tmp_path / "samples.jsonl") == [{"step": 5, "prompt": "綴", "text": "り"}]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (93.2, "1:33"), (3599.7, "1:00:00"), (90061, "25:01:01")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_the_plot_is_a_picture_and_says_when_there_is_nothing(tmp_path):
    lines = [{"step": s, "loss": 5 - s / 10, "tokens": s * 100} for s in (10, 20)]
    loss_plot([*lines, {"step": 20, "held_out_loss": 3.5}], tmp_path / "a" / "l.png", "t", 2.0)
    assert (tmp_path / "a" / "l.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no metrics yet"):
        draw_loss(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    split = {"held_out": {"entropy_bits": None, "tokens": 5}}
    write_json(tmp_path / "features.json", {"splits": split})
    assert draw_loss(tmp_path).exists()


def test_goodput_counts_every_second_over_all_starts(tmp_path, monkeypatch):
    clock = {"monotonic": 0.0, "time": 1000.0}
    for name in clock:
        monkeypatch.setattr(f"tsuzuri.track.time.{name}", lambda name=name: clock[name])

    def passes(seconds: float) -> None:
        for name in clock:
            clock[name] += seconds

    first = Goodput([], 0)
    passes(2)
    first.now("training")
    passes(6)
    line = {"step": 10} | first.figures()
    assert line["goodput"] == 0.75 and line["seconds"] == {"starting": 2, "training": 6}
    passes(4)  # steps that were lost, and the time until someone came
    again = Goodput([line, line | {"step": 20}], resumed_at=10)
    passes(1)
    again.now("training")
    passes(2)
    again.now("saving")
    passes(1)
    found = again.figures()
    assert found["seconds"] == {"starting": 3, "training": 8, "lost": 4, "saving": 1}
    assert found["goodput"] == 0.5
