"""Hugging Face transformers: a model trained here goes out, others' weights come in.

A folder of theirs holds the model's numbers (config.json), its tensors (model.safetensors, or
shards and an index) and its tokenizer. hf_architectures.py says which tensor of theirs is which
parameter of ours, hf_tokenizer.py writes the tokenizer, model_card.py the README. No code that
comes with a model is ever run, and no pickle is read.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tsuzuri import files, tokenizer
from tsuzuri.config import Config, ModelConfig, replace
from tsuzuri.errors import RunError, UserError
from tsuzuri.interop import hf_tokenizer
from tsuzuri.interop.hf_architectures import (
    ARCHITECTURES,
    Architecture,
    ConfigReader,
    Tensor,
    find,
    tensors_of,
)
from tsuzuri.interop.model_card import model_card
from tsuzuri.tokenizer import Tokenizer

Say = Callable[[str], None]

_SHARD_BYTES = 5 * 10**9  # a file of weights holds at most so many, as transformers' own
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LM1B = ("checkpoint_*", "sentencepiece_model")  # transformer-lm-japanese's files
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Imported(NamedTuple):
    """A model from elsewhere."""

    model: ModelConfig  # resolved
    params: Any  # a nested dict of float32 arrays, as the Decoder's
    tokenizer: Tokenizer


# Out


def export(
    cfg: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    out: Path,
    facts: Mapping[str, Any],
    say: Say,
) -> None:
    """Writes a folder that AutoModelForCausalLM and AutoTokenizer load, whole or not at all.

    Args:
      cfg: the resolved ModelConfig.
      params: the Decoder's parameters, a nested dict of float32 arrays.
      tokenizer: the one that the model was trained with.
      out: the folder; it may be there if it is empty.
      facts: what is known of the model, for its card (see `model_card`).
      say: is told what is written otherwise than it is here.

    Raises:
      UserError: no architecture of transformers holds the model, or no tokenizer of theirs ours;
        the message names the part. Or `out` holds something.
      RunError: it cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there already; give a new --out")
    if tokenizer.vocab_size > cfg.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {cfg.vocab_size}; "
            "use the tokenizer that the model was trained with"
        )
    kind, held, flat = find(cfg, params)
    changed = [
        f"model.{field.name} {getattr(cfg, field.name)} by {getattr(held, field.name)}"
        for field in dataclasses.fields(cfg)
        if field.name not in ("attention_bias", "mlp_bias", "norm_epsilon")
        and getattr(cfg, field.name) != getattr(held, field.name)
    ]
    if changed:
        say(f"{kind} holds this model exactly, but writes {', '.join(changed)}")
    ids = {
        "bos_token_id": tokenizer.begin_of_text,
        "eos_token_id": tokenizer.end_of_text,
        "pad_token_id": tokenizer.padding,
    }
    arch = ARCHITECTURES[kind]
    config = {"model_type": kind, "architectures": [arch.name], "dtype": "float32"}
    # As our Generator: ids that are never text are never drawn.
    never = {tokenizer.padding, tokenizer.unknown, tokenizer.begin_of_text}
    never -= {None, tokenizer.end_of_text}
    never |= set(range(tokenizer.vocab_size, cfg.vocab_size))
    with files.write_beside(out) as beside:
        beside.mkdir()
        files.write_json(beside / "config.json", config | arch.to_config(held) | ids)
        files.write_json(
            beside / "generation_config.json", ids | {"suppress_tokens": sorted(never)}
        )
        hf_tokenizer.write(tokenizer, beside, cfg.context_length, say)
        files.write_text(beside / "README.md", model_card(arch.name, cfg, facts))
        _write_tensors(beside, tensors_of(arch, held), flat)


