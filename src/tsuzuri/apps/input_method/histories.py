"""Words from codes by an n-gram model: step by step, and a whole sequence at once."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tsuzuri.tokenizer.first_two import FirstTwoTokenizer


class WordModel(Protocol):
    """p(w | h), as of `KneserNey`."""

    order: int

    def probabilities(self, histories: np.ndarray, candidates: range) -> np.ndarray:
        """float64 [histories, candidates]; histories: int [n, order - 1], the latest word last."""
        ...


class HiddenHistories:
    """Filters over what the earlier words may have been: the forward algorithm of a hidden Markov
    model whose states are the last order - 1 words, on a beam of the likeliest states.

    The words that the user has committed are known; when all are, this is the plain n-gram model.
    """

    def __init__(self, model: WordModel, tokenizer: FirstTwoTokenizer, beam: int = 32):
        self._model, self._tokenizer, self._beam = model, tokenizer, beam
        self._histories = np.full((1, model.order - 1), -1, np.int64)
        self._weights = np.ones(1)  # the probability of each history, with sum 1
        self._code, self._joint = -1, np.zeros((1, 0))

    def probabilities(self, code: int) -> np.ndarray:
        """p(word | what came before, code): float64 [candidates of the code], with sum 1."""
        found = self._joint_with(code).sum(0)
        return found / found.sum()

    def advance(self, code: int, word: int | None) -> None:
        """A code was typed, and perhaps a word committed; see `Predictor`."""
        candidates, joint = self._tokenizer.candidates(code), self._joint_with(code)
        if word is None and candidates:
            words = np.arange(candidates.start, candidates.stop)
        elif word is not None and word in candidates:
            words, joint = np.array([word]), joint[:, [word - candidates.start]]
        else:  # nothing is learned of the earlier words from one that no model knows
            words, joint = np.array([len(self._tokenizer.words)]), self._weights[:, None]
        # Histories that agree in all but the word that is now forgotten become one.
        kept, same = _alike(self._histories[:, 1:])
        merged = np.zeros((len(kept), len(words)))
        np.add.at(merged, same, joint)
        row, column = np.divmod(_largest(merged.ravel(), self._beam), len(words))
        self._histories = _push(kept[row], words[column], self._model.order)
        self._weights = merged[row, column] / merged[row, column].sum()
        self._code = -1

    def earliest(self) -> tuple[np.ndarray, np.ndarray]:
        """What is now believed of the earliest word that the states hold: the words (without those
        that are not in the vocabulary), and the probability of each.
        """
        words, same = np.unique(self._histories[:, 0], return_inverse=True)
        known = (words >= 0) & (words < len(self._tokenizer.words))
        return words[known], np.bincount(same, self._weights)[known]

    def _joint_with(self, code: int) -> np.ndarray:
        """p(history, word): [histories, candidates]; `advance` needs it again."""
        if code != self._code:
            given = self._model.probabilities(self._histories, self._tokenizer.candidates(code))
            self._code, self._joint = code, self._weights[:, None] * given
        return self._joint


def convert(
    model: WordModel, tokenizer: FirstTwoTokenizer, codes: Sequence[int], k: int = 1, beam: int = 64
) -> list[tuple[list[int], float]]:
    """The k likeliest word sequences for a sequence of codes, and their log probabilities.

    Viterbi search on a beam. The k best ways to each last order - 1 words are kept, so that it is
    exact where the beam is wide enough. A code without candidates gives the unknown word.
    """
    histories, scores = np.full((1, model.order - 1), -1, np.int64), np.zeros(1)
    steps = []  # at each code, the hypotheses: where each came from, and its word
    for code in codes:
        candidates = tokenizer.candidates(code)
        if candidates:
            words = np.arange(candidates.start, candidates.stop)
            unique, same = _alike(histories)
            joint = scores[:, None] + np.log(model.probabilities(unique, candidates))[same]
        else:
            words, joint = np.array([len(tokenizer.words)]), scores[:, None]
        flat = joint.ravel()
        top = _largest(flat, 4 * k * beam)
        top = top[np.argsort(-flat[top], kind="stable")]
        row, column = np.divmod(top, len(words))
        histories = _push(histories[row, 1:], words[column], model.order)
        kept = np.flatnonzero(_earlier_alike(histories) < k)[:beam]
        histories, scores = histories[kept], flat[top[kept]]
        steps.append((row[kept], words[column[kept]]))
    found = []
    for at in range(min(k, len(scores))):
        sequence, log_probability = [], float(scores[at])
        for came_from, words in reversed(steps):
            sequence.append(int(words[at]))
            at = came_from[at]
        found.append((sequence[::-1], log_probability))
    return found


def _largest(values: np.ndarray, many: int) -> np.ndarray:
    """Where the largest stand, in no order; all if there are no more."""
    if values.size <= many:
        return np.arange(values.size)
    return np.argpartition(values, -many)[-many:]


def _alike(histories: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows, and which of them each row is."""
    if not histories.shape[1]:
        return histories[:1], np.zeros(len(histories), np.int64)
    order = np.lexsort(histories.T)
    ordered = histories[order]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(1)])
    same = np.empty(len(order), np.int64)
    same[order] = new.cumsum() - 1
    return ordered[new], same


def _earlier_alike(histories: np.ndarray) -> np.ndarray:
    """How many rows before each row are equal to it."""
    _, same = _alike(histories)
    order = np.argsort(same, kind="stable")
    first = np.searchsorted(same[order], np.arange(same.max() + 1))
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order)) - first[same[order]]
    return found


def _push(earlier: np.ndarray, words: np.ndarray, order: int) -> np.ndarray:
    """Histories with one more word, and no longer than the model's."""
    return np.concatenate([earlier, words[:, None]], 1)[:, : order - 1]
