"""Text on disk to documents: nothing changed, nothing lost without a word."""

import gzip
import io
import itertools
import json
import lzma
import os
import random
import tarfile
import tracemalloc
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tsuzuri.config import TextConfig
from tsuzuri.corpus import records, text_files
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.text_files import fingerprint, read
from tsuzuri.errors import UserError

TEXT = "吾輩は猫である。\r\n名前はまだ無い。\n　①　😀　か\u3099\n\n「ｶﾅ」\r終わり"
PACK = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def texts(*sources, said=None, **config) -> list[str]:
    """The whole documents, their pieces joined."""
    said = [] if said is None else said
    whole = [""]
    for document in read(sources, TextConfig(**config), said.append):
        assert 0 < len(document.text) <= text_files.PIECE
        whole[-1] += document.text
        if not document.continues:
            whole.append("")
    assert whole.pop() == "", "the last piece says that it continues"
    return whole


def refusal(*sources, **config) -> str:
    with pytest.raises(UserError) as error:
        texts(*sources, **config)
    message = str(error.value)
    assert "\n" not in message
    return message


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def parquet_of(columns: dict, **options) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **options)
    return out.getvalue()


def jsonl_of(*records) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


# ------------------------------------------------------------------------------------- containers


@pytest.mark.parametrize("suffix", ["", *PACK])
@pytest.mark.parametrize("name", ["a.txt", "a", "a.md"])
def test_a_text_file_comes_back_as_it_was(tmp_path, name, suffix):
    path = tmp_path / (name + suffix)
    path.write_bytes(PACK.get(suffix, bytes)(TEXT.encode()))
    assert texts(path) == [TEXT]


@pytest.mark.parametrize("suffix", ["", *PACK])
def test_jsonl_and_parquet(tmp_path, suffix):
    lines = jsonl_of({"text": TEXT, "title": "猫", "year": 1905}, {"text": "次"}, {"text": ""})
    (tmp_path / f"a.jsonl{suffix}").write_bytes(PACK.get(suffix, bytes)(lines + b"\n"))
    table = parquet_of({"id": [1, 2, 3], "body": [TEXT, None, "次"]})
    (tmp_path / f"b.parquet{suffix}").write_bytes(PACK.get(suffix, bytes)(table))
    assert texts(tmp_path / f"a.jsonl{suffix}") == [TEXT, "次"]
    assert texts(tmp_path / f"b.parquet{suffix}", field="body") == [TEXT, "次"]
    first = next(read([tmp_path / f"a.jsonl{suffix}"], TextConfig(), print))
    assert first == Document(TEXT, {"title": "猫"})


def test_folders_and_archives_nest_and_keep_their_order(tmp_path):
    files = {
        "b/2.txt": "二".encode(),
        "b/3.jsonl.gz": gzip.compress(jsonl_of({"text": "三"})),
        "c/4.parquet": parquet_of({"text": ["四"]}),
        "c/.hidden.txt": b"\0",
        ".git/x.txt": b"\0",
        "__MACOSX/x.txt": b"\0",
        "d/5.zip": zip_of({"x/5.txt": "五".encode(), "x/.y": b"\0"}),
        "e/6.tar.xz": lzma.compress(tar_of({"./6.txt": "六".encode()})),
    }
    folder = tmp_path / "folder"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (tmp_path / "a.tar.zst").write_bytes(PACK[".zst"](tar_of(files)))
    (tmp_path / "a.tgz").write_bytes(gzip.compress(tar_of(files)))
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    (tmp_path / "a.zip").write_bytes(zip_of(files))
    sources = [folder, *(tmp_path / f"a{s}" for s in (".tar.zst", ".tgz", ".tar", ".zip"))]
    for source in sources:
        assert texts(source) == list("二三四五六"), source
    assert texts(*sources) == list("二三四五六") * 5


