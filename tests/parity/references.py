"""The seeds' models once more, each as its publisher describes it, in the publisher's library.

NanoLM and lm1b are in Flax's Linen, MiniGPT in NNX with its own layers. They share no line with
tsuzuri. Dropout is left out: it is off wherever models are compared.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen, nnx


class NanoLM(linen.Module):
    """optax's example: https://optax.readthedocs.io/en/latest/_collections/examples/nanolm.html.

    `qkv_features`, which Linen takes as the width of all heads together, is given head_size.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    head_size: int
    embed_size: int
    block_size: int

    @linen.compact
    def __call__(self, tokens):
        length = tokens.shape[1]
        positions = linen.Embed(self.block_size, self.embed_size, name="positions")
        x = linen.Embed(self.vocab_size, self.embed_size, name="tokens")(tokens)
        x = x + positions(jnp.arange(length))[None]
        for layer in range(self.num_layers):
            attention = linen.MultiHeadDotProductAttention(
                num_heads=self.num_heads,
                qkv_features=self.head_size,
                out_features=self.embed_size,
                name=f"attention_{layer}",
            )
            normed = linen.LayerNorm(name=f"attention_norm_{layer}")(x)
            x = x + attention(normed, mask=jnp.tril(jnp.ones((1, 1, length, length))))
            y = linen.LayerNorm(name=f"mlp_norm_{layer}")(x)
            y = linen.relu(linen.Dense(4 * self.embed_size, name=f"up_{layer}")(y))
            x = x + linen.Dense(self.embed_size, name=f"down_{layer}")(y)
        x = linen.LayerNorm(name="final_norm")(x)
        return linen.Dense(self.vocab_size, name="head")(x)


class TransformerLM(linen.Module):
    """Flax's lm1b example: https://github.com/google/flax/tree/main/examples/lm1b.

    It is given the targets and shifts them right by itself, so that the first token seen is 0; in
    a packed row the first of every segment. Names are those of its checkpoints.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    emb_dim: int
    mlp_dim: int
    max_len: int
    logits_via_embedding: bool = False

    @linen.compact
    def __call__(self, targets, segments=None, positions=None):
        mask = linen.combine_masks(
            linen.make_attention_mask(targets > 0, targets > 0), linen.make_causal_mask(targets)
        )
        tokens = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
        if segments is not None:
            mask = linen.combine_masks(
                mask, linen.make_attention_mask(segments, segments, jnp.equal)
            )
            before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
            tokens = tokens * (segments == before)

        embed = linen.Embed(self.vocab_size, self.emb_dim, name="Embed_0")
        table = self.sines()
        if positions is None:
            x = embed(tokens) + table[None, : tokens.shape[1]]
        else:
            x = embed(tokens) + table[positions]
        for layer in range(self.num_layers):
            block = _Lm1bBlock(self.num_heads, self.mlp_dim, name=f"encoderdecoderblock_{layer}")
            x = block(x, mask)
        x = linen.LayerNorm(name="encoderdecoder_norm")(x)
        if self.logits_via_embedding:
            return embed.attend(x) / jnp.sqrt(self.emb_dim)
        return linen.Dense(self.vocab_size, name="logitdense")(x)

    def sines(self):
        """Wavelengths from 2 pi to 10,000 x 2 pi: sines in the first half, cosines after."""
        half = self.emb_dim // 2
        rates = np.exp(-np.log(10_000.0) / (half - 1) * np.arange(half))
        angles = np.arange(self.max_len)[:, None] * rates[None]
        return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), jnp.float32)


class _Lm1bBlock(linen.Module):
    num_heads: int
    mlp_dim: int

    @linen.compact
    def __call__(self, x, mask):
        width = x.shape[-1]
        attention = linen.MultiHeadDotProductAttention(
            num_heads=self.num_heads, qkv_features=width, use_bias=False, name="SelfAttention_0"
        )
        x = x + attention(linen.LayerNorm(name="LayerNorm_0")(x), mask=mask)
        return x + _Lm1bMlp(self.mlp_dim, name="MlpBlock_0")(linen.LayerNorm(name="LayerNorm_1")(x))


class _Lm1bMlp(linen.Module):
    mlp_dim: int

    @linen.compact
    def __call__(self, x):
        hidden = linen.relu(linen.Dense(self.mlp_dim, name="Dense_0")(x))
        return linen.Dense(x.shape[-1], name="Dense_1")(hidden)


class MiniGPT(nnx.Module):
    """The JAX AI stack's tutorial, "Pretraining an LLM using JAX": norms after each sum, none last.

    https://github.com/jax-ml/jax-ai-stack/blob/main/docs/source/JAX_for_LLM_pretraining.md
    """

    def __init__(self, maxlen, vocab_size, embed_dim, num_heads, ff_dim, num_blocks, rngs):
        self.token_emb = nnx.Embed(vocab_size, embed_dim, rngs=rngs)
        self.pos_emb = nnx.Embed(maxlen, embed_dim, rngs=rngs)
        self.blocks = nnx.List(
            [_MiniGPTBlock(embed_dim, num_heads, ff_dim, rngs) for _ in range(num_blocks)]
        )
        self.output = nnx.Linear(embed_dim, vocab_size, rngs=rngs)

    def __call__(self, tokens):
        x = self.token_emb(tokens) + self.pos_emb(jnp.arange(tokens.shape[1])[None])
        for block in self.blocks:
            x = block(x)
        return self.output(x)


class _MiniGPTBlock(nnx.Module):
    def __init__(self, embed_dim, num_heads, ff_dim, rngs):
        self.mha = nnx.MultiHeadAttention(num_heads, embed_dim, decode=False, rngs=rngs)
        self.norm1 = nnx.LayerNorm(embed_dim, epsilon=1e-6, rngs=rngs)
        self.linear1 = nnx.Linear(embed_dim, ff_dim, rngs=rngs)
        self.linear2 = nnx.Linear(ff_dim, embed_dim, rngs=rngs)
        self.norm2 = nnx.LayerNorm(embed_dim, epsilon=1e-6, rngs=rngs)

    def __call__(self, x):
        length = x.shape[1]
        x = self.norm1(x + self.mha(x, mask=jnp.tril(jnp.ones((1, 1, length, length)))))
        return self.norm2(x + self.linear2(nnx.relu(self.linear1(x))))
