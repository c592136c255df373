import json
import subprocess
import sys
from collections import Counter

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri import tokenizer
from tsuzuri.config import TokenizerConfig
from tsuzuri.errors import RunError, UserError
from tsuzuri.tokenizer import _FILE_OF, ByteTokenizer
from tsuzuri.tokenizer.protocol import slices

TEXT = (
    "　山の上に小さな茶屋があった。「お茶を一杯ください」と旅の人が言った。\n"
    "　茶屋のおばあさんは笑って、熱いお茶を出した。値段は百二十円。No. 120, it's cheap!\n"
    "　旅の人はお茶を飲んで、山を下りていった。①番目の話はこれでおしまい😀。\n\n"
    "def tea(cups):\n    return  cups * 120\n"
)
# A run longer than a slice; and one at which the regex engine gives up on spaces.
RUN = {False: 300_000, True: 1_100_000}
quiet = {"say": print, "progress": False}
texts = st.text(max_size=60) | st.lists(
    st.sampled_from(
        [
            *"山茶の　①😀\n\r\t 0aé",
            "  ",
            "お茶",
            "\r\n",
            "<|endoftext|>",
            "<|padding|>",
            "it's",
            "120",
        ]
    ),
    max_size=40,
).map("".join)


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.train(iter([TEXT] * 3), TokenizerConfig(vocab_size=400), **quiet)


@pytest.fixture(scope="module", params=["bpe", "bytes"])
def tok(request, bpe):
    return bpe if request.param == "bpe" else ByteTokenizer()


@pytest.fixture(scope="module")
def hugging_face(bpe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "tokenizer"
    bpe.save(folder)
    model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model.encode_special_tokens = True
    return model


@settings(deadline=None)
@given(text=texts)
def test_round_trip(tok, text):
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.decode_bytes(ids) == text.encode()
    assert not {tok.end_of_text, tok.padding} & set(ids)
    assert max(ids, default=0) < tok.vocab_size
    assert tok.encode_batch([text, "", text])[2].tolist() == ids


@settings(deadline=None, max_examples=300)
@given(text=texts)
def test_the_ids_are_those_of_hugging_face(bpe, hugging_face, text):
    assert bpe.encode(text) == hugging_face.encode(text).ids
    assert hugging_face.decode(bpe.encode(text), skip_special_tokens=False) == text


def test_hugging_face_knows_the_special_tokens(bpe, hugging_face):
    assert hugging_face.get_vocab_size() == bpe.vocab_size == 400
    assert hugging_face.token_to_id("<|endoftext|>") == bpe.end_of_text
    assert hugging_face.token_to_id("<|padding|>") == bpe.padding


def test_special_tokens_are_no_text(tok):
    assert tok.decode([tok.end_of_text, *tok.encode("山"), tok.padding]) == "山"


def test_training_is_bpe():
    """Against the definition: merge the most frequent pair, of equals the one of lowest ids."""
    words = Counter(["ab", "abab", "cab", "cabs", "abc", "山山", "山山山"])
    tokens = [b""] * 2 + [bytes([i]) for i in range(256)]
    split = {word: [byte + 2 for byte in word.encode()] for word in words}
    while len(tokens) < 270:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(split[word], split[word][1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], -pair[0], -pair[1]))
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for ids in split.values():
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == best:
                    ids[i : i + 2] = [len(tokens) - 1]
                i += 1
    corpus = "\n".join(words.elements())  # the newline is a piece of its own
    trained = tokenizer.train(iter([corpus]), TokenizerConfig(vocab_size=270), **quiet)
    assert trained.tokens == tokens


def test_training_is_the_same_in_another_process(bpe):
    program = (
        "import sys; from tsuzuri import tokenizer; from tsuzuri.config import TokenizerConfig\n"
        "cfg = TokenizerConfig(vocab_size=400)\n"
        "tok = tokenizer.train(iter([sys.argv[1]] * 3), cfg, print, False)\n"
        "print(tok.fingerprint)"
    )
    command = [sys.executable, "-c", program, TEXT]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert out.strip() == bpe.fingerprint


