"""Every number that a run can be given, as frozen dataclasses; the standard library only.

A Config is made as preset < config file < flags, and checked when it is built, before JAX starts.
Each field's comment is its help text on the command line.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from tsuzuri.errors import UserError
from tsuzuri.files import read_json


@dataclass(frozen=True)
class TextConfig:
    """How files become documents."""

    encoding: str = "auto"  # utf-8, utf-16, cp932, euc-jp, or auto: only where it is unambiguous
    document_separator: str = ""  # the string that ends a document in a text file, if there is one
    field: str = "text"  # the field of .jsonl and the column of .parquet that hold the text
    normalize: Literal["none", "NFC", "NFKC"] = "none"  # Unicode normalization of each document
    min_characters: int = 0  # documents with fewer are dropped
    language: Literal["any", "ja", "en", "zh", "ko"] = "any"  # whose script the letters should be
    min_language_share: float = 0.5  # documents are dropped if fewer of their letters are
    deduplicate: bool = False  # of documents with the very same text only the first is kept


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids."""

    # byte-level BPE, SentencePiece's unigram or BPE, jax-llm's lossy BPE over words, or raw bytes
    kind: Literal["bpe", "unigram", "sentencepiece-bpe", "whitespace", "bytes"] = "bpe"
    vocab_size: int = 8192  # tokens of a trained tokenizer, special tokens included
    sample_mb: int = 50  # train it on at most this much text, in MB of UTF-8
    options: str = ""  # SentencePiece's own: "--character_coverage=0.9995 --split_digits=true"
    path: str = ""  # use this one instead: a folder, tokenizer.json, .model, hf:NAME, gpt2, cl100k


@dataclass(frozen=True)
class FeaturesConfig:
    """How token ids become blocks."""

    held_out: float = 0.05  # the share of documents kept for evaluation, chosen by --seed
    # concat: documents end to end. packed: the same blocks, but attention and positions stay inside
    # each document. document: each document in blocks of its own, padded.
    packing: Literal["concat", "packed", "document"] = "concat"
    stride: int = 0  # document: tokens from one block's start to the next; 0: sequence_length
    min_length: int = 1  # document: blocks with fewer tokens are dropped, and counted


@dataclass(frozen=True)
class ModelConfig:
    """The switches of the Decoder. A zero means: derived, as the comment says."""

    vocab_size: int = 0  # 0: the tokenizer's
    output_size: int = 0  # what the head tells apart, where that is not the vocabulary; 0: it is
    context_length: int = 0  # the most tokens the model can see; 0: sequence_length
    num_layers: int = 4
    num_heads: int = 4  # query heads
    num_kv_heads: int = 0  # key and value heads (grouped-query attention); 0: num_heads
    embed_dim: int = 128  # the width of the residual stream
    head_dim: int = 0  # the width of one head; 0: embed_dim / num_heads
    mlp_dim: int = 0  # the MLP's width; 0: 4 embed_dim, for swiglu 8/3 embed_dim in steps of 32
    positions: Literal["learned", "sinusoidal", "rope"] = "rope"
    rope_theta: float = 10_000.0  # the base of rope's wavelengths
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_place: Literal["pre", "post"] = "pre"  # before each sublayer, or after its residual sum
    norm_epsilon: float = 1e-5
    final_norm: bool = True  # a norm before the head
    qk_norm: bool = False  # RMS norm of each head's queries and keys
    activation: Literal["relu", "gelu", "gelu-tanh", "swiglu"] = "swiglu"
    attention_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied_head: bool = True  # the head is the embedding table, transposed
    scale_tied_head: bool = False  # divide a tied head's logits by sqrt(embed_dim)
    logit_cap: float = 0.0  # c: the logits become c tanh(logits / c); 0: they stay as they are
    dropout: float = 0.0
    # gpt2: normal(0.02), less for what writes to the residual stream. lecun: 1/fan-in. xavier:
    # Glorot's uniform. lm1b: the same, with token embeddings normal(1).
    init: Literal["gpt2", "lecun", "xavier", "lm1b"] = "gpt2"  # the parameters' first values
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32

    @property
    def outputs(self) -> int:
        """How many logits there are."""
        return self.output_size or self.vocab_size


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    # muon is for the matrices of the blocks, with adamw for all else
    optimizer: Literal["adamw", "muon", "lion", "adafactor"] = "adamw"  # what moves the parameters
    # half a cosine; the peak for ever; 1/sqrt(step); or the peak and, at the end, a line downwards
    schedule: Literal["cosine", "constant", "rsqrt", "wsd"] = "cosine"  # what follows the warmup
    warmup_steps: int = 100  # linear from 0; at most a tenth of the steps is used
    decay_share: float = 0.2  # wsd: the share of the steps, the last ones, in which the rate falls
    final_ratio: float = 0.1  # cosine, wsd: the last learning rate over the peak
    b1: float = 0.9  # of the momentum; adafactor has none
    b2: float = 0.95  # adamw, muon: of the squares; lion: of the momentum that is kept
    epsilon: float = 1e-8  # adamw: beside the root of the squares
    weight_decay: float = 0.1  # of matrices only: not of biases, norms or position tables
    decay_all: bool = False  # weight decay of biases, norms and position tables too; not by muon
    clip_norm: float = 1.0  # the global norm of the gradient is clipped to this; 0: never
    label_smoothing: float = 0.0  # the share of each target that all tokens have alike
    z_loss: float = 0.0  # the weight of log(Z)^2, which keeps the softmax's sum Z near 1


