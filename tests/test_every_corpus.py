"""`tsuzuri prepare NAME --source FILE` for every name, from files as the publishers serve them."""

import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tsuzuri import corpus
from tsuzuri.cli import main
from tsuzuri.config import TextConfig
from tsuzuri.corpus import CORPORA


def parquet(rows):
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


def archive(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def zipped(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return content.getvalue()


WIKI40B = "\n_START_ARTICLE_\n峠\n_START_SECTION_\n道\n_START_PARAGRAPH_\n坂である。_NEWLINE_長い。"
WIKITEXT = " \n = Toge = \n \n A mountain pass , with @-@ signs . \n \n = = Way = = \n \n Up . \n"
AOZORA = "峠の鳥\r\n綴り花子\r\n\r\n　峠《とうげ》に鳥がいた。\r\n\r\n底本：「峠」綴り書房\r\n"
LM1B = "1-billion-word-language-modeling-benchmark-r13output"

# name: (the publisher's file, its content, further flags, the texts that come out)
PUBLISHED = {
    "aozora": (
        "cards/000001/files/1_ruby_1.zip",
        zipped({"toge.txt": AOZORA.encode("cp932")}),
        ["--orthography", "any"],
        ["　峠に鳥がいた。\n"],
    ),
    "wiki40b-ja": (
        "ja/validation-00000-of-00001.parquet",
        parquet([{"wikidata_id": "Q1", "text": repr(WIKI40B.encode()), "version_id": "7"}]),
        ["--split", "validation"],
        ["峠\n\n道\n坂である。\n長い。\n"],
    ),
    "cc100-ja": (
        "ja.txt.xz",
        lzma.compress("一つ目の段落。\n続き。\n\n二つ目の文書。\n\n".encode()),
        [],
        ["一つ目の段落。\n続き。", "二つ目の文書。"],
    ),
    "lm1b": (
        f"{LM1B}.tar.gz",
        archive(
            {f"{LM1B}/training-monolingual.tokenized.shuffled/news.en-00001-of-00100": b"It .\n"}
        ),
        [],
        ["It ."],
    ),
    "wikitext-2": (
        "wikitext-2-raw-v1.zip",
        zipped({"wikitext-2-raw/wiki.valid.raw": WIKITEXT.encode()}),
        ["--split", "validation"],
        [WIKITEXT],
    ),
    "wikitext-103": (
        "wikitext-103-v1.zip",
        zipped({"wikitext-103/wiki.train.tokens": WIKITEXT.replace("Up", "<unk>").encode()}),
        ["--form", "tokenized"],
        [WIKITEXT.replace("Up", "<unk>")],
    ),
    "wikitext-ja-featured": (
        "Featured_Contents.txt",
        "= 峠 =\n坂である。\n= 鳥 =\n飛ぶ。\n".encode(),
        ["--split", "train[1:]"],
        ["= 鳥 =\n飛ぶ。\n"],
    ),
    "wikitext-ja-good": (
        "Good_Contents.txt",
        "= 山 =\n高い。\n".encode(),
        [],
        ["= 山 =\n高い。\n"],
    ),
    "wikisplit-pp": (
        "data/train-00000-of-00001.parquet",
        parquet([{"id": 1, "complex": "A and B.", "simple_original": "A. B."}]),
        [],
        ["A and B.\nA. B."],
    ),
    "tinystories": (
        "TinyStories-valid.txt",
        b"Once a bird flew.\n<|endoftext|>\nThen it sang.\n<|endoftext|>\n",
        ["--split", "validation"],
        ["Once a bird flew.", "Then it sang."],
    ),
    "shakespeare": (
        "input.txt",
        b"First Citizen:\nBefore we proceed.\n",
        [],
        ["First Citizen:\nBefore we proceed.\n"],
    ),
    "hf:owner/name": (
        "part.jsonl.gz",
        gzip.compress(json.dumps({"body": "本文", "url": "x"}).encode()),
        ["--field", "body"],
        ["本文"],
    ),
}


def test_every_name_is_here():
    assert {*PUBLISHED, "tales"} == {*CORPORA, "hf:owner/name"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_prepare(capsys, tmp_path, name):
    file, content, flags, expected = PUBLISHED[name]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(content)
    out = tmp_path / "out"
    command = ["prepare", name, "--source", str(tmp_path / file), *flags, "--out", str(out)]
    assert main(command) == 0, capsys.readouterr().err
    assert [document.text for document in corpus.read([out], TextConfig(), print)] == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_truncated_or_another_file_is_one_line(capsys, tmp_path, name):
    """Cut in half where it is packed; else a picture where text should be."""
    file, content, flags, _ = PUBLISHED[name]
    source = tmp_path / file
    source.parent.mkdir(parents=True, exist_ok=True)
    packed = not file.endswith(".txt")
    source.write_bytes(content[: len(content) // 2] if packed else b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    out = tmp_path / "out"
    code = main(["prepare", name, "--source", str(source), *flags, "--out", str(out)])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and file.rpartition("/")[2] in said[-1], said
    assert not out.exists()