def test_a_vocabulary_that_the_text_cannot_fill():
    said = []
    cfg = TokenizerConfig(vocab_size=5000)
    tok = tokenizer.train(iter(["あいうあいう"]), cfg, said.append, False)
    assert tok.vocab_size < 300
    assert said == [
        f"the text gives a vocabulary of {tok.vocab_size} tokens, not the 5000 asked for: "
        "there are no more pairs to merge"
    ]


def test_the_sample_is_bounded():
    said = []

    def endless():
        while True:
            yield "山の上に小さな茶屋があった。\n" * 1000

    tok = tokenizer.train(
        endless(), TokenizerConfig(sample_mb=1, vocab_size=260), said.append, False
    )
    assert tok.vocab_size == 260
    assert said == ["the tokenizer learns from the first 1 MB of the text"]


@pytest.mark.parametrize("given", [[], ["", ""]])
def test_no_text_to_train_on(given):
    with pytest.raises(UserError, match="no text to train"):
        tokenizer.train(iter(given), TokenizerConfig(), **quiet)


def test_a_vocabulary_smaller_than_the_bytes():
    with pytest.raises(UserError, match=r"257 is too small.*are 258"):
        tokenizer.train(iter([TEXT]), TokenizerConfig(vocab_size=257), **quiet)
    assert tokenizer.train(iter([TEXT]), TokenizerConfig(vocab_size=258), **quiet).vocab_size == 258


@pytest.mark.parametrize("kind", ["bpe", "whitespace", "unigram"])
@pytest.mark.parametrize("size", [-5, 0, 10**10])
def test_no_size_of_a_vocabulary(kind, size):
    with pytest.raises(UserError, match=f"vocab-size {size} is no vocabulary's"):
        tokenizer.train(iter([TEXT]), TokenizerConfig(kind=kind, vocab_size=size), **quiet)


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_options_of_another_kind(kind):
    with pytest.raises(UserError, match=f"options are SentencePiece's; .* {kind} has none"):
        tokenizer.train(
            iter([TEXT]), TokenizerConfig(kind=kind, options="--byte_fallback=true"), **quiet
        )


def test_bytes_need_no_training():
    tok = tokenizer.train(iter([]), TokenizerConfig(kind="bytes"), **quiet)
    assert tok.encode("あ") == [0xE3 + 2, 0x81 + 2, 0x82 + 2]


def test_lone_surrogates(tok):
    for encode in (tok.encode, lambda text: tok.encode_batch(["a", text])):
        with pytest.raises(UserError, match=r"character 2 of the text is '\\ud83d'"):
            encode("山a\ud83d")
    with pytest.raises(UserError, match="surrogate"):
        tokenizer.train(iter(["\ude00"]), TokenizerConfig(), **quiet)


def test_ids_outside_the_vocabulary(tok):
    for wrong in (-1, tok.vocab_size):
        with pytest.raises(UserError, match=f"id {wrong} is outside the vocabulary"):
            tok.decode([5, wrong])


def test_half_a_character_shows_as_replacement(tok):
    ids = ByteTokenizer().encode("山川")[:4]  # in both tokenizers the bytes have these ids
    assert tok.decode(ids) == "山\ufffd"
    assert tok.decode_bytes(ids) == "山川".encode()[:4]


def test_fingerprints_stay_what_they_were(bpe, tmp_path):
    """Features made by an earlier version name the fingerprints that it computed."""
    assert bpe.fingerprint == "f2735484d234d9ff9e7363d9aecfb12161057c8d620460d0030dd31744ff46e9"
    of_bytes = "ab848d2f4b9c33fe50c2d743bfe5a8d94e561ed90a68240dc1cf9d2bfbcf2d5f"
    assert ByteTokenizer().fingerprint == of_bytes
    bpe.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for new in ("begin_of_text", "unknown"):  # what its folders did not say
        del config[new]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert tokenizer.load(tmp_path).fingerprint == bpe.fingerprint


def test_special_ids(tok):
    assert (tok.begin_of_text, tok.end_of_text, tok.padding, tok.unknown) == (0, 0, 1, None)


