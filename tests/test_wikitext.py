"""WikiText and Wikitext-JA: files written here in the publishers' formats, parted into articles."""

import gzip
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri.corpus import CORPORA, hub, text_files
from tsuzuri.corpus.wikitext import articles
from tsuzuri.errors import UserError

LOBSTER = """\
 \n\
 = Homarus gammarus = \n\
 \n\
 Homarus gammarus , known as the European lobster , grows to 60 @.@ 5 cm ( 24 in ) . \n\
 \n\
 = = Description = = \n\
 \n\
 = 1 <unk> / s and a nominal <unk> k = \n\
 = = = Size @-@ range = = = \n\
 \n\
 = 2 \x85 \u2028 3 \n\
 \n\
 \n"""
SUM = """\
 \n\
 = 2 + 2 = 5 = \n\
 \n\
 A slogan of 8 @,@ 600 people . \n"""
EMPTY = " \n = Robert <unk> = \n \n"
TRAIN = LOBSTER + SUM + EMPTY


def texts(name="wikitext-2", **options) -> list[str]:
    """The whole documents."""
    whole = [""]
    for document in CORPORA[name].documents(say=lambda _: None, **options):
        assert len(document.text) <= text_files.PIECE
        whole[-1] += document.text
        if not document.continues:
            whole.append("")
    assert whole.pop() == ""
    return whole


def refusal(name="wikitext-2", **options) -> str:
    with pytest.raises(UserError) as error:
        texts(name, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path):
    """wikitext-2-raw-v1.zip, unpacked."""
    inner = tmp_path / "wikitext-2-raw"
    inner.mkdir()
    for part, text in {"train": TRAIN, "valid": SUM, "test": EMPTY}.items():
        (inner / f"wiki.{part}.raw").write_text(text, newline="")
    return inner


def test_an_article_is_a_document_and_all_of_them_are_the_file(folder):
    documents = list(CORPORA["wikitext-2"].documents(source=folder, say=print))
    assert [document.text for document in documents] == [LOBSTER, SUM, EMPTY]
    titles = ["Homarus gammarus", "2 + 2 = 5", "Robert <unk>"]
    assert [document.metadata["title"] for document in documents] == titles
    assert "".join(document.text for document in documents) == TRAIN


def test_each_split_from_its_file_and_slices_by_articles(folder):
    assert texts(source=folder, split="validation") == [SUM]
    assert texts(source=folder, split="test") == [EMPTY]
    assert texts(source=folder, split="train[1:2]+test") == [SUM, EMPTY]
    assert texts(source=folder, split="train[:67%]") == [LOBSTER, SUM]
    assert "it has test, train, validation" in refusal(source=folder, split="valid")


def test_zip_gz_tokens_and_one_file_of_any_name(folder, tmp_path):
    archive = tmp_path / "wikitext-2-raw-v1.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for file in sorted(folder.iterdir()):
            out.write(file, f"wikitext-2-raw/{file.name}")
    assert texts(source=archive) == [LOBSTER, SUM, EMPTY]
    tokens = tmp_path / "wiki.test.tokens.gz"
    tokens.write_bytes(gzip.compress(TRAIN.encode()))
    assert texts("wikitext-103", source=tokens, split="test") == [LOBSTER, SUM, EMPTY]
    assert "it has test" in refusal(source=tokens)
    tokens.write_bytes(gzip.compress(TRAIN.encode())[:-20])
    assert "damaged or cut short" in refusal(source=tokens, split="test")
    other = tmp_path / "lobsters.txt"
    other.write_text(LOBSTER, newline="")
    assert texts(source=other) == texts(source=other, split="test") == [LOBSTER]


def rows_of(text: str) -> list[dict[str, str]]:
    """The hub's rows: a line each, empty where the file has a space."""
    return [{"text": "" if line == " " else line + "\n"} for line in text.split("\n")[:-1]]


