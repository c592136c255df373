"""What `tsuzuri serve` does: reads its arguments and calls, nothing else."""

import argparse
import os
from pathlib import Path

from tsuzuri.errors import UserError
from tsuzuri.verbs import say, start_jax


def serve(args: argparse.Namespace) -> None:
    """A model as OpenAI's API, with a playground and a page of runs for the browser.

    At another address than this machine's own it wants a token from its callers: the one in the
    environment variable TSUZURI_TOKEN.
    """
    for name, least in (("rows", 1), ("queue", 0), ("context_length", 0)):
        if getattr(args, name) < least:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} is {getattr(args, name)}; it must be at least {least}")
    start_jax()
    from tsuzuri.apps.serve import http
    from tsuzuri.language_model import LanguageModel

    http.serve(
        LanguageModel.load(args.run, say),
        args.host,
        args.port,
        say,
        name=args.name,
        runs=Path(args.runs) if args.runs else None,
        token=os.environ.get("TSUZURI_TOKEN", ""),
        cors=args.cors,
        rows=args.rows,
        queue=args.queue,
        context=args.context_length,
    )
