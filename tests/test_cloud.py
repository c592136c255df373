"""Run folders in buckets: fsspec's memory:// for the faults, gcsfs with a server for real."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import tsuzuri
from tsuzuri import checkpoint, files, storage
from tsuzuri.cloud import fetched, opened
from tsuzuri.errors import RunError, UserError
from tsuzuri.presets import preset
from tsuzuri.storage import Storage
from tsuzuri.track import read_jsonl
from tsuzuri.train import Stopped, train

URL = "memory://bucket/runs/book"
BELONGS_TO = {"model": "m"}
TINY = {
    "tokenizer.kind": "bytes",
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.embed_dim": 16,
    "model.dropout": 0.1,  # so that resuming has to find the dropout key too
    "sequence_length": 32,
    "batch_size": 4,
    "steps": 12,
    "steps_per_call": 2,
    "log_every": 2,
    "eval_every": 4,
    "save_every": 4,
    "keep_checkpoints": 2,
    "sample_every": 0,
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n}番目の綴りは{n * n}。\n" for n in range(300)), encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def patience(monkeypatch, tmp_path):
    """A cache, and so a disk, of the test's own; and nothing is waited for long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(storage, "WAITS", (0, 0))
    yield tmp_path / "cache"
    MemoryFileSystem.store.clear()


def say_nothing(line: str) -> None: ...


def save(run: Path, step: int) -> None:
    state = {"step": np.int32(step), "params": np.arange(100_000, dtype=np.float32) + step}
    checkpoint.save(run / "checkpoints", step, state, BELONGS_TO, keep=2)


def begin(run: Path) -> None:
    """What stands in a run folder before the first step."""
    files.write_json(run / "config.json", {"keep_checkpoints": 2})
    files.write_json(run / "features.json", {"folder": "features"})
    files.write_text(run / "tokenizer" / "日本語.txt", "綴り")
    files.write_text(run / "features" / "train-0.parquet", "rows")
    files.write_text(run / "features" / "decoded" / "train.npy", "rows")
    files.write_text(run / "metrics.jsonl", '{"step": 0}\n')


@contextlib.contextmanager
def training(say=say_nothing):
    with opened(URL, say) as (run, bucket):
        if not (run / "config.json").exists():
            begin(run)
        assert bucket is not None
        yield run, bucket


def trained(*steps: int) -> None:
    with training() as (run, bucket):
        for step in steps:
            save(run, step)
            bucket.send()


def there() -> list[str]:
    """All names in the bucket."""
    found = MemoryFileSystem().find("/bucket/runs/book")
    return [name.removeprefix("/bucket/runs/book/") for name in found]


def newest(run: Path) -> int:
    """The step that restoring from a folder gives; its content is checked."""
    target = {"params": np.zeros(100_000, np.float32)}
    found = checkpoint.restore(run / "checkpoints", target, BELONGS_TO, say_nothing)
    assert found is not None
    np.testing.assert_array_equal(found[0]["params"], np.arange(100_000) + found[1])
    return found[1]


def lose_the_disk() -> None:
    shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"]))


class Faults:
    """Lets a method of the storage work so many times, and then no more."""

    def __init__(self, monkeypatch, method: str, works: int):
        self.works, self.error = works, OSError("the network is gone")
        real = getattr(MemoryFileSystem, method)

        def faulty(*arguments, **options):
            self.works -= 1
            if self.works < 0:
                raise self.error
            return real(*arguments, **options)

        monkeypatch.setattr(MemoryFileSystem, method, faulty)


def test_a_folder_is_left_alone(tmp_path):
    with opened(str(tmp_path / "run"), say_nothing) as (run, bucket):
        assert run == tmp_path / "run" and bucket is None and not run.exists()
    assert fetched(run, say_nothing) == run


