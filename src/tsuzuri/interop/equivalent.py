"""The same model with other switches: logits equal but for rounding.

Other programs hold fewer kinds of models than the Decoder. A part that one lacks can often be
written with the parts that it has, and each function here writes one so. A model that lacks the
part comes back as it is. Parameters are flat: {"blocks/0/attention/query/kernel": array, ...}.
"""

import dataclasses
import math
import re

import jax.numpy as jnp
import numpy as np

from tsuzuri.config import ModelConfig
from tsuzuri.model import sinusoids

Params = dict[str, np.ndarray]


def head_without_scale(cfg: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The scale of a tied head goes into the norm before it."""
    if not (cfg.scale_tied_head and cfg.final_norm):
        return cfg, params
    norm = {k: v / math.sqrt(cfg.embed_dim) for k, v in params.items() if k.startswith("final_")}
    return dataclasses.replace(cfg, scale_tied_head=False), params | norm


def learned_positions(cfg: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """Sinusoidal positions become the table of learned ones."""
    if cfg.positions != "sinusoidal":
        return cfg, params
    positions_1T = jnp.arange(cfg.context_length)[None, :]
    table = {"position_embed/embedding": np.asarray(sinusoids(positions_1T, cfg.embed_dim))[0]}
    return dataclasses.replace(cfg, positions="learned"), params | table


def every_bias(cfg: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """Biases of attention and MLP that the model lacks are zeros."""
    zeros: Params = {}
    for path, value in params.items():
        bias = path.replace("kernel", "bias")
        if re.search("(attention|mlp)/.*/kernel$", path) and bias not in params:
            zeros[bias] = np.zeros(value.shape[-1], np.float32)
    return dataclasses.replace(cfg, attention_bias=True, mlp_bias=True), params | zeros


def head_without_bias(cfg: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The head's bias becomes a row of its matrix, for an input that is always 1.

    For that the residual stream is widened from D to W = D + num_heads or fewer, with zeros. A norm
    over them is the same if the stream's mean is zero, so that is subtracted wherever something
    writes to it, which a layer norm before every reader makes invisible. The variance becomes D / W
    of what it was; the norm's scale and epsilon make up for it. The final norm's bias is the 1.
    """
    before_each_reader = cfg.norm == "layernorm" and cfg.norm_place == "pre" and cfg.final_norm
    if not (cfg.head_bias and before_each_reader and cfg.positions == "learned") or cfg.qk_norm:
        return cfg, params
    width = cfg.embed_dim
    more = cfg.num_heads - width % cfg.num_heads  # a width that the heads divide
    share = width / (width + more)

    def widened(path: str, value: np.ndarray) -> np.ndarray:
        zeros = [(0, 0)] * (value.ndim - 1)
        if re.search("embedding$|(out|down)/(kernel|bias)$", path):  # writes to the stream
            return np.pad(value - value.mean(axis=-1, keepdims=True), [*zeros, (0, more)])
        if re.search("(query|key|value|up|gate)/kernel$", path):  # reads it, through a norm
            return np.pad(value, [(0, more), *zeros])
        if path.endswith("norm/scale"):
            return np.pad(value * np.float32(math.sqrt(share)), (0, more))
        if path.endswith("norm/bias"):
            return np.pad(value, (0, more))
        return value

    params = {path: widened(path, np.asarray(value)) for path, value in params.items()}
    params["final_norm/bias"][width] = 1
    bias_1V = params.pop("head/bias")[None, :]
    nothing_V = np.zeros((more - 1, cfg.outputs), np.float32)
    params["head/kernel"] = np.concatenate([params["head/kernel"], bias_1V, nothing_V])
    cfg = dataclasses.replace(
        cfg,
        embed_dim=width + more,
        norm_epsilon=cfg.norm_epsilon * share,
        head_bias=False,
    )
    return cfg, params


def whole_heads(cfg: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """Heads narrower than embed_dim / num_heads are filled up with zeros.

    Scores are divided by the root of the new width, so that queries are scaled up.
    """
    old, new = cfg.head_dim, cfg.embed_dim // cfg.num_heads
    if old >= new or cfg.positions == "rope" or cfg.qk_norm:
        return cfg, params

    def filled(path: str, value: np.ndarray) -> np.ndarray:
        if re.search("attention/(query|key|value)/", path):
            value = value * np.float32(math.sqrt(new / old)) if "/query/" in path else value
            heads = value.reshape(*value.shape[:-1], -1, old)
            wide = np.pad(heads, [(0, 0)] * (heads.ndim - 1) + [(0, new - old)])
            return wide.reshape(*value.shape[:-1], -1)
        if path.endswith("attention/out/kernel"):
            heads = value.reshape(-1, old, value.shape[-1])
            return np.pad(heads, [(0, 0), (0, new - old), (0, 0)]).reshape(-1, value.shape[-1])
        return value

    params = {path: filled(path, np.asarray(value)) for path, value in params.items()}
    return dataclasses.replace(cfg, head_dim=new), params
