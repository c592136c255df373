"""Our tokenizers as transformers reads them: tokenizer.json and tokenizer_config.json.

A tokenizer.json is read back by the library `tokenizers`, and its ids are compared with ours before
anything is saved. The id that begins a text is put before it by the file's post-processor, and
special tokens that are typed in a text stay text (`split_special_tokens`), as with us.
"""

import json
import re
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tsuzuri import files
from tsuzuri.errors import UserError
from tsuzuri.tokenizer import BPETokenizer, Tokenizer
from tsuzuri.tokenizer.byte_level import NAME_OF, halves
from tsuzuri.tokenizer.sentencepiece import MODEL
from tsuzuri.tokenizer.tiktoken import PUBLISHED

Json = dict[str, Any]

_PROBES = (
    "",
    "a",
    "Hello, world! It's 1234567 o'clock.",
    "吾輩は猫である。名前はまだ無い。\n　どこで生れたか、とんと見当がつかぬ。",
    "  two spaces\n\n\n and\ttabs \r\n\r\n end  ",
    "国境の長いトンネルを抜けると、雪国であった……ーーー①㈱🗻👨‍👩‍👧 ﾊﾟ",
    "か\u3099 café cafe\u0301 naïve Привет مرحبا 你好 안녕",
    "<0x41> x = {'y': [1, 2.5e-3]};  // https://example.com/?q=1&r=2",
)
# tiktoken's pattern of cl100k in the words of `tokenizers`, whose regex engine knows no possessive
# bounds, and takes $ for the end of a line.
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
)


def write(
    tokenizer: Tokenizer, folder: Path, context_length: int, say: Callable[[str], None]
) -> None:
    """Writes tokenizer_config.json and tokenizer.json into the folder.

    `tokenizers` cannot normalize as SentencePiece does. So a model of SentencePiece that normalizes
    is written as the tokenizer.model it is, for transformers' class over the library itself.

    Raises:
      UserError: no tokenizer.json gives the ids that this tokenizer gives.
    """
    if tokenizer.kind in _SENTENCEPIECE and not _plain(tokenizer):
        model = _saved(tokenizer, MODEL)
        (folder / "tokenizer.model").write_bytes(model)
        names = {i: name for i, (name, *_) in enumerate(_pieces(model))}
        names.setdefault(tokenizer.padding, _new_name(set(names.values())))
        config: Json = {
            "tokenizer_class": "SentencePieceBackend",
            "special_tokens_pattern": "bos",
        }
        say("transformers needs the package sentencepiece for this tokenizer, which normalizes")
        if any(kind == _BYTE for *_, kind in _pieces(model)):
            say("when transformers decodes, characters beyond the vocabulary show as <0xE3><0x81>")
    else:
        spec, names = _tokenizer_json(tokenizer, say)
        files.write_json(folder / "tokenizer.json", spec)
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {
        "bos_token": names[tokenizer.begin_of_text],
        "eos_token": names[tokenizer.end_of_text],
        "pad_token": names[tokenizer.padding],
        "model_max_length": context_length,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.unknown is not None:
        config["unk_token"] = names[tokenizer.unknown]
    files.write_json(folder / "tokenizer_config.json", config)


def _tokenizer_json(
    tokenizer: Tokenizer, say: Callable[[str], None]
) -> tuple[Json, dict[int, str]]:
    """The content of tokenizer.json, and the names of the special ids."""
    spec = _spec(tokenizer, say)
    names = _special_names(spec, tokenizer)
    begin = names[tokenizer.begin_of_text]
    first, text, second = (
        {"SpecialToken": {"id": begin, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 0}},
    )
    special_token = {"id": begin, "ids": [tokenizer.begin_of_text], "tokens": [begin]}
    spec |= {
        "truncation": None,
        "padding": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, second],
            "special_tokens": {begin: special_token},
        },
    }
    _compare(spec, tokenizer, names)
    return spec, names


