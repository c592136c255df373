"""What each verb of the command line does: reads its arguments and calls, nothing else.

JAX is imported where a verb needs it, so that `--help` answers at once.
"""

import argparse
import dataclasses
import json
import logging
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tsuzuri import config, presets
from tsuzuri.config import Config
from tsuzuri.errors import RunError, UserError
from tsuzuri.files import write_text


def demo(args: argparse.Namespace) -> None:
    """Everything, on the embedded corpus: tales, tokenizer, features, training, a plot, text."""
    from tsuzuri import corpus
    from tsuzuri.corpus.prepare import prepare as write_corpus

    began = time.monotonic()
    run = folder_of(args.run)
    tales = corpus.named("tales").documents(say=say, count=presets.DEMO_TALES)
    write_corpus(tales, run / "corpus", {"name": "tales", "count": presets.DEMO_TALES}, say)
    _train(presets.demo(), run, [str(run / "corpus")])
    print(f"\nthree tales by the model ({run}):")
    _generate(run, ["", "", ""], {"temperature": 0.8, "top_k": 0, "seed": 1})
    print(f"\nthe demo took {time.monotonic() - began:.0f} s")


def prepare(args: argparse.Namespace) -> None:
    """A named corpus to Parquet documents, which `train`, `tokenizer` and `featurize` read.

    `tsuzuri prepare --list` shows the corpora, with size, licence, language and cleaning.
    """
    from tsuzuri import corpus
    from tsuzuri.corpus.cleaning import clean
    from tsuzuri.corpus.prepare import prepare as write_corpus

    if args.list:
        print(corpus.listing())
        return
    if not args.corpus or not args.out:
        raise UserError("give the name of a corpus and --out; `tsuzuri prepare --list` names them")
    chosen = corpus.named(args.corpus)
    options = {key: value for key, value in _given(args, CORPUS).items() if value is not None}
    for key in options:
        if key not in chosen.options:
            takes = ", ".join(f"--{option}" for option in chosen.options)
            raise UserError(f"{args.corpus} takes no --{key}; it takes {takes}")
    changes = changes_of(args)
    cleaning = config.replace(Config(), changes).text
    counts = write_corpus(
        clean(chosen.documents(say=say, **options), cleaning, say),
        Path(args.out),
        {"name": args.corpus, **{k: str(v) for k, v in options.items()}, **changes},
        say,
    )
    say(f"{args.out}: {counts['documents']:,} documents, {counts['bytes']:,} bytes of text")


def tokenizer(args: argparse.Namespace) -> None:
    """Trains a tokenizer on text, or compares several on one.

    tsuzuri tokenizer train TEXT ... --out FOLDER [--tokenizer.kind unigram ...]
    tsuzuri tokenizer compare TOKENIZER ... --text FILE [--sentence S] [--out PICTURE.svg]

    A tokenizer to compare is what --tokenizer takes: a folder that train wrote, a tokenizer.json, a
    SentencePiece .model, hf:OWNER/NAME, or bytes, gpt2, cl100k, o200k.
    """
    from tsuzuri import corpus
    from tsuzuri import tokenizer as tokenizers

    cfg = config.replace(Config(), changes_of(args))
    if args.action == "compare":
        from tsuzuri.tokenizer import compare

        if not args.text:
            raise UserError("tokenizer compare needs --text: the file to encode")
        texts = [document.text for document in corpus.read([args.text], cfg.text, say)]
        loaded = {spec: tokenizers.load(spec) for spec in args.source}
        sentence = args.sentence or compare.first_sentence(texts)
        print(compare.table(compare.compare(loaded, texts)))
        print(compare.segmentation(loaded, sentence))
        if args.out:
            write_text(Path(args.out), compare.picture(loaded, sentence))
        return
    if not args.out:
        raise UserError("tokenizer train needs --out: the folder to write")
    if Path(args.out).exists():
        raise UserError(f"{args.out} is there already; choose another --out")
    texts = (document.text for document in corpus.read(args.source, cfg.text, say))
    trained = tokenizers.train(texts, cfg.tokenizer, say, progress=True)
    trained.save(Path(args.out))
    say(f"{args.out}: {trained.vocab_size:,} tokens")


