"""What each action of `tsuzuri ime` does: reads its arguments and calls, nothing else."""

import argparse
import json

from tsuzuri.errors import UserError
from tsuzuri.verbs import changes_of, config_of, folder_of, say, start_jax


def ime(args: argparse.Namespace) -> None:
    """The First Two Character Input Method: fitwchinme -> first two character input method."""


def train(args: argparse.Namespace) -> None:
    """An input method of a text: n-grams, a cache, and a Transformer.

    The text's last tenth is kept for `tsuzuri ime eval`.
    """
    start_jax()
    from tsuzuri.apps.input_method import engine

    run = folder_of(args.run)
    cfg = config_of(args, run, preset="first-two")
    given = "steps" in changes_of(args) or bool(args.config) or (run / "config.json").exists()
    engine.train(cfg, run, args.source, args.sees, not args.ngrams_only, say, given)
    print(f"next                tsuzuri ime type {run}")


def evaluate(args: argparse.Namespace) -> None:
    """Accuracy, keys saved and time on the last tenth of a run's text; or the seed's protocol."""
    start_jax()
    from tsuzuri.apps.input_method import evaluate as evaluation

    if args.protocol == "seed" and args.plot:
        raise UserError("--plot draws the fair protocol; leave out --protocol seed")
    call = evaluation.seed_protocol if args.protocol == "seed" else evaluation.evaluate
    found = {run: call(run) for run in args.run}
    if args.json:
        print(json.dumps(found))
    else:
        for run, figures in found.items():
            print(run if len(found) > 1 else "", evaluation.table(figures), sep="\n")
    if args.plot:
        evaluation.accuracy_plot(list(found.values()), args.plot)
        say(f"{args.plot} is drawn")


def convert(args: argparse.Namespace) -> None:
    """The likeliest readings of the keys of several words, the likeliest first."""
    start_jax()
    from tsuzuri.apps.input_method.engine import InputMethod

    for reading in InputMethod.load(args.run, say).convert(args.keys, args.k):
        print(reading)


def type_(args: argparse.Namespace) -> None:
    """Types in the terminal: two letters of each word, a digit to pick, Esc to spell."""
    start_jax()
    from tsuzuri.apps.input_method.engine import InputMethod
    from tsuzuri.apps.input_method.terminal import type_in_terminal

    type_in_terminal(InputMethod.load(args.run, say))


def serve(args: argparse.Namespace) -> None:
    """Types in a page of the browser."""
    start_jax()
    from tsuzuri.apps.input_method import page
    from tsuzuri.apps.input_method.engine import InputMethod

    page.serve(InputMethod.load(args.run, say), args.host, args.port, say)
