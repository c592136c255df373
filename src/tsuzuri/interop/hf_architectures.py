"""The architectures of transformers that the Decoder has: configs and tensors, for both directions.

`ARCHITECTURES` is the table. A tensor of theirs is a parameter of ours, transposed or not, or some
of ours side by side. What a config of theirs cannot say comes back from it otherwise than it went
in, and that is how `find` knows what stands in the way.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from tsuzuri.config import ModelConfig
from tsuzuri.errors import UserError
from tsuzuri.interop import equivalent
from tsuzuri.model import Decoder
from tsuzuri.sharding import path_of

Json = dict[str, Any]

# A module's tensors: theirs -> (ours, whether it is transposed). torch's Linear is [out, in],
# GPT-2's Conv1D is [in, out] as ours.
EMBEDDING = {"weight": ("embedding", False)}
NORM = {"weight": ("scale", False), "bias": ("bias", False)}
LINEAR = {"weight": ("kernel", True), "bias": ("bias", False)}
CONV1D = {"weight": ("kernel", False), "bias": ("bias", False)}

# Their module, its kind, and ours; more than one of ours lie side by side in theirs.
_GPT2 = (
    ("transformer.wte", EMBEDDING, "token_embed"),
    ("transformer.wpe", EMBEDDING, "position_embed"),
    ("transformer.h.{i}.ln_1", NORM, "blocks/{i}/attention_norm"),
    (
        "transformer.h.{i}.attn.c_attn",
        CONV1D,
        "blocks/{i}/attention/query",
        "blocks/{i}/attention/key",
        "blocks/{i}/attention/value",
    ),
    ("transformer.h.{i}.attn.c_proj", CONV1D, "blocks/{i}/attention/out"),
    ("transformer.h.{i}.ln_2", NORM, "blocks/{i}/mlp_norm"),
    ("transformer.h.{i}.mlp.c_fc", CONV1D, "blocks/{i}/mlp/up"),
    ("transformer.h.{i}.mlp.c_proj", CONV1D, "blocks/{i}/mlp/down"),
    ("transformer.ln_f", NORM, "final_norm"),
    ("lm_head", LINEAR, "head"),
)
_LLAMA = (
    ("model.embed_tokens", EMBEDDING, "token_embed"),
    ("model.layers.{i}.input_layernorm", NORM, "blocks/{i}/attention_norm"),
    ("model.layers.{i}.self_attn.q_proj", LINEAR, "blocks/{i}/attention/query"),
    ("model.layers.{i}.self_attn.k_proj", LINEAR, "blocks/{i}/attention/key"),
    ("model.layers.{i}.self_attn.v_proj", LINEAR, "blocks/{i}/attention/value"),
    ("model.layers.{i}.self_attn.q_norm", NORM, "blocks/{i}/attention/query_norm"),
    ("model.layers.{i}.self_attn.k_norm", NORM, "blocks/{i}/attention/key_norm"),
    ("model.layers.{i}.self_attn.o_proj", LINEAR, "blocks/{i}/attention/out"),
    ("model.layers.{i}.post_attention_layernorm", NORM, "blocks/{i}/mlp_norm"),
    ("model.layers.{i}.mlp.gate_proj", LINEAR, "blocks/{i}/mlp/gate"),
    ("model.layers.{i}.mlp.up_proj", LINEAR, "blocks/{i}/mlp/up"),
    ("model.layers.{i}.mlp.down_proj", LINEAR, "blocks/{i}/mlp/down"),
    ("model.norm", NORM, "final_norm"),
    ("lm_head", LINEAR, "head"),
)
_REQUIRED: Any = object()


class ConfigReader:
    """A config.json, read field by field and with errors of one line."""

    def __init__(self, config: Json, where: str):
        self.config, self.where = config, where

    def __call__(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        value = self.config.get(key)
        if value is None and default is not _REQUIRED:
            return default
        right = isinstance(value, int | float if kind is float else kind)
        if value is None or not right or (isinstance(value, bool) and kind is not bool):
            raise UserError(
                f"{self.where}: '{key}' is {value!r}, not {kind.__name__}; "
                "it is damaged, or another kind of model's"
            )
        if kind is int and not 1 <= value < 2**31:
            raise UserError(f"{self.where}: '{key}' is {value}; it must be from 1 to {2**31 - 1}")
        return value

    def only(self, key: str, *allowed: Any) -> Any:
        """The value, which must be one of those; the first where there is none."""
        value = self.config.get(key)
        value = allowed[0] if value is None else value
        if value not in allowed:
            raise UserError(
                f"{self.where}: '{key}' is {value!r}; the Decoder holds only "
                f"{', '.join(map(repr, allowed))}"
            )
        return value


# Configs: ours to theirs and back. Sources: transformers 5,
# models/{gpt2,llama,qwen3}/configuration_*.py.

_ACTIVATIONS = {
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu": "gelu",
    "relu": "relu",
}


def _to_gpt2(cfg: ModelConfig) -> Json:
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return {
        "vocab_size": cfg.vocab_size,
        "n_positions": cfg.context_length,
        "n_embd": cfg.embed_dim,
        "n_layer": cfg.num_layers,
        "n_head": cfg.num_heads,
        "n_inner": cfg.mlp_dim,
        "activation_function": names.get(cfg.activation, "gelu_new"),
        "layer_norm_epsilon": cfg.norm_epsilon,
        "embd_pdrop": cfg.dropout,
        "resid_pdrop": cfg.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": cfg.tied_head,
    }


def _of_gpt2(get: ConfigReader) -> Json:
    get.only("scale_attn_weights", True)
    get.only("scale_attn_by_inverse_layer_idx", False)
    get.only("add_cross_attention", False)
    width, heads = get("n_embd", int), get("n_head", int)
    return {
        "vocab_size": get("vocab_size", int),
        "context_length": get("n_positions", int),
        "num_layers": get("n_layer", int),
        "num_heads": heads,
        "num_kv_heads": heads,
        "embed_dim": width,
        "head_dim": width // heads,
        "mlp_dim": get("n_inner", int, 4 * width),
        "positions": "learned",
        "norm": "layernorm",
        "norm_epsilon": get("layer_norm_epsilon", float, 1e-5),
        "activation": _ACTIVATIONS[get.only("activation_function", *_ACTIVATIONS)],
        "attention_bias": True,
        "mlp_bias": True,
        "tied_head": get("tie_word_embeddings", bool, True),
    }


def _to_llama(cfg: ModelConfig) -> Json:
    return {
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context_length,
        "hidden_size": cfg.embed_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.mlp_dim,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "rope_theta": cfg.rope_theta,  # where transformers 4 and others look for it
        "attention_bias": cfg.attention_bias,
        "mlp_bias": cfg.mlp_bias,
        "tie_word_embeddings": cfg.tied_head,
    }


def _of_llama(get: ConfigReader) -> Json:
    get.only("hidden_act", "silu", "swish")
    width, heads = get("hidden_size", int), get("num_attention_heads", int)
    return {
        "vocab_size": get("vocab_size", int),
        "context_length": get("max_position_embeddings", int),
        "num_layers": get("num_hidden_layers", int),
        "num_heads": heads,
        "num_kv_heads": get("num_key_value_heads", int, heads),
        "embed_dim": width,
        "head_dim": get("head_dim", int, width // heads),
        "mlp_dim": get("intermediate_size", int),
        "norm_epsilon": get("rms_norm_eps", float, 1e-6),
        "rope_theta": _rope_theta(get),
        "attention_bias": get("attention_bias", bool, False),
        "mlp_bias": get("mlp_bias", bool, False),
        "tied_head": get("tie_word_embeddings", bool, False),
    }


def _of_qwen3(get: ConfigReader) -> Json:
    get.only("use_sliding_window", False)
    for kind in get("layer_types", list, []):
        ConfigReader({"layer_types": kind}, get.where).only("layer_types", "full_attention")
    return _of_llama(get) | {
        "head_dim": get("head_dim", int, 128),
        "mlp_bias": False,
        "qk_norm": True,
    }


def _rope_theta(get: ConfigReader) -> float:
    """Of transformers 5's `rope_parameters`, or of the two fields that it was before."""
    rope = get("rope_parameters", dict, get("rope_scaling", dict, {}))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{get.where}: rope scaling {kind!r}; the Decoder holds only 'default'")
    in_rope = ConfigReader(rope, get.where)
    for place in (get, in_rope):
        place.only("partial_rotary_factor", 1.0)
    return float(in_rope("rope_theta", float, get("rope_theta", float, 10_000.0)))


