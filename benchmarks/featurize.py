"""Featurizing: speed against the tokenizer alone, and peak memory.

The work: one text file to features, with a byte-level BPE of 8192 tokens and blocks of 256.

The peer: the tokenizer's own encode_batch over the documents of the same file, nothing kept. It
bounds what featurizing can reach.

    python benchmarks/featurize.py [--text PATH] [--megabytes 100] [--rounds 3]

The text is repeated up to --megabytes; without --text it is the embedded tales. The file and the
features lie in the temporary folder: set TMPDIR where it is small.
"""

import argparse
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from _paired import alternate, median, peak_mib, ratio
from _text import write_text
from tsuzuri import tokenizer
from tsuzuri.config import FeaturesConfig, TextConfig, TokenizerConfig
from tsuzuri.corpus.text_files import read
from tsuzuri.features import featurize

PROGRAMS = ("tsuzuri featurize", "encode_batch alone")


def quiet(message: str) -> None:
    pass


def measure(program: str, path: str, tokenizer_folder: str) -> None:
    tok = tokenizer.load(Path(tokenizer_folder))

    def documents():
        return read([path], TextConfig(encoding="utf-8"), quiet)

    start = time.perf_counter()
    if program == "tsuzuri featurize":
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "features"
            featurize(documents, tok, out, 256, FeaturesConfig(), 0, {}, quiet, progress=False)
            seconds = time.perf_counter() - start
    else:
        texts = (document.text for document in documents())
        while batch := list(islice(texts, 8)):
            tok.encode_batch(batch)
        seconds = time.perf_counter() - start
    print(json.dumps({"MB/s": Path(path).stat().st_size / 1e6 / seconds, "MiB": peak_mib()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text")
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=3, metavar=("PROGRAM", "TEXT", "FOLDER"), help="one run")
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        write_text(args.text, args.megabytes, path)
        texts = (document.text for document in read([path], TextConfig(encoding="utf-8"), quiet))
        tok = tokenizer.train(texts, TokenizerConfig(sample_mb=10), quiet, progress=False)
        tok.save(Path(folder) / "tokenizer")
        command = [sys.executable, __file__, "--measure"]
        last = [str(path), str(Path(folder) / "tokenizer")]
        results = alternate({name: [*command, name, *last] for name in PROGRAMS}, args.rounds)
    print(f"{args.megabytes} MB of text{'':10}{'MB/s':>8}{'of it alone':>14}{'peak MiB':>12}")
    for name, result in results.items():
        share = ratio(result, results["encode_batch alone"], "MB/s")
        print(f"{name:24}{median(result, 'MB/s'):8.1f}{share:14.2f}{median(result, 'MiB'):12.0f}")


if __name__ == "__main__":
    main()