def test_all_that_is_needed_comes_back_when_the_disk_is_lost():
    with training() as (run, bucket):
        save(run, 10)
        bucket.send()
        files.write_text(run / "tensorboard" / "events", "e")
        files.write_text(run / "metrics.jsonl", '{"step": 0}\n{"step": 10}\n')
        before = {
            path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()
        }
    assert "tensorboard/events" in there() and "features/decoded/train.npy" not in there()
    assert not [name for name in there() if name.startswith(".")]
    lose_the_disk()
    with training() as (again, _):
        assert again == run and newest(again) == 10
        found = {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}
        not_needed = {Path("tensorboard/events"), Path("features/decoded/train.npy")}
        assert found.keys() == before.keys() - not_needed
        of_both = found.keys() - {Path(".bucket.json")}
        assert all(found[name] == before[name] for name in of_both)


def test_only_what_has_changed_is_sent_and_only_what_is_missing_is_fetched(monkeypatch):
    trained(10)
    sent = Faults(monkeypatch, "put_file", 1000)
    got = Faults(monkeypatch, "get_file", 1000)
    with training() as (run, _):
        files.write_text(run / "metrics.jsonl", "{}\n")
    assert (sent.works, got.works) == (999, 1000)
    assert fetched(URL, say_nothing) != run  # a reader never touches the trainer's copy
    fetched_files, got.works = 1000 - got.works, 1000
    assert newest(fetched(URL, say_nothing)) == 10
    assert fetched_files > 5 and got.works == 1000


def test_an_upload_that_is_cut_anywhere_does_not_count(monkeypatch):
    trained(10)
    with training() as (run, bucket):
        save(run, 20)
        for works in range(1000):
            with monkeypatch.context() as patch:
                Faults(patch, "put_file", works)
                with contextlib.suppress(RunError):
                    bucket.send()
                    break
            reader = fetched(URL, say_nothing)
            assert newest(reader) == 10
        assert works > 5
    assert newest(fetched(URL, say_nothing)) == 20


def test_an_upload_that_was_cut_is_made_good_from_another_disk(monkeypatch):
    trained(10)
    with pytest.raises(RunError, match="lacks checkpoint 20"), training() as (run, _):
        save(run, 20)
        Faults(monkeypatch, "put_file", 3)
    assert [name for name in there() if name.startswith("checkpoints/20")]
    monkeypatch.undo()
    monkeypatch.setattr(files, "LEASE_SECONDS", 0.6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(run.parents[4] / "other"))
    with training() as (run, _):
        assert newest(run) == 10
        save(run, 20)  # Orbax gives other names to the same content
    assert newest(fetched(URL, say_nothing)) == 20


