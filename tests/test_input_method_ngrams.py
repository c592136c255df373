"""The n-gram models of the input method, against slow ones straight from the formulas."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri.apps.input_method.cache import Cache
from tsuzuri.apps.input_method.histories import HiddenHistories, convert
from tsuzuri.apps.input_method.ngram import KneserNey, SeedCounts, discounts
from tsuzuri.apps.input_method.predictors import NO_CANDIDATE, Mixture, fit_weights, ranks
from tsuzuri.tokenizer.first_two import FirstTwoTokenizer, code_of, words_of

TEXT = """the cat sat on the mat and the cow sat on the map so the can sat on a man that ran to the
cat and the cow then the cat ran to the mat so a man sat and the cow ran and a can ran to a cow
then that man sat so that the cat can sit on the mat as the cow can on the map"""
WORDS = words_of(TEXT)
TOKENIZER = FirstTwoTokenizer.of(WORDS)
IDS = np.array([TOKENIZER.index(word) for word in WORDS])
CODES = np.array([code_of(word) for word in WORDS])
V = len(TOKENIZER.words)
EVERY = range(V)

small_texts = st.lists(st.integers(0, 5), min_size=1, max_size=60)


def by_the_book(words: list[int], order: int, size: int):
    """p(word, history) of interpolated modified Kneser-Ney; begin is -1."""
    padded = [-1] * order + words
    runs = [Counter(), *(Counter() for _ in range(order))]
    for k in range(1, order + 1):
        for t in range(order, len(padded)):
            runs[k][tuple(padded[t - k + 1 : t + 1])] += 1
    counts = {order: runs[order]}
    for k in range(1, order):
        counts[k] = Counter(run[1:] for run in runs[k + 1])
    taken, followers = {}, {}
    for k in counts:
        n = Counter(counts[k].values())
        taken[k] = (0.5, 1.0, 1.5)
        if n[1] and n[2] and n[3] and n[4]:
            y = n[1] / (n[1] + 2 * n[2])
            by_count = (1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3])
            if min(by_count) > 0:
                taken[k] = by_count
        followers[k] = defaultdict(dict)
        for run, count in counts[k].items():
            followers[k][run[:-1]][run[-1]] = count

    def p(word: int, history: tuple[int, ...]) -> float:
        k = len(history) + 1
        lower = p(word, history[1:]) if history else 1 / size
        seen = followers[k].get(history)
        if not seen:
            return lower
        cut = {w: taken[k][min(c, 3) - 1] for w, c in seen.items()}
        own = seen[word] - cut[word] if word in seen else 0.0
        return (own + sum(cut.values()) * lower) / sum(seen.values())

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_kneser_ney_is_the_formula(order: int):
    p = by_the_book(IDS.tolist(), order, V)
    model = KneserNey.fit(IDS, order, V)
    seen = np.stack([np.roll(IDS, -n) for n in range(4)], 1)[:, : order - 1]
    rng = np.random.default_rng(0)
    histories = np.concatenate([seen, rng.integers(-1, V + 1, (40, order - 1))])
    found = model.probabilities(histories, EVERY)
    wanted = [[p(w, tuple(h)) for w in EVERY] for h in histories.tolist()]
    np.testing.assert_allclose(found, wanted, rtol=2e-6)


@settings(max_examples=60, deadline=None)
@given(small_texts, st.integers(1, 4), st.data())
def test_kneser_ney_sums_to_one_and_is_the_formula_on_any_text(words, order, data):
    model = KneserNey.fit(np.array(words), order, 7)
    history = st.lists(st.integers(-1, 7), min_size=order - 1, max_size=order - 1)
    drawn = data.draw(st.lists(history, min_size=1))
    histories = np.array(drawn, np.int64).reshape(len(drawn), order - 1)
    found = model.probabilities(histories, range(7))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    assert (found > 0).all()
    p = by_the_book(words, order, 7)
    wanted = [[p(w, tuple(h)) for w in range(7)] for h in histories.tolist()]
    np.testing.assert_allclose(found, wanted, rtol=2e-6)
    np.testing.assert_array_equal(model.probabilities(histories, range(2, 5)), found[:, 2:5])


def test_discounts_of_a_known_case():
    # n1 = 8, n2 = 4, n3 = 2, n4 = 1: Y = 1/2, D = 1 - 1/2, 2 - 3/4, 3 - 1.
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 3])
    np.testing.assert_allclose(discounts(counts), [0, 0.5, 1.25, 2])
    np.testing.assert_allclose(discounts(np.array([1, 1, 2])), [0, 0.5, 1, 1.5])


def test_arrays_make_the_same_model_again(tmp_path):
    model = KneserNey.fit(IDS, 3, V)
    np.savez(tmp_path / "model.npz", **model.arrays())
    with np.load(tmp_path / "model.npz") as file:
        again = KneserNey(dict(file))
    histories = np.array([[-1, -1], [0, 1], [V, 2]])
    np.testing.assert_array_equal(
        again.probabilities(histories, EVERY), model.probabilities(histories, EVERY)
    )
    assert again.order == 3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=80))
def test_seed_counts_are_those_of_dictionaries(pairs):
    codes, words = [c for c, _ in pairs], [3 * c + w for c, w in pairs]
    half = len(codes) // 2 + 1
    counted = defaultdict(Counter)
    for length in range(1, 5):
        for end in range(length, half + 1):
            counted[tuple(codes[end - length : end])][words[end - 1]] += 1
    model = SeedCounts(np.array(codes[:half]), np.array(words[:half]), 4)
    for n in range(1, 5):
        wanted = []
        for end in range(1, len(codes) + 1):
            windows = (tuple(codes[max(0, end - k) : end]) for k in range(n, 0, -1))
            best = next((counted[w].most_common(1)[0][0] for w in windows if w in counted), -1)
            wanted.append(best)
        assert model.predict(np.array(codes), n).tolist() == wanted


def joint(model: KneserNey, words: tuple[int, ...]) -> float:
    """The probability of a sequence from the text's beginning."""
    padded = (-1,) * (model.order - 1) + words
    found = 1.0
    for t, word in enumerate(words):
        history = np.array([padded[t : t + model.order - 1]]).reshape(1, -1)
        found *= model.probabilities(history, range(word, word + 1))[0, 0]
    return found


