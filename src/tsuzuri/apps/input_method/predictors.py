"""What all that predicts the next word has in common; mixtures; and how good one is on a text."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from tsuzuri.tokenizer.first_two import FirstTwoTokenizer

NO_CANDIDATE = 1 << 30  # the rank of a word that is not among its code's candidates


class Predictor(Protocol):
    """Follows one text as it is typed, code by code."""

    def probabilities(self, code: int) -> np.ndarray:
        """p(word | what came before, code): float64 [candidates of the code], with sum 1."""
        ...

    def advance(self, code: int, word: int | None) -> None:
        """A code was typed.

        Args:
          code: an index of CODES.
          word: what the user committed for it, len(words) for one that is not in the vocabulary;
            None if only the code is known.
        """
        ...


class Mixture:
    """A linear mixture of predictors, each weighed by one of `weights`."""

    def __init__(self, weights: Sequence[float] | np.ndarray, predictors: Sequence[Predictor]):
        self._weights = np.asarray(weights) / np.sum(weights)
        self._predictors = predictors

    def probabilities(self, code: int) -> np.ndarray:
        parts = [predictor.probabilities(code) for predictor in self._predictors]
        return self._weights @ np.array(parts)

    def advance(self, code: int, word: int | None) -> None:
        for predictor in self._predictors:
            predictor.advance(code, word)


def fit_weights(scores: Sequence[np.ndarray], steps: int = 100) -> np.ndarray:
    """The weights under which a mixture finds a development text likeliest, by EM.

    Args:
      scores: of each predictor, float [n], what it gave the true word at each position. Positions
        where all gave 0 tell nothing and are left out.
    """
    given = np.array(scores, np.float64)
    given = given[:, given.any(0)]
    weights = np.full(len(given), 1 / len(given))
    for _ in range(steps if given.size else 0):
        shares = weights[:, None] * given
        weights = (shares / shares.sum(0)).mean(1)
    return weights


def ranks(
    predictor: Predictor,
    tokenizer: FirstTwoTokenizer,
    codes: Iterable[int],
    words: Iterable[int],
    committed: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Types a text.

    Args:
      codes: of the text's words.
      words: their numbers.
      committed: each word is committed after it is guessed; if not, only codes are known.

    Returns:
      At each position, how many candidates are before the true word (NO_CANDIDATE if it is none;
      of equally probable ones the more frequent is before), and its probability: int64 and float64.
    """
    found_ranks, found = [], []
    for code, word in zip(codes, words, strict=True):
        given, candidates = predictor.probabilities(code), tokenizer.candidates(code)
        rank, probability = NO_CANDIDATE, 0.0
        if word in candidates:
            at = word - candidates.start
            probability = given[at]
            rank = int((given > probability).sum() + (given[:at] == probability).sum())
        found_ranks.append(rank)
        found.append(probability)
        predictor.advance(code, word if committed else None)
    return np.array(found_ranks, np.int64), np.array(found, np.float64)
