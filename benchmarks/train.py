"""Training speed: our train step and its peers' on the device at hand.

The work: the whole step of a model of random weights on random tokens that already lie on the
device: forward, backward, clipping (not for NanoLM), AdamW.

    size      model   layers heads width    T  batch  vocabulary
    M         GPT-2        6     6   384  256     16       8,192   on a CPU, in float32
    S         GPT-2        4     4   128   64     12          65
    M-nanolm  NanoLM       6     4   384  256     16       8,192
    S-nanolm  NanoLM       4     4   128   64     12          65
    G         GPT-2       12    12   768 1024     32      50,304   on a GPU of 80 GB, in bfloat16
    J         NanoLM      12     8   512  256    128      50,304   jax-llm's own run of 5000 steps

The peers of GPT-2, whose head is tied: PyTorch as nanoGPT writes it, eager and compiled, and the
GPT2LMHeadModel of Hugging Face transformers as its Trainer steps. Of NanoLM: jax-llm's own loop.
On a GPU the first three are in bfloat16 by autocast, and jax-llm in float32 (TF32) as it is.

    tokens/s    the median of the calls in --seconds
    MFU         of the peak that a product of large matrices, in the same dtype, reached in the same
                process with the same library; a token's FLOPs by tsuzuri.model.flops_per_token
    peak        that peak, TFLOP/s
    GiB         the most memory: of the device where it tells, else of the process
    first, s    from the program's start to the end of its first step: imports, building the model,
                and compiling it, with nothing compiled before

A process that waits for a core makes torch's threads spin, so only a quiet machine is fair to it.

    python benchmarks/train.py [--rounds 5] [--sizes M S ...]
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import _trainers
from _paired import alternate, median, peak_mib, ratio
from _trainers import Program, Work

WORKS = {
    "M": Work("gpt2", 6, 6, 384, 256, 16, 8192, steps_per_call=2, seconds=15),
    "S": Work("gpt2", 4, 4, 128, 64, 12, 65, seconds=4),
    "M-nanolm": Work("nanolm", 6, 4, 384, 256, 16, 8192, steps_per_call=2, seconds=15),
    "S-nanolm": Work("nanolm", 4, 4, 128, 64, 12, 65, seconds=4),
    "G": Work("gpt2", 12, 12, 768, 1024, 32, 50_304),
    "J": Work("nanolm", 12, 8, 512, 256, 128, 50_304, dropout=0.1, run_steps=5000),
}
ON_A_CPU = ("M", "S", "M-nanolm", "S-nanolm")  # elsewhere the others

# Of each model, ours first.
PROGRAMS: dict[str, dict[str, Callable[[Work, str], Program]]] = {
    "gpt2": {
        "tsuzuri": _trainers.tsuzuri,
        "PyTorch eager": _trainers.torch_eager,
        "PyTorch compiled": _trainers.torch_compiled,
        "transformers": _trainers.transformers,
    },
    "nanolm": {"tsuzuri": _trainers.tsuzuri, "jax-llm": _trainers.jax_llm},
}


def measure(program: str, size: str, device: str) -> dict[str, float]:
    """One program's figures, in a process that has done nothing yet."""
    began, work = time.perf_counter(), WORKS[size]
    running = PROGRAMS[work.preset][program](work, device)
    running.call()
    first = time.perf_counter() - began
    seconds = seconds_per_call(running.call, work.seconds)
    mib = running.device_mib() or peak_mib()
    product = seconds_per_call(running.products(), 1)
    return {
        "tokens/s": work.tokens / seconds,
        "FLOP/s": 2 * _trainers.matrix_size(device) ** 3 * _trainers.MULTIPLICATIONS / product,
        "GiB": mib / 1024,
        "first": first - seconds * (1 - 1 / work.steps_per_call),
    }


def seconds_per_call(call: Callable[[], object], seconds: float) -> float:
    """After one call to warm up, the median of the calls that fit in `seconds`."""
    call()
    times, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def flops_per_token(size: str) -> int:
    """Of training the model of this size."""
    from tsuzuri.model import flops_per_token

    cfg = _trainers.config(WORKS[size], "cpu")
    return flops_per_token(cfg.resolved_model(WORKS[size].vocabulary), cfg.sequence_length)


def left_out(device: str) -> dict[str, str]:
    """The programs that cannot run here, and why."""
    names = ("PyTorch eager", "PyTorch compiled", "transformers")
    if not find_spec("torch"):
        return dict.fromkeys(names, "torch is not installed")
    if device != "cpu" and tell("import torch; print(torch.cuda.is_available())") != "True":
        return dict.fromkeys(names, f"torch sees no {device}")
    reasons = {}
    if not shutil.which("g++") and not shutil.which("clang++"):
        reasons["PyTorch compiled"] = "there is no C++ compiler"
    if not find_spec("transformers"):
        reasons["transformers"] = "it is not installed"
    return reasons


def tell(code: str) -> str:
    """What a process of its own prints last, so that this one never holds the device."""
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return out.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--sizes", nargs="+", choices=WORKS, help="by default what suits the device"
    )
    parser.add_argument("--measure", nargs=3, metavar=("PROGRAM", "SIZE", "DEVICE"))
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return

    device, kind = tell(
        "import jax; print(jax.default_backend(), jax.devices()[0].device_kind, sep='|')"
    ).split("|")
    reasons = left_out(device)
    print(f"{device}: {kind}")
    for name, reason in reasons.items():
        print(f"{name} is left out: {reason}")
    head = (
        f"{'size':10}{'program':18}{'tokens/s':>11}{'MFU':>7}{'peak':>8}{'GiB':>7}{'first, s':>10}"
    )
    print(f"{head}{'tsuzuri / it':>14}", flush=True)
    for size in args.sizes or [size for size in WORKS if (size in ON_A_CPU) == (device == "cpu")]:
        work, command = WORKS[size], [sys.executable, __file__, "--measure"]
        programs = [name for name in PROGRAMS[work.preset] if name not in reasons]
        commands = {name: [*command, name, size, device] for name in programs}
        flops = flops_per_token(size)
        results = alternate(commands, args.rounds)
        for name, result in results.items():
            for figures in result:
                figures["MFU"] = figures["tokens/s"] * flops / figures["FLOP/s"]
            print(
                f"{size:10}{name:18}{median(result, 'tokens/s'):11,.0f}{median(result, 'MFU'):7.1%}"
                f"{median(result, 'FLOP/s') / 1e12:8.3g}{median(result, 'GiB'):7.2f}"
                f"{median(result, 'first'):10.1f}"
                f"{ratio(results['tsuzuri'], result, 'tokens/s'):13.2f}x",
                flush=True,
            )
        for name, result in results.items() if work.run_steps else ():
            tokens = work.run_steps * work.batch * work.length
            seconds = tokens / median(result, "tokens/s")
            print(f"{work.run_steps} steps of {size} by {name}: {seconds:,.0f} s")


if __name__ == "__main__":
    main()
