"""The watchdog ends what shows no sign of life, and nothing else."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, time
from tsuzuri.watchdog import watch
with watch(1) as watchdog:
    for _ in range(3):
        watchdog.alive(); time.sleep(0.5)
    watchdog.alive("saving", patience=4); time.sleep(1.6)
    print("worked", flush=True)
    watchdog.alive("evaluating")
    if sys.argv[1] == "hangs": time.sleep(600)
    if sys.argv[1] == "hangs with the GIL": ctypes.PyDLL(None).sleep(600)
time.sleep(2)  # nothing is due any more
"""


@pytest.mark.parametrize("then", ["ends", "hangs", "hangs with the GIL"])
def test_a_hang_is_ended_with_the_stacks_and_work_is_not(then):
    command = [sys.executable, "-c", PROGRAM, then]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "worked\n"
    if then == "ends":
        assert (ended.returncode, ended.stderr) == (0, "")
        return
    assert ended.returncode == 1
    assert f'File "<string>", line {10 if then == "hangs" else 11} in <module>' in ended.stderr
    if then == "hangs":  # where Python can still speak
        assert ended.stderr.startswith("error: evaluating has shown no sign of life for 1 s;")