@dataclass(frozen=True)
class MeshConfig:
    """How many devices share each axis; their product is the number of devices."""

    data: int = 0  # copies of the model, each with its part of the batch; 0: what is left over
    fsdp: int = 1  # the batch split, and the parameters too
    tensor: int = 1  # heads, MLP and vocabulary split


@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed: its speed and memory. Its result changes by rounding at most."""

    accumulate: int = 1  # a batch goes through in so many parts, one after the other
    # none: all that the backward pass needs is kept. dots: only what matrices gave. full: only each
    # layer's input.
    remat: Literal["none", "dots", "full"] = "none"  # what is recomputed instead of kept
    scan_layers: bool = False  # compile one layer and loop over it: for deep models
    # the fastest that the device has; plain XLA, in blocks; NVIDIA's cuDNN; or TPUs' splash kernel
    attention: Literal["auto", "blocked", "cudnn", "splash"] = "auto"  # how attention is computed
    # 0: what the device is fast with, 1024, and 16 on a CPU, whose caches hold that
    logits_mb: int = 0  # a device holds at most so many MB of logits at once


@dataclass(frozen=True)
class SampleConfig:
    """The text written while training."""

    prompt: str = ""  # empty: the beginning of a text
    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 40


@dataclass(frozen=True)
class Config:
    """One run."""

    preset: str = "llama"
    size: str = "tiny"  # tiny, small or base; empty for a preset that has one shape
    seed: int = 0
    steps: int = 1000
    batch_size: int = 16  # sequences a step, over all devices
    sequence_length: int = 256  # tokens a sequence
    learning_rate: float = 2e-3  # the schedule's peak
    eval_every: int = 100  # steps between held-out losses
    eval_blocks: int = 160  # held-out sequences looked at while training; all of them at the end
    save_every: int = 100  # steps between checkpoints
    keep_checkpoints: int = 3  # the newest so many are kept
    sample_every: int = 500  # steps between samples; 0: none
    log_every: int = 10  # steps between lines of metrics.jsonl
    steps_per_call: int = 10  # steps scanned in one call of the device, where the cadences allow
    watchdog_seconds: int = 900  # a call that takes longer ends the run; 0: wait for ever
    # metrics.jsonl and TensorBoard are always written; wandb: at Weights & Biases as well
    track: Literal["files", "wandb"] = "files"  # where the run's numbers and samples go
    init_from: str = ""  # begin with the parameters and the tokenizer of this run
    text: TextConfig = field(default_factory=TextConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        _check(self)

    def resolved_model(self, vocab_size: int) -> ModelConfig:
        """The ModelConfig with every zero replaced by what it stands for."""
        m = self.model
        if 0 < m.vocab_size < vocab_size:
            raise UserError(
                f"model.vocab_size {m.vocab_size} is less than the tokenizer's {vocab_size}"
            )
        wide = 4 * m.embed_dim if m.activation != "swiglu" else -(-8 * m.embed_dim // 96) * 32
        return dataclasses.replace(
            m,
            vocab_size=m.vocab_size or vocab_size,
            context_length=m.context_length or self.sequence_length,
            num_kv_heads=m.num_kv_heads or m.num_heads,
            head_dim=m.head_dim or m.embed_dim // m.num_heads,
            mlp_dim=m.mlp_dim or wide,
        )


# Below: a Config as flat {"model.num_layers": 4} pairs, for flags, files and comparisons.


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"steps": 1000, ..., "model.num_layers": 4, ...}"""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def replace(config: Config, changes: dict[str, Any]) -> Config:
    """The Config with the flat `changes` made; text is read as the field's type.

    Raises:
      UserError: an unknown key, with the nearest known one; a value of another type.
    """
    groups: dict[str, dict[str, Any]] = {}
    known = flatten(config)
    for key, value in changes.items():
        if key not in known:
            raise UserError(f"unknown config key '{key}'{suggestion(key, known)}")
        group, _, name = key.rpartition(".")
        owner = getattr(config, group) if group else config
        groups.setdefault(group, {})[name] = _read(key, value, get_type_hints(type(owner))[name])
    top = groups.pop("", {})
    for group, fields in groups.items():
        top[group] = dataclasses.replace(getattr(config, group), **fields)
    return dataclasses.replace(config, **top)


