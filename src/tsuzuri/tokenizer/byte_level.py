"""Byte-level tokenizers of our own: byte-level BPE trained on the text, or raw bytes. Lossless.

Two special tokens come only from the program: `<|endoftext|>` (id 0) stands between documents and
`<|padding|>` (id 1) fills the last block. Typed in a text, they are encoded as the ordinary text
they are. The 256 bytes follow, then the merges in the order in which they were learned.

On disk a BPE is a tokenizer.json as Hugging Face `tokenizers` writes it, which transformers and
llama.cpp read.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tsuzuri import files
from tsuzuri.config import TokenizerConfig
from tsuzuri.errors import UserError
from tsuzuri.tokenizer.protocol import Tokenizer, check_ids, save_folder, slices, utf8
from tsuzuri.tokenizer.sample import sample

SPECIAL_TOKENS = ("<|endoftext|>", "<|padding|>")
END_OF_TEXT, PADDING = 0, 1
_FIRST_BYTE = len(SPECIAL_TOKENS)

# Llama 3's pre-tokenizer (github.com/meta-llama/llama3, llama/tokenizer.py): BPE merges inside a
# piece and never across two.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# GPT-2's, as tiktoken writes it (github.com/openai/tiktoken, tiktoken_ext/openai_public.py).
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# Japanese has no spaces, so a piece of PATTERN may be a whole sentence, and BPE would learn tokens
# that end in the middle of a word, even of a character. So merges are learned inside a run of one
# script, and pieces are cut at 16 characters, which bounds the work. A text is still encoded by
# llama-3's pieces, as transformers and llama.cpp will do: merges across scripts are simply not
# there. On 334 works of Aozora this gives fewer tokens, and a quarter fewer torn characters.
_TRAINING_PATTERN = r"[\p{Han}々〆ヶ]{1,16}|[\p{Katakana}ー]{1,16}|\p{Hiragana}{1,16}|" + (
    PATTERN.replace("+", "{1,16}").replace("*", "{0,16}")
)


class ByteLevel:
    """What byte-level tokenizers share: `tokens` has the bytes of each id, b"" for special ones."""

    unknown: int | None = None

    def __init__(
        self, kind: str, tokens: list[bytes], pattern: str, end_of_text: int, padding: int
    ):
        self.kind = kind
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self.begin_of_text = self.end_of_text = end_of_text
        self.padding = padding
        content = [kind, pattern, *(token.hex() for token in tokens)]
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join([self.tokens[i] for i in check_ids(ids, self.vocab_size)])

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")


class ByteTokenizer(ByteLevel):
    """Each byte of UTF-8 is a token: nothing to train, and every text fits."""

    def __init__(self) -> None:
        tokens = [b""] * _FIRST_BYTE + [bytes([i]) for i in range(256)]
        super().__init__("bytes", tokens, PATTERN, END_OF_TEXT, PADDING)

    def encode(self, text: str) -> list[int]:
        return [byte + _FIRST_BYTE for byte in utf8(text)]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(utf8(text), np.uint8) + np.uint32(_FIRST_BYTE) for text in texts]

    def save(self, folder: Path) -> None:
        save_folder(self, folder, lambda beside: None)


class ByteLevelBPE(ByteLevel):
    """Byte-level BPE by tiktoken's engine: it gives the ids of Hugging Face `tokenizers`, faster.

    The two agree where each token is the merge of the two parts that BPE makes of its bytes, and
    the merges are in the order of ids: "the pair that makes the lowest id" (tiktoken) and "the
    first merge in the list" (Hugging Face) are then the same. For while two neighbours that could
    make a token wait for it, no merge has crossed the ends of that token, so that all that has
    happened inside is what happens to its bytes alone.
    """

    def __init__(
        self, kind: str, tokens: list[bytes], pattern: str, end_of_text: int, padding: int
    ):
        import tiktoken

        super().__init__(kind, tokens, pattern, end_of_text, padding)
        self._before_newline = pattern == GPT2_PATTERN
        self._engine = tiktoken.Encoding(
            name=kind,
            pat_str=pattern,
            mergeable_ranks={token: i for i, token in enumerate(tokens) if token},
            special_tokens={},  # so that all of them are ordinary text
        )

    def encode(self, text: str) -> list[int]:
        return [i for part in self._slices(text) for i in self._engine.encode_ordinary(part)]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        parts = [self._slices(text) for text in texts]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            flat = [part for text in parts for part in text]
            encoded = threads.map(self._engine.encode_to_numpy, flat)
            return [np.concatenate([next(encoded) for _ in text]) for text in parts]

    def _slices(self, text: str) -> list[str]:
        utf8(text)  # tiktoken would put U+FFFD for a lone surrogate, without a word
        return list(slices(text, self._before_newline))


class BPETokenizer(ByteLevelBPE):
    """Byte-level BPE as `train` makes it: special tokens, bytes, merges in the order learned."""

    def __init__(self, tokens: list[bytes]):
        super().__init__("bpe", tokens, PATTERN, END_OF_TEXT, PADDING)

    def save(self, folder: Path) -> None:
        save_folder(self, folder, self._write_model)

    def _write_model(self, folder: Path) -> None:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers

        names = [*SPECIAL_TOKENS, *map(_printable, self.tokens[_FIRST_BYTE:])]
        vocab = {name: i for i, name in enumerate(names)}
        merged = (halves(name, vocab) for name in names[_FIRST_BYTE + 256 :])
        merges = [(first, second) for first, second in merged]
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
    if cfg.options:
        raise UserError(
            f"--tokenizer.options are SentencePiece's; --tokenizer.kind {cfg.kind} has none"
        )
    if cfg.kind == "bytes":
        return ByteTokenizer()
    import rustbpe

    smallest = _FIRST_BYTE + 256
    if cfg.vocab_size < smallest:
        raise UserError(
            f"--tokenizer.vocab-size {cfg.vocab_size} is too small: the 256 bytes and "
            f"{_FIRST_BYTE} special tokens alone are {smallest}"
        )
    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    trainer.train_from_iterator(
        sample(texts, cfg, say, progress),
        cfg.vocab_size - _FIRST_BYTE,
        buffer_size=64,
        pattern=_TRAINING_PATTERN,
    )
    tokenizer = BPETokenizer(
        [b""] * _FIRST_BYTE + [bytes(token) for token, _ in trainer.get_mergeable_ranks()]
    )
    if tokenizer.vocab_size < cfg.vocab_size:
        say(
            f"the text gives a vocabulary of {tokenizer.vocab_size} tokens, "
            f"not the {cfg.vocab_size} asked for: there are no more pairs to merge"
        )
    return tokenizer


def read(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """Reads what `save` wrote; `config` is the folder's config.json.

    Raises:
      UserError: it is damaged.
    """
    if config["kind"] == "bytes":
        return ByteTokenizer()
    return BPETokenizer(_read_tokens(folder / "tokenizer.json"))


def _read_tokens(path: Path) -> list[bytes]:
    try:
        vocab = files.read_json(path)["model"]["vocab"]
        names = sorted(vocab, key=vocab.__getitem__)
        return [b""] * _FIRST_BYTE + [
            bytes(BYTE_OF[character] for character in name) for name in names[_FIRST_BYTE:]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a byte-level BPE; it is damaged or not ours") from error


def halves(name: str, ranks: Mapping[str, int]) -> list[str]:
    """The two parts that BPE merges last to make a token; more where BPE does not get that far.

    Args:
      name: the token, a character a byte.
      ranks: of every token by its name; the lowest that two neighbours can make is merged first.
    """
    parts = list(name)
    while len(parts) > 2:
        pairs = [ranks.get(a + b, math.inf) for a, b in itertools.pairwise(parts)]
        first = pairs.index(min(pairs))
        if pairs[first] == math.inf:
            break
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


def _byte_names() -> dict[int, str]:
    """GPT-2's printable name of each byte, as in Hugging Face files.

    Source: bytes_to_unicode in github.com/openai/gpt-2, src/encoder.py: a byte that Latin-1 prints
    is itself, the others are U+0100 onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable}
    return names | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


NAME_OF = _byte_names()
BYTE_OF = {name: byte for byte, name in NAME_OF.items()}


def _printable(token: bytes) -> str:
    return "".join(NAME_OF[byte] for byte in token)
