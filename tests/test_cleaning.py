"""Cleaning: what is dropped is what the options say, whole documents, and all of it is counted."""

import itertools
import re
import tempfile
import tracemalloc
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tsuzuri.config import TextConfig
from tsuzuri.corpus import cleaning, read
from tsuzuri.corpus.cleaning import clean, judge, normalize
from tsuzuri.corpus.document import Document
from tsuzuri.errors import RunError

# Characters that combine with what is before them, in each of the ways Unicode has.
TRICKY = (
    "かはｶﾊﾞﾟ\u3099\u309a゛eé\u0301\u0323\u0345각가ᄀ\u1161\u11a8ﾡￂﻼﷺ①㍿\u09c7\u09be\u0e33½Å\u0958 \n"
)
tricky = st.lists(st.text(TRICKY, min_size=1, max_size=6), max_size=8)
documents = st.lists(
    st.lists(st.text("ab漢かｶﾞ\u3099e\u0301 ", max_size=4), min_size=1), max_size=12
)


def in_pieces(texts: list[str], **fields) -> list[Document]:
    """One document in these pieces."""
    last = len(texts) - 1
    return [Document(text, continues=n < last, **fields) for n, text in enumerate(texts)]


def whole(pieces) -> list[str]:
    """The texts of the documents, their pieces joined."""
    texts = [""]
    for piece in pieces:
        texts[-1] += piece.text
        if not piece.continues:
            texts.append("")
    assert texts.pop() == "", "the last piece says that it continues"
    return texts


def cleaned(texts: list[str], **config) -> tuple[list[str], str]:
    """The documents that are kept, and what was said."""
    said = []
    kept = whole(clean(map(Document, texts), TextConfig(**config), said.append))
    return kept, " | ".join(said)


def test_off_by_default_and_then_free():
    pieces = in_pieces(["a", "b"])
    said = []
    assert list(clean(pieces, TextConfig(), said.append)) == pieces
    assert all(
        a is b for a, b in zip(clean(pieces, TextConfig(), said.append), pieces, strict=True)
    )
    assert said == []


@given(tricky, st.sampled_from(["NFC", "NFKC"]))
@example(["각", "\u11a8"], "NFC")
@example(["ᄀ", "\u1161", "\u11a8"], "NFC")
@example(["ｶ", "ﾞ"], "NFKC")
@example(["e", "\u0301", "\u0323"], "NFC")
@settings(deadline=None)
def test_the_pieces_normal_form_is_that_of_the_whole(texts, form):
    pieces = list(normalize(in_pieces(texts), form))
    assert "".join(piece.text for piece in pieces) == unicodedata.normalize(form, "".join(texts))
    assert [piece.continues for piece in pieces] == [True] * (len(pieces) - 1) + [False] * bool(
        texts
    )
    assert all(piece.text for piece in pieces)


def test_no_character_of_unicode_combines_across_a_cut_unnoticed():
    """Every character after each kind of starter that something combines with."""
    starters = "かｶᄀ각e\u09c7\u0b47\u0dd9\u1025\u110b9\u1100"
    for code in itertools.chain(range(0xD800), range(0xE000, 0x20000)):
        letter = chr(code)
        if not cleaning._stands_alone(letter):
            continue
        for form in ("NFC", "NFKC"):
            alone = unicodedata.normalize(form, letter)
            for starter in starters:
                joined = unicodedata.normalize(form, starter + letter)
                assert joined == unicodedata.normalize(form, starter) + alone, hex(code)


def test_only_a_document_that_normalization_changes_loses_its_entropy():
    same = Document("漢字\n", entropy_bits=12.0)
    assert list(normalize([same], "NFKC")) == [same]
    [changed] = normalize([Document("ｶﾞ①", {"title": "x"}, entropy_bits=12.0)], "NFKC")
    assert changed == Document("ガ1", {"title": "x"}, entropy_bits=None)
    joined = normalize(in_pieces(["か", "\u3099"], entropy_bits=1.0), "NFC")
    assert list(joined) == [Document("が", entropy_bits=None)]


def test_duplicates_are_found_across_pieces_and_forms():
    texts = [["夢", "十夜"], ["坊っちゃん"], ["夢十", "夜"], ["夢十夜 "], ["が"], ["か", "\u3099"]]
    stream = list(itertools.chain.from_iterable(map(in_pieces, texts)))
    said = []
    kept = list(clean(stream, TextConfig(deduplicate=True, normalize="NFC"), said.append))
    assert whole(kept) == ["夢十夜", "坊っちゃん", "夢十夜 ", "が"]
    assert said == ["cleaning kept 4 of 6 documents; dropped 2 as duplicates (4 characters)"]
    assert whole(clean(stream, TextConfig(deduplicate=True), said.append))[-2:] == [
        "が",
        "か\u3099",
    ]


def test_minimum_length_counts_the_whole_normalized_document():
    kept, said = cleaned(["ab", "abc", "ｶﾞab", ""], min_characters=3, normalize="NFKC")
    assert kept == ["abc", "ガab"]
    assert said == "cleaning kept 2 of 4 documents; dropped 2 as too short (2 characters)"
    pieces = in_pieces(["a", "b", "c"])
    assert list(clean(pieces, TextConfig(min_characters=3), str)) == pieces
    assert list(clean(pieces, TextConfig(min_characters=4), str)) == []


JAPANESE = "国境の長いトンネルを抜けると雪国であった。"
CHINESE = "穿過縣界長長的隧道，便是雪國。夜空下一片白茫茫。"
KOREAN = "국경의 긴 터널을 빠져나오자 눈의 고장이었다."
ENGLISH = "The train came out of the long tunnel into the snow country."


