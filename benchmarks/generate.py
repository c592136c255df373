"""Generation speed: new tokens a second, by prompts at once.

The work: a GPT-2 shaped model of random parameters in float32 (6 layers, 6 heads, 384 wide, context
256, vocabulary 8192) continues prompts of 16 tokens by 200 tokens, greedily, from a KV cache. Ours
is the whole of `Generator.generate`, text included; its tokenizer is the bytes.

The peer: `GPT2LMHeadModel.generate` of Hugging Face transformers, its default dynamic cache.

The memory's bandwidth: the best of reading 1 GB by one thread or by all cores, beside each of our
measurements, in its process. A token needs all weights once but the embedding tables, of which it
reads a row; the tied head is such a table and counts. The share is what a batch of 1 reaches:
tokens/s x these bytes / bandwidth.

The first token: the path of `tsuzuri generate --stream` in a new process whose compilation cache is
warm, seconds from the call to the first piece of text; loading is `tsuzuri.load` before it.

    python benchmarks/generate.py [--rounds 5]
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _paired import alternate, median, ratio

LAYERS, HEADS, WIDTH, CONTEXT, VOCABULARY = 6, 6, 384, 256, 8192
PROMPT, NEW = 16, 200
REPEATS = 5  # measurements in a process, after one to warm up


def model():
    from flax import nnx

    from tsuzuri.model import Decoder
    from tsuzuri.presets import preset

    shape = {"model.num_layers": LAYERS, "model.num_heads": HEADS, "model.embed_dim": WIDTH}
    config = preset("gpt2", "small", sequence_length=CONTEXT, **shape)
    cfg = config.resolved_model(VOCABULARY)
    return cfg, nnx.to_pure_dict(nnx.split(Decoder(cfg, rngs=nnx.Rngs(0)))[1])


def tsuzuri(batch: int) -> Callable[[], int]:
    from tsuzuri.generate import Generator
    from tsuzuri.sampling import Sampling
    from tsuzuri.tokenizer import ByteTokenizer

    cfg, params = model()
    generator = Generator(cfg, params, ByteTokenizer())
    prompts = ["a" * (PROMPT - 1)] * batch  # and the end of text before it
    sampling = Sampling(temperature=0, max_new_tokens=NEW)
    return lambda: sum(len(c.ids) for c in generator.generate(prompts, sampling))


def transformers(batch: int) -> Callable[[], int]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    prompt = torch.full((batch, PROMPT), 99)
    settings = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW}
    mask = torch.ones_like(prompt)

    def run() -> int:
        return model.generate(prompt, attention_mask=mask, **settings)[:, PROMPT:].numel()

    return run


def gigabytes_a_second() -> float:
    """The memory's bandwidth, read by one thread or by all cores, whichever is more."""
    import numpy as np

    memory, best = np.ones(2**28, np.float32), 0.0
    for threads in {1, os.cpu_count() or 1}:
        parts = np.array_split(memory, threads)
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(REPEATS):
                start = time.perf_counter()
                list(pool.map(np.max, parts))
                best = max(best, memory.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def weights_gigabytes() -> float:
    """What the matrices, biases and norms of float32 take; of the position table a row is read."""
    import jax

    _, params = model()
    del params["position_embed"]
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e9


def first_token(folder: Path) -> None:
    """Seconds to load a run folder, and from there to the first piece of text."""
    from tsuzuri.verbs import start_jax

    start_jax()
    import tsuzuri
    from tsuzuri.config import replace
    from tsuzuri.presets import preset
    from tsuzuri.run_folder import create
    from tsuzuri.sampling import Sampling
    from tsuzuri.tokenizer import ByteTokenizer

    if not folder.exists():
        cfg, params = model()
        config = replace(preset("gpt2", "small"), {"sequence_length": CONTEXT})
        config = dataclasses.replace(config, model=cfg)
        create(folder, config, ByteTokenizer(), params)
    start = time.perf_counter()
    loaded = tsuzuri.load(folder)
    at_load, first = time.perf_counter(), []
    loaded.generate_many(
        ["a" * (PROMPT - 1)],
        Sampling(temperature=0, max_new_tokens=NEW),
        lambda row, text: first.append(time.perf_counter()),
    )
    print(json.dumps({"load": at_load - start, "first": first[0] - at_load}))


PROGRAMS = {"tsuzuri": tsuzuri, "transformers": transformers}


def measure(program: str, batch: int) -> None:
    run, seconds = PROGRAMS[program](batch), []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        if run() != batch * NEW:
            raise SystemExit(f"{program} ended a text before {NEW} tokens")
        seconds.append(time.perf_counter() - start)
    speed = batch * NEW / statistics.median(seconds[1:])
    figures = {"tokens/s": speed}
    if program == "tsuzuri" and batch == 1:
        figures["bandwidth"] = gigabytes_a_second()
        figures["share"] = speed * weights_gigabytes() / figures["bandwidth"]
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--measure", nargs=2, metavar=("PROGRAM", "BATCH"), help="one measurement")
    parser.add_argument("--first-token", metavar="RUN", help="one measurement")
    args = parser.parse_args()
    if args.first_token:
        first_token(Path(args.first_token))
        return
    if args.measure:
        measure(args.measure[0], int(args.measure[1]))
        return
    print(f"{'prompts at once':16}{'program':16}{'tokens/s':>10}{'of transformers':>18}")
    for batch in args.batches:
        command = [sys.executable, __file__, "--measure"]
        commands = {name: [*command, name, str(batch)] for name in PROGRAMS}
        results = alternate(commands, args.rounds)
        for name, result in results.items():
            share = ratio(result, results["transformers"], "tokens/s")
            print(f"{batch:<16}{name:16}{median(result, 'tokens/s'):10,.0f}{share:18.2f}")
        if batch == 1:
            bandwidth, share = (median(results["tsuzuri"], key) for key in ("bandwidth", "share"))
            print(f"of the memory's {bandwidth:.0f} GB/s a batch of 1 reads {share:.0%}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"
        command = [sys.executable, __file__, "--first-token", f"{folder}/run"]
        alternate({"warms": command}, 2)  # the first makes the run folder
        found = alternate({"first": command}, args.rounds)["first"]
    print(
        f"first token {median(found, 'first'):.2f} s after loading ({median(found, 'load'):.2f} s)"
    )


if __name__ == "__main__":
    main()