def _spec(tokenizer: Tokenizer, say: Callable[[str], None]) -> Json:
    """A tokenizer.json with the tokenizer's ids; who begins and ends a text is not yet said."""
    if tokenizer.kind in PUBLISHED:
        return _of_tiktoken(tokenizer)
    if tokenizer.kind in _SENTENCEPIECE:
        return _of_sentencepiece(tokenizer, say)
    if tokenizer.kind == "bytes":
        tokenizer = BPETokenizer(tokenizer.tokens)  # pyright: ignore[reportAttributeAccessIssue]
    return json.loads(_saved(tokenizer, "tokenizer.json"))


def _saved(tokenizer: Tokenizer, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "tokenizer")
        path = Path(folder) / "tokenizer" / name
        if not path.exists():
            raise UserError(
                f"a tokenizer of kind {tokenizer.kind} has no form that transformers reads"
            )
        return path.read_bytes()


def _special_names(spec: Json, tokenizer: Tokenizer) -> dict[int, str]:
    """The names of the special ids, which are marked as such; one that is new to the file is added.

    A Unigram model takes each of its tokens for text, so that special ones, and those that stand
    for a byte, are cut after their first character where a text has them.
    """
    ids = {tokenizer.begin_of_text, tokenizer.end_of_text, tokenizer.padding}
    if tokenizer.unknown is not None:
        ids.add(tokenizer.unknown)
    model, added = spec["model"], {token["id"]: token for token in spec["added_tokens"]}
    unigram = model["type"] == "Unigram"
    if unigram:
        names = {i: name for i, (name, _) in enumerate(model["vocab"])}
    else:
        names = {i: name for name, i in model["vocab"].items()}
    names |= {i: token["content"] for i, token in added.items()}
    names.setdefault(tokenizer.padding, _new_name(set(names.values())))
    as_usual = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for i in ids:
        added[i] = as_usual | added.get(i, {"content": names[i]}) | {"id": i, "special": True}
    spec["added_tokens"] = [added[i] for i in sorted(added)]
    if unigram:
        cut = sorted(token["content"] for token in added.values() if token["special"])
        firsts = [f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in cut]
        firsts += ["<(?=0x[0-9A-F]{2}>)"] if tokenizer.kind == "unigram" else []
        split = {"pattern": {"Regex": "|".join(firsts)}, "behavior": "Isolated", "invert": False}
        steps = [spec["pre_tokenizer"], {"type": "Split"} | split]
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [s for s in steps if s]}
    return {i: names[i] for i in ids}


def _new_name(taken: set[str]) -> str:
    """Of a padding token that the vocabulary lacks."""
    free = ("<|padding|>", *(f"<|padding{n}|>" for n in range(len(taken))))
    return next(name for name in free if name not in taken)


def _compare(spec: Json, tokenizer: Tokenizer, names: dict[int, str]) -> None:
    import tokenizers

    try:
        theirs = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises no narrower one
        raise UserError(
            f"a tokenizer of kind {tokenizer.kind} cannot be written as a tokenizer.json ({error})"
        ) from error
    theirs.encode_special_tokens = True
    for i, name in names.items():
        if theirs.token_to_id(name) != i:
            raise UserError(
                f"the special token {name!r} cannot have id {i} in a tokenizer.json, "
                "which numbers tokens without gaps"
            )
    # Unigram may part a run such as ーーー in ways that are equally likely: the same ids then, in
    # another order.
    order = sorted if spec["model"]["type"] == "Unigram" else list
    for text in (*_PROBES, *(f"x {name} x" for name in names.values())):
        ours = [tokenizer.begin_of_text, *tokenizer.encode(text)]
        if order(theirs.encode(text).ids) != order(ours):
            raise UserError(
                f"a tokenizer of kind {tokenizer.kind} cannot be written exactly as a "
                f"tokenizer.json: {text!r} has other ids there"
            )


def _json_of(model: Any, pre_tokenizer: Any, decoder: Any) -> Json:
    import tokenizers

    whole = tokenizers.Tokenizer(model)
    whole.pre_tokenizer, whole.decoder = pre_tokenizer, decoder
    return json.loads(whole.to_str())