class Architecture(NamedTuple):
    """An architecture of transformers, and how it holds ours."""

    name: str  # its class
    prefix: str  # of its tensors' names; the bare model is saved without it
    modules: tuple[tuple[Any, ...], ...]
    buffers: str  # a pattern of tensors that older files hold and no model needs
    rewrites: tuple[Callable[[ModelConfig, Any], tuple[ModelConfig, Any]], ...]
    to_config: Callable[[ModelConfig], Json]
    of_config: Callable[[ConfigReader], Json]


ARCHITECTURES = {
    "gpt2": Architecture(
        name="GPT2LMHeadModel",
        prefix="transformer.",
        modules=_GPT2,
        buffers=r"\.attn\.(masked_)?bias$",
        rewrites=(
            equivalent.head_without_scale,
            equivalent.learned_positions,
            equivalent.every_bias,
            equivalent.head_without_bias,
            equivalent.whole_heads,
        ),
        to_config=_to_gpt2,
        of_config=_of_gpt2,
    ),
    "llama": Architecture(
        name="LlamaForCausalLM",
        prefix="model.",
        modules=_LLAMA,
        buffers=r"\.rotary_emb\.inv_freq$",
        rewrites=(equivalent.head_without_scale,),
        to_config=_to_llama,
        of_config=_of_llama,
    ),
    "qwen3": Architecture(
        name="Qwen3ForCausalLM",
        prefix="model.",
        modules=_LLAMA,
        buffers=r"\.rotary_emb\.inv_freq$",
        rewrites=(equivalent.head_without_scale,),
        to_config=_to_llama,
        of_config=_of_qwen3,
    ),
}


