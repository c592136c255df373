"""Tokenizer speed: training, and encoding many documents.

The work: train a byte-level BPE on 20 MB of text; encode the same text in documents of about 2,000
characters. The vocabulary is 50,257 for all, as in the peer's own setting.

The peers: a BPE of Hugging Face `tokenizers` over whitespace ("the seed"), trained from an iterator
of lines, encoding `[tokenizer.encode(text).ids for text in documents]` or by its encode_batch; and
our own tokenizer.json in `tokenizers`, which gives our ids.

    python benchmarks/tokenizer.py [--text PATH] [--megabytes 20] [--vocab-size 50257] [--rounds 3]

Without --text it reads the embedded tales, whose few words are merged soon.
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

Work = Callable[[], object]


def seed_train(documents: list[str], vocab_size: int):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(
        (line for text in documents for line in text.splitlines()), trainer
    )
    return tokenizer


def our_train(documents: list[str], vocab_size: int):
    from tsuzuri import tokenizer
    from tsuzuri.config import TokenizerConfig

    cfg = TokenizerConfig(vocab_size=vocab_size, sample_mb=1000)
    return tokenizer.train(iter(documents), cfg, lambda message: None, progress=False)


def seed_encode(documents: list[str], vocab_size: int) -> Work:
    seed = seed_train(documents[:500], vocab_size)
    return lambda: [seed.encode(text).ids for text in documents]


def seed_encode_batch(documents: list[str], vocab_size: int) -> Work:
    seed = seed_train(documents[:500], vocab_size)
    return lambda: [encoding.ids for encoding in seed.encode_batch(documents)]


def hf_encode_batch(documents: list[str], vocab_size: int) -> Work:
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        our_train(documents[:500], vocab_size).save(Path(folder) / "tokenizer")
        hf = Tokenizer.from_file(folder + "/tokenizer/tokenizer.json")
    return lambda: [encoding.ids for encoding in hf.encode_batch_fast(documents)]


def our_encode_batch(documents: list[str], vocab_size: int) -> Work:
    ours = our_train(documents[:500], vocab_size)
    return lambda: ours.encode_batch(documents)


TRAINING = {
    "tsuzuri train": lambda documents, size: lambda: our_train(documents, size),
    "seed train": lambda documents, size: lambda: seed_train(documents, size),
}
ENCODING = {
    "tsuzuri encode_batch": our_encode_batch,
    "seed encode": seed_encode,
    "seed encode_batch": seed_encode_batch,
    "our tokenizer.json in HF": hf_encode_batch,
}


def measure(program: str, path: str, vocab_size: str) -> None:
    documents = chunks(Path(path), 2000)
    work = (TRAINING | ENCODING)[program](documents, int(vocab_size))
    start, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    megabytes = Path(path).stat().st_size / 1e6
    print(json.dumps({"s": seconds, "cpu": cpu, "MB/s": megabytes / seconds, "MiB": peak_mib()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text")
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--vocab-size", type=int, default=50257)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=3, metavar=("PROGRAM", "TEXT", "SIZE"), help="one run")
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        write_text(args.text, args.megabytes, path)
        for programs, peer in ((TRAINING, "seed train"), (ENCODING, "seed encode")):
            command = [sys.executable, __file__, "--measure"]
            last = [str(path), str(args.vocab_size)]
            results = alternate({name: [*command, name, *last] for name in programs}, args.rounds)
            print(f"\n{'':26}{'s':>8}{'CPU s':>8}{'MB/s':>8}{'MiB':>8}  speed of {peer}")
            for name, result in results.items():
                figures = "".join(
                    f"{median(result, key):8.1f}" for key in ("s", "cpu", "MB/s", "MiB")
                )
                print(f"{name:26}{figures}{ratio(result, results[peer], 'MB/s'):8.2f} x")


if __name__ == "__main__":
    main()
