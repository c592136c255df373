"""Any `tokenizer.json` of Hugging Face, from a file, a folder or the hub.

Ids are those of the library `tokenizers`, without the tokens that its post-processor adds. A
byte-level BPE (GPT-2, Llama 3, our own) is lossless and encoded by tiktoken's engine where it can
be shown to give the same ids. All others are as lossless as they were made to be, and encoded by
`tokenizers`: it, not we, says what their ids mean, so `decode` may drop what `decode_bytes` shows,
such as the space that many put before a text.

Special tokens come only from the program. Which of them begins, ends and pads a text is said by
tokenizer_config.json or special_tokens_map.json beside the file, or else by the names that are
usual; which stands for the unknown, by the model itself. What begins a text is its end where there
is nothing else, and padding is a new id after the last one.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tsuzuri import files
from tsuzuri.errors import UserError
from tsuzuri.tokenizer.byte_level import BYTE_OF, GPT2_PATTERN, PATTERN, ByteLevelBPE, halves
from tsuzuri.tokenizer.protocol import Tokenizer, check_ids, save_folder, utf8
from tsuzuri.tokenizer.tiktoken import O200K_PATTERN

_FILE = "tokenizer.json"
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
_USUAL = {
    "eos_token": ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]"),
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]"),
    "pad_token": ("<|padding|>", "<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
}


class Special(NamedTuple):
    """The ids that config.json keeps."""

    vocab_size: int
    begin_of_text: int
    end_of_text: int
    padding: int
    unknown: int | None


class HuggingFaceTokenizer:
    """A tokenizer.json, encoded and decoded by `tokenizers`."""

    kind = "huggingface"

    def __init__(self, content: bytes, special: Special, spec: dict[str, Any]):
        self._content = content
        self.vocab_size, self.begin_of_text, self.end_of_text, self.padding, self.unknown = special
        self.fingerprint = _fingerprint(content, special)
        self._special = _special_ids(spec, special)
        self._decoder_steps = _steps(spec["decoder"])
        self._model = _without_special_names(spec, self._special)

    def encode(self, text: str) -> list[int]:
        utf8(text)
        return self._model.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            utf8(text)
        encoded = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(text.ids, np.uint32) for text in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        ids = [i for i in check_ids(ids, self.vocab_size) if i not in self._special]
        return self._model.decode(ids, skip_special_tokens=False)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join([self._bytes[i] for i in check_ids(ids, self.vocab_size)])

    def save(self, folder: Path) -> None:
        save_folder(self, folder, lambda beside: _write(beside, self._content))

    @cached_property
    def _bytes(self) -> list[bytes]:
        """What each id adds to a text that has begun."""
        return [
            b"" if token is None or i in self._special else self._token_bytes(token)
            for i, token in enumerate(map(self._model.id_to_token, range(self.vocab_size)))
        ]

    def _token_bytes(self, token: str) -> bytes:
        steps = self._decoder_steps
        if not steps:
            return b" " + token.encode()  # as `tokenizers` joins them
        if "ByteFallback" in steps and re.fullmatch("<0x[0-9A-F]{2}>", token):
            return bytes.fromhex(token[3:5])
        if "ByteLevel" in steps:
            known = all(letter in BYTE_OF for letter in token)
            return bytes(map(BYTE_OF.__getitem__, token)) if known else token.encode()
        # Between two others, for decoders treat the first and the last token in their own ways;
        # WordPiece's looks at the first alone, and would put a space before the one that follows.
        after = [] if "WordPiece" in steps else ["x"]
        text = self._model.decoder.decode(["x", token, *after])
        return text[1 : len(text) - len(after)].encode()


class HuggingFaceByteLevelBPE(ByteLevelBPE):
    """A tokenizer.json that is a byte-level BPE, encoded by tiktoken's engine; lossless."""

    def __init__(self, content: bytes, special: Special, tokens: list[bytes], pattern: str):
        super().__init__("huggingface", tokens, pattern, special.end_of_text, special.padding)
        self._content = content
        self.begin_of_text = special.begin_of_text
        self.fingerprint = _fingerprint(content, special)

    def save(self, folder: Path) -> None:
        save_folder(self, folder, lambda beside: _write(beside, self._content))