def _of_tiktoken(tokenizer: Any) -> Json:
    """Each token's merge is of the two parts that BPE makes of it; a whole piece needs none."""
    from tokenizers import Regex, decoders, models, pre_tokenizers

    kind = tokenizer.kind
    names = {"".join(NAME_OF[b] for b in t): i for i, t in enumerate(tokenizer.tokens) if t}
    parts = (halves(name, names) for name in names if len(name) > 1)
    merges = [(pair[0], pair[1]) for pair in parts if len(pair) == 2]
    special = {"<|endoftext|>": tokenizer.end_of_text, "<|padding|>": tokenizer.padding}
    model = models.BPE(vocab=names | special, merges=merges, ignore_merges=True)
    if kind == "gpt2":
        pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        pattern = _CL100K if kind == "cl100k" else PUBLISHED[kind].pattern
        pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    return _json_of(model, pre_tokenizer, decoders.ByteLevel())


# SentencePiece

_SPACE = "▁"
_SENTENCEPIECE = ("unigram", "sentencepiece-bpe")
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # kinds of a piece; there are two more


def _pieces(model: bytes) -> list[tuple[str, float, int]]:
    """Name, score and kind of each piece.

    Source: sentencepiece_model.proto of github.com/google/sentencepiece.
    """
    fields = map(_fields, _fields(model)[1])
    return [
        (f[1][0].decode(), *struct.unpack("<f", f.get(2, [bytes(4)])[0]), f.get(3, [_NORMAL])[0])
        for f in fields
    ]


def _plain(tokenizer: Any) -> bool:
    """Whether it changes no text, and has only the pieces that `tokenizers` has."""
    kinds = {kind for *_, kind in _pieces(_saved(tokenizer, MODEL))}
    return tokenizer.lossless and kinds <= {_NORMAL, _UNKNOWN, _CONTROL, _BYTE}


def _of_sentencepiece(tokenizer: Any, say: Callable[[str], None]) -> Json:
    """A SentencePiece model that changes no text, encoded by lines as ours is."""
    from tokenizers import Regex, decoders, models, pre_tokenizers

    pieces = _pieces(_saved(tokenizer, MODEL))
    if tokenizer.kind == "unigram":
        vocab = [(name, score) for name, score, _ in pieces]
        model: Any = models.Unigram(vocab, tokenizer.unknown, byte_fallback=True)
    else:
        model = models.BPE(
            vocab={name: i for i, (name, *_) in enumerate(pieces)},
            merges=list(_merges(pieces)),
            unk_token=pieces[tokenizer.unknown][0],
            fuse_unk=True,
            byte_fallback=True,
        )
    lines = Regex(rf"[\r\n]*[^\r\n{_SPACE}]+|[\r\n]+")
    say(f"transformers takes a {_SPACE} (U+2581) of a text for a space, which is not so here")
    return _json_of(
        model,
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(lines, "isolated"),
                pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=False),
            ]
        ),
        decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        ),
    )


def _merges(pieces: list[tuple[str, float, int]]) -> Iterator[tuple[str, str]]:
    """Every pair that makes a piece, the likeliest piece first: the order in which it merges."""
    usable = {name for name, _, kind in pieces if kind == _NORMAL}
    for name, _, kind in sorted(pieces, key=lambda piece: -piece[1]):
        if kind == _NORMAL:
            for cut in range(1, len(name)):
                if name[:cut] in usable and name[cut:] in usable:
                    yield name[:cut], name[cut:]


def _fields(message: bytes) -> dict[int, list[Any]]:
    """A Protocol Buffers message: the values of each field by its number.

    Source: protobuf.dev/programming-guides/encoding. The library's own module for this format wants
    another major version of protobuf than Beam does.
    """
    found: dict[int, list[Any]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        match key & 7:
            case 0:
                value: Any = varint()
            case wire:
                size = {1: 8, 5: 4}.get(wire) or varint()
                value = message[at : at + size]
                at += size
        found.setdefault(key >> 3, []).append(value)
    return found
