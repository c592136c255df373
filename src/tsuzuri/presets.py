"""Named models with their recipes, each a function to a Config.

A preset is where an architecture of the literature becomes numbers; nothing else in the house knows
its name. Some are families, to be had in our three sizes; others were published in one shape.
"""

from collections.abc import Callable
from typing import Any

from tsuzuri.config import (
    Config,
    FeaturesConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TokenizerConfig,
    replace,
    suggestion,
)
from tsuzuri.errors import UserError

# A model's shape by size: tiny trains on a laptop's CPU in minutes, base is GPT-2's smallest.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_layers": 4, "num_heads": 4, "embed_dim": 128},
    "small": {"num_layers": 6, "num_heads": 6, "embed_dim": 384},
    "base": {"num_layers": 12, "num_heads": 12, "embed_dim": 768},
}
_LEARNING_RATES = {"tiny": 3e-3, "small": 1e-3, "base": 6e-4}


def llama(size: str) -> Config:
    """Our default (Touvron et al. 2023): rope, RMS norm, SwiGLU, no biases, tied head.

    With Muon, at twice AdamW's rate, and small batches: of what was tried on Aozora at size tiny it
    takes by far the fewest tokens (docs/log.md). The larger sizes follow it, unmeasured.
    """
    return Config(
        preset="llama",
        size=size,
        learning_rate=2 * _LEARNING_RATES[size],
        batch_size=8,
        optim=OptimConfig(optimizer="muon", b2=0.99, weight_decay=0.01, final_ratio=0.0),
        model=ModelConfig(**SIZES[size]),
    )


def gpt2(size: str) -> Config:
    """GPT-2 (Radford et al. 2019): learned positions, layer norm, tanh GELU, biases, tied head."""
    return Config(
        preset="gpt2",
        size=size,
        learning_rate=_LEARNING_RATES[size],
        model=ModelConfig(
            **SIZES[size],
            positions="learned",
            norm="layernorm",
            activation="gelu-tanh",
            attention_bias=True,
            mlp_bias=True,
        ),
    )


def nanolm(size: str) -> Config:
    """NanoLM (optax's example, as jax-llm trains it): relu, untied head, every bias, lecun init.

    NanoLM's head_size, 64, is the width of all its heads together: 64 / num_heads a head.
    """
    return Config(
        preset="nanolm",
        size=size,
        learning_rate=1e-3,
        optim=OptimConfig(
            schedule="constant",
            warmup_steps=0,
            b2=0.999,
            weight_decay=1e-4,
            decay_all=True,
            clip_norm=0.0,
        ),
        model=ModelConfig(
            **SIZES[size],
            head_dim=64 // SIZES[size]["num_heads"] // 2 * 2,
            positions="learned",
            norm="layernorm",
            norm_epsilon=1e-6,
            activation="relu",
            attention_bias=True,
            mlp_bias=True,
            head_bias=True,
            tied_head=False,
            dropout=0.1,
            init="lecun",
        ),
    )


_WITH_BYTES = "--character_coverage=0.9995 --byte_fallback=true"


def lm1b() -> Config:
    """Flax's lm1b example: the One Billion Word Benchmark, 50M parameters, on 8 devices.

    A decoder of Vaswani et al. 2017 with layer norms before the sublayers. The example drops
    attention weights and the MLP's hidden layer out too; here dropout is on the embedding and on
    each sublayer's output. Its SentencePiece normalizes the text; ours leaves it as it is.
    """
    return _transformer_lm(
        "lm1b", layers=6, heads=8, width=512, length=128, sample_mb=5,
        options="--character_coverage=1.0", prompt="I love to ",
    )  # fmt: skip


def japanese_default() -> Config:
    """transformer-lm-japanese's default: lm1b on the Japanese part of CC-100."""
    return _transformer_lm(
        "japanese-default", layers=6, heads=8, width=512, length=128, sample_mb=5,
        options="--character_coverage=0.9995", prompt="昔々あるところに",
    )  # fmt: skip


def japanese_0_1b() -> Config:
    """transformer-lm-japanese's 0.1b: lm1b in the shape of GPT-2, on the Japanese Wikipedia."""
    return _transformer_lm(
        "japanese-0.1b", layers=12, heads=12, width=768, length=256, sample_mb=400,
        options=_WITH_BYTES, prompt="昔々あるところに", eval_every=5000,
    )  # fmt: skip


def japanese_1_0b() -> Config:
    """transformer-lm-japanese's 1.0b: the same on 1024 tokens, half as many texts a step."""
    return _transformer_lm(
        "japanese-1.0b", layers=18, heads=16, width=2048, length=1024, sample_mb=400,
        options=_WITH_BYTES, prompt="日本の首都は", eval_every=5000, batch_size=128,
    )  # fmt: skip


