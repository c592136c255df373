"""One flipped bit in a checkpoint, 200 times: never loaded without a word."""

import random
import re
import shutil
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import jax
import pytest
from trainer import TINY, saved

from tsuzuri import checkpoint
from tsuzuri.errors import RunError
from tsuzuri.files import read_json
from tsuzuri.presets import preset
from tsuzuri.sharding import one_device, shardings
from tsuzuri.step import make_training

FLIPS = 200
TOLD = (  # by what a damaged checkpoint is known
    r"SHA-256 of state/.* differs",
    r"SHA-256 of manifest.json differs",
    r"manifest.json cannot be read",
)
CONTROL_FLIPS = 60


@pytest.fixture
def run(undisturbed, tmp_path):
    return Path(shutil.copytree(undisturbed[0], tmp_path / "run"))


def _target():
    """The whole state of the run, as train.py restores it."""
    cfg = preset("llama", **TINY)
    mesh = one_device()
    _, init, _ = make_training(cfg, cfg.resolved_model(258), mesh)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return checkpoint.shapes(shapes, shardings(mesh, shapes))


@pytest.fixture(scope="module")
def target():
    return _target()


def _places(folder: Path, count: int) -> list[tuple[Path, int]]:
    """(file, bit): two of each file, the others wherever a random bit of the folder falls."""
    chance = random.Random(0)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    sizes = [file.stat().st_size for file in files]
    chosen = files * 2 + chance.choices(files, sizes, k=count - 2 * len(files))
    return [(file, chance.randrange(8 * file.stat().st_size)) for file in chosen]


def _outcome(run: Path, file: Path, bit: int, target, sound: dict[int, str]) -> str:
    """What restoring does once the bit of the newest checkpoint is flipped; then it is put back."""
    belongs_to = read_json(run / "checkpoints" / "232" / "manifest.json")["belongs_to"]
    original = file.read_bytes()
    flipped = bytearray(original)
    flipped[bit // 8] ^= 1 << bit % 8
    file.write_bytes(flipped)
    told: list[str] = []
    try:
        state, step = checkpoint.restore(run / "checkpoints", target, belongs_to, told.append)
    except Exception as error:
        return f"refused ({type(error).__name__})"
    finally:
        file.write_bytes(original)
    if (int(state.step), checkpoint.parameters_sha256(state)) != (step, sound.get(step)):
        return "LOADED DAMAGED"
    if step == 240:
        return "loaded, and it was the same"
    assert step == 232 and len(told) == 1, told
    return next(kind for kind in TOLD if re.search(kind, told[0]))


@pytest.fixture
def sound(run, target):
    """{240: the fingerprint of its whole state, 232: ...}"""
    found = {}
    for step in (240, 232):
        only = run.with_name(f"only-{step}")
        shutil.copytree(run / "checkpoints" / str(step), only / str(step))
        belongs_to = read_json(only / str(step) / "manifest.json")["belongs_to"]
        state, _ = checkpoint.restore(only, target, belongs_to, pytest.fail)
        found[step] = checkpoint.parameters_sha256(state)
    return found


def test_two_hundred_flips_none_loaded_silently(run, target, sound, tell):
    assert saved(run) == [224, 232, 240]
    places = _places(run / "checkpoints" / "240", FLIPS)
    found = Counter(_outcome(run, *place, target, sound) for place in places)
    assert found.total() == FLIPS and found.keys() <= set(TOLD), found
    files = len({file for file, _ in places})
    tell("bit flips in a checkpoint", f"{FLIPS}, in each of its {files} files; 0 loaded silently")
    tell("... told, and the one before used", _listed(found))


def test_a_flip_in_the_only_checkpoint_is_an_error(run, target, sound):
    for step in (224, 232):
        shutil.rmtree(run / "checkpoints" / str(step))
    newest = run / "checkpoints" / "240"
    belongs_to = read_json(newest / "manifest.json")["belongs_to"]
    for file, bit in _places(newest, 40)[-10:]:
        data = bytearray(file.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        with pytest.raises(RunError, match="no sound checkpoint"):
            checkpoint.restore(run / "checkpoints", target, belongs_to, lambda line: None)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)


def test_control_without_the_manifest_some_load_silently(run, sound, tell):
    """In a process of its own: Orbax leaves tasks behind where it reads what is damaged."""
    places = _places(run / "checkpoints" / "240", FLIPS)
    places = [place for place in places if place[0].name != "manifest.json"][-CONTROL_FLIPS:]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        found = process.submit(_without_the_manifest, run, places, sound).result()
    assert found["LOADED DAMAGED"] > 0, found
    tell(f"control: {CONTROL_FLIPS} flips without our manifest", _listed(found))


def _without_the_manifest(run, places, sound):
    checkpoint.damage_of = lambda path: ""
    target = _target()
    return Counter(_outcome(run, *place, target, sound) for place in places)


def _listed(found: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in found.most_common())
