"""Quality for tokens: held-out bits per byte of the presets, each by its own recipe.

The work: train on a text with a byte-level BPE of 8192 tokens, blocks of 256, all models of the
same number of parameters within 5 %. NanoLM, the peer, sees --tokens tokens by its own recipe
(AdamW at 1e-3, constant, dropout 0.1); the others see a third of that.

    python benchmarks/quality.py [--text data/aozora] [--tokens 3000000] [--out runs/quality]
                                 [--only NAME ...] [--seed 0]

Without --text it reads the embedded tales. Each is a run folder in --out, so a second call goes on,
and only draws what is done. The picture is OUT/quality.png. What counts is tokens, not time: a busy
machine changes nothing.
"""

import argparse
import math
from pathlib import Path
from typing import Any

LENGTH = 256
SHAPE = {"model.embed_dim": 168}  # tied heads: as many parameters as NanoLM's 128 with two tables
ADAMW = {  # the usual recipe of the field, as our gpt2 has it
    "optim.optimizer": "adamw",
    "optim.b2": 0.95,
    "optim.weight_decay": 0.1,
    "optim.final_ratio": 0.1,
    "learning_rate": 3e-3,
    "batch_size": 16,
}
# name: (preset, what differs from it, tokens as a share of NanoLM's)
RUNS: dict[str, tuple[str, dict[str, Any], float]] = {
    "nanolm": ("nanolm", {"batch_size": 16}, 1.0),
    "gpt2": ("gpt2", SHAPE | {"batch_size": 16}, 1 / 3),
    "llama, AdamW": ("llama", SHAPE | ADAMW, 1 / 3),
    "llama, Muon": ("llama", SHAPE, 1 / 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text")
    parser.add_argument("--tokens", type=int, default=3_000_000)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from tsuzuri import corpus, features, tokenizer
    from tsuzuri.config import Config, TextConfig, TokenizerConfig
    from tsuzuri.presets import preset
    from tsuzuri.track import read_jsonl
    from tsuzuri.train import train

    def documents():
        if args.text:
            return corpus.read([args.text], TextConfig(), print)
        return corpus.named("tales").documents(count=30_000, say=print)

    prepared = args.out / "features"
    if not prepared.exists():
        default = Config().features
        texts = features.training_texts(documents, default, 0)
        tok = tokenizer.train(texts, TokenizerConfig(vocab_size=8192), print, progress=False)
        features.featurize(documents, tok, prepared, LENGTH, default, 0, {}, print, progress=False)
    split = features.read_features(prepared)["splits"]["held_out"]
    bits = split["tokens"] / split["bytes"] / math.log(2)  # nats a token to bits a byte
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in args.only:
        base, changes, share = RUNS[name]
        per_step = preset(base, "tiny", **changes).batch_size * LENGTH
        steps = round(args.tokens * share / per_step)
        every = max(steps // 12, 1)
        cadence = {"steps": steps, "eval_every": every, "eval_blocks": 10_000, "sample_every": 0}
        cadence |= {"save_every": every, "steps_per_call": 5, "seed": args.seed}
        run = args.out / name.replace(", ", "-").lower()
        train(preset(base, "tiny", **changes | cadence), run, [str(prepared)])
        curves[name] = [
            (line["step"] * per_step, line["held_out_loss"] * bits)
            for line in read_jsonl(run / "metrics.jsonl")
            if "held_out_loss" in line
        ]
    print(f"\n{'':16}{'tokens':>12}{'bits a byte':>14}")
    for name, curve in curves.items():
        print(f"{name:16}{curve[-1][0]:12,.0f}{curve[-1][1]:14.4f}")
    draw(curves, args.out / "quality.png")


def draw(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, curve in curves.items():
        tokens, bits = zip(*curve, strict=True)
        axes.plot([t / 1e6 for t in tokens], bits, "o-", markersize=3.5, label=name)
    if "nanolm" in curves:
        axes.axhline(curves["nanolm"][-1][1], color="gray", linestyle="--", linewidth=1)
    axes.set(xlabel="million tokens", ylabel="held-out bits a byte", title="Quality for tokens")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=144)


if __name__ == "__main__":
    main()