def from_json(path: Path) -> dict[str, Any]:
    """A config file as flat changes: {"model.num_layers": 6} or {"model": {"num_layers": 6}}."""
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise UserError(f"{path}: a config file holds one JSON object")
    flat: dict[str, Any] = {}
    for key, value in stored.items():
        nested = value if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): v for name, v in nested.items()}
    return flat


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """{"model.num_layers": (4, 6)} for every field in which the two differ."""
    after = flatten(new)
    return {key: (a, after[key]) for key, a in flatten(old).items() if a != after[key]}


def suggestion(word: str, known: Any) -> str:
    """ "; did you mean 'x'?", or nothing where no known word is near."""
    same = [
        k for k in known if k.replace("_", "-").endswith(f".{word.lstrip('-').replace('_', '-')}")
    ]
    near = same or difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def check_packing(features: FeaturesConfig, sequence_length: int) -> None:
    """What the numbers of a packing must be.

    Raises:
      UserError: they contradict each other.
    """
    stride, min_length = features.stride, features.min_length
    if features.packing != "document" and (stride or min_length > 1):
        raise UserError("features.stride and features.min_length belong to packing document only")
    if not 0 <= stride <= sequence_length:
        raise UserError(
            f"features.stride {stride} must be from 0 to sequence_length {sequence_length}; "
            "a larger one would lose the tokens between two blocks"
        )
    if not 1 <= min_length <= sequence_length + 1:
        raise UserError(
            f"features.min_length {min_length} must be from 1 to {sequence_length + 1}, "
            "the tokens of a block"
        )


