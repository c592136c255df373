"""The Decoder: token ids in, logits out. It knows no mesh, no tokenizer and no file.

Every array's name ends in its dimensions:

    B batch      T tokens given (queries)   S tokens seen (keys)   V vocabulary
    D embed_dim  F mlp_dim                  K head_dim             H query heads
    G key and value heads                   R = H / G query heads that share one of them

Modules hold parameters and nothing else: the KV cache and the dropout key are arguments.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tsuzuri.attention import Attention as AttentionKernel
from tsuzuri.attention import attend, blocked
from tsuzuri.config import ModelConfig


class Execution(NamedTuple):
    """How the numbers are computed; what they are changes by rounding at most.

    Attributes:
      attention: one of attention.py's.
      remat: what the backward pass computes again, as in ComputeConfig.
      scan_layers: loop over the layers instead of compiling each.
      gather: parameters (a nested dict with the model's own names) -> the same, whole for the time
        of their work; None where they are.
      rows: the number of rows at hand -> which rows of the whole batch they are.
    """

    attention: AttentionKernel = blocked
    remat: str = "none"
    scan_layers: bool = False
    gather: Callable[[Any], Any] | None = None
    rows: Callable[[int], jax.Array] = jnp.arange


PLAIN = Execution()


def _all_but_gathered(primitive, *_, **parameters):
    """All but the weights that are whole for their work: those are gathered again.

    `sharding.gathered` has a gradient of its own, so it is a call that holds the gathering.
    """
    inside = getattr(parameters.get("call_jaxpr"), "eqns", [])
    return all(one.primitive.name != "all_gather" for one in inside)


# What is kept for the backward pass. Weights that were gathered for their work never are.
_POLICIES = {
    "none": _all_but_gathered,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


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
            self.head = _linear(cfg, cfg.embed_dim, cfg.outputs, cfg.head_bias, rngs)

    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        how: Execution = PLAIN,
    ) -> jax.Array:
        """Logits of the token after each, float32 [B, T, V]; see `hidden` for what is given."""
        x_BTD, _ = self.hidden(tokens_BT, positions_BT, None, dropout_key, segments_BT, how)
        return head_logits(self.cfg, self.head_weights(how), x_BTD)

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        cache: KVCache | None = None,
        dropout_key: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        how: Execution = PLAIN,
        slot: int | jax.Array = 0,
        past: tuple[Sequence[KVCache], jax.Array] | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """The residual stream before the head [B, T, D], and the cache with these tokens in it.

        Args:
          tokens_BT: token ids; or [B, T, n], n ids at each place, whose embeddings are added.
          positions_BT: each token's place in its own text; by default 0, 1, 2 ... T-1.
          cache: from `empty_cache` or an earlier call; none when training.
          dropout_key: none switches dropout off.
          segments_BT: the document of each token: a token sees those of its own document only.
            None where a row is one text. Not together with a cache.
          how: for training; with a cache the layers run as they are written.
          slot: where in the cache these tokens go, slot, slot + 1 ... in every text; they see what
            lies before it.
          past: caches of what came before that, one after the other, and how many of all their
            slots each text fills [B]. They are only read: what a loop writes XLA may copy at every
            turn, and these are the larger.
        """
        cfg = self.cfg
        if positions_BT is None:
            positions_BT = jnp.arange(tokens_BT.shape[1])[None, :]
        keys_N = None
        if dropout_key is not None and cfg.dropout:
            # A key for each row of the batch: so the mask is the same on every mesh.
            rows_B = how.rows(tokens_BT.shape[0])
            keys_B = jax.vmap(partial(jax.random.fold_in, dropout_key))(rows_B)
            dropout_key, layers_key = _split(keys_B)
            keys_N = jnp.stack([_fold(layers_key, n) for n in range(cfg.num_layers)])

        table = {"token_embed": {"embedding": self.token_embed.embedding[...].astype(cfg.dtype)}}
        table = how.gather(table) if how.gather else table
        # In float32, as its gradient is the sum over all places of a token.
        rows_VD = table["token_embed"]["embedding"].astype(jnp.float32)
        x_BTD = jnp.take(rows_VD, tokens_BT, axis=0)
        x_BTD = (x_BTD if tokens_BT.ndim == 2 else x_BTD.sum(2)).astype(cfg.dtype)
        if cfg.positions == "learned":
            places = {"position_embed": {"embedding": self.position_embed.embedding[...]}}
            places = how.gather(places) if how.gather else places
            rows_BTD = jnp.take(places["position_embed"]["embedding"], positions_BT, axis=0)
            x_BTD += rows_BTD.astype(cfg.dtype)
        elif cfg.positions == "sinusoidal":
            x_BTD += sinusoids(positions_BT, cfg.embed_dim).astype(cfg.dtype)
        x_BTD = dropout(x_BTD, cfg.dropout, dropout_key)

        if cache is None:
            x_BTD = self._layers(x_BTD, positions_BT, segments_BT, keys_N, how)
        else:
            layers = []
            for i, block in enumerate(self.blocks):
                old = past and ([(c.keys[i], c.values[i]) for c in past[0]], past[1])
                layer = cache.keys[i], cache.values[i], slot, old
                x_BTD, layer = block(x_BTD, positions_BT, layer=layer)
                layers.append(layer)
            cache = KVCache(*zip(*layers, strict=True))
        if cfg.final_norm:
            x_BTD = self.final_norm(x_BTD)
        return x_BTD, cache

    def _layers(self, x_BTD, positions_BT, segments_BT, keys_N, how: Execution):
        """All blocks one after the other, executed as `how` says."""
        graphdef = nnx.split(self.blocks[0])[0]
        params = [nnx.to_pure_dict(nnx.split(block)[1]) for block in self.blocks]
        # Matrices compute in cfg.dtype: cast before they are gathered or stacked, they are smaller.
        params = jax.tree.map(lambda p: p.astype(self.cfg.dtype) if p.ndim > 1 else p, params)

        def one_layer(x_BTD, layer):
            block_params, key = layer
            if how.gather:
                block_params = how.gather(block_params)
            block = nnx.merge(graphdef, block_params)
            x_BTD, _ = block(x_BTD, positions_BT, segments_BT, key=key, attention=how.attention)
            return x_BTD, None

        if how.remat != "none" or how.gather:
            # A loop by itself keeps the compiler from merging the second computation with the first
            policy = _POLICIES[how.remat]
            one_layer = jax.checkpoint(one_layer, policy=policy, prevent_cse=not how.scan_layers)
        if how.scan_layers:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
            return jax.lax.scan(one_layer, x_BTD, (stacked, keys_N))[0]
        for i, block_params in enumerate(params):
            key = None if keys_N is None else keys_N[i]
            x_BTD, _ = one_layer(x_BTD, (block_params, key))
        return x_BTD

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """The head: [..., D] -> float32 [..., V]."""
        return head_logits(self.cfg, self.head_weights(), x_BTD)

    def head_weights(self, how: Execution = PLAIN) -> Any:
        """What `head_logits` multiplies with: the tied table or the head, matrices in cfg.dtype."""
        if self.cfg.tied_head:
            weights = {"token_embed": {"embedding": self.token_embed.embedding[...]}}
        else:
            weights = {"head": nnx.to_pure_dict(nnx.split(self.head)[1])}
        weights = jax.tree.map(lambda p: p.astype(self.cfg.dtype) if p.ndim > 1 else p, weights)
        return how.gather(weights) if how.gather else weights


def head_logits(cfg: ModelConfig, weights: Any, x_BTD: jax.Array) -> jax.Array:
    """The head, of `Decoder.head_weights`: the residual stream [..., D] to float32 [..., V]."""
    if cfg.tied_head:
        matrix, dimension = weights["token_embed"]["embedding"], 1
    else:
        matrix, dimension = weights["head"]["kernel"], 0
    contracted = ((x_BTD.ndim - 1,), (dimension,))
    out = jax.lax.dot_general(
        x_BTD, matrix, (contracted, ((), ())), preferred_element_type=jnp.float32
    )
    if cfg.scale_tied_head:
        out = out / math.sqrt(cfg.embed_dim)
    if cfg.head_bias:
        out += jnp.broadcast_to(weights["head"]["bias"], out.shape)
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
    matrices = cfg.num_layers * layer + cfg.embed_dim * cfg.outputs
    return 6 * matrices + 6 * cfg.num_layers * heads * length


class Block(nnx.Module):
    """Attention, then an MLP, each added to the residual stream."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attention_norm = _norm(cfg, cfg.embed_dim, rngs)
        self.attention = Attention(cfg, rngs=rngs)
        self.mlp_norm = _norm(cfg, cfg.embed_dim, rngs)
        self.mlp = MLP(cfg, rngs=rngs)

    def __call__(
        self, x_BTD, positions_BT, segments_BT=None, layer=None, key=None, attention=blocked
    ):
        rate = self.cfg.dropout
        key_1, key_2 = (None, None) if key is None else _split(key)
        if self.cfg.norm_place == "pre":
            y_BTD = self.attention_norm(x_BTD)
            y_BTD, layer = self.attention(y_BTD, positions_BT, segments_BT, layer, attention)
            x_BTD += dropout(y_BTD, rate, key_1)
            x_BTD += dropout(self.mlp(self.mlp_norm(x_BTD)), rate, key_2)
        else:
            y_BTD, layer = self.attention(x_BTD, positions_BT, segments_BT, layer, attention)
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

    def __call__(self, x_BTD, positions_BT, segments_BT, layer, attention):
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
            o_BGRTK = attention(q_BGRTK, k_BGTK, v_BGTK, segments_BT)
        else:
            keys_BGSK, values_BGSK, slot, past = layer
            keys_BGSK = jax.lax.dynamic_update_slice_in_dim(keys_BGSK, k_BGTK, slot, axis=2)
            values_BGSK = jax.lax.dynamic_update_slice_in_dim(values_BGSK, v_BGTK, slot, axis=2)
            layer = keys_BGSK, values_BGSK
            seen_TS = jnp.arange(keys_BGSK.shape[2])[None, :] <= slot + jnp.arange(T)[:, None]
            more, first = [], 0
            for older_BGSK, values_of_older in past[0] if past else []:
                slots_S = first + jnp.arange(older_BGSK.shape[2])
                seen_BS = slots_S[None, :] < past[1][:, None]
                more.append((older_BGSK, values_of_older, seen_BS[:, None, None, None]))
                first += older_BGSK.shape[2]
            o_BGRTK = attend(q_BGRTK, *layer, seen_TS[None, None, None], *more)
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


def dropout(x_BTD, rate, keys_B):
    """Zeroes a share of x and scales the rest up (Srivastava et al. 2014); no keys, no dropout."""
    if keys_B is None or rate == 0:
        return x_BTD
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x_BTD.shape[1:]))(keys_B)
    return jnp.where(kept, x_BTD / (1 - rate), 0)


def _split(keys_B):
    """Two keys of each."""
    return tuple(jax.vmap(jax.random.split, out_axes=1)(keys_B))


def _fold(keys_B, number):
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)


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
