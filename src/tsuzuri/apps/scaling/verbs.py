"""What `tsuzuri scaling` does: reads its arguments and calls, nothing else."""

import argparse
import dataclasses
from typing import Any

from tsuzuri import config, presets
from tsuzuri.config import Config
from tsuzuri.errors import RunError, UserError
from tsuzuri.files import write_json
from tsuzuri.verbs import changes_of, folder_of, say, start_jax

# A study of a small book in ten to twenty minutes of two cores.
SIZES = "1x32,2x48,3x64,3x96"
HELD_OUT_TOKENS = 50_000
VOCAB_SIZE = 2048  # of a larger one, embeddings and head would be most of the work
_ELSEWHERE = {  # what a study sets for each cell
    "model.num_layers": "give --sizes",
    "model.embed_dim": "give --sizes",
    "model.num_heads": "heads are as wide as those of the preset's --size",
    "eval_blocks": "give --held-out-tokens: all of them are looked at each time",
    "init_from": "the cells of a study begin from nothing",
}


def scaling(args: argparse.Namespace) -> None:
    """How the loss falls with parameters and tokens: a grid of runs, two laws, three figures.

    tsuzuri scaling TEXT --out STUDY --books 100,1000,all --sizes 2x64,4x128

    Each cell is a run folder, STUDY/cells/NAME. Run it again to go on; with more sizes or corpora,
    to add their cells. After its warmup the learning rate is constant, unless --optim.schedule is
    given.
    """
    from tsuzuri.apps.scaling import grid, study

    if args.seeds < 1:
        raise UserError(f"--seeds is {args.seeds}; it must be at least 1")
    out = folder_of(args.out)
    new = not study.begun(out)
    sizes = args.sizes if args.sizes is not None or not new else SIZES
    wanted = grid.Grid(
        () if sizes is None else tuple(grid.parse_sizes(sizes)),
        tuple(
            corpus
            for unit in ("tokens", "books")
            if (text := getattr(args, unit)) is not None
            for corpus in grid.parse_corpora(text, unit)
        ),
        args.seeds,
    )
    changes = (config.from_json(args.config) if args.config else {}) | changes_of(args)
    for key in changes.keys() & _ELSEWHERE.keys():
        raise UserError(f"{key} is not for a study: {_ELSEWHERE[key]}")
    start_jax()
    from tsuzuri.apps.scaling import figures, fit

    if new:
        cfg, held_out_tokens = config_of_study(changes), HELD_OUT_TOKENS
    else:
        cfg, held_out_tokens = study.read_config(out)
        cfg = config.replace(cfg, changes)
    held_out_tokens = args.held_out_tokens or held_out_tokens
    results, failed = study.run(cfg, out, args.source, wanted, held_out_tokens, say)
    print(study.table(results, failed))
    if any(r.best_step == r.steps for r in results):
        print("* the lowest held-out loss is the last: more steps might lower it further")
    fits = []
    n, d, losses = ([getattr(r, x) for r in results] for x in ("n", "seen", "best_loss"))
    for law in fit.LAWS:
        try:
            fits.append(fit.fit(law, n, d, losses))
        except UserError as error:
            say(f"not fitted: {error}")
    if fits:
        print("", fit.table(fits), sep="\n")
    if holding := [found for found in fits if found.holds]:
        print("", fit.doubled(holding, max(n), max(d)), sep="\n")
    write_json(out / "fit.json", [dataclasses.asdict(found) for found in fits])
    for picture in figures.draw(results, fits, out):
        print(picture)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(results) + len(failed)} cells failed ({', '.join(failed)}); "
            "the same command tries them again"
        )


def config_of_study(changes: dict[str, Any]) -> Config:
    """A preset's config with what suits a study, and what was given.

    The learning rate is constant, so that the losses on the way are those of shorter runs too; the
    held-out loss is looked at about 40 times, so that its lowest is not missed; and the vocabulary
    is small, as the models are.
    """
    base = presets.preset(changes.get("preset", "llama"), changes.get("size", ""))
    suits: dict[str, Any] = {"optim.schedule": "constant", "sample_every": 0, "keep_checkpoints": 1}
    suits["tokenizer.vocab_size"] = VOCAB_SIZE
    cfg = config.replace(base, suits | changes)
    every = max(10, cfg.steps // 400 * 10)
    often: dict[str, Any] = {"eval_every": every, "save_every": 10 * every}
    always = {"eval_blocks": 1 << 30}
    return config.replace(cfg, {k: v for k, v in often.items() if k not in changes} | always)
