"""Text to token ids and back, without loss: byte-level BPE trained on the text, or raw bytes.

Two special tokens come only from the program: `<|endoftext|>` (id 0) stands between documents and
`<|padding|>` (id 1) fills the last block. Typed in a text, they are encoded as the ordinary text
they are. The 256 bytes follow, then the merges in the order in which they were learned.

A tokenizer is a folder: config.json says its kind and fingerprint; a BPE has beside it a
tokenizer.json as Hugging Face `tokenizers` writes it, which transformers and llama.cpp read.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from tsuzuri import files
from tsuzuri.config import TokenizerConfig
from tsuzuri.errors import UserError

SPECIAL_TOKENS = ("<|endoftext|>", "<|padding|>")
END_OF_TEXT, PADDING = 0, 1
_FIRST_BYTE = len(SPECIAL_TOKENS)

# Llama 3's pre-tokenizer (github.com/meta-llama/llama3, llama/tokenizer.py): BPE merges inside a
# piece and never across two.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Japanese has no spaces, so such a piece may be a whole sentence, and BPE would learn tokens that
# end in the middle of a word, even of a character. So merges are learned inside a run of one
# script, and pieces are cut at 16 characters, which bounds the work. A text is still encoded by
# llama-3's pieces, as transformers and llama.cpp will do: merges across scripts are simply not
# there. On 334 works of Aozora this gives fewer tokens, and a quarter fewer torn characters.
_TRAINING_PATTERN = r"[\p{Han}々〆ヶ]{1,16}|[\p{Katakana}ー]{1,16}|\p{Hiragana}{1,16}|" + (
    PATTERN.replace("+", "{1,16}").replace("*", "{0,16}")
)

# Text is encoded in slices of at most so many characters: the unit of work of a thread. It also
# bounds the regex engine, which gives up on a million spaces in a row.
_SLICE = 1 << 18


class Tokenizer(Protocol):
    """What every tokenizer can do. `decode(encode(text)) == text` for every text.

    Attributes:
      kind: `bpe` or `bytes`.
      vocab_size: ids are 0 to vocab_size - 1.
      end_of_text: the id that stands before, between and after documents.
      padding: the id that fills up the last block; never a target.
      fingerprint: a SHA-256 of everything that decides the ids of a text.
    """

    @property
    def kind(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def end_of_text(self) -> int: ...
    @property
    def padding(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text; never a special id.

        Raises:
          UserError: the text holds half of a surrogate pair, which no encoding can write.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, uint32 [its tokens], encoded on all cores.

        Raises:
          UserError: as for encode.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Bytes that are not UTF-8 show as U+FFFD, special ids as nothing.

        Raises:
          UserError: an id is outside the vocabulary.
        """
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids: for streaming, where a character may end in a later token.

        Raises:
          UserError: an id is outside the vocabulary.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes the folder that `load` reads, whole or not at all.

        Raises:
          RunError: it cannot be written, or holds something else.
        """
        ...


class _ByteLevel:
    """What the two tokenizers share: `tokens` holds the bytes of each id, b"" for special ones."""

    kind: str
    end_of_text = END_OF_TEXT
    padding = PADDING

    def __init__(self, tokens: list[bytes]):
        self.tokens = tokens
        self.vocab_size = len(tokens)
        content = [self.kind, PATTERN, *(token.hex() for token in tokens)]
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise UserError(
                f"token id {wrong} is outside the vocabulary of {self.vocab_size}; "
                "the ids come from another tokenizer"
            )
        return b"".join([self.tokens[i] for i in ids])

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")

    def save(self, folder: Path) -> None:
        if (folder / "config.json").exists() and load(folder).fingerprint == self.fingerprint:
            return
        with files.write_beside(folder) as beside:
            beside.mkdir()
            self._save_model(beside)
            config = {
                "kind": self.kind,
                "vocab_size": self.vocab_size,
                "end_of_text": self.end_of_text,
                "padding": self.padding,
                "fingerprint": self.fingerprint,
                "files": {path.name: files.sha256(path) for path in beside.iterdir()},
            }
            files.write_json(beside / "config.json", config)

    def _save_model(self, folder: Path) -> None:
        pass


class ByteTokenizer(_ByteLevel):
    """Each byte of UTF-8 is a token: nothing to train, and every text fits."""

    kind = "bytes"

    def __init__(self) -> None:
        super().__init__([b""] * _FIRST_BYTE + [bytes([i]) for i in range(256)])

    def encode(self, text: str) -> list[int]:
        return [byte + _FIRST_BYTE for byte in _utf8(text)]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(_utf8(text), np.uint8) + np.uint32(_FIRST_BYTE) for text in texts]


class BPETokenizer(_ByteLevel):
    """Byte-level BPE. tiktoken encodes: it gives the ids of Hugging Face `tokenizers`, faster.

    The two agree because each token is the merge of the two tokens that BPE makes of its bytes with
    the merges before it: "the pair of lowest rank" (tiktoken) and "the first merge in the list"
    (Hugging Face) are then the same.
    """

    kind = "bpe"

    def __init__(self, tokens: list[bytes]):
        import tiktoken

        super().__init__(tokens)
        self._engine = tiktoken.Encoding(
            name="tsuzuri",
            pat_str=PATTERN,
            mergeable_ranks={t: i for i, t in enumerate(tokens) if i >= _FIRST_BYTE},
            special_tokens={token: i for i, token in enumerate(SPECIAL_TOKENS)},
        )

    def encode(self, text: str) -> list[int]:
        _utf8(text)  # tiktoken would put U+FFFD for a lone surrogate, without a word
        return [i for part in _slices(text) for i in self._engine.encode_ordinary(part)]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        def encode(part: str) -> np.ndarray:
            # No special token is allowed, none is disallowed: all of them are ordinary text.
            return self._engine.encode_to_numpy(part, allowed_special=set(), disallowed_special=())

        for text in texts:
            _utf8(text)
        parts = [list(_slices(text)) for text in texts]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            encoded = threads.map(encode, [part for text in parts for part in text])
            return [np.concatenate([next(encoded) for _ in text]) for text in parts]

    def _save_model(self, folder: Path) -> None:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers

        names = [*SPECIAL_TOKENS, *map(_printable, self.tokens[_FIRST_BYTE:])]
        merges = [(_printable(a), _printable(b)) for a, b in _merges(self.tokens)]
        vocab = {name: i for i, name in enumerate(names)}
        model = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
        model.add_special_tokens(list(SPECIAL_TOKENS))
        model.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        model.decoder = decoders.ByteLevel()
        model.save(str(folder / "tokenizer.json"))


def train(
    texts: Iterator[str], cfg: TokenizerConfig, say: Callable[[str], None], progress: bool
) -> Tokenizer:
    """Makes the tokenizer that `cfg` asks for, from the first `cfg.sample_mb` MB of the texts.

    BPE learns, again and again, the most frequent pair of neighbouring tokens as a new token
    (Sennrich et al. 2016, arXiv:1508.07909). The same texts give the same tokenizer.

    Raises:
      UserError: the vocabulary cannot hold the bytes and special tokens; there is no text; the text
        holds half of a surrogate pair.
    """
    if cfg.kind == "bytes":
        return ByteTokenizer()
    import rustbpe
    from tqdm import tqdm

    smallest = _FIRST_BYTE + 256
    if cfg.vocab_size < smallest:
        raise UserError(
            f"--tokenizer.vocab-size {cfg.vocab_size} is too small: the 256 bytes and "
            f"{_FIRST_BYTE} special tokens alone are {smallest}"
        )
    limit = cfg.sample_mb * 1_000_000
    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    with tqdm(
        total=limit, disable=not progress, unit="B", unit_scale=True, desc="tokenizer"
    ) as bar:

        def sample() -> Iterator[str]:
            seen = 0
            for text in texts:
                for part in _slices(text):
                    if seen >= limit:
                        say(f"the tokenizer learns from the first {cfg.sample_mb} MB of the text")
                        return
                    seen += len(_utf8(part))
                    bar.update(seen - bar.n)
                    yield part
            if seen == 0:
                raise UserError("there is no text to train a tokenizer on")
            bar.total = seen

        vocab_size = cfg.vocab_size - _FIRST_BYTE
        trainer.train_from_iterator(sample(), vocab_size, buffer_size=64, pattern=_TRAINING_PATTERN)
    tokenizer = BPETokenizer(
        [b""] * _FIRST_BYTE + [bytes(token) for token, _ in trainer.get_mergeable_ranks()]
    )
    if tokenizer.vocab_size < cfg.vocab_size:
        say(
            f"the text gives a vocabulary of {tokenizer.vocab_size} tokens, "
            f"not the {cfg.vocab_size} asked for: there are no more pairs to merge"
        )
    return tokenizer


def load(folder: Path) -> Tokenizer:
    """Reads the tokenizer that `save` wrote.

    Raises:
      UserError: there is none, it is of a kind unknown here, or it is damaged.
    """
    config = files.read_json(folder / "config.json")
    kind = config.get("kind") if isinstance(config, dict) else None
    if kind == "bytes":
        tokenizer = ByteTokenizer()
    elif kind == "bpe":
        path = folder / "tokenizer.json"
        tokenizer = BPETokenizer(_read_tokens(path))
        if files.sha256(path) != config.get("files", {}).get(path.name):
            raise UserError(f"{path}: changed or damaged; train it again, or restore the folder")
    else:
        raise UserError(f"{folder / 'config.json'}: no tokenizer kind that is known here: {kind!r}")
    if tokenizer.fingerprint != config.get("fingerprint"):
        raise UserError(
            f"{folder}: the tokenizer does not match the fingerprint in its config.json; "
            "train it again, or restore the folder"
        )
    return tokenizer


def _read_tokens(path: Path) -> list[bytes]:
    try:
        vocab = files.read_json(path)["model"]["vocab"]
        names = sorted(vocab, key=vocab.__getitem__)
        return [b""] * _FIRST_BYTE + [
            bytes(_BYTE_OF[character] for character in name) for name in names[_FIRST_BYTE:]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a byte-level BPE; it is damaged or not ours") from error


def _slices(text: str) -> Iterator[str]:
    """Cuts a long text where the pre-tokenizer cuts it anyway: between newline and non-space."""
    start = 0
    while len(text) - start > _SLICE:
        end = start + _SLICE
        while (end := text.rfind("\n", start, end)) >= 0 and text[end + 1].isspace():
            pass
        # A line longer than a slice is cut anywhere: other ids there, but still the same text.
        end = end + 1 if end >= 0 else start + _SLICE
        yield text[start:end]
        start = end
    yield text[start:]


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {error.start} of the text is {text[error.start]!a}, half of a surrogate "
            "pair, which is no character; remove it, or decode the file with its real encoding"
        ) from None


def _merges(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The pair that each token merges: what BPE makes of its bytes with the tokens before it."""
    rank = {token: i for i, token in enumerate(tokens) if token}
    merges = []
    for i, token in enumerate(tokens[_FIRST_BYTE + 256 :], _FIRST_BYTE + 256):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [rank.get(a + b, i) for a, b in itertools.pairwise(parts)]
            first = pairs.index(min(pairs))
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        merges.append((parts[0], parts[1]))
    return merges


def _byte_names() -> dict[int, str]:
    """GPT-2's printable name of each byte, as in Hugging Face files.

    Source: bytes_to_unicode in github.com/openai/gpt-2, src/encoder.py: a byte that Latin-1 prints
    is itself, the others are U+0100 onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable}
    return names | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


_NAME_OF = _byte_names()
_BYTE_OF = {name: byte for byte, name in _NAME_OF.items()}


def _printable(token: bytes) -> str:
    return "".join(_NAME_OF[byte] for byte in token)