def test_the_hub_and_its_parquet_give_the_files_text(tmp_path, monkeypatch):
    for number, part in enumerate((LOBSTER, SUM + EMPTY)):
        path = tmp_path / "wikitext-2-raw-v1" / f"train-0000{number}-of-00002.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows_of(part)), path)
    assert texts(source=tmp_path) == [LOBSTER, SUM, EMPTY]
    converted = tmp_path / "wikitext-2-raw-v1" / "validation" / "0000.parquet"
    converted.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows_of(SUM)), converted)
    assert texts(source=tmp_path, split="validation") == [SUM]
    assert texts(source=converted.parent, split="validation") == [SUM]

    def rows(dataset, config, split, *, bring):
        assert (dataset, split) == ("Salesforce/wikitext", "train")
        assert "wikitext-103-raw-v1.zip" in bring
        return iter(rows_of({"wikitext-103-raw-v1": TRAIN, "wikitext-103-v1": SUM}[config]))

    monkeypatch.setattr(hub, "rows", rows)
    assert texts("wikitext-103") == [LOBSTER, SUM, EMPTY]
    assert texts("wikitext-103", split="train[-1:]") == [EMPTY]
    assert texts("wikitext-103", form="tokenized") == [SUM]
    assert "raw or tokenized" in refusal(form="cooked")


def test_the_same_split_twice_is_refused(folder):
    (folder / "wiki.train.tokens").write_text(TRAIN)
    message = refusal(source=folder)
    assert "wiki.train.raw and as" in message
    assert message.endswith("wiki.train.tokens; give --source one of them")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (" \n \nFirst Citizen:\n", ":3: not WikiText; an article's title such as"),
        (" = Homarus = \n Homarus is . \n", ":1: not WikiText"),
        (" = = Description = = \n", "not ' = = Description = = "),
        ("== Homarus ==\n\n", ":1: not WikiText"),
    ],
)
def test_another_format_is_named_by_file_and_line(tmp_path, text, hint):
    path = tmp_path / "wiki.train.raw"
    path.write_text(text)
    assert str(path) in refusal(source=path)
    assert hint in refusal(source=path)


def test_a_folder_without_it_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("hello")
    assert "holds no .raw or .tokens" in refusal(source=tmp_path)


@given(
    st.lists(
        st.tuples(st.text("ab =日<", min_size=1).filter(lambda t: not t.startswith("=")),
                  st.lists(st.sampled_from([" \n", " a . \n", " = x = \n", " = = y = = \n"]))),
        min_size=1,
    )
)  # fmt: skip
@settings(deadline=None, max_examples=50)
def test_nothing_is_lost_whatever_the_articles_hold(items):
    text = "".join(f" \n = {title} = \n \n{''.join(lines)}" for title, lines in items)
    documents = list(articles(text.splitlines(keepends=True), "x"))
    assert "".join(document.text for document in documents) == text
    assert len(documents) >= len(items)


FEATURED = """\
= 東京 =
東京は、日本の首都である。標高は約４０ｍである。
== 歴史 ==
=== 江戸 ===
a = b
"""
SECOND = "＝　京都　＝\n京都の記事。\n"


def test_wikitext_ja(tmp_path, monkeypatch):
    (tmp_path / "Featured_Contents.txt").write_text(FEATURED + SECOND)
    (tmp_path / "Good_Contents.txt").write_text(SECOND)
    corpus = CORPORA["wikitext-ja-featured"]
    documents = list(corpus.documents(source=tmp_path, say=print))
    assert [document.text for document in documents] == [FEATURED, SECOND]
    assert [document.metadata["title"] for document in documents] == ["東京", "京都"]
    assert texts("wikitext-ja-good", source=tmp_path) == [SECOND]
    assert texts("wikitext-ja-good", source=tmp_path / "Featured_Contents.txt", split="train[:1]")
    assert "no such split; it has train" in refusal("wikitext-ja-good", split="test")
    (tmp_path / "Good_Contents.txt").unlink()
    assert "bring Good_Contents.txt from http" in refusal("wikitext-ja-good", source=tmp_path)

    def rows(dataset, config, split, *, bring, data_files, keep_linebreaks):
        assert (dataset, config, split, keep_linebreaks) == ("text", None, "train", True)
        assert data_files["train"].endswith("/wikitext-ja/Good_Contents.txt")
        return iter({"text": line} for line in SECOND.splitlines(keepends=True))

    monkeypatch.setattr(hub, "rows", rows)
    assert texts("wikitext-ja-good") == [SECOND]


def test_wikitext_ja_without_titles_is_kept_whole_and_said(tmp_path):
    path = tmp_path / "Good_Contents.txt"
    path.write_text("記事。\n\n== 節 ==\n本文。\n")
    said = []
    [document] = CORPORA["wikitext-ja-good"].documents(source=path, say=said.append)
    assert (document.text, dict(document.metadata)) == (path.read_text(), {})
    assert said == [
        f"{path}: no line in it is a title such as '= 東京 ='; it is kept as one document"
    ]
