"""Aozora Bunko's files, written here in the site's exact format, and what becomes of them."""

import csv
import gzip
import io
import json
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsuzuri.corpus import CORPORA, named
from tsuzuri.corpus.aozora import INDEX, clean, documents, judge_orthography, parse
from tsuzuri.corpus.gaiji import GETA, resolve
from tsuzuri.errors import UserError

KEY = """\
-------------------------------------------------------
【テキスト中に現れる記号について】

《》：ルビ
（例）峠《とうげ》

［＃］：入力者注　主に外字の説明や、傍点の位置の指定
（例）※［＃「てへん＋毟」、第4水準2-78-12］
-------------------------------------------------------
"""
FOOTER = """\


底本：「山の本」綴文庫、綴社
　　　1950（昭和25）年1月1日発行
入力：山田花
校正：川田月
2020年1月1日作成
青空文庫作成ファイル：
このファイルは、青空文庫で作られました。
"""
BODY = """
［＃８字下げ］一［＃「一」は中見出し］

［＃ここから１字下げ］
　山の｜赤い峠《とうげ》に、羽を※［＃「てへん＋毟」、第4水準2-78-12］った鳥がいた。
「ねえ」
「うん」
［＃ここで字下げ終わり］
　〔Cafe' de l'E'toile, Ko:ln〕という店だと言っている。〔以下なし〕
-------------------------------------------------------
［＃改ページ］
　いろ／＼あったそうだ。
［＃地から１字上げ］（おわり）

"""
CLEAN = """\
一

　山の赤い峠に、羽を毮った鳥がいた。
「ねえ」
「うん」
　Café de l'Étoile, Kölnという店だと言っている。〔以下なし〕
-------------------------------------------------------
　いろ／＼あったそうだ。
（おわり）
"""
OLD = """
　山にゐる鳥と云ふものが來るであらう、と學者は思ふ。さういふ聲がする。
"""


def work(title="峠の鳥", body=BODY, head="", key=KEY) -> bytes:
    text = f"{title}\n{head}作り人\n\n{key}{body}{FOOTER}"
    return text.replace("\n", "\r\n").encode("cp932")


def titles(source, books=None, orthography="any", said=None) -> list[str]:
    said = [] if said is None else said
    found = documents(source, books, orthography, say=said.append)
    return [document.metadata["title"] for document in found]


@pytest.mark.parametrize("key", [KEY, ""])
def test_a_work_is_cleaned_and_keeps_its_credits(tmp_path, key):
    (tmp_path / "1_ruby_2.txt").write_bytes(work(key=key))
    (document,) = documents(tmp_path, say=print)
    assert document.text == CLEAN
    assert document.metadata["title"] == "峠の鳥"
    assert document.metadata["author"] == "作り人"
    assert document.metadata["orthography"] == "新字新仮名"
    assert document.metadata["credits"].startswith("底本：「山の本」")
    assert "校正：川田月" in document.metadata["credits"]
    assert document.metadata["credits"].endswith("作られました。")


