"""What every benchmark shares: programs that take turns, and a table of medians and ratios.

Each measurement is a process of its own. The programs alternate, so that whatever else the machine
does falls on all of them alike, and ratios are taken within a round.
"""

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

# This folder is looked into last: tokenizers.py here must not hide the package of that name.
sys.path.append(sys.path.pop(0))


def alternate(commands: dict[str, list[str]], rounds: int) -> dict[str, list[dict]]:
    """Runs every command once in each round; each prints one line of JSON as its last line.

    Returns:
      For each name, what its command printed in each round.
    """
    results: dict[str, list[dict]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[name].append(json.loads(out.splitlines()[-1]))
    return results


def median(results: list[dict], key: str) -> float:
    """The median of a figure over the rounds."""
    return statistics.median(result[key] for result in results)


def ratio(ours: list[dict], peer: list[dict], key: str) -> float:
    """The median over the rounds of ours / the peer's."""
    return statistics.median(a[key] / b[key] for a, b in zip(ours, peer, strict=True))


def peak_mib() -> float:
    """The most memory that this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage counts the process that started this one, too
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
