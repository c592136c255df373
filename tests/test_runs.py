"""The scripts of runs/: every command parses, and makes a config that can be trained."""

import os
import subprocess
from pathlib import Path

import pytest

from tsuzuri import cli, corpus, verbs
from tsuzuri.config import replace
from tsuzuri.presets import preset

SCRIPTS = sorted((Path(__file__).parents[1] / "runs").glob("*.sh"))


def commands(script: Path, folder: Path) -> list[list[str]]:
    """The arguments of each `tsuzuri` that the script calls, by bash itself, in an empty folder."""
    for name in ("runs", "bin"):
        (folder / name).mkdir()
    copy = folder / "runs" / script.name
    copy.write_bytes(script.read_bytes())
    program = folder / "bin" / "tsuzuri"
    program.write_text(
        f"#!/bin/sh\nprintf '%s\\0' \"$@\" >>'{folder}/calls'\nprintf '\\1' >>'{folder}/calls'\n"
    )
    program.chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", str(copy)], check=True, env=os.environ | {"PATH": path})
    calls = (folder / "calls").read_text("utf-8").split("\1")[:-1]
    return [call.split("\0")[:-1] for call in calls]


def test_there_is_a_script_for_each_result_of_the_seeds():
    names = {script.stem for script in SCRIPTS}
    assert names >= {"aozora", "lm1b", "cc100-ja", "wiki40b-ja", "wikitext-103", "tinystories"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_command_parses(script: Path, tmp_path: Path):
    assert os.access(script, os.X_OK)
    text = script.read_text("utf-8")
    assert "# To compare:" in text and "# Needs:" in text
    run, said = None, []
    for arguments in commands(script, tmp_path):
        parsed = cli._parser().parse_args(cli._parted(arguments)[0])
        said.append(parsed.verb)
        if parsed.verb == "prepare":
            chosen = corpus.named(parsed.corpus)
            given = {name for name in verbs.CORPUS if getattr(parsed, name) is not None}
            assert given <= set(chosen.options) and parsed.out in text
        if parsed.verb in ("train", "ime train"):
            run, changes = parsed.run, verbs.changes_of(parsed)
            name = changes.get("preset", "first-two" if parsed.verb == "ime train" else "")
            cfg = replace(preset(name, changes.get("size", "")), changes)
            assert cfg.resolved_model(50_000).vocab_size == (cfg.model.vocab_size or 50_000)
        if parsed.verb in ("eval", "generate"):
            assert parsed.run == run
    assert said[0] == "prepare"
    if script.stem == "ftc":
        assert said[1:].count("ime train") == 2 and said[-1] == "ime eval"
    elif script.stem == "scaling-aozora":
        assert said[1:] == ["scaling"]
    else:
        assert said[-1] == "generate" and "train" in said