def test_the_header():
    text = work("※［＃「奚＋隹」、第3水準1-93-66］", head="――その一――\nだれか\n").decode("cp932")
    work_ = parse(text.replace("\r\n", "\n").replace("作り人", "よそ人訳"))
    assert work_ is not None
    metadata = dict(work_.metadata)
    metadata.pop("credits")
    assert metadata == {
        "title": "雞",
        "subtitle": "――その一――",
        "author": "だれか",
        "translator": "よそ人訳",
    }
    assert parse("just a text\n\nwithout a footer") is None
    assert parse("") is None


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("漢字《かんじ》と仮名《かな》", "漢字と仮名"),
        ("東京｜停留場《ていりゅうば》", "東京停留場"),
        ("赤《あか※［＃「虫＋原」、第3水準1-91-60］》い", "赤い"),
        ("※［＃始め二重括弧、1-2-54］字※［＃終わり二重括弧、1-2-55］", "⦅字⦆"),
        ("※［＃始め二重山括弧、1-1-52］字※［＃終わり二重山括弧、1-1-53］", "《字》"),
        ("［＃「※［＃「虫＋原」、第3水準1-91-60］」に傍点］点", "点"),
        ("［＃「［＃「甲」は乙］」は底本では「丙」］字", "字"),
        ("後ろ［ ＃一つ目の「e」はアクサン付き］", "後ろ"),
        ("※印は残る", "※印は残る"),
        ("※［＃縦線、1-1-35］", "｜"),
        ("返［＃レ］点［＃二］", "返点"),
        ("a\n［＃改ページ］\n［＃ここから２字下げ］［＃ここから横組み］\nb", "a\nb"),
        ("短い\n\n\n　　行", "短い\n\n\n　　行"),
        ("〔一、a'〕の〔ア〕", "一、áの〔ア〕"),
        ("〔〕〔2:30〕〔it is〕", "〔〕〔2:30〕〔it is〕"),
        ("〔Basho_, franc,ais, stro/m, mu&, Strasse s&, oe&uvre, !@Ola'!〕",
         "Bashō, français, strøm, mu&, Strasse ß, œuvre, ¡Olá!"),
        ("〔L'E^tre, l'a^ge〕", "L'Être, l'âge"),
    ],
)  # fmt: skip
def test_marks(raw, cleaned):
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    ("note", "character"),
    [  # by the site's own table of gaiji and by Unicode's mapping of JIS X 0213
        ("「てへん＋毟」、第4水準2-78-12", "毮"),
        ("「虫＋原」、第3水準1-91-60", "螈"),
        ("「※」は「革＋疆のつくり」、第3水準1-93-81、17-12", "韁"),
        ("二の字点、1-2-22", "〻"),
        ("ローマ数字9、1-13-29", "Ⅸ"),
        ("疑問符感嘆符、1-8-77", "⁈"),
        ("半濁点付き平仮名か、1-4-87", "か゚"),
        ("「穴かんむり／缶」、U+7A91、193-8", "窑"),
        ("「魚＋去」、U+29D4A", "\U00029d4a"),
        ("「てへん＋毟」、第４水準２－７８－１２", "毮"),
        ("濁点付き小書き平仮名つ、265-6", "っ\u3099"),
        ("濁点付き片仮名ワ、1-7-82", "ヷ"),
        ("濁点付き片仮名カ、12-3", "ガ"),
        ("小書き片仮名ヰ、404-12", "\U0001b164"),
        ("小書き平仮名ん、135-11", GETA),
        ("「凵＜茲」、355-17", GETA),
        ("「ｉ」の左側と下側を線で囲った記号、187-9", GETA),
        ("「にんべん＋x」、450-上-6", GETA),
        ("無い字、第3水準1-99-99", GETA),
        ("半分の字、U+D842", GETA),
    ],
)
def test_gaiji(note, character):
    assert resolve(f"［＃{note}］") == character


@given(st.text("漢か《》｜［］＃※〔〕e'、1-2U+4\n\r"))
def test_cleaning_ends_on_anything(text):
    clean(text)
    parse(text)


def test_the_orthography():
    assert judge_orthography(CLEAN) == "新字新仮名"
    assert judge_orthography(OLD) == "旧字旧仮名"
    assert judge_orthography(OLD.replace("來", "来").replace("學", "学").replace("聲", "声")) == (
        "新字旧仮名"
    )
    assert judge_orthography("月、花、雪") is None


