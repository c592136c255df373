"""The Transformer of the input method: the toolkit's Decoder, from codes to words.

At each place it reads a code, and the word before it where the user commits words; both embeddings
are added. Its head tells apart the words that were seen often enough to learn anything of, and one
more thing: that it is some other word.

    T places   L places that it sees at once   n ids at a place   O outputs of the head
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from tsuzuri.config import ModelConfig
from tsuzuri.features.aligned import write_aligned
from tsuzuri.features.packing import IGNORED
from tsuzuri.generate import graphdef
from tsuzuri.tokenizer.first_two import CODES, FirstTwoTokenizer

Sees = Literal["prefixes", "committed"]  # codes alone, or also the words that were committed

_OFTEN = 2  # a word seen less often has no output of its own
_ROWS = 16  # windows at once


def outputs(tokenizer: FirstTwoTokenizer) -> np.ndarray:
    """The output of each word, int64 [V + 1]; the last one is for all rare and unknown words."""
    often = np.append(tokenizer.counts >= _OFTEN, False)
    return np.where(often, np.cumsum(often) - 1, often.sum())


def places(
    tokenizer: FirstTwoTokenizer, codes: np.ndarray, words: np.ndarray, sees: Sees
) -> np.ndarray:
    """What the model reads at each place of a text, int32 [T, n].

    Args:
      codes: of the words.
      words: their numbers [T], or but the last one's [T - 1].
    """
    if sees == "prefixes":
        return codes[:, None].astype(np.int32)
    ids = np.where(words == len(tokenizer.words), tokenizer.unknown, len(CODES) + words)
    before = np.concatenate([[tokenizer.end_of_text], ids])[: len(codes)]
    return np.stack([codes, before], axis=1).astype(np.int32)


def write_features(
    out: Path,
    tokenizer: FirstTwoTokenizer,
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]],
    sees: Sees,
    length: int,
    source: dict[str, Any],
) -> dict[str, Any]:
    """Features of a text for the train loop.

    Args:
      parts: the codes and the words [T] of the splits, "train" and "held_out".
      length: L. Blocks of the training text overlap by half, so that each place is also seen with
        much before it.

    Raises:
      RunError: they cannot be written.
    """
    output_of = outputs(tokenizer)
    letters = np.array([*map(len, tokenizer.words), 0])
    blocks = {
        split: (
            _windows(places(tokenizer, codes, words, sees), length, step, tokenizer.padding),
            _windows(output_of[words], length, step, IGNORED),
        )
        for split, (codes, words), step in zip(
            parts, parts.values(), (max(1, length // 2), length), strict=True
        )
    }
    bytes_ = {split: int((letters[words] + 1).sum()) for split, (_, words) in parts.items()}
    return write_aligned(out, tokenizer, int(output_of[-1]) + 1, blocks, bytes_, source)


def _windows(values: np.ndarray, length: int, step: int, fill: int) -> np.ndarray:
    """[T, ...] to [N, L, ...], one beginning every `step`; the last one filled up."""
    starts = range(0, max(1, len(values) - length + step), step)
    missing = starts[-1] + length - len(values)
    padded = np.pad(values, [(0, missing), *[(0, 0)] * (values.ndim - 1)], constant_values=fill)
    return np.stack([padded[start : start + length] for start in starts])


class Transformer:
    """A trained model, and what it gives for places of texts.

    Args:
      cfg: the resolved ModelConfig.
      params: the Decoder's, a nested dict.
    """

    def __init__(
        self, cfg: ModelConfig, params: Any, tokenizer: FirstTwoTokenizer, sees: Sees
    ) -> None:
        self._cfg, self._params, self._tokenizer = cfg, params, tokenizer
        self.sees: Sees = sees
        self._outputs = outputs(tokenizer)
        self.length = cfg.context_length

    def last(self, texts: list[np.ndarray], codes: list[int]) -> list[np.ndarray]:
        """What comes at the last place of each text: p(word | code), float64 [candidates] each.

        Args:
          texts: as `places` gives them; the last L places are looked at.
          codes: the code at each last place.
        """
        rows = 1 if len(texts) == 1 else -(-len(texts) // _ROWS) * _ROWS
        tokens = np.full((rows, self.length, texts[0].shape[1]), self._tokenizer.padding, np.int32)
        at = np.zeros(rows, np.int32)
        for row, text in enumerate(texts):
            text = text[-self.length :]
            tokens[row, : len(text)], at[row] = text, len(text) - 1
        logits_BO = np.asarray(_logits_at(self._cfg, self._params, tokens, at))
        return [self._of_code(logits_BO[row], code) for row, code in enumerate(codes)]

    def along(self, codes: np.ndarray, words: np.ndarray) -> Iterator[np.ndarray]:
        """p(word | code) at each place of a text whose words are all committed (or none seen).

        Each place is looked at with half of the context before it at least, where there is so much.
        """
        half, T = self.length // 2, len(codes)
        tokens_TN = places(self._tokenizer, codes, words, self.sees)
        windows = _windows(tokens_TN, self.length, half, self._tokenizer.padding)
        for first in range(0, len(windows), _ROWS):
            batch = windows[first : first + _ROWS]
            batch = np.pad(batch, [(0, _ROWS - len(batch)), (0, 0), (0, 0)])
            logits_BLO = np.asarray(_logits(self._cfg, self._params, batch))
            for row, logits_LO in enumerate(logits_BLO[: len(windows) - first], first):
                new = half if row else 0  # what the window before did not have
                for place in range(row * half + new, min(T, row * half + self.length)):
                    yield self._of_code(logits_LO[place - row * half], int(codes[place]))

    def _of_code(self, logits_O: np.ndarray, code: int) -> np.ndarray:
        """The softmax over a code's outputs. Its rare words share what is left for them alike."""
        candidates = self._tokenizer.candidates(code)
        given = self._outputs[candidates.start : candidates.stop]
        often = int((given < self._outputs[-1]).sum())  # they come first, being more frequent
        rare = len(given) - often
        logits = logits_O[given[: often + 1]].astype(np.float64)  # of the rare ones the first
        shares = np.exp(logits - logits.max(initial=-np.inf))
        shares /= shares.sum()
        return (
            np.concatenate([shares[:often], np.full(rare, shares[-1] / rare)]) if rare else shares
        )


