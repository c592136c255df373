import io
import math
import re
import subprocess
import sys
from itertools import islice, pairwise

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri import tokenizer
from tsuzuri.config import TokenizerConfig
from tsuzuri.corpus.tales import documents
from tsuzuri.errors import UserError
from tsuzuri.tokenizer.sentencepiece import read_model

TEXT = (
    "".join(document.text for document in islice(documents(), 150))
    + "　「値段は百二十円。」\r\nNo. 120, it's  cheap!\n\n"
    + "\tdef tea(cups):\n    return  cups * 120\n"
)
KINDS = ["unigram", "sentencepiece-bpe"]
quiet = {"say": print, "progress": False}
# Pieces of text that some SentencePiece somewhere has changed, dropped or taken for its own.
texts = st.text(max_size=60) | st.lists(
    st.sampled_from(
        [
            *"山茶の　①ｶﾞ😀▁▅\n\r\t\0 0aé\ufeff\ufffe\u3099",
            *(
                "  ",
                "お茶",
                "\r\n",
                "120",
                "<unk>",
                "<0x41>",
                "<|endoftext|>",
                "<|padding|>",
                "</s>",
            ),
        ]
    ),
    max_size=40,
).map("".join)


def train(text=TEXT, kind="unigram", vocab_size=1600, options="", say=print, **more):
    cfg = TokenizerConfig(kind=kind, vocab_size=vocab_size, options=options, **more)
    return tokenizer.train(iter([text]), cfg, say, False)


