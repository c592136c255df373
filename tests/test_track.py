"""Trackers: a resumed run has each step once, and a killed one is read all the same."""

import gc
import json
import math
import os
import re
import struct
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from tsuzuri import track, verbs
from tsuzuri.errors import UserError
from tsuzuri.features.packing import Packing
from tsuzuri.features.parquet import describe
from tsuzuri.files import write_json
from tsuzuri.plots import loss_plot
from tsuzuri.presets import preset
from tsuzuri.run_folder import draw_loss, write_config
from tsuzuri.tokenizer import ByteTokenizer
from tsuzuri.track import Console, Goodput, Jsonl, Log, duration, read_jsonl
from tsuzuri.train import train


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


def test_a_text_with_other_line_ends_than_ours_is_read_back(tmp_path):
    text = "綴り\u2028段落\u2029次\x85行\x0b\x0c\x1c\x1d\x1e\r終\n"
    written = Jsonl(tmp_path / "samples.jsonl", 0)
    written.log(1, {"text": text})
    written.log(2, {"text": text})
    written.close()
    Jsonl(tmp_path / "samples.jsonl", 1).close()
    assert read_jsonl(tmp_path / "samples.jsonl") == [{"step": 1, "text": text}]


def test_the_console_tells_what_is_known(capsys):
    console = Console(100)
    console.log(10, {"loss": 2.5})
    console.log(50, {"held_out_loss": 1.25, "tokens_per_second": 12345.6, "mfu": 0.5})
    said = capsys.readouterr().err
    assert "step 50/100  loss 2.5000  held-out 1.2500  12,346 tokens/s  MFU 50.0%  ETA" in said
    Console(100, show=False).log(1, {"held_out_loss": 1.0})
    assert not capsys.readouterr().err


@pytest.mark.parametrize("tell", [Console(9).say, verbs.say])
def test_a_message_stands_above_a_progress_bar(tell, capfd):
    with tqdm(total=9):
        tell("the message")
    assert "\rthe message\n" in capfd.readouterr().err