def _write_tensors(folder: Path, tensors: list[Tensor], params: Mapping[str, np.ndarray]) -> None:
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        size += 4 * int(np.prod(tensor.shape))
        if size > _SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 4 * int(np.prod(tensor.shape))
        shards[-1].append(tensor)
    names = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    names = names if len(shards) > 1 else [_WEIGHTS]
    for name, shard in zip(names, shards, strict=True):
        arrays = {tensor.name: _theirs(tensor, params) for tensor in shard}
        try:
            save_file(arrays, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(None, str(error)) from error
    if len(shards) > 1:
        of = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        total = sum(4 * int(np.prod(tensor.shape)) for tensor in tensors)
        files.write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": of})


def _theirs(tensor: Tensor, params: Mapping[str, np.ndarray]) -> np.ndarray:
    parts = [np.asarray(params[path], np.float32) for path in tensor.ours]
    whole = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    return _transpose(whole) if tensor.transposed else np.ascontiguousarray(whole)


def _transpose(array: np.ndarray) -> np.ndarray:
    """Laid out anew, in strips that stay in the CPU's cache: twice as fast as all at once."""
    out = np.empty(array.shape[::-1], np.float32)
    for start in range(0, len(array), 16):
        out[:, start : start + 16] = array[start : start + 16].T
    return out


# In


def read(path: Path, say: Say) -> Imported:
    """Reads a folder of gpt2, llama or qwen3, its weights in float32, bfloat16 or float16.

    Where the tokenizer has no padding token, the vocabulary gets one row more, for ours. It is the
    mean of the others: its logit is their mean, so it takes at most 1 / V of the probability.

    Args:
      path: the folder, with config.json, safetensors and tokenizer.json or tokenizer.model.
      say: is told of what is passed over.

    Raises:
      UserError: it is no such folder, another architecture or a variant that the Decoder does not
        hold; it asks for code of its own; its weights are pickled, damaged, incomplete, of another
        shape; its tokenizer has more tokens than the model.
    """
    if path.is_file():
        raise UserError(f"{path} is a file; give the folder that holds it and its config.json")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    where = path / "config.json"
    config = files.read_json(where)
    if not isinstance(config, dict):
        raise UserError(f"{where}: not the config of a model")
    if config.get("auto_map"):
        raise UserError(
            f"{where}: the model asks for code of its own (auto_map), which is never run here"
        )
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{where}: architecture {kind!r} is not known here; known are {known}")
    if config.get("quantization_config"):
        raise UserError(f"{where}: the weights are quantized; give the model as it was before")
    arch = ARCHITECTURES[kind]
    fields = arch.of_config(ConfigReader(config, str(where)))
    stored = _stored(path)
    if fields["num_layers"] > len(stored):
        raise UserError(
            f"{where}: {fields['num_layers']} layers, but the weights are {len(stored)} tensors"
        )
    flat = {f"model.{key}": value for key, value in fields.items()}
    cfg = replace(Config(sequence_length=1), flat).model  # which checks them

    tok = _read_tokenizer(path, say)
    padding_row = tok.vocab_size == cfg.vocab_size + 1 and tok.padding == cfg.vocab_size
    if tok.vocab_size > cfg.vocab_size and not padding_row:
        raise UserError(
            f"{path}: the tokenizer has {tok.vocab_size} tokens and the model only "
            f"{cfg.vocab_size}; it is another model's"
        )
    params = _read_tensors(path, arch, cfg, stored, say)
    if padding_row:
        say(f"the tokenizer has no padding token: id {tok.padding} is added for it, as a mean row")
        cfg = dataclasses.replace(cfg, vocab_size=tok.vocab_size)
        for name, axis in ("token_embed/embedding", 0), ("head/kernel", 1):
            if name in params:
                mean = params[name].mean(axis=axis, keepdims=True)
                params[name] = np.concatenate([params[name], mean], axis=axis)
    return Imported(cfg, _nested(params), tok)


def _read_tokenizer(path: Path, say: Say) -> Tokenizer:
    beside = path / "tokenizer_config.json"
    told = files.read_json(beside) if beside.exists() else {}
    told = told if isinstance(told, dict) else {}
    if told.get("auto_map"):
        say(f"{beside}: asks for code of its own (auto_map), which is not run")
    if told.get("chat_template") or (path / "chat_template.jinja").exists():
        say(f"{path}: its chat template is not kept: a prompt goes to the model as it is")
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).exists():
            return tokenizer.load(path / name)
    raise UserError(
        f"{path}: has no tokenizer.json; transformers' AutoTokenizer makes one by save_pretrained"
    )


def _stored(path: Path) -> dict[str, Path]:
    """The file of each tensor.

    Raises:
      UserError: there are no safetensors, a shard is absent, or a file is damaged.
    """
    if (path / _WEIGHTS).exists():
        shards = [_WEIGHTS]
    elif (path / _INDEX).exists():
        index = files.read_json(path / _INDEX)
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
            raise UserError(f"{path / _INDEX}: has no 'weight_map' of tensors to files")
        shards = sorted(set(places.values()))
    else:
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
        if pickles:
            raise UserError(
                f"{path}: holds its weights only as {', '.join(pickles[:3])}; pickle can run any "
                "code when it is read, and is not: save them as safetensors"
            )
        raise UserError(f"{path}: has no {_WEIGHTS}")
    stored: dict[str, Path] = {}
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UserError(f"{path / _INDEX}: {shard!r} is not the name of a file beside it")
        file = path / shard
        if not file.is_file():
            raise UserError(f"{file}: no such file, but {_INDEX} names it; fetch the shard again")
        for name in _open(file).keys():  # noqa: SIM118
            if name in stored:
                raise UserError(f"{file}: tensor '{name}' is in {stored[name].name} too")
            stored[name] = file
    return stored


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="numpy", backend="pread")  # mapped, it would be in memory
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not a whole safetensors file ({error}); it is cut short or damaged"
        ) from None


