"""Training speed: tokens a second of our train step and of PyTorch's, at two sizes.

The work: the whole step of a GPT-2 shaped model in float32, dropout 0, AdamW with weight decay and
the gradient's norm clipped to 1, on random tokens that already lie on the device.

    M  6 layers, 6 heads, 384 wide, T 256, batch 16, vocabulary 8192, tied head
    S  4 layers, 4 heads, 128 wide, T 64, batch 12, vocabulary 65, tied head

The peers: a GPT-2 in plain PyTorch, written here the way nanoGPT describes its own (fused AdamW,
`scaled_dot_product_attention`, tied head), eager and under `torch.compile`.

A process that waits for a core makes torch's threads spin, so only a quiet machine is fair to it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from _paired import alternate, median, ratio


@dataclass(frozen=True)
class Work:
    """One size of the work."""

    layers: int
    heads: int
    width: int
    length: int
    batch: int
    vocabulary: int
    steps_per_call: int  # of ours, as Config.steps_per_call; the peers run step by step
    seconds: float  # of each measurement, after the warm-up


WORKS = {
    "M": Work(6, 6, 384, 256, 16, 8192, steps_per_call=2, seconds=15),
    "S": Work(4, 4, 128, 64, 12, 65, steps_per_call=10, seconds=4),
}


def ours(work: Work) -> float:
    """Tokens a second of `tsuzuri.train`'s own step with the gpt2 preset."""
    import jax
    import numpy as np

    from tsuzuri.config import replace
    from tsuzuri.data import Batch
    from tsuzuri.presets import gpt2
    from tsuzuri.sharding import make_mesh
    from tsuzuri.train import make_training

    cfg = replace(
        gpt2("small"),
        {
            "batch_size": work.batch,
            "sequence_length": work.length,
            "model.num_layers": work.layers,
            "model.num_heads": work.heads,
            "model.embed_dim": work.width,
        },
    )
    mesh = make_mesh(cfg.mesh, cfg.batch_size)
    _, init, train_steps = make_training(cfg, cfg.resolved_model(work.vocabulary), mesh)
    shape = (work.steps_per_call, work.batch, work.length + 1)
    blocks = np.random.default_rng(0).integers(0, work.vocabulary, shape, np.int32)
    weights = np.ones_like(blocks[..., 1:], np.float32)
    batches = jax.device_put(Batch(blocks[..., :-1], blocks[..., 1:], weights))
    state = init(jax.random.key(0))

    def call() -> None:
        nonlocal state
        state, metrics = train_steps(state, batches)
        jax.block_until_ready(metrics)

    tokens = work.steps_per_call * work.batch * work.length
    return tokens * calls_per_second(call, work.seconds)


def torch_eager(work: Work, compiled: bool = False) -> float:
    """Tokens a second of the same step in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(work.width), nn.LayerNorm(work.width)
            self.qkv = nn.Linear(work.width, 3 * work.width)
            self.out = nn.Linear(work.width, work.width)
            self.up = nn.Linear(work.width, 4 * work.width)
            self.down = nn.Linear(4 * work.width, work.width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            B, T, D = x.shape
            q, k, v = self.qkv(self.norm_1(x)).split(D, dim=2)
            q, k, v = (y.view(B, T, work.heads, -1).transpose(1, 2) for y in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
            return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embed = nn.Embedding(work.vocabulary, work.width)
            self.position_embed = nn.Embedding(work.length, work.width)
            self.blocks = nn.ModuleList([Block() for _ in range(work.layers)])
            self.norm = nn.LayerNorm(work.width)
            self.head = nn.Linear(work.width, work.vocabulary, bias=False)
            self.apply(self.initialize)
            self.head.weight = self.token_embed.weight

        def initialize(self, module: nn.Module) -> None:
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

        def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            positions = torch.arange(tokens.shape[1])
            x = self.token_embed(tokens) + self.position_embed(positions)
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.norm(x))
            return F.cross_entropy(logits.view(-1, work.vocabulary), targets.reshape(-1))

    torch.manual_seed(0)
    model = GPT()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    loss_of = torch.compile(model) if compiled else model
    blocks = torch.randint(work.vocabulary, (work.batch, work.length + 1))
    tokens, targets = blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous()

    def call() -> None:
        loss_of(tokens, targets).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work.batch * work.length * calls_per_second(call, work.seconds)


def torch_compiled(work: Work) -> float:
    """Tokens a second of the same step in PyTorch, compiled."""
    return torch_eager(work, compiled=True)


PROGRAMS = {"tsuzuri": ours, "torch eager": torch_eager, "torch compiled": torch_compiled}


def calls_per_second(call: Callable[[], None], seconds: float) -> float:
    """After two calls of warm-up, the median rate of the calls that fit in `seconds`."""
    call(), call()
    times, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        call()
        times.append(time.perf_counter() - start)
    return 1 / statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--measure", nargs=2, metavar=("PROGRAM", "SIZE"), help="one measurement")
    args = parser.parse_args()
    if args.measure:
        program, size = args.measure
        print(json.dumps({"tokens/s": PROGRAMS[program](WORKS[size])}))
        return
    print(f"{'training step':20}{'size':>6}{'tokens/s':>12}{'tsuzuri / it':>16}")
    for size in args.sizes:
        command = [sys.executable, __file__, "--measure"]
        results = alternate({name: [*command, name, size] for name in PROGRAMS}, args.rounds)
        for name, result in results.items():
            times = ratio(results["tsuzuri"], result, "tokens/s")
            print(
                f"{name:20}{size:>6}{median(result, 'tokens/s'):12,.0f}{times:15.2f}x", flush=True
            )


if __name__ == "__main__":
    main()