@pytest.mark.parametrize("kind", [".gz", ".xz", ".zst", ".zip", ".tar.gz", ".tar.xz", ".parquet"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, kind):
    noise = random.Random(0).randbytes(3000).hex()
    match kind:
        case ".zip":
            whole = zip_of({"a.txt": noise.encode()})
        case ".parquet":
            whole = parquet_of({"text": [noise]})
        case _:
            content = tar_of({"a.txt": noise.encode()}) if "tar" in kind else noise.encode()
            whole = PACK["." + kind.rsplit(".")[-1]](content)
    path = tmp_path / f"a.txt{kind}"
    path.write_bytes(whole)
    assert texts(path) == [noise]
    for length in [1, 5, 20, *range(100, len(whole), 333), len(whole) - 5, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert str(path) in refusal(path), length


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst", ".zip", ".tar", ".parquet"])
def test_a_file_that_is_not_what_its_name_says(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("this is not it, though it is long enough to be read as a header" * 20)
    assert str(path) in refusal(path)


def test_absent_empty_and_nothing(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.txt")
    assert "empty folder" in refusal(tmp_path)
    (tmp_path / "a.txt").touch()
    assert "empty" in refusal(tmp_path / "a.txt")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b""))
    assert "empty" in refusal(tmp_path)
    (tmp_path / "c.txt").write_text("\ufeff")
    assert "empty" in refusal(tmp_path / "c.txt")
    assert "no text given" in refusal()
    (tmp_path / "d.txt").write_text("字")
    assert texts(tmp_path) == ["字"], "one empty file of many is no harm"


@pytest.mark.parametrize("codec", ["cp932", "utf-8"])
def test_names_in_a_zip_that_does_not_say_their_encoding(tmp_path, codec):
    """Windows in Japan writes cp932, and macOS UTF-8, without the flag for it."""
    name = "雪国/表.txt".encode(codec)
    content = zip_of({"x" * len(name): b"\xff"}).replace(b"x" * len(name), name)
    (tmp_path / "a.zip").write_bytes(content)
    assert f"{tmp_path}/a.zip/雪国/表.txt: byte 0" in refusal(tmp_path / "a.zip")


def test_a_zip_whose_name_is_damaged_is_refused(tmp_path):
    content = zip_of({"雪国.txt": b"abc"}).replace("雪国".encode(), b"\xff" * 6)
    (tmp_path / "a.zip").write_bytes(content)
    assert "a.zip: damaged" in refusal(tmp_path / "a.zip")


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe; text is read several times" in refusal(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe"):
        fingerprint([tmp_path / "pipe"], TextConfig())


def test_a_folder_in_a_circle(tmp_path):
    (tmp_path / "a.txt").write_text("字")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    assert texts(tmp_path) == ["字"]
    assert "no such file" in refusal(tmp_path / "itself")


def test_a_file_that_vanishes_is_named(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    documents = read([tmp_path], TextConfig(), print)
    next(documents)
    (tmp_path / "b").unlink()
    with pytest.raises(UserError, match="b: cannot be read"):
        next(documents)


def test_a_zip_with_a_password_is_refused(tmp_path):
    content = bytearray(zip_of({"a.txt": b"abc"}))
    content[6] |= 1  # the flag of encryption, in the local header and in the directory
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert "cannot be unpacked" in refusal(tmp_path / "a.zip")


# -------------------------------------------------------------------------------------- encodings


JAPANESE = "国境の長いトンネルを抜けると雪国であった。\r\n夜の底が白くなった。ｶﾅ①～\n"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp932", "euc_jp"]
)
def test_auto_reads_what_is_unambiguous_and_says_it(tmp_path, encoding):
    text = JAPANESE.replace("①～", "") if encoding == "euc_jp" else JAPANESE
    data = text.encode(encoding)
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xfe\xff" + data if encoding == "utf-16-be" else data)
    said = []
    assert texts(path, said=said) == [text]
    assert len(said) == (encoding != "utf-8")
    assert texts(path, path, encoding="UTF_8" if "8" in encoding else encoding) == [text, text]


def test_each_encoding_is_said_once_a_source(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(JAPANESE.encode("cp932"))
    said = []
    assert texts(tmp_path, said=said) == [JAPANESE] * 3
    assert len(said) == 1 and "cp932" in said[0] and str(tmp_path / "a") in said[0]


@pytest.mark.parametrize(
    "data",
    [
        "ｱｲｳｴｵ ｶﾀｶﾅ".encode("cp932"),  # also EUC-JP, as kanji
        "そうだ".encode("cp932")[:1],
        "it\u2019s a “quoted” line\n".encode("cp1252") * 3,  # also cp932, with kanji
        "café à la crème".encode("latin-1"),
        "國破山河在".encode("euc_jp"),  # no kana
        "Привет, мир".encode("cp1251"),
        "今天天气很好".encode("gb2312"),
        "今天天氣很好".encode("big5"),
    ],
)
def test_auto_guesses_nothing(tmp_path, data):
    path = tmp_path / "a.txt"
    path.write_bytes(b"plain\n" + data)
    with pytest.raises(UnicodeDecodeError) as error:
        path.read_text(encoding="utf-8")
    message = refusal(path)
    assert f"byte {error.value.start} " in message and "--encoding" in message


@given(
    st.text("ぁあいうんアン亜漢字、。「」ー 　a\n0", min_size=1, max_size=60),
    st.sampled_from(["cp932", "euc_jp"]),
)
@settings(max_examples=150, deadline=None)
def test_auto_is_right_or_silent(tmp_path_factory, text, encoding):
    data = text.encode(encoding)
    try:
        data.decode("utf-8")
        assume(False)
    except UnicodeDecodeError:
        pass
    path = tmp_path_factory.mktemp("auto") / "a.txt"
    path.write_bytes(data)
    kana = sum("ぁ" <= character <= "ヶ" for character in text)
    try:
        assert texts(path) == [text]
    except UserError:
        assert kana < 0.1 * len(text.encode("ascii", "ignore")) or kana < 0.1 * len(text)


@pytest.mark.parametrize(
    ("encoding", "wrong"), [("utf-8", b"\xff"), ("cp932", b"\x81\x20"), ("euc_jp", b"\xff")]
)
@pytest.mark.parametrize("at", [0, 100, (1 << 20) - 2, (4 << 20) - 1, 5 << 20])
def test_a_wrong_byte_is_named(tmp_path, encoding, wrong, at):
    character = "あ".encode(encoding)
    data = bytearray(character * ((6 << 20) // len(character)))
    at -= at % len(character)
    data[at : at + len(wrong)] = wrong
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert f"byte {at} is not {encoding}" in refusal(path, encoding=encoding)
    path.write_bytes("日本".encode(encoding)[:-1])
    assert f"byte {len('日'.encode(encoding))} " in refusal(path, encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp932"])
def test_a_nul_is_named(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(("日本" + "\0" + "語").encode(encoding))
    at = len("日本".encode(encoding))
    assert f"NUL at byte {at};" in refusal(path, encoding=encoding)
    assert "NUL at byte" in refusal(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    assert "NUL at byte 8;" in refusal(path)


def test_what_auto_would_take_for_ascii(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(("mail:\n" + JAPANESE[:20]).encode("iso2022_jp"))
    assert "byte 6 begins Japanese in ISO-2022-JP" in refusal(path)
    path.write_bytes(b"a \x1b[31mred\x1b[0m log")
    assert texts(path) == ["a \x1b[31mred\x1b[0m log"]
    path.write_bytes("abc".encode("utf-16-le"))
    assert "NUL at byte 1" in refusal(path) and "--encoding utf-16-le" in refusal(path)
    assert texts(path, encoding="utf-16-le") == ["abc"]


def test_wrong_and_unknown_encodings(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(JAPANESE, encoding="utf-8")
    assert "byte 0" in refusal(path, encoding="utf-16")
    assert "cp932" in refusal(path, encoding="cp932")
    assert "unknown; it is auto or one of utf-8" in refusal(path, encoding="klingon")
    path.write_bytes("あ".encode("utf-16-le") + b"\x00\xd8\x42\x30")  # half a surrogate pair
    assert "byte 2 is not utf-16-le" in refusal(path, encoding="utf-16-le")


# -------------------------------------------------------------------------------------- documents


def test_a_separator_ends_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n<|e|>\ntwo<|e|>\r\n\r\nthree\n<|e|><|e|>\n")
    assert texts(path, document_separator="<|e|>") == ["one\n", "two", "\r\nthree\n"]
    assert texts(path) == [path.read_bytes().decode()]
    assert texts(path, document_separator=".*") == [path.read_bytes().decode()]


def test_a_separator_that_ends_no_document_is_said(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    assert texts(path, said=(said := []), document_separator="\n\n") == ["one", "two\n"]
    assert said == []
    whole = path.read_text()
    assert texts(path, said=said, document_separator=r"\n\n") == [whole], "as shells give it"
    assert said == [rf"{path}: the separator '\\n\\n' is nowhere in it, so it is one document"]


@given(
    st.text("ab#\n\r\u3099", max_size=120),
    st.sampled_from(["#", "##", "#\n", "ab"]),
    st.integers(1, 9),
    st.integers(4, 30),
)
@settings(max_examples=300, deadline=None)
def test_parting_a_stream_is_parting_the_whole(text, separator, chunk, piece):
    chunks = [text[i : i + chunk] for i in range(0, len(text), chunk)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE", piece)
        documents, held, said = [], "", []
        for document in text_files._documents(iter(chunks), separator, said.append):
            assert 0 < len(document.text) <= piece
            held += document.text
            if not document.continues:
                documents.append(held)
                held = ""
        assert held == ""
        plain = list(text_files._documents(iter(chunks), "", said.append))
    assert len(said) == (bool(text) and separator not in text)
    assert documents == _parted(text, separator)
    assert "".join(document.text for document in plain) == text
    assert [document.continues for document in plain[-1:]] == [False] * bool(text)
    for before, after in itertools.pairwise(plain):
        assert not (before.text.endswith("\r") and after.text.startswith("\n"))


def _parted(text: str, separator: str) -> list[str]:
    documents, start = [], 0
    while (at := text.find(separator, start)) >= 0:
        documents.append(text[start:at])
        start = at + len(separator)
        for newline in ("\r\n", "\n"):
            if text.startswith(newline, start):
                start += len(newline)
                break
    return [document for document in [*documents, text[start:]] if document]


def test_a_long_line_is_cut_between_characters(tmp_path):
    line = "か\u3099" * 1_700_000 + "🇯🇵e\u0301" * 300_000
    (tmp_path / "a.txt").write_text(line)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": line, "t": "x"}))
    for name in ("a.txt", "a.jsonl"):
        assert texts(tmp_path / name) == [line]
        pieces = list(read([tmp_path / name], TextConfig(), print))
        assert len(pieces) > 4
        assert not any(piece.text[0] in "\u3099\u0301" for piece in pieces)
    assert all(piece.metadata == {"t": "x"} for piece in pieces)


def test_pieces_end_after_lines(tmp_path):
    (tmp_path / "a.txt").write_text("一行。\n" * 700_000)
    pieces = list(read([tmp_path / "a.txt"], TextConfig(), print))
    assert len(pieces) == 3 and all(piece.text.endswith("\n") for piece in pieces)


def test_memory_is_bounded(tmp_path):
    path = tmp_path / "a.txt.gz"
    with gzip.open(path, "wb", 1) as file:
        for _ in range(60):
            file.write("一行の文。\n".encode() * 65536)  # 60 MiB
    tracemalloc.start()
    count = sum(len(document.text) for document in read([path], TextConfig(), print))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60 * 65536 * 6
    assert peak < 24 << 20


# ---------------------------------------------------------------------------- .jsonl and .parquet


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (b'{"text": "a"', "a.jsonl:2: not a line of JSON"),
        (b'["a"]', "a.jsonl:2: not a JSON object"),
        (
            b'{"body": "a", "n": 1}',
            "'text' is not there; give --field, one of those that do: body",
        ),
        (b'{"text": 1}', "'text' holds no string"),
        (
            b'{"text": "ab\\ud800c"}',
            "a.jsonl:2, field 'text': half of a surrogate pair at character 2",
        ),
        (b'{"text": "ab\\u0000c"}', "a.jsonl:2, field 'text': a NUL at character 2"),
        (b'{"text": "\xff"}', "a.jsonl:2: not a line of JSON"),
        (b"[" * 100_000, "a.jsonl:2: not a line of JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, hint):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "a"}\n')
    assert hint in refusal(path)


def test_a_line_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_LINE", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl_of({"text": "a" * 900}, {"text": "a" * 1100}))
    assert "a.jsonl:2: longer than" in refusal(path)


def test_a_bad_column_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_of({"id": [1], "body": ["a"], "tags": [["x"]]}))
    assert "'text' is not there; give --field, one of those that do: body" in refusal(path)
    assert "'tags' holds no string" in refusal(path, field="tags")
    path.write_bytes(parquet_of({"text": ["a", "b\0"]}))
    assert "row 2" in refusal(path)
    path.write_bytes(parquet_of({"text": pa.array(["甲", "乙", "甲"]).dictionary_encode()}))
    assert texts(path) == ["甲", "乙", "甲"]


# ------------------------------------------------------------------------------------ fingerprint


def test_the_fingerprint_is_of_the_contents(tmp_path):
    one, two, folder = tmp_path / "1.txt", tmp_path / "2.txt", tmp_path / "folder"
    one.write_text("abc")
    two.write_text("abc")
    folder.mkdir()
    (folder / "a.txt").write_text("abc")
    text = TextConfig()
    first = fingerprint([one], text)
    assert first == fingerprint([one], text) == fingerprint([two], text)
    assert fingerprint([folder], text) != fingerprint([one, two], text) != first
    assert fingerprint([one], TextConfig(encoding="cp932")) != first
    before = fingerprint([folder], text)
    (folder / "b.txt").write_text("")
    assert fingerprint([folder], text) != before
    one.write_text("abd")
    assert fingerprint([one], text) != first
    with pytest.raises(UserError, match="no such file"):
        fingerprint([tmp_path / "none"], text)


def test_the_fingerprint_of_names_that_are_not_utf8(tmp_path):
    found = []
    for name in ("雪", "国"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / os.fsdecode(name.encode("cp932"))).write_text("字")
        assert texts(folder) == ["字"]
        found.append(fingerprint([folder], TextConfig()))
    assert found[0] != found[1]
