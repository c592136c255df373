"""Text to token ids and back: a tokenizer is trained here, or read from wherever it comes.

The files in reading order: protocol.py says what every tokenizer can do; byte_level.py
holds our own; sentencepiece.py and whitespace.py train the field's others; tiktoken.py and
huggingface.py read ready-made ones; compare.py puts them side by side.
"""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tsuzuri import files
from tsuzuri.config import TokenizerConfig, suggestion
from tsuzuri.errors import UserError
from tsuzuri.tokenizer.byte_level import BPETokenizer, ByteTokenizer
from tsuzuri.tokenizer.protocol import Tokenizer, check_files

__all__ = ["BPETokenizer", "ByteTokenizer", "Tokenizer", "load", "train"]

# The file of this package that reads the folder of each kind, and trains it where it can.
_FILE_OF = {
    "bpe": "byte_level",
    "bytes": "byte_level",
    "unigram": "sentencepiece",
    "sentencepiece-bpe": "sentencepiece",
    "whitespace": "whitespace",
    "gpt2": "tiktoken",
    "cl100k": "tiktoken",
    "o200k": "tiktoken",
    "huggingface": "huggingface",
    "first-two": "first_two",
}
_LARGEST = 1 << 20  # tokens of a vocabulary: four times the largest in use
_NAMES = ("bytes", "gpt2", "r50k", "cl100k", "o200k")


def train(
    texts: Iterator[str], cfg: TokenizerConfig, say: Callable[[str], None], progress: bool
) -> Tokenizer:
    """Makes the tokenizer that `cfg` asks for, from the first `cfg.sample_mb` MB of the texts.

    The same texts give the same tokenizer.

    Raises:
      UserError: the vocabulary cannot hold what it must, or is of no size; there is no text; the
        text holds half of a surrogate pair; the options do not suit the kind.
    """
    if not 0 < cfg.vocab_size <= _LARGEST:
        raise UserError(
            f"--tokenizer.vocab-size {cfg.vocab_size} is no vocabulary's; "
            f"the largest that is made here is {_LARGEST:,}"
        )
    return _file_of(cfg.kind).train(texts, cfg, say, progress)


def load(spec: str | Path) -> Tokenizer:
    """Reads a tokenizer.

    Args:
      spec: a folder that `save` wrote; a tokenizer.json of Hugging Face or a folder that holds one;
        a SentencePiece model (`.model`, or named sentencepiece_model); a `.tiktoken` file of
        OpenAI's; `hf:OWNER/NAME` on the hub; bytes, gpt2, r50k (the same ids), cl100k or o200k. A
        Path is never a name.

    Raises:
      UserError: there is none, it is of a kind unknown here, or it is damaged; it would have to be
        downloaded, and cannot be.
    """
    name, path = str(spec), Path(spec)
    if isinstance(spec, str) and name in _NAMES:
        if name == "bytes":
            return ByteTokenizer()
        return _file_of("gpt2").named("gpt2" if name == "r50k" else name)
    if isinstance(spec, str) and name.startswith("hf:"):
        return _file_of("huggingface").from_hub(name.removeprefix("hf:"))
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise UserError(
            f"{name}: no such file or folder, nor a tokenizer's name "
            f"({', '.join(_NAMES)}, hf:OWNER/NAME){suggestion(name, _NAMES)}"
        )
    if path.suffix == ".json":
        return _file_of("huggingface").read_file(path)
    if path.suffix == ".tiktoken":
        return _file_of("gpt2").read_file(path)
    if path.suffix == ".model" or path.name == "sentencepiece_model":
        return _file_of("unigram").read_model(path)
    raise UserError(
        f"{name}: not a tokenizer's file; give a tokenizer.json, a .model of SentencePiece, "
        "a .tiktoken, or the folder of a tokenizer"
    )


def _load_folder(folder: Path) -> Tokenizer:
    path = folder / "config.json"
    if not _ready_made(folder) and (folder / "tokenizer").is_dir():  # a run, or features
        raise UserError(f"{folder}: not a tokenizer's folder; give {folder / 'tokenizer'}")
    # On the hub a config.json is the model's, and says no kind of tokenizer.
    config = files.read_json(path) if path.exists() or not _ready_made(folder) else None
    kind = config.get("kind") if isinstance(config, dict) else None
    if kind is None and _ready_made(folder):
        return _file_of("huggingface").read_file(folder / "tokenizer.json")
    if not isinstance(config, dict) or not isinstance(kind, str) or kind not in _FILE_OF:
        raise UserError(f"{path}: no tokenizer kind that is known here: {kind!r}")
    check_files(folder, config)
    try:
        tokenizer = _file_of(kind).read(folder, config)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if tokenizer.fingerprint != config.get("fingerprint"):
        raise UserError(
            f"{folder}: the tokenizer does not match the fingerprint in its config.json; "
            "make it again, or restore the folder"
        )
    return tokenizer


def _ready_made(folder: Path) -> bool:
    return (folder / "tokenizer.json").exists()


def _file_of(kind: str) -> Any:
    return importlib.import_module(f"tsuzuri.tokenizer.{_FILE_OF[kind]}")
