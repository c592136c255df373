"""Tokenizers: training, encoding, and what they make of the text.

The work: train each tokenizer on 20 MB of text, at 8k and at 32k tokens; encode the same text in
documents of about 2,000 characters; decode it again.

The peers: SentencePiece's BPE and unigram, by our options; jax-llm's BPE of Hugging Face
`tokenizers` over whitespace ("the seed"), which encodes by our encode_batch, by the seed's own loop
`[tokenizer.encode(text).ids for text in documents]`, or by the library's encode_batch; and our
byte-level BPE's tokenizer.json in `tokenizers`, which gives our ids.

    python benchmarks/tokenizers.py [--text PATH] [--megabytes 20] [--vocab-sizes 8192 32768]
                                    [--rounds 3]

Without --text it reads the embedded tales, whose few words are merged soon: that fills only small
vocabularies.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _paired import alternate, median, peak_mib, ratio
from _text import chunks, write_text

LOOP = "- the seed's loop"
SECONDS = 1.0  # encoding is repeated for so long

# Each kind of tokenizer, and how its documents are encoded.
TRAINING = {
    "byte-level BPE": "bpe",
    "SentencePiece BPE": "sentencepiece-bpe",
    "SentencePiece unigram": "unigram",
    "whitespace BPE (seed)": "whitespace",
}
ENCODING = TRAINING | {
    LOOP: "whitespace",
    "- the seed's encode_batch": "whitespace",
    "byte-level BPE in HF": "bpe",
}


def train(program: str, documents: list[str], vocab_size: int, folder: Path) -> dict:
    from tsuzuri import tokenizer
    from tsuzuri.config import TokenizerConfig

    kind = TRAINING[program]
    # SentencePiece refuses a vocabulary that the text cannot fill; the others make a smaller one.
    options = "" if kind in ("bpe", "whitespace") else "--hard_vocab_limit=false"
    cfg = TokenizerConfig(kind=kind, vocab_size=vocab_size, sample_mb=10_000, options=options)
    start, cpu = time.perf_counter(), time.process_time()
    tok = tokenizer.train(iter(documents), cfg, lambda message: None, progress=False)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    tok.save(folder / kind)
    return {"s": seconds, "cpu": cpu, "MiB": peak_mib()}


def encode(program: str, documents: list[str], vocab_size: int, folder: Path) -> dict:
    from tsuzuri import tokenizer

    tok = tokenizer.load(folder / ENCODING[program])
    run = encoder(program, tok, folder / ENCODING[program])
    run(documents[:50])
    rounds, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        ids = run(documents)
        rounds += 1
    seconds = time.perf_counter() - start
    size = sum(len(text.encode()) for text in documents)
    pairs = zip(documents, ids, strict=True)
    return {
        "MB/s": rounds * size / 1e6 / seconds,
        "vocabulary": tok.vocab_size,
        "bytes/token": size / sum(map(len, ids)),
        "lossless": all(tok.decode(map(int, of_text)) == text for text, of_text in pairs),
    }


def encoder(program: str, tok, folder: Path) -> Callable[[list[str]], list]:
    if program in TRAINING:
        return tok.encode_batch
    from tokenizers import Tokenizer

    hf = Tokenizer.from_file(str(folder / "tokenizer.json"))
    hf.encode_special_tokens = True
    if program == LOOP:
        return lambda documents: [hf.encode(text).ids for text in documents]
    if program == "- the seed's encode_batch":
        return lambda documents: [encoding.ids for encoding in hf.encode_batch(documents)]
    return lambda documents: [encoding.ids for encoding in hf.encode_batch_fast(documents)]


def commands(what: str, programs: dict[str, str], last: list[str]) -> dict[str, list[str]]:
    start = [sys.executable, __file__, "--measure", what]
    return {name: [*start, name, *last] for name in programs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text")
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--measure", nargs=5, metavar=("train|encode", "PROGRAM", "TEXT", "SIZE", "FOLDER")
    )
    args = parser.parse_args()
    if args.measure:
        what, program, text, size, folder = args.measure
        work = {"train": train, "encode": encode}[what]
        print(json.dumps(work(program, chunks(Path(text), 2000), int(size), Path(folder))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "text.txt"
        write_text(args.text, args.megabytes, path)
        for size in args.vocab_sizes:
            last = [str(path), str(size), str(Path(temporary) / str(size))]
            trained = alternate(commands("train", TRAINING, last), args.rounds)
            encoded = alternate(commands("encode", ENCODING, last), args.rounds)
            print(f"\n{size:,} tokens asked for, {args.megabytes} MB of text")
            print(
                f"{'':28}{'train s':>8}{'CPU s':>8}{'MiB':>8}{'encode MB/s':>13}"
                f"{'of the loop':>13}{'tokens':>8}{'bytes/token':>13}{'lossless':>10}"
            )
            for name, results in encoded.items():
                times = trained.get(name)
                figures = "".join(
                    f"{median(times, key):8.{digits}f}" if times else f"{'':8}"
                    for key, digits in (("s", 1), ("cpu", 1), ("MiB", 0))
                )
                result = results[-1]
                print(
                    f"{name:28}{figures}{median(results, 'MB/s'):13.1f}"
                    f"{ratio(results, encoded[LOOP], 'MB/s'):12.2f}x{result['vocabulary']:8,}"
                    f"{result['bytes/token']:13.2f}{'yes' if result['lossless'] else 'no':>10}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
