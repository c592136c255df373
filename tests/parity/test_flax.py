"""nanolm, lm1b and its descendants, and minigpt against their publishers' models in Flax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from peers import compare, decoder
from references import MiniGPT, NanoLM, TransformerLM

from tsuzuri.presets import preset

LENGTH, VOCAB = 24, 50
SMALL = {"num_layers": 2, "embed_dim": 64}


def small(name: str, **changes: Any) -> Any:
    """A preset's ModelConfig in float32, small."""
    flat = {f"model.{key}": value for key, value in (SMALL | changes).items()}
    flat["model.dtype"] = "float32"
    return preset(name, sequence_length=LENGTH, **flat).resolved_model(VOCAB)


def attention(params: Any, heads: int) -> dict[str, Any]:
    """Ours -> Flax's: matrices and biases of the heads one by one."""

    def by_heads(part: Any) -> dict[str, Any]:
        kernel = part["kernel"].reshape(part["kernel"].shape[0], heads, -1)
        bias = {"bias": part["bias"].reshape(heads, -1)} if "bias" in part else {}
        return {"kernel": kernel, **bias}

    out = params["out"]
    kernel = out["kernel"].reshape(heads, -1, out["kernel"].shape[1])
    return {name: by_heads(params[name]) for name in ("query", "key", "value")} | {
        "out": out | {"kernel": kernel}
    }


@pytest.mark.parametrize("changes", [{}, {"num_heads": 8, "head_dim": 8}], ids=["tiny", "jax-llm"])
def test_nanolm(changes: dict[str, Any]):
    """jax-llm's command has --head_size 64 --num_heads 8: 64 is all heads together."""
    cfg = small("nanolm", **changes)
    assert cfg.num_heads * cfg.head_dim == 64
    model, params = decoder(cfg)
    theirs = {
        "tokens": params["token_embed"],
        "positions": params["position_embed"],
        "final_norm": params["final_norm"],
        "head": params["head"],
    }
    for i, block in params["blocks"].items():
        theirs |= {
            f"attention_{i}": attention(block["attention"], cfg.num_heads),
            f"attention_norm_{i}": block["attention_norm"],
            f"mlp_norm_{i}": block["mlp_norm"],
            f"up_{i}": block["mlp"]["up"],
            f"down_{i}": block["mlp"]["down"],
        }
    reference = NanoLM(VOCAB, cfg.num_layers, cfg.num_heads, 64, cfg.embed_dim, LENGTH)
    ids = np.random.default_rng(1).integers(0, VOCAB, (3, LENGTH))
    expected = jax.jit(reference.apply)({"params": theirs}, jnp.asarray(ids))
    name = f"nanolm, {cfg.num_heads} heads of {cfg.head_dim}"
    compare(name, "Linen NanoLM", model(jnp.asarray(ids)), expected)


def lm1b_params(params: Any, heads: int) -> dict[str, Any]:
    theirs = {"Embed_0": params["token_embed"], "encoderdecoder_norm": params["final_norm"]}
    if "head" in params:
        theirs["logitdense"] = params["head"]
    for i, block in params["blocks"].items():
        theirs[f"encoderdecoderblock_{i}"] = {
            "LayerNorm_0": block["attention_norm"],
            "SelfAttention_0": attention(block["attention"], heads),
            "LayerNorm_1": block["mlp_norm"],
            "MlpBlock_0": {"Dense_0": block["mlp"]["up"], "Dense_1": block["mlp"]["down"]},
        }
    return theirs


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("lm1b", False),
        ("lm1b", True),
        ("japanese-default", False),
        ("japanese-0.1b", False),
        ("japanese-1.0b", False),
    ],
)
def test_lm1b(name: str, tied: bool):
    """Their model is given what ours is to predict, and shifts it by itself."""
    head = {"tied_head": True, "scale_tied_head": True, "head_bias": False} if tied else {}
    heads = preset(name).model.num_heads
    cfg = small(name, embed_dim=heads * 4, **head)
    model, params = decoder(cfg)
    reference = TransformerLM(
        VOCAB, cfg.num_layers, heads, cfg.embed_dim, cfg.mlp_dim, cfg.context_length, tied
    )
    targets = np.random.default_rng(1).integers(1, VOCAB, (3, LENGTH))
    tokens = np.concatenate([np.zeros((3, 1), int), targets[:, :-1]], axis=1)
    weights = {"params": lm1b_params(params, heads)}
    expected = jax.jit(reference.apply)(weights, jnp.asarray(targets))
    kind = "tied / sqrt(D)" if tied else "untied"
    compare(f"{name}, {kind}", "Linen lm1b", model(jnp.asarray(tokens)), expected)


def test_lm1b_on_packed_rows():
    """Segments and positions: the first token of each segment is their 0, our begin-of-text."""
    cfg = small("lm1b")
    model, params = decoder(cfg)
    reference = TransformerLM(
        VOCAB, cfg.num_layers, cfg.num_heads, cfg.embed_dim, cfg.mlp_dim, cfg.context_length
    )
    lengths = ([9, 15], [1, 22, 1], [24])
    segments = np.array([np.repeat(np.arange(len(row)) + 1, row) for row in lengths])
    positions = np.array([np.concatenate([np.arange(n) for n in row]) for row in lengths])
    targets = np.random.default_rng(1).integers(1, VOCAB, (3, LENGTH))
    tokens = np.roll(targets, 1, axis=1) * (positions > 0)
    ours = model(*(jnp.asarray(a) for a in (tokens, segments, positions)))
    theirs = lm1b_params(params, cfg.num_heads)
    expected = jax.jit(reference.apply)(
        {"params": theirs}, *(jnp.asarray(a) for a in (targets, segments, positions))
    )
    compare("lm1b, packed rows", "Linen lm1b", ours, expected)


def test_minigpt():
    cfg = small("minigpt", mlp_dim=64)
    model, params = decoder(cfg)
    blocks = {
        i: {
            "mha": attention(block["attention"], cfg.num_heads),
            "norm1": block["attention_norm"],
            "linear1": block["mlp"]["up"],
            "linear2": block["mlp"]["down"],
            "norm2": block["mlp_norm"],
        }
        for i, block in params["blocks"].items()
    }
    reference = MiniGPT(
        LENGTH, VOCAB, cfg.embed_dim, cfg.num_heads, 64, cfg.num_layers, nnx.Rngs(1)
    )
    graphdef, state = nnx.split(reference)
    weights = {
        "token_emb": params["token_embed"],
        "pos_emb": params["position_embed"],
        "blocks": blocks,
        "output": params["head"],
    }
    shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.filter_state(state, nnx.Param)))
    assert jax.tree.map(jnp.shape, weights) == shapes
    ids = jnp.asarray(np.random.default_rng(1).integers(0, VOCAB, (3, LENGTH)))
    compare("minigpt", "the tutorial's NNX", model(ids), jax.jit(nnx.merge(graphdef, weights))(ids))
