"""The training programs that train.py compares: ours and its peers', each with its own optimizer.

A program builds a model of random weights on the device and gives back what can be timed. It alone
imports its library: torch and JAX in one process slow each other down.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Work:
    """One size of the work."""

    preset: str  # of ours: gpt2 or nanolm
    layers: int
    heads: int
    width: int
    length: int
    batch: int
    vocabulary: int
    dropout: float = 0.0
    steps_per_call: int = 10  # of ours as Config.steps_per_call; the peers step one by one
    seconds: float = 10  # of each measurement, after the warm-up
    run_steps: int = 0  # of a whole run whose time is projected

    @property
    def head_dim(self) -> int:
        """jax-llm asks that all heads of NanoLM together times the heads make up the width."""
        return self.width // self.heads // (self.heads if self.preset == "nanolm" else 1)

    @property
    def tokens(self) -> int:
        """Of one call."""
        return self.steps_per_call * self.batch * self.length


class Program(NamedTuple):
    """What is timed of a program; the device is idle when a call returns."""

    call: Callable[[], None]  # work.steps_per_call steps
    products: Callable[[], Callable[[], object]]  # makes matrices, and what multiplies them
    device_mib: Callable[[], float | None]  # the most memory held; None: it is the process's


MULTIPLICATIONS = 8  # one after the other, in a call of what `Program.products` gives


def matrix_size(device: str) -> int:
    """Rows and columns of those matrices."""
    return 1024 if device == "cpu" else 8192


def random_tokens(work: Work, steps: int) -> np.ndarray:
    """int32 [N, B, T+1]"""
    shape = steps, work.batch, work.length + 1
    return np.random.default_rng(0).integers(0, work.vocabulary, shape, np.int32)


def tsuzuri(work: Work, device: str) -> Program:
    """`tsuzuri.train`'s own step, several in one call."""
    import jax

    from tsuzuri.data import Batch
    from tsuzuri.sharding import one_device
    from tsuzuri.step import make_training

    cfg = config(work, device)
    model_cfg = cfg.resolved_model(work.vocabulary)
    _, init, train_steps = make_training(cfg, model_cfg, one_device())
    blocks = random_tokens(work, work.steps_per_call)[:, None]
    weights = np.ones_like(blocks[..., 1:], np.float32)
    batches = jax.device_put(Batch(blocks[..., :-1], blocks[..., 1:], weights))
    state = init(jax.random.key(0))

    def call() -> None:
        nonlocal state
        state, _ = train_steps(state, batches)
        jax.block_until_ready(state)

    return Program(call, partial(jax_products, device, model_cfg.dtype), jax_mib)


def config(work: Work, device: str) -> Any:
    """Ours for this work: float32 on a CPU, elsewhere bfloat16 over float32 parameters."""
    from tsuzuri.presets import preset

    changes = {
        "batch_size": work.batch,
        "sequence_length": work.length,
        "model.num_layers": work.layers,
        "model.num_heads": work.heads,
        "model.head_dim": work.head_dim,
        "model.embed_dim": work.width,
        "model.dropout": work.dropout,
        "model.dtype": "float32" if device == "cpu" else "bfloat16",
    }
    return preset(work.preset, "small", **changes)


