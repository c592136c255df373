"""The embedded corpus: short Japanese tales without end, whose entropy is known exactly.

The grammar is plain strings: the plots of FRAMES, each a tale, and the SENTENCES and WORDS that fill
them. In a string,

  <name>      is drawn afresh each time, from the words or the sentences of that name;
  {name}      is drawn once in a tale, from the words of that name, and stays what it is;
  {name:form} is another form of that word, such as its counter: the columns of WORDS.

What is drawn may itself hold slots. All alternatives of a name are equally likely, so a tale that took
choices among n1, n2, ... alternatives has probability 1 / (n1 n2 ...), and its information content is
log2 n1 + log2 n2 + ... bits. That is exact only if no text can come about in two ways and no choice
stays unseen; tests/test_tales.py proves both, so mind them in a corpus of your own:

  - of the alternatives of a name, none may begin with the whole of another;
  - a tale that draws a {name} shows it in a form that no other word of the name shares.
"""

import math
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count as integers
from typing import NamedTuple

from tsuzuri.corpus.document import Document
from tsuzuri.corpus.tales.frames import FRAMES
from tsuzuri.corpus.tales.sentences import SENTENCES
from tsuzuri.corpus.tales.words import WORDS


class Slot(NamedTuple):
    """A place in a template that is filled when the tale is told."""

    name: str
    form: str  # the column of WORDS; empty: the first, the word itself
    kept: bool  # {name}: one draw for the whole tale. <name>: a draw of its own


Template = tuple[str | Slot, ...]


class Expectation(NamedTuple):
    """What a tale holds on average, exactly."""

    bits: float
    bytes: float


def parse(text: str) -> Template:
    """Cuts a string of the grammar into its literal pieces and its slots."""
    parts: list[str | Slot] = []
    for literal, bracket, name, form in re.findall(r"([^{<]+)|([{<])(\w+):?(\w*)[}>]", text):
        parts.append(Slot(name, form, kept=bracket == "{") if bracket else literal)
    return tuple(parts)


def _alternatives() -> dict[str, list[dict[str, Template]]]:
    """All that a name can become: for each alternative its forms, the first of them under ""."""
    grammar = {"tale": [{"": parse(frame)} for frame in FRAMES]}
    for name, sentences in SENTENCES.items():
        grammar[name] = [{"": parse(sentence)} for sentence in sentences]
    for header, words in WORDS.items():
        name, *forms = header.split("/")
        columns = ["", *forms]
        grammar[name] = [
            dict(zip(columns, map(parse, word.split("/")), strict=True)) for word in words.split()
        ]
    return grammar


GRAMMAR = _alternatives()


def documents(
    seed: int = 0, count: int | None = None, *, say: Callable[[str], None] | None = None
) -> Iterator[Document]:
    """Tells tale 0, 1, 2, ...; without end if `count` is None.

    Tale i is a pure function of (seed, i), the same on every machine. Its `entropy_bits` is exactly
    -log2 of the probability of its text. `say`, which every corpus is given, has nothing to hear.
    """
    for i in integers() if count is None else range(count):
        # Of all of `random`, Python promises the same numbers for ever only for random().
        text, bits = _tell(random.Random(f"{seed}/{i}").random)
        yield Document(text=text, metadata={"title": f"tale {seed}/{i}"}, entropy_bits=bits)


def _tell(uniform: Callable[[], float]) -> tuple[str, float]:
    written: list[str] = []
    kept: dict[str, dict[str, Template]] = {}
    bits = 0.0

    def draw(name: str) -> dict[str, Template]:
        nonlocal bits
        alternatives = GRAMMAR[name]
        bits += math.log2(len(alternatives))
        return alternatives[int(uniform() * len(alternatives))]

    def write(template: Template) -> None:
        for part in template:
            if isinstance(part, str):
                written.append(part)
            elif not part.kept:
                write(draw(part.name)[part.form])
            else:
                if part.name not in kept:
                    kept[part.name] = draw(part.name)
                write(kept[part.name][part.form])

    write(draw("tale")[""])
    return "".join(written), bits


def expectation() -> Expectation:
    """The exact mean of a tale's bits and of its UTF-8 bytes, over all tales of the grammar.

    Their ratio is the floor: no model can need fewer bits per byte on enough fresh tales.
    """
    frames = [alternative[""] for alternative in GRAMMAR["tale"]]
    # A tale's kept words cost their bits once, however often they are written.
    once = [sum(math.log2(len(GRAMMAR[name])) for name in kept_names(frame)) for frame in frames]
    bits, size = _mean("tale", "")
    return Expectation(bits + sum(once) / len(frames), size)


@cache
def _mean(name: str, form: str) -> Expectation:
    """The mean bits and bytes of <name:form>, kept words counted as known."""
    bits = math.log2(len(GRAMMAR[name]))
    size = 0.0
    for alternative in GRAMMAR[name]:
        for part in alternative[form]:
            if isinstance(part, str):
                size += len(part.encode()) / len(GRAMMAR[name])
                continue
            mean = _mean(part.name, part.form)
            drawn = math.log2(len(GRAMMAR[part.name])) if part.kept else 0.0
            bits += (mean.bits - drawn) / len(GRAMMAR[name])
            size += mean.bytes / len(GRAMMAR[name])
    return Expectation(bits, size)


def kept_names(template: Template) -> set[str]:
    """The names of the {kept} words that a template, or anything drawn for it, can mention."""
    names: set[str] = set()
    for part in template:
        if isinstance(part, Slot):
            names |= {part.name} if part.kept else set()
            for alternative in GRAMMAR[part.name]:
                names |= kept_names(alternative[part.form])
    return names