class Tensor(NamedTuple):
    """A tensor of theirs."""

    name: str
    ours: tuple[str, ...]  # paths of the parameters that lie side by side in it
    transposed: bool
    shape: tuple[int, ...]
    widths: tuple[int, ...]  # of each of ours along their last axis


def find(cfg: ModelConfig, params: Any) -> tuple[str, ModelConfig, Any]:
    """The architecture that holds the model, and the model as it holds it.

    Raises:
      UserError: there is none; the message says what stands in the way of the nearest.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    as_they_are = {path_of(keys): np.asarray(leaf) for keys, leaf in leaves}
    obstacles: dict[str, list[str]] = {}
    for kind, arch in ARCHITECTURES.items():
        held, flat = cfg, as_they_are
        for rewrite in arch.rewrites:
            held, flat = rewrite(held, flat)
        read_back = ModelConfig(**arch.of_config(ConfigReader(arch.to_config(held), kind)))
        free = {"dropout", "init", "dtype"} | ({"rope_theta"} if cfg.positions != "rope" else set())
        obstacles[kind] = [
            f"model.{field.name} {getattr(held, field.name)}"
            for field in dataclasses.fields(held)
            if field.name not in free
            and getattr(held, field.name) != getattr(read_back, field.name)
        ]
        if held.embed_dim % held.num_heads and kind != "qwen3":  # its classes refuse that
            obstacles[kind].append(f"{held.num_heads} heads in model.embed_dim {held.embed_dim}")
        if not obstacles[kind]:
            return kind, held, flat
    nearest = min(obstacles, key=lambda kind: len(obstacles[kind]))
    raise UserError(
        f"transformers has no architecture for this model: {', '.join(obstacles[nearest])} "
        f"cannot be held by {nearest}, the nearest"
    )


def tensors_of(arch: Architecture, cfg: ModelConfig) -> list[Tensor]:
    """The tensors of theirs that hold a model of this config."""
    one_layer = dataclasses.replace(cfg, num_layers=1)  # and all layers are alike
    model = nnx.eval_shape(lambda: Decoder(one_layer, rngs=nnx.Rngs(0)))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    shapes = {path_of(keys): leaf.shape for keys, leaf in leaves}
    tensors = list(_rows(arch, cfg, shapes))
    left_out = shapes.keys() - {path for tensor in tensors for path in tensor.ours}
    assert not left_out, f"no row of the table for {sorted(left_out)}"
    return tensors


def _rows(arch: Architecture, cfg: ModelConfig, shapes: Mapping[str, Any]) -> Iterator[Tensor]:
    for theirs, kind, *ours in arch.modules:
        for part, (our_part, transposed) in kind.items():
            paths = [f"{module}/{our_part}" for module in ours]
            if paths[0].format(i=0) not in shapes:
                continue  # such as a bias that the model has not
            of_first = [shapes[path.format(i=0)] for path in paths]
            widths = tuple(shape[-1] for shape in of_first)
            shape = (*of_first[0][:-1], sum(widths))
            shape = shape[::-1] if transposed else shape
            for i in range(cfg.num_layers) if "{i}" in theirs else [0]:
                name = f"{theirs}.{part}".format(i=i)
                yield Tensor(
                    name, tuple(path.format(i=i) for path in paths), transposed, shape, widths
                )
