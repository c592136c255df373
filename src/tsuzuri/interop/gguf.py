"""Export to GGUF: the one file that llama.cpp and the programs built on it (ollama ...) run.

The file holds the model's sizes and its tokenizer (gguf_tokenizer.py) as key-value pairs, then the
tensors. Format: github.com/ggml-org/ggml, docs/gguf.md. What llama.cpp computes from it:
github.com/ggml-org/llama.cpp, src/models/llama.cpp, qwen3.cpp and gpt2.cpp.
"""

import contextlib
import dataclasses
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tsuzuri import files
from tsuzuri.config import ModelConfig
from tsuzuri.errors import UserError
from tsuzuri.interop.gguf_tokenizer import vocabulary_of, write_vocabulary
from tsuzuri.tokenizer import Tokenizer

# What llama.cpp's architectures compute. A switch that is not named here must be as ModelConfig's
# defaults have it, which are Llama's.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"qk_norm": True},
    "gpt2": {"positions": "learned", "norm": "layernorm", "activation": "gelu-tanh"},
}
# Free: sizes, which the file holds, and what the trained model does not compute with.
_FREE = {"vocab_size", "context_length", "num_layers", "num_heads", "num_kv_heads", "embed_dim"}
_FREE |= {"head_dim", "mlp_dim", "rope_theta", "norm_epsilon", "tied_head"}
_FREE |= {"dropout", "init", "dtype"}
_BIASES = {"attention_bias", "mlp_bias"}  # qwen3 has none; llama may have them, gpt2 has them all
_BLOCK = 32  # numbers of a row that share a scale in q8_0


