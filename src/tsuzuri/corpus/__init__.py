"""Where documents come from: any text on disk (text_files.py), and corpora known by name."""

import difflib
import importlib
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tsuzuri.corpus.document import Document
from tsuzuri.corpus.text_files import fingerprint, read
from tsuzuri.errors import UserError

__all__ = ["CORPORA", "Document", "NamedCorpus", "fingerprint", "listing", "named", "read"]


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus that `tsuzuri prepare` knows by name.

    Attributes:
      file: the file of this folder whose `documents` yields it.
      description: what it is, in a few words.
      cleaning: what its cleaner does.
      size: of its text, about.
      licence: under what terms its text may be used.
      language: ISO 639 codes.
      bring: the publisher's files that --source takes, and where they are; empty where none are.
      options: the keywords that `documents` takes besides `say`; each has a default.
      fixed: keywords that make this corpus of a file that serves several.
    """

    file: str
    description: str
    cleaning: str
    size: str
    licence: str
    language: str
    bring: str = ""
    options: tuple[str, ...] = ("source", "split")
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def documents(self, *, say: Callable[[str], None], **options: Any) -> Iterator[Document]:
        """Yields its documents; `say` hears what the user should know.

        Raises:
          UserError: the source is not what it should be, or cannot be had.
        """
        module = importlib.import_module(f"tsuzuri.corpus.{self.file}")
        return module.documents(**self.fixed, **options, say=say)


CORPORA = {
    "tales": NamedCorpus(
        file="tales",
        description="short Japanese tales made by rule, of known entropy",
        cleaning="none is needed",
        size="as much as is asked for",
        licence="MIT, as this package",
        language="ja",
        options=("seed", "count"),
    ),
    "aozora": NamedCorpus(
        file="aozora",
        description="Aozora Bunko, Japanese literature",
        cleaning="takes out headers, ruby and notes; resolves gaiji and accents",
        size="600 MB",
        licence="public domain, works still in copyright aside; keep each work's credits with it",
        language="ja",
        bring="the site's files (a folder, zip or tar of cards/*/files/*.zip), or "
        "huggingface.co/datasets/globis-university/aozorabunko-clean",
        options=("source", "books", "orthography"),
    ),
    "wiki40b-ja": NamedCorpus(
        file="wiki40b",
        description="Wiki-40B, 828,236 articles of the Japanese Wikipedia",
        cleaning="turns its marks into headings, paragraphs and lines; drops nothing",
        size="2 GB",
        licence="CC BY-SA 3.0",
        language="ja",
        bring="ja/*.parquet of huggingface.co/datasets/google/wiki40b",
    ),
    "cc100-ja": NamedCorpus(
        file="cc100",
        description="CC-100, text of the web as Common Crawl met it in 2018",
        cleaning="parts the documents at blank lines",
        size="70 GB",
        licence="no claim by who prepared it; Common Crawl's terms of use",
        language="ja",
        bring="https://data.statmt.org/cc-100/ja.txt.xz (15 GB)",
    ),
    "lm1b": NamedCorpus(
        file="lm1b",
        description="One Billion Word Benchmark, 30 million shuffled sentences of news, tokenized",
        cleaning="makes each sentence a document",
        size="4.2 GB",
        licence="Apache 2.0",
        language="en",
        bring="1-billion-word-language-modeling-benchmark-r13output.tar.gz (1.8 GB) of "
        "https://www.statmt.org/lm-benchmark/",
    ),
    "wikitext-2": NamedCorpus(
        file="wikitext",
        description="WikiText-2, 720 good and featured articles of the English Wikipedia",
        cleaning="parts the articles; the benchmark's text is kept to the byte",
        size="13 MB",
        licence="CC BY-SA 3.0 and GFDL",
        language="en",
        bring="wikitext-2-raw-v1.zip or wikitext-2-v1.zip, or the .parquet of "
        "huggingface.co/datasets/Salesforce/wikitext",
        options=("source", "split", "form"),
        fixed={"name": "wikitext-2"},
    ),
    "wikitext-103": NamedCorpus(
        file="wikitext",
        description="WikiText-103, 28,595 good and featured articles of the English Wikipedia",
        cleaning="parts the articles; the benchmark's text is kept to the byte",
        size="550 MB",
        licence="CC BY-SA 3.0 and GFDL",
        language="en",
        bring="wikitext-103-raw-v1.zip or wikitext-103-v1.zip, or the .parquet of "
        "huggingface.co/datasets/Salesforce/wikitext",
        options=("source", "split", "form"),
        fixed={"name": "wikitext-103"},
    ),
    "wikitext-ja-featured": NamedCorpus(
        file="wikitext_ja",
        description="Wikitext-JA, featured articles of the Japanese Wikipedia",
        cleaning="parts the articles",
        size="1 million tokens",
        licence="CC BY-SA, as Wikipedia",
        language="ja",
        bring="Featured_Contents.txt of http://www.lsta.media.kyoto-u.ac.jp/resource/data/"
        "wikitext-ja/",
        fixed={"grade": "Featured"},
    ),
    "wikitext-ja-good": NamedCorpus(
        file="wikitext_ja",
        description="Wikitext-JA, good articles of the Japanese Wikipedia",
        cleaning="parts the articles",
        size="many times the featured ones",
        licence="CC BY-SA, as Wikipedia",
        language="ja",
        bring="Good_Contents.txt of http://www.lsta.media.kyoto-u.ac.jp/resource/data/wikitext-ja/",
        fixed={"grade": "Good"},
    ),
    "wikisplit-pp": NamedCorpus(
        file="wikisplit",
        description="WikiSplit++, 630,000 English sentences, each also in simpler ones",
        cleaning="puts a sentence on a line and its simple ones on the next, or takes one --field",
        size="240 MB",
        licence="CC BY-SA 4.0",
        language="en",
        bring="data/*.parquet of huggingface.co/datasets/cl-nagoya/wikisplit-pp",
        options=("source", "split", "field"),
    ),
    "tinystories": NamedCorpus(
        file="tinystories",
        description="TinyStories, 2.1 million short stories by GPT-3.5 and GPT-4",
        cleaning="parts the stories at <|endoftext|>, which goes with the newlines around it",
        size="1.9 GB",
        licence="CDLA-Sharing-1.0",
        language="en",
        bring="TinyStories-*.txt, TinyStoriesV2-GPT4-*.txt, TinyStories_all_data.tar.gz or "
        "data/*.parquet of huggingface.co/datasets/roneneldan/TinyStories",
    ),
    "shakespeare": NamedCorpus(
        file="shakespeare",
        description="tinyshakespeare, 40,000 lines of plays",
        cleaning="none; one document to the byte",
        size="1.1 MB",
        licence="public domain",
        language="en",
        bring="input.txt of github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare",
    ),
}


def named(name: str) -> NamedCorpus:
    """The corpus of that name; or any dataset of the hub, by hf:OWNER/NAME or hf:OWNER/NAME/CONFIG.

    Raises:
      UserError: there is none; the message suggests one.
    """
    if name.startswith("hf:"):
        return _from_hub(name)
    if name in CORPORA:
        return CORPORA[name]
    close = difflib.get_close_matches(name, CORPORA, n=1)
    hint = f"did you mean {close[0]}?" if close else "a text file needs no preparing: train on it"
    known = ", ".join([*CORPORA, "hf:OWNER/NAME"])
    raise UserError(f"no corpus is called {name!r}; there are {known}; {hint}")


def listing() -> str:
    """All corpora with what is known of them, in lines of at most 100 characters."""
    lines = []
    for name, corpus in [*CORPORA.items(), ("hf:OWNER/NAME[/CONFIG]", named("hf:OWNER/NAME"))]:
        lines.append(f"{name}  ({corpus.language}, {corpus.size})")
        facts = {
            "what": corpus.description,
            "cleaning": corpus.cleaning,
            "licence": corpus.licence,
            "options": " ".join(f"--{option}" for option in corpus.options),
            "--source": corpus.bring,
        }
        for fact, told in facts.items():
            if told:
                lines += textwrap.wrap(
                    told,
                    width=100,
                    initial_indent=f"  {fact:<10}",
                    subsequent_indent=" " * 12,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
        lines.append("")
    return "\n".join(lines).rstrip()


def _from_hub(name: str) -> NamedCorpus:
    owner, _, rest = name.removeprefix("hf:").partition("/")
    short, _, config = rest.partition("/")
    if not owner or "" in name.split("/"):
        raise UserError(f"{name}: not a name of a dataset; it is hf:OWNER/NAME[/CONFIG]")
    dataset = f"{owner}/{short}" if short else owner
    return NamedCorpus(
        file="hub",
        description="a dataset of the Hugging Face hub",
        cleaning="none; its --field is the text, its other strings are metadata",
        size="see its page",
        licence="see its page",
        language="any",
        bring=f"the .parquet, .jsonl or .csv of huggingface.co/datasets/{dataset}",
        options=("source", "split", "field"),
        fixed={"dataset": dataset, "config": config or None},
    )