def _read_tensors(
    path: Path, arch: Architecture, cfg: ModelConfig, stored: dict[str, Path], say: Say
) -> dict[str, np.ndarray]:
    """Our parameters by their paths, a tensor at a time.

    Raises:
      UserError: a tensor is missing, unknown, of another shape or type.
    """
    if not any(name.startswith(arch.prefix) for name in stored):  # the model without its head
        stored = {
            name if name.startswith("lm_head.") else arch.prefix + name: file
            for name, file in stored.items()
        }
        bare = arch.prefix
    else:
        bare = ""
    tensors = {tensor.name: tensor for tensor in tensors_of(arch, cfg)}
    buffers = {name for name in stored if re.search(arch.buffers, name)} - tensors.keys()
    if buffers:
        say(f"passed over {len(buffers)} buffers, such as {min(buffers)}: no weights")
    tied = {"lm_head.weight"} & stored.keys() if cfg.tied_head else set()
    _must_be_none("lacks", path, tensors.keys() - stored.keys())
    _must_be_none("has unknown", path, stored.keys() - tensors.keys() - buffers - tied)

    handles = {file: _open(file) for file in set(stored.values())}

    def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
        file = stored[name]
        their_name = name.removeprefix(bare)
        found = handles[file].get_slice(their_name)
        if tuple(found.get_shape()) != shape:
            raise UserError(
                f"{file}: tensor '{their_name}' has shape {found.get_shape()}, "
                f"but config.json makes it {list(shape)}"
            )
        if found.get_dtype() not in ("F32", "F16", "BF16"):
            raise UserError(
                f"{file}: tensor '{their_name}' is {found.get_dtype()}; "
                "F32, F16 and BF16 can be read"
            )
        return handles[file].get_tensor(their_name)

    params: dict[str, np.ndarray] = {}
    for tensor in tensors.values():
        whole = array(tensor.name, tensor.shape)
        whole = _transpose(whole) if tensor.transposed else whole
        ends = np.cumsum(tensor.widths)[:-1]
        for our_path, part in zip(tensor.ours, np.split(whole, ends, axis=-1), strict=True):
            params[our_path] = np.ascontiguousarray(part, np.float32)
    for name in tied:
        table = params["token_embed/embedding"]
        if not np.array_equal(array(name, table.shape).astype(np.float32), table):
            raise UserError(
                f"{path}: config.json ties the head to the embedding, but '{name}' is another "
                "matrix; set tie_word_embeddings to what is meant"
            )
    return params


def _must_be_none(what: str, path: Path, names: set[str]) -> None:
    if names:
        first = ", ".join(repr(name) for name in sorted(names)[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(f"{path}: {what} tensors: {first}{more}; its config.json is another's")


def _nested(flat: Mapping[str, np.ndarray]) -> Any:
    """{"blocks/0/mlp": x} as {"blocks": {0: {"mlp": x}}}."""
    nested: dict[Any, Any] = {}
    for path, value in flat.items():
        *folders, last = [int(key) if key.isdecimal() else key for key in path.split("/")]
        place = nested
        for key in folders:
            place = place.setdefault(key, {})
        place[last] = value
    return nested


# The hub


def download(name: str) -> Path:
    """Fetches a model of huggingface.co: what `read` needs, here or in lm1b.py; no code, no pickle.

    Args:
      name: OWNER/NAME, or OWNER/NAME@REVISION.

    Raises:
      UserError: there is no such model, no network, or it has no safetensors.
    """
    import huggingface_hub

    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", repository):
        raise UserError(f"{name}: no such folder, and no OWNER/NAME of huggingface.co")
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=["*.json", "*.safetensors", "tokenizer.model", *_LM1B],
            ignore_patterns=["*/*"],
        )
    except Exception as error:
        what = f"{name}: no such folder, and it cannot be had from huggingface.co"
        raise _hub_error(what, error, UserError) from error
    weights = ("*.safetensors", _LM1B[0])
    if not any(found for pattern in weights for found in Path(folder).glob(pattern)):
        raise UserError(
            f"{name}: has no safetensors on huggingface.co; weights in pickle are not fetched, for "
            "they can run any code when read"
        )
    return Path(folder)


def push(folder: Path, name: str) -> None:
    """Uploads an exported folder to huggingface.co as OWNER/NAME, which is made if it is not there.

    Raises:
      UserError: the name is no name.
      RunError: the hub cannot be reached, or refuses.
    """
    import huggingface_hub

    try:
        huggingface_hub.create_repo(name, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=name, folder_path=folder)
    except ValueError as error:
        raise _hub_error(f"{name}: cannot be pushed to", error, UserError) from error
    except Exception as error:
        raise _hub_error(
            f"{folder} cannot be pushed to huggingface.co/{name}", error, RunError
        ) from error


def _hub_error(what: str, error: Exception, kind: type[UserError] | type[RunError]) -> Exception:
    reason = next((line for line in str(error).splitlines() if line.strip()), "")
    return kind(f"{what} ({type(error).__name__}: {reason.strip()[:200]})")
