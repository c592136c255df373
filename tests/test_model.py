"""The Decoder: every switch does something, and no token sees a later one.

That each preset is what it is named after, tests/parity holds.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri.attention import attend, blocked
from tsuzuri.config import Config, ModelConfig, replace
from tsuzuri.losses import cross_entropy
from tsuzuri.model import (
    Decoder,
    dropout,
    flops_per_token,
    rotate,
    sinusoids,
)
from tsuzuri.presets import PRESETS, preset

SMALL = {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 16, "context_length": 16}
# Any preset, small.
SHRUNK = {"model.num_layers": 2, "model.num_heads": 4, "model.embed_dim": 32, "model.mlp_dim": 32}
LEARNED = {"positions": "learned"}
UNTIED = {"tied_head": False}

# For each field of ModelConfig: what it needs beside it, the value it is flipped to, and where the
# change must be seen: in the parameters' shapes, in their initial values, or, with the same
# parameters, in the logits.
FLIPS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "vocab_size": ({}, 13, "shapes"),
    "output_size": (UNTIED, 13, "shapes"),
    "context_length": (LEARNED, 24, "shapes"),
    "num_layers": ({}, 3, "shapes"),
    "num_heads": ({"head_dim": 4}, 2, "shapes"),
    "num_kv_heads": ({}, 4, "shapes"),
    "embed_dim": ({}, 32, "shapes"),
    "head_dim": ({}, 8, "shapes"),
    "mlp_dim": ({}, 40, "shapes"),
    "positions": ({}, "sinusoidal", "logits"),
    "rope_theta": ({}, 100.0, "logits"),
    "norm": ({}, "layernorm", "shapes"),
    "norm_place": ({}, "post", "logits"),
    "norm_epsilon": ({}, 0.1, "logits"),
    "final_norm": ({}, False, "shapes"),
    "qk_norm": ({}, True, "shapes"),
    "activation": ({"mlp_dim": 32, "activation": "relu"}, "gelu", "logits"),
    "attention_bias": ({}, True, "shapes"),
    "mlp_bias": ({}, True, "shapes"),
    "head_bias": (UNTIED, True, "shapes"),
    "tied_head": ({}, False, "shapes"),
    "scale_tied_head": ({}, True, "logits"),
    "logit_cap": ({}, 2.0, "logits"),
    "dropout": ({}, 0.5, "logits"),
    "init": ({}, "lecun", "values"),
    "dtype": ({}, "bfloat16", "logits"),
}


def resolved(**changes: Any) -> ModelConfig:
    flat = {f"model.{k}": v for k, v in (SMALL | changes).items()}
    return replace(Config(sequence_length=16, sample_every=0), flat).resolved_model(11)


def parameters(cfg: ModelConfig) -> tuple[Any, Any]:
    """The structure and the initial parameters."""
    graphdef, params = nnx.split(Decoder(cfg, rngs=nnx.Rngs(0)))
    return graphdef, nnx.to_pure_dict(params)


def random_parameters(cfg: ModelConfig, seed: int = 0) -> tuple[Any, Any]:
    """Parameters far from their start, so that every one of them matters."""
    graphdef, params = parameters(cfg)
    rng = np.random.default_rng(seed)
    noise = jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(np.float32), params)
    return graphdef, jax.tree.map(lambda p, n: p + n, params, noise)


def count(cfg: ModelConfig) -> int:
    shapes = nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes)))


def test_every_field_of_the_config_has_a_case():
    assert set(FLIPS) == {f.name for f in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize("name", FLIPS)
def test_every_switch_does_something(name: str):
    beside, value, where = FLIPS[name]
    before, after = resolved(**beside), resolved(**beside | {name: value})
    assert getattr(before, name) != getattr(after, name)
    shapes = [jax.tree.map(jnp.shape, parameters(cfg)[1]) for cfg in (before, after)]
    assert (shapes[0] != shapes[1]) == (where == "shapes")
    if where == "values":
        a, b = (parameters(cfg)[1]["token_embed"]["embedding"] for cfg in (before, after))
        assert not np.allclose(a, b)
    if where == "logits":
        tokens = jnp.arange(8)[None, :]
        _, params = random_parameters(before)
        a, b = (
            nnx.merge(parameters(cfg)[0], params)(tokens, dropout_key=jax.random.key(1))
            for cfg in (before, after)
        )
        assert a.dtype == b.dtype == jnp.float32
        assert np.abs(a - b).max() > 1e-3


def test_each_activation_is_its_own():
    tokens = jnp.arange(8)[None, :]
    _, params = random_parameters(resolved(mlp_dim=32, activation="relu"))
    kinds = ("relu", "gelu", "gelu-tanh")
    a, b, c = (
        nnx.merge(parameters(resolved(mlp_dim=32, activation=kind))[0], params)(tokens)
        for kind in kinds
    )
    assert np.abs(a - b).max() > 1e-2
    assert 1e-6 < np.abs(b - c).max() < 0.1  # an approximation of the same curve


def see_nothing_later(cfg: ModelConfig, length: int) -> None:
    """d hidden_t / d embedding of token s: zero for every s > t, and not for s <= t."""
    cfg = dataclasses.replace(cfg, vocab_size=length, context_length=length, dropout=0.0)
    graphdef, params = random_parameters(cfg)
    tokens = jnp.arange(length)[None, :]  # so that row s of the table is the embedding of token s
    mix_D = jnp.asarray(np.random.default_rng(1).normal(size=cfg.embed_dim), jnp.float32)

    def outputs_T(table_VD: jax.Array) -> jax.Array:
        embedded = params | {"token_embed": {"embedding": table_VD}}
        return nnx.merge(graphdef, embedded).hidden(tokens)[0][0] @ mix_D

    slopes_TVD = jax.jit(jax.jacrev(outputs_T))(params["token_embed"]["embedding"])
    seen_TS = np.abs(slopes_TVD).max(axis=-1) > 0
    np.testing.assert_array_equal(seen_TS, np.tri(length, dtype=bool))


@pytest.mark.parametrize("name", PRESETS)
def test_no_token_sees_a_later_one(name: str):
    see_nothing_later(preset(name, **SHRUNK).resolved_model(8), 8)


@pytest.mark.parametrize("place", ["pre", "post"])
def test_no_token_sees_a_later_one_across_query_blocks(place: str):
    see_nothing_later(resolved(norm_place=place, positions="rope", num_layers=1), 128)


@pytest.mark.parametrize("length", [1, 7, 128, 130, 132])
def test_blocked_attention_is_plain_attention(length: int):
    rng = np.random.default_rng(length)
    q = rng.normal(size=(2, 2, 3, length, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 2, length, 8)).astype(np.float32)
    expected = np.zeros_like(q)
    for t in range(length):
        scores = np.einsum("bgrk,bgsk->bgrs", q[..., t, :], k[:, :, : t + 1]) / math.sqrt(8)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        expected[..., t, :] = np.einsum("bgrs,bgsk->bgrk", weights, v[:, :, : t + 1])
    np.testing.assert_allclose(blocked(q, k, v), expected, atol=2e-6)


def test_attention_gradient_is_that_of_softmax():
    """The division at the end, and the constant largest score, change no derivative."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 2, 1, 9, 4)), jnp.float32) for _ in range(3))
    k, v, seen = k[:, :, 0], v[:, :, 0], jnp.tril(jnp.ones((1, 1, 1, 9, 9), bool))

    def plain(q, k, v):
        scores = jnp.where(seen, jnp.einsum("bgrtk,bgsk->bgrts", q, k) / 2, -jnp.inf)
        return jnp.einsum("bgrts,bgsk->bgrtk", jax.nn.softmax(scores), v)

    def slopes(f):
        return jax.grad(lambda *qkv: jnp.sum(jnp.sin(f(*qkv))), argnums=(0, 1, 2))(q, k, v)

    for ours, theirs in zip(slopes(lambda *x: attend(*x, seen)), slopes(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_attention_bears_large_scores():
    q = jnp.full((1, 1, 1, 4, 2), 200.0)
    out = blocked(q, q[:, :, 0], q[:, :, 0])
    np.testing.assert_allclose(out, q, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 2**31))
def test_rope_knows_distances_only(a: int, b: int, shift: int, seed: int):
    q, k = np.random.default_rng(seed).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def product(at_q: int, at_k: int) -> float:
        turned_q = rotate(q, np.array([[at_q]]), 10_000.0)
        return float(jnp.vdot(turned_q, rotate(k, np.array([[at_k]]), 10_000.0)))

    assert product(a, b) == pytest.approx(product(a + shift, b + shift), abs=1e-3)


def test_rope_is_a_rotation_of_pairs():
    x = np.random.default_rng(0).normal(size=(1, 2, 5, 6)).astype(np.float32)
    positions = np.array([[0, 1, 2, 30, 400]])
    turned = np.exp(1j * positions[0, :, None] * 100.0 ** (-np.arange(3) / 3))
    expected = (x[..., :3] + 1j * x[..., 3:]) * turned
    got = rotate(x, positions, 100.0)
    np.testing.assert_allclose(got[..., :3] + 1j * got[..., 3:], expected, atol=1e-4)
    np.testing.assert_allclose(got[:, :, 0], x[:, :, 0])


def test_sinusoids_are_those_of_lm1b():
    """From Flax's lm1b: wavelengths from 2 pi to 10,000 x 2 pi, sines first, cosines after."""
    table = np.zeros((20, 8), np.float32)
    scale = -np.log(10_000.0) / (8 // 2 - 1)
    angles = np.arange(20)[:, None] * np.exp(np.arange(4) * scale)
    table[:, :4], table[:, 4:] = np.sin(angles), np.cos(angles)
    np.testing.assert_allclose(sinusoids(jnp.arange(20)[None], 8)[0], table, atol=1e-5)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((2, 10, 100))
    keys = jax.random.split(jax.random.key(0), 2)  # one for each row
    kept = dropout(x, 0.25, keys)
    assert set(np.unique(kept)) == {np.float32(0), np.float32(4 / 3)}
    assert 0.9 < float(kept.mean()) < 1.1 and (kept[0] != kept[1]).any()
    np.testing.assert_array_equal(kept[1:], dropout(x[1:], 0.25, keys[1:]))
    np.testing.assert_array_equal(dropout(x, 0.25, None), x)
    model = Decoder(resolved(dropout=0.5), rngs=nnx.Rngs(0))
    tokens = jnp.arange(8)[None, :]
    np.testing.assert_array_equal(model(tokens), model(tokens))


def test_counts_of_parameters():
    D, F, V, T = 768, 3072, 50257, 1024
    cfg = preset("gpt2", "base", sequence_length=T).resolved_model(V)
    layer = 4 * (D * D + D) + (D * F + F) + (F * D + D) + 4 * D
    assert count(cfg) == V * D + T * D + 12 * layer + 2 * D == 124_439_808  # Radford et al. 2019

    cfg = preset("llama", "tiny", **{"model.num_kv_heads": 2}).resolved_model(1000)
    attention, mlp = 2 * 128 * 128 + 2 * 128 * 64, 3 * 128 * 352
    assert count(cfg) == 1000 * 128 + 4 * (attention + mlp + 2 * 128) + 128

    cfg = preset("nanolm", "tiny", sequence_length=32).resolved_model(100)
    attention = 3 * (128 * 64 + 64) + 64 * 128 + 128
    mlp = 128 * 512 + 512 + 512 * 128 + 128
    layer = attention + mlp + 4 * 128
    assert count(cfg) == 132 * 128 + 4 * layer + 2 * 128 + 128 * 100 + 100


def test_initial_values_are_gpt2s():
    cfg = preset("gpt2", "tiny").resolved_model(500)
    _, params = parameters(cfg)
    block = params["blocks"][1]
    assert np.std(params["token_embed"]["embedding"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(block["mlp"]["up"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    for residual in (block["mlp"]["down"], block["attention"]["out"]):
        assert np.std(residual["kernel"]) == pytest.approx(0.02 / math.sqrt(8), rel=0.05)
        assert not np.any(residual["bias"])


def test_initial_values_are_lm1bs():
    """Embeddings normal(1), matrices Glorot's uniform: as wide as sqrt(6 / (inputs + outputs))."""
    _, params = parameters(preset("lm1b", **{"model.num_layers": 1}).resolved_model(500))
    assert np.std(params["token_embed"]["embedding"]) == pytest.approx(1, rel=0.02)
    for kernel in (params["blocks"][0]["mlp"]["up"]["kernel"], params["head"]["kernel"]):
        assert np.abs(kernel).max() == pytest.approx(math.sqrt(6 / sum(kernel.shape)), rel=0.01)
    _, xavier = parameters(resolved(init="xavier", embed_dim=64, vocab_size=900))
    assert np.std(xavier["token_embed"]["embedding"]) == pytest.approx(1 / 8, rel=0.02)


def test_the_cap_bounds_the_logits_and_spares_small_ones():
    plain, capped = (Decoder(resolved(logit_cap=cap), rngs=nnx.Rngs(0)) for cap in (0.0, 2.0))
    x = 40 * np.random.default_rng(0).normal(size=(1, 8, 16)).astype(np.float32)
    np.testing.assert_allclose(capped.logits(x), 2 * np.tanh(plain.logits(x) / 2), rtol=1e-5)
    assert np.abs(capped.logits(100 * x)).max() <= 2
    np.testing.assert_allclose(capped.logits(x / 1e3), plain.logits(x / 1e3), rtol=1e-4)


def test_an_untrained_model_knows_nothing():
    for name in PRESETS:
        model = Decoder(preset(name, **SHRUNK).resolved_model(64), rngs=nnx.Rngs(0))
        tokens = np.random.default_rng(0).integers(0, 64, (4, 33))
        total, weight = cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], jnp.ones((4, 32)))
        assert math.log(64) - 0.3 < total / weight < math.log(64) + 1, name


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_flops_agree_with_the_compiler(name: str):
    cfg = preset(name, "tiny", sequence_length=256).resolved_model(512)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0))))
    _, params = parameters(cfg)
    tokens = jnp.zeros((2, 256), jnp.int32)

    def loss(params: Any) -> jax.Array:
        logits = nnx.merge(graphdef, params)(tokens)
        return cross_entropy(logits, tokens, jnp.ones((2, 256)))[0]

    counted = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"] / 512
    assert flops_per_token(cfg, 256) == pytest.approx(counted, rel=0.2)
