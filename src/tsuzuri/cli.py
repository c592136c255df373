"""The command line: parses, calls a verb, and turns what it raises into a line and an exit code."""

import argparse
import inspect
import os
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from tsuzuri import __version__, config, verbs
from tsuzuri.apps.input_method import verbs as ime
from tsuzuri.apps.scaling import verbs as scaling
from tsuzuri.apps.serve import verbs as serving
from tsuzuri.config import Config
from tsuzuri.errors import UserError, interrupt, interrupted


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code.

    0 done; 1 it failed; 2 what was given cannot be used; 42 stopped and saved, start it again;
    130 interrupted.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    if "tsuzuri.hosts" in sys.modules:
        from tsuzuri import hosts

        if hosts.count() > 1:
            hosts.leave(code)
    if code == 130 and "jax" in sys.modules:
        # XLA may still compile in threads of its own, which crash while Python clears up.
        os._exit(code)
    return code


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        try:
            _call([a for a in arguments if a != "--debug"])
        finally:  # also after --help
            _flush()
        return 0
    except BrokenPipeError:  # the reader of our output has left
        return 1
    except (KeyboardInterrupt, Exception) as error:
        if interrupted(error):
            print("interrupted", file=sys.stderr)
            return 130
        if debug:
            raise
        line = str(error)
        if isinstance(error, OSError):  # a full disk, a folder that cannot be written
            line = f"{error.filename or 'a file'}: {error.strerror or error}"
        elif not hasattr(error, "exit_code"):
            line = f"{type(error).__name__}: {line} (a fault of the program; --debug shows where)"
        print("tsuzuri:", line.replace("\n", " "), file=sys.stderr)
        return getattr(error, "exit_code", 1)


def _call(arguments: list[str]) -> None:
    parser = _parser()
    arguments, beam_flags = _parted(arguments)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = parser.verbs[parsed.verb]._option_string_actions
        raise UserError(f"unknown argument '{unknown[0]}'{config.suggestion(unknown[0], flags)}")
    if beam_flags:
        if "beam_flags" not in parsed:
            raise UserError(f"`tsuzuri {parsed.verb}` takes nothing after `--`")
        parsed.beam_flags = beam_flags
    parsed.call(parsed)


