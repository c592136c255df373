import itertools
import json
import resource
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri import features, tokenizer
from tsuzuri.config import FeaturesConfig, TokenizerConfig
from tsuzuri.corpus.document import Document
from tsuzuri.errors import RunError, UserError
from tsuzuri.features import featurize, parquet, read_features, split_documents, training_texts
from tsuzuri.features.splits import held_out
from tsuzuri.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()


def make(documents, out, length=8, share=0.0, seed=0, tok=BYTES, say=lambda message: None):
    cfg = FeaturesConfig(held_out=share)
    return featurize(lambda: documents, tok, out, length, cfg, seed, {"of": "a test"}, say, False)


def blocks_of(folder, split, length):
    found = [pq.read_table(f)["input_ids"].to_pylist() for f in sorted(folder.glob(f"{split}-*"))]
    return np.array(list(itertools.chain(*found)), int).reshape(-1, length + 1)


def stream_of(blocks, targets):
    """The stream that was packed: the first id, then every target; the rest must be padding."""
    rest = blocks[:, 1:].ravel()
    assert (rest[targets:] == BYTES.padding).all()
    assert (blocks[1:, 0] == blocks[:-1, -1]).all()
    return [blocks[0, 0], *rest[:targets]] if len(blocks) else [BYTES.end_of_text]