def featurize(args: argparse.Namespace) -> None:
    """Text to blocks of token ids, in Parquet.

    With --runner beam, what follows `--` are Apache Beam's own flags:
    tsuzuri featurize TEXT --tokenizer T --out F --runner beam -- --direct_num_workers=4
    """
    from tsuzuri import corpus, features
    from tsuzuri import tokenizer as tokenizers

    cfg = config.replace(Config(), changes_of(args))
    tok = tokenizers.load(args.tokenizer)
    if args.runner == "beam":
        found = _beam().featurize(
            args.source,
            cfg.text,
            tok,
            args.out,
            cfg.sequence_length,
            cfg.features,
            cfg.seed,
            {"sources": args.source},
            say,
            args.beam_flags,
        )
    else:
        if args.beam_flags:
            raise UserError(f"{args.beam_flags[0]} is for Beam; give --runner beam as well")
        found = features.featurize(
            lambda: corpus.read(args.source, cfg.text, say),
            tok,
            Path(args.out),
            cfg.sequence_length,
            cfg.features,
            cfg.seed,
            {"sources": args.source, "text": corpus.fingerprint(args.source, cfg.text)},
            say,
            progress=True,
        )
    for name, split in found["splits"].items():
        say(f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens")


def train(args: argparse.Namespace) -> None:
    """A text, or features, to a model; run it again to go on.

    Several hosts train one model when each is given the address of host 0 and its own number; on
    Slurm, GKE, TPU pods and under Open MPI they find each other by themselves.
    """
    from tsuzuri import cloud, hosts

    hosts.join(args.coordinator, args.num_processes, args.process_id, args.join_seconds)
    with cloud.opened(args.run, say) as (run, bucket):
        _train(config_of(args, run), run, args.source, args.profile, bucket)


def evaluate(args: argparse.Namespace) -> None:
    """Loss, perplexity and bits per byte over the whole held-out split, or over a text of yours."""
    start_jax()
    from tsuzuri import cloud
    from tsuzuri.language_model import LanguageModel

    cfg = config.replace(Config(), changes_of(args))
    model = LanguageModel.load(cloud.fetched(args.run, say, features=not args.data), say)
    with tempfile.TemporaryDirectory() as folder:
        figures = model.evaluate(args.data, cfg.text, Path(folder) / "features")
    if args.json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            print(f"{key:18} {value:,.4f}" if isinstance(value, float) else f"{key:18} {value}")


def generate(args: argparse.Namespace) -> None:
    """Text from a trained model."""
    if args.num_samples < 1:
        raise UserError(f"--num-samples is {args.num_samples}; it must be at least 1")
    prompts = [prompt for prompt in args.prompt or [""] for _ in range(args.num_samples)]
    _generate(args.run, prompts, _given(args, SAMPLING) | {"stop": tuple(args.stop)},
              stream=args.stream)  # fmt: skip


def export(args: argparse.Namespace) -> None:
    """A model for other programs: Hugging Face transformers (hf) or llama.cpp and Ollama (gguf)."""
    if args.push_to_hub and args.to != "hf":
        raise UserError("--push-to-hub goes with --to hf")
    if args.type and args.to != "gguf":
        raise UserError("--type goes with --to gguf; hf is written in float32")
    start_jax()
    from tsuzuri.language_model import LanguageModel

    out = Path(args.out)
    LanguageModel.load(args.run, say).export(args.to, out, args.type or "f16")
    if args.to == "gguf":
        from tsuzuri.interop import gguf

        print(gguf.ollama_line(out))
    if args.push_to_hub:
        from tsuzuri.interop import hf

        hf.push(out, args.push_to_hub)
    say(f"{out} is written")


def import_model(args: argparse.Namespace) -> None:
    """Weights from elsewhere to a run folder: a Hugging Face folder or hub name, or lm1b's.

    Of Hugging Face: gpt2, llama and qwen3, in safetensors. Of transformer-lm-japanese: the folder
    of its checkpoint and its sentencepiece_model. Train it further by
    `tsuzuri train TEXT --run NEW --init-from RUN`.
    """
    from tsuzuri.interop import hf, lm1b
    from tsuzuri.run_folder import create

    run, path = folder_of(args.run), Path(args.source)
    if run.exists():
        raise UserError(f"{run} is there already; choose another --run")
    if not path.exists():
        path = hf.download(args.source)
    found = (lm1b if lm1b.is_checkpoint(path) else hf).read(path, say)
    model = found.model
    cfg = Config(preset="imported", size="", sequence_length=model.context_length, model=model)
    create(run, cfg, found.tokenizer, found.params)
    print(f"next                tsuzuri generate {run} --stream")


def plan(args: argparse.Namespace) -> None:
    """What a run needs and what fits: memory by part, FLOPs, tokens, time, for a device.

    For a TPU pod, --topology v5e:16x16 compiles the true training step with TPUs' own compiler, on
    this machine, and chooses a mesh: memory, collectives and the time they allow.
    """
    if args.topology:
        if (args.device, args.devices, args.mfu) != ("this", 1, None):
            raise UserError("--topology names the chips: leave out --device, --devices and --mfu")
        os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    start_jax()
    from tsuzuri import plan as planning
    from tsuzuri import tokenizer as tokenizers

    changes = changes_of(args)
    base = presets.preset(changes.get("preset", "llama"), changes.get("size", ""))
    cfg = config.replace(base, changes)
    vocab_size = cfg.model.vocab_size or cfg.tokenizer.vocab_size
    if cfg.tokenizer.path or cfg.tokenizer.kind == "bytes":  # not trained: it has its own
        vocab_size = tokenizers.load(cfg.tokenizer.path or "bytes").vocab_size
    if args.topology:
        from tsuzuri import pod

        print(pod.table(cfg, vocab_size, args.topology, say=say))
        return
    print(planning.table(planning.plan(cfg, vocab_size, args.devices, args.device, args.mfu)))


def doctor(args: argparse.Namespace) -> None:
    """What this machine has, whether it computes rightly, and what to mend; of a run folder too."""
    from tsuzuri import doctor as doctors

    wrong = []
    run = folder_of(args.run) if args.run else None
    for finding in doctors.examine(run, compilation_cache()):
        print(f"{finding.state:8} {finding.what:12} {finding.found}", flush=True)
        wrong += [finding.what] if finding.state == "wrong" else []
    if wrong:
        raise RunError(f"wrong: {', '.join(wrong)}; the lines above say what to mend")


def plot(args: argparse.Namespace) -> None:
    """Draws plots/loss.png of a run."""
    from tsuzuri import cloud
    from tsuzuri.run_folder import draw_loss

    print(draw_loss(cloud.fetched(args.run, say)))


CORPUS = {  # what named corpora take: (type, help)
    "source": (Path, "a local copy: a folder, archive or file as the publisher has it"),
    "split": (str, "train, validation, test, or a part of one: train[:98%%]"),
    "field": (str, "hf: the field that holds the text; wikisplit-pp: complex, ..."),
    "form": (str, "wikitext: raw or tokenized"),
    "books": (int, "aozora: take so many works at most"),
    "orthography": (str, "aozora: modern (新字新仮名 only) or any"),
    "count": (int, "tales: how many"),
    "seed": (int, "tales: which"),
}

CLEANING = tuple(
    f"text.{name}"
    for name in ("normalize", "min_characters", "language", "min_language", "deduplicate")
)

SAMPLING = {  # flag: (type, help); their defaults stand in sampling.Sampling
    "max_new_tokens": (int, "tokens to write at most (200)"),
    "temperature": (float, "0 takes the likeliest token, 1 samples the model as it is (0.8)"),
    "top_k": (int, "sample from the k likeliest tokens; 0: from all (40)"),
    "top_p": (float, "sample from the likeliest tokens that make up this probability (1.0)"),
    "min_p": (float, "leave out tokens less likely than this share of the likeliest (0.0)"),
    "repetition_penalty": (float, "more than 1 makes what has been said less likely (1.0)"),
    "seed": (int, "the same seed writes the same text (0)"),
}


def folder_of(run: str) -> Path:
    if "://" in run:
        raise UserError(f"--run {run}: give a folder; only `tsuzuri train` writes to buckets")
    return Path(run)


def config_of(args: argparse.Namespace, run: Path, preset: str = "llama") -> Config:
    """The config of a run: its own, another run's or a preset's, with what was given."""
    changes = changes_of(args)
    if args.config:
        changes = config.from_json(args.config) | changes
    if (run / "config.json").exists() and not changes.keys() & {"preset", "size"}:
        from tsuzuri.run_folder import read_config

        base = read_config(run)
    elif changes.get("init_from"):
        from tsuzuri.run_folder import read_config

        if changed := changes.keys() & {"preset", "size"}:
            raise UserError(f"--init-from has the model of that run; leave out --{min(changed)}")
        base = read_config(Path(changes["init_from"]))
        changes |= {"tokenizer.path": str(Path(changes["init_from"]) / "tokenizer")}
    else:
        base = presets.preset(changes.get("preset", preset), changes.get("size", ""))
    return config.replace(base, changes)


def _train(
    cfg: Config, run: Path, sources: list[str], profile: bool = False, bucket: Any = None
) -> None:
    start_jax()
    import jax

    from tsuzuri import hosts
    from tsuzuri.track import duration
    from tsuzuri.train import train

    began = time.monotonic()
    try:
        figures = train(cfg, run, sources, profile=profile, bucket=bucket)
    except jax.errors.JaxRuntimeError as error:
        if not re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE):
            raise
        raise RunError(_what_to_lower(cfg, run)) from error
    if not hosts.is_first():
        return
    shown = bucket.url if bucket else run
    floor = figures["entropy_floor"]
    beside = (
        ""
        if floor is None
        else f" ({figures['bits_per_byte'] / floor - 1:+.1%} of the text's entropy, {floor:.4f})"
    )
    print(f"""
held-out loss       {figures["loss"]:.4f}   perplexity {figures["perplexity"]:.2f}
bits per byte       {figures["bits_per_byte"]:.4f}{beside}
steps               {figures["step"]}   time {duration(time.monotonic() - began)}
parameters SHA-256  {figures["parameters_sha256"]}
loss plot           {shown}/plots/loss.png
run folder          {shown}
next                tsuzuri generate {shown} --stream""")


