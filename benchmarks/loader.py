"""Loading speed: batches a second of `data.Batches`.

The work: batches of 16 blocks of 257 ids in random order, as tokens, targets and weights,
from 400,000 blocks (100 million tokens) in a memory-mapped file.

The peer: a bare gather, `array[random rows]` of numpy, which does nothing but fetch the same bytes.

    python benchmarks/loader.py [--rounds 5]
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from _paired import alternate, median, ratio

BLOCKS, BATCH, WIDTH = 400_000, 16, 257


def tsuzuri(array: np.ndarray) -> Callable[[int], object]:
    from tsuzuri.data import Batches, Blocks

    return Batches(Blocks(array, padding=1), BATCH, seed=0).batch


def gather(array: np.ndarray) -> Callable[[int], object]:
    rows = np.random.default_rng(0).integers(0, BLOCKS, (1000, BATCH))
    return lambda step: array[rows[step % 1000]]


PROGRAMS = {"tsuzuri": tsuzuri, "numpy gather": gather}


def measure(program: str, path: str) -> None:
    batch = PROGRAMS[program](np.load(path, mmap_mode="r").view(np.ndarray))
    for step in range(2000):
        batch(step)
    steps, start = 50_000, time.perf_counter()
    for step in range(steps):
        batch(step)
    print(json.dumps({"batches/s": steps / (time.perf_counter() - start)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("PROGRAM", "BLOCKS"), help="one measurement")
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "blocks.npy")
        np.save(path, np.random.default_rng(0).integers(2, 8192, (BLOCKS, WIDTH), np.uint16))
        command = [sys.executable, __file__, "--measure"]
        results = alternate({name: [*command, name, path] for name in PROGRAMS}, args.rounds)
    print(f"{'batches of 16x257':20}{'batches/s':>12}{'of the gather':>16}")
    for name, result in results.items():
        share = ratio(result, results["numpy gather"], "batches/s")
        print(f"{name:20}{median(result, 'batches/s'):12,.0f}{share:16.2f}")


if __name__ == "__main__":
    main()