def pieces(text, cuts):
    """One document, in pieces."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(edges)]
    return [Document(part, continues=i < len(parts) - 1) for i, part in enumerate(parts)]


documents = st.lists(
    st.builds(
        pieces,
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        st.lists(st.integers(0, 40), max_size=3),
    ),
    min_size=1,
    max_size=12,
).map(lambda found: list(itertools.chain(*found)))


@settings(deadline=None, max_examples=40)
@given(
    documents=documents,
    length=st.integers(1, 30),
    share=st.sampled_from([0.0, 0.1, 0.3, 0.5]),
    seed=st.integers(0, 5),
)
def test_packing_conserves_tokens(tmp_path_factory, documents, length, share, seed):
    """Every split is the stream of its documents, and no character is lost between the splits."""
    parts = list(split_documents(lambda: documents, FeaturesConfig(share), seed, lambda m: None))
    whole = "".join(document.text for document in documents)
    assert "".join(part.text for part in parts) == whole
    expected = {"train": [BYTES.end_of_text], "held_out": [BYTES.end_of_text]}
    for part in parts:
        expected[part.split] += BYTES.encode(part.text) + [BYTES.end_of_text] * part.ends

    out = tmp_path_factory.mktemp("packing") / "features"
    try:
        found = make(documents, out, length, share, seed)
    except UserError as error:
        nothing_held_out = len(expected["held_out"]) == 1
        too_short = share > 0 and (len(expected["train"]) <= length or nothing_held_out)
        assert "no text" in str(error) if not whole else too_short
        assert not out.exists()
        return
    assert found == read_features(out)
    for split, stream in expected.items():
        figures = found["splits"][split]
        blocks = blocks_of(out, split, length)
        assert len(blocks) == figures["blocks"] == sum(f["rows"] for f in figures["files"])
        assert figures["tokens"] == len(stream) - 1
        assert stream_of(blocks, figures["tokens"]) == stream
    splits = found["splits"].values()
    assert sum(figures["characters"] for figures in splits) == len(whole)
    assert sum(figures["bytes"] for figures in splits) == len(whole.encode())


def test_many_small_batches_and_files_are_the_same_blocks(tmp_path, monkeypatch):
    texts = [Document("山の茶屋" * i + "\n") for i in range(60)]
    bpe = tokenizer.train(
        iter(d.text for d in texts), TokenizerConfig(vocab_size=270), print, False
    )
    whole = make(texts, tmp_path / "a", share=0.1, tok=bpe)["splits"]
    monkeypatch.setattr(features, "_BATCH", 300)
    monkeypatch.setattr(parquet, "_ROW_GROUP", 20)
    monkeypatch.setattr(parquet, "_FILE", 30)
    parts = make(texts, tmp_path / "b", share=0.1, tok=bpe)["splits"]
    for split in ("train", "held_out"):
        assert len(parts[split]["files"]) > len(whole[split]["files"]) == 1
        a, b = (blocks_of(tmp_path / name, split, 8) for name in "ab")
        assert (a == b).all()
        assert parts[split] | {"files": 0} == whole[split] | {"files": 0}


def test_features_json(tmp_path):
    found = make([Document("あいう"), Document("え")], tmp_path / "f", length=4)
    assert found["tokenizer"] == {
        "kind": "bytes",
        "vocab_size": 258,
        "begin_of_text": 0,
        "end_of_text": 0,
        "padding": 1,
        "unknown": None,
        "fingerprint": BYTES.fingerprint,
    }
    train = found["splits"]["train"]
    assert {k: train[k] for k in ("documents", "bytes", "characters", "tokens", "blocks")} == {
        "documents": 2,
        "bytes": 12,
        "characters": 4,
        "tokens": 14,
        "blocks": 4,
    }
    assert found["splits"]["held_out"]["files"] == []
    assert found["source"] == {"of": "a test"}
    assert tokenizer.load(tmp_path / "f" / "tokenizer").fingerprint == BYTES.fingerprint


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5])
def test_one_of_every_group_is_held_out(share):
    group = round(1 / share)
    chosen = [[held_out(seed, i, share) for i in range(group * 30)] for seed in range(3)]
    for of_seed in chosen:
        groups = np.array(of_seed).reshape(30, group)
        assert (groups.sum(1) == 1).all()
        assert len(set(groups.argmax(1))) > 1  # not the same place in each
    assert chosen[0] != chosen[1] != chosen[2]


def test_whole_documents_are_held_out_and_unseen_by_the_tokenizer():
    texts = [f"{i:03d}番目の話\n" for i in range(100)]
    documents = [Document(text) for text in texts]
    cfg = FeaturesConfig(held_out=0.05)
    parts = list(split_documents(lambda: documents, cfg, 7, print))
    assert [part.text for part in parts] == texts
    assert sum(part.split == "held_out" for part in parts) == 5
    train = [part.text for part in parts if part.split == "train"]
    assert list(training_texts(lambda: documents, cfg, 7)) == train
    assert train != list(training_texts(lambda: documents, cfg, 8))


def test_the_end_of_a_single_book_is_held_out_from_a_line_break_on():
    lines = [f"{i:03d}行目である。\n" for i in range(200)]
    said = []
    cfg = FeaturesConfig(held_out=0.05)
    for book in ([Document("".join(lines))], pieces("".join(lines), [1700, 1705, 1720])):
        parts = list(split_documents(lambda book=book: book, cfg, 0, said.append))
        texts = {s: "".join(p.text for p in parts if p.split == s) for s in ("train", "held_out")}
        assert texts["train"] + texts["held_out"] == "".join(lines)
        assert 0.03 < len(texts["held_out"]) / len("".join(lines)) <= 0.05
        assert texts["held_out"].endswith(lines[-1])
        assert texts["held_out"] in {"".join(lines[i:]) for i in range(200)}
        assert [part.split for part in parts if part.ends] == ["train", "held_out"]
    assert said[0].startswith("documents: 1, too few to hold out whole ones; the last 5% of each")


def test_entropy_is_known_only_if_every_document_knows_it(tmp_path):
    known = [Document("あいう", entropy_bits=2.5), Document("え", entropy_bits=1.25)]
    found = make(known, tmp_path / "a")["splits"]
    assert found["train"]["entropy_bits"] == 3.75
    assert found["held_out"]["entropy_bits"] is None
    found = make([*known, Document("お")], tmp_path / "b")["splits"]
    assert found["train"]["entropy_bits"] is None


def test_empty_documents_are_left_out_and_counted(tmp_path):
    said = []
    documents = [Document(""), Document("", continues=True), Document(""), *pieces("あい", [0, 1])]
    found = make(documents, tmp_path / "f", say=said.append)
    assert found["splits"]["train"]["documents"] == 1
    assert said == ["empty documents left out: 2"]


@pytest.mark.parametrize("documents", [[], [Document("")], [Document(""), Document("")]])
def test_no_text(tmp_path, documents):
    with pytest.raises(UserError, match="no text to make features of"):
        make(documents, tmp_path / "f", share=0.05)
    assert list(tmp_path.iterdir()) == []


def test_shorter_than_one_block(tmp_path):
    text = [Document("a" * 19 + "b")]
    with pytest.raises(UserError, match=r"is 20 tokens, .* one block of 256; use .*-length 20 or"):
        make(text, tmp_path / "f", length=256, share=0.05)
    make(text, tmp_path / "f", length=20, share=0.05)


def test_nothing_held_out_of_too_little_text(tmp_path):
    with pytest.raises(UserError, match=r"held-out 0\.001 of so little text is nothing"):
        make([Document("a" * 100)], tmp_path / "f", share=0.001)
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_grows_while_it_is_read(tmp_path):
    grown = iter([[Document("あいう" * 9)], [Document("あいう" * 9), Document("え" * 9)]])
    cfg = FeaturesConfig(held_out=0.05)
    with pytest.raises(UserError, match="has grown while it was read"):
        featurize(lambda: next(grown), BYTES, tmp_path / "f", 8, cfg, 0, {}, print, False)
    assert list(tmp_path.iterdir()) == []


def test_overlapping_blocks_of_a_long_text_need_little_memory(tmp_path):
    cfg = FeaturesConfig(held_out=0, packing="document", stride=1)
    text = "".join(map(str, range(12_000)))
    tracemalloc.start()
    found = featurize(lambda: [Document(text)], BYTES, tmp_path / "f", 64, cfg, 0, {}, print, False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    train = found["splits"]["train"]
    assert train["blocks"] == len(text) + 2 - 64 and train["tokens"] == len(text) + 1
    columns = 2 * 4 * 65 * train["blocks"]
    assert peak < columns * 0.6
    rows = [pq.read_table(tmp_path / "f" / file["name"]) for file in train["files"]]
    ids = np.concatenate([table["input_ids"].to_pylist() for table in rows])
    stream = [0, *BYTES.encode(text), 0]
    assert (ids == np.lib.stride_tricks.sliding_window_view(stream, 65)).all()


@pytest.mark.parametrize("share", [-0.1, 0.6, float("nan")])
def test_a_share_that_is_none(tmp_path, share):
    with pytest.raises(UserError, match=r"held-out .* is no share"):
        make([Document("あいう")], tmp_path / "f", share=share)


def test_half_a_surrogate_pair(tmp_path):
    with pytest.raises(UserError, match=r"document 2: '\\ud800' after '茶屋' is half"):
        make([Document("山"), Document("茶屋\ud800")], tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_ids_outside_the_vocabulary(tmp_path):
    class Broken(ByteTokenizer):
        vocab_size = property(lambda self: 100, lambda self, value: None)

    with pytest.raises(RunError, match="gave id 124, outside its vocabulary of 100"):
        make([Document("abcxyz"), Document("y")], tmp_path / "f", tok=Broken())
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_touched(tmp_path):
    first = make([Document("あいう")], tmp_path / "f")
    for out in (tmp_path / "f", tmp_path / "f" / "features.json"):
        with pytest.raises(UserError, match="is there already"):
            make([Document("かきく")], out)
    assert read_features(tmp_path / "f") == first


def test_full_disk(tmp_path):
    """The kernel refuses to let a file grow, as a full disk does."""
    noise = np.random.default_rng(0).integers(0x4E00, 0x9F00, 200_000)
    documents = [Document("".join(map(chr, noise)))]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write .*File too large"):
            make(documents, tmp_path / "f")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield Document("あいう")
        raise UserError("book.txt: not UTF-8")

    with pytest.raises(UserError, match="not UTF-8"):
        featurize(broken, BYTES, tmp_path / "f", 4, FeaturesConfig(held_out=0), 0, {}, print, False)
    assert list(tmp_path.iterdir()) == []


def test_every_change_of_features_json_is_seen(tmp_path):
    found = make([Document("あいう")], tmp_path)
    path = tmp_path / "features.json"
    for change in ({"sequence_length": 9}, {"splits": {}}, {"fingerprint": "0" * 64}):
        path.write_text(json.dumps(found | change))
        with pytest.raises(UserError, match="changed or damaged"):
            read_features(tmp_path)
    path.write_text(json.dumps(found | {"format": 2}))
    with pytest.raises(UserError, match="format 2, and this version reads 1"):
        read_features(tmp_path)
    for content in ("[]", "{}", '{"format": 1'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"features\.json"):
            read_features(tmp_path)
    in_a_run = found | {"folder": "../elsewhere"}
    path.write_text(json.dumps(in_a_run))
    assert read_features(tmp_path) == in_a_run
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        read_features(tmp_path)
