"""Wiki-40B, CC-100, the Billion Word Benchmark and hub datasets, from files as they are served."""

import gzip
import io
import json
import lzma
import random
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri.corpus import named, text_files
from tsuzuri.corpus.wiki40b import clean
from tsuzuri.errors import UserError

ARTICLE = (
    "\n_START_ARTICLE_\nビートボックス\n_START_PARAGRAPH_\n声の音楽である。_NEWLINE_口でする。"
    "\n_START_SECTION_\n歴史\n_START_PARAGRAPH_\n古い。\n_START_SECTION_\n日本\n_START_SECTION_\n"
    "東京\n_START_PARAGRAPH_\n「音」　と言う。_NEWLINE__NEWLINE_終わり"
)
CLEANED = """\
ビートボックス

声の音楽である。
口でする。

歴史
古い。

日本

東京
「音」　と言う。

終わり
"""


def corpus(name, source, **options):
    said = options.pop("said", [])
    found = named(name).documents(source=source, say=said.append, **options)
    return list(found)


def texts(name, source, **options):
    return [document.text for document in corpus(name, source, **options)]


def article(number, text=ARTICLE):
    return {"wikidata_id": f"Q{number}", "text": text, "version_id": f"{number}0"}


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def hub_folder(tmp_path):
    """ja/ of google/wiki40b: the cells are Python's repr of bytes."""
    ja = tmp_path / "wiki40b" / "ja"
    for name, numbers in {
        "train-00000-of-00002": [1, 2],
        "train-00001-of-00002": [3],
        "validation-00000-of-00001": [4],
        "test-00000-of-00001": [5],
    }.items():
        rows = [article(number) for number in numbers]
        rows = [{key: repr(value.encode()) for key, value in row.items()} for row in rows]
        write_parquet(ja / f"{name}.parquet", rows)
    (ja.parent / "README.md").write_text("a card")
    return ja.parent


def test_wiki40b(tmp_path):
    source = hub_folder(tmp_path)
    documents = corpus("wiki40b-ja", source)
    assert [document.text for document in documents] == [CLEANED] * 3
    assert [document.metadata for document in documents] == [
        {"title": "ビートボックス", "wikidata_id": f"Q{n}", "version_id": f"{n}0"}
        for n in (1, 2, 3)
    ]
    (held,) = corpus("wiki40b-ja", source, split="validation")
    assert held.metadata["wikidata_id"] == "Q4"
    some = corpus("wiki40b-ja", source, split="train[1:]+test")
    assert [document.metadata["wikidata_id"] for document in some] == ["Q2", "Q3", "Q5"]
    with pytest.raises(UserError, match="no such split; it has test, train, validation"):
        corpus("wiki40b-ja", source, split="dev")


def test_wiki40b_in_plain_text(tmp_path):
    write_parquet(tmp_path / "copy" / "train.parquet", [article(1)])
    assert texts("wiki40b-ja", tmp_path / "copy") == [CLEANED]
    assert texts("wiki40b-ja", tmp_path / "copy" / "train.parquet") == [CLEANED]


def test_a_long_article_comes_in_pieces_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "PIECE", 20)
    long = ARTICLE.replace("声の音楽である。", "声" * 90)
    write_parquet(tmp_path / "wiki" / "train.parquet", [article(1, long), article(2)])
    documents = corpus("wiki40b-ja", tmp_path / "wiki", split="train[:1]")
    assert len(documents) > 5 and not documents[-1].continues
    assert all(document.continues for document in documents[:-1])
    assert "".join(d.text for d in documents) == CLEANED.replace("声の音楽である。", "声" * 90)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (article(1, "no marks"), "an article begins with _START_ARTICLE_"),
        (article(1, "\n_START_SECTION_\nx"), "an article begins with _START_ARTICLE_"),
        (article(1, "b'\\n_START_ARTICLE_\\n\\xff'"), "row 2: .*utf-8"),
        (article(1, "b'not closed"), "row 2: not a row of google/wiki40b"),
        (article(1, None), "row 2: not a row of google/wiki40b"),
    ],
)
def test_wiki40b_of_another_format(tmp_path, row, told):
    path = tmp_path / "wiki" / "train.parquet"
    write_parquet(path, [article(0), row])
    with pytest.raises(UserError, match=told) as error:
        corpus("wiki40b-ja", path.parent)
    assert "\n" not in str(error.value)
    write_parquet(path, [{"text": ARTICLE}])
    with pytest.raises(UserError, match=r"row 1: not a row of .*'wikidata_id'"):
        corpus("wiki40b-ja", path.parent)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged, or not Parquet"):
        corpus("wiki40b-ja", path.parent)