def read_file(path: Path) -> Tokenizer:
    """Reads a tokenizer.json, and the special tokens that the files beside it name.

    Raises:
      UserError: the file is absent or damaged; nothing says which token ends a text, or one that is
        named is not in the vocabulary.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    with _damaged(path):
        spec = _canonical(content)
        return _tokenizer(content, _find_special(path, spec), spec)


def read(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """Reads what `save` wrote; `config` is the folder's config.json.

    Raises:
      UserError: it is damaged.
    """
    path = folder / _FILE
    with _damaged(path):
        content = path.read_bytes()
        special = Special(*(config[name] for name in Special._fields))
        return _tokenizer(content, special, _canonical(content))


def from_hub(name: str) -> Tokenizer:
    """Reads the tokenizer.json of a model on huggingface.co, `OWNER/NAME`, or of the hub's cache.

    Raises:
      UserError: there is no network, no such model, or it has none; as for read_file.
    """
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(name, allow_patterns=[_FILE, *_BESIDE])
    except (OSError, ValueError) as error:  # huggingface_hub's and the network's are OSErrors
        raise UserError(
            f"hf:{name}: cannot be had ({type(error).__name__}); bring {_FILE} and {_BESIDE[0]} "
            f"from https://huggingface.co/{name} and give their folder"
        ) from error
    path = Path(folder) / _FILE
    if not path.exists():
        raise UserError(f"hf:{name}: has no {_FILE}; if it has a SentencePiece .model, give that")
    return read_file(path)


def _tokenizer(content: bytes, special: Special, spec: dict[str, Any]) -> Tokenizer:
    byte_level = _byte_level(spec, special)
    if byte_level:
        return HuggingFaceByteLevelBPE(content, special, *byte_level)
    return HuggingFaceTokenizer(content, special, spec)


def _canonical(content: bytes) -> dict[str, Any]:
    """The file as today's `tokenizers` writes it; older ones differ in form."""
    import tokenizers

    return json.loads(tokenizers.Tokenizer.from_str(content.decode()).to_str())


def _steps(part: dict[str, Any] | None) -> list[str]:
    """The types of a normalizer, pre-tokenizer or decoder, or of those in its sequence."""
    part = part or {"normalizers": []}
    keys = ("normalizers", "pretokenizers", "decoders")
    return [step["type"] for step in next((part[key] for key in keys if key in part), [part])]


@contextlib.contextmanager
def _damaged(path: Path):
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # `tokenizers` raises nothing more special
        raise UserError(
            f"{path}: not a tokenizer that Hugging Face's library reads ({error}); "
            "it is damaged, or another file"
        ) from error


def _fingerprint(content: bytes, special: Special) -> str:
    parts = ["huggingface", hashlib.sha256(content).hexdigest(), *special]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _write(folder: Path, content: bytes) -> None:
    (folder / _FILE).write_bytes(content)


# Special tokens


def _vocabulary(spec: dict[str, Any]) -> dict[str, int]:
    vocab = spec["model"]["vocab"]
    if spec["model"]["type"] == "Unigram":  # a list of [token, score]
        vocab = {token: i for i, (token, _) in enumerate(vocab)}
    return vocab | {token["content"]: token["id"] for token in spec["added_tokens"]}


def _find_special(path: Path, spec: dict[str, Any]) -> Special:
    vocab = _vocabulary(spec)
    unknown = _unknown(spec, vocab)
    named = _named(path, vocab)

    def find(key: str, not_these: tuple[int | None, ...] = ()) -> int | None:
        ids = [vocab[name] for name in [named.get(key), *_USUAL[key]] if name in vocab]
        return next((i for i in ids if i not in not_these), None)

    end = find("eos_token")
    if end is None or end == unknown:
        wrong = "nothing says which token ends" if end is None else "its unknown token also ends"
        special = [token["content"] for token in spec["added_tokens"] if token["special"]]
        more = f" and {len(special) - 20} more" if len(special) > 20 else ""
        raise UserError(
            f"{path}: {wrong} a text; its special tokens are "
            f"{', '.join(special[:20]) or 'none'}{more}; "
            f'write {{"eos_token": "..."}} with another of its tokens to {_BESIDE[0]} beside it'
        )
    begin = find("bos_token", (unknown,))
    padding = find("pad_token", (unknown, end, begin))
    last = max(vocab.values())
    return Special(
        vocab_size=last + 1 if padding is not None else last + 2,
        begin_of_text=end if begin is None else begin,
        end_of_text=end,
        padding=last + 1 if padding is None else padding,
        unknown=unknown,
    )