@pytest.mark.parametrize("order", [1, 2, 3])
def test_hidden_histories_are_the_sum_over_all_word_sequences(order: int):
    model = KneserNey.fit(IDS, order, V)
    keys = [code_of(w) for w in ("the", "man", "cat", "sat", "so")]
    committed = [None, None, None, TOKENIZER.index("sit"), None]
    predictor = HiddenHistories(model, TOKENIZER, beam=10**6)
    for t, code in enumerate(keys):
        choices = [
            TOKENIZER.candidates(c) if w is None else [w]
            for c, w in zip(keys[:t], committed, strict=False)
        ]
        wanted = np.array(
            [
                sum(joint(model, (*before, w)) for before in itertools.product(*choices))
                for w in TOKENIZER.candidates(code)
            ]
        )
        np.testing.assert_allclose(predictor.probabilities(code), wanted / wanted.sum(), rtol=1e-9)
        predictor.advance(code, committed[t])


def test_with_all_words_committed_it_is_the_plain_model():
    model = KneserNey.fit(IDS, 3, V)
    predictor = HiddenHistories(model, TOKENIZER, beam=2)
    history = [-1, -1]
    for code, word in zip(CODES.tolist(), [*IDS[:9].tolist(), V, *IDS[10:].tolist()], strict=True):
        plain = model.probabilities(np.array([history]), TOKENIZER.candidates(code))[0]
        np.testing.assert_allclose(predictor.probabilities(code), plain / plain.sum(), rtol=1e-12)
        predictor.advance(code, word)
        history = [history[1], word]


def test_a_code_without_candidates_is_passed():
    model = KneserNey.fit(IDS, 3, V)
    hidden = HiddenHistories(model, TOKENIZER)
    for predictor in [hidden, Cache(TOKENIZER, HiddenHistories(model, TOKENIZER))]:
        assert predictor.probabilities(code_of("zebra")).shape == (0,)
        predictor.advance(code_of("zebra"), None)
        assert predictor.probabilities(code_of("the")).sum() == pytest.approx(1)
    assert convert(model, TOKENIZER, [code_of("zebra")]) == [([V], 0.0)]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_convert_finds_the_likeliest_sequences(order: int):
    model = KneserNey.fit(IDS, order, V)
    keys = [code_of(w) for w in ("the", "man", "cat", "sat", "so", "that", "can")]
    every = itertools.product(*(TOKENIZER.candidates(code) for code in keys))
    best = sorted(((math.log(joint(model, words)), words) for words in every), reverse=True)[:5]
    found = convert(model, TOKENIZER, keys, k=5, beam=10**6)
    np.testing.assert_allclose([score for _, score in found], [score for score, _ in best])
    for words, score in found:  # of equally likely ones any order will do
        assert math.log(joint(model, tuple(words))) == pytest.approx(score)
        assert [code_of(TOKENIZER.words[w]) for w in words] == keys
    assert len({tuple(words) for words, _ in found}) == 5
    narrow = convert(model, TOKENIZER, keys, k=1, beam=3)[0]
    assert math.log(joint(model, tuple(narrow[0]))) == pytest.approx(narrow[1])
    assert convert(model, TOKENIZER, [], k=2) == [([], 0.0)]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4), st.integers(1, 30), st.integers(0, 1000))
def test_em_never_makes_the_text_less_likely(models: int, many: int, seed: int):
    scores = np.random.default_rng(seed).uniform(0, 1, (models, many)) ** 3
    scores[:, ::7] = 0  # positions that tell nothing
    told = scores[:, scores.any(0)]
    likelihoods = [np.log(fit_weights(scores, steps) @ told).sum() for steps in (0, 1, 2, 5, 50)]
    assert (np.diff(likelihoods) > -1e-9).all()
    assert fit_weights(scores).sum() == pytest.approx(1)