def site(index: bool) -> dict[str, bytes]:
    """Three works as the site lays them out: each in a zip of its own."""
    files = {}
    for number, body in ((10, BODY), (9, OLD), (11, BODY)):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("toge.txt", work(f"峠{number}", body))
        files[f"cards/000001/files/{number}_ruby_{number}.zip"] = content.getvalue()
    files["cards/000001/card9.html"] = b"<html>"
    if index:
        table = io.StringIO()
        rows = csv.writer(table)
        rows.writerow(["作品ID", "作品名", "文字遣い種別"])
        rows.writerows([["000009", "峠9", "新字新仮名"], ["000010", "峠10", "旧字旧仮名"]])
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            name = "list_person_all_extended_utf8"
            archive.writestr(f"{name}.csv", table.getvalue().encode("utf-8-sig"))
        files[f"index_pages/{name}.zip"] = content.getvalue()
    return files


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
@pytest.mark.parametrize("index", [False, True])
def test_the_sites_own_layout(tmp_path, kind, index):
    source = tmp_path / f"site.{kind}"
    files = site(index)
    match kind:
        case "folder":
            for name, content in files.items():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes(content)
            files = {name: files[name] for name in sorted(files)}
        case "zip":
            with zipfile.ZipFile(source, "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
        case "tar.gz":
            with tarfile.open(source, "w:gz") as archive:
                for name, content in files.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    everything = titles(source)
    assert sorted(everything) == ["峠10", "峠11", "峠9"]
    said = []
    modern = titles(source, orthography="modern", said=said)
    assert sorted(modern) == (["峠11", "峠9"] if index else ["峠10", "峠11"])
    assert said == ["1 works in another orthography than 新字新仮名 are left out"]
    assert titles(source, books=1) == everything[:1]
    assert titles(source, books=9, said=said) == everything and "there are no more" in said[-1]


def test_what_is_no_work_is_said(tmp_path):
    (tmp_path / "a.txt").write_bytes(work())
    (tmp_path / "b.txt").write_text("a note to myself")
    (tmp_path / "c.txt").write_bytes(b"\x81")
    (tmp_path / "d.txt").write_bytes(work(body="※［＃「凵＜茲」、355-17］の字だった。\n"))
    said = []
    assert len(titles(tmp_path, said=said)) == 2
    assert "b.txt: left out" in said[0] and "c.txt: left out" in said[1]
    assert said[2] == "1 characters that Unicode does not have stand as 〓"


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        titles(tmp_path / "none")
    (tmp_path / "a.txt").write_bytes(work(body=OLD))
    with pytest.raises(UserError, match="1 in another orthography"):
        titles(tmp_path, orthography="modern")
    with pytest.raises(UserError, match="--books 0"):
        titles(tmp_path, books=0)
    (tmp_path / INDEX).write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not the site's index"):
        titles(tmp_path)
    with zipfile.ZipFile(tmp_path / "index.zip", "w") as archive:
        archive.write(tmp_path / INDEX, INDEX)
    (tmp_path / INDEX).unlink()
    damaged = (tmp_path / "index.zip").read_bytes().replace(b"a,b\n1,2", b"a,b\n1,3")
    (tmp_path / "index.zip").write_bytes(damaged)
    with pytest.raises(UserError, match=r"utf8\.csv: damaged"):
        titles(tmp_path)


def test_the_datasets_own_file(tmp_path):
    meta = {"作品名": "峠", "姓": "作り", "名": "人", "文字遣い種別": "新字新仮名"}
    rows = [
        {"text": "本文。", "footnote": "底本：本", "meta": meta},
        {"text": "本文。", "footnote": "", "meta": meta | {"文字遣い種別": "旧字旧仮名"}},
    ]
    path = tmp_path / "aozorabunko-dedupe-clean.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    (document,) = documents(path, say=print)
    assert document.text == "本文。"
    assert document.metadata == {
        "title": "峠",
        "author": "作り人",
        "orthography": "新字新仮名",
        "credits": "底本：本",
    }
    lines = [json.dumps(rows[0] | {"text": text}) for text in (None, 5, "half \ud800")]
    for line in ('{"text": "a"}', *lines):
        path.write_bytes(gzip.compress(line.encode()))
        with pytest.raises(UserError, match=r"jsonl\.gz:1: not a line of"):
            list(documents(path, say=print))


def test_without_a_network_the_file_to_bring_is_named(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    with pytest.raises(UserError, match="--source") as error:
        next(CORPORA["aozora"].documents(say=print))
    assert "\n" not in str(error.value)


def test_named_corpora():
    assert {"tales", "aozora"} <= set(CORPORA)
    assert named("aozora") is CORPORA["aozora"]
    with pytest.raises(UserError, match="did you mean aozora"):
        named("aozra")
