"""Beam for real: DirectRunner in memory and in processes, and the portability framework."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

pytest.importorskip("apache_beam", reason="make test-beam installs it")

from apache_beam.io.localfilesystem import LocalFileSystem

from tsuzuri import corpus, features, tokenizer
from tsuzuri.config import FeaturesConfig, TextConfig
from tsuzuri.corpus import tales
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.prepare import prepare
from tsuzuri.errors import UserError
from tsuzuri.features import beam, packing
from tsuzuri.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
IN_MEMORY = ["--runner=DirectRunner", "--direct_running_mode=in_memory"]
PROCESSES = ["--runner=DirectRunner", "--direct_running_mode=multi_processing",
             "--direct_num_workers=2"]  # fmt: skip
PORTABLE = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """60 files: one empty, one long, one twice, an archive's worth in .jsonl."""
    folder = tmp_path_factory.mktemp("texts")
    for number, document in enumerate(tales.documents(count=60)):
        (folder / f"{number:02}.txt").write_text(document.text)
    (folder / "07.txt").write_text("")
    (folder / "09.txt").write_text((folder / "08.txt").read_text())
    (folder / "30.txt").write_text("長い話。" * 3000)
    (folder / "lines.jsonl").write_text(
        "".join(f'{{"text": "{i}番目の短い話"}}\n' for i in range(50))
    )
    return folder


def rows(folder, split):
    """The rows of a split as a multiset, sorted."""
    found = []
    for path in sorted(folder.glob(f"{split}-*.parquet")):
        columns = pq.read_table(path).to_pydict()
        found += list(zip(*(map(tuple, values) for values in columns.values()), strict=True))
    return sorted(found)


def both(tmp_path, sources, cfg, flags=IN_MEMORY, length=32, text=None, tok=BYTES, say=print):
    text = text or TextConfig()
    sources = [str(source) for source in sources]
    args = (tok, tmp_path / "local", length, cfg, 3, {"of": "a test"}, say, False)
    here = features.featurize(lambda: corpus.read(sources, text, say), *args)
    there = beam.featurize(
        sources, text, tok, str(tmp_path / "beam"), length, cfg, 3, {"of": "a test"}, say, flags
    )
    return here, there


def assert_same(tmp_path, here, there):
    for split in ("train", "held_out"):
        assert rows(tmp_path / "local", split) == rows(tmp_path / "beam", split) != []
        a, b = (dict(found["splits"][split]) for found in (here, there))
        bits, same = a.pop("entropy_bits"), b.pop("entropy_bits")
        assert bits == same or bits == pytest.approx(same, rel=1e-12)
        assert {**a, "files": 0} == {**b, "files": 0}
    same = ("packing", "sequence_length", "stride", "min_length", "seed", "held_out", "tokenizer")
    assert all(here[key] == there[key] for key in same)
    assert features.read_features(tmp_path / "beam") == there
    assert tokenizer.load(tmp_path / "beam" / "tokenizer").fingerprint == BYTES.fingerprint
    assert not list((tmp_path / "beam").rglob("*.partial"))


PACKINGS = [
    {},
    {"packing": "packed"},
    {"packing": "document", "stride": 11, "min_length": 5},
]


@pytest.mark.parametrize("options", PACKINGS)
@pytest.mark.parametrize("small", [False, True])
def test_rows_equal_the_local_runners(tmp_path, texts, options, small, monkeypatch):
    """Also with chunks, groups and files so small that every border is crossed."""
    if small:
        monkeypatch.setattr(beam, "_CHUNK", 700)
        monkeypatch.setattr(beam, "_FILE", 3000)
        monkeypatch.setattr(packing, "_GROUP", 1000)
    here, there = both(tmp_path, [texts], FeaturesConfig(held_out=0.1, **options))
    assert_same(tmp_path, here, there)
    if small:
        assert len(there["splits"]["train"]["files"]) > 3


class Apart(ByteTokenizer):
    """BOS and EOS are two ids."""

    begin_of_text = 258
    vocab_size = property(lambda self: 259, lambda self, value: None)


@pytest.mark.parametrize("options", PACKINGS[:2])
def test_rows_with_a_bos_of_its_own(tmp_path, texts, options, monkeypatch):
    monkeypatch.setattr(beam, "_CHUNK", 700)
    monkeypatch.setattr(beam, "_FILE", 3000)
    monkeypatch.setattr(packing, "_GROUP", 1000)
    monkeypatch.setattr(beam._Plan, "load_tokenizer", lambda self: Apart())
    both(tmp_path, [texts], FeaturesConfig(held_out=0.1, **options), tok=Apart())
    for split in ("train", "held_out"):
        assert rows(tmp_path / "local", split) == rows(tmp_path / "beam", split) != []


@pytest.mark.parametrize("flags", [PROCESSES, PORTABLE], ids=["processes", "portable"])
def test_other_runners(tmp_path, texts, flags):
    here, there = both(tmp_path, [texts], FeaturesConfig(held_out=0.1), flags)
    assert_same(tmp_path, here, there)


def test_a_prepared_corpus_cleaned_and_deduplicated(tmp_path, texts, monkeypatch):
    """Pieces of a document lie in several row groups; entropies add up to the same."""
    monkeypatch.setattr("tsuzuri.corpus.prepare._GROUP", 2000)
    monkeypatch.setattr("tsuzuri.corpus.prepare._FILE", 5000)
    monkeypatch.setattr(beam, "_CHUNK", 900)
    told = list(tales.documents(count=50))
    long = [Document("か\u3099" * 1500, continues=True, entropy_bits=1.0)] * 4
    long.append(Document("終わり", entropy_bits=0.5))
    documents = [*told[:30], *long, *told[20:50], Document("短", entropy_bits=1.0), *told[:5]]
    prepare(documents, tmp_path / "corpus", {"name": "a test"}, print)
    assert len(list((tmp_path / "corpus").glob("*.parquet"))) > 3
    said = []
    text = TextConfig(normalize="NFC", min_characters=5, deduplicate=True)
    cfg = FeaturesConfig(held_out=0.1)
    here, there = both(tmp_path, [tmp_path / "corpus"], cfg, text=text, say=said.append)
    assert_same(tmp_path, here, there)
    assert sum(split["documents"] for split in there["splits"].values()) == 51
    assert "15 as duplicates (3,035 characters), 1 as too short (1 characters)" in said[0]


