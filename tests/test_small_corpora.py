"""WikiSplit++, TinyStories and tinyshakespeare, in the publishers' formats, written here."""

import gzip
import io
import json
import tarfile
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri.corpus import CORPORA, hub
from tsuzuri.corpus.tinystories import _from_json, _from_text
from tsuzuri.errors import UserError


def texts(name: str, **options) -> list[str]:
    return [document.text for document in CORPORA[name].documents(say=lambda _: None, **options)]


def refusal(name: str, **options) -> str:
    with pytest.raises(UserError) as error:
        texts(name, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def serve(monkeypatch, dataset: str, rows: dict[str, list[dict]], **expected) -> None:
    """Stands in for the hub with these rows by split."""

    def serve_rows(name, config, split, *, bring, **options):
        assert (name, config, options) == (dataset, None, expected)
        assert "by --source" in bring
        return iter(rows[split])

    monkeypatch.setattr(hub, "rows", serve_rows)


PAIRS = [
    {
        "id": number,
        "complex": f"The train, number {number}, came out of the tunnel.",
        "simple_reversed": f"It is number {number}. The train came out.",
        "simple_tokenized": ["The train came out.", f"It is number {number}."],
        "simple_original": f"The train came out. It is number {number}.",
        "entailment_prob": 0.98,
        "split": "train",
    }
    for number in range(3)
]


def test_wikisplit_gives_pairs_or_one_field(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(PAIRS[:2]), tmp_path / "data/train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(PAIRS[2:]), tmp_path / "data/test-00000-of-00001.parquet")
    pairs = [f"{row['complex']}\n{row['simple_original']}" for row in PAIRS]
    assert texts("wikisplit-pp", source=tmp_path) == pairs[:2]
    assert texts("wikisplit-pp", source=tmp_path, split="test") == pairs[2:]
    reverse = texts("wikisplit-pp", source=tmp_path, field="simple_reversed")
    assert reverse == [row["simple_reversed"] for row in PAIRS[:2]]
    [document] = CORPORA["wikisplit-pp"].documents(source=tmp_path, split="test", say=print)
    assert document.metadata == {"id": "2"}
    serve(monkeypatch, "cl-nagoya/wikisplit-pp", {"train[:2]": PAIRS[:2]})
    assert texts("wikisplit-pp", split="train[:2]") == pairs[:2]


def test_wikisplit_refuses_other_tables_and_fields(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)
    message = refusal("wikisplit-pp", source=path)
    assert message.startswith(f"{path}, row 1: the field 'complex' is not there")
    assert "complex, simple_original" in refusal("wikisplit-pp", source=path, field="simple")
    path.write_bytes(path.read_bytes()[:-10])
    assert "damaged, or not Parquet" in refusal("wikisplit-pp", source=path)


# The publisher's .txt: the mark stands on a line of its own; the file ends with one.
STORIES = ['Once upon a time.\n\nTom said, "Hi!"', "Spot saw  a car. ", "The end."]
FILE = "".join(f"{story}\n<|endoftext|>\n" for story in STORIES)


@pytest.mark.parametrize(
    "text",
    [
        FILE,
        FILE.removesuffix("\n<|endoftext|>\n"),
        FILE.replace("\n", "\r\n").replace("time.\r\n\r\n", "time.\n\n"),
        "\n\n" + FILE.replace("\n<|endoftext|>\n", "<|endoftext|>"),
        FILE.replace("|>\n", "|>\n\n\n<|endoftext|>\n"),
    ],
)
def test_tinystories_end_of_text_is_structure(tmp_path, text):
    path = tmp_path / "TinyStories-train.txt"
    path.write_bytes(text.encode())
    assert texts("tinystories", source=path) == STORIES


def test_tinystories_is_the_same_in_each_form(tmp_path, monkeypatch):
    (tmp_path / "TinyStoriesV2-GPT4-valid.txt").write_text(FILE)
    assert texts("tinystories", source=tmp_path, split="validation") == STORIES
    pq.write_table(
        pa.table({"text": STORIES}), tmp_path / "train-00000-of-00004-2d5a1467fff1081b.parquet"
    )
    assert texts("tinystories", source=tmp_path) == STORIES
    assert texts("tinystories", source=tmp_path, split="train[1:]") == STORIES[1:]
    archive = tmp_path / "all" / "TinyStories_all_data.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as out:
        for number, story in enumerate(STORIES):
            record = {"story": "\n\n" + story, "instruction": {"words": ["hi"]}, "source": "GPT-4"}
            content = json.dumps([record]).encode()
            info = tarfile.TarInfo(f"data{number:02}.json")
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    assert texts("tinystories", source=archive) == STORIES
    assert "holds the split train as data00.json" in refusal("tinystories", source=tmp_path)
    rows = {"train": [{"text": "\n" + story} for story in STORIES]}
    serve(monkeypatch, "roneneldan/TinyStories", rows)
    assert texts("tinystories") == STORIES


@given(st.lists(st.text('ab <|endoftx\n日😀\\"[]{},', max_size=20), max_size=8), st.integers(1, 9))
@settings(deadline=None)
def test_tinystories_in_chunks_of_any_size(stories, size):
    stories = [story for story in stories if "<|endoftext|>" not in story]
    kept = [story.strip("\n") for story in stories if story.strip("\n")]

    def chunks(text: str):
        return (text[at : at + size] for at in range(0, len(text), size))

    array = json.dumps([{"story": story} for story in stories], indent=1)
    assert [document.text for document in _from_json("x", chunks(array))] == kept
    if stories:
        text = "".join(f"{story}\n<|endoftext|>\n" for story in stories)
        assert [document.text for document in _from_text("x", chunks(text))] == kept


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("train.txt", "a story\n" * 10, ":1: not TinyStories; no line <|endoftext|> ends a story"),
        ("train.txt", FILE + "a" * 2_000_000, ":8: not TinyStories; 1,000,000 characters from"),
        ("train.json", '[{"story": "a"}, {"sto', "record 2: cut short or not JSON"),
        ("train.json", '[{"story": "a"}, {"text": "b"}]', "record 2: the field 'story' is not"),
        ("train.json", '[{"story": "a"}, "b"]', "record 2: not TinyStories; an object with a"),
        ("train.json", "<html>" + " " * 2_000_000, "record 1: not JSON"),
        ("train.csv", "a", "holds no .txt or .parquet or .json"),
    ],
)
def test_what_is_not_tinystories_is_named(tmp_path, name, text, hint):
    path = tmp_path / name
    path.write_text(text)
    message = refusal("tinystories", source=path)
    assert message.startswith(str(path))
    assert hint in message