WORDS = st.text("あ一 a_。", min_size=1, max_size=9).filter(lambda word: "_START_" not in word)


@settings(deadline=None)
@given(WORDS, st.lists(st.tuples(st.sampled_from(["SECTION", "PARAGRAPH"]), WORDS)))
def test_wiki40b_loses_nothing_but_marks(title, blocks):
    raw = f"\n_START_ARTICLE_\n{title}" + "".join(f"\n_START_{m}_\n{w}" for m, w in blocks)
    lines = [title.strip(), *(word for _, word in blocks)]
    assert [line for line in clean(raw)[1].split("\n") if line] == [line for line in lines if line]


CC100 = "一つ目の段落。\n二つ目。\n\n別の文書。\n\n三つ目の文書。\n終わり。\n\n"
CC100_DOCUMENTS = ["一つ目の段落。\n二つ目。", "別の文書。", "三つ目の文書。\n終わり。"]


def test_cc100(tmp_path):
    path = tmp_path / "ja.txt.xz"
    path.write_bytes(lzma.compress(CC100.encode()))
    assert texts("cc100-ja", path) == CC100_DOCUMENTS
    assert texts("cc100-ja", path, split="train[:2]") == CC100_DOCUMENTS[:2]
    assert texts("cc100-ja", path, split="train[67%:]") == CC100_DOCUMENTS[2:]
    path.with_suffix("").write_text(CC100)
    assert texts("cc100-ja", tmp_path) == CC100_DOCUMENTS * 2
    with pytest.raises(UserError, match="CC-100 has no such split; it has train"):
        corpus("cc100-ja", path, split="validation")


def test_cc100_of_another_format(tmp_path, monkeypatch):
    path = tmp_path / "ja.txt.xz"
    whole = lzma.compress(CC100.encode() * 50)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"ja\.txt\.xz: damaged or cut short"):
        corpus("cc100-ja", path)
    path.write_bytes(lzma.compress(CC100.encode("euc_jp")))
    with pytest.raises(UserError, match="byte 0 is not utf-8"):
        corpus("cc100-ja", path)
    monkeypatch.setattr(text_files, "PIECE", 50)
    path.write_bytes(lzma.compress(CC100.replace("\n\n", "\n").encode() * 9))
    with pytest.raises(UserError, match="no blank line in its first"):
        corpus("cc100-ja", path)
    (tmp_path / "ja.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"not a file of CC-100; that is ja\.txt\.xz"):
        corpus("cc100-ja", tmp_path / "ja.parquet")


LM1B = {
    "training-monolingual.tokenized.shuffled/news.en-00001-of-00100": "One .\nTwo , too .\n",
    "training-monolingual.tokenized.shuffled/news.en-00002-of-00100": "Three .\n",
    "heldout-monolingual.tokenized.shuffled/news.en-00000-of-00100": "Four .\nFive — é .\n",
    "heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050": "Four .\n",
    "heldout-monolingual.tokenized.shuffled/news.en.heldout-00001-of-00050": "Five — é .\n",
    "README.corpus_generation": "not a sentence\n",
    ".svn/entries": "10\n",
}


def lm1b(tmp_path):
    path = tmp_path / "1-billion-word-language-modeling-benchmark-r13output.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in LM1B.items():
            info = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def test_lm1b(tmp_path):
    path = lm1b(tmp_path)
    assert texts("lm1b", path) == ["One .", "Two , too .", "Three ."]
    assert texts("lm1b", path, split="test") == ["Four .", "Five — é ."]
    assert texts("lm1b", path, split="train[-1:]+test[:50%]") == ["Three .", "Four ."]
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert texts("lm1b", tmp_path / "unpacked") == ["One .", "Two , too .", "Three ."]
    (one,) = (tmp_path / "unpacked").rglob("news.en-00002-of-00100")
    assert texts("lm1b", one) == ["Three ."]
    with pytest.raises(UserError, match=r"no file of the split test, such as news\.en\.heldout"):
        corpus("lm1b", one, split="test")
    with pytest.raises(UserError, match="lm1b has no such split; it has train, test"):
        corpus("lm1b", path, split="valid")
    one.write_bytes(b"Three .\n\xff\n")
    with pytest.raises(UserError, match=r"news\.en-00002-of-00100:2: not UTF-8 at byte 0"):
        corpus("lm1b", one)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"damaged or cut short"):
        corpus("lm1b", path)


