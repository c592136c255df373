"""Generation speed: new tokens a second, by prompts at once.

The work: a GPT-2 shaped model of random parameters in float32 (6 layers, 6 heads, 384 wide, context
256, vocabulary 8192) continues prompts of 16 tokens by 200 tokens, greedily, from a KV cache. Ours
is the whole of `Generator.generate`, text included; its tokenizer is the bytes.

The peer: `GPT2LMHeadModel.generate` of Hugging Face transformers, its default dynamic cache.

    python benchmarks/generate.py [--rounds 5]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

from _paired import alternate, median, ratio

LAYERS, HEADS, WIDTH, CONTEXT, VOCABULARY = 6, 6, 384, 256, 8192
PROMPT, NEW = 16, 200
REPEATS = 5  # measurements in a process, after one to warm up


def tsuzuri(batch: int) -> Callable[[], int]:
    from flax import nnx

    from tsuzuri.generate import Generator, Sampling
    from tsuzuri.model import Decoder
    from tsuzuri.presets import preset
    from tsuzuri.tokenizer import ByteTokenizer

    shape = {"model.num_layers": LAYERS, "model.num_heads": HEADS, "model.embed_dim": WIDTH}
    config = preset("gpt2", "small", sequence_length=CONTEXT, **shape)
    cfg = config.resolved_model(VOCABULARY)
    params = nnx.to_pure_dict(nnx.split(Decoder(cfg, rngs=nnx.Rngs(0)))[1])
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


PROGRAMS = {"tsuzuri": tsuzuri, "transformers": transformers}


def measure(program: str, batch: int) -> None:
    run, seconds = PROGRAMS[program](batch), []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        if run() != batch * NEW:
            raise SystemExit(f"{program} ended a text before {NEW} tokens")
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"tokens/s": batch * NEW / statistics.median(seconds[1:])}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--measure", nargs=2, metavar=("PROGRAM", "BATCH"), help="one measurement")
    args = parser.parse_args()
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


if __name__ == "__main__":
    main()