def _flush() -> None:
    """Writes out what was printed: at Python's own end an error would be no line of ours."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _parted(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """What comes before `--`, and what after."""
    before = list(arguments)
    at = before.index("--") if "--" in before else len(before)
    before, after = before[:at], before[at + 1 :]
    if (option := "--tokenizer.options") in before[:-1]:  # its value begins with -- as well
        at = before.index(option)
        before[at : at + 2] = [f"{option}={before[at + 1]}"]
    return before, after


class _Parser(argparse.ArgumentParser):
    """argparse, with errors as UserError, that say what was meant, and no shortened flags."""

    verbs: dict[str, "_Parser"]

    def __init__(self, **options: Any):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.+)' \(choose from (.+)\)", message):
            message += config.suggestion(found[1], re.findall(r"[\w-]+", found[2]))
        if found := re.search("argument (--.+): expected one argument", message):
            message += f"; one that begins with a dash is given as {found[1]}=-..."
        raise UserError(f"{message}; see `{self.prog} --help`")


def _parser() -> _Parser:
    parser = _Parser(
        prog="tsuzuri", description="From one text file to a language model that writes."
    )
    parser.add_argument("--version", action="version", version=f"tsuzuri {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    added = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    parser.verbs = {}

    def verb(name: str, call: Any, under: Any = added) -> _Parser:
        text = inspect.getdoc(call) or ""
        made = under.add_parser(name.split()[-1], help=text.splitlines()[0], description=text)
        made.set_defaults(call=call, verb=name)
        parser.verbs[name] = made
        return made

    p = verb("demo", verbs.demo)
    p.add_argument("--run", default="runs/demo", help="the run folder (runs/demo)")

    p = verb("prepare", verbs.prepare)
    p.add_argument("corpus", nargs="?", help="its name, or hf:OWNER/NAME[/CONFIG]")
    p.add_argument("--list", action="store_true", help="what corpora there are")
    p.add_argument("--out", help="the folder to write")
    for name, (kind, text) in verbs.CORPUS.items():
        p.add_argument(f"--{name}", type=kind, help=text)
    _config_flags(p, *verbs.CLEANING)

    p = verb("tokenizer", verbs.tokenizer)
    p.add_argument("action", choices=("train", "compare"))
    _source(p, more="; or, to compare, tokenizers")
    p.add_argument("--out", help="train: the folder to write; compare: a picture to draw (.svg)")
    p.add_argument("--text", help="compare: the text that is encoded")
    p.add_argument("--sentence", help="compare: the sentence that is shown (the text's first)")
    _config_flags(p, "text.", "tokenizer.")

    p = verb("featurize", verbs.featurize)
    _source(p)
    p.add_argument(
        "--tokenizer", required=True, help="a tokenizer's folder, file, hub name or name"
    )
    p.add_argument("--out", required=True, help="the folder to write")
    p.add_argument("--runner", choices=("local", "beam"), default="local", help="(local)")
    p.set_defaults(beam_flags=[])
    _config_flags(p, "sequence_length", "seed", "text.", "features.")

    p = verb("train", verbs.train)
    _source(p, "*", "; or a features folder; or nothing, to go on with the run")
    p.add_argument("--run", required=True, help="the run folder: all that is made goes there")
    p.add_argument("--config", type=Path, help="a JSON file of the values below")
    p.add_argument("--profile", action="store_true", help="record some steps to RUN/profile")
    p.add_argument("--coordinator", default="", help="HOST:PORT of host 0, of several hosts")
    p.add_argument("--num-processes", type=int, default=0, help="how many hosts train together")
    p.add_argument("--process-id", type=int, help="which of them this is, from 0")
    p.add_argument(
        "--join-seconds", type=int, default=300, help="wait so long for all hosts to come (300)"
    )
    _config_flags(p, "")

    p = verb("eval", verbs.evaluate)
    p.add_argument("run", help="the run folder")
    p.add_argument("--data", nargs="+", default=[], help="a text of yours instead")
    p.add_argument("--json", action="store_true", help="one JSON object")
    _config_flags(p, "text.")

    p = verb("generate", verbs.generate)
    p.add_argument("run", help="the run folder")
    p.add_argument("--prompt", action="append", help="the text to go on with; may be given again")
    for name, (kind, text) in verbs.SAMPLING.items():
        flag = "--" + name.replace("_", "-")
        p.add_argument(flag, dest=name, type=kind, default=argparse.SUPPRESS, help=text)
    p.add_argument("--num-samples", type=int, default=1, help="continuations of each prompt (1)")
    p.add_argument(
        "--stop", action="append", default=[], help="stop before this text; may be repeated"
    )
    p.add_argument("--stream", action="store_true", help="show the text while it is written")

    p = verb("export", verbs.export)
    p.add_argument("run", help="the run folder")
    p.add_argument("--to", choices=("hf", "gguf"), required=True, help="the format")
    p.add_argument("--out", required=True, help="hf: the folder to write; gguf: the file")
    p.add_argument("--type", choices=("f32", "f16", "q8_0"), help="gguf: of the numbers (f16)")
    p.add_argument("--push-to-hub", metavar="OWNER/NAME", help="hf: upload it as well")

    p = verb("import", verbs.import_model)
    p.add_argument("source", help="a folder, or OWNER/NAME on the Hugging Face hub")
    p.add_argument("--run", required=True, help="the run folder to make")

    p = verb("plan", verbs.plan)
    p.add_argument("--device", default="this", help="a kind of device, or this machine (this)")
    p.add_argument("--devices", type=int, default=1, help="how many (1)")
    p.add_argument(
        "--topology", help="of a TPU pod, v5e:16x16: by the real compiler (needs .[tpu])"
    )
    p.add_argument("--mfu", type=float, help="the share of the peak that is reached (0.4)")
    _config_flags(p, "")

    p = verb("doctor", verbs.doctor)
    p.add_argument("--run", help="a run folder to look into as well")

    p = verb("plot", verbs.plot)
    p.add_argument("run", help="the run folder")

    p = verb("scaling", scaling.scaling)
    _source(p, "*", "; or nothing, to go on with the study")
    p.add_argument("--out", required=True, help="the study's folder: all that is made goes there")
    p.add_argument("--tokens", help="corpora of so many tokens: 100000,300000,all")
    p.add_argument("--books", help="corpora of so many documents: 100,1000,all")
    p.add_argument("--sizes", help=f"models, as layers x width ({scaling.SIZES})")
    p.add_argument("--seeds", type=int, default=1, help="runs of each cell (1)")
    p.add_argument(
        "--held-out-tokens",
        type=int,
        help=f"look at so many tokens of the held-out documents ({scaling.HELD_OUT_TOKENS})",
    )
    p.add_argument("--config", type=Path, help="a JSON file of the values below")
    _config_flags(p, "")

    p = verb("serve", serving.serve)
    p.add_argument("run", help="the run folder")
    p.add_argument("--host", default="127.0.0.1", help="the address to listen at (127.0.0.1)")
    p.add_argument("--port", type=int, default=8000, help="(8000)")
    p.add_argument("--name", default="", help="what callers call the model (the run's name)")
    p.add_argument("--rows", type=int, default=16, help="texts written at the same time (16)")
    p.add_argument("--queue", type=int, default=64, help="texts that may wait beside them (64)")
    p.add_argument(
        "--context-length",
        type=int,
        default=0,
        help="tokens of a prompt and its continuation (the model's, at most 4096)",
    )
    p.add_argument("--runs", help="the runs to show (those beside RUN)")
    p.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="another page that may call"
    )

    p = verb("ime", ime.ime)
    actions = p.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)
    p = verb("ime train", ime.train, under=actions)
    _source(p, "*", "; or nothing, to go on with the run")
    p.add_argument("--run", required=True, help="the run folder: all that is made goes there")
    p.add_argument("--config", type=Path, help="a JSON file of the values below")
    p.add_argument(
        "--sees",
        choices=("prefixes", "committed"),
        help="what the Transformer reads: letters, or the committed words too (committed)",
    )
    p.add_argument("--ngrams-only", action="store_true", help="no Transformer")
    _config_flags(p, "")
    p = verb("ime eval", ime.evaluate, under=actions)
    p.add_argument("run", nargs="+", help="the run folder; or several, of other block sizes")
    p.add_argument(
        "--protocol", choices=("fair", "seed"), default="fair", help="seed: the paper's (fair)"
    )
    p.add_argument("--json", action="store_true", help="one JSON object")
    p.add_argument("--plot", type=Path, help="a picture to draw, beside the paper's figures")
    p = verb("ime convert", ime.convert, under=actions)
    p.add_argument("run", help="the run folder")
    p.add_argument("keys", help="fitwchinme")
    p.add_argument("-k", type=int, default=5, help="so many readings (5)")
    p = verb("ime type", ime.type_, under=actions)
    p.add_argument("run", help="the run folder")
    p = verb("ime serve", ime.serve, under=actions)
    p.add_argument("run", help="the run folder")
    p.add_argument("--host", default="127.0.0.1", help="the address to listen at (127.0.0.1)")
    p.add_argument("--port", type=int, default=8700, help="(8700)")
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


if __name__ == "__main__":
    sys.exit(main())
