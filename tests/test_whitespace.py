import json
import subprocess
import sys
from itertools import islice

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri import tokenizer
from tsuzuri.config import TokenizerConfig
from tsuzuri.corpus.tales import documents
from tsuzuri.errors import UserError

TEXT = (
    "".join(document.text for document in islice(documents(), 100)) + "\nit's <|endoftext|> 120\n"
)


def train(text=TEXT, vocab_size=1500, say=print, **more):
    cfg = TokenizerConfig(kind="whitespace", vocab_size=vocab_size, **more)
    return tokenizer.train(iter([text]), cfg, say, False)


@pytest.fixture(scope="module")
def tok():
    return train()


@pytest.fixture(scope="module")
def seed():
    """As jax-llm's train_tokenizer.py makes it; two special tokens fewer than ours."""
    from tokenizers import models, pre_tokenizers, trainers

    seed = tokenizers.Tokenizer(models.BPE(unk_token="<|endoftext|>"))
    seed.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=1498, special_tokens=["<|endoftext|>"], show_progress=False
    )
    seed.train_from_iterator(TEXT.splitlines(), trainer)
    return seed


def test_it_is_the_seeds(tok, seed):
    text = "山の上に　小さな茶屋があった。\n\n「お茶を  120」 it's"
    ids = tok.encode(text)
    assert ids == [i + 2 for i in seed.encode(text).ids]
    assert tok.decode(ids) == seed.decode(seed.encode(text).ids)
    assert tok.vocab_size == seed.get_vocab_size() + 2 == 1500


def test_a_space_between_tokens_and_nothing_else(tok):
    assert tok.decode(tok.encode("it\n\n120")).split() == tok.decode(tok.encode("it 120")).split()
    ids = tok.encode("山の上に小さな茶屋")
    assert tok.decode(ids).replace(" ", "") == "山の上に小さな茶屋"
    assert tok.decode(ids) == b"".join(tok.decode_bytes([i]) for i in ids).decode()[:-1]


def test_special_ids(tok):
    assert (tok.end_of_text, tok.begin_of_text, tok.padding, tok.unknown) == (0, 0, 1, 2)
    assert tok.encode("😀") == [2]
    assert tok.decode([0, *tok.encode("120 😀"), 1]).endswith("\ufffd")
    typed = tok.encode("<|endoftext|> <unk>")  # ordinary text
    assert not {0, 1} & set(typed) and len(typed) > 2


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=30), max_size=4))
def test_a_batch_has_the_same_ids(tok, texts):
    batch = tok.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [tok.encode(text) for text in texts]
    assert all(ids.dtype == "uint32" for ids in batch)


def test_training_says_that_it_is_lossy():
    said = []
    tok = train(vocab_size=100_000, say=said.append)
    assert "a whitespace tokenizer is lossy" in said[0]
    assert f"a vocabulary of {tok.vocab_size} tokens, not the 100000 asked for" in said[1]


def test_training_is_the_same_in_another_process(tok):
    program = (
        "import sys; from tsuzuri import tokenizer; from tsuzuri.config import TokenizerConfig\n"
        "cfg = TokenizerConfig(kind='whitespace', vocab_size=1500)\n"
        "text = open(0, newline='').read()\n"
        "sys.stderr.write(tokenizer.train(iter([text]), cfg, print, False).fingerprint)"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, check=True, capture_output=True, text=True, input=TEXT)
    assert run.stderr == tok.fingerprint


def test_what_it_cannot_be_trained_on():
    with pytest.raises(UserError, match=r"vocab-size 100 is too small: .* alone are \d+"):
        train(vocab_size=100)
    with pytest.raises(UserError, match="no text"):
        train("")
    with pytest.raises(UserError, match="surrogate"):
        train("\ud83d")
    with pytest.raises(UserError, match="options are SentencePiece's"):
        train(options="--split_digits=true")


def test_bad_input(tok):
    for encode in (tok.encode, lambda text: tok.encode_batch([text])):
        with pytest.raises(UserError, match="surrogate"):
            encode("\ud83d")
    with pytest.raises(UserError, match="id 1500 is outside"):
        tok.decode([1500])


def test_save_and_load(tok, tmp_path):
    tok.save(tmp_path / "t")
    loaded = tokenizer.load(tmp_path / "t")
    assert loaded.fingerprint == tok.fingerprint
    assert loaded.encode(TEXT) == tok.encode(TEXT)
    path = tmp_path / "t" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"][:2] = content["model"]["merges"][1::-1]
    for damaged in ("{}", path.read_text()[:-50], json.dumps(content)):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"tokenizer\.json: changed or damaged"):
            tokenizer.load(tmp_path / "t")
