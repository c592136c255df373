"""The recipes for clusters: what they start can be started, and again.sh starts it again."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tsuzuri import cli, verbs
from tsuzuri.config import replace
from tsuzuri.presets import preset
from tsuzuri.sharding import check_batch, whole_mesh

RECIPES = Path(__file__).parents[1] / "recipes"
DEVICES = {"slurm.sh": 16, "gke-jobset.yaml": 16, "tpu-pod.sh": 16}


def command(recipe: str) -> list[str]:
    """The arguments of the tsuzuri that a recipe starts."""
    text = (RECIPES / recipe).read_text("utf-8")
    if recipe.endswith(".yaml"):
        lines = text.partition("command:")[2].partition("resources:")[0]
        words = re.findall(r"^ *- (.*)$", lines, re.M)
    else:
        found = re.search(r"tsuzuri train (?:.*\\\n)*.*", text)
        assert found
        words = shlex.split(found[0].replace("\\\n", "").removesuffix('"'))
    assert words[0] == "tsuzuri"
    return words[1:]


@pytest.mark.parametrize("recipe", DEVICES)
def test_what_a_recipe_starts_can_be_started(recipe: str):
    parsed = cli._parser().parse_args(command(recipe))
    changes = verbs.changes_of(parsed)
    cfg = replace(preset(changes["preset"], changes.get("size", "")), changes)
    check_batch(whole_mesh(cfg.mesh, DEVICES[recipe]), cfg.batch_size, cfg.compute.accumulate)


@pytest.mark.parametrize("script", sorted(RECIPES.glob("*.sh")), ids=lambda path: path.name)
def test_the_scripts_are_scripts(script: Path):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize(
    ("codes", "started", "ends"),
    [((42, 134, 42, 0), 4, 0), ((1, 2, 0), 2, 2), ((1,) * 20, 10, 1)],
)
def test_again_starts_again_until_it_is_done_or_hopeless(tmp_path, codes, started, ends):
    ran = tmp_path / "ran"
    program = f"echo >> {ran}; set -- {' '.join(map(str, codes))}; exit ${{@:$(wc -l < {ran}):1}}"
    done = subprocess.run(
        [RECIPES / "again.sh", "bash", "-c", program],
        env=os.environ | {"AGAIN_SECONDS": "0"},
        capture_output=True,
    )
    assert done.returncode == ends and len(ran.read_text().splitlines()) == started
