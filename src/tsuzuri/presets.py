"""Named models with their recipes, each a function from a size to a Config.

A preset is where an architecture of the literature becomes numbers; nothing else in the house knows
its name.
"""

from collections.abc import Callable
from typing import Any

from tsuzuri.config import Config, ModelConfig, OptimConfig, replace, suggestion
from tsuzuri.errors import UserError

# A model's shape by size: tiny trains on a laptop's CPU in minutes, base is GPT-2's smallest.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_layers": 4, "num_heads": 4, "embed_dim": 128},
    "small": {"num_layers": 6, "num_heads": 6, "embed_dim": 384},
    "base": {"num_layers": 12, "num_heads": 12, "embed_dim": 768},
}
_LEARNING_RATES = {"tiny": 3e-3, "small": 1e-3, "base": 6e-4}


def llama(size: str) -> Config:
    """Our default (Touvron et al. 2023): rope, RMS norm, SwiGLU, no biases, tied head."""
    return Config(
        preset="llama",
        size=size,
        learning_rate=_LEARNING_RATES[size],
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
            schedule="constant", warmup_steps=0, b2=0.999, weight_decay=1e-4, clip_norm=0.0
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


PRESETS: dict[str, Callable[[str], Config]] = {"llama": llama, "gpt2": gpt2, "nanolm": nanolm}


# The demo reads so many tales of the embedded corpus, each about once.
DEMO_TALES = 18_000


def demo() -> Config:
    """What trains in two minutes on two cores, and then tells tales.

    A large vocabulary makes whole phrases one token, few wide heads learn soonest to copy the names
    of a tale, and Muon needs the fewest tokens; docs/log.md has the figures.
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
        "optim.optimizer": "muon",
        "optim.b2": 0.99,
        "optim.warmup_steps": 30,
        "optim.weight_decay": 0.01,
        "optim.final_ratio": 0.0,
    }
    return preset("llama", "tiny", **changes)


def preset(name: str, size: str = "tiny", **changes: object) -> Config:
    """The Config of a preset, with flat changes: preset("gpt2", "small", steps=500).

    Raises:
      UserError: no such preset or size; the nearest name is suggested.
    """
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise UserError(f"unknown preset '{name}'{suggestion(name, PRESETS)}; there are: {known}")
    if size not in SIZES:
        known = ", ".join(SIZES)
        raise UserError(f"unknown size '{size}'{suggestion(size, SIZES)}; there are: {known}")
    return replace(PRESETS[name](size), changes)
