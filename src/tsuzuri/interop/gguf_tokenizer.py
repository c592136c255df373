"""Our tokenizers as llama.cpp reads them, where it gives every text the same ids.

llama.cpp knows byte-level BPE as `gpt2`: a list of tokens, a list of merges, and the name of a
pattern. Source: github.com/ggml-org/llama.cpp, src/llama-vocab.cpp and gguf-py/gguf/constants.py.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tsuzuri.errors import UserError
from tsuzuri.tokenizer import Tokenizer
from tsuzuri.tokenizer.byte_level import NAME_OF, PATTERN, SPECIAL_TOKENS, ByteLevel, halves


class Vocabulary(NamedTuple):
    """A byte-level BPE as llama.cpp wants it."""

    pre_tokenizer: str  # llama.cpp's name of the pattern that cuts a text into pieces
    names: dict[int, str]  # of each id that is text, a character a byte
    special: dict[int, str]  # ids that come only from the program
    added: dict[int, str]  # whole words that are found in a text before all else
    merges: list[list[str]]


# llama.cpp's names of the patterns that it cuts as the tokenizers here do, by its own code for each
# (src/unicode.cpp). Its table of letters ends with Unicode 14; those that came later it may cut
# otherwise. Qwen's pattern is Llama 3's with each digit by itself.
_PRE_TOKENIZERS = {
    PATTERN: "llama-bpe",
    PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2",
}
_PRE_TOKENIZER_OF_KIND = {"bpe": "llama-bpe", "bytes": "llama-bpe", "gpt2": "gpt-2"}
_REASONS = {
    "unigram": "its unigram gives <unk> for a character that the vocabulary lacks, not its bytes",
    "sentencepiece-bpe": "it takes a ▁ of the text for a space",
    "whitespace": "it has no pre-tokenizer that drops spaces",
    "cl100k": "it cuts spaces at the end of a text into other pieces",
    "o200k": "it cuts words into other pieces",
}


def vocabulary_of(tokenizer: Tokenizer, say: Callable[[str], None]) -> Vocabulary:
    """The tokenizer in llama.cpp's words.

    Args:
      say: told what texts will get other ids.

    Raises:
      UserError: llama.cpp would give a text other ids; why.
    """
    if tokenizer.kind == "huggingface":
        return _of_hugging_face(tokenizer, say)
    if tokenizer.kind not in _PRE_TOKENIZER_OF_KIND or not isinstance(tokenizer, ByteLevel):
        raise _cannot(tokenizer, _REASONS.get(tokenizer.kind, "it does not know that kind"))
    names = {
        i: "".join(NAME_OF[byte] for byte in token)
        for i, token in enumerate(tokenizer.tokens)
        if token
    }
    ranks = {name: i for i, name in names.items()}
    end, padding = SPECIAL_TOKENS
    special = {tokenizer.end_of_text: end, tokenizer.padding: padding}
    merges = [halves(name, ranks) for name in ranks if len(name) > 1]
    return Vocabulary(_PRE_TOKENIZER_OF_KIND[tokenizer.kind], names, special, {}, merges)


def _of_hugging_face(tokenizer: Tokenizer, say: Callable[[str], None]) -> Vocabulary:
    import tokenizers

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "tokenizer")
        content = (Path(folder) / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
    spec = json.loads(tokenizers.Tokenizer.from_str(content).to_str())  # today's form
    model, pre_tokenizer = spec["model"], None
    match spec["pre_tokenizer"]:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            pre_tokenizer = "gpt-2"
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", **split},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if not split["invert"]:
            pre_tokenizer = _PRE_TOKENIZERS.get(regex)
    if pre_tokenizer is None or model["type"] != "BPE":
        raise _cannot(tokenizer, "it is no byte-level BPE that cuts as GPT-2, Llama 3 or Qwen do")
    normalizer = (spec["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise _cannot(tokenizer, f"it has no normalizer {normalizer}")
    # With Llama 3's pieces llama.cpp takes a whole piece that is a token, merged or not.
    if not isinstance(tokenizer, ByteLevel) and model["ignore_merges"] != (
        pre_tokenizer == "llama-bpe"
    ):
        raise _cannot(tokenizer, "it merges the bytes of a piece otherwise")
    if normalizer:
        say("llama.cpp does not normalize (NFC): a text with decomposed characters gets other ids")
    added = {token["id"]: token["content"] for token in spec["added_tokens"]}
    special = {token["id"] for token in spec["added_tokens"] if token["special"]}
    special |= {tokenizer.begin_of_text, tokenizer.end_of_text, tokenizer.padding}
    names = {i: name for name, i in model["vocab"].items()} | added
    return Vocabulary(
        pre_tokenizer,
        {i: name for i, name in names.items() if i not in added.keys() | special},
        {i: names.get(i, SPECIAL_TOKENS[1]) for i in special},  # padding may be ours
        {i: name for i, name in added.items() if i not in special},
        model["merges"],
    )


def _cannot(tokenizer: Tokenizer, reason: str) -> UserError:
    return UserError(
        f"llama.cpp does not encode as a tokenizer of kind {tokenizer.kind} does: {reason}; "
        "train with --tokenizer.kind bpe for it"
    )


def write_vocabulary(writer: Any, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    """Adds the `tokenizer.ggml.*` keys to a GGUFWriter."""
    import gguf

    kinds = {
        gguf.TokenType.NORMAL: vocabulary.names,
        gguf.TokenType.CONTROL: vocabulary.special,
        gguf.TokenType.USER_DEFINED: vocabulary.added,
    }
    names = [f"<|unused {i}|>" for i in range(tokenizer.vocab_size)]
    types = [gguf.TokenType.UNUSED] * len(names)
    for kind, of_kind in kinds.items():
        for i, name in of_kind.items():
            names[i], types[i] = name, kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(names)
    writer.add_token_types(types)
    # llama.cpp wants at least one merge, and raw bytes have none: this one no text can make.
    merges = vocabulary.merges or [list(vocabulary.special.values())]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.begin_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_pad_token_id(tokenizer.padding)
    writer.add_add_bos_token(True)  # what the model has seen before every text
