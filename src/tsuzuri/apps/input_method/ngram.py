"""Counts of short runs of words: the seed's model, and interpolated Kneser-Ney.

Both keep the histories that were seen as a trie that is walked backwards, from the latest word to
earlier ones: a longer history is found by its shorter one and one more word, and where the shorter
one is unseen the longer one is too. A level of the trie is one sorted array of numbers
`shorter history x base + word`, so that a look-up is one bisection, for many histories at once.
"""

import numpy as np

from tsuzuri.tokenizer.first_two import CODES


class SeedCounts:
    """The model of speed1313/input-method (`train-ngram.py`): the most frequent word after a window
    of codes that includes the present one; a window that is unseen is shortened at its left.
    """

    def __init__(self, codes: np.ndarray, words: np.ndarray, order: int):
        """Counts for windows of 1 to `order` codes; codes and words: int [n]."""
        self._levels: list[tuple[np.ndarray, np.ndarray]] = []  # windows, and the word of each
        window = np.zeros(len(codes), np.int64)
        # The text's first windows would be shorter: they are not counted.
        for length in range(1, min(order, len(codes)) + 1):
            window = window[min(1, length - 1) :] * len(CODES) + codes[: len(codes) - length + 1]
            windows, window = np.unique(window, return_inverse=True)
            self._levels.append((windows, _most_frequent(window, words[length - 1 :])))

    def predict(self, codes: np.ndarray, n: int) -> np.ndarray:
        """The word at each position of a text, by the last n codes; -1 if the code is unseen."""
        predicted = np.full(len(codes), -1)
        rows, window = np.arange(len(codes)), np.zeros(len(codes), np.int64)
        for back, (windows, best) in enumerate(self._levels[:n]):
            rows, window = rows[rows >= back], window[rows >= back]
            at = _find(windows, window * len(CODES) + codes[rows - back])
            rows, window = rows[at >= 0], at[at >= 0]
            predicted[rows] = best[window]
        return predicted


class KneserNey:
    """Interpolated modified Kneser-Ney (Chen and Goodman, 1999, section 3).

      p(w | h) = (c(h w) - D(c(h w))) / c(h) + gamma(h) p(w | h without its earliest word)

    c counts at the highest order how often h w was seen, and below after how many different words.
    Below the unigrams every word is as likely as another.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        """From what `arrays` gave."""
        self._arrays = arrays
        self.vocab_size, self._base, self.order = (int(n) for n in arrays["sizes"])
        names = ["contexts", "ngrams", "shares", "backoffs"]
        self._levels = [[arrays[f"{name}{k}"] for name in names] for k in range(self.order)]

    @classmethod
    def fit(cls, words: np.ndarray, order: int, vocab_size: int) -> "KneserNey":
        """Counts a text.

        Args:
          words: int [n], each below vocab_size.
          order: of the longest n-grams: a history has order - 1 words.
        """
        base = vocab_size + 2  # of begin (-1) to the unknown word (vocab_size)
        context = np.zeros(len(words), np.int64)
        contexts, ids, ngrams, firsts, counts = [np.zeros(1, np.int64)], [], [], [], []
        for back in range(order):
            if back:
                earlier = np.concatenate([np.full(back, -1), words])[: len(words)]
                keys, context = np.unique(context * base + earlier + 1, return_inverse=True)
                contexts.append(keys)
            keys, first, at, count = np.unique(
                context * vocab_size + words,
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            ngrams.append(keys)
            ids.append(at)
            firsts.append(first)
            counts.append(count)
        # Each different n-gram counts once for the shorter one that it ends with.
        for k in range(order - 1):
            counts[k] = np.bincount(ids[k][firsts[k + 1]], minlength=len(ngrams[k]))
        arrays = {"sizes": np.array([vocab_size, base, order])}
        for k in range(order):
            of, discount = ngrams[k] // vocab_size, discounts(counts[k])[np.minimum(counts[k], 3)]
            total = np.bincount(of, counts[k])
            arrays |= {
                f"contexts{k}": contexts[k],
                f"ngrams{k}": ngrams[k],
                f"shares{k}": ((counts[k] - discount) / total[of]).astype(np.float32),
                f"backoffs{k}": (np.bincount(of, discount) / total).astype(np.float32),
            }
        return cls(arrays)

    def arrays(self) -> dict[str, np.ndarray]:
        """All there is to store, by level k, of histories of k words.

        contexts: int64, sorted, history of k - 1 words x base + (the word before it + 1);
        ngrams: int64, sorted, history x vocab_size + word; shares and backoffs: float32, the two
        terms of the formula, by n-gram and by history.
        """
        return self._arrays

    def probabilities(self, histories: np.ndarray, candidates: range) -> np.ndarray:
        """p(w | h) of neighbouring words: float64 [histories, candidates].

        Args:
          histories: int [n, order - 1], the latest word last; -1 before the text's beginning.
          candidates: words' numbers, in steps of one.
        """
        found = np.full((len(histories), len(candidates)), 1 / self.vocab_size)
        rows, context = np.arange(len(histories)), np.zeros(len(histories), np.int64)
        for back, (contexts, ngrams, shares, backoffs) in enumerate(self._levels):
            if back:
                at = _find(contexts, context * self._base + histories[rows, -back] + 1)
                rows, context = rows[at >= 0], at[at >= 0]
            if not len(rows):
                break
            zeroth = context * self.vocab_size + candidates.start
            low, high = np.searchsorted(ngrams, [zeroth, zeroth + len(candidates)])
            lengths = high - low
            ends = lengths.cumsum()
            at = np.arange(ends[-1]) + np.repeat(high - ends, lengths)
            found[rows] *= backoffs[context, None]
            found[np.repeat(rows, lengths), ngrams[at] - np.repeat(zeroth, lengths)] += shares[at]
        return found


def discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken from a count of 0, 1, 2, and 3 or more: Chen and Goodman's estimates.

    Where a text is too small for them (none was seen once, or twice...), 1/2, 1, 3/2 as in KenLM.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    if n[1:5].all():
        y = n[1] / (n[1] + 2 * n[2])
        found = np.array([0, *(i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3))])
        if (found[1:] > 0).all():
            return found
    return np.array([0, 0.5, 1, 1.5])


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted key stands among sorted ones; -1 where it does not."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def _most_frequent(groups: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Of each group 0, 1, ... its most frequent word; of equals the one that came first."""
    base = int(words.max(initial=0)) + 1
    keys, first, count = np.unique(groups * base + words, return_index=True, return_counts=True)
    order = np.lexsort([first, -count, keys // base])
    _, at = np.unique(keys[order] // base, return_index=True)
    return keys[order][at] % base
