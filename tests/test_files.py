"""Files are whole or not there, whatever happens while they are written."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tsuzuri import files
from tsuzuri.errors import RunError, UserError
from tsuzuri.files import locked, read_json, remove, sha256, write_beside, write_json, write_text


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_a_file_is_written_whole_and_replaces_the_old(tmp_path: Path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "一")
    write_text(path, "二\n")
    assert path.read_bytes() == "二\n".encode()
    assert names(path.parent) == {"a.txt"}


def test_a_folder_is_written_whole(tmp_path: Path):
    with write_beside(tmp_path / "folder") as beside:
        (beside / "inner").mkdir(parents=True)
        (beside / "inner" / "a").write_text("1")
        assert names(tmp_path) == {beside.name}
    assert (tmp_path / "folder" / "inner" / "a").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_as_it_was(tmp_path: Path, error: BaseException):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(type(error)), write_beside(path) as beside:
        beside.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_a_process_killed_while_writing_leaves_the_old(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    program = (
        "import os, signal, sys; from pathlib import Path; from tsuzuri.files import write_beside\n"
        "with write_beside(Path(sys.argv[1])) as beside:\n"
        "    beside.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2  # the partial is there, and harms nobody
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("stale_folder", [False, True])
def test_a_stale_partial_of_the_same_process_id_is_no_obstacle(tmp_path: Path, stale_folder: bool):
    path = tmp_path / "a.txt"
    stale = tmp_path / f".a.txt.{os.getpid()}.partial"
    if stale_folder:
        (stale / "inner").mkdir(parents=True)
    else:
        stale.write_text("stale")
    write_text(path, "new")
    assert names(tmp_path) == {"a.txt"}


def test_what_cannot_be_written_is_said_in_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/a\.txt: "):
        write_text(tmp_path / "file" / "a.txt", "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    with pytest.raises(RunError, match="nothing that was there is changed"):
        write_text(tmp_path / "full", "x")
    assert names(tmp_path / "full") == {"kept"}
    assert names(tmp_path) == {"file", "full"}


def test_a_full_disk_is_said_and_harms_nothing(tmp_path: Path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    try:
        path = tmp_path / "a.txt"
        write_text(path, "old")
        with pytest.raises(RunError, match=r"a\.txt: No space left on device"):
            write_text(path, "x" * 200_000)
        assert path.read_text() == "old"
        assert names(tmp_path) == {"a.txt"}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_json_is_readable_and_comes_back(tmp_path: Path):
    path = tmp_path / "a.json"
    value = {"題": "雪国", "n": [1, 2.5, None]}
    write_json(path, value)
    assert "雪国" in path.read_text("utf-8")
    assert read_json(path) == value


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe"])
def test_what_is_not_json_is_said(tmp_path: Path, content: bytes):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: not JSON"):
        read_json(path)
    path.unlink()
    with pytest.raises(UserError, match=r"a\.json: no such file"):
        read_json(path)


def test_sha256_is_that_of_the_bytes(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_remove_takes_links_but_not_what_they_point_to(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    remove(tmp_path / "absent")
    assert (tmp_path / "folder" / "a").read_text() == "kept"
    remove(tmp_path / "folder")
    assert names(tmp_path) == set()


def test_a_folder_is_held_by_one_process_until_it_dies(tmp_path: Path):
    program = (
        "import sys, time; from pathlib import Path; from tsuzuri.files import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    run = tmp_path / "run"
    command = [sys.executable, "-c", program, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=f"in use by process {holder.pid};"), locked(run):
                pass
        finally:
            holder.kill()
    with locked(run):  # the kernel let go of it
        assert (run / ".lock").read_text() == str(os.getpid())
    with locked(run):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "file"):
        pass


HOLDER = (
    "import sys, time; from pathlib import Path; from tsuzuri import files\n"
    "files.LEASE_SECONDS = 2; files.machine = lambda: sys.argv[2]\n"
    "with files.locked(Path(sys.argv[1])) as still_ours:\n"
    "    print('held', flush=True); input(); still_ours(); print('still', flush=True); input()\n"
)


@contextlib.contextmanager
def held_elsewhere(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """`run` is held by another machine, whose file locks are not seen here."""
    command = [sys.executable, "-c", HOLDER, str(run), "other boot-of-other"]
    monkeypatch.setattr(files, "LEASE_SECONDS", 2)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            (run / ".lock").unlink()  # as if the lock were on another machine
            yield holder
        finally:
            holder.kill()


def say_to(holder: subprocess.Popen[str], line: str = "") -> None:
    assert holder.stdin
    holder.stdin.write(line + "\n")
    holder.stdin.flush()


def test_another_machine_is_kept_out_while_the_lease_is_renewed(tmp_path: Path, monkeypatch):
    run, said = tmp_path / "run", []
    with held_elsewhere(run, monkeypatch) as holder:
        refused = pytest.raises(UserError, match=f"in use by process {holder.pid} on other;")
        with refused, locked(run, said.append):
            pass
        assert len(said) == 1 and "was held by" in said[0]
        say_to(holder)  # it has lost nothing
        assert holder.stdout and holder.stdout.readline() == "still\n"
        say_to(holder)
        assert holder.wait(60) == 0
    assert not (run / ".lease").exists()
    with locked(run, pytest.fail):  # there is no lease to watch
        pass


def test_a_dead_lease_is_taken_over_and_who_stood_still_writes_no_more(tmp_path: Path, monkeypatch):
    run, said = tmp_path / "run", []
    with held_elsewhere(run, monkeypatch) as holder:
        holder.send_signal(signal.SIGSTOP)
        with locked(run, said.append) as still_ours:
            assert "taken over" in said[-1]
            holder.send_signal(signal.SIGCONT)
            say_to(holder)
            _, errors = holder.communicate(timeout=60)
            assert "RunError" in errors and f"taken over by process {os.getpid()} on" in errors
            still_ours()
            assert (run / ".lease").exists()  # the loser did not remove what is ours


def test_a_folder_that_is_moved_while_it_is_held_is_said(tmp_path: Path):
    with locked(tmp_path / "run") as still_ours:
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(RunError, match=r"run/\.lease is gone: the folder was moved or removed"):
            still_ours()
        (tmp_path / "moved").rename(tmp_path / "run")
        still_ours()


def test_a_file_system_that_cannot_sync_folders_will_do():
    files._sync(Path("/dev/null"))  # its fsync fails as theirs: EINVAL


def test_on_one_machine_nobody_waits_for_a_dead_lease(tmp_path: Path):
    program = (
        "import os, sys; from pathlib import Path; from tsuzuri.files import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert (tmp_path / ".lease").exists()
    with locked(tmp_path, pytest.fail):
        pass
