"""Checkpoints of Flax's lm1b example, as transformer-lm-japanese publishes them.

    FOLDER/checkpoint_499999    the TrainState {"step", "params", "opt_state"} in Flax's msgpack
    FOLDER/sentencepiece_model  the tokenizer

The model (flax/examples/lm1b; github.com/FookieMonster/transformer-lm-japanese) puts an id 0 before
each text and predicts it shifted by one. Id 0 is SentencePiece's <unk>, 1 its <s>, which that
program never uses, 2 its </s>. So here a text begins with 0, ends with 2, and 1 is padding.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import flax.serialization
import flax.traverse_util
import jax
import msgpack
import numpy as np
from flax import nnx

from tsuzuri.config import ModelConfig
from tsuzuri.errors import UserError
from tsuzuri.interop.hf import Imported
from tsuzuri.model import Decoder
from tsuzuri.sharding import path_of
from tsuzuri.tokenizer.sentencepiece import read_model

_TOKENIZER = "sentencepiece_model"
_BEGIN_OF_TEXT, _PADDING = 0, 1

# The published models see 512 tokens (max_len). Sinusoids are no parameters: no file says it.
_CONTEXT_LENGTH = 512

# Ours -> theirs, in this order.
_NAMES = (
    ("token_embed", "Embed_0"),
    ("blocks/", "encoderdecoderblock_"),
    ("attention_norm", "LayerNorm_0"),
    ("attention", "SelfAttention_0"),
    ("mlp_norm", "LayerNorm_1"),
    ("mlp/up", "MlpBlock_0/Dense_0"),
    ("mlp/down", "MlpBlock_0/Dense_1"),
    ("final_norm", "encoderdecoder_norm"),
    ("head", "logitdense"),
)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds such a checkpoint."""
    return bool(_checkpoints(path))


def read(folder: Path, say: Callable[[str], None]) -> Imported:
    """The newest checkpoint of a folder, and its tokenizer.

    Raises:
      UserError: the checkpoint is cut short or another model's (the tensors are named, with the
        shapes); the tokenizer is absent, or another model's.
    """
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        raise UserError(f"{folder} holds no checkpoint_STEP of Flax's lm1b")
    path = checkpoints[max(checkpoints)]
    if not (folder / _TOKENIZER).is_file():
        raise UserError(f"{folder} holds no {_TOKENIZER}; put the model's own beside {path.name}")
    tokenizer = read_model(folder / _TOKENIZER, special=(_BEGIN_OF_TEXT, _PADDING))
    theirs = _read_params(path)
    cfg = _config(path, theirs)
    params = _params(path, cfg, theirs)
    if tokenizer.vocab_size != cfg.vocab_size:
        raise UserError(
            f"{folder / _TOKENIZER} has {tokenizer.vocab_size} tokens and the model of {path.name} "
            f"{cfg.vocab_size}; give the tokenizer that it was trained with"
        )
    if (tokenizer.unknown, tokenizer.end_of_text) != (0, 2):
        raise UserError(
            f"{folder / _TOKENIZER}: <unk> has id {tokenizer.unknown} and </s> "
            f"{tokenizer.end_of_text}; lm1b's tokenizers have 0 and 2"
        )
    say(f"{path}: {sum(value.size for value in theirs.values()):,} parameters of Flax's lm1b")
    return Imported(cfg, params, tokenizer)


def _checkpoints(folder: Path) -> dict[int, Path]:
    """{499999: FOLDER/checkpoint_499999}; folders of that name are Orbax's, another format."""
    found = {path: re.fullmatch(r"checkpoint_(\d+)", path.name) for path in folder.glob("*")}
    return {int(match[1]): path for path, match in found.items() if match and path.is_file()}


def _read_params(path: Path) -> dict[str, np.ndarray]:
    """The parameters, {"Embed_0/embedding": [V, D], ...}."""
    try:
        with path.open("rb") as file:
            start, end = _span_of_params(file)
            file.seek(start)
            tree = flax.serialization.msgpack_restore(file.read(end - start))["decoder"]
            flat = flax.traverse_util.flatten_dict(tree, sep="/")
    except msgpack.OutOfData:
        size = path.stat().st_size
        raise UserError(f"{path} is cut short after {size:,} bytes; download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # what a damaged or foreign file makes of msgpack's and Flax's code
        raise UserError(
            f'{path}: no checkpoint of Flax\'s lm1b with "params" and in it "decoder" '
            f"({type(error).__name__}: {error}); it is damaged, or another program's"
        ) from error
    return {name: np.asarray(value) for name, value in flat.items()}


def _span_of_params(file: BinaryIO) -> tuple[int, int]:
    """Where the value of "params" lies. The whole file is gone through, to know that it is whole.

    So the optimizer's moments, which are twice as large, are never in memory.
    """
    unpacker = msgpack.Unpacker(file, max_buffer_size=0)
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(unpacker.read_map_header()):
        key = unpacker.unpack()
        start = unpacker.tell()
        unpacker.skip()
        spans[key] = start, unpacker.tell()
    return spans["params"]


def _config(path: Path, theirs: Mapping[str, np.ndarray]) -> ModelConfig:
    """The model's numbers, from the shapes."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        found = theirs[name].shape if name in theirs else None
        if found is None or len(found) != dimensions or 0 in found:
            what = "is missing" if found is None else f"has the shape {found}"
            raise UserError(f"{path}: no model of Flax's lm1b; its {name} {what}")
        return found

    vocab_size, embed_dim = shape("Embed_0/embedding", 2)
    _, num_heads, head_dim = shape("encoderdecoderblock_0/SelfAttention_0/query/kernel", 3)
    _, mlp_dim = shape("encoderdecoderblock_0/MlpBlock_0/Dense_0/kernel", 2)
    tied = "logitdense/kernel" not in theirs
    return ModelConfig(
        vocab_size=vocab_size,
        context_length=_CONTEXT_LENGTH,
        num_layers=len({n.split("/")[0] for n in theirs if n.startswith("encoderdecoderblock_")}),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        embed_dim=embed_dim,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        positions="sinusoidal",
        norm="layernorm",
        norm_epsilon=1e-6,  # Linen's
        activation="relu",
        mlp_bias=True,
        head_bias=not tied,
        tied_head=tied,
        scale_tied_head=tied,
        init="lm1b",
    )


def _params(path: Path, cfg: ModelConfig, theirs: Mapping[str, np.ndarray]) -> dict[Any, Any]:
    """The Decoder's parameters; a head's three dimensions become our two."""
    shapes = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0))))[1])
    heads = (cfg.num_heads, cfg.head_dim)
    used = set()

    def one(keys: tuple[Any, ...], wanted: Any) -> np.ndarray:
        name = path_of(keys)
        for ours, their in _NAMES:
            name = name.replace(ours, their)
        used.add(name)
        shape = wanted.shape
        if re.search("(query|key|value)/kernel$", name):
            shape = (shape[0], *heads)
        elif name.endswith("/out/kernel"):
            shape = (*heads, shape[1])
        found = theirs.get(name)
        if found is None or found.shape != shape:
            what = "is missing" if found is None else f"has the shape {found.shape}"
            raise UserError(f"{path}: {name} {what}; it must be there with the shape {shape}")
        return found.astype(np.float32, copy=False).reshape(wanted.shape)

    params = jax.tree_util.tree_map_with_path(one, shapes)
    if extra := sorted(theirs.keys() - used):
        raise UserError(f"{path}: no model of Flax's lm1b; {extra[0]} does not belong to it")
    return params