def test_a_flipped_byte_in_the_bucket_is_found_and_the_one_before_is_used():
    trained(10, 20)
    data = max(
        (n for n in there() if n.startswith("checkpoints/20/state")),
        key=lambda name: MemoryFileSystem().size(f"/bucket/runs/book/{name}"),
    )
    content = bytearray(MemoryFileSystem().cat_file(f"/bucket/runs/book/{data}"))
    content[len(content) // 2] ^= 1
    MemoryFileSystem().pipe_file(f"/bucket/runs/book/{data}", bytes(content))
    lose_the_disk()
    said: list[str] = []
    assert newest(fetched(URL, said.append)) == 10  # and a reader changes nothing
    assert "checkpoints/20 is damaged (the SHA-256 of state/" in said[0]
    assert "checkpoints/20/manifest.json" in there()
    with training(said.append) as (run, _):
        assert newest(run) == 10
        assert "checkpoints/20/manifest.json" not in there()
        aside = [n for n in there() if n.startswith("checkpoints/20.damaged.")]
        assert any(name.endswith(data.split("/", 2)[2]) for name in aside)
        save(run, 20)
    lose_the_disk()
    assert newest(fetched(URL, said.append)) == 20
    assert set(aside) <= set(there()) and len(said) == 2


def test_with_no_sound_checkpoint_it_says_so_and_changes_nothing():
    trained(10)
    MemoryFileSystem().pipe_file("/bucket/runs/book/checkpoints/10/manifest.json", b"{}")
    before = there()
    for begin_work in (lambda: opened(URL, say_nothing).__enter__(), lambda: fetched(URL, print)):
        with pytest.raises(RunError, match=f"{URL} holds no sound checkpoint"):
            begin_work()
    assert there() == before


def test_old_checkpoints_go_manifest_first(monkeypatch):
    trained(10, 20)
    with training() as (run, bucket):
        save(run, 30)
        with monkeypatch.context() as patch:
            Faults(patch, "rm_file", 1)
            with pytest.raises(
                RunError, match="lacks the removal of its oldest checkpoints: the network"
            ):
                bucket.send()
        left = [name for name in there() if name.startswith("checkpoints/10/")]
        assert left and "checkpoints/10/manifest.json" not in left
        bucket.send()
        assert not [name for name in there() if name.startswith("checkpoints/10/")]
    assert {name.split("/")[1] for name in there() if "checkpoints/" in name} == {"20", "30"}


def test_before_any_checkpoint_nothing_counts():
    with training() as (run, _):
        files.write_text(run / "features" / "train-1.parquet", "rows")
    assert "features/train-1.parquet" in there()
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        fetched(URL, say_nothing)
    lose_the_disk()
    with training() as (run, _):
        assert not (run / "features" / "train-1.parquet").exists()
        save(run, 10)
    assert "features/train-1.parquet" not in there()


def test_without_a_network_training_goes_on_and_the_end_names_what_is_missing(monkeypatch):
    said: list[str] = []
    trained(10)
    with pytest.raises(RunError) as caught, training() as (run, bucket):
        fault = Faults(monkeypatch, "put_file", 0)
        save(run, 20)
        bucket.send(said.append)
        files.write_text(run / "metrics.jsonl", "{}\n")
    assert said == [
        f"WARNING: {URL} lacks checkpoint 20: the network is gone; training goes on, and the next "
        "save tries again"
    ]
    assert str(caught.value).startswith(f"{URL} lacks checkpoint 20, metrics.jsonl: the network")
    fault.works = 1000
    with training() as (run, bucket):  # the same machine, with its disk: the copy is ahead
        assert newest(run) == 20
    lose_the_disk()
    assert newest(fetched(URL, said.append)) == 20 and len(said) == 1


def test_a_copy_that_others_have_overtaken_is_given_up(monkeypatch):
    trained(10)
    with pytest.raises(RunError, match="lacks checkpoint 20"), training() as (run, _):
        save(run, 20)
        Faults(monkeypatch, "put_file", 0)
    monkeypatch.undo()
    monkeypatch.setattr(files, "LEASE_SECONDS", 0.6)
    here, elsewhere = run.parents[4] / "cache", run.parents[4] / "elsewhere"
    monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere))
    trained(15)
    monkeypatch.setenv("XDG_CACHE_HOME", str(here))
    with training() as (run, _):
        assert newest(run) == 15 and checkpoint.steps(run / "checkpoints") == [15]


def test_a_stop_sends_all_and_another_error_nothing(monkeypatch):
    trained(10)
    with pytest.raises(UserError), training() as (run, _):
        save(run, 20)
        raise UserError("the text is another")
    assert newest(fetched(URL, say_nothing)) == 10
    with pytest.raises(Stopped), training() as (run, _):
        save(run, 30)
        raise Stopped("asked to")
    assert newest(fetched(URL, say_nothing)) == 30
    fault = Faults(monkeypatch, "put_file", 0)
    with pytest.raises(RunError, match="lacks checkpoint 40"), training() as (run, _):
        save(run, 40)
        raise Stopped("asked to")
    assert fault.works < 0


def test_a_second_trainer_is_refused_and_a_dead_one_is_followed(monkeypatch):
    with training(), pytest.raises(UserError, match=f"{URL} is in use by process {os.getpid()} on"):
        opened(URL, say_nothing).__enter__()
    dead = json.dumps({"machine": "elsewhere 1", "process": 7, "id": "x"}).encode()
    MemoryFileSystem().pipe_file("/bucket/runs/book/.lease", dead)
    said: list[str] = []
    with training(said.append) as (run, _):
        save(run, 10)
    assert "elsewhere" in said[0] and "is taken over" in said[1]
    with (
        pytest.raises(RunError, match="was taken over by process 7 on elsewhere"),
        training() as (run, bucket),
    ):
        save(run, 20)
        MemoryFileSystem().pipe_file("/bucket/runs/book/.lease", dead)
        bucket.send(said.append)
    assert "checkpoints/20/manifest.json" not in there()
    assert there()[0] == ".lease"  # the other's is left to it
    trained(30)
    assert len(said) == 2


