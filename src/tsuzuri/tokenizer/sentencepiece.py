"""SentencePiece: unigram (Kudo 2018, arXiv:1804.10959) and BPE, lossless by our defaults.

The library's own defaults change the text: NFKC, a space put before it, runs of spaces made one.
Ours leave it as it is, and give characters that the vocabulary lacks by their bytes. One thing is
left: the library writes a space as U+2581 (▁) and cannot tell the two apart, so a ▁ of the text
goes around it, as its three bytes.

Text is learned from and encoded line by line, each with the newline before it. So no token crosses
the end of a line, and a line has the same ids wherever it stands.
"""

import hashlib
import io
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsuzuri.config import TokenizerConfig, suggestion
from tsuzuri.errors import UserError
from tsuzuri.tokenizer.protocol import check_ids, save_folder, utf8
from tsuzuri.tokenizer.sample import sample

MODEL = "sentencepiece.model"  # its name in a tokenizer's folder
_SPACE = "▁"  # U+2581, the library's sign for a space

# The trainer drops newlines at the end of a line, so they stand at the beginning of the next.
_LINES = re.compile(rf"[\r\n]*[^\r\n{_SPACE}]+|[\r\n]+|{_SPACE}")
# It takes ▁ for a space, and skips lines with U+2585 (▅), its sign for an unknown character.
_TRAINING_LINES = re.compile(rf"[\r\n]*[^\r\n{_SPACE}▅]+")
_WHOLE = re.compile(r"(?s).+")

_DEFAULTS = {
    "character_coverage": "0.9995",
    "byte_fallback": "true",
    "normalization_rule_name": "identity",
    "add_dummy_prefix": "false",
    "remove_extra_whitespaces": "false",
    "max_sentence_length": "4192",  # bytes
    "minloglevel": "2",  # errors only, and these are raised too
}
_SPECIAL = {
    "eos_id": "0",
    "pad_id": "1",
    "unk_id": "2",
    "bos_id": "-1",
    "eos_piece": "<|endoftext|>",
    "pad_piece": "<|padding|>",
    "unk_piece": "<unk>",
}
# The fields of TrainerSpec and NormalizerSpec in the library's sentencepiece_model.proto (0.2.3),
# and the names that its trainer reads besides: those that can be given, and those that are ours.
_OPTIONS = (
    "accept_language add_dummy_prefix allow_whitespace_only_pieces auto_character_coverage "
    "byte_fallback character_coverage control_symbols denormalization_rule_tsv "
    "differential_privacy_clipping_threshold differential_privacy_noise_level "
    "enable_differential_privacy escape_whitespaces hard_vocab_limit input_sentence_size "
    "max_sentence_length max_sentencepiece_length minloglevel mining_sentence_size "
    "normalization_rule_name normalization_rule_tsv num_sub_iterations num_threads "
    "pretokenization_delimiter remove_extra_whitespaces required_chars seed_sentencepiece_size "
    "seed_sentencepieces_file self_test_sample_size shrinking_factor shuffle_input_sentence "
    "split_by_number split_by_unicode_script split_by_whitespace split_digits "
    "train_extremely_large_corpus training_sentence_size treat_whitespace_as_suffix unk_surface "
    "use_all_vocab user_defined_symbols vocabulary_output_piece_score"
)
_OURS = {
    "vocab_size": "give --tokenizer.vocab-size",
    "model_type": "give --tokenizer.kind unigram or sentencepiece-bpe",
    "model_prefix": "the model is written into the tokenizer's folder",
    **dict.fromkeys(("input", "input_format"), "it learns from the text that is trained on"),
    **dict.fromkeys((*_SPECIAL, "bos_piece"), "the special tokens are always the same"),
}