class Remote(LocalFileSystem):
    """A file system that only Beam knows: remote://tmp/a is /tmp/a."""

    @classmethod
    def scheme(cls):
        return "remote"

    def _path(self, url):
        return url.removeprefix("remote:/")

    def open(self, path, *args, **options):
        return super().open(self._path(path), *args, **options)

    def create(self, path, *args, **options):
        path = self._path(path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # objects need no folder
        return super().create(path, *args, **options)

    def exists(self, path):
        return super().exists(self._path(path))

    def rename(self, sources, targets):
        super().rename([*map(self._path, sources)], [*map(self._path, targets)])

    def delete(self, paths):
        for path in paths:
            Path(self._path(path)).unlink()

    def match(self, patterns, limits=None):
        found = super().match([*map(self._path, patterns)], limits)
        for result in found:
            result.pattern = "remote:/" + result.pattern
            for file in result.metadata_list:
                file.path = "remote:/" + file.path
        return found


def test_sources_and_features_of_a_file_system_that_is_not_local(tmp_path, texts):
    prepare(tales.documents(count=30), tmp_path / "corpus", {"name": "a test"}, print)
    for source in (texts, tmp_path / "corpus"):
        cfg, out = FeaturesConfig(held_out=0.1), tmp_path / f"of {source.name}"
        args = (TextConfig(), BYTES, f"remote:/{out}", 32, cfg, 3, {}, print, IN_MEMORY)
        found = beam.featurize([f"remote:/{source}"], *args)
        local = (BYTES, tmp_path / f"local {source.name}", 32, cfg, 3, {}, print, False)
        features.featurize(lambda s=source: corpus.read([s], TextConfig(), print), *local)
        assert features.read_features(out) == found
        for split in ("train", "held_out"):
            assert rows(out, split) == rows(tmp_path / f"local {source.name}", split) != []
        assert tokenizer.load(out / "tokenizer").fingerprint == BYTES.fingerprint
        assert {path.name for path in out.glob("*.json")} == {"features.json"}
        with pytest.raises(UserError, match="is there already"):
            beam.featurize([f"remote:/{source}"], *args)
    with pytest.raises(UserError, match="remote://nowhere: no such file"):
        beam.featurize(["remote://nowhere"], *args)


@pytest.mark.parametrize("flags", [IN_MEMORY, PROCESSES], ids=["memory", "processes"])
def test_what_a_worker_finds_wrong_is_one_line(tmp_path, texts, flags):
    for text in texts.iterdir():
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / text.name).write_bytes(text.read_bytes())
    (tmp_path / "bad" / "55.txt").write_bytes("良い".encode() * 90 + b"\xff\xfe bad")
    args = (TextConfig(encoding="utf-8"), BYTES, str(tmp_path / "f"), 32, FeaturesConfig(), 0, {})
    with pytest.raises(UserError, match=r"55\.txt: byte 540 is not utf-8") as caught:
        beam.featurize([str(tmp_path / "bad")], *args, print, flags)
    assert "\n" not in str(caught.value) and "running" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_too_few_documents_and_folders_that_are_taken(tmp_path, texts):
    args = (TextConfig(), BYTES, str(tmp_path / "f"), 32, FeaturesConfig(), 0, {}, print, IN_MEMORY)
    with pytest.raises(UserError, match="3 documents are too few"):
        beam.featurize([str(texts / f"0{i}.txt") for i in range(3)], *args)
    with pytest.raises(UserError, match="no such file"):
        beam.featurize([str(texts / "none.txt")], *args)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "mine").touch()
    with pytest.raises(UserError, match="is there already"):
        beam.featurize([str(texts)], *args)
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["mine"]
    (tmp_path / "f" / "mine").rename(tmp_path / "f" / "features.json")
    with pytest.raises(UserError, match="holds features"):
        beam.featurize([str(texts)], *args)


def test_a_worker_killed_midway_leaves_no_half_features(tmp_path):
    """kill -9 of one of the worker processes: one line, and nothing is left."""
    BYTES.save(tmp_path / "tok")
    (tmp_path / "many").mkdir()
    for number in range(40):
        (tmp_path / "many" / f"{number}.txt").write_text("むかしむかしのはなし。" * 20_000)
    out = tmp_path / "f"
    command = ["featurize", tmp_path / "many", "--tokenizer", tmp_path / "tok", "--out", out]
    command += ["--runner", "beam", "--", *PROCESSES]
    process = subprocess.Popen(
        [sys.executable, "-m", "tsuzuri.cli", *map(str, command)], stderr=subprocess.PIPE, text=True
    )

    def workers():
        children = psutil.Process(process.pid).children(recursive=True)
        found = [child for child in children if "sdk_worker_main" in " ".join(child.cmdline())]
        return [child for child in found if not child.cmdline()[0].endswith("sh")]

    while process.poll() is None and not workers():
        time.sleep(0.05)
    time.sleep(1.5)  # they are at work
    assert process.poll() is None and not out.exists()
    workers()[0].kill()  # DirectRunner would wait for ever for it, and then for the other
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    assert said.strip().splitlines()[-1].startswith("tsuzuri: a Beam worker died (")
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "tok"]
