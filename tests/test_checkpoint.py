"""Checkpoints: what was saved comes back, and what is damaged never does."""

import os
import random
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsuzuri import checkpoint
from tsuzuri.errors import RunError, UserError
from tsuzuri.sharding import one_device, shardings

BELONGS_TO = {"tokenizer": "t", "model": "m", "features": "f"}


def _state(value):
    params = {"blocks": {0: {"attention_norm": {"scale": jnp.full(7, value)}}}}
    return {"step": jnp.asarray(3), "params": params}


def _target(state):
    shapes = jax.eval_shape(lambda: state)
    return checkpoint.shapes(shapes, shardings(one_device(), shapes))


@pytest.fixture
def folder(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, _state(float(step)), BELONGS_TO, keep=5)
    return tmp_path


def test_the_newest_comes_back_whole_or_in_part(folder):
    target = _target(_state(0.0))
    state, step = checkpoint.restore(folder, target, BELONGS_TO, pytest.fail)
    assert step == 30
    assert jax.tree.all(jax.tree.map(np.array_equal, state, _state(30.0)))
    part, _ = checkpoint.restore(folder, {"params": target["params"]}, {"model": "m"}, pytest.fail)
    assert part["params"]["blocks"][0]["attention_norm"]["scale"][0] == 30
    assert checkpoint.restore(folder / "none", target, BELONGS_TO, pytest.fail) is None


def test_only_the_newest_are_kept(folder):
    checkpoint.save(folder, 40, _state(40.0), BELONGS_TO, keep=2)
    assert checkpoint.steps(folder) == [30, 40]


def test_another_tokenizer_is_refused(folder):
    with pytest.raises(UserError, match="another tokenizer"):
        checkpoint.restore(
            folder, _target(_state(0.0)), BELONGS_TO | {"tokenizer": "x"}, pytest.fail
        )


def test_no_flipped_bit_is_ever_loaded(folder):
    """Every file of the newest checkpoint, many random bits: each time the one before is used."""
    chance = random.Random(0)
    target = _target(_state(0.0))
    originals = {f: f.read_bytes() for f in (folder / "30").rglob("*") if f.is_file()}
    for file, original in originals.items():
        for _ in range(4 if original else 0):
            flipped = bytearray(original)
            bit = chance.randrange(8 * len(original))
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            said = []
            _, step = checkpoint.restore(folder, target, BELONGS_TO, said.append)
            assert step == 20 and "damaged" in said[0], (file, bit)
        file.write_bytes(original)
    assert checkpoint.restore(folder, target, BELONGS_TO, pytest.fail)[1] == 30


@pytest.mark.parametrize("damage", ["truncate", "remove", "add", "no manifest"])
def test_a_damaged_one_is_set_aside_never_deleted(folder, damage):
    files = [f for f in (folder / "30" / "state").rglob("*") if f.is_file()]
    file = max(files, key=lambda f: f.stat().st_size)
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "remove":
        file.unlink()
    elif damage == "add":
        (folder / "30" / "state" / "stray").write_text("x")
    else:
        (folder / "30" / "manifest.json").unlink()
    said = []
    _, step = checkpoint.restore(folder, _target(_state(0.0)), BELONGS_TO, said.append, True)
    assert step == 20 and len(said) == 1
    assert checkpoint.steps(folder) == [10, 20] and (folder / "30.damaged").is_dir()


def test_what_a_file_manager_leaves_is_no_damage(folder):
    for place in (folder / "30", folder / "30" / "state"):
        (place / ".DS_Store").write_text("x")
    assert checkpoint.restore(folder, _target(_state(0.0)), BELONGS_TO, pytest.fail)[1] == 30


def test_none_sound_is_said_not_begun_anew(folder):
    for step in (10, 20, 30):
        shutil.rmtree(folder / str(step) / "state")
    with pytest.raises(RunError, match="no sound checkpoint"):
        checkpoint.restore(folder, _target(_state(0.0)), BELONGS_TO, lambda m: None)


def test_a_full_disk_is_one_line_and_the_older_ones_are_whole(tmp_path, capfd):
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    try:
        noise = jnp.asarray(np.random.default_rng(0).normal(size=(1000, 300)), jnp.float32)
        state = {"params": {"token_embed": {"embedding": noise}}}  # 1.2 MB that do not compress
        with pytest.raises(RunError, match="No space left on device; nothing that was there"):
            for step in range(1, 9):
                checkpoint.save(tmp_path, step, state, BELONGS_TO, keep=9)
        saved = checkpoint.steps(tmp_path)
        assert saved == list(range(1, len(saved) + 1)) and saved
        _, step = checkpoint.restore(tmp_path, _target(state), BELONGS_TO, pytest.fail)
        assert step == saved[-1]
        assert len(list(tmp_path.iterdir())) == len(saved)  # and nothing half-written beside them
        assert "Traceback" not in capfd.readouterr().err
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_model_fingerprint_is_of_every_parameter():
    one = checkpoint.parameters_sha256({"a": np.zeros(2), "b": np.zeros(2)})
    assert one == checkpoint.parameters_sha256({"b": np.zeros(2), "a": np.zeros(2)})
    assert one != checkpoint.parameters_sha256({"a": np.zeros(2), "b": np.array([0, 1e-30])})
    assert one != checkpoint.parameters_sha256({"a": np.zeros(2), "c": np.zeros(2)})