@pytest.mark.parametrize(
    ("language", "text"), [("ja", JAPANESE), ("zh", CHINESE), ("ko", KOREAN), ("en", ENGLISH)]
)
def test_each_language_keeps_its_own_text_alone(language, text):
    texts = [JAPANESE, CHINESE, KOREAN, ENGLISH, "123 456!", ""]
    kept, said = cleaned(texts, language=language)
    assert kept == [text]
    assert f"dropped 5 as not in {language} (" in said


def test_the_share_counts_letters_only_and_halfwidth_kana():
    mixed = "ｶﾀｶﾅー々abcd 1234 ①㊤…"  # 6 of 10 letters
    assert cleaned([mixed], language="ja", min_language_share=0.6)[0] == [mixed]
    assert cleaned([mixed], language="ja", min_language_share=0.61)[0] == []
    assert cleaned(["１２３"], language="ja", min_language_share=0.0)[0] == ["１２３"]
    # A name in kanji with one kana is Japanese; a Chinese page that quotes one is not.
    assert cleaned(["東京の山"], language="ja")[0] == ["東京の山"]
    assert cleaned([CHINESE + "の"], language="zh")[0] == [CHINESE + "の"]


def test_scripts_agree_with_the_regex_library():
    patterns = {
        "kana": r"[[\p{Script_Extensions=Hira}\p{Script_Extensions=Kana}--\p{Han}]&&\p{L}]",
        "han": r"[\p{Han}&&\p{L}]",
        "hangul": r"[\p{Hangul}&&\p{L}]",
        "latin": r"[\p{Latin}&&\p{L}]",
    }
    known = "".join(c for c in map(chr, range(0x30000)) if unicodedata.category(c)[0] == "L")
    for script, pattern in patterns.items():
        theirs = set(regex.findall(pattern, known, regex.V1))
        ours = {c for c in known if cleaning._script(c) == script}
        # What differs is rare: modifiers such as ª, hentaigana, and 〆, which we call kanji.
        assert ours - theirs <= {"〆"}
        rare = re.compile("MODIFIER|ORDINAL|ROMAN NUMERAL|TURNED|SIGN|HENTAIGANA|MASU|OLD CHINESE")
        assert all(rare.search(unicodedata.name(c)) for c in theirs - ours)


@given(
    documents,
    st.sampled_from(["none", "NFC", "NFKC"]),
    st.integers(0, 4),
    st.sampled_from(["any", "ja", "en"]),
    st.booleans(),
)
@settings(deadline=None)
def test_properties(texts, form, least, language, deduplicate):
    cfg = TextConfig(
        normalize=form, min_characters=least, language=language, deduplicate=deduplicate
    )
    stream = list(itertools.chain.from_iterable(map(in_pieces, texts)))
    said = []
    once = list(clean(stream, cfg, said.append))
    before = ["".join(text) for text in texts]
    if form != "none":
        before = [unicodedata.normalize(form, text) for text in before]
    after = whole(once)

    assert whole(clean(once, cfg, lambda _: None)) == after, "cleaning twice changes more"
    rest = iter(before)
    assert all(any(text == kept for text in rest) for kept in after), "the order is not kept"
    if deduplicate:
        assert len(set(after)) == len(after)
        judged = [judge([Document(text)], cfg).reason for text in before]
        firsts = dict.fromkeys(t for t, reason in zip(before, judged, strict=True) if not reason)
        assert after == list(firsts), "not the first of each"
    if said:
        kept, total = map(int, re.match(r"cleaning kept (\d+) of (\d+)", said[0]).groups())
        dropped = re.findall(r"(\d+) as [a-z ]+ \((\d+) characters\)", said[0])
        assert (kept, total) == (len(after), len(before))
        assert kept + sum(int(n) for n, _ in dropped) == total
        assert sum(map(len, after)) + sum(int(c) for _, c in dropped) == sum(map(len, before))


def long_document(pieces: int):
    for number in range(pieces):
        yield Document(f"{number:07} か\u3099" * 10_000, {"title": "長"}, continues=True)
    yield Document("終わり", {"title": "長"})


def test_a_long_document_is_judged_in_bounded_memory_and_comes_back_as_it_was():
    cfg = TextConfig(deduplicate=True, min_characters=10)
    tracemalloc.start()
    kept = clean(itertools.chain(long_document(300), long_document(300)), cfg, lambda _: None)
    count = 0
    for piece, original in zip(kept, long_document(300), strict=True):
        assert piece == original
        count += len(piece.text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_000_003
    assert peak < 15e6


def test_a_full_disk_is_one_line(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: Path("/dev/full").open("wb"))  # noqa: SIM115
    with pytest.raises(RunError, match=r"No space left on device.*TMPDIR") as error:
        list(clean(long_document(40), TextConfig(deduplicate=True), str))
    assert "\n" not in str(error.value)


def test_read_cleans_files(tmp_path):
    for name, text in {"a.txt": "ｶﾞ\n", "b.txt": "ガ\n", "c.txt": "雪\n"}.items():
        (tmp_path / name).write_text(text)
    said = []
    cfg = TextConfig(normalize="NFKC", deduplicate=True)
    assert whole(read([tmp_path], cfg, said.append)) == ["ガ\n", "雪\n"]
    assert said == ["cleaning kept 2 of 3 documents; dropped 1 as duplicates (2 characters)"]
