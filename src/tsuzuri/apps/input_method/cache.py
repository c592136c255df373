"""Learning while the user types: a cache of recent words that adapts a predictor to the text.

Source: Kuhn and De Mori (1990), "A cache-based natural language model for speech recognition"; the
decay by age is Grave et al.'s (2017), the ratio of unigrams Kneser et al.'s (1997), "Language model
adaptation using dynamic marginals".
"""

from collections import defaultdict
from collections.abc import Hashable

import numpy as np

from tsuzuri.apps.input_method.histories import HiddenHistories
from tsuzuri.apps.input_method.predictors import Predictor
from tsuzuri.tokenizer.first_two import FirstTwoTokenizer, code_of

# How many words until a count is half of itself, and how many counts the prediction without them
# is worth; of the levels first, after how many same words. Tuned on parts of three texts.
TOPIC = (1000.0, 15.0)
LEVELS = [(0, 100.0, 30.0), (1, 1000.0, 6.0), (2, 1e6, 3.0)]


class Cache:
    """A predictor, and what it should have known of this text.

    First each word's probability is multiplied by how much more frequent it is here than in the
    training text; then it is interpolated with the words that were last here, with those that
    followed the same word, and the same two words.

    A word that is not in the vocabulary is learned too, once it is spelled: `number` gives it one.
    """

    def __init__(
        self,
        tokenizer: FirstTwoTokenizer,
        predictor: Predictor | None = None,
        hidden: HiddenHistories | None = None,
    ):
        """A cache that has seen nothing yet.

        Args:
          predictor: what is adapted; this cache advances it. None: the words' usual frequencies.
          hidden: a part of it. Where words are not committed, the cache counts what later codes
            have made this believe of them.
        """
        self._predictor, self._tokenizer, self._hidden = predictor, tokenizer, hidden
        self._topic = _Counts(TOPIC[0])
        self._levels = [_Counts(half_life) for _, half_life, _ in LEVELS]
        self._before: tuple[int, ...] = (-1,) * max(length for length, *_ in LEVELS)
        self._found: dict[int, np.ndarray] = {}  # for the code that is typed now
        self._spelled: list[str] = []  # those numbered from len(words) + 1 on
        self._numbers: dict[str, int] = {}
        self._of_code: defaultdict[int, list[int]] = defaultdict(list)

    def number(self, word: str) -> int:
        """A word's number for `advance`; a new one, above len(words), for a word that is new."""
        known = self._tokenizer.index(word)
        if known < len(self._tokenizer.words):
            return known
        if word not in self._numbers:
            self._spelled.append(word)
            self._numbers[word] = known + len(self._spelled)
            self._of_code[code_of(word)].append(self._numbers[word])
            self._found = {}
        return self._numbers[word]

    def probabilities(self, code: int) -> np.ndarray:
        """p(word | what came before, code): float64 [candidates of the code], with sum 1."""
        found = self._all(code)[: len(self._tokenizer.candidates(code))]
        return found / found.sum()

    def extra(self, code: int) -> list[tuple[str, float]]:
        """The learned words of a code, and the probability of each; `probabilities` divides what
        they leave.
        """
        found = self._all(code)[len(self._tokenizer.candidates(code)) :]
        words = [self._spelled[n - len(self._tokenizer.words) - 1] for n in self._of_code[code]]
        return list(zip(words, found.tolist(), strict=True))

    def advance(self, code: int, word: int | None) -> None:
        """A code was typed, and perhaps a word committed, by its `number`; see `Predictor`."""
        unknown = len(self._tokenizer.words)
        self._found = {}
        if self._predictor:
            self._predictor.advance(code, None if word is None else min(word, unknown))
        for counts in [self._topic, *self._levels]:
            counts.age()
        if word is not None and word != unknown:
            self._topic.add(code, word, 1.0)
            for counts, (length, *_) in zip(self._levels, LEVELS, strict=True):
                counts.add((self._context(length), code), word, 1.0)
        elif word is None and self._hidden is not None:
            words, beliefs = self._hidden.earliest()
            codes = np.searchsorted(self._tokenizer.first, words, side="right") - 1
            for earlier in zip(codes.tolist(), words.tolist(), beliefs.tolist(), strict=True):
                self._topic.add(*earlier)
        self._before = (*self._before, unknown if word is None else word)[1:]

    def _context(self, length: int) -> tuple[int, ...]:
        return self._before[len(self._before) - length :]

    def _all(self, code: int) -> np.ndarray:
        """The probability of each candidate and each learned word: they sum to 1."""
        if code not in self._found:  # `probabilities` and `extra` both need it
            self._found = {code: self._predict(code)}
        return self._found[code]

    def _predict(self, code: int) -> np.ndarray:
        candidates, learned = self._tokenizer.candidates(code), self._of_code[code]
        many = len(candidates)
        counts, prior = self._topic.of(code, candidates, learned), TOPIC[1]
        found = counts / (counts.sum() + prior)
        if candidates:
            usual = self._tokenizer.counts[candidates.start : candidates.stop]
            usual = usual / usual.sum()
            now = (counts[:many] + prior * usual) / (counts[:many].sum() + prior)
            given = self._predictor.probabilities(code) if self._predictor else usual
            adapted = given * now / usual
            found[:many] = adapted * (1 - found[many:].sum()) / adapted.sum()
        for level, (length, _, prior) in zip(self._levels, LEVELS, strict=True):
            counts = level.of((self._context(length), code), candidates, learned)
            found = (counts + prior * found) / (counts.sum() + prior)
        return found / max(found.sum(), 1e-300)


class _Counts:
    """Counts of words under a key, which halve with every `half_life` words of the text."""

    def __init__(self, half_life: float):
        self._growth, self._one = 2 ** (1 / half_life), 1.0  # newer ones grow: none need be touched
        self._counts: defaultdict[Hashable, defaultdict[int, float]] = defaultdict(
            lambda: defaultdict(float)
        )

    def age(self) -> None:
        self._one *= self._growth
        if self._one > 1e100:  # before it is too large
            for counts in self._counts.values():
                for word in counts:
                    counts[word] /= self._one
            self._one = 1.0

    def add(self, key: Hashable, word: int, weight: float) -> None:
        self._counts[key][word] += weight * self._one

    def of(self, key: Hashable, candidates: range, learned: list[int]) -> np.ndarray:
        """The counts of the candidates, then of the learned words."""
        found = np.zeros(len(candidates) + len(learned))
        if counts := self._counts.get(key):
            words = np.fromiter(counts.keys(), np.int64, len(counts))
            at = words - candidates.start
            if learned:
                after = len(candidates) + np.searchsorted(learned, words)
                at = np.where(words < candidates.stop, at, after)
            found[at] = np.fromiter(counts.values(), np.float64, len(counts)) / self._one
        return found