@partial(jax.jit, static_argnums=0)
def _logits(cfg: ModelConfig, params: Any, tokens_BLN: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef(cfg), params)
    return model(tokens_BLN)


@partial(jax.jit, static_argnums=0)
def _logits_at(cfg: ModelConfig, params: Any, tokens_BLN: jax.Array, at_B: jax.Array) -> jax.Array:
    """The logits [B, O] at one place of each row."""
    model = nnx.merge(graphdef(cfg), params)
    x_BLD, _ = model.hidden(tokens_BLN)
    x_BD = jax.numpy.take_along_axis(x_BLD, at_B[:, None, None], axis=1)[:, 0]
    return model.logits(x_BD)


class Reading:
    """The Transformer as a Predictor of a text that is known before: many places at once."""

    def __init__(self, transformer: Transformer, codes: np.ndarray, words: np.ndarray):
        self._along = transformer.along(codes, words)
        self._here = next(self._along)

    def probabilities(self, code: int) -> np.ndarray:
        """p(word | what came before, code), at this place of the text."""
        return self._here

    def advance(self, code: int, word: int | None) -> None:
        """To the next place; see `Predictor`."""
        self._here = next(self._along, np.zeros(0))


class Typing:
    """The Transformer as a Predictor: it follows one text as it is typed."""

    def __init__(self, transformer: Transformer, tokenizer: FirstTwoTokenizer):
        self._transformer, self._tokenizer = transformer, tokenizer
        self._codes: list[int] = []
        self._words: list[int] = []

    def probabilities(self, code: int) -> np.ndarray:
        """p(word | what came before, code): float64 [candidates of the code], with sum 1."""
        if not len(self._tokenizer.candidates(code)):
            return np.zeros(0)
        codes, words = np.array([*self._codes, code]), np.array(self._words, np.int64)
        text = places(self._tokenizer, codes, words, self._transformer.sees)
        return self._transformer.last([text], [code])[0]

    def advance(self, code: int, word: int | None) -> None:
        """A code was typed, and perhaps a word committed; see `Predictor`."""
        kept = self._transformer.length
        self._codes = [*self._codes, code][-kept:]
        self._words = [*self._words, len(self._tokenizer.words) if word is None else word][-kept:]
