"""Hosts: the several processes of one training, or the only one there is.

What they say to one another goes by the key-value store of JAX's coordination service, which host
0 runs, never by the devices: so a wait may be long and costs nothing, and needs no mesh. When a
process dies, JAX notices within HEARTBEAT_SECONDS and ends all the others (SIGABRT, exit code 134):
the job is started again as a whole. With one process every function here is trivial.

All hosts call these functions in the same order.
"""

import contextlib
import itertools
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax

# Neither is public. Orbax takes the client of the coordination service from here as well.
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state

from tsuzuri.errors import RunError, UserError

T = TypeVar("T")

HEARTBEAT_SECONDS = 10  # a process that is silent for so long is dead
_LEAVE_SECONDS = 5  # how long a host that failed waits for the others to fail as well
_A_WEEK = 7 * 24 * 3600

_turns = itertools.count()
_joined = threading.Event()


def join(
    coordinator: str = "", count: int = 0, index: int | None = None, timeout: int = 60
) -> None:
    """Joins the hosts of a training; call it before JAX touches a device.

    What is not given comes from the environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, else what JAX finds by itself (Slurm, Open MPI, TPU pods, GKE). Where nothing
    is found there is one process.

    Args:
      coordinator: HOST:PORT where host 0 listens, as the others see it.
      count: how many hosts there are.
      index: which one this is, from 0.
      timeout: seconds to wait until all are there.

    Raises:
      UserError: what is given does not make sense, or not all hosts came in time.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    count = count or _number("JAX_NUM_PROCESSES") or 0
    index = _number("JAX_PROCESS_ID") if index is None else index
    if (count > 1 or index) and not coordinator:
        raise UserError(
            "several hosts need to know where host 0 listens: give --coordinator HOST:PORT, or "
            "JAX_COORDINATOR_ADDRESS"
        )
    if count < 0 or (count and index is not None and not 0 <= index < count):
        raise UserError(f"host {index} of {count} hosts: they are numbered 0 to {count - 1}")
    if count == 1 or not (coordinator or _cluster_is_there()):
        return
    port = coordinator.rpartition(":")[2]
    if coordinator and not port.isdecimal():
        raise UserError(f"coordinator {coordinator}: not HOST:PORT")
    if index == 0 and coordinator:
        _must_be_free(coordinator)
    logging.getLogger("jax._src.distributed").setLevel(logging.ERROR)  # it names proxy variables

    # Where the coordinator cannot be reached, JAX aborts the process: so it is given more time than
    # there is, in a thread of its own.
    failed: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                coordinator or None,
                count or None,
                index,
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        where = global_state.coordinator_address or coordinator or "of this cluster"
        raise UserError(_unreachable(where, timeout))
    if failed:
        raise UserError(f"cannot join the hosts: {str(failed[0]).splitlines()[0]}")
    _joined.set()


def count() -> int:
    """How many hosts there are."""
    return global_state.num_processes or 1


def index() -> int:
    """Which one this is, from 0."""
    return global_state.process_id or 0


def is_first() -> bool:
    """Whether this is host 0, which writes what is written once."""
    return index() == 0


def gather(what: str, value: str) -> list[str]:
    """Every host's string, in the order of the hosts, on all of them; waits for the slowest.

    Raises:
      RunError: another host is gone, or is at another place of the program.
    """
    client = global_state.client
    if client is None:
        return [value]
    turn = next(_turns)
    try:
        client.key_value_set(f"tsuzuri/{turn}/{index()}", json.dumps([what, value]))
        client.wait_at_barrier("tsuzuri", _A_WEEK * 1000)
        pairs = client.key_value_dir_get(f"tsuzuri/{turn}")
        if is_first() and turn:  # whoever came here has read what was said before
            client.key_value_delete(f"tsuzuri/{turn - 1}")
    except jax.errors.JaxRuntimeError as error:
        raise RunError(f"another host is gone ({what}); start all hosts again") from error
    said = {int(key.rpartition("/")[2]): json.loads(text) for key, text in pairs}
    for host, (theirs, _) in said.items():
        if theirs != what:
            raise RunError(f"host {index()} is at {what!r}, host {host} at {theirs!r}")
    return [said[host][1] for host in range(count())]


def barrier(what: str) -> None:
    """Waits until all hosts are here."""
    gather(what, "")


def first(what: str, work: Callable[[], T]) -> T:
    """Runs `work` on host 0, while the others wait; its result, which JSON can hold, on all.

    Raises:
      UserError, RunError: `work` did; on all hosts, the same line.
    """
    if count() == 1:
        return work()
    result, error = _attempt(work) if is_first() else (None, None)
    result, error = json.loads(gather(what, json.dumps([result, error]))[0])
    if error:
        _raise(*error)
    return result


def each(what: str, work: Callable[[], T]) -> T:
    """Runs `work` on every host and gives each its own result, once it is done on all.

    Raises:
      UserError, RunError: `work` did on some host; on all hosts, the first such host's line.
    """
    if count() == 1:
        return work()
    result, error = _attempt(work)
    for host, theirs in enumerate(gather(what, json.dumps(error))):
        if theirs != "null":
            kind, message = json.loads(theirs)
            _raise(kind, f"host {host}: {message}")
    return result


def same(what: str, values: Mapping[str, Any]) -> None:
    """Makes sure that all hosts have the same values.

    Raises:
      UserError: they have not; on all hosts, naming what differs and who has what.
    """
    texts = {key: json.dumps(value, default=str) for key, value in values.items()}
    of_hosts = [json.loads(text) for text in gather(what, json.dumps(texts))]
    differing = []
    for key in sorted(set().union(*of_hosts)):
        who: dict[str, list[int]] = {}
        for host, theirs in enumerate(of_hosts):
            who.setdefault(theirs.get(key, "nothing"), []).append(host)
        if len(who) > 1:
            listed = ", ".join(
                f"{_named(hosts)} {'has' if len(hosts) == 1 else 'have'} {value}"
                for value, hosts in who.items()
            )
            differing.append(f"{key}: {listed}")
    if differing:
        raise UserError(f"hosts differ in {'; '.join(differing)}; start all with the same command")


def shared(folder: Path) -> None:
    """Makes sure that all hosts see the same folder; host 0 makes it if need be.

    Raises:
      UserError: some do not, or it cannot be written; on all hosts.
    """
    if count() == 1:
        return

    def write() -> str:
        mark = folder / f".hosts-{secrets.token_hex(8)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
        return mark.name

    mark = folder / first("writing to the folder of all", write)
    until = time.monotonic() + 10  # network file systems may take their time
    while not (seen := mark.exists()) and time.monotonic() < until:
        time.sleep(0.1)
    blind = [
        i for i, text in enumerate(gather("seeing what host 0 wrote", str(seen))) if text != "True"
    ]
    if is_first():
        mark.unlink()
    if blind:
        raise UserError(
            f"{_named(blind)} cannot see what host 0 writes to {folder}: each host has a folder of "
            "its own there; put --run on storage that all hosts share"
        )


def leave(code: int) -> NoReturn:
    """Ends this process, and so the job: whoever is still at work is ended too.

    A run that ends well (0, or 42) waits for all hosts to do so; one that failed waits a moment
    for those that fail alike, and goes, however the others may hang.
    """
    if count() == 1:
        sys.exit(code)
    if _joined.is_set() and global_state.client:
        patience = _A_WEEK if code in (0, 42) else _LEAVE_SECONDS
        with contextlib.suppress(Exception):
            global_state.client.wait_at_barrier("leave", patience * 1000)
            jax.distributed.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    if text and not text.isdecimal():
        raise UserError(f"{variable}={text}: not a number")
    return int(text) if text else None


def _cluster_is_there() -> bool:
    """Whether JAX can find out by itself who the hosts are."""
    if os.environ.get("SLURM_NTASKS") == "1":  # alone; JAX would hide all its GPUs but the first
        return False
    environments = [env for env in ClusterEnv._cluster_types if not env.opt_in_only_method]
    return any(env.is_env_present() for env in environments)


def _must_be_free(coordinator: str) -> None:
    """Two coordinators can listen at one port without a word of complaint: never do it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(coordinator.rpartition(":")[2])))
        except OSError as error:
            raise UserError(
                f"host 0 cannot listen at the port of {coordinator} ({error.strerror}); choose "
                "another port"
            ) from error


def _unreachable(coordinator: str, timeout: int) -> str:
    name, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((name.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        return (
            f"the coordinator {coordinator} cannot be reached ({error}); waited {timeout} s: does "
            "host 0 run, is that its address, is the port open?"
        )
    return f"not all hosts came to {coordinator} within {timeout} s: start all of them"


def _attempt(work: Callable[[], T]) -> tuple[Any, tuple[str, str] | None]:
    try:
        return work(), None
    except (UserError, RunError) as error:
        return None, (type(error).__name__, str(error))


def _raise(kind: str, message: str) -> NoReturn:
    raise {"UserError": UserError, "RunError": RunError}[kind](message)


def _named(hosts: list[int]) -> str:
    numbers = ", ".join(map(str, hosts))
    return f"host {numbers}" if len(hosts) == 1 else f"hosts {numbers}"
