"""The tales' entropy is a floor only if no text comes about in two ways: proved here, and tried."""

import hashlib
import itertools
import math
import re
import statistics
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri.corpus import tales
from tsuzuri.corpus.tales import GRAMMAR, Slot, Template, documents, expectation, kept_names
from tsuzuri.corpus.tales.frames import FRAMES
from tsuzuri.corpus.tales.words import WORDS

# 三, 十二日 and 7時 are not content words.
FIGURE = re.compile("[0-9１-９一二三四五六七八九十百]+[日歳時]?")


def options(name: str, form: str) -> set[Template]:
    return {alternative[form] for alternative in GRAMMAR[name]}


@cache
def first(part: str | Slot) -> frozenset[str]:
    """The characters that a text of this part can begin with."""
    if isinstance(part, str):
        return frozenset(part[0])
    return frozenset().union(*(first(option[0]) for option in options(part.name, part.form)))


@cache
def apart(a: Template, b: Template) -> bool:
    """Whether no text of one can begin with the whole of a text of the other.

    Kept words count as free, which only makes more texts: what is apart then is apart.
    """
    while a and b and a[0] == b[0]:  # sound, since every slot's own texts are apart: see below
        a, b = a[1:], b[1:]
    if not a or not b:
        return False
    if first(a[0]).isdisjoint(first(b[0])):
        return True
    if (len(a) > 1 or len(b) > 1) and apart(a[:1], b[:1]):
        return True
    match a[0], b[0]:
        case str(x), str(y):
            length = min(len(x), len(y))
            if x[:length] != y[:length]:
                return True
            return apart(
                tuple(filter(None, (x[length:],))) + a[1:],
                tuple(filter(None, (y[length:],))) + b[1:],
            )
        case Slot(name, form), _:
            return all(apart(option + a[1:], b) for option in options(name, form))
        case _, Slot(name, form):
            return all(apart(a, option + b[1:]) for option in options(name, form))
    raise AssertionError


def mentioned() -> set[tuple[str, str]]:
    templates = [form for words in GRAMMAR.values() for word in words for form in word.values()]
    return {(p.name, p.form) for t in templates for p in t if isinstance(p, Slot)} | {("tale", "")}


def test_every_slot_has_its_words_and_every_word_its_slot():
    for name, form in mentioned():
        assert form in GRAMMAR[name][0], (name, form)
    assert {name for name, _ in mentioned()} == set(GRAMMAR)


def test_of_the_alternatives_none_begins_with_another():
    for name, form in mentioned():
        for a, b in itertools.combinations(sorted(options(name, form), key=str), 2):
            assert apart(a, b), (name, form, a, b)


def test_every_choice_shows():
    """With the test above: the text alone tells every choice, so its probability is theirs."""
    distinct = {nf for nf in mentioned() if len(options(*nf)) == len(GRAMMAR[nf[0]])}

    def shows(template: Template, name: str) -> bool:
        return any(
            (part.kept and part.name == name and (name, part.form) in distinct)
            or all(shows(option, name) for option in options(part.name, part.form))
            for part in template
            if isinstance(part, Slot)
        )

    for nf in mentioned():
        kept_only = all(
            p.kept
            for words in GRAMMAR.values()
            for w in words
            for t in w.values()
            for p in t
            if isinstance(p, Slot) and (p.name, p.form) == nf
        )
        assert nf in distinct or (kept_only and nf != ("tale", "")), nf
    for frame in GRAMMAR["tale"]:
        for name in kept_names(frame[""]):
            assert shows(frame[""], name), (name, frame)


def readings(text: str) -> list[float]:
    """The information content in bits of every derivation of `text`, found from the text alone."""

    @cache
    def drawn(name: str, form: str, at: int, kept: frozenset) -> tuple:
        ways = []
        for word in GRAMMAR[name]:
            for end, known, bits in filled(word[form], at, kept):
                ways.append((end, known, bits + math.log2(len(GRAMMAR[name]))))
        return tuple(ways)

    def filled(template: Template, at: int, kept: frozenset) -> list:
        ways = [(at, kept, 0.0)]
        for part in template:
            onward = []
            for at, kept, bits in ways:
                if isinstance(part, str):
                    if text.startswith(part, at):
                        onward.append((at + len(part), kept, bits))
                    continue
                if not part.kept:
                    more = drawn(part.name, part.form, at, kept)
                elif part.name in dict(kept):
                    word = GRAMMAR[part.name][dict(kept)[part.name]]
                    more = filled(word[part.form], at, kept)
                else:
                    more = [
                        (end, known | {(part.name, i)}, b + math.log2(len(GRAMMAR[part.name])))
                        for i, word in enumerate(GRAMMAR[part.name])
                        for end, known, b in filled(word[part.form], at, kept)
                    ]
                onward += [(end, known, bits + b) for end, known, b in more]
            ways = onward
        return ways

    return [bits for end, _, bits in drawn("tale", "", 0, frozenset()) if end == len(text)]


def test_each_tale_has_one_derivation_and_its_probability():
    for document in documents(seed=1, count=2000):
        ways = readings(document.text)
        assert len(ways) == 1, document.text
        assert ways[0] == pytest.approx(document.entropy_bits, abs=1e-9)


def test_the_parser_sees_two_derivations_where_there_are_two(monkeypatch):
    twice = [*GRAMMAR["fruit"], GRAMMAR["fruit"][0]]
    monkeypatch.setitem(GRAMMAR, "fruit", twice)
    monkeypatch.setitem(GRAMMAR, "tale", [{"": tales.parse("<fruit>")}])
    assert len(readings(WORDS["fruit"].split()[0])) == 2


def test_the_expectation_is_the_mean_of_many_tales():
    sample = list(documents(seed=2, count=10_000))
    bits = [document.entropy_bits or 0.0 for document in sample]
    sizes = [len(document.text.encode()) for document in sample]
    expected = expectation()
    for exact, values in ((expected.bits, bits), (expected.bytes, sizes)):
        error = statistics.stdev(values) / len(values) ** 0.5
        assert abs(statistics.fmean(values) - exact) < 4 * error


@settings(max_examples=20, deadline=None)
@given(st.integers(), st.integers(0, 30))
def test_a_tale_depends_on_its_seed_and_number_alone(seed, count):
    first = list(documents(seed, count))
    assert first == list(itertools.islice(documents(seed), count))
    assert len({document.text for document in first}) == count


def test_the_stream_is_the_same_everywhere():
    text = "".join(document.text for document in documents(seed=0, count=1000))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "6fbebe3c0d5dfba2e86c334d91402ef8f03ed04344be63dcac48291530f9bba9"


def test_size_and_script():
    words = {word.split("/")[0] for words in WORDS.values() for word in words.split()}
    words = {word for word in words if not FIGURE.fullmatch(word)}
    assert len(FRAMES) >= 60
    assert len(words) >= 1500
    sample = [document.text for document in documents(seed=3, count=3000)]
    assert all(100 <= len(text) <= 350 for text in sample)
    everything = "".join(sample)
    for character in "「」、。　\n①②🌸１1三あアー":
        assert character in everything, character
    assert not re.search(r"[{}<>|/ ]", everything)
    # Nothing doubled by a slip of the pen, and no paragraph without its indent or bracket.
    assert not re.search(r"、、|。。|　　　|のの|をを|はは、", everything)
    assert all(line[0] in "　「" for text in sample for line in text.split("\n"))