def _named(path: Path, vocab: dict[str, int]) -> dict[str, str]:
    """The special tokens that the files beside `path` name, {"eos_token": "</s>", ...}."""
    named: dict[str, str] = {}
    for beside in (path.with_name(name) for name in reversed(_BESIDE)):
        stored = files.read_json(beside) if beside.exists() else {}
        for key in _USUAL:
            value = stored.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if value is not None and value not in vocab:
                raise UserError(f"{beside}: {key} {value!r} is not in the vocabulary of {path}")
            named |= {key: value} if value else {}
    return named


def _unknown(spec: dict[str, Any], vocab: dict[str, int]) -> int | None:
    """The id that the model gives for what it lacks, None if it has a token for each byte."""
    model = spec["model"]
    bytes_of_fallback = {f"<0x{byte:02X}>" for byte in range(256)}
    if model.get("byte_fallback") and bytes_of_fallback <= vocab.keys():
        return None
    steps = _steps(spec["normalizer"]) + _steps(spec["pre_tokenizer"])
    if "ByteLevel" in steps and BYTE_OF.keys() <= vocab.keys():
        return None
    return model["unk_id"] if model["type"] == "Unigram" else vocab.get(model["unk_token"])


def _special_ids(spec: dict[str, Any], special: Special) -> set[int | None]:
    flagged = {token["id"] for token in spec["added_tokens"] if token["special"]}
    return flagged | set(special[1:]) - {None}


def _without_special_names(spec: dict[str, Any], special: set[int | None]) -> Any:
    """The `tokenizers.Tokenizer`, that adds no special token and reads none in a text.

    `encode_special_tokens` alone does not keep a typed `</s>` from a Unigram, whose own vocabulary
    has it, nor `[PAD]` from a model of whole words. So these names become others, around which
    stands what is no character (U+FFFF). BPE makes tokens by merges alone, and has none for them.
    """
    import tokenizers

    spec = spec | {"post_processor": None, "truncation": None, "padding": None}
    model = spec["model"]
    if model["type"] != "BPE":
        of = {name: f"\uffff{name}\uffff" for name, i in _vocabulary(spec).items() if i in special}
        if model["type"] == "Unigram":
            vocab: Any = [[of.get(name, name), score] for name, score in model["vocab"]]
        else:
            vocab = {of.get(name, name): i for name, i in model["vocab"].items()}
            model["unk_token"] = of.get(model["unk_token"], model["unk_token"])
        model["vocab"] = vocab
        for token in spec["added_tokens"]:
            token["content"] = of.get(token["content"], token["content"])
    changed = tokenizers.Tokenizer.from_str(json.dumps(spec))
    changed.encode_special_tokens = True
    return changed


# Byte-level BPE


def _byte_level(spec: dict[str, Any], special: Special) -> tuple[list[bytes], str] | None:
    """The bytes of each id and the pattern, if tiktoken's engine gives the very same ids."""
    model, pattern = spec["model"], _pattern(spec["pre_tokenizer"])
    if (
        pattern is None
        or model["type"] != "BPE"
        or any(model[key] for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        or spec["normalizer"] is not None
        or (spec["decoder"] or {}).get("type") != "ByteLevel"
        or not all(token["special"] for token in spec["added_tokens"])
    ):
        return None
    no_text = _special_ids(spec, special)
    ranks = {name: i for name, i in model["vocab"].items() if i not in no_text}
    if not BYTE_OF.keys() <= ranks.keys() or not BYTE_OF.keys() >= set().union(*ranks):
        return None
    merges = {(first, second): i for i, (first, second) in enumerate(model["merges"])}
    last = -1
    for name in sorted(ranks, key=ranks.__getitem__):
        if len(name) == 1:
            continue
        match halves(name, ranks):
            case [first, second]:
                place = merges.get((first, second), -1)
                if place <= last:  # not merged so, or in another order than that of ids
                    return None
                last = place
            case _ if not model["ignore_merges"]:  # tiktoken takes a whole piece, merged or not
                return None
    if not all(first + second in ranks for first, second in merges):
        return None
    tokens = [b""] * special.vocab_size
    for name, i in ranks.items():
        tokens[i] = bytes(map(BYTE_OF.__getitem__, name))
    return tokens, pattern


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The pattern of a byte-level pre-tokenizer, as tiktoken's engine takes it."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2_PATTERN
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", **split},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if not split["invert"] and regex in (PATTERN, O200K_PATTERN):
            return regex
    return None
