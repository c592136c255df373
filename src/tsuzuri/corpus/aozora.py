"""Aozora Bunko (https://www.aozora.gr.jp): literature in the public domain, cleaned of its markup.

A work is a Shift_JIS text: a header (title, author), a key to the marks between two lines of
hyphens, the body, and a footer that begins with 底本：. The marks are the site's own:
https://www.aozora.gr.jp/annotation/. What becomes of each:

  漢字《かんじ》  ruby: the reading goes          ｜  where a ruby's base begins: goes
  ［＃notes］      go, and with them a line that holds nothing else
  ※［＃gaiji］    the character, where Unicode has it; else 〓, and how many is said
  〔e'〕          é; 〔〕 around anything but accents stays
  CR LF           becomes LF, and blank lines before and after the body go

Dialogue, short lines, indents and repetition marks (／＼) stay as they are.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from tsuzuri.corpus import containers, hub
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.gaiji import GETA, compose_accents, resolve
from tsuzuri.corpus.text_files import pieces
from tsuzuri.errors import UserError

MODERN = "新字新仮名"  # modern kanji and kana, as the site's index calls it
HUB = "globis-university/aozorabunko-clean"  # the works cleaned by others, on Hugging Face
INDEX = "list_person_all_extended_utf8.csv"  # the site's index of works

_NOTE = r"［[ 　]*＃(?:[^［］]|［[^［］]*］)*］"  # a note may quote another
_MARKUP = re.compile(rf"※(?P<gaiji>{_NOTE})|{_NOTE}|《[^《》\n]*》|｜")


def documents(
    source: Path | None = None,
    books: int | None = None,
    orthography: Literal["modern", "any"] = "modern",
    *,
    say: Callable[[str], None],
) -> Iterator[Document]:
    """Yields works, with their title, author, credits and orthography as metadata.

    Args:
      source: a folder, zip or tar of the site's files (`cards/*/files/*.zip`, or the texts), or
        the file of the Hugging Face dataset; None fetches that dataset.
      books: at most so many works, the first in the order of the files.
      orthography: `modern` keeps works in 新字新仮名. The site's index says which are, where it
        lies in the source; else `judge_orthography` does.
      say: hears what was left out and why.

    Raises:
      UserError: the source is absent, damaged or holds no such work; or None was given and the
        network or the package `datasets` is not there.
    """
    if books is not None and books < 1:
        raise UserError(f"--books {books}: must be at least 1")
    if orthography not in ("modern", "any"):
        raise UserError(f"--orthography {orthography}: it must be modern or any")
    kept = other = unresolved = 0
    for work in _from_hub() if source is None else _from_files(source, say):
        if orthography == "modern" and work.metadata.get("orthography") != MODERN:
            other += 1
            continue
        kept += 1
        unresolved += work.text.count(GETA)
        yield from pieces(work.text, work.metadata)
        if kept == books:
            break
    if not kept:
        raise UserError(
            f"{source or HUB}: no work of Aozora Bunko in it ({other} in another orthography); "
            "give --source the site's files, or --orthography any"
        )
    if other:
        say(f"{other} works in another orthography than {MODERN} are left out")
    if unresolved:
        say(f"{unresolved} characters that Unicode does not have stand as {GETA}")
    if books and kept < books:
        say(f"{kept} works, where --books asked for {books}: there are no more")


def parse(text: str) -> Document | None:
    """The work in a file's text (newlines as LF); None where there is no footer, so no work."""
    text = text.strip("\n")
    key = re.match(r"(.{0,600}?)^-{20,}\n【テキスト中.*?^-{20,}\n", text, re.S | re.M)
    header, body = (key[1], text[key.end() :]) if key else text.partition("\n\n")[::2]
    footer = re.search("^底本[：:]", body, re.M)
    lines = [clean(line.strip()) for line in header.splitlines() if line.strip()]
    if footer is None or not lines:
        return None
    body, credits = body[: footer.start()], body[footer.start() :]
    title, *people = lines
    metadata = {"title": title}
    if people and people[-1].endswith(("訳", "譯")):
        metadata["translator"] = people.pop()
    if people:
        metadata["author"] = people.pop()
    if people:
        metadata["subtitle"] = " ".join(people)
    return Document(clean(body).strip("\n") + "\n", metadata | {"credits": credits.strip()})


def clean(text: str) -> str:
    """Text without the site's marks, as the head of this file says."""
    text = re.sub(rf"^(?:{_NOTE})+\n", "", text, flags=re.M)
    text = _MARKUP.sub(lambda mark: resolve(mark["gaiji"]) if mark["gaiji"] else "", text)
    return re.sub(r"〔[^〔〕\n]*〕", lambda passage: compose_accents(passage[0]), text)


