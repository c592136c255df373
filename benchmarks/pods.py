"""Training steps on TPU pods that are not here: what their own compiler makes of them.

    pip install 'tsuzuri[tpu]'
    python benchmarks/pods.py                  # every row: minutes each
    python benchmarks/pods.py 8B v5p:4x4x4     # only rows that have these words

The work: one training step of three models on several meshes, compiled by libtpu for a topology.
There are no peers: the columns are the compiler's memory, the counts of its program times the trips
of its loops, and the roofline of docs/en/scale.md. It prints a table as in docs/benchmarks.md.
"""

import sys

from tsuzuri.config import Config, MeshConfig, replace
from tsuzuri.errors import UserError
from tsuzuri.pod import Step, compiled
from tsuzuri.presets import preset

LOOP = {"compute.scan_layers": True}
MODELS: dict[str, tuple[Config, int]] = {
    # As the seed has them, but for the vocabulary: a multiple of 1,024 parts evenly over tiles.
    "0.1B": (preset("japanese-0.1b", **LOOP, **{"model.vocab_size": 30_720}), 30_000),
    "1B": (preset("japanese-1.0b", **LOOP, **{"model.vocab_size": 30_720}), 30_000),
    # Llama 3 8B (arXiv:2407.21783), with AdamW.
    "8B": (
        replace(
            preset("llama", "base", sequence_length=4096, **LOOP),
            {
                "model.num_layers": 32,
                "model.embed_dim": 4096,
                "model.num_heads": 32,
                "model.num_kv_heads": 8,
                "model.mlp_dim": 14336,
                "model.tied_head": False,
                "model.rope_theta": 500_000.0,
                "model.dtype": "bfloat16",
                "optim.optimizer": "adamw",
                "compute.remat": "full",
            },
        ),
        128_256,
    ),
}
# model, topology, batch, then data x fsdp x tensor
ROWS = [
    ("0.1B", "v5e:2x2", 128, (4, 1, 1)),
    ("0.1B", "v5e:2x2", 128, (1, 4, 1)),
    ("0.1B", "v5e:2x2", 128, (2, 1, 2)),
    ("1B", "v5e:16x16", 1024, (1, 256, 1)),
    ("1B", "v5e:16x16", 1024, (2, 128, 1)),
    ("1B", "v5e:16x16", 1024, (4, 64, 1)),
    ("1B", "v5e:16x16", 1024, (16, 16, 1)),
    ("1B", "v5e:16x16", 256, (1, 64, 4)),
    ("1B", "v5p:4x4x4", 512, (1, 64, 1)),
    ("1B", "v5p:4x4x4", 512, (4, 16, 1)),
    ("1B", "v5p:4x4x4", 512, (16, 4, 1)),
    ("8B", "v5e:16x16", 256, (2, 128, 1)),
    ("8B", "v5e:16x16", 256, (1, 64, 4)),
    ("8B", "v5p:4x4x4", 256, (4, 16, 1)),
    ("8B", "v5p:4x4x4", 256, (1, 16, 4)),
]


def main() -> None:
    words = sys.argv[1:]
    print(
        "| model | pod | batch | data x fsdp x tensor | memory a chip | matrices | memory | links "
        "| gradients | MFU at once | one by one |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, topology, batch, mesh in ROWS:
        if not all(word in (name, topology) for word in words):
            continue
        cfg, vocab_size = MODELS[name]
        cfg = replace(cfg, {"batch_size": batch})
        cfg = Config(**(cfg.__dict__ | {"mesh": MeshConfig(*mesh)}))
        what = f"| {name} | {topology} | {batch} x {cfg.sequence_length} | {shown(mesh)} "
        try:
            print(what + row(compiled(cfg, vocab_size, topology)), flush=True)
        except UserError as error:
            print(f"{what}| {error} |", flush=True)


def row(step: Step) -> str:
    parts = [step.matmul, step.hbm, step.links]
    times = " | ".join(f"{1000 * seconds:.1f} ms" for seconds in parts)
    reduced = dict.fromkeys(("reduce-scatter", "all-reduce"), 0.0)
    for one in step.exchanges:
        if one.kind in reduced and "tensor" not in one.axes:
            reduced[one.kind] += one.size / 2**30
    gradients = ", ".join(f"{kind} {size:.2f} GiB" for kind, size in reduced.items())
    at_once, one_by_one = step.mfu(step.seconds), step.mfu(step.seconds_one_by_one)
    return (
        f"| {step.needed / 2**30:.2f} GiB | {times} | {gradients} "
        f"| {at_once:.0%} | {one_by_one:.0%} |"
    )


def shown(mesh: tuple[int, int, int]) -> str:
    return " x ".join(map(str, mesh))


if __name__ == "__main__":
    main()