def test_tensorboard_reads_what_is_written(tmp_path):
    log = Log(tmp_path, 0, Console(10, show=False))
    log(5, {"loss": 1.5, "skipped": True, "held_out_perplexity": 1e300})
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
    assert scalars["loss"] == (5, 1.5) and scalars["held_out_perplexity"] == (5, math.inf)
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
    loss_plot(lines, tmp_path / "b.png", title="坊っちゃん $1_^$")  # a run may have any name
    with pytest.raises(UserError, match="no metrics yet"):
        draw_loss(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    splits = {"held_out": {"entropy_bits": None, "tokens": 5}}
    packing, tokenizer = Packing("concat", 4, 4, 1, 0, 0, 0), ByteTokenizer()
    write_json(tmp_path / "features.json", describe(packing, tokenizer, 0, 0.1, {}, splits))
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


@pytest.fixture
def wandb_in(tmp_path, monkeypatch):
    """W&B by itself: no settings or passwords of this machine's, and no network."""
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # refuses
    for kind in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "of-wandb"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield monkeypatch.setenv
    wandb.teardown()
    for helper in helpers_of_wandb():  # W&B does not wait for one that it has lost
        helper.wait(10)


def helpers_of_wandb() -> list[subprocess.Popen]:
    """The processes that W&B has started here and has not waited for."""
    processes = [item for item in gc.get_objects() if type(item) is subprocess.Popen]
    return [p for p in processes if p.returncode is None and "wandb" in str(p.args)]


def _records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: W&B's own messages, in LevelDB's log format after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
        if not kind or -at % 32768 < 7:  # a block's last bytes hold nothing
            at += -at % 32768
            continue
        record += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def _at_wandb(run: Path) -> tuple[list[Any], list[dict[str, Any]]]:
    """What each start of a run told W&B of the run itself, and the lines of all of them."""
    import wandb

    wandb.teardown()  # it waits for the process that writes the files
    runs, lines = [], []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in _records(file):
            if record.HasField("run"):
                runs.append(record.run)
            elif record.HasField("history"):
                items = record.history.item
                lines.append({"/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return runs, lines


def test_wandb_has_the_numbers_of_all_starts_as_one_run(tmp_path, wandb_in, capfd):
    wandb_in("WANDB_MODE", "offline")
    run = tmp_path / "book"
    run.mkdir()
    log = Log(run, 0, Console(9, show=False), wandb={"seed": 7, "model.num_layers": 4})
    log(10, {"loss": 2.5, "time": 1.0, "seconds": {"training": 1.5}, "blocks": [1, 2]})
    log(20, {"loss": 2.0, "skipped": True})
    log(20, {"held_out_loss": float("nan")})
    log.sample(20, "綴", "り\u2028")
    log.close()
    import wandb

    wandb.teardown()
    time.sleep(1)  # the names of the folders hold seconds: another start, another second
    id = (run / "wandb" / "id").read_text()
    wandb_in("WANDB_PROJECT", "tales")
    log = Log(run, 10, Console(9), wandb={"seed": 7})
    log(20, {"loss": 1.0})  # done again
    log.close()
    runs, lines = _at_wandb(run)
    assert {r.run_id for r in runs} == {id} and all(r.resume for r in runs)
    assert [r.project for r in runs] == ["tsuzuri", "tales"]
    assert {r.display_name for r in runs} == {"book"}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert (config["seed"], config["model.num_layers"]) == (7, 4)
    assert [(line["step"], line.get("loss")) for line in lines] == [
        (10, 2.5), (20, 2.0), (20, None), (20, None), (20, 1.0)
    ]  # fmt: skip
    assert lines[0]["seconds/training"] == 1.5
    assert (lines[3]["prompt"], lines[3]["text"]) == ("綴", "り\u2028")
    said = capfd.readouterr()
    assert said.out == "" and said.err.splitlines()[0].startswith("W&B: ")
    assert len(said.err.splitlines()) == 2  # where it is, and Console's line


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("WANDB_MODE", "online", ["No API key configured.*; recording offline", "W&B: .*sync"]),
        ("WANDB_MODE", "sometimes", ["WARNING: W&B: .*'sometimes'.*; going on without it"]),
        ("WANDB_DIR", "/proc", ["recording offline", "WARNING: W&B: .*; going on without it|sync"]),
    ],
)
def test_wandb_that_cannot_start_is_told_in_a_line(
    tmp_path, wandb_in, capfd, variable, value, told
):
    wandb_in(variable, value)
    log = Log(tmp_path, 0, Console(9), wandb={"seed": 7})
    said = capfd.readouterr().err.splitlines()
    log(1, {"loss": 1.0})
    log.close()
    assert len(said) == len(told), said
    for line, pattern in zip(said, told, strict=True):
        assert re.search(pattern, line), line
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["loss"] == 1.0


def test_wandb_that_dies_is_told_in_a_line(tmp_path, wandb_in, capfd):
    wandb_in("WANDB_MODE", "offline")
    log = Log(tmp_path, 0, Console(9, show=True), wandb={"seed": 7})
    for helper in helpers_of_wandb():
        helper.kill()
        helper.wait()
    for step in range(1, 9):
        log(step, {"loss": 1.0})
    log.close()
    said = capfd.readouterr().err
    assert said.count("WARNING: W&B: ") == 1 and "going on without it" in said
    assert "Traceback" not in said
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 8


def test_training_is_the_same_where_the_network_refuses(tmp_path, wandb_in, capfd):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n}番目の綴り。\n" for n in range(400)), encoding="utf-8")
    small = {"tokenizer.kind": "bytes", "model.num_layers": 1, "model.embed_dim": 16}
    small |= {"batch_size": 2, "sequence_length": 32, "log_every": 1, "sample_every": 0}
    alone = train(preset("llama", steps=3, **small), tmp_path / "a", [str(text)], progress=False)
    wandb_in("WANDB_API_KEY", "x" * 40)
    wandb_in("WANDB_INIT_TIMEOUT", "3")
    cfg = preset("llama", steps=3, track="wandb", **small)
    followed = train(cfg, tmp_path / "b", [str(text)], progress=False)
    assert followed["parameters_sha256"] == alone["parameters_sha256"]
    losses = [
        line["loss"] for line in read_jsonl(tmp_path / "b" / "metrics.jsonl") if "loss" in line
    ]
    runs, lines = _at_wandb(tmp_path / "b")
    assert [line["loss"] for line in lines if "loss" in line] == losses
    assert lines[-1]["held_out_loss"] == followed["loss"]
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert (config["track"], config["steps"]) == ("wandb", 3)
    told: list[str] = []
    write_config(tmp_path / "a", cfg, told.append)  # a run that began without W&B goes on with it
    assert told == ["track: files -> wandb"]


def test_wandb_that_is_not_installed_is_told_before_anything_is_done(tmp_path, monkeypatch):
    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(track, "version", absent)
    with pytest.raises(UserError, match=r"pip install 'tsuzuri\[wandb\]'"):
        train(preset("llama", track="wandb"), tmp_path / "run", ["pyproject.toml"], progress=False)
    assert not list((tmp_path / "run").glob("[a-z]*"))