# Common kanji whose old and new forms differ, in the same order.
_OLD = "會國學體來氣對變當實樣聲爲傳數發點讀應與萬圖號假價畫廣營圓經嚴寫從處將眞盡參"
_NEW = "会国学体来気対変当実様声為伝数発点読応与万図号仮価画広営円経厳写従処将真尽参"
# Spellings that only the historical kana use has, and those that only the modern has.
_HISTORICAL = re.compile(
    "[ゐゑヰヱ]|やう|らう|はう|さう|かう|たふ|せう|くわ|ぢや|づつ|づか"
    "|[いう思云言]ふ|[一-龠]ふ[。、]|へ[るばてたり]|ひ[まてたし]"
)
_MODERN = re.compile(
    "よう|ろう|そう|こう|しょう|いう|[思云言]う|じゃ|っ[てた]|てい[るたて]|え[ばる]"
)


def judge_orthography(text: str) -> str | None:
    """The site's 文字遣い種別 by the text alone, such as 新字旧仮名; None without evidence.

    Kanji are old if more than a quarter of those with two forms are. Kana use is historical if
    more than 15 % of telling spellings are; over 334 works of twelve authors the share lies below
    0.09 or above 0.18, with nothing between.
    """
    old, new = (sum(map(text.count, kanji)) for kanji in (_OLD, _NEW))
    historical, modern = (len(spelling.findall(text)) for spelling in (_HISTORICAL, _MODERN))
    if not historical + modern:
        return None
    kanji = "旧字" if old > 0.25 * (old + new) else "新字"
    return kanji + ("旧仮名" if historical > 0.15 * (historical + modern) else "新仮名")


def _from_files(source: Path, say: Callable[[str], None]) -> Iterator[Document]:
    index = _read_index(source)
    for file in containers.walk(source):
        with containers.readable(file.name):
            if file.suffix == ".jsonl":
                yield from _from_lines(file)
            if file.suffix != ".txt":
                continue
            work = _parse_bytes(file.stream.read())
        if work is None:
            say(f"{file.name}: left out; it is not a work in the site's format")
            continue
        orthography = index.get(_number(file.name)) or judge_orthography(work.text)
        known = {"orthography": orthography} if orthography else {}
        yield Document(work.text, {**work.metadata, **known})


def _parse_bytes(raw: bytes) -> Document | None:
    for codec in ("utf-8-sig", "cp932"):  # no work in Shift_JIS is valid UTF-8
        try:
            return parse(raw.decode(codec).replace("\r\n", "\n").replace("\r", "\n"))
        except UnicodeDecodeError:
            continue
    return None


def _number(name: str) -> int:
    """The site's number of a work, which its file's name begins with: 773 of 773_ruby_5968.zip."""
    numbers = re.findall(r"(\d+)_(?:ruby|txt)", name)
    return int(numbers[-1]) if numbers else 0


def _read_index(source: Path) -> dict[int, str]:
    """文字遣い種別 by the work's number, from the site's index; empty where that is not there."""
    for file in containers.walk(source):
        if file.name.endswith(INDEX):
            with containers.readable(file.name):
                content = file.stream.read()
            try:
                rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
                return {int(row["作品ID"]): row["文字遣い種別"] for row in rows}
            except (ValueError, KeyError, TypeError, csv.Error) as error:
                raise UserError(f"{file.name}: not the site's index of works ({error})") from error
    return {}


def _from_hub() -> Iterator[Document]:
    bring = (
        "bring the site's files by --source: a folder, zip or tar of "
        "https://github.com/aozorabunko/aozorabunko, or that dataset's .jsonl.gz"
    )
    for row in hub.rows(HUB, None, "train", bring=bring):
        try:
            yield _from_row(row)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{HUB}: its rows have changed ({error}); {bring}") from error


def _from_lines(file: containers.File) -> Iterator[Document]:
    for number, line in enumerate(file.stream, 1):
        try:
            yield _from_row(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file.name}:{number}: not a line of {HUB}, with text, footnote and meta ({error})"
            ) from error


def _from_row(row: Any) -> Document:
    """The work in a row; ValueError, KeyError or TypeError where it is no such row."""
    meta = row["meta"]
    metadata = {
        "title": meta["作品名"],
        "author": meta["姓"] + meta["名"],
        "orthography": meta["文字遣い種別"],
        "credits": row["footnote"],
    }
    str.encode(row["text"])  # which refuses half of a surrogate pair, and what is no string
    return Document(row["text"], {key: value for key, value in metadata.items() if value})
