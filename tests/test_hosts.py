"""Several hosts: what one says all hear, what one holds is saved, and none outlives the others.

This file is also the program of those hosts: `python test_hosts.py WORK FOLDER`.
"""

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tsuzuri import checkpoint, hosts
from tsuzuri.errors import RunError, UserError

BELONGS_TO = {"model": "m"}
SHAPES = {"step": (), "kernel": (8, 64), "bias": (64,), "big": (512, 512)}
SPLITS = {"step": P(), "kernel": P("a", "b"), "bias": P("b"), "big": P(("a", "b"))}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(count: int, devices: int, *arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """So many hosts with so many CPU devices each, in this program."""
    shared = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
    }
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments],
            env=shared | {"JAX_PROCESS_ID": str(index)},
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for index in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def run(count: int, devices: int, *arguments: str) -> list[tuple[int, str, str]]:
    """The exit codes, outputs and errors of so many hosts."""
    with started(count, devices, *arguments) as processes:
        said = [process.communicate(timeout=120) for process in processes]
        return [(p.returncode, *texts) for p, texts in zip(processes, said, strict=True)]


def state_on(mesh_shape: tuple[int, int], key: int | None):
    """A state split over a mesh of all devices: random numbers of a key, or its target."""
    mesh = jax.make_mesh(mesh_shape, ("a", "b"))
    shardings = {name: NamedSharding(mesh, split) for name, split in SPLITS.items()}

    def make(key):
        keys = jax.random.split(key, len(SHAPES))
        return {n: jax.random.normal(k, SHAPES[n]) for n, k in zip(SHAPES, keys, strict=True)}

    if key is not None:
        return jax.jit(make, out_shardings=shardings)(jax.random.key(key))
    return checkpoint.shapes(jax.eval_shape(make, jax.random.key(0)), shardings)


def reference_sha256() -> str:
    """Of the same state, computed by one process with one device."""
    keys = jax.random.split(jax.random.key(7), len(SHAPES))
    state = {n: jax.random.normal(k, SHAPES[n]) for n, k in zip(SHAPES, keys, strict=True)}
    return checkpoint.parameters_sha256(jax.tree.map(np.asarray, state))


def say(text: str) -> None:
    os.write(1, f"\nsays {text}\n".encode())  # whole: Gloo talks to stdout as well


def said_in(output: str) -> list[str]:
    return [line[5:] for line in output.splitlines() if line.startswith("says ")]


# What the hosts do.


def work_talk(folder: Path) -> None:
    me = hosts.index()

    def refused(error, work, *arguments) -> str:
        with pytest.raises(error) as caught:
            work(*arguments)
        return str(caught.value)

    def fails():
        raise UserError("this will not do")

    def fails_on_1():
        if me == 1:
            raise RunError("this failed")
        return me

    for turn in range(20):
        assert hosts.gather("turn", f"{me} {turn}") == [f"0 {turn}", f"1 {turn}"]
    assert hosts.first("a sum", lambda: [me, "一", None]) == [0, "一", None]
    assert hosts.first("nothing", lambda: None) is None
    assert refused(UserError, hosts.first, "x", fails) == "this will not do"
    assert hosts.each("own", lambda: me) == me
    assert refused(RunError, hosts.each, "x", fails_on_1) == "host 1: this failed"
    hosts.same("config", {"steps": 10, "path": Path("a")})
    assert refused(UserError, hosts.same, "config", {"steps": 1, "rate": 0.001 * (me + 1)}) == (
        "hosts differ in rate: host 0 has 0.001, host 1 has 0.002; start all with the same command"
    )
    assert "here: host 0 has 1, host 1 has nothing" in refused(
        UserError, hosts.same, "config", {"both": 1} | ({"here": 1} if me == 0 else {})
    )
    hosts.shared(folder / "run")
    message = refused(UserError, hosts.shared, folder / f"own-{me}")
    assert message.startswith("host 1 cannot see what host 0 writes to"), message
    assert not list((folder / "run").iterdir())
    said = refused(RunError, hosts.barrier, f"place {me}")  # a slip in the program
    assert said == f"host {me} is at 'place {me}', host {1 - me} at 'place {1 - me}'"
    hosts.same("config", {"steps": me})


def work_save(folder: Path) -> None:
    state = state_on((2, 2), 7)
    assert not state["big"].is_fully_addressable
    checkpoint.save(folder, 10, state, BELONGS_TO, keep=5)
    say(checkpoint.parameters_sha256(state))
    # Then host 1 alone finds its disk full.
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if hosts.index() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    with pytest.raises(RunError, match=r"host 1: cannot write .*20: File too large; nothing that"):
        checkpoint.save(folder, 20, state, BELONGS_TO, keep=5)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    hosts.barrier("after the failure")
    assert [path.name for path in folder.iterdir()] == ["10"]
    checkpoint.save(folder, 30, state_on((2, 2), 8), BELONGS_TO, keep=5)  # all goes on
    assert checkpoint.steps(folder) == [10, 30]
    # A damaged one is set aside by host 0, and all take the one before.
    if hosts.is_first():
        largest = max((folder / "30").rglob("*"), key=lambda f: f.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-1])
    said: list[str] = []
    found = checkpoint.restore(folder, state_on((4, 1), None), BELONGS_TO, said.append, True)
    assert found and found[1] == 10 and len(said) == (1 if hosts.is_first() else 0)
    say(checkpoint.parameters_sha256(found[0]))
    with pytest.raises(UserError, match="another model"):
        checkpoint.restore(folder, state_on((4, 1), None), {"model": "x"}, said.append)
    checkpoint.save(folder, 40, state, BELONGS_TO, keep=1)
    assert checkpoint.steps(folder) == [40]