def _read(key: str, value: Any, kind: Any) -> Any:
    choices = get_args(kind)
    if choices and value not in choices:
        raise UserError(f"{key} is {value!r}; it must be one of {', '.join(map(str, choices))}")
    try:
        if value is None or isinstance(value, list | dict):
            raise TypeError
        if isinstance(value, bool) and kind is not bool:  # to Python, true is the number 1
            raise TypeError
        if choices or kind is str:
            return str(value)
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        return kind(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise UserError(f"{key} is {value!r}; it must be {wanted[kind]}") from None


def _check(c: Config) -> None:
    """What can be known to be wrong before JAX starts.

    Raises:
      UserError: the first thing found, with the field's name and what would do.
    """
    m, flat = c.model, flatten(c)

    def must(condition: bool, key: str, wanted: str) -> None:
        if not condition:
            raise UserError(f"{key} is {flat[key]}; it must be {wanted}")

    for key in ("steps", "batch_size", "sequence_length", "eval_every", "eval_blocks"):
        must(flat[key] >= 1, key, "at least 1")
    for key in ("save_every", "keep_checkpoints", "log_every", "steps_per_call"):
        must(flat[key] >= 1, key, "at least 1")
    must(0 <= c.seed < 2**31, "seed", "from 0 to 2147483647")
    must(c.sample_every >= 0, "sample_every", "0 (never) or more")
    must(0 < c.learning_rate < math.inf, "learning_rate", "a positive finite number")
    must(0 < c.features.held_out <= 0.5, "features.held_out", "a share above 0, at most 0.5")
    check_packing(c.features, c.sequence_length)
    must(c.text.min_characters >= 0, "text.min_characters", "0 (none is dropped) or more")
    must(0 <= c.text.min_language_share <= 1, "text.min_language_share", "from 0 to 1")
    must(c.tokenizer.sample_mb >= 1, "tokenizer.sample_mb", "at least 1")
    for key in ("model.num_layers", "model.num_heads", "model.embed_dim"):
        must(flat[key] >= 1, key, "at least 1")
    for key in (
        "vocab_size",
        "output_size",
        "context_length",
        "num_kv_heads",
        "head_dim",
        "mlp_dim",
    ):
        must(flat[f"model.{key}"] >= 0, f"model.{key}", "0 (derived) or more")
    if not m.head_dim and m.embed_dim % m.num_heads:
        raise UserError(
            f"model.embed_dim {m.embed_dim} is not divisible by model.num_heads {m.num_heads}; "
            "choose heads that divide it, or give model.head_dim"
        )
    if m.num_kv_heads and m.num_heads % m.num_kv_heads:
        raise UserError(
            f"model.num_heads {m.num_heads} is not divisible by model.num_kv_heads {m.num_kv_heads}"
        )
    if m.positions == "rope" and (m.head_dim or m.embed_dim // m.num_heads) % 2:
        raise UserError("rope needs an even model.head_dim; change the width or the heads")
    if 0 < m.context_length < c.sequence_length:
        raise UserError(
            f"model.context_length {m.context_length} is less than sequence_length "
            f"{c.sequence_length}; the model could not see a whole training sequence"
        )
    if m.tied_head and m.head_bias:
        raise UserError("model.head_bias needs model.tied_head false")
    if m.output_size and m.tied_head:
        raise UserError("model.output_size needs model.tied_head false")
    if m.output_size and c.sample_every:
        raise UserError(
            "model.output_size needs sample_every 0: what the model gives is not what it reads"
        )
    if m.scale_tied_head and not m.tied_head:
        raise UserError("model.scale_tied_head needs model.tied_head true")
    must(0 <= m.dropout < 1, "model.dropout", "at least 0 and less than 1")
    must(0 < m.norm_epsilon < 1, "model.norm_epsilon", "between 0 and 1")
    must(0 <= m.logit_cap < math.inf, "model.logit_cap", "0 (none) or a positive number")
    must(m.rope_theta > 1, "model.rope_theta", "more than 1")
    must(c.optim.warmup_steps >= 0, "optim.warmup_steps", "0 or more")
    must(0 < c.optim.decay_share <= 1, "optim.decay_share", "more than 0 and at most 1")
    must(0 <= c.optim.final_ratio <= 1, "optim.final_ratio", "between 0 and 1")
    for key in ("optim.b1", "optim.b2"):
        must(0 <= flat[key] < 1, key, "at least 0 and less than 1")
    must(0 < c.optim.epsilon < 1, "optim.epsilon", "between 0 and 1")
    must(0 <= c.optim.weight_decay < math.inf, "optim.weight_decay", "0 or more")
    must(0 <= c.optim.clip_norm < math.inf, "optim.clip_norm", "0 (never) or more")
    must(0 <= c.optim.label_smoothing < 1, "optim.label_smoothing", "at least 0 and less than 1")
    must(0 <= c.optim.z_loss < math.inf, "optim.z_loss", "0 (none) or more")
    must(c.watchdog_seconds >= 0, "watchdog_seconds", "0 (never) or more")
    must(c.compute.accumulate >= 1, "compute.accumulate", "at least 1")
    must(c.compute.logits_mb >= 0, "compute.logits_mb", "0 (what suits the device) or more")
    if c.batch_size % c.compute.accumulate:
        raise UserError(
            f"batch_size {c.batch_size} is not divisible by compute.accumulate "
            f"{c.compute.accumulate}"
        )
    must(c.mesh.data >= 0, "mesh.data", "0 (what is left over) or more")
    for key in ("mesh.fsdp", "mesh.tensor", "sample.max_new_tokens"):
        must(flat[key] >= 1, key, "at least 1")
    must(0 <= c.sample.temperature < math.inf, "sample.temperature", "0 (greedy) or more")
    must(c.sample.top_k >= 0, "sample.top_k", "0 (all) or more")
