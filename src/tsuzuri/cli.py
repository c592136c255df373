"""The verbs. This file parses and calls, nothing else; JAX is imported where a verb needs it."""

import argparse
import inspect
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from tsuzuri import __version__, config, presets
from tsuzuri.config import Config
from tsuzuri.errors import UserError
from tsuzuri.files import write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code.

    0 done; 1 it failed; 2 what was given cannot be used; 42 stopped and saved, start it again;
    130 interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        parser = _parser()
        arguments, beam_flags = _parted(a for a in arguments if a != "--debug")
        parsed, unknown = parser.parse_known_args(arguments)
        if unknown:
            flags = parser.verbs[parsed.verb]._option_string_actions
            raise UserError(
                f"unknown argument '{unknown[0]}'{config.suggestion(unknown[0], flags)}"
            )
        if beam_flags:
            if "beam_flags" not in parsed:
                raise UserError(f"`tsuzuri {parsed.verb}` takes nothing after `--`")
            parsed.beam_flags = beam_flags
        parsed.call(parsed)
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        line = str(error)
        if isinstance(error, OSError):  # a full disk, a folder that cannot be written
            line = f"{error.filename or 'a file'}: {error.strerror or error}"
        elif not hasattr(error, "exit_code"):
            line = f"{type(error).__name__}: {line} (a fault of the program; --debug shows where)"
        print("tsuzuri:", line.replace("\n", " "), file=sys.stderr)
        return getattr(error, "exit_code", 1)


def demo(args: argparse.Namespace) -> None:
    """Everything, on the embedded corpus: tales, tokenizer, features, training, a plot, text."""
    from tsuzuri import corpus
    from tsuzuri.corpus.prepare import prepare as write_corpus

    began = time.monotonic()
    run = Path(args.run)
    tales = corpus.named("tales").documents(say=_say, count=presets.DEMO_TALES)
    write_corpus(tales, run / "corpus", {"name": "tales", "count": presets.DEMO_TALES}, _say)
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
    options = {key: value for key, value in _given(args, _CORPUS).items() if value is not None}
    for key in options:
        if key not in chosen.options:
            takes = ", ".join(f"--{option}" for option in chosen.options)
            raise UserError(f"{args.corpus} takes no --{key}; it takes {takes}")
    changes = _changes(args)
    cleaning = config.replace(Config(), changes).text
    counts = write_corpus(
        clean(chosen.documents(say=_say, **options), cleaning, _say),
        Path(args.out),
        {"name": args.corpus, **{k: str(v) for k, v in options.items()}, **changes},
        _say,
    )
    _say(f"{args.out}: {counts['documents']:,} documents, {counts['bytes']:,} bytes of text")


def tokenizer(args: argparse.Namespace) -> None:
    """Trains a tokenizer on text, or compares several on one.

    tsuzuri tokenizer train TEXT ... --out FOLDER [--tokenizer.kind unigram ...]
    tsuzuri tokenizer compare TOKENIZER ... --text FILE [--sentence S] [--out PICTURE.svg]

    A tokenizer to compare is what --tokenizer takes: a folder that train wrote, a tokenizer.json, a
    SentencePiece .model, hf:OWNER/NAME, or bytes, gpt2, cl100k, o200k.
    """
    from tsuzuri import corpus
    from tsuzuri import tokenizer as tokenizers

    cfg = config.replace(Config(), _changes(args))
    if args.action == "compare":
        from tsuzuri.tokenizer import compare

        if not args.text:
            raise UserError("tokenizer compare needs --text: the file to encode")
        texts = [document.text for document in corpus.read([args.text], cfg.text, _say)]
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
    texts = (document.text for document in corpus.read(args.source, cfg.text, _say))
    trained = tokenizers.train(texts, cfg.tokenizer, _say, progress=True)
    trained.save(Path(args.out))
    _say(f"{args.out}: {trained.vocab_size:,} tokens")


