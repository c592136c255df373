"""The Decoder: token ids in, logits out. It knows no mesh, no tokenizer and no file.

Every array's name ends in its dimensions:

    B batch      T tokens given (queries)   S tokens seen (keys)   V vocabulary
    D embed_dim  F mlp_dim                  K head_dim             H query heads
    G key and value heads                   R = H / G query heads that share one of them

Modules hold parameters and nothing else: the KV cache and the dropout key are arguments.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tsuzuri.config import ModelConfig

# Causal attention takes its queries in this many blocks, each against the keys up to its own end,
# so that most of the masked half is never computed.
_QUERY_BLOCKS = 4


class KVCache(NamedTuple):
    """The keys and values of the tokens seen so far, a pair of arrays for each layer."""

    keys: tuple[jax.Array, ...]  # BGSK
    values: tuple[jax.Array, ...]  # BGSK


class Decoder(nnx.Module):
    """A decoder-only Transformer (Vaswani et al. 2017; Radford et al. 2019), as its switches say.

    Args:
      cfg: a resolved ModelConfig: no zeros left (`Config.resolved_model`).
      rngs: the source of the initial parameters.
    """

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        init = _embedding_init(cfg)
        embed = partial(nnx.Embed, features=cfg.embed_dim, embedding_init=init, rngs=rngs)
        self.token_embed = embed(num_embeddings=cfg.vocab_size)
        if cfg.positions == "learned":
            self.position_embed = embed(num_embeddings=cfg.context_length)
        self.blocks = nnx.List([Block(cfg, rngs=rngs) for _ in range(cfg.num_layers)])
        if cfg.final_norm:
            self.final_norm = _norm(cfg, cfg.embed_dim, rngs)
        if not cfg.tied_head:
            self.head = _linear(cfg, cfg.embed_dim, cfg.vocab_size, cfg.head_bias, rngs)

    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of the token after each, float32 [B, T, V]; see `hidden` for what is given."""
        x_BTD, _ = self.hidden(tokens_BT, positions_BT, None, dropout_key, segments_BT)
        return self.logits(x_BTD)

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        cache: KVCache | None = None,
        dropout_key: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """The residual stream before the head [B, T, D], and the cache with these tokens in it.

        Args:
          tokens_BT: token ids.
          positions_BT: each token's place in its own text, its place in the cache too; by default
            0, 1, 2 ... T-1.
          cache: what came before, from `empty_cache` or an earlier call; none when training.
          dropout_key: none switches dropout off.
          segments_BT: the document of each token: a token sees those of its own document only.
            None where a row is one text. Not together with a cache.
        """
        cfg = self.cfg
        if positions_BT is None:
            positions_BT = jnp.arange(tokens_BT.shape[1])[None, :]
        keys = [None] * (cfg.num_layers + 1)
        if dropout_key is not None and cfg.dropout:
            keys = list(jax.random.split(dropout_key, cfg.num_layers + 1))

        x_BTD = self.token_embed(tokens_BT).astype(cfg.dtype)
        if cfg.positions == "learned":
            x_BTD += self.position_embed(positions_BT).astype(cfg.dtype)
        elif cfg.positions == "sinusoidal":
            x_BTD += sinusoids(positions_BT, cfg.embed_dim).astype(cfg.dtype)
        x_BTD = dropout(x_BTD, cfg.dropout, keys[0])

        layers: list[tuple[jax.Array, jax.Array] | None] = []
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else (cache.keys[i], cache.values[i])
            x_BTD, layer = block(x_BTD, positions_BT, segments_BT, layer, keys[i + 1])
            layers.append(layer)
        if cfg.final_norm:
            x_BTD = self.final_norm(x_BTD)
        if cache is not None:
            cache = KVCache(*zip(*layers, strict=True))
        return x_BTD, cache

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """The head: [..., D] -> float32 [..., V]."""
        cfg = self.cfg
        if cfg.tied_head:
            table_VD = self.token_embed.embedding[...].astype(cfg.dtype)
            out = jax.lax.dot_general(
                x_BTD,
                table_VD,
                (((x_BTD.ndim - 1,), (1,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
            out = out / math.sqrt(cfg.embed_dim) if cfg.scale_tied_head else out
        else:
            out = self.head(x_BTD).astype(jnp.float32)
        if cfg.logit_cap:  # Gemma 2, arXiv:2408.00118
            out = cfg.logit_cap * jnp.tanh(out / cfg.logit_cap)
        return out


def empty_cache(cfg: ModelConfig, batch: int, length: int) -> KVCache:
    """A cache with room for `length` tokens of `batch` texts."""
    shape = (batch, cfg.num_kv_heads, length, cfg.head_dim)

    def zeros() -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros(shape, cfg.dtype) for _ in range(cfg.num_layers))

    return KVCache(zeros(), zeros())  # no array twice, so that all of them can be donated


def flops_per_token(cfg: ModelConfig, length: int) -> int:
    """Floating-point operations of training on one token of a sequence of `length`.

    6 for each weight of a matrix, forward and backward (Kaplan et al. 2020), and 12 K H T a layer
    for the attention, halved because it is causal (Chowdhery et al. 2022, appendix B).
    """
    heads, kv_heads = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    mlp = (3 if cfg.activation == "swiglu" else 2) * cfg.embed_dim * cfg.mlp_dim
    layer = 2 * cfg.embed_dim * (heads + kv_heads) + mlp
    matrices = cfg.num_layers * layer + cfg.embed_dim * cfg.vocab_size
    return 6 * matrices + 6 * cfg.num_layers * heads * length


class Block(nnx.Module):
    """Attention, then an MLP, each added to the residual stream."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attention_norm = _norm(cfg, cfg.embed_dim, rngs)
        self.attention = Attention(cfg, rngs=rngs)
        self.mlp_norm = _norm(cfg, cfg.embed_dim, rngs)
        self.mlp = MLP(cfg, rngs=rngs)

    def __call__(self, x_BTD, positions_BT, segments_BT, layer, key):
        rate = self.cfg.dropout
        key_1, key_2 = (None, None) if key is None else jax.random.split(key)
        if self.cfg.norm_place == "pre":
            y_BTD = self.attention_norm(x_BTD)
            y_BTD, layer = self.attention(y_BTD, positions_BT, segments_BT, layer)
            x_BTD += dropout(y_BTD, rate, key_1)
            x_BTD += dropout(self.mlp(self.mlp_norm(x_BTD)), rate, key_2)
        else:
            y_BTD, layer = self.attention(x_BTD, positions_BT, segments_BT, layer)
            x_BTD = self.attention_norm(x_BTD + dropout(y_BTD, rate, key_1))
            x_BTD = self.mlp_norm(x_BTD + dropout(self.mlp(x_BTD), rate, key_2))
        return x_BTD, layer


class Attention(nnx.Module):
    """Causal self-attention with G key and value heads (grouped-query, Ainslie et al. 2023)."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        heads, kv_heads = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
        bias = cfg.attention_bias
        self.query = _linear(cfg, cfg.embed_dim, heads, bias, rngs)
        self.key = _linear(cfg, cfg.embed_dim, kv_heads, bias, rngs)
        self.value = _linear(cfg, cfg.embed_dim, kv_heads, bias, rngs)
        self.out = _linear(cfg, heads, cfg.embed_dim, bias, rngs, residual=True)
        if cfg.qk_norm:
            self.query_norm = _norm(cfg, cfg.head_dim, rngs, kind="rmsnorm")
            self.key_norm = _norm(cfg, cfg.head_dim, rngs, kind="rmsnorm")

    def __call__(self, x_BTD, positions_BT, segments_BT, layer):
        cfg = self.cfg
        B, T, _ = x_BTD.shape
        G, K = cfg.num_kv_heads, cfg.head_dim
        q_BHTK = self.query(x_BTD).reshape(B, T, -1, K).transpose(0, 2, 1, 3)
        k_BGTK = self.key(x_BTD).reshape(B, T, G, K).transpose(0, 2, 1, 3)
        v_BGTK = self.value(x_BTD).reshape(B, T, G, K).transpose(0, 2, 1, 3)
        if cfg.qk_norm:
            q_BHTK, k_BGTK = self.query_norm(q_BHTK), self.key_norm(k_BGTK)
        if cfg.positions == "rope":
            q_BHTK = rotate(q_BHTK, positions_BT, cfg.rope_theta)
            k_BGTK = rotate(k_BGTK, positions_BT, cfg.rope_theta)
        q_BGRTK = q_BHTK.reshape(B, G, -1, T, K)

        if layer is None:
            o_BGRTK = causal_attention(q_BGRTK, k_BGTK, v_BGTK, segments_BT)
        else:
            layer = keys_BGSK, values_BGSK = (
                _write(layer[0], k_BGTK, positions_BT),
                _write(layer[1], v_BGTK, positions_BT),
            )
            # A text's tokens lie in the cache by position, so what is later is not yet seen.
            slots_S = jnp.arange(keys_BGSK.shape[2])
            seen_BTS = slots_S[None, None, :] <= positions_BT[:, :, None]
            o_BGRTK = attend(q_BGRTK, keys_BGSK, values_BGSK, seen_BTS[:, None, None])
        o_BTD = o_BGRTK.reshape(B, -1, T, K).transpose(0, 2, 1, 3).reshape(B, T, -1)
        return self.out(o_BTD), layer


class MLP(nnx.Module):
    """Two matrices with an activation between; SwiGLU (Shazeer 2020) gates with a third."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.up = _linear(cfg, cfg.embed_dim, cfg.mlp_dim, cfg.mlp_bias, rngs)
        if cfg.activation == "swiglu":
            self.gate = _linear(cfg, cfg.embed_dim, cfg.mlp_dim, cfg.mlp_bias, rngs)
        self.down = _linear(cfg, cfg.mlp_dim, cfg.embed_dim, cfg.mlp_bias, rngs, residual=True)

    def __call__(self, x_BTD):
        h_BTF = self.up(x_BTD)
        if self.cfg.activation == "swiglu":
            h_BTF *= jax.nn.silu(self.gate(x_BTD))
        elif self.cfg.activation == "relu":
            h_BTF = jax.nn.relu(h_BTF)
        else:
            h_BTF = jax.nn.gelu(h_BTF, approximate=self.cfg.activation == "gelu-tanh")
        return self.down(h_BTF)


def attend(q_BGRTK, k_BGSK, v_BGSK, seen_BGRTS):
    """softmax(q k / sqrt(K)) v over the keys that are seen; scores in float32. [B, G, R, T, K]

    The softmax divides last, K numbers a token instead of S (as FlashAttention, Dao et al. 2022),
    which makes its gradient cheaper too.
    """
    q_BGRTK = q_BGRTK / math.sqrt(q_BGRTK.shape[-1])
    scores = jnp.einsum("bgrtk,bgsk->bgrts", q_BGRTK, k_BGSK, preferred_element_type=jnp.float32)
    scores = jnp.where(seen_BGRTS, scores, -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    out_BGRTK = jnp.einsum("bgrts,bgsk->bgrtk", weights.astype(v_BGSK.dtype), v_BGSK)
    return out_BGRTK / jnp.sum(weights, axis=-1, keepdims=True).astype(v_BGSK.dtype)


def causal_attention(q_BGRTK, k_BGTK, v_BGTK, segments_BT=None):
    """Each token attends to itself and what came before it in its segment. [B, G, R, T, K]"""
    T = q_BGRTK.shape[3]
    blocks = _QUERY_BLOCKS if T % _QUERY_BLOCKS == 0 and T >= 128 else 1
    step = T // blocks
    out = []
    for start in range(0, T, step):
        end = start + step
        seen_TS = jnp.arange(end)[None, :] <= jnp.arange(start, end)[:, None]
        seen_BTS = seen_TS[None]
        if segments_BT is not None:
            seen_BTS &= segments_BT[:, start:end, None] == segments_BT[:, None, :end]
        q = q_BGRTK[:, :, :, start:end]
        out.append(attend(q, k_BGTK[:, :, :end], v_BGTK[:, :, :end], seen_BTS[:, None, None]))
    return jnp.concatenate(out, axis=3)


def rotate(x_BHTK, positions_BT, theta):
    """Rotary positions (Su et al. 2021), the halves paired as in Llama: (i, i + K/2)."""
    half = x_BHTK.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half) / half)
    angles_B1TK = jnp.einsum("bt,k->btk", positions_BT, frequencies)[:, None]
    cos, sin = jnp.cos(angles_B1TK).astype(x_BHTK.dtype), jnp.sin(angles_B1TK).astype(x_BHTK.dtype)
    a, b = x_BHTK[..., :half], x_BHTK[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def sinusoids(positions_BT, width):
    """Fixed positions: sines in the first half, cosines in the second, as Flax's lm1b. [B, T, D]"""
    half = width // 2
    frequencies = 10_000.0 ** (-jnp.arange(half) / max(half - 1, 1))
    angles_BTD = jnp.einsum("bt,d->btd", positions_BT, frequencies)
    return jnp.concatenate([jnp.sin(angles_BTD), jnp.cos(angles_BTD)], axis=-1)


def dropout(x, rate, key):
    """Zeroes a share of x and scales the rest up (Srivastava et al. 2014); no key, no dropout."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def _write(cache_BGSK, new_BGTK, positions_BT):
    """Puts each row's new keys or values at that row's own positions."""
    rows = jnp.arange(new_BGTK.shape[0])[:, None]
    new_BTGK = new_BGTK.transpose(0, 2, 1, 3)
    return cache_BGSK.at[rows, :, positions_BT].set(new_BTGK, mode="drop")


def _embedding_init(cfg: ModelConfig):
    if cfg.init == "gpt2":
        return nnx.initializers.normal(0.02)
    if cfg.init == "lm1b":
        return nnx.initializers.normal(1.0)
    return nnx.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


def _linear(cfg: ModelConfig, inputs, outputs, bias, rngs, residual=False):
    """A matrix; under gpt2's init those that write to the residual stream start smaller."""
    scale = 0.02 / math.sqrt(2 * cfg.num_layers) if residual else 0.02
    init = {
        "gpt2": nnx.initializers.normal(scale),
        "lecun": nnx.initializers.lecun_normal(),
        "xavier": nnx.initializers.xavier_uniform(),
        "lm1b": nnx.initializers.xavier_uniform(),
    }[cfg.init]
    return nnx.Linear(
        inputs, outputs, use_bias=bias, kernel_init=init, dtype=jnp.dtype(cfg.dtype), rngs=rngs
    )


def _norm(cfg: ModelConfig, width, rngs, kind=None):
    norm = {"layernorm": nnx.LayerNorm, "rmsnorm": nnx.RMSNorm}[kind or cfg.norm]
    return norm(width, epsilon=cfg.norm_epsilon, dtype=jnp.dtype(cfg.dtype), rngs=rngs)