class SentencePieceTokenizer:
    """A SentencePiece model.

    Args:
      model: the model's file.
      special: begin_of_text and padding, where a program used other ids than the file says.

    Attributes:
      lossless: the model normalizes nothing and has a token for each byte.
    """

    def __init__(self, model: bytes, special: tuple[int, int] | None = None):
        import sentencepiece

        self._model = model
        self._engine = engine = sentencepiece.SentencePieceProcessor.from_proto(model)
        size = engine.get_piece_size()
        self.tokens = [_token_bytes(engine, i) for i in range(size)]
        # A model does not say its kind, but BPE's scores are 0, -1, -2, ... in the order of merges.
        bpe = all(score == int(score) for score in map(engine.get_score, range(size)))
        self.kind = "sentencepiece-bpe" if bpe else "unigram"
        if engine.eos_id() < 0:
            raise UserError("its vocabulary has no end-of-text symbol (eos_id is -1)")
        self.end_of_text, self.unknown = engine.eos_id(), engine.unk_id()
        begin_of_text = engine.bos_id() if engine.bos_id() >= 0 else self.end_of_text
        padding = engine.pad_id() if engine.pad_id() >= 0 else size  # then it gets an id of its own
        chosen = special or (begin_of_text, padding)
        self.begin_of_text, self.padding = chosen
        if self.padding == size:
            self.tokens.append(b"")
        self.vocab_size = len(self.tokens)
        others = "" if chosen == (begin_of_text, padding) else str(chosen)
        self.fingerprint = hashlib.sha256(model + others.encode()).hexdigest()

        # Another's model may normalize, or have tokens that cross lines: it gets the whole text.
        probe = " Ａ  ①か\u3099\n"
        self._as_it_is = engine.normalize(probe) == probe.replace(" ", _SPACE) and not any(
            re.search(rb"[^\r\n][\r\n]", token) for token in self.tokens
        )
        self._lines = _LINES if self._as_it_is else _WHOLE
        # Without tokens for bytes, these are the unknown token.
        self._ids_of_space = [engine.piece_to_id(f"<0x{byte:02X}>") for byte in utf8(_SPACE)]
        # Without a token for a space, that would be the bytes of ▁, too.
        needed = [engine.piece_to_id(_SPACE), *self._ids_of_space]
        self.lossless = self._as_it_is and self.unknown not in needed

    def encode(self, text: str) -> list[int]:
        return self._encode([text], num_threads=1)[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self._encode(texts, num_threads=os.cpu_count() or 1)

    def _encode(self, texts: Sequence[str], num_threads: int) -> list[np.ndarray]:
        for text in texts:
            utf8(text)
        lines = [self._lines.findall(text) or [""] for text in texts]
        flat = [line for text in lines for line in text]
        encoded = self._engine.encode(flat, return_type="numpy", num_threads=num_threads)
        if self._as_it_is:
            encoded = [
                self._ids_of_space if line == _SPACE else ids
                for line, ids in zip(flat, encoded, strict=True)
            ]
        of_line = iter(encoded)
        return [
            np.concatenate([next(of_line) for _ in text], dtype=np.uint32, casting="unsafe")
            for text in lines
        ]

    def decode(self, ids: Iterable[int]) -> str:
        if self._as_it_is:
            return self.decode_bytes(ids).decode(errors="replace")
        # The library takes away again the space that it put before the text.
        ids = check_ids(ids, self.vocab_size)
        return self._engine.decode([int(i) for i in ids if i != self.padding])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join([self.tokens[i] for i in check_ids(ids, self.vocab_size)])

    def save(self, folder: Path) -> None:
        save_folder(self, folder, self._save_model)

    def _save_model(self, folder: Path) -> None:
        (folder / MODEL).write_bytes(self._model)


def train(
    texts: Iterator[str], cfg: TokenizerConfig, say: Callable[[str], None], progress: bool
) -> SentencePieceTokenizer:
    """Trains a model on the first `cfg.sample_mb` MB of the texts.

    `cfg.options` are the library's own ("--character_coverage=0.9995 --split_digits=true") and go
    before our defaults. The same texts give the same model.

    Raises:
      UserError: an option that is unknown, ours to set, or that the library refuses; a vocabulary
        too large or too small for the text; there is no text; the text holds half of a surrogate
        pair.
    """
    import sentencepiece

    options = _DEFAULTS | _read_options(cfg.options)
    length = options["max_sentence_length"]
    # The trainer skips longer lines; a character has up to four bytes. It checks the number itself.
    limit = max(int(length) // 4, 1) if length.isdecimal() else 1
    # A list, as an error in an iterator would come out of the library as another one.
    lines = [
        line[i : i + limit]
        for part in sample(texts, cfg, say, progress)
        for line in _TRAINING_LINES.findall(part)
        for i in range(0, len(line), limit)
    ]
    if not lines:
        raise UserError("the text holds nothing but newlines; a tokenizer learns nothing from it")
    model = io.BytesIO()
    arguments: dict[str, Any] = {
        **options,
        **_SPECIAL,
        # Japanese may hold no space at all, but a space must have its token.
        "required_chars": options.get("required_chars", "") + _SPACE,
        "model_type": "unigram" if cfg.kind == "unigram" else "bpe",
        "vocab_size": cfg.vocab_size,
        "sentence_iterator": iter(lines),
        "model_writer": model,
    }
    try:
        sentencepiece.SentencePieceTrainer.Train(**arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(_refusal(str(error), cfg)) from None
    tokenizer = SentencePieceTokenizer(model.getvalue())
    if tokenizer.vocab_size < cfg.vocab_size:
        say(
            f"the text gives a vocabulary of {tokenizer.vocab_size} tokens, "
            f"not the {cfg.vocab_size} asked for"
        )
    if not tokenizer.lossless:
        say(f"with {cfg.options} the tokenizer is lossy: text may come back changed")
    return tokenizer


def read(folder: Path, config: dict[str, Any]) -> SentencePieceTokenizer:
    """Reads what `save` wrote; `config` is the folder's config.json.

    Raises:
      UserError: it is damaged.
    """
    special: Any = config.get("begin_of_text"), config.get("padding")
    return read_model(folder / MODEL, special)


def read_model(path: Path, special: tuple[int, int] | None = None) -> SentencePieceTokenizer:
    """Reads another program's model, such as transformer-lm-japanese's `sentencepiece_model`.

    Its special ids are kept, but for those that are given as `special`; where it has no id for
    padding, that is a new one after the last. Models trained with the library's defaults are lossy.

    Raises:
      UserError: the file is absent, is no SentencePiece model, or lacks an end-of-text symbol.
    """
    try:
        return SentencePieceTokenizer(path.read_bytes(), special)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (RuntimeError, ValueError) as error:  # UserError is a ValueError
        reason = error if isinstance(error, UserError) else "it is damaged or another's file"
        raise UserError(f"{path}: no SentencePiece model that fits; {reason}") from error


def _token_bytes(engine: Any, i: int) -> bytes:
    if engine.is_control(i):
        return b""
    if engine.is_unknown(i):
        return engine.decode([i]).encode()  # its surface, ⁇ by default
    piece = engine.id_to_piece(i)
    if engine.is_byte(i):
        return bytes.fromhex(piece[3:5])  # <0x41>
    return piece.replace(_SPACE, " ").encode()


def _read_options(options: str) -> dict[str, str]:
    """{"split_digits": "true"} of "--split_digits=true"."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise UserError(f"--tokenizer.options {options!r}: {error}".lower()) from None
    known = _OPTIONS.split()
    given: dict[str, str] = {}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UserError(f"--tokenizer.options: {word!r} is not of the form --NAME=VALUE")
        if name in _OURS:
            raise UserError(f"--tokenizer.options: --{name} cannot be given; {_OURS[name]}")
        if name not in known:
            near = suggestion(name, known)
            raise UserError(f"--tokenizer.options: SentencePiece has no option --{name}{near}")
        if given.setdefault(name, value) != value:
            raise UserError(
                f"--tokenizer.options: --{name} is given as {given[name]!r} and as {value!r}"
            )
    return given


def _refusal(message: str, cfg: TokenizerConfig) -> str:
    """The library's error, such as `INTERNAL: src/x.cc(94) [condition] reason`, in our words."""
    size = f"--tokenizer.vocab-size {cfg.vocab_size}"
    if found := re.search(r"size too high .*<= (\d+)", message):
        return f"{size} is more than this text gives: at most {found[1]}, or give more text"
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"{size} is too small: the characters of the text, the bytes and the special tokens "
            f"alone are {found[1]}; or give --character_coverage in --tokenizer.options"
        )
    if "!seed_sentencepieces.empty()" in message or "(all_chars_count) > (0)" in message:
        return "there is too little text to train a tokenizer on; give more"
    condition, reason = re.findall(r"(?s)^(?:\w+: )?(?:\S+\(\d+\) )?(?:\[(.*?)\] )?(.*)", message)[
        0
    ]
    return f"--tokenizer.options {cfg.options!r}: SentencePiece refuses; {reason or condition}"
