"""The run folder: its config, and the stages before training, reused while the inputs are the same.

config.json  tokenizer/  features/  features.json  checkpoints/  metrics.jsonl  tensorboard/
plots/loss.png  samples.jsonl
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsuzuri import corpus, features, tokenizer
from tsuzuri.checkpoint import restore, save, steps
from tsuzuri.config import Config, ModelConfig, differences, flatten, from_json, replace
from tsuzuri.corpus.text_files import MANIFEST
from tsuzuri.errors import UserError
from tsuzuri.files import read_json, remove, write_beside, write_json
from tsuzuri.plots import loss_plot
from tsuzuri.tokenizer import Tokenizer
from tsuzuri.track import read_jsonl

Say = Callable[[str], None]

# What may change when a run goes on; any other field makes another run.
_MAY_CHANGE = ("steps", "eval_every", "eval_blocks", "save_every", "keep_checkpoints")
_MAY_CHANGE += ("sample_every", "log_every", "watchdog_seconds", "track", "sample.")
_MAY_CHANGE += ("mesh.", "compute.")
# Switches that older checkpoints know nothing of, with the value that means what those did.
_LATER = {"logit_cap": 0.0, "output_size": 0}


def read_config(run: Path) -> Config:
    """The config of a run.

    Raises:
      UserError: there is no run there, or its config.json holds a key that this version lacks.
    """
    path = run / "config.json"
    if not path.exists():
        raise UserError(f"{run} is not a run folder: it holds no config.json")
    return replace(Config(), from_json(path))


def write_config(run: Path, cfg: Config, say: Say) -> None:
    """Records the config of a run; one that has begun may change only its length and its reports.

    Raises:
      UserError: the run has checkpoints of another config; the differences are listed.
    """
    if (run / "config.json").exists() and steps(run / "checkpoints"):
        for key, (old, new) in (changes := differences(read_config(run), cfg)).items():
            if not key.startswith(_MAY_CHANGE):
                listed = ", ".join(f"{k} {a!r} -> {b!r}" for k, (a, b) in changes.items())
                raise UserError(
                    f"{run} holds a run of another config ({listed}); "
                    "give its own values, or another --run"
                )
            say(f"{key}: {old} -> {new}")
    write_json(run / "config.json", flatten(cfg))


def create(run: Path, cfg: Config, tokenizer: Tokenizer, params: Any) -> None:
    """Makes a run folder of parameters that were trained elsewhere, as step 0.

    Args:
      params: as the Decoder of `cfg` has them.

    Raises:
      UserError: there is something at `run` already.
      RunError: it cannot be written.
    """
    if run.exists():
        raise UserError(f"{run} is there already; choose another --run")
    with write_beside(run) as beside:
        beside.mkdir()
        write_json(beside / "config.json", flatten(cfg))
        tokenizer.save(beside / "tokenizer")
        belongs_to = identity(tokenizer, cfg.resolved_model(tokenizer.vocab_size))
        state = {"step": np.int32(0), "params": params}
        save(beside / "checkpoints", 0, state, belongs_to, keep=1)


def initial_parameters(init_from: Path, tokenizer: Tokenizer, cfg: ModelConfig, target: Any) -> Any:
    """The parameters of another run's newest checkpoint, for a run to begin with.

    Args:
      target: the parameters as jax.ShapeDtypeStruct with shardings.

    Raises:
      UserError: there is no such run, or its tokenizer or the shape of its model is another.
      RunError: it holds no sound checkpoint.
    """
    theirs = read_config(init_from).resolved_model(tokenizer.vocab_size)
    free = {"dropout", "dtype", "init"}  # what no parameter's shape or meaning depends on
    if cfg.positions != "learned":
        free.add("context_length")
    ours, other = dataclasses.asdict(cfg), dataclasses.asdict(theirs)
    if differing := [key for key in ours if key not in free and ours[key] != other[key]]:
        listed = ", ".join(f"model.{key} {other[key]!r}, not {ours[key]!r}" for key in differing)
        raise UserError(f"--init-from {init_from} has another model ({listed}); leave those out")
    belongs_to = {"tokenizer": tokenizer.fingerprint}
    found = restore(init_from / "checkpoints", {"params": target}, belongs_to, lambda line: None)
    if found is None:
        raise UserError(f"--init-from {init_from} holds no checkpoint yet: train it first")
    return found[0]["params"]


def check_sources(sources: Sequence[str], out: Path) -> None:
    """Checks what is to be read before anything is made in `out`.

    Raises:
      UserError: a source is not there; or `out` lies in it and would be read as text.
    """
    for source in map(Path, sources):
        if not source.exists():
            raise UserError(f"{source}: no such file or folder")
        # A corpus and features that were made here name the files that belong to them.
        named = any((source / name).exists() for name in (MANIFEST, "features.json"))
        if not named and source.resolve() in [out.resolve(), *out.resolve().parents]:
            raise UserError(f"{source} is read as text, and {out} lies in it; choose another place")


def prepare(
    sources: Sequence[str], cfg: Config, run: Path, say: Say, progress: bool = True
) -> None:
    """Tokenizer and features of a run: made from `sources`, or as an earlier run left them.

    Args:
      sources: text files, folders or archives; or one features folder; or nothing, to go on.

    Raises:
      UserError: nothing to train on; or the run was trained on something else.
    """
    if steps(run / "checkpoints") and not (run / "features.json").exists():
        raise UserError(
            f"{run} was imported, not trained here; train it further in a run of its own: "
            f"--run NEW --init-from {run}"
        )
    recorded = run / "features.json"
    if len(sources) == 1 and (Path(sources[0]) / "features.json").exists():
        folder = Path(sources[0]).resolve()
        given = features.read_features(folder)
        if given["sequence_length"] != cfg.sequence_length:
            raise UserError(
                f"{folder} holds sequences of {given['sequence_length']} tokens; "
                f"give --sequence-length {given['sequence_length']}"
            )
        if not steps(run / "checkpoints") or not (run / "tokenizer").exists():
            remove(run / "tokenizer")  # an earlier start's, of a text
            tokenizer.load(folder / "tokenizer").save(run / "tokenizer")
    else:
        folder = run / "features"
        if sources:
            _from_text(sources, cfg, run, say, progress)
        elif recorded.exists():
            folder = run / features.read_features(run)["folder"]
        if not (folder / "features.json").exists():
            raise UserError(
                f"{folder} is gone: give the text, or the features, that {run} was trained on"
                if recorded.exists()
                else f"{run} holds no features yet: give a text to train on"
            )
        given = features.read_features(folder)

    if recorded.exists() and steps(run / "checkpoints"):
        before = features.read_features(run)["fingerprint"]
        if before != given["fingerprint"]:
            raise UserError(
                f"{run} was trained on other features than {folder}; give the text it was trained "
                "on, or another --run"
            )
    inside = folder == run / "features"
    write_json(recorded, given | {"folder": "features" if inside else str(folder)})


def features_of(run: Path) -> tuple[Path, dict[str, Any]]:
    """The features folder that a run was trained on, and its features.json.

    Raises:
      UserError: it is gone, or is not the one that the run was trained on.
    """
    if not (run / "features.json").exists():
        raise UserError(f"{run} was trained on no features here; give a text of yours by --data")
    recorded = features.read_features(run)
    folder = run / recorded["folder"]
    found = features.read_features(folder)
    if found["fingerprint"] != recorded["fingerprint"]:
        raise UserError(f"{folder} is not what {run} was trained on: it has been made anew")
    return folder, found


def identity(
    tokenizer: Tokenizer, model_cfg: ModelConfig, features: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The fingerprints that a checkpoint is saved with and compared to."""
    switches = dataclasses.asdict(model_cfg)
    for name, default in _LATER.items():
        if switches[name] == default:
            del switches[name]
    model = hashlib.sha256(json.dumps([switches], sort_keys=True).encode()).hexdigest()
    found = {"tokenizer": tokenizer.fingerprint, "model": model}
    return found | ({"features": features["fingerprint"]} if features else {})