def test_lm1b_cut_short_inside_of_a_file(tmp_path, monkeypatch):
    noise = random.Random(0).randbytes(50_000).hex("\n", 20)
    monkeypatch.setitem(LM1B, "training/news.en-00003-of-00100", noise)
    path = lm1b(tmp_path)
    path.write_bytes(path.read_bytes()[:25_000])
    with pytest.raises(UserError, match=r"damaged or cut short"):
        corpus("lm1b", path)


RECORDS = [{"body": "一", "id": "a", "n": 1}, {"body": "二", "id": "b", "n": 2}]


def write_table(path, rows):
    match path.suffixes:
        case [".parquet"]:
            write_parquet(path, rows)
        case [".jsonl"]:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case [".json", ".gz"]:
            path.write_bytes(
                gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
            )
        case [".csv"]:
            lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
            path.write_text("".join(f"{line}\r\n" for line in lines), newline="")


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json.gz", "csv"])
def test_a_hub_dataset_of_files(tmp_path, ending):
    folder = tmp_path / "tiny" / "data"
    folder.mkdir(parents=True)
    for number, row in enumerate(RECORDS):
        write_table(folder / f"train-{number}.{ending}", [row])
    write_table(folder / f"test-0.{ending}", RECORDS[:1])
    documents = corpus("hf:me/tiny", folder.parent, field="body")
    assert [document.text for document in documents] == ["一", "二"]
    assert [document.metadata["id"] for document in documents] == ["a", "b"]
    assert texts("hf:me/tiny", folder / f"test-0.{ending}", field="body", split="test") == ["一"]
    assert texts("hf:me/tiny", folder.parent, field="body", split="train[50%:]") == ["二"]
    others = "" if ending == "csv" else r" \(no strings: n\)"
    with pytest.raises(UserError, match=rf"'text' is not there; .*: body, id(, n)?{others}"):
        corpus("hf:me/tiny", folder.parent)


def test_hub_rows_without_text_are_told_of(tmp_path):
    path = tmp_path / "tiny" / "train.parquet"
    write_parquet(path, [{"text": "一"}, {"text": None}, {"text": "二"}, {"text": None}])
    said = []
    assert texts("hf:me/tiny", path.parent, split="train[:50%]", said=said) == ["一"]
    assert said == [f"{path}, row 2: text is null; such rows are left out"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('text,id\r\n"一\r\n二",a\r\n三\r\n', r"train\.csv:4: 1 values, where 2 are named"),
        ('text\r\n"一"二\r\n', r"train\.csv:2: not CSV \("),
    ],
)
def test_csv_of_another_format(tmp_path, content, told):
    path = tmp_path / "train.csv"
    path.write_text(content, newline="")
    with pytest.raises(UserError, match=told):
        corpus("hf:me/tiny", path)
