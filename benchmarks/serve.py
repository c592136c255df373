"""`tsuzuri serve` under load: its tokens/s beside `generate`'s, its first token, its worst company.

The work: prompts of 16 tokens, 200 new ones, greedy, streamed; models of random parameters, of the
demo's shape and of GPT-2's shape with 6 layers of 384 (M), vocabulary 8192, context 256. The server
is a process, its clients are another one, both on this machine: so they share its cores. A client
asks again as soon as it was answered.

    tokens/s    16 clients, beside `generate` with 16 prompts in a process of its own, in turns
    first token 4 clients: the 95th percentile of the time to the first text
    64 clients  for --seconds: what they were answered
    slow        4 clients while 200 sockets send their headers a byte a second: the 95th percentile
                of a whole answer, over that without them

    python benchmarks/serve.py [--rounds 3] [--seconds 60]
"""

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from _paired import alternate, median, ratio

PROMPT, NEW, CONTEXT, VOCABULARY = 16, 200, 256, 8192
MODELS = ("demo", "M")


def make(name: str, folder: Path) -> None:
    """A run folder whose parameters are random."""
    from flax import nnx

    from tsuzuri.model import Decoder
    from tsuzuri.presets import demo, preset
    from tsuzuri.run_folder import create
    from tsuzuri.tokenizer import ByteTokenizer

    config = demo() if name == "demo" else preset("gpt2", "small", sequence_length=CONTEXT)
    cfg = config.resolved_model(VOCABULARY)
    if cfg.context_length != CONTEXT:
        raise SystemExit(f"the demo's context is no longer {CONTEXT}")
    params = nnx.to_pure_dict(nnx.split(Decoder(cfg, rngs=nnx.Rngs(0)))[1])
    create(folder, dataclasses.replace(config, model=cfg), ByteTokenizer(), params)


def generate(run: Path, seconds: float) -> dict[str, float]:
    """Tokens/s of 16 prompts at once."""
    import tsuzuri
    from tsuzuri.sampling import Sampling
    from tsuzuri.verbs import start_jax

    start_jax()
    model = tsuzuri.load(run)
    sampling = Sampling(temperature=0, max_new_tokens=NEW)

    def once() -> int:
        return sum(len(c.ids) for c in model.generate_many(["a" * PROMPT] * 16, sampling))

    if once() != 16 * NEW:
        raise SystemExit("a text ended early")
    began, tokens = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        tokens += once()
    return {"tokens/s": tokens / (time.perf_counter() - began)}


@contextmanager
def server(run: Path):
    command = [sys.executable, "-m", "tsuzuri.cli", "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            for said in process.stderr:
                if "http://" in said:
                    break
            else:
                raise SystemExit("the server did not start")
            port = int(said.split()[0].rpartition(":")[2])
            asyncio.run(ask(port, run.name, Figures()))
            yield port
        finally:
            process.terminate()


@dataclasses.dataclass
class Figures:
    statuses: Counter = dataclasses.field(default_factory=Counter)
    first: list[float] = dataclasses.field(default_factory=list)
    whole: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0


async def ask(port: int, model: str, figures: Figures) -> None:
    """One request; the client is as light as can be, since it runs beside the server."""
    body = {"model": model, "prompt": "a" * PROMPT, "max_tokens": NEW, "temperature": 0}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    content = json.dumps(body).encode()
    began, first = time.perf_counter(), None
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}"
        writer.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + content)
        status = int((await reader.readline()).split()[1])
        figures.statuses[status] += 1
        said = bytearray()
        while got := await reader.read(65536):
            if first is None and b'"text"' in got:
                first = time.perf_counter() - began
            said += got
        if status == 200:
            if first is None or b"data: [DONE]" not in said:
                figures.statuses["cut short"] += 1
                return
            figures.tokens += int(said.rpartition(b'"completion_tokens": ')[2].split(b",")[0])
            figures.first.append(first)
            figures.whole.append(time.perf_counter() - began)
        elif status == 429:
            await asyncio.sleep(1)
    finally:
        writer.close()


async def crowd(port: int, model: str, clients: int, seconds: float, slow: int = 0) -> dict:
    """So many clients for so long, beside `slow` sockets that never finish their headers."""
    figures, end = Figures(), time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < end:
            try:
                await ask(port, model, figures)
            except OSError as error:
                figures.statuses[type(error).__name__] += 1

    async def dawdle() -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"POST /v1/completions HTTP/1.1\r\nX-Slow: ")
                while not writer.is_closing():
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(1)
            except OSError:
                pass

    slow_ones = [asyncio.create_task(dawdle()) for _ in range(slow)]
    if slow:
        await asyncio.sleep(1)
    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    took = time.perf_counter() - began
    for one in slow_ones:
        one.cancel()
    return {
        "tokens/s": figures.tokens / took,
        "first": percentile(figures.first),
        "whole": percentile(figures.whole),
        "statuses": dict(figures.statuses),
        "requests": len(figures.whole),
    }


def percentile(values: list[float], share: int = 95) -> float:
    return statistics.quantiles(values, n=100)[share - 1] if len(values) > 1 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--generate", type=Path, help="one measurement")
    parser.add_argument("--serve", type=Path, help="one measurement")
    args = parser.parse_args()
    if args.generate:
        print(json.dumps(generate(args.generate, args.seconds)))
        return
    if args.serve:
        with server(args.serve) as port:
            print(json.dumps(asyncio.run(crowd(port, args.serve.name, 16, args.seconds))))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
        for name in args.models:
            run = Path(folder) / name
            make(name, run)
            measure(name, run, args.rounds, args.seconds)


def measure(name: str, run: Path, rounds: int, seconds: float) -> None:
    def row(what: str, found: str) -> None:
        print(f"{name:6}{what:38}{found}", flush=True)

    command = [sys.executable, __file__, "--seconds", str(seconds / 4)]
    commands = {w: [*command, f"--{w}", str(run)] for w in ("generate", "serve")}
    results = alternate(commands, rounds)
    for what in commands:
        row(f"{what}, 16 at once", f"{median(results[what], 'tokens/s'):,.0f} tokens/s")
    row("of generate's", f"{ratio(results['serve'], results['generate'], 'tokens/s'):.0%}")
    with server(run) as port:
        four = asyncio.run(crowd(port, run.name, 4, seconds / 4))
        many = asyncio.run(crowd(port, run.name, 64, seconds))
        slow = asyncio.run(crowd(port, run.name, 4, seconds / 4, slow=200))
        again = asyncio.run(crowd(port, run.name, 4, seconds / 4))
    row("4 clients, first token, p95", f"{four['first'] * 1e3:.0f} ms")
    row(f"64 clients for {seconds:.0f} s", f"{many['statuses']}, {many['tokens/s']:,.0f} tokens/s")
    alone = (four["whole"] + again["whole"]) / 2
    row("4 clients, p95", f"{alone:.2f} s")
    share = slow["whole"] / alone
    row("beside 200 slow sockets", f"{slow['whole']:.2f} s, {share:.2f} times; {slow['statuses']}")


if __name__ == "__main__":
    main()