def featurize(args: argparse.Namespace) -> None:
    """Text to blocks of token ids, in Parquet.

    With --runner beam, what follows `--` are Apache Beam's own flags:
    tsuzuri featurize TEXT --tokenizer T --out F --runner beam -- --direct_num_workers=4
    """
    from tsuzuri import corpus, features
    from tsuzuri import tokenizer as tokenizers

    cfg = config.replace(Config(), _changes(args))
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
            _say,
            args.beam_flags,
        )
    else:
        if args.beam_flags:
            raise UserError(f"{args.beam_flags[0]} is for Beam; give --runner beam as well")
        found = features.featurize(
            lambda: corpus.read(args.source, cfg.text, _say),
            tok,
            Path(args.out),
            cfg.sequence_length,
            cfg.features,
            cfg.seed,
            {"sources": args.source, "text": corpus.fingerprint(args.source, cfg.text)},
            _say,
            progress=True,
        )
    for name, split in found["splits"].items():
        _say(f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens")


def train(args: argparse.Namespace) -> None:
    """A text, or features, to a model; run it again to go on."""
    run = Path(args.run)
    changes = _changes(args)
    if args.config:
        changes = config.from_json(args.config) | changes
    if (run / "config.json").exists() and not changes.keys() & {"preset", "size"}:
        from tsuzuri.run_folder import read_config

        base = read_config(run)
    elif "init_from" in changes:
        from tsuzuri.run_folder import read_config

        if changed := changes.keys() & {"preset", "size"}:
            raise UserError(f"--init-from has the model of that run; leave out --{min(changed)}")
        base = read_config(Path(changes["init_from"]))
        changes |= {"tokenizer.path": str(Path(changes["init_from"]) / "tokenizer")}
    else:
        base = presets.preset(changes.get("preset", "llama"), changes.get("size", ""))
    _train(config.replace(base, changes), run, args.source)


def evaluate(args: argparse.Namespace) -> None:
    """Loss, perplexity and bits per byte over the whole held-out split, or over a text of yours."""
    _start_jax()
    from tsuzuri.language_model import LanguageModel

    cfg = config.replace(Config(), _changes(args))
    model = LanguageModel.load(Path(args.run), _say)
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
    _generate(Path(args.run), prompts, _given(args, _SAMPLING) | {"stop": tuple(args.stop)},
              stream=args.stream)  # fmt: skip


def export(args: argparse.Namespace) -> None:
    """A model for other programs: Hugging Face transformers (hf) or llama.cpp and Ollama (gguf)."""
    if args.push_to_hub and args.to != "hf":
        raise UserError("--push-to-hub goes with --to hf")
    _start_jax()
    from tsuzuri.language_model import LanguageModel

    out = Path(args.out)
    LanguageModel.load(Path(args.run), _say).export(args.to, out, args.type)
    if args.to == "gguf":
        from tsuzuri.interop import gguf

        print(gguf.ollama_line(out))
    if args.push_to_hub:
        from tsuzuri.interop import hf

        hf.push(out, args.push_to_hub)
    _say(f"{out} is written")


def import_model(args: argparse.Namespace) -> None:
    """Weights from elsewhere to a run folder: a Hugging Face folder or hub name, or lm1b's.

    Of Hugging Face: gpt2, llama and qwen3, in safetensors. Of transformer-lm-japanese: the folder
    of its checkpoint and its sentencepiece_model. Train it further by
    `tsuzuri train TEXT --run NEW --init-from RUN`.
    """
    from tsuzuri.interop import hf, lm1b
    from tsuzuri.run_folder import create

    run, path = Path(args.run), Path(args.source)
    if run.exists():
        raise UserError(f"{run} is there already; choose another --run")
    if not path.exists():
        path = hf.download(args.source)
    found = (lm1b if lm1b.is_checkpoint(path) else hf).read(path, _say)
    model = found.model
    cfg = Config(preset="imported", size="", sequence_length=model.context_length, model=model)
    create(run, cfg, found.tokenizer, found.params)
    print(f"next                tsuzuri generate {run} --stream")


def plan(args: argparse.Namespace) -> None:
    """What a run needs and what fits: memory by part, FLOPs, tokens, time, for a device."""
    _start_jax()
    from tsuzuri import plan as planning

    changes = _changes(args)
    base = presets.preset(changes.get("preset", "llama"), changes.get("size", ""))
    cfg = config.replace(base, changes)
    vocab_size = cfg.model.vocab_size or cfg.tokenizer.vocab_size
    print(planning.table(planning.plan(cfg, vocab_size, args.devices, args.device, args.mfu)))


def plot(args: argparse.Namespace) -> None:
    """Draws plots/loss.png of a run."""
    from tsuzuri.run_folder import draw_loss

    print(draw_loss(Path(args.run)))


_CORPUS = {  # what named corpora take: (type, help)
    "source": (Path, "a local copy: a folder, archive or file as the publisher has it"),
    "split": (str, "train, validation, test, or a part of one: train[:98%%]"),
    "field": (str, "hf: the field that holds the text; wikisplit-pp: complex, ..."),
    "form": (str, "wikitext: raw or tokenized"),
    "books": (int, "aozora: take so many works at most"),
    "orthography": (str, "aozora: modern (新字新仮名 only) or any"),
    "count": (int, "tales: how many"),
    "seed": (int, "tales: which"),
}

_CLEANING = tuple(
    f"text.{name}"
    for name in ("normalize", "min_characters", "language", "min_language", "deduplicate")
)

_SAMPLING = {  # flag: (type, help); their defaults stand in generate.Sampling
    "max_new_tokens": (int, "tokens to write at most (200)"),
    "temperature": (float, "0 takes the likeliest token, 1 samples the model as it is (0.8)"),
    "top_k": (int, "sample from the k likeliest tokens; 0: from all (40)"),
    "top_p": (float, "sample from the likeliest tokens that make up this probability (1.0)"),
    "min_p": (float, "leave out tokens less likely than this share of the likeliest (0.0)"),
    "repetition_penalty": (float, "more than 1 makes what has been said less likely (1.0)"),
    "seed": (int, "the same seed writes the same text (0)"),
}


def _train(cfg: Config, run: Path, sources: list[str]) -> None:
    _start_jax()
    from tsuzuri.track import duration
    from tsuzuri.train import train

    began = time.monotonic()
    figures = train(cfg, run, sources)
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
loss plot           {run}/plots/loss.png
run folder          {run}
next                tsuzuri generate {run} --stream""")


def _generate(
    run: Path, prompts: list[str], sampling: dict[str, Any], stream: bool = False
) -> None:
    _start_jax()
    from tsuzuri.generate import Sampling
    from tsuzuri.language_model import LanguageModel

    checked = Sampling(**sampling)
    model = LanguageModel.load(run, _say)
    if stream and len(prompts) == 1:
        print(prompts[0], end="", flush=True)
        model.generate_many(prompts, checked, lambda row, text: print(text, end="", flush=True))
        print()
        return
    for number, done in enumerate(model.generate_many(prompts, checked), 1):
        if len(prompts) > 1:
            print(f"--- {number}")
        print(done.prompt + done.text)


def _start_jax() -> None:
    """JAX with its compilation cache on disk, so that a program's second run starts at once."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tsuzuri" / "jax"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


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


def _parted(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """What comes before `--`, and what after."""
    before = list(arguments)
    at = before.index("--") if "--" in before else len(before)
    before, after = before[:at], before[at + 1 :]
    if (option := "--tokenizer.options") in before[:-1]:  # its value begins with -- as well
        at = before.index(option)
        before[at : at + 2] = [f"{option}={before[at + 1]}"]
    return before, after


def _say(message: str) -> None:
    print(message, file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """argparse, with errors as UserError and no guessing of shortened flags."""

    verbs: dict[str, "_Parser"]

    def __init__(self, **options: Any):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def _parser() -> _Parser:
    parser = _Parser(
        prog="tsuzuri", description="From one text file to a language model that writes."
    )
    parser.add_argument("--version", action="version", version=f"tsuzuri {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    parser.verbs = {}

    def verb(name: str, call: Any) -> _Parser:
        text = inspect.getdoc(call) or ""
        made = verbs.add_parser(name, help=text.splitlines()[0], description=text)
        made.set_defaults(call=call)
        parser.verbs[name] = made
        return made

    p = verb("demo", demo)
    p.add_argument("--run", default="runs/demo", help="the run folder (runs/demo)")

    p = verb("prepare", prepare)
    p.add_argument("corpus", nargs="?", help="its name, or hf:OWNER/NAME[/CONFIG]")
    p.add_argument("--list", action="store_true", help="what corpora there are")
    p.add_argument("--out", help="the folder to write")
    for name, (kind, text) in _CORPUS.items():
        p.add_argument(f"--{name}", type=kind, help=text)
    _config_flags(p, *_CLEANING)

    p = verb("tokenizer", tokenizer)
    p.add_argument("action", choices=("train", "compare"))
    _source(p, more="; or, to compare, tokenizers")
    p.add_argument("--out", help="train: the folder to write; compare: a picture to draw (.svg)")
    p.add_argument("--text", help="compare: the text that is encoded")
    p.add_argument("--sentence", help="compare: the sentence that is shown (the text's first)")
    _config_flags(p, "text.", "tokenizer.")

    p = verb("featurize", featurize)
    _source(p)
    p.add_argument(
        "--tokenizer", required=True, help="a tokenizer's folder, file, hub name or name"
    )
    p.add_argument("--out", required=True, help="the folder to write")
    p.add_argument("--runner", choices=("local", "beam"), default="local", help="(local)")
    p.set_defaults(beam_flags=[])
    _config_flags(p, "sequence_length", "seed", "text.", "features.")

    p = verb("train", train)
    _source(p, "*", "; or a features folder; or nothing, to go on with the run")
    p.add_argument("--run", required=True, help="the run folder: all that is made goes there")
    p.add_argument("--config", type=Path, help="a JSON file of the values below")
    _config_flags(p, "")

    p = verb("eval", evaluate)
    p.add_argument("run", help="the run folder")
    p.add_argument("--data", nargs="+", default=[], help="a text of yours instead")
    p.add_argument("--json", action="store_true", help="one JSON object")
    _config_flags(p, "text.")

    p = verb("generate", generate)
    p.add_argument("run", help="the run folder")
    p.add_argument("--prompt", action="append", help="the text to go on with; may be given again")
    for name, (kind, text) in _SAMPLING.items():
        flag = "--" + name.replace("_", "-")
        p.add_argument(flag, dest=name, type=kind, default=argparse.SUPPRESS, help=text)
    p.add_argument("--num-samples", type=int, default=1, help="continuations of each prompt (1)")
    p.add_argument(
        "--stop", action="append", default=[], help="stop before this text; may be repeated"
    )
    p.add_argument("--stream", action="store_true", help="show the text while it is written")

    p = verb("export", export)
    p.add_argument("run", help="the run folder")
    p.add_argument("--to", choices=("hf", "gguf"), required=True, help="the format")
    p.add_argument("--out", required=True, help="hf: the folder to write; gguf: the file")
    p.add_argument(
        "--type", choices=("f32", "f16", "q8_0"), default="f16", help="gguf: of the numbers (f16)"
    )
    p.add_argument("--push-to-hub", metavar="OWNER/NAME", help="hf: upload it as well")

    p = verb("import", import_model)
    p.add_argument("source", help="a folder, or OWNER/NAME on the Hugging Face hub")
    p.add_argument("--run", required=True, help="the run folder to make")

    p = verb("plan", plan)
    p.add_argument("--device", default="this", help="a kind of device, or this machine (this)")
    p.add_argument("--devices", type=int, default=1, help="how many (1)")
    p.add_argument("--mfu", type=float, help="the share of the peak that is reached (0.4)")
    _config_flags(p, "")

    p = verb("plot", plot)
    p.add_argument("run", help="the run folder")
    return parser


def _source(parser: _Parser, count: str = "+", more: str = "") -> None:
    text = "text: .txt .jsonl .parquet, compressed or not, folders, .zip, .tar, prepared corpora"
    parser.add_argument("source", nargs=count, help=text + more)


def _config_flags(parser: _Parser, *prefixes: str) -> None:
    """A flag for every field of Config whose key begins with one of `prefixes`.

    The fields of `text` have flags without the group's name: --encoding, not --text.encoding.
    """
    helps = _comments()
    for key, default in config.flatten(Config()).items():
        if not key.startswith(prefixes):
            continue
        group, _, name = key.rpartition(".")
        owner = getattr(Config(), group) if group else Config()
        choices = get_args(get_type_hints(type(owner))[name])
        comment = helps.get((type(owner).__name__, name), "")
        options: dict[str, Any] = {
            "dest": f"config.{key}",
            "default": argparse.SUPPRESS,
            "metavar": "|".join(map(str, choices)) or type(default).__name__.upper(),
            "help": f"{comment} ({default})".strip().replace("%", "%%"),
        }
        if isinstance(default, bool):
            options |= {"nargs": "?", "const": "true"}
        parser.add_argument("--" + key.removeprefix("text.").replace("_", "-"), **options)


def _comments() -> dict[tuple[str, str], str]:
    """(class, field) -> the comment behind the field in config.py."""
    found, owner = {}, ""
    for line in inspect.getsource(config).splitlines():
        if match := re.match(r"class (\w+)", line):
            owner = match[1]
        elif match := re.match(r"    (\w+): .*  # (.*)", line):
            found[owner, match[1]] = match[2]
    return found


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """The config flags that were given, as flat changes."""
    return {k.removeprefix("config."): v for k, v in vars(args).items() if k.startswith("config.")}


def _given(args: argparse.Namespace, names: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name in names}


if __name__ == "__main__":
    sys.exit(main())
