"""A prepared corpus is whole or not there, and what comes out is what went in."""

import json
import random
import resource
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri.config import TextConfig
from tsuzuri.corpus import prepare as module
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.prepare import prepare
from tsuzuri.corpus.text_files import fingerprint, pieces, read
from tsuzuri.errors import RunError, UserError

DOCUMENTS = [
    Document("一つ目。\r\n", {"title": "甲", "credits": "底本：本"}, entropy_bits=12.5),
    Document("長い本の前半、", {"title": "乙"}, continues=True, entropy_bits=1.5),
    Document("後半。①😀か\u3099\n", {"title": "乙"}, entropy_bits=2.0),
    Document("無題"),
]


def back(folder) -> list[Document]:
    return list(read([folder], TextConfig(), print))


def refusal(folder) -> str:
    with pytest.raises(UserError) as error:
        back(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_goes_in_comes_out(tmp_path):
    said = []
    out = tmp_path / "deep" / "corpus"
    manifest = prepare(DOCUMENTS, out, {"name": "test", "seed": 0}, said.append)
    assert back(out) == DOCUMENTS
    assert list(read([out / "documents-00000.parquet"], TextConfig(), print)) == DOCUMENTS
    assert manifest == json.loads((out / "corpus.json").read_text())
    assert manifest["documents"] == 3
    assert manifest["characters"] == sum(len(d.text) for d in DOCUMENTS)
    assert manifest["bytes"] == sum(len(d.text.encode()) for d in DOCUMENTS)
    assert manifest["entropy_bits"] is None
    assert manifest["provenance"] == {"name": "test", "seed": 0}
    assert [entry["name"] for entry in manifest["files"]] == ["documents-00000.parquet"]
    assert len(said) == 1 and "3 documents" in said[0]
    known = prepare(DOCUMENTS[:3], tmp_path / "known", {}, said.append)
    assert known["entropy_bits"] == 16.0


@given(
    st.lists(
        st.builds(
            Document,
            st.text(min_size=1),
            st.dictionaries(st.text("abc題", min_size=1), st.text("abc名\n")),
            st.booleans(),
            st.none() | st.floats(0, 1e9),
        ),
        min_size=1,
        max_size=9,
    )
)
@settings(max_examples=25, deadline=None)
def test_any_documents_come_back(tmp_path_factory, documents):
    documents[-1] = Document(documents[-1].text)
    out = tmp_path_factory.mktemp("corpus") / "out"
    prepare(documents, out, {}, lambda _: None)
    assert back(out) == documents


def test_many_groups_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_GROUP", 1000)
    monkeypatch.setattr(module, "_FILE", 5000)
    documents = [Document(f"{i}番。" * 30) for i in range(200)]
    manifest = prepare(documents, tmp_path / "out", {}, print)
    assert len(manifest["files"]) > 5
    assert back(tmp_path / "out") == documents
    (tmp_path / "out" / manifest["files"][2]["name"]).unlink()
    assert "missing" in refusal(tmp_path / "out")


def test_the_same_corpus_is_reused_and_another_is_not_harmed(tmp_path):
    out, said = tmp_path / "out", []
    out.mkdir()
    prepare(DOCUMENTS, out, {"name": "a", "seed": 0}, said.append)
    before = fingerprint([out], TextConfig())

    def never():
        raise AssertionError("the documents were looked at")
        yield

    prepare(never(), out, {"seed": 0, "name": "a"}, said.append)
    assert "already" in said[-1]
    with pytest.raises(UserError, match=r"another corpus \(seed 0 not 1\); choose another --out"):
        prepare(never(), out, {"name": "a", "seed": 1}, said.append)
    assert fingerprint([out], TextConfig()) == before and back(out) == DOCUMENTS
    for manifest in ("[]", "{}", '{"provenance": 3}', '{"provenance": {}}'):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "corpus.json").write_text(manifest)
        with pytest.raises(UserError, match=r"corpus\.json: not the manifest"):
            prepare(never(), tmp_path / "other", {}, said.append)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    for taken in (tmp_path / "full", tmp_path / "full" / "thesis.tex"):
        with pytest.raises(UserError, match="not empty, and not a corpus"):
            prepare(never(), taken, {}, said.append)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"


def test_a_failure_leaves_nothing(tmp_path):
    def broken():
        yield DOCUMENTS[0]
        raise UserError("line 2 is bad")

    with pytest.raises(UserError, match="line 2 is bad"):
        prepare(broken(), tmp_path / "out", {}, print)
    with pytest.raises(UserError, match="not one document"):
        prepare([], tmp_path / "out", {}, print)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        prepare(DOCUMENTS, tmp_path / "file" / "out", {}, print)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_nothing(tmp_path):
    noise = random.Random(0)
    documents = [Document(noise.randbytes(50_000).hex()) for _ in range(4)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(RunError, match="cannot write"):
            prepare(documents, tmp_path / "out", {}, print)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_killed_midway_it_is_not_there(tmp_path):
    program = """
import os, signal, sys
from pathlib import Path
from tsuzuri.corpus import prepare as module
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.prepare import prepare
module._GROUP = module._FILE = 10
def documents():
    for i in range(100):
        if i == 50:
            os.kill(os.getpid(), signal.SIGKILL)
        yield Document("document %d" % i)
prepare(documents(), Path(sys.argv[1]), {}, print)
"""
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", program, str(out)])
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    prepare(DOCUMENTS, out, {}, print)
    assert back(out) == DOCUMENTS


def test_every_damaged_byte_is_noticed(tmp_path):
    out = tmp_path / "out"
    prepare(DOCUMENTS, out, {}, print)
    path = out / "documents-00000.parquet"
    whole = path.read_bytes()
    for at in random.Random(0).sample(range(len(whole)), 60):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        assert f"{path}: damaged" in refusal(out)
    for length in (0, 10, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert f"{path}: cut short" in refusal(out)
    path.write_bytes(whole)
    assert back(out) == DOCUMENTS
    (out / "corpus.json").write_text("{")
    assert "corpus.json: not JSON" in refusal(out)
    (out / "corpus.json").write_text("{}")
    assert "corpus.json: not the manifest" in refusal(out)


def test_pages_carry_checksums(tmp_path):
    out = tmp_path / "out"
    prepare(list(pieces("ある文。" * 20_000)), out, {}, print)
    path = out / "documents-00000.parquet"
    content = bytearray(path.read_bytes())
    found = set()
    for at in range(40, 140, 7):  # inside the first column's page
        content[at] ^= 4
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            list(read([path], TextConfig(), print))
        found.add("CRC" in str(error.value))
        content[at] ^= 4
    assert True in found
