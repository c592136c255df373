"""The documentation holds what it says: its links, its commands, both languages, the notebook."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tsuzuri.cli import _parser, _parted

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "from-text-to-sentence.py"
PAGES = [
    page
    for page in [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "README_en.md"]
    if (DOCS / "notebook") not in page.parents  # made of NOTEBOOK by `make docs`
]
LINK = re.compile(r"!?\[[^\]]*\]\((?!https?:)([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Those of its headings, as GitHub and the site make them."""
    prose = FENCE.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def commands(page: Path) -> list[str]:
    """Every line of its sh blocks that calls tsuzuri, without what comes before or after."""
    found = []
    for language, block in FENCE.findall(page.read_text("utf-8")):
        if language == "sh":
            lines = block.replace("\\\n", " ").splitlines()
            found += [m[0] for line in lines if (m := re.search(r"\btsuzuri [a-z].*", line))]
    return found


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path):
    for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target == DOCS / "notebook" / NOTEBOOK.with_suffix(".md").name:
            target = NOTEBOOK
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_there_are_commands_to_check():
    verbs = {command.split()[1] for page in PAGES for command in commands(page)}
    assert {"train", "generate", "export", "plan", "prepare", "featurize"} <= verbs


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_are_those_of_the_program(page: Path):
    parser = _parser()
    for command in commands(page):
        arguments, _ = _parted(shlex.split(command, comments=True)[1:])
        _, unknown = parser.parse_known_args(arguments)  # raises, if an argument is not as it was
        assert not unknown, command


def test_a_flag_that_is_renamed_is_noticed(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("```sh\ntsuzuri train book.txt --run r --seqence-length 9  # a comment\n```\n")
    with pytest.raises(AssertionError, match="seqence"):
        test_commands_are_those_of_the_program(page)


def test_both_languages_have_the_same_pages():
    pages = [{page.name for page in (DOCS / language).iterdir()} for language in ("ja", "en")]
    assert pages[0] == pages[1]


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "zensical.toml").read_text("utf-8")
    for page in PAGES:
        if DOCS in page.parents:
            assert f'"{page.relative_to(DOCS)}"' in nav


def test_the_notebook_runs(tmp_path: Path):
    """As a program: the same cells in the same order; `make docs` executes them as a notebook."""
    done = subprocess.run(
        [sys.executable, NOTEBOOK],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "Agg", "TMPDIR": str(tmp_path), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    held_out = float(re.search(r"held out (\d+\.\d+)", done.stdout)[1])
    assert held_out < 4  # it began near ln(2048) = 7.6
    assert done.stdout.count("temperature") == 5
