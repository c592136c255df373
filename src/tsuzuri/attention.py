"""Causal self-attention by what the device has: blocks of plain XLA, cuDNN, or TPUs' splash kernel.

All take queries [B, G, R, T, K] and keys and values [B, G, T, K] and give [B, G, R, T, K]; the
legend is model.py's. They differ in speed and memory, and in their results by rounding.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from tsuzuri.config import ComputeConfig, ModelConfig
from tsuzuri.errors import UserError

# (queries, keys, values, segments [B, T] or None) -> what each query attends to
Attention = Callable[[Any, Any, Any, Any], jax.Array]

# `blocked` takes its queries in this many blocks, each against the keys up to its own end, so that
# most of the masked half is never computed.
_QUERY_BLOCKS = 4
_SPLASH_BLOCK = 512  # queries and keys that the splash kernel takes at once


def attend(q_BGRTK, k_BGSK, v_BGSK, seen_BGRTS, *more):
    """softmax(q k / sqrt(K)) v over the keys that are seen; scores in float32. [B, G, R, T, K]

    `more`: further (k_BGSK, v_BGSK, seen_BGRTS), under the same softmax.
    The softmax divides last, K numbers a token instead of S (as FlashAttention, Dao et al. 2022),
    which makes its gradient cheaper too.
    """
    q_BGRTK = q_BGRTK / math.sqrt(q_BGRTK.shape[-1])
    pieces, scores = [(k_BGSK, v_BGSK, seen_BGRTS), *more], []
    for k_BGSK, _, seen_BGRTS in pieces:
        score = jnp.einsum("bgrtk,bgsk->bgrts", q_BGRTK, k_BGSK, preferred_element_type=jnp.float32)
        scores.append(jnp.where(seen_BGRTS, score, -jnp.inf))
    ends = list(accumulate(score.shape[-1] for score in scores))
    scores = jnp.concatenate(scores, axis=-1)
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    out_BGRTK = sum(
        jnp.einsum("bgrts,bgsk->bgrtk", w.astype(v_BGSK.dtype), v_BGSK)
        for w, (_, v_BGSK, _) in zip(jnp.split(weights, ends[:-1], -1), pieces, strict=True)
    )
    return out_BGRTK / jnp.sum(weights, axis=-1, keepdims=True).astype(q_BGRTK.dtype)


def blocked(q_BGRTK, k_BGTK, v_BGTK, segments_BT=None):
    """Each token attends to itself and what came before it in its segment, in plain XLA."""
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


def cudnn(q_BGRTK, k_BGTK, v_BGTK, segments_BT=None):
    """FlashAttention as NVIDIA's cuDNN has it, through `jax.nn.dot_product_attention`."""
    if segments_BT is not None:  # it takes them as a bias of T x T numbers only, which is slow
        return blocked(q_BGRTK, k_BGTK, v_BGTK, segments_BT)
    B, G, R, T, K = q_BGRTK.shape
    out_BTHK = jax.nn.dot_product_attention(
        q_BGRTK.reshape(B, G * R, T, K).swapaxes(1, 2),
        k_BGTK.swapaxes(1, 2),
        v_BGTK.swapaxes(1, 2),
        is_causal=True,
        implementation="cudnn",
    )
    return out_BTHK.swapaxes(1, 2).reshape(B, G, R, T, K)


def splash(mesh: Mesh, interpret: bool = False) -> Attention:
    """The splash attention kernel of JAX for TPUs: FlashAttention that skips what is masked.

    A kernel is opaque to the compiler's sharding, so each device is given its rows and heads.

    Args:
      interpret: run it on a CPU, slowly: for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    def on_a_device(q_BGRTK, k_BGTK, v_BGTK, segments_BT):
        R, T, K = q_BGRTK.shape[2:]
        block = math.gcd(_SPLASH_BLOCK, T)
        kernel = kernels.make_splash_mqa_single_device(
            masks.MultiHeadMask([masks.CausalMask((T, T))] * R),
            block_sizes=kernels.BlockSizes(
                block_q=block,
                block_kv=block,
                block_q_dkv=block,
                block_kv_dkv=block,
                use_fused_bwd_kernel=True,
            ),
            interpret=interpret,
        )

        def of_a_row(q_GRTK, k_GTK, v_GTK, segments_T):
            segments = None if segments_T is None else kernels.SegmentIds(segments_T, segments_T)
            return jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(q_GRTK, k_GTK, v_GTK)

        rows = 0 if segments_BT is not None else None
        return jax.vmap(of_a_row, (0, 0, 0, rows))(
            q_BGRTK / math.sqrt(K), k_BGTK, v_BGTK, segments_BT
        )

    parted = mesh.shape["data"] * mesh.shape["fsdp"] > 1

    def attention(q_BGRTK, k_BGTK, v_BGTK, segments_BT=None) -> Any:
        heads = P(None, "tensor")
        return jax.shard_map(
            on_a_device,
            mesh=None if parted else mesh,  # within by_rows: its mesh
            in_specs=(heads, heads, heads, None if segments_BT is None else P()),
            out_specs=heads,
            axis_names={"tensor"} if parted else set(mesh.axis_names),
            check_vma=False,
        )(q_BGRTK, k_BGTK, v_BGTK, segments_BT)

    return attention


def choose(compute: ComputeConfig, model: ModelConfig, length: int, mesh: Mesh) -> Attention:
    """The attention of a training run on this mesh.

    Raises:
      UserError: it was asked for by name, and is not for these devices or this model.
    """
    name = name_of(compute, model, length, mesh.devices.flat[0].platform)
    return splash(mesh) if name == "splash" else {"cudnn": cudnn, "blocked": blocked}[name]


def name_of(compute: ComputeConfig, model: ModelConfig, length: int, platform: str) -> str:
    """Which attention `choose` takes on devices of this platform: cpu, gpu or tpu.

    Raises:
      UserError: as `choose`.
    """
    refusal = {
        "splash": _without_splash(platform, model, length),
        "cudnn": _without_cudnn(platform, model),
        "blocked": "",
    }
    asked = compute.attention
    if asked == "auto":
        return next(name for name, reason in refusal.items() if not reason)
    if refusal[asked]:
        raise UserError(f"compute.attention {asked}: {refusal[asked]}; give auto or blocked")
    return asked


def _without_cudnn(platform: str, model: ModelConfig) -> str:
    if platform not in ("gpu", "cuda"):
        return f"it is for NVIDIA GPUs, and this is a {platform}"
    if model.dtype != "bfloat16":
        return "it needs model.dtype bfloat16"
    if model.head_dim % 8 or model.head_dim > 128:
        return f"it needs a head_dim of 8, 16 ... 128, and this is {model.head_dim}"
    return ""


def _without_splash(platform: str, model: ModelConfig, length: int) -> str:
    if platform != "tpu":
        return f"it is for TPUs, and this is a {platform}"
    if model.head_dim % 64:
        return f"it needs a head_dim in steps of 64, and this is {model.head_dim}"
    if length % 128:
        return f"it needs a sequence_length in steps of 128, and this is {length}"
    return ""