def export(
    cfg: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    out: Path,
    kind: Literal["f32", "f16", "q8_0"],
    facts: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Writes one .gguf file, whole or not at all.

    Rows of the vocabulary that no token has are left out; they are never text.

    Args:
      cfg: the resolved ModelConfig.
      params: the Decoder's parameters, a nested dict of float32 arrays.
      tokenizer: the one that the model was trained with.
      out: the file.
      kind: of the matrices' numbers: 4 bytes, 2 bytes, or 1 byte and a scale for each 32 of a row.
        Vectors and the table of positions stay f32.
      facts: what is known of the model, as for `hf.export`; written as `tsuzuri.*`, and `run` as
        the model's name.
      say: told what comes out otherwise than asked for.

    Raises:
      UserError: llama.cpp has no such architecture or tokenizer, and which part stands in the way;
        the tokenizer has more tokens than the model; a weight that `kind` cannot hold; `out` is
        there already; the package gguf is not installed.
      RunError: the file cannot be written.
    """
    if out.exists():
        raise UserError(f"{out} is there already; give a new --out")
    if tokenizer.vocab_size > cfg.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {cfg.vocab_size}; "
            "use the tokenizer that the model was trained with"
        )
    architecture = find_architecture(cfg)
    vocabulary = vocabulary_of(tokenizer, say)
    cfg = dataclasses.replace(cfg, vocab_size=tokenizer.vocab_size)
    try:
        import gguf
    except ImportError:
        raise UserError(
            "the package that writes this format is not installed: pip install 'tsuzuri[gguf]'"
        ) from None

    file_types = {"f32": 0, "f16": 1, "q8_0": 7}  # llama.cpp's LLAMA_FTYPE
    with (
        files.write_beside(out) as beside,
        contextlib.closing(gguf.GGUFWriter(beside, architecture)) as writer,
    ):
        writer.add_file_type(file_types[kind])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_name(str(facts.get("run") or "tsuzuri"))
        for key, value in facts.items():
            if value is not None:
                writer.add_string(f"tsuzuri.{key}", str(value))
        _write_sizes(writer, cfg)
        write_vocabulary(writer, vocabulary, tokenizer)

        # First all names and shapes, then the numbers, a tensor at a time.
        types: dict[str, Any] = {}
        for name, tensor in _tensors(architecture, cfg, params):
            flat = tensor.ndim == 1 or name == "position_embd.weight"
            fits = kind != "q8_0" or tensor.shape[-1] % _BLOCK == 0
            wanted = "f32" if flat else kind if fits else "f16"
            types[name] = gguf.GGMLQuantizationType[wanted.upper()]
            size = math.prod(gguf.quant_shape_to_byte_shape(tensor.shape, types[name]))
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, size, types[name])
        if kind == "q8_0" and (left := list(types.values()).count(gguf.GGMLQuantizationType.F16)):
            say(f"{left} matrices stay f16: their rows are no multiple of q8_0's {_BLOCK} numbers")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        for name, tensor in _tensors(architecture, cfg, params):
            most = np.finfo("f4" if types[name] == gguf.GGMLQuantizationType.F32 else "f2").max
            largest = np.abs(tensor).max()
            if not largest <= most:
                raise UserError(f"{name} holds {largest}, which {types[name].name} cannot")
            numbers = gguf.quantize(np.ascontiguousarray(tensor), types[name])
            file.write(numbers.data)  # not write_tensor_data: that hides why a disk refuses
            writer.write_padding(file, numbers.nbytes)


def find_architecture(cfg: ModelConfig) -> str:
    """The architecture of llama.cpp that computes what the Decoder does: llama, qwen3 or gpt2.

    Raises:
      UserError: there is none; the message says what the nearest has otherwise.
    """
    found: dict[str, list[str]] = {}
    for name, has in _ARCHITECTURES.items():
        free = _FREE if name == "qwen3" else _FREE | _BIASES
        switches = {f.name: f.default for f in dataclasses.fields(cfg) if f.name not in free} | has
        found[name] = [
            f"model.{key} {value}, not {getattr(cfg, key)}"
            for key, value in switches.items()
            if value != getattr(cfg, key)
        ]
        heads = cfg.num_heads * cfg.head_dim
        if name == "gpt2" and heads != cfg.embed_dim:
            found[name] += [f"heads as wide together as embed_dim {cfg.embed_dim}, not {heads}"]
    nearest = min(found, key=lambda name: len(found[name]))
    if found[nearest]:
        raise UserError(
            f"llama.cpp has no architecture for this model: the nearest, {nearest}, has "
            f"{'; '.join(found[nearest])}"
        )
    return nearest


def ollama_line(path: Path) -> str:
    """The shell line that makes a model of ollama from the file, and runs it.

    The prompt goes to the model as it is, for ours continue a text and know no chat.
    Source: github.com/ollama/ollama, docs/modelfile.md.
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "tsuzuri"
    content = f'FROM ./{path.name}\nTEMPLATE "{{{{ .Prompt }}}}"\n'.replace("\n", "\\n")
    modelfile = shlex.quote(str(path.with_suffix(".Modelfile")))
    return (
        f"printf '%b' {shlex.quote(content)} > {modelfile} && "
        f"ollama create {name} -f {modelfile} && ollama run {name}"
    )


def _write_sizes(writer: Any, cfg: ModelConfig) -> None:
    writer.add_vocab_size(cfg.vocab_size)
    writer.add_context_length(cfg.context_length)
    writer.add_embedding_length(cfg.embed_dim)
    writer.add_block_count(cfg.num_layers)
    writer.add_feed_forward_length(cfg.mlp_dim)
    writer.add_head_count(cfg.num_heads)
    writer.add_head_count_kv(cfg.num_kv_heads)
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    if cfg.norm == "layernorm":
        writer.add_layer_norm_eps(cfg.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(cfg.norm_epsilon)
    if cfg.positions == "rope":
        writer.add_rope_dimension_count(cfg.head_dim)
        writer.add_rope_freq_base(cfg.rope_theta)


def _tensors(architecture: str, cfg: ModelConfig, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by llama.cpp's name. A matrix has a row for each of its outputs."""

    def weights(name: str, *modules: Any, heads: int = 0) -> Iterator[tuple[str, np.ndarray]]:
        """The modules' weights and biases, one below the other."""
        for kind, key in ("weight", "kernel"), ("weight", "scale"), ("bias", "bias"):
            if all(key in module for module in modules):
                tensors = [np.asarray(module[key]).T for module in modules]
                tensor = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
                yield f"{name}.{kind}", _interleave(tensor, heads) if heads else tensor
        if architecture == "gpt2" and "bias" not in modules[0]:  # llama.cpp asks for all of them
            yield f"{name}.bias", np.zeros(sum(m["kernel"].shape[1] for m in modules), np.float32)

    yield "token_embd.weight", np.asarray(params["token_embed"]["embedding"])[: cfg.vocab_size]
    if cfg.positions == "learned":
        yield "position_embd.weight", np.asarray(params["position_embed"]["embedding"])
    for i in range(cfg.num_layers):
        block, name = params["blocks"][i], f"blk.{i}"
        attention, mlp = block["attention"], block["mlp"]
        query, key, value = attention["query"], attention["key"], attention["value"]
        yield from weights(f"{name}.attn_norm", block["attention_norm"])
        if architecture == "gpt2":
            yield from weights(f"{name}.attn_qkv", query, key, value)
        else:
            rope = architecture == "llama"
            yield from weights(f"{name}.attn_q", query, heads=cfg.num_heads * rope)
            yield from weights(f"{name}.attn_k", key, heads=cfg.num_kv_heads * rope)
            yield from weights(f"{name}.attn_v", value)
        if cfg.qk_norm:
            yield from weights(f"{name}.attn_q_norm", attention["query_norm"])
            yield from weights(f"{name}.attn_k_norm", attention["key_norm"])
        yield from weights(f"{name}.attn_output", attention["out"])
        yield from weights(f"{name}.ffn_norm", block["mlp_norm"])
        if "gate" in mlp:
            yield from weights(f"{name}.ffn_gate", mlp["gate"])
        yield from weights(f"{name}.ffn_up", mlp["up"])
        yield from weights(f"{name}.ffn_down", mlp["down"])
    yield from weights("output_norm", params["final_norm"])
    if not cfg.tied_head:
        yield "output.weight", np.asarray(params["head"]["kernel"]).T[: cfg.vocab_size]


def _interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head in the order 0, K/2, 1, K/2 + 1 ...

    Our rope turns the pairs (i, i + K/2) and llama.cpp's llama turns (2i, 2i + 1), so that the same
    pairs meet. Source: `permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
