"""jax-llm's tokenizer: BPE over words of characters. Lossy; kept for comparison.

Spaces and newlines only part the text (the pattern `\\w+|[^\\w\\s]+`), so decoding cannot know
where they were: it puts one space between any two tokens, as jax-llm's samples show. A character
that training did not see becomes `<unk>`, which decodes to U+FFFD.

Source: src/jax_llm/train_tokenizer.py of github.com/speed1313/jax-llm. There `<|endoftext|>` is
also the unknown token, and is recognized where a text has it; here it is neither.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsuzuri.config import TokenizerConfig
from tsuzuri.errors import UserError
from tsuzuri.tokenizer.protocol import check_ids, save_folder, utf8
from tsuzuri.tokenizer.sample import sample

SPECIAL_TOKENS = ("<|endoftext|>", "<|padding|>", "<unk>")


class WhitespaceTokenizer:
    """BPE of Hugging Face `tokenizers` after its `Whitespace` pre-tokenizer. Lossy."""

    kind = "whitespace"
    begin_of_text = 0
    end_of_text = 0
    padding = 1
    unknown = 2

    def __init__(self, content: str):
        import tokenizers

        self._engine = tokenizers.Tokenizer.from_str(content)
        self._engine.encode_special_tokens = True  # typed in a text they are ordinary text
        self.vocab_size = self._engine.get_vocab_size()
        self.fingerprint = hashlib.sha256(self._engine.to_str().encode()).hexdigest()
        tokens = [self._engine.id_to_token(i) for i in range(self.vocab_size)]
        self.tokens = [
            b"",
            b"",
            "\ufffd ".encode(),
            *(f"{token} ".encode() for token in tokens[3:]),
        ]

    def encode(self, text: str) -> list[int]:
        utf8(text)
        return self._engine.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            utf8(text)
        return [np.array(e.ids, np.uint32) for e in self._engine.encode_batch_fast(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace").removesuffix(" ")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join([self.tokens[i] for i in check_ids(ids, self.vocab_size)])

    def save(self, folder: Path) -> None:
        save_folder(self, folder, self._save_model)

    def _save_model(self, folder: Path) -> None:
        self._engine.save(str(folder / "tokenizer.json"))


def train(
    texts: Iterator[str], cfg: TokenizerConfig, say: Callable[[str], None], progress: bool
) -> WhitespaceTokenizer:
    """Trains on the first `cfg.sample_mb` MB of the texts, and says that the result is lossy.

    Raises:
      UserError: the vocabulary cannot hold the text's characters; there is no text; the text holds
        half of a surrogate pair; there are options, which are SentencePiece's.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if cfg.options:
        raise UserError(
            "--tokenizer.options are SentencePiece's; --tokenizer.kind whitespace has none"
        )
    engine = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[2]))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=cfg.vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    # A list, as an error in an iterator would come out of the library as another one.
    parts = list(sample(texts, cfg, say, progress))
    engine.train_from_iterator((line for part in parts for line in part.splitlines()), trainer)
    tokenizer = WhitespaceTokenizer(engine.to_str())
    if tokenizer.vocab_size > cfg.vocab_size:
        raise UserError(
            f"--tokenizer.vocab-size {cfg.vocab_size} is too small: the characters of the text and "
            f"the special tokens alone are {tokenizer.vocab_size}"
        )
    say(
        "a whitespace tokenizer is lossy: spaces and newlines are lost, and a space comes between "
        "tokens; choose another --tokenizer.kind for text that comes back as it was"
    )
    if tokenizer.vocab_size < cfg.vocab_size:
        say(
            f"the text gives a vocabulary of {tokenizer.vocab_size} tokens, "
            f"not the {cfg.vocab_size} asked for: there are no more pairs to merge"
        )
    return tokenizer


def read(folder: Path, config: dict[str, Any]) -> WhitespaceTokenizer:
    """Reads what `save` wrote; `config` is the folder's config.json.

    Raises:
      UserError: it is damaged.
    """
    path = folder / "tokenizer.json"
    try:
        return WhitespaceTokenizer(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"{path}: damaged, or no tokenizer.json ({error})") from error
