"""The Hugging Face hub, played by a server on this machine: `datasets` itself does the asking."""

import hashlib
import http.server
import io
import json
import lzma
import os
import re
import subprocess
import sys
import threading
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri.corpus import CORPORA, hub, listing, named, splits
from tsuzuri.corpus.document import Document
from tsuzuri.errors import UserError

COMMIT = "c" * 40
CARD = """\
---
configs:
- config_name: small
  data_files: [{split: train, path: train-*}, {split: test, path: test-*}]
- config_name: large
  data_files: [{split: train, path: train-*}]
dataset_info:
- config_name: small
  splits: [{name: train, num_examples: 10}]
- config_name: large
---
"""


def parquet(rows) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


ROWS = [{"text": f"文{i}", "id": str(i), "n": i} for i in range(10)]
PARAGRAPHS = "一\n二\n\n三\n\n"
REPOSITORIES = {
    "me/tiny": {
        "README.md": CARD.encode(),
        "train-0.parquet": parquet(ROWS[:4]),
        "train-1.parquet": parquet(ROWS[4:]),
        "test-0.parquet": parquet([{"text": "終", "id": "x", "n": 0}]),
    },
    "billion-word-benchmark/lm1b": {  # as refs/convert/parquet has it
        "plain_text/train/0000.parquet": parquet([{"text": "One ."}, {"text": "Two ."}]),
        "plain_text/test/0000.parquet": parquet([{"text": "Held out ."}]),
    },
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of https://huggingface.co/docs/hub/api as streaming takes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = urlsplit(self.path).path
        if path == "/ja.txt.xz":
            self.reply(200, lzma.compress(PARAGRAPHS.encode()))
        elif file := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            files = REPOSITORIES.get(file[1])
            if files is None or unquote(file[2]) not in files:
                self.reply(404, error="EntryNotFound" if files else "RepoNotFound")
            else:
                self.reply(200, files[unquote(file[2])])
        elif tree := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/[^/]+/?(.*)", path):
            found = self.listed(REPOSITORIES[tree[1]], unquote(tree[2]))
            self.reply(200, json.dumps(found).encode())
        elif re.match(r"/api/datasets/([^/]+/[^/]+)", path):
            about = {"id": "x/y", "sha": COMMIT, "siblings": [], "tags": []}
            self.reply(200, json.dumps(about).encode())
        else:
            self.reply(404)

    do_HEAD = do_GET

    def listed(self, files, folder):
        found = {}
        for name, content in files.items():
            path = PurePosixPath(name)
            for parent in path.parents[:-1]:
                found[parent] = {"type": "directory"}
            found[path] = {"type": "file", "size": len(content)}
        return [
            {**kind, "path": str(path), "oid": COMMIT}
            for path, kind in found.items()
            if path.parent == PurePosixPath(folder)
        ]

    def reply(self, status, body=b"", error=""):
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        size = len(body)
        if wanted and status == 200:
            first, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
            status, body = 206, body[first : last + 1]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


# Runs in a process of its own, since HF_ENDPOINT is read when `datasets` is imported. Each line of
# stdin is Python; each line of stdout what became of it.
RUNNER = """
import json, sys
from tsuzuri.corpus import CORPORA, cc100, hub, named
from tsuzuri.errors import UserError
publisher, say = sys.argv[1], lambda told: None
for line in sys.stdin:
    try:
        answer = list(eval(line))
    except UserError as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """Evaluates expressions in a process for which the hub is the server above."""
    pytest.importorskip("datasets")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port, home = server.server_port, str(tmp_path_factory.mktemp("hub"))
        environment = {key: value for key, value in os.environ.items() if key[:3] != "HF_"}
        with subprocess.Popen(
            [sys.executable, "-c", RUNNER, f"http://localhost:{port}"],
            env=environment | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": home},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as runner:

            def evaluate(expression):
                runner.stdin.write(expression + "\n")
                runner.stdin.flush()
                return json.loads(runner.stdout.readline())

            yield evaluate
            said = runner.communicate(timeout=60)
        server.shutdown()
    assert said == ("", "")  # the libraries tell the user nothing of their own


def rows(*arguments) -> str:
    return f"hub.rows(*{arguments!r}, bring='bring it')"


def documents(corpus: str, **options) -> str:
    found = f"{corpus}.documents(say=say, **{options!r})"
    return f"[[document.text, dict(document.metadata)] for document in {found}]"


def test_rows(online):
    assert online(rows("me/tiny", "small", "train")) == ROWS
    assert online(rows("me/tiny", "small", "train[-2:]")) == ROWS[-2:]
    assert online(rows("me/tiny", "large", "train[2:5]")) == ROWS[2:5]
    both = online(rows("me/tiny", "small", "train[:30%]+test"))
    assert both == [*ROWS[:3], {"text": "終", "id": "x", "n": 0}]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("me/tiny", "large", "train[:50%]"), "train of me/tiny/large has is not known; count"),
        (("me/tiny", "huge", "train"), "'huge' not found. Available: ['small', 'large']"),
        (("me/tiny", None, "train"), "pick one among the available configs: ['small', 'large']"),
        (("me/tiny", "small", "dev"), "--split dev: me/tiny/small has no such split; it has train"),
        (("me/none", None, "train"), "'me/none' doesn't exist on the Hub"),
        (("me/tiny/small", None, "train"), "me/tiny/small: cannot be had"),
    ],
)
def test_what_the_hub_has_not(online, arguments, told):
    error = online(rows(*arguments))
    assert told in error and error.endswith("bring it") and "\n" not in error


def test_documents(online):
    tiny = "named('hf:me/tiny/small')"
    assert online(documents(tiny, split="train[:1]")) == [["文0", {"id": "0"}]]
    assert online(documents(tiny, field="id", split="test")) == [["x", {"text": "終"}]]
    error = online(documents(tiny, field="n"))
    assert error == (
        "me/tiny: the field 'n' holds no string; give --field, one of those that do: text, id"
    )
    lm1b = "CORPORA['lm1b']"
    assert online(documents(lm1b, split="test")) == [["Held out .", {}]]
    assert online(documents(lm1b, split="train[1:]")) == [["Two .", {}]]


def test_a_publishers_own_address(online):
    pytest.importorskip("aiohttp")
    online("setattr(cc100, '_ADDRESS', publisher + '/ja.txt.xz') or []")
    cc100 = "CORPORA['cc100-ja']"
    assert online(documents(cc100)) == [["一\n二", {}], ["三", {}]]
    assert online(documents(cc100, split="train[1:]")) == [["三", {}]]
    online("setattr(cc100, '_ADDRESS', publisher + '/gone.txt.xz') or []")
    assert "gone.txt.xz: cannot be had" in online(documents(cc100))
    online("setattr(cc100, '_ADDRESS', 'http://127.0.0.1:9/ja.txt.xz') or []")
    error = online(documents(cc100))
    assert error.startswith("http://127.0.0.1:9/ja.txt.xz: cannot be reached (")
    assert error.endswith(f"bring {CORPORA['cc100-ja'].bring} and give --source")


def test_without_a_network(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:9: cannot be reached") as error:
        next(CORPORA["wiki40b-ja"].documents(say=print))
    assert str(error.value).endswith(f"bring {CORPORA['wiki40b-ja'].bring} and give --source")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'tsuzuri\[hub\]', or bring it"):
        next(hub.rows("me/tiny", None, "train", bring="bring it"))


def numbered(count: int, piece: int):
    """Documents in pieces, of which a slice takes all or none."""
    for number in range(count):
        for part in range(piece):
            yield Document(f"{number}.{part}", continues=part < piece - 1)


@settings(deadline=None)
@given(st.integers(0, 250), st.integers(0, 100), st.integers(1, 3))
def test_shares_part_a_split(count, share, piece):
    def cut(split):
        return list(splits.select(split, lambda name: numbered(count, piece)))

    assert cut(f"train[:{share}%]") + cut(f"train[{share}%:]") == cut("train")
    assert cut(f"a[:{share}%]+b[{share}%:]") == cut("train")


BOUND = st.one_of(st.just(""), st.integers(-300, 300).map(str))
SHARE = st.one_of(st.just(""), st.integers(-100, 100).map(lambda share: f"{share}%"))


@settings(deadline=None)
@given(st.integers(1, 250), st.one_of(st.tuples(BOUND, BOUND), st.tuples(SHARE, SHARE)))
def test_slices_are_those_of_datasets(count, bounds):
    arrow_reader = pytest.importorskip("datasets.arrow_reader")
    split = "train[{}:{}]".format(*bounds)
    (theirs,) = arrow_reader.ReadInstruction.from_spec(split).to_absolute({"train": count})
    ours = [d.text for d in splits.select(split, lambda name: numbered(count, 1))]
    assert ours == [f"{number}.0" for number in range(theirs.from_, theirs.to)]


@pytest.mark.parametrize("split", ["", "train[", "train[:1.5]", "train[:101%]", "train+", "a b"])
def test_what_is_no_split(split):
    with pytest.raises(UserError, match="it is such as train, "):
        splits.parse(split)


def test_names():
    assert named("hf:me/tiny").fixed == {"dataset": "me/tiny", "config": None}
    assert named("hf:me/tiny/a/b").fixed == {"dataset": "me/tiny", "config": "a/b"}
    assert named("hf:squad").fixed == {"dataset": "squad", "config": None}
    for wrong in ("hf:", "hf:me/", "hf:me//x"):
        with pytest.raises(UserError, match="hf:OWNER/NAME"):
            named(wrong)


def test_the_listing_tells_all_and_fits():
    lines = listing().splitlines()
    assert max(map(len, lines)) <= 100
    for name, corpus in CORPORA.items():
        assert f"{name}  ({corpus.language}, {corpus.size})" in lines