def test_em_finds_the_better_model():
    good, bad = np.full(100, 0.5), np.full(100, 0.1)
    assert fit_weights([good, bad])[0] > 0.99
    np.testing.assert_allclose(fit_weights([np.zeros(3), np.zeros(3)]), [0.5, 0.5])


def test_ranks_and_mixture():
    train, rest = IDS[:40], IDS[40:]
    model = KneserNey.fit(train, 3, V)
    found, given = ranks(HiddenHistories(model, TOKENIZER), TOKENIZER, CODES[40:], rest, True)
    other, _ = ranks(HiddenHistories(model, TOKENIZER), TOKENIZER, CODES[40:], rest, False)
    assert len(found) == len(rest) == len(other)
    assert ((given > 0) & (given <= 1)).all()
    assert (found < 9).all()
    same = Mixture([3, 1], [HiddenHistories(model, TOKENIZER) for _ in range(2)])
    np.testing.assert_allclose(ranks(same, TOKENIZER, CODES[40:], rest, True)[1], given)
    missing, zero = ranks(same, TOKENIZER, [code_of("the")], [V], True)
    assert missing.tolist() == [NO_CANDIDATE] and zero.tolist() == [0]


def test_the_cache_prefers_what_was_committed():
    cache = Cache(TOKENIZER)
    code, word = code_of("cat"), TOKENIZER.index("can")
    at = word - TOKENIZER.candidates(code).start
    seen = [cache.probabilities(code)[at]]
    for _ in range(4):
        cache.advance(code, word)
        seen.append(cache.probabilities(code)[at])
    assert seen == sorted(seen) and seen[-1] > seen[0] + 0.1
    for _ in range(20_000):  # and forgets it; the counts' unit is renewed on the way
        cache.advance(code_of("the"), TOKENIZER.index("the"))
    assert seen[0] < cache.probabilities(code)[at] < seen[1]


def test_the_cache_knows_what_follows_a_word():
    cache = Cache(TOKENIZER)
    for before, after in [("the", "mat"), ("on", "man")] * 3:
        for word in (before, after):
            cache.advance(code_of(word), TOKENIZER.index(word))
    code = code_of("mat")
    for before, after in [("the", "mat"), ("on", "man")]:
        cache.advance(code_of(before), TOKENIZER.index(before))
        best = TOKENIZER.candidates(code)[int(cache.probabilities(code).argmax())]
        assert TOKENIZER.words[best] == after


def test_the_cache_learns_a_word_out_of_the_vocabulary():
    cache = Cache(TOKENIZER)
    code = code_of("camel")
    assert cache.extra(code) == []
    number = cache.number("camel")
    assert number > V and cache.number("camel") == number and cache.number("the") < V
    cache.advance(code, number)
    cache.advance(code_of("zebra"), cache.number("zebra"))
    [(word, once)] = cache.extra(code)
    assert word == "camel" and 0 < once < 1
    assert [word for word, _ in cache.extra(code_of("zebra"))] == ["zebra"]
    cache.advance(code, number)
    assert cache.extra(code)[0][1] > once
    assert cache.probabilities(code).sum() == pytest.approx(1)
    assert cache.probabilities(code_of("zebra")).shape == (0,)
    assert cache.extra(code_of("the")) == []


def test_the_cache_counts_what_later_codes_tell():
    """No word is committed, but only one word ever stands between these two."""
    text = words_of("my cat sings " * 9 + "my cow sleeps " * 10 + "ca co")
    tokenizer = FirstTwoTokenizer.of([w.replace("cow", "cab") for w in text])
    ids = np.array([tokenizer.index(w.replace("cow", "cab")) for w in text])
    model = KneserNey.fit(ids, 3, len(tokenizer.words))
    hidden = HiddenHistories(model, tokenizer)
    cache = Cache(tokenizer, hidden, hidden)
    code, at = code_of("cat"), tokenizer.index("cat") - tokenizer.candidates(code_of("cat")).start
    before = cache.probabilities(code)[at]
    for word in ["my", "cat", "sings"] * 10:
        cache.advance(code_of(word), None)
    fresh = HiddenHistories(model, tokenizer)
    for word in ["my", "cat", "sings"] * 10:
        fresh.advance(code_of(word), None)
    assert cache.probabilities(code)[at] > fresh.probabilities(code)[at]
    assert before > 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(WORDS), st.booleans()), min_size=1, max_size=30))
def test_every_prediction_is_a_distribution(typed):
    model = KneserNey.fit(IDS, 3, V)
    hidden = HiddenHistories(model, TOKENIZER, beam=4)
    cache = Cache(TOKENIZER, hidden, hidden)
    for word, committed in typed:
        code = code_of(word)
        for found in (cache.probabilities(code), hidden.probabilities(code)):
            assert found.shape == (len(TOKENIZER.candidates(code)),)
            assert found.sum() == pytest.approx(1) and (found >= 0).all()
        cache.advance(code, TOKENIZER.index(word) if committed else None)