def _transformer_lm(
    name: str,
    *,
    layers: int,
    heads: int,
    width: int,
    length: int,
    sample_mb: int,
    options: str,
    prompt: str,
    eval_every: int = 1000,
    batch_size: int = 256,
) -> Config:
    """What lm1b and its Japanese descendants share; a batch is that of 8 devices."""
    return Config(
        preset=name,
        size="",
        steps=500_000,
        batch_size=batch_size,
        sequence_length=length,
        learning_rate=1.6e-3,
        eval_every=eval_every,
        save_every=10_000,
        sample_every=eval_every,
        log_every=100,
        tokenizer=TokenizerConfig(
            kind="unigram",
            vocab_size=30_000,
            sample_mb=sample_mb,
            options=options,
        ),
        features=FeaturesConfig(packing="packed", held_out=0.02),
        optim=OptimConfig(
            schedule="rsqrt",
            warmup_steps=1000,
            b2=0.98,
            epsilon=1e-9,
            weight_decay=0.1,
            decay_all=True,
            clip_norm=0.0,
        ),
        model=ModelConfig(
            num_layers=layers,
            num_heads=heads,
            embed_dim=width,
            context_length=max(length, 512),
            positions="sinusoidal",
            norm="layernorm",
            norm_epsilon=1e-6,
            activation="relu",
            mlp_bias=True,
            head_bias=True,
            tied_head=False,
            dropout=0.1,
            init="lm1b",
            dtype="bfloat16",
        ),
        sample=SampleConfig(prompt=prompt, max_new_tokens=50, temperature=0.6, top_k=20),
    )


def minigpt() -> Config:
    """MiniGPT of the JAX AI stack's tutorial: TinyStories once, layer norms after the sublayers.

    Its blocks have dropout, which its training step never switches on. A block holds one story, as
    there; what is beyond 256 tokens, dropped there, becomes a block of its own here.
    """
    return Config(
        preset="minigpt",
        size="",
        steps=8280,  # 2,119,719 stories, once
        batch_size=256,
        sequence_length=256,
        learning_rate=1e-3,
        tokenizer=TokenizerConfig(path="gpt2"),
        features=FeaturesConfig(packing="document"),
        optim=OptimConfig(
            schedule="constant", warmup_steps=0, b2=0.999, weight_decay=0.0, clip_norm=0.0
        ),
        model=ModelConfig(
            num_layers=4,
            num_heads=8,
            embed_dim=256,
            mlp_dim=256,
            positions="learned",
            norm="layernorm",
            norm_place="post",
            norm_epsilon=1e-6,
            final_norm=False,
            activation="relu",
            attention_bias=True,
            mlp_bias=True,
            head_bias=True,
            tied_head=False,
            init="xavier",
        ),
        sample=SampleConfig(prompt="Once upon a time", top_k=10),
    )


def first_two() -> Config:
    """The Transformer of the First Two Character Input Method, for a text of 1 to 5 MB.

    `tsuzuri ime train` makes its features, and as many steps as the text needs.
    """
    return Config(
        preset="first-two",
        size="",
        steps=3500,
        batch_size=64,
        sequence_length=32,
        learning_rate=3e-3,
        eval_every=500,
        save_every=500,
        sample_every=0,
        optim=OptimConfig(optimizer="muon"),
        model=ModelConfig(
            num_layers=3,
            num_heads=3,
            embed_dim=192,
            tied_head=False,
            dropout=0.2,
        ),
    )


SIZED: dict[str, Callable[[str], Config]] = {"llama": llama, "gpt2": gpt2, "nanolm": nanolm}
ONE_SHAPE: dict[str, Callable[[], Config]] = {
    "lm1b": lm1b,
    "japanese-default": japanese_default,
    "japanese-0.1b": japanese_0_1b,
    "japanese-1.0b": japanese_1_0b,
    "minigpt": minigpt,
    "first-two": first_two,
}
PRESETS = (*SIZED, *ONE_SHAPE)


# The demo reads so many tales of the embedded corpus, each about once.
DEMO_TALES = 18_000


def demo() -> Config:
    """What trains in two minutes on two cores, and then tells tales.

    A large vocabulary makes whole phrases one token, and few wide heads learn soonest to copy the
    names of a tale; docs/log.md has the figures.
    """
    changes = {
        "steps": 1100,
        "batch_size": 4,
        "learning_rate": 8e-3,
        "eval_every": 220,
        "eval_blocks": 64,
        "save_every": 550,
        "sample_every": 550,
        "tokenizer.vocab_size": 8192,
        "features.held_out": 0.03,
        "model.num_heads": 2,
        "optim.warmup_steps": 30,
    }
    return preset("llama", "tiny", **changes)


def preset(name: str, size: str = "", **changes: object) -> Config:
    """The Config of a preset, with flat changes: preset("gpt2", "small", steps=500).

    Args:
      size: of the presets in SIZED, by default tiny; the others have one shape.

    Raises:
      UserError: no such preset or size; the nearest name is suggested.
    """
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise UserError(f"unknown preset '{name}'{suggestion(name, PRESETS)}; there are: {known}")
    if name in ONE_SHAPE and size:
        raise UserError(
            f"preset '{name}' has one shape; leave out the size '{size}', or change its numbers: "
            "model.num_layers, model.embed_dim, ..."
        )
    if name in ONE_SHAPE:
        return replace(ONE_SHAPE[name](), changes)
    size = size or "tiny"
    if size not in SIZES:
        known = ", ".join(SIZES)
        raise UserError(f"unknown size '{size}'{suggestion(size, SIZES)}; there are: {known}")
    return replace(SIZED[name](size), changes)