def foreign(path, text=TEXT, **arguments):
    """A model as another program trains it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(text.splitlines()), model_writer=model, minloglevel=2, **arguments
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def trained():
    return {kind: train(kind=kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tok(request, trained):
    return trained[request.param]


@settings(deadline=None)
@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_every_text_comes_back(trained, kind, text):
    tok = trained[kind]
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert b"".join(tok.decode_bytes([i]) for i in ids) == text.encode()
    assert not {tok.end_of_text, tok.padding, tok.unknown} & set(ids)
    batch = tok.encode_batch([text, "", text])
    assert [ids, [], ids] == [of_text.tolist() for of_text in batch]
    assert {of_text.dtype for of_text in batch} == {np.dtype(np.uint32)}


def test_its_properties(tok):
    assert (tok.end_of_text, tok.padding, tok.unknown, tok.begin_of_text) == (0, 1, 2, 0)
    assert tok.kind in KINDS
    assert tok.vocab_size == len(tok.tokens) == 1600
    assert tok.lossless
    assert tok.decode([0, *tok.encode("山"), 1]) == "山"
    assert tok.encode("") == [] and tok.decode([]) == "" and tok.encode_batch([]) == []
    assert len(tok.encode(TEXT)) < len(TEXT)


def test_a_line_has_the_same_ids_wherever_it_stands(tok):
    """And they are what the library gives for it."""
    lines = re.findall(r"[\r\n]*[^\r\n]+", TEXT)
    assert b"\n" in b"".join(tok.tokens[259:])  # newlines are learned, not only bytes
    alone = [tok.encode(line) for line in lines]
    assert tok.encode("".join(lines)) == [i for ids in alone for i in ids]
    assert alone == [tok._engine.encode(line) for line in lines]


def test_unigram_is_the_best_segmentation(trained):
    """Against Viterbi's algorithm over the model's own scores."""
    tok = trained["unigram"]
    score = {token: tok._engine.get_score(i) for i, token in enumerate(tok.tokens) if i > 258}
    for line in re.findall(r"[\r\n]*[^\r\n▁]+", TEXT)[:100]:
        best = [0.0] + [-math.inf] * len(line)
        for end in range(1, len(line) + 1):
            for start in range(max(0, end - 16), end):
                piece = line[start:end].encode()
                best[end] = max(best[end], best[start] + score.get(piece, -math.inf))
        if best[-1] > -math.inf:  # every character is in the vocabulary
            ours = sum(score[tok.tokens[i]] for i in tok.encode(line))
            assert ours == pytest.approx(best[-1], rel=1e-5)


def test_bpe_merges_by_rank(trained):
    """Against the definition: merge the pair of the best token, the leftmost first."""
    tok = trained["sentencepiece-bpe"]
    rank = {token: i for i, token in enumerate(tok.tokens) if i > 258}
    for line in re.findall(r"[\r\n]*[^\r\n▁]+", TEXT)[:100]:
        parts = [character.encode() for character in line]
        while True:
            ranks = [rank.get(a + b, math.inf) for a, b in pairwise(parts)]
            if not ranks or min(ranks) == math.inf:
                break
            at = ranks.index(min(ranks))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if all(part in rank for part in parts):
            assert [tok.tokens[i] for i in tok.encode(line)] == parts


def test_training_is_the_same_in_another_process(tok):
    program = (
        "import sys; from tsuzuri import tokenizer; from tsuzuri.config import TokenizerConfig\n"
        "cfg = TokenizerConfig(kind=sys.argv[1], vocab_size=1600)\n"
        "text = open(0, newline='').read()\n"
        "print(tokenizer.train(iter([text]), cfg, print, False).fingerprint)"
    )
    command = [sys.executable, "-c", program, tok.kind]
    run = subprocess.run(command, check=True, capture_output=True, text=True, input=TEXT)
    assert run.stdout.strip() == tok.fingerprint
    assert run.stderr == ""  # the library's log is silent


@pytest.mark.parametrize("kind", KINDS)
def test_reserved_characters_spoil_no_training(kind):
    """The trainer skips a line with U+2585, and one that is long; ours are cut."""
    line = "山の上に小さな茶屋があった。" * 200
    text = f"{line}▅{line}▁{line}<|endoftext|><0x41>\n" * 3
    tok = train(text, kind, vocab_size=300, options="--hard_vocab_limit=false")
    assert tok.decode(tok.encode(text)) == text
    assert len(tok.encode("山の上に小さな茶屋があった。")) < 10
    assert tok.encode("▁") == [3 + byte for byte in "▁".encode()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", ["", " --required_chars=ab"])
def test_a_text_without_spaces(kind, options):
    """The library would write a space it never saw as the bytes of its own sign for it."""
    text = TEXT.replace(" ", "")
    tok = train(text, kind, vocab_size=1400, options="--hard_vocab_limit=false" + options)
    assert tok.lossless
    assert len(tok.encode(" ")) == 1
    assert tok.decode(tok.encode(" a ▁  茶 ")) == " a ▁  茶 "
    assert (len(tok.encode("b")) == 1) and (b"b" in tok.tokens[259:]) == bool(options)


def test_options_go_before_the_defaults():
    digits = train(TEXT + "120 120 120 120\n" * 50, options="--split_digits=true")
    assert not [token for token in digits.tokens if re.search(rb"\d\d", token)]
    short = train(options="--max_sentence_length=40 --max_sentencepiece_length=2")
    assert max(len(token.decode()) for token in short.tokens[259:]) == 2


@pytest.mark.parametrize(
    ("options", "text", "back"),
    [
        ("--byte_fallback=false", "茶😀", "茶 ⁇ "),
        ("--normalization_rule_name=nfkc", "①　茶", "1 茶"),
        ("--remove_extra_whitespaces=true", "a  a ", "a a"),
        ("--add_dummy_prefix=true", " a  a ", " a  a "),
    ],
)
def test_options_that_make_it_lossy_are_said(options, text, back):
    said = []
    tok = train(options=options, say=said.append)
    assert said == [f"with {options} the tokenizer is lossy: text may come back changed"]
    assert tok.decode(tok.encode(text)) == back
    assert tok.encode_batch([text])[0].tolist() == tok.encode(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--charcter_coverage=1",
            "no option --charcter_coverage; did you mean 'character_coverage'",
        ),
        ("--model_writer=x", "no option --model_writer"),
        ("character_coverage=1", "'character_coverage=1' is not of the form --NAME=VALUE"),
        ("--vocab_size=9", "--vocab_size cannot be given; give --tokenizer.vocab-size"),
        ("--model_type=char", "--model_type cannot be given; give --tokenizer.kind"),
        ("--input=a.txt", "--input cannot be given"),
        ("--pad_id=5", "--pad_id cannot be given"),
        ("--split_digits=true --split_digits=false", "is given as 'true' and as 'false'"),
        ("--unk_surface='", "no closing quotation"),
        ("--byte_fallback=maybe", 'refuses; cannot parse "maybe" as bool'),
        ("--max_sentence_length=long", "refuses; cannot parse"),
        ("--character_coverage=3", r"refuses; .*character_coverage\(\) <= 1.0"),
        ("--escape_whitespaces=false", "refuses"),
        ("--normalization_rule_name=nfz", "refuses; .*nfz"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        train(options=options)
    assert "\n" not in str(caught.value) and "--tokenizer.options" in str(caught.value)


def test_every_known_option_is_the_librarys():
    """Each name that is suggested is one that the trainer knows."""
    from tsuzuri.tokenizer.sentencepiece import _OPTIONS, _OURS

    for name in [*_OPTIONS.split(), *_OURS]:
        with pytest.raises((RuntimeError, ValueError)) as caught:  # there is no text
            sentencepiece.SentencePieceTrainer.Train(
                **{"sentence_iterator": iter([]), "model_writer": io.BytesIO(), name: "x"}
            )
        assert "unknown field" not in str(caught.value), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_that_the_text_cannot_fill(kind):
    with pytest.raises(UserError, match=r"vocab-size 50000 is more than .*: at most \d+") as caught:
        train(kind=kind, vocab_size=50000)
    most = int(re.findall(r"at most (\d+)", str(caught.value))[0])
    assert train(kind=kind, vocab_size=most).vocab_size == most
    said = []
    tok = train(kind=kind, vocab_size=50000, options="--hard_vocab_limit=false", say=said.append)
    assert said == [
        f"the text gives a vocabulary of {tok.vocab_size} tokens, not the 50000 asked for"
    ]


def test_a_vocabulary_too_small():
    with pytest.raises(UserError, match=r"vocab-size 260 is too small: .* alone are (\d+)"):
        train(vocab_size=260)


def test_no_text():
    for given_texts in ([], [""]):
        with pytest.raises(UserError, match="no text"):
            tokenizer.train(iter(given_texts), TokenizerConfig(kind="unigram"), **quiet)
    with pytest.raises(UserError, match="nothing but newlines"):
        train("\n\n\r\n")
    for text in ("\0", "<unk>"):
        with pytest.raises(UserError, match=r"^there is too little text"):
            train(text, options="--hard_vocab_limit=false")


def test_errors_of_the_texts_come_through():
    def texts():
        yield TEXT
        raise UserError("book.txt: damaged")

    with pytest.raises(UserError, match=r"^book.txt: damaged$"):
        tokenizer.train(texts(), TokenizerConfig(kind="unigram", vocab_size=1600), **quiet)


def test_the_sample_is_bounded():
    said = []

    def endless():
        while True:
            yield TEXT

    cfg = TokenizerConfig(kind="sentencepiece-bpe", vocab_size=1600, sample_mb=1)
    tokenizer.train(endless(), cfg, said.append, False)
    assert said == ["the tokenizer learns from the first 1 MB of the text"]


def test_lone_surrogates(tok):
    for encode in (tok.encode, lambda text: tok.encode_batch(["a", text])):
        with pytest.raises(UserError, match=r"character 2 of the text is '\\ud83d'"):
            encode("山a\ud83d")
    with pytest.raises(UserError, match="surrogate"):
        train("\ude00")


def test_ids_outside_the_vocabulary(tok):
    for wrong in (-1, tok.vocab_size):
        with pytest.raises(UserError, match=f"id {wrong} is outside the vocabulary"):
            tok.decode([5, wrong])


def test_save_and_load(tok, tmp_path):
    tok.save(tmp_path / "t")
    tok.save(tmp_path / "t")  # the same again is nothing new
    loaded = tokenizer.load(tmp_path / "t")
    assert (loaded.fingerprint, loaded.kind) == (tok.fingerprint, tok.kind)
    assert loaded.encode(TEXT) == tok.encode(TEXT)
    path = tmp_path / "t" / "sentencepiece.model"
    engine = sentencepiece.SentencePieceProcessor(model_file=str(path))  # others read it too
    assert engine.decode(tok.encode("山の茶屋\n")) == "山の茶屋\n"
    sound = path.read_bytes()
    for damaged in (sound[:-9], sound[:5000] + bytes([sound[5000] ^ 1]) + sound[5001:], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"sentencepiece\.model"):
            tokenizer.load(tmp_path / "t")


def test_transformer_lm_japaneses_model(tmp_path):
    """Trained as its tokenizer.py does: the library's defaults, with its options in one string."""
    path = tmp_path / "sentencepiece_model"
    arguments = {"vocab_size": 1600, "character_coverage": 0.9995, "byte_fallback": True}
    engine = foreign(path, model_type="unigram", **arguments)
    tok = read_model(path)
    assert (tok.kind, tok.lossless) == ("unigram", False)
    assert (tok.unknown, tok.begin_of_text, tok.end_of_text) == (0, 1, 2)
    assert (tok.padding, tok.vocab_size) == (1600, 1601)
    for text in ("　山の上に　①番目の茶屋。\n\n「お茶」", " a  b ", "", "😀"):
        ids = tok.encode(text)
        assert ids == engine.encode(text) == tok.encode_batch([text])[0].tolist()
        assert tok.decode([1, *ids, 2, tok.padding]) == engine.decode(ids)
    tok.save(tmp_path / "t")
    loaded = tokenizer.load(tmp_path / "t")
    assert (loaded.fingerprint, loaded.padding) == (tok.fingerprint, 1600)


def test_a_foreign_model_whose_tokens_cross_lines(tmp_path):
    path = tmp_path / "m.model"
    engine = foreign(
        path,
        model_type="bpe",
        vocab_size=1600,
        pad_id=3,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        user_defined_symbols="茶\n屋",
    )
    tok = read_model(path)
    assert (tok.kind, tok.padding, tok.vocab_size) == ("sentencepiece-bpe", 3, 1600)
    assert tok.encode("山の茶\n屋") == engine.encode("山の茶\n屋")


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(UserError, match=r"none\.model: cannot be read"):
        read_model(tmp_path / "none.model")
    for content in (b"", b"no model", b'{"model": {}}'):
        (tmp_path / "x.model").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.model: no SentencePiece model"):
            read_model(tmp_path / "x.model")
    foreign(tmp_path / "x.model", vocab_size=1600, eos_id=-1, model_type="bpe")
    with pytest.raises(UserError, match="no end-of-text symbol"):
        read_model(tmp_path / "x.model")