def test_tinystories_streams(tmp_path):
    path = tmp_path / "TinyStories-train.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as out:
        for _ in range(300):
            out.write(("Tom had a red ball. " * 40 + "\n<|endoftext|>\n").encode() * 200)
    tracemalloc.start()
    count = sum(1 for _ in CORPORA["tinystories"].documents(source=path, say=print))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60_000
    assert peak < 20e6  # of 49 MB


PLAY = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"


def test_shakespeare_is_one_text_to_the_byte_or_the_hubs_three(tmp_path, monkeypatch):
    text = PLAY + "\r\nSecond Citizen:\n\x0b " * 7
    path = tmp_path / "input.txt"
    path.write_bytes(text.encode())
    assert texts("shakespeare", source=path) == texts("shakespeare", source=tmp_path) == [text]
    splits = ("train", "validation", "test")
    parts = {split: texts("shakespeare", source=path, split=split) for split in splits}
    assert "".join(part for [part] in parts.values()) == text
    # As tiny_shakespeare.py of the hub's dataset cuts it.
    train, rest = text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :]
    assert parts["train"] == [train]
    assert parts["validation"] == [rest[: int(len(rest) * 0.5)]]
    rows = {split: [{"text": part}] for split, [part] in parts.items()}
    serve(monkeypatch, "karpathy/tiny_shakespeare", rows, revision="refs/convert/parquet")
    assert texts("shakespeare") == [text]
    assert texts("shakespeare", split="test") == parts["test"]


def test_another_text_is_not_shakespeare(tmp_path):
    path = tmp_path / "input.txt"
    path.write_text("To be\nor not")
    assert f"{path}:1: not tinyshakespeare; it begins with 'To be'" in refusal(
        "shakespeare", source=path
    )
    path.rename(tmp_path / "other.txt")
    assert "holds neither input.txt" in refusal("shakespeare", source=tmp_path)
    path.write_text(PLAY)
    assert "it has all, train, validation, test" in refusal("shakespeare", source=path, split="x")