def test_of_two_at_the_same_moment_one_wins(monkeypatch):
    real = MemoryFileSystem.pipe_file

    def late(self, path, value, mode="overwrite", **options):
        if mode == "create":
            real(self, path, json.dumps({"machine": "m", "process": 7, "id": "x"}).encode())
        return real(self, path, value, mode=mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", late)
    with pytest.raises(UserError, match="in use by process 7 on m"):
        opened(URL, say_nothing).__enter__()


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (FileNotFoundError("b/bucket/o"), UserError, "there is no such bucket or object"),
        (OSError("Forbidden: b/bucket/o\nno access"), UserError, "not permitted .Forbidden: b/"),
        (ConnectionError("refused"), RunError, "cannot be reached: refused"),
    ],
)
def test_what_goes_wrong_at_the_start_is_one_line(monkeypatch, error, kind, line):
    Faults(monkeypatch, "find", 0).error = error
    with pytest.raises(kind, match=line) as caught:
        opened(URL, say_nothing).__enter__()
    assert "\n" not in str(caught.value)


def test_a_missing_package_and_an_unknown_url_are_one_line(monkeypatch):
    with pytest.raises(UserError, match="Protocol not known: nonsense"):
        fetched("nonsense://bucket/run", say_nothing)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    with pytest.raises(UserError, match=re.escape("pip install 'tsuzuri[cloud]'")):
        fetched("gs://bucket/run", say_nothing)


def test_hosts_without_a_common_disk_are_refused(text, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "tsuzuri.cli", "train", text, "--run", URL]
    command += ["--coordinator", coordinator, "--num-processes", "2", "--process-id"]
    processes = [
        subprocess.Popen(
            [*command, host],
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / host), "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in "01"
    ]
    for process in processes:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 2 and len(said.splitlines()) == 1, said
        assert "set XDG_CACHE_HOME to such a disk, or train on one host" in said


@pytest.fixture(scope="module")
def server():
    """Google's storage, by a server on this machine that speaks its JSON API."""
    from gcp_storage_emulator.server import create_server

    emulator = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    emulator.start()
    port = emulator._api._httpd.server_address[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        yield emulator
    emulator.stop()


def test_with_its_disk_lost_a_run_on_google_storage_ends_equal_to_the_bit(server, text, tmp_path):
    url, undisturbed = "gs://bucket/runs/book", tmp_path / "undisturbed"
    expected = train(preset("llama", **TINY), undisturbed, [text], progress=False)

    class Preempted(Exception):
        """The machine is gone."""

    def preempted(*arguments, **options):
        send(*arguments, **options)
        raise Preempted

    with pytest.raises(Preempted), opened(url, say_nothing) as (run, bucket):
        assert bucket is not None
        send, bucket.send = bucket.send, preempted
        train(preset("llama", **TINY), run, [text], progress=False, bucket=bucket)
    lose_the_disk()
    with opened(url, say_nothing) as (run, bucket):
        assert checkpoint.steps(run / "checkpoints") == [4]
        summary = train(preset("llama", **TINY), run, progress=False, bucket=bucket)
    assert summary == expected
    lines, before = (read_jsonl(folder / "metrics.jsonl") for folder in (run, undisturbed))
    assert [line["step"] for line in lines] == [line["step"] for line in before]

    lose_the_disk()
    model = tsuzuri.load(url)
    assert checkpoint.parameters_sha256(model.params) == expected["parameters_sha256"]
    names = Storage(url).names()
    assert "plots/loss.png" in names and ".lease" not in names
    assert {n.split("/")[1] for n in names if n.startswith("checkpoints/")} == {"8", "12"}
    with pytest.raises(UserError, match="no such bucket"):
        tsuzuri.load("gs://no-such-bucket/run")