def _what_to_lower(cfg: Config, run: Path) -> str:
    """After a device ran out of memory: the estimate by part, and the flags that would help."""
    import jax

    from tsuzuri import plan as planning
    from tsuzuri import tokenizer as tokenizers

    vocab_size = tokenizers.load(run / "tokenizer").vocab_size
    found = planning.plan(cfg, vocab_size, jax.device_count())
    parts = ", ".join(
        f"{name.replace('_', ' ')} {planning.shown_size(size)}"
        for name, size in dataclasses.asdict(found.memory).items()
        if size
    )
    return (
        f"out of memory: a device needs about {planning.shown_size(found.memory.peak)} ({parts}); "
        "lower --batch-size, or raise --compute.accumulate or --mesh.fsdp, or give "
        "--compute.remat full; `tsuzuri plan` tells what fits"
    )


def _generate(
    run: str | Path, prompts: list[str], sampling: dict[str, Any], stream: bool = False
) -> None:
    start_jax()
    from tsuzuri.language_model import LanguageModel
    from tsuzuri.sampling import Sampling

    checked = Sampling(**sampling)
    model = LanguageModel.load(run, say)
    if stream and len(prompts) > 1:
        say("--stream shows one text while it is written; these are shown when all are done")
    if stream and len(prompts) == 1:
        print(prompts[0], end="", flush=True)
        model.generate_many(prompts, checked, lambda row, text: print(text, end="", flush=True))
        print()
        return
    for number, done in enumerate(model.generate_many(prompts, checked), 1):
        if len(prompts) > 1:
            print(f"--- {number}")
        print(done.prompt + done.text)


def start_jax() -> None:
    """JAX with its devices and its compilation cache, so that a second run starts at once."""
    from tsuzuri import devices

    compilation_cache()
    devices.local()


def compilation_cache() -> Path:
    """The folder in which JAX keeps what it compiles; it is told of it here."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tsuzuri" / "jax"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", cache))


def _beam() -> Any:
    """The Beam runner, quiet but for errors: which are told in one line at the end."""
    logging.getLogger().setLevel(logging.CRITICAL)
    try:
        from tsuzuri.features import beam
    except ImportError as error:
        raise UserError(
            f"--runner beam needs Apache Beam ({error}); pip install 'tsuzuri[beam]'"
        ) from error
    return beam


def say(message: str) -> None:
    """A line for the user, above a progress bar, if there is one."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)


def changes_of(args: argparse.Namespace) -> dict[str, Any]:
    """The config flags that were given, as flat changes."""
    return {k.removeprefix("config."): v for k, v in vars(args).items() if k.startswith("config.")}


def _given(args: argparse.Namespace, names: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name in names}