def jax_llm(work: Work, device: str) -> Program:
    """jax-llm's loop: a Linen NanoLM in float32, optax.adamw, nothing donated, a step a call.

    https://github.com/speed1313/jax-llm/blob/main/src/jax_llm/train.py. Its batches are drawn in
    the step; here, where they are random, they are given.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen

    class NanoLM(linen.Module):
        @linen.compact
        def __call__(self, tokens: jax.Array, deterministic: bool) -> jax.Array:
            x = linen.Embed(work.vocabulary, work.width)(tokens)
            x = x + linen.Embed(work.length, work.width)(jnp.arange(work.length))
            mask = jnp.tril(jnp.ones((work.length, work.length)))
            for _ in range(work.layers):
                attention = linen.MultiHeadDotProductAttention(
                    num_heads=work.heads,
                    qkv_features=work.heads * work.head_dim,
                    out_features=work.width,
                    dropout_rate=work.dropout,
                )
                x = x + attention(linen.LayerNorm()(x), mask=mask, deterministic=deterministic)
                y = linen.relu(linen.Dense(4 * work.width)(linen.LayerNorm()(x)))
                y = linen.Dropout(work.dropout, deterministic=deterministic)(y)
                x = x + linen.Dense(work.width)(y)
            return linen.Dense(work.vocabulary)(linen.LayerNorm()(x))

    model, optimizer = NanoLM(), optax.adamw(1e-3)
    blocks = jax.device_put(random_tokens(work, 1)[0])
    tokens, targets = blocks[:, :-1], blocks[:, 1:]
    params = model.init(jax.random.key(0), tokens, deterministic=True)
    opt_state, key = optimizer.init(params), jax.random.key(1)

    @jax.jit
    def step(params: Any, opt_state: Any, key: jax.Array, tokens: Any, targets: Any) -> Any:
        key, dropout_key = jax.random.split(key)

        def loss_of(params: Any) -> jax.Array:
            logits = model.apply(params, tokens, False, rngs={"dropout": dropout_key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, key, loss

    def call() -> None:
        nonlocal params, opt_state, key
        for _ in range(work.steps_per_call):
            params, opt_state, key, _ = step(params, opt_state, key, tokens, targets)
        jax.block_until_ready(params)

    return Program(call, partial(jax_products, device, "float32"), jax_mib)


def jax_products(device: str, dtype: str) -> Callable[[], object]:
    import jax

    key_a, key_b = jax.random.split(jax.random.key(0))
    size = matrix_size(device)
    a = jax.random.normal(key_a, (size, size), dtype)
    b = jax.random.normal(key_b, (size, size), dtype) / size**0.5  # a @ b is of a's size

    @jax.jit
    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        for _ in range(MULTIPLICATIONS):
            a = a @ b
        return a

    return lambda: jax.block_until_ready(multiply(a, b))


def jax_mib() -> float | None:
    import jax

    stats = jax.local_devices()[0].memory_stats()
    return stats and stats["peak_bytes_in_use"] / 2**20


def torch_eager(work: Work, device: str) -> Program:
    """A GPT-2 in plain PyTorch."""
    return on_torch(nano_gpt(work), work, device)


def torch_compiled(work: Work, device: str) -> Program:
    """The same under `torch.compile`, which finds nothing that was compiled before."""
    import torch
    from torch._inductor import config as inductor

    inductor.force_disable_caches = True
    warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
    return on_torch(torch.compile(nano_gpt(work)), work, device)


def transformers(work: Work, device: str) -> Program:
    """Hugging Face's GPT2LMHeadModel, as its Trainer steps."""
    from torch import nn
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=work.vocabulary,
        n_positions=work.length,
        n_embd=work.width,
        n_layer=work.layers,
        n_head=work.heads,
        resid_pdrop=work.dropout,
        embd_pdrop=work.dropout,
        attn_pdrop=work.dropout,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = GPT2LMHeadModel(config)
            self.model.loss_type = "ForCausalLM"  # the default, but it warns of it

        def forward(self, tokens: Any, targets: Any) -> Any:
            return self.model(tokens, labels=tokens).loss  # it shifts them by itself

    return on_torch(WithLoss(), work, device)


def nano_gpt(work: Work) -> Any:
    """Written the way nanoGPT describes its own: (tokens, targets) -> loss."""
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
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            x = self.token_embed(tokens) + self.position_embed(positions)
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.norm(x))
            return F.cross_entropy(logits.view(-1, work.vocabulary), targets.reshape(-1))

    return GPT()


def on_torch(model: Any, work: Work, device: str) -> Program:
    """Fused AdamW with weight decay of matrices, and clipping; on a GPU in bfloat16 by autocast."""
    import torch

    gpu = device == "gpu"
    if gpu:
        torch.set_float32_matmul_precision("high")  # TF32
    place = torch.device("cuda" if gpu else "cpu")
    model.to(place).train()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    blocks = torch.from_numpy(random_tokens(work, 1)[0]).long().to(place)
    tokens, targets = blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous()

    def call() -> None:
        for _ in range(work.steps_per_call):
            with torch.autocast(place.type, torch.bfloat16, enabled=gpu):
                loss = model(tokens, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        wait()

    def products() -> Callable[[], object]:
        size, dtype = matrix_size(device), torch.bfloat16 if gpu else torch.float32
        a = torch.randn(size, size, device=place).to(dtype)
        b = (torch.randn(size, size, device=place) / size**0.5).to(dtype)  # a @ b is of a's size

        @torch.no_grad()
        def multiply() -> None:
            result = a
            for _ in range(MULTIPLICATIONS):
                result = result @ b
            wait()

        return multiply

    def wait() -> None:
        if gpu:
            torch.cuda.synchronize()

    def device_mib() -> float | None:
        return torch.cuda.max_memory_allocated() / 2**20 if gpu else None

    return Program(call, products, device_mib)
