import re
import unicodedata
import xml.dom.minidom
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri import tokenizer
from tsuzuri.config import TokenizerConfig
from tsuzuri.corpus.tales import documents
from tsuzuri.errors import UserError
from tsuzuri.tokenizer import ByteTokenizer
from tsuzuri.tokenizer.compare import compare, first_sentence, picture, segmentation, table

TEXTS = [document.text + "\n　二行目 。\n" for document in islice(documents(), 40)]
SENTENCE = "　国境の長い……雪国①😀。It's <b> & a dog\n\x01"


@pytest.fixture(scope="module")
def tokenizers():
    def train(kind):
        cfg = TokenizerConfig(kind=kind, vocab_size=1000)
        return tokenizer.train(iter(TEXTS), cfg, lambda message: None, False)

    return {"私の bpe": train("bpe"), "words": train("whitespace"), "bytes": ByteTokenizer()}


@pytest.fixture(scope="module")
def rows(tokenizers):
    return {row.name: row for row in compare(tokenizers, TEXTS)}


def test_the_figures_are_those_of_counting(tokenizers, rows):
    text = "".join(TEXTS)
    for name, tok in tokenizers.items():
        ids = [i for text in TEXTS for i in tok.encode(text)]
        assert rows[name].characters == pytest.approx(len(text) / len(ids))
        assert rows[name].bytes == pytest.approx(len(text.encode()) / len(ids))
        torn = sum("\ufffd" in tok.decode_bytes([i]).decode(errors="replace") for i in ids)
        assert rows[name].torn == pytest.approx(torn / len(ids))
        assert (rows[name].kind, rows[name].vocab_size) == (tok.kind, tok.vocab_size)
        assert rows[name].speed > 0
    assert rows["bytes"].bytes == 1


def test_losslessness_is_seen_on_the_text(tokenizers, rows):
    assert rows["私の bpe"].difference == rows["bytes"].difference == ""
    words, document = tokenizers["words"], TEXTS[0]
    found = re.fullmatch(r"document 1, line (\d+): (.*) became (.*)", rows["words"].difference)
    assert found
    back = words.decode(words.encode(document))
    before, after = eval(found[2]), eval(found[3])
    assert before in document and after in back
    common = document[: document.index(before)]
    assert back.startswith(common) and found[1] == str(common.count("\n") + 1)
    [row] = compare({"words": words}, ["120\n①"])
    assert row.difference.startswith("line 1: '120\\n①' became ")


def test_the_table_is_aligned(rows):
    lines = table(list(rows.values())).splitlines()
    head, body, notes = lines[0], lines[1:4], lines[4:]
    assert notes == [f"words is lossy; {rows['words'].difference}"]

    def columns(line):
        return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)

    assert {columns(line) for line in (head, *body)} == {columns(head)}
    assert [line.split()[-2] for line in body] == ["yes", "no", "yes"]
    assert head.split()[-1] == "MB/s" and "1,000" in body[0]


def test_nothing_to_compare_on(tokenizers):
    for texts in ([], [""]):
        with pytest.raises(UserError, match="no text"):
            compare(tokenizers, texts)
    with pytest.raises(UserError, match="half of a surrogate pair"):
        compare(tokenizers, ["a\ud800"])
    [row] = compare({"words": tokenizers["words"]}, [" \n"])  # a text without a single token
    assert row.difference


def test_segmentation_shows_every_token(tokenizers):
    lines = segmentation(tokenizers, SENTENCE).splitlines()
    assert re.match(rf"bytes \({len(SENTENCE.encode())}\) +E3│80│80│E5│9B│BD│", lines[2])
    assert lines[2].endswith("│d│o│g│↵│U+0001")
    shown = lines[0].split("  ", 1)[1].strip().replace("│", "")
    as_signs = SENTENCE.translate({0x3000: "□", 0x20: "␣", 10: "↵", 1: "U+0001"})
    torn = {character: character.encode().hex().upper() for character in as_signs}
    pattern = "".join(f"({re.escape(c)}|{torn[c]})" for c in as_signs)
    assert re.fullmatch(pattern, shown)


def test_the_picture(tokenizers):
    svg = picture(tokenizers | {"<&>": ByteTokenizer()}, SENTENCE)
    root = xml.dom.minidom.parseString(svg).documentElement
    width, height = (float(root.getAttribute(name)) for name in ("width", "height"))
    boxes = [
        [float(box.getAttribute(name)) for name in ("x", "y", "width", "height")]
        for box in root.getElementsByTagName("rect")
    ]
    tokens = sum(len(tok.encode(SENTENCE)) for tok in tokenizers.values())
    assert len(boxes) == tokens + len(SENTENCE.encode())
    for (x, y, w, h), following in pairwise(boxes):
        assert x >= 0 and x + w <= width and y + h <= height
        assert following[0] >= x + w or following[1] >= y + h  # no two of them overlap
    texts = [text.firstChild.data for text in root.getElementsByTagName("text")]
    assert f"bytes: {len(SENTENCE.encode())} tokens" in texts and "F0" in texts and "&" in texts
    assert "red: not whole characters; the odd bytes are in hexadecimal" in texts
    whole = picture({"words": tokenizers["words"]}, "120")
    assert "hexadecimal" not in whole


@settings(deadline=None, max_examples=50)
@given(sentence=st.text(max_size=20))
def test_every_sentence_makes_a_picture(tokenizers, sentence):
    xml.dom.minidom.parseString(picture(tokenizers, sentence))
    assert len(segmentation(tokenizers, sentence).splitlines()) == 3


def test_the_first_sentence():
    long = "吾輩は猫である。"
    sentence = "国境の長いトンネルを抜けると、そこはもう雪国であった。"
    assert first_sentence(["題\n", f"-----\n　{long}{sentence}夜の底が白くなった。"]) == sentence
    english = "It was a bright cold day in April, and so on."
    assert first_sentence([f"1984\n\n{english} The clocks"]) == english
    assert first_sentence(["短い。"]) == "短い。"
    assert first_sentence(["あ" * 100]) == "あ" * 40