def test_save_and_load(tok, tmp_path):
    folder = tmp_path / "run" / "tokenizer"
    tok.save(folder)
    tok.save(folder)  # the same again is nothing new
    loaded = tokenizer.load(folder)
    assert loaded.fingerprint == tok.fingerprint
    assert loaded.encode(TEXT) == tok.encode(TEXT)
    assert (loaded.kind, loaded.vocab_size) == (tok.kind, tok.vocab_size)


def test_another_tokenizer_is_not_overwritten(bpe, tmp_path):
    bpe.save(tmp_path / "t")
    with pytest.raises(RunError, match="cannot write"):
        ByteTokenizer().save(tmp_path / "t")
    assert tokenizer.load(tmp_path / "t").fingerprint == bpe.fingerprint
    (tmp_path / "t" / "tokenizer.json").write_text("{}")  # the same one, but damaged
    with pytest.raises(UserError, match="changed or damaged"):
        bpe.save(tmp_path / "t")


def test_every_damage_is_seen(bpe, tmp_path):
    bpe.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    sound = path.read_text()

    def damage(change):
        model = json.loads(sound)
        change(model["model"]["vocab"])
        path.write_text(json.dumps(model))

    def swap(vocab):
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    for change in (swap, lambda vocab: vocab.pop("a"), lambda vocab: vocab.update({"あ": 400})):
        damage(change)
        with pytest.raises(UserError, match=str(tmp_path)):
            tokenizer.load(tmp_path)
    merges = json.loads(sound)
    merges["model"]["merges"][:2] = merges["model"]["merges"][1::-1]
    path.write_text(json.dumps(merges))  # these only others read
    with pytest.raises(UserError, match="changed or damaged"):
        tokenizer.load(tmp_path)
    for content in (sound[:-100], "{}", "[]", '{"model": {"vocab": null}}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            tokenizer.load(tmp_path)
    path.write_text(sound)
    assert tokenizer.load(tmp_path).fingerprint == bpe.fingerprint


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        tokenizer.load(tmp_path)
    (tmp_path / "run").mkdir()
    ByteTokenizer().save(tmp_path / "run" / "tokenizer")
    with pytest.raises(UserError, match=f"run: not a .* give {tmp_path}/run/tokenizer"):
        tokenizer.load(tmp_path / "run")
    for content in ('{"kind": "words"}', "[]", '{"kind": []}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match="kind"):
            tokenizer.load(tmp_path)


@pytest.mark.parametrize("kind", _FILE_OF)
def test_a_config_that_was_emptied_by_hand(tmp_path, kind):
    for fields in ({}, {"files": None}, {"files": ["a"]}, {"files": {}}, {"files": {"a": 3}}):
        (tmp_path / "config.json").write_text(json.dumps({"kind": kind, **fields}))
        with pytest.raises(UserError, match=str(tmp_path)):
            tokenizer.load(tmp_path)


@pytest.mark.parametrize("unit", [" ", "\n", "a", "…", "茶山", " \t", "\r\n"])
def test_runs_that_regex_engines_give_up_on(tok, unit):
    text = "x" + unit * (RUN[unit.isspace()] // len(unit)) + "x"
    assert tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize("unit", [" ", "\n", "茶山"])
def test_training_on_such_runs(unit):
    text = "x" + unit * (RUN[unit.isspace()] // len(unit)) + "x"
    tok = tokenizer.train(iter([text]), TokenizerConfig(vocab_size=270), **quiet)
    assert max(map(len, tok.tokens)) <= 64
    assert tok.decode(tok.encode(text)) == text


def test_a_long_text_has_the_ids_of_the_whole(bpe, hugging_face):
    """Cutting it into slices shows nowhere, as long as a line is shorter than a slice."""
    text = (TEXT + "\n\n  \n" + TEXT + "\r\n\r\n") * 1000
    assert len(list(slices(text))) > 1
    ids = bpe.encode(text)
    assert bpe.encode_batch([text])[0].tolist() == ids
    assert ids == hugging_face.encode(text).ids