def work_restore(folder: Path) -> None:
    found = checkpoint.restore(folder, state_on((1, 4), None), BELONGS_TO, pytest.fail)
    assert found
    say(checkpoint.parameters_sha256(found[0]))
    if hosts.count() == 1:
        checkpoint.save(folder, found[1] + 10, found[0], BELONGS_TO, keep=5)
    else:
        work_wait(folder)


def work_wait(folder: Path) -> None:
    hosts.barrier("all are ready")
    say("ready")
    time.sleep(600)  # one of them is killed now


# What is expected of them.


def test_what_one_says_all_hear_and_they_end_alike(tmp_path):
    line = "hosts differ in steps: host 0 has 0, host 1 has 1; start all with the same command\n"
    for code, _, errors in run(2, 1, "talk", str(tmp_path)):
        assert (code, errors) == (2, line)


def test_a_checkpoint_is_the_same_on_any_number_of_hosts(tmp_path):
    """Saved by 2 hosts x 2 devices, restored and saved by 1 x 4, restored by 2 x 2: to the bit."""
    expected = reference_sha256()
    for code, output, errors in run(2, 2, "save", str(tmp_path)):
        assert code == 0, errors
        assert said_in(output) == [expected] * 2
    [(code, output, errors)] = run(1, 4, "restore", str(tmp_path))
    assert code == 0, errors
    assert said_in(output) == [expected]
    assert checkpoint.steps(tmp_path) == [40, 50]
    with started(2, 2, "restore", str(tmp_path)) as processes:
        for process in processes:
            assert heard(process) == [expected, "ready"]
        end_of_all(processes, killed=1)


def test_nobody_outlives_host_0(tmp_path):
    with started(2, 1, "wait", str(tmp_path)) as processes:
        for process in processes:
            assert heard(process) == ["ready"]
        end_of_all(processes, killed=0)


def heard(process: subprocess.Popen[str]) -> list[str]:
    """What a host says until it is ready."""
    assert process.stdout
    output = ""
    while "says ready\n" not in output and (line := process.stdout.readline()):
        output += line
    return said_in(output)


def end_of_all(processes: list[subprocess.Popen[str]], killed: int) -> None:
    processes[killed].kill()
    assert processes[1 - killed].wait(timeout=60) not in (0, None)


def test_who_cannot_join_is_told_why():
    with socket.create_server(("", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        nobody, lonely = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        cases = {
            (
                nobody,
                2,
                1,
            ): f"coordinator {nobody} cannot be reached ([Errno 111] Connection refused",
            (lonely, 2, 0): f"not all hosts came to {lonely} within 2 s",
            (taken, 2, 0): f"cannot listen at the port of {taken} (Address already in use); choose",
            ("localhost", 2, 1): "coordinator localhost: not HOST:PORT",
            ("localhost:1", 2, 2): "host 2 of 2 hosts: they are numbered 0 to 1",
            ("localhost:1", 0, 1): "cannot join the hosts: Number of processes must be defined",
            ("", 2, 1): "several hosts need to know where host 0 listens",
        }
        program = (
            "import sys; from tsuzuri import hosts\n"
            "for case in eval(sys.argv[1]):\n"
            "    try: hosts.join(*case, timeout=2)\n"
            "    except hosts.UserError as error: print(error, flush=True)\n"
        )

        def told(cases: list[tuple[str, int, int]]) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", program + "hosts.leave(2)", str(cases)]
            return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

        first, *others = cases
        processes = [told([first]), told(others[1:] + others[:1])]
        lines = "".join(process.communicate(timeout=60)[0] for process in processes).splitlines()
        assert [process.returncode for process in processes] == [2, 2]
    expected = [cases[first], *(cases[case] for case in others[1:] + others[:1])]
    assert len(lines) == len(expected)
    assert all(part in line for part, line in zip(expected, lines, strict=True)), lines


def test_one_process_is_all_hosts(tmp_path):
    hosts.join()
    assert (hosts.count(), hosts.index(), hosts.is_first()) == (1, 0, True)
    assert hosts.gather("x", "v") == ["v"] and hosts.first("x", lambda: 1) == 1
    assert hosts.each("x", lambda: 2) == 2
    hosts.barrier("x")
    hosts.same("x", {"a": 1})
    hosts.shared(tmp_path / "none")
    with pytest.raises(SystemExit, match="3"):
        hosts.leave(3)


if __name__ == "__main__":
    name, at = sys.argv[1:]
    hosts.join(timeout=60)
    try:
        globals()[f"work_{name}"](Path(at))
    except (UserError, RunError) as failure:
        print(failure, file=sys.stderr)
        hosts.leave(failure.exit_code)
    except Exception:
        traceback.print_exc()
        hosts.leave(1)
    hosts.leave(0)
