"""Featurizing: speed beside the tokenizer alone, Hugging Face datasets and jax-lm-training.

The work: documents in Parquet to blocks of 256 tokens in Parquet, by a byte-level BPE of 8192
tokens, the same for all.

The peers:
- the tokenizer's own encode_batch over the same documents, nothing kept: it bounds what a program
  that featurizes can reach;
- Hugging Face `datasets`: map with num_proc 2 to tokenize, and to group the ids into blocks, as
  transformers' run_clm.py does; to_parquet;
- jax-lm-training's Beam pipeline on DirectRunner: one element a document, encoded one by one, cut
  at a stride, padded, WriteToParquet.

Ours run locally, and as a Beam pipeline on DirectRunner, in memory and in two processes.

    python benchmarks/featurize.py [--text PATH] [--megabytes 20] [--rounds 3] [--only NAME ...]

The text is repeated up to --megabytes and cut into documents of about 10,000 characters; without
--text it is the embedded tales. The documents and the features lie in the temporary folder: set
TMPDIR where it is small.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from _paired import alternate, median, peak_mib, ratio
from _text import chunks, write_text

LENGTH = 256


def quiet(message: str) -> None:
    pass


def ours(documents: str, tokenizer_folder: str, out: str) -> None:
    from tsuzuri import corpus, features, tokenizer
    from tsuzuri.config import FeaturesConfig, TextConfig

    tok = tokenizer.load(Path(tokenizer_folder))
    cfg = FeaturesConfig()
    args = (tok, Path(out), LENGTH, cfg, 0, {}, quiet, False)
    features.featurize(lambda: corpus.read([documents], TextConfig(), quiet), *args)


def ours_beam(documents: str, tokenizer_folder: str, out: str, *flags: str) -> None:
    from tsuzuri import tokenizer
    from tsuzuri.config import FeaturesConfig, TextConfig
    from tsuzuri.features import beam

    tok = tokenizer.load(Path(tokenizer_folder))
    cfg = FeaturesConfig()
    flags = ("--runner=DirectRunner", *flags)
    beam.featurize([documents], TextConfig(), tok, out, LENGTH, cfg, 0, {}, quiet, flags)


def ours_beam_in_memory(documents: str, tokenizer_folder: str, out: str) -> None:
    ours_beam(documents, tokenizer_folder, out, "--direct_running_mode=in_memory")


def ours_beam_processes(documents: str, tokenizer_folder: str, out: str) -> None:
    flags = "--direct_running_mode=multi_processing", "--direct_num_workers=2"
    ours_beam(documents, tokenizer_folder, out, *flags)


def encode_alone(documents: str, tokenizer_folder: str, out: str) -> None:
    from tsuzuri import corpus, tokenizer
    from tsuzuri.config import TextConfig

    tok = tokenizer.load(Path(tokenizer_folder))
    texts = (document.text for document in corpus.read([documents], TextConfig(), quiet))
    while batch := list(islice(texts, 800)):
        tok.encode_batch(batch)


def hugging_face(documents: str, tokenizer_folder: str, out: str) -> None:
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    tok = PreTrainedTokenizerFast(tokenizer_file=f"{tokenizer_folder}/tokenizer.json")
    end = tok.convert_tokens_to_ids("<|endoftext|>")

    def tokenize(rows: dict) -> dict:
        return {"input_ids": [[*ids, end] for ids in tok(rows["text"])["input_ids"]]}

    def group(rows: dict) -> dict:
        ids = [i for row in rows["input_ids"] for i in row]
        starts = range(0, len(ids) - LENGTH, LENGTH + 1)
        return {"input_ids": [ids[start : start + LENGTH + 1] for start in starts]}

    files = [str(path) for path in Path(documents).glob("*.parquet")]
    cache = out + ".cache"
    rows = datasets.load_dataset(
        "parquet", data_files=files, columns=["text"], split="train", cache_dir=cache
    )
    rows = rows.map(tokenize, batched=True, num_proc=2, remove_columns=["text"])
    rows.map(group, batched=True, num_proc=2).to_parquet(out + ".parquet")


def jax_lm_training(documents: str, tokenizer_folder: str, out: str) -> None:
    import apache_beam as beam
    import pyarrow as pa
    import pyarrow.parquet as pq
    from apache_beam.options.pipeline_options import PipelineOptions
    from transformers import PreTrainedTokenizerFast

    class Tokenize(beam.DoFn):
        def setup(self):
            path = f"{tokenizer_folder}/tokenizer.json"
            self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=path)

        def process(self, text):
            yield self.tokenizer.encode(text)

    def cut(ids):
        for start in range(0, len(ids), LENGTH):
            if len(ids) - start > 1:
                yield ids[start : start + LENGTH - 1]

    def pad(ids):
        ids = [0, *ids, 0]
        ids += [1] * (LENGTH + 1 - len(ids))
        return {
            "input_ids": ids[:LENGTH],
            "attention_mask": [float(i != 1) for i in ids[:LENGTH]],
            "labels": [i if i != 1 else -100 for i in ids[1:]],
        }

    paths = sorted(Path(documents).glob("*.parquet"))
    texts = [text for path in paths for text in pq.read_table(path)["text"].to_pylist()]
    kinds = {"input_ids": pa.int64(), "attention_mask": pa.float32(), "labels": pa.int64()}
    schema = pa.schema([(name, pa.list_(kind)) for name, kind in kinds.items()])
    with beam.Pipeline(options=PipelineOptions(["--runner=DirectRunner"])) as pipeline:
        _ = (
            pipeline
            | beam.Create(texts)
            | beam.ParDo(Tokenize())
            | beam.FlatMap(cut)
            | beam.Map(pad)
            | beam.io.WriteToParquet(out, schema)
        )


PROGRAMS = {
    "encode_batch alone": encode_alone,
    "tsuzuri": ours,
    "tsuzuri, Beam in memory": ours_beam_in_memory,
    "tsuzuri, Beam, 2 processes": ours_beam_processes,
    "datasets.map(num_proc=2)": hugging_face,
    "jax-lm-training, Beam": jax_lm_training,
}


def measure(program: str, documents: str, tokenizer_folder: str, megabytes: str) -> None:
    import logging

    logging.getLogger().setLevel(logging.ERROR)
    # Imports, of up to some seconds, are not what is compared.
    modules = ["pyarrow.parquet", "tokenizers", "tqdm", "tsuzuri.features", "tsuzuri.corpus"]
    if "Beam" in program:
        modules += ["apache_beam", "tsuzuri.features.beam"]
    if program in ("datasets.map(num_proc=2)", "jax-lm-training, Beam"):
        modules += ["datasets", "transformers"]
    for module in modules:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        PROGRAMS[program](documents, tokenizer_folder, folder + "/features")
        seconds = time.perf_counter() - start
    print(json.dumps({"MB/s": float(megabytes) / seconds, "MiB": peak_mib()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text")
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, help="these programs alone")
    parser.add_argument("--measure", nargs=4, metavar=("PROGRAM", "TEXT", "FOLDER", "MB"))
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    from tsuzuri import tokenizer
    from tsuzuri.config import TokenizerConfig
    from tsuzuri.corpus import Document
    from tsuzuri.corpus.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        write_text(args.text, args.megabytes, path)
        texts = chunks(path, 10_000)
        prepare(map(Document, texts), Path(folder) / "documents", {"name": "benchmark"}, quiet)
        tok = tokenizer.train(iter(texts), TokenizerConfig(sample_mb=10), quiet, progress=False)
        tok.save(Path(folder) / "tokenizer")
        command = [sys.executable, __file__, "--measure"]
        last = [f"{folder}/documents", f"{folder}/tokenizer", str(args.megabytes)]
        chosen = args.only or PROGRAMS
        results = alternate({name: [*command, name, *last] for name in chosen}, args.rounds)
    print(f"{args.megabytes} MB of text{'':12}{'MB/s':>8}{'tsuzuri / it':>14}{'peak MiB':>12}")
    for name, result in results.items():
        share = ratio(results["tsuzuri"], result, "MB/s") if "tsuzuri" in results else 0
        print(f"{name:28}{median(result, 'MB/s'):8.1f}{share:14.2f}{median(result, 'MiB'):12.0f}")


if __name__ == "__main__":
    main()