def draw_loss(run: Path) -> Path:
    """Draws plots/loss.png from metrics.jsonl.

    Raises:
      UserError: there is nothing to draw yet.
    """
    metrics = read_jsonl(run / "metrics.jsonl")
    if not metrics:
        raise UserError(f"{run} holds no metrics yet: train it first")
    held_out = features.read_features(run)["splits"]["held_out"]
    floor = held_out["entropy_bits"] and held_out["entropy_bits"] * math.log(2) / held_out["tokens"]
    picture = run / "plots" / "loss.png"
    loss_plot(metrics, picture, title=run.name, floor=floor)
    return picture


def _from_text(sources: Sequence[str], cfg: Config, run: Path, say: Say, progress: bool) -> None:
    """The two stages from text to features, each done only where its inputs have changed."""
    text = corpus.fingerprint(sources, cfg.text)
    tokenizer_inputs = _digest(text, cfg.tokenizer, cfg.features.held_out, cfg.seed)
    feature_inputs = _digest(tokenizer_inputs, cfg.features, cfg.sequence_length)
    begun = steps(run / "checkpoints")

    told: set[str] = set()

    def say_once(message: str) -> None:  # the text is read several times
        if message not in told:
            told.add(message)
            say(message)

    def documents():
        return corpus.read(sources, cfg.text, say_once)

    # Once the run has begun its own copy counts, whatever has become of the path.
    given = tokenizer.load(cfg.tokenizer.path) if cfg.tokenizer.path and not begun else None
    made = run / "tokenizer" / "inputs.json"
    same = made.exists() and read_json(made) == tokenizer_inputs
    if same and given:
        same = tokenizer.load(run / "tokenizer").fingerprint == given.fingerprint
    if not same:
        if begun:
            raise UserError(
                f"{run} was trained on another text than {', '.join(map(str, sources))}; "
                "give that one, or nothing to go on with it, or another --run"
            )
        if not given:
            say("training the tokenizer")
            pieces = features.training_texts(documents, cfg.features, cfg.seed)
            given = tokenizer.train(pieces, cfg.tokenizer, say, progress)
        remove(run / "features")
        remove(run / "tokenizer")
        given.save(run / "tokenizer")
        write_json(made, tokenizer_inputs)
    made = run / "features"
    there = (made / "features.json").exists()
    if not (there and features.read_features(made)["source"].get("inputs") == feature_inputs):
        say("turning the text into features")
        remove(made)
        source = {"sources": [str(s) for s in sources], "inputs": feature_inputs}
        tok = tokenizer.load(run / "tokenizer")
        features.featurize(
            documents, tok, made, cfg.sequence_length, cfg.features, cfg.seed,
            source, say, progress,
        )  # fmt: skip


def _digest(*inputs: Any) -> str:
    plain = [i if isinstance(i, str | int | float) else dataclasses.asdict(i) for i in inputs]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
