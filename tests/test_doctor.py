"""The doctor: faults that are made here on purpose are found, and nothing is changed by looking."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from tsuzuri import doctor
from tsuzuri.cli import main
from tsuzuri.doctor import Finding, examine
from tsuzuri.presets import preset
from tsuzuri.step import make_training
from tsuzuri.train import train


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(doctor, "_training", lambda: iter(()))


def _found(run: Path | None, cache: Path, what: str) -> Finding:
    return next(finding for finding in examine(run, cache) if finding.what == what)


def test_right_and_wrong_numbers_are_told_apart(monkeypatch):
    made = []

    def compiled_once(*arguments):
        made[:] = made or make_training(*arguments)
        return made

    monkeypatch.setattr(doctor, "make_training", compiled_once)
    (right,) = doctor._training()
    assert right.state == "ok" and "5.5364, 4.2149" in right.found

    graphdef, init, train_steps = made

    def scaled(key):
        state = init(key)
        return state._replace(params=jax.tree.map(lambda leaf: leaf * 1.02, state.params))

    def other_random_numbers(key):
        return init(jax.random.key(1))

    def off_by_one(state, batches):
        shifted = jnp.roll(batches.targets_BL, 1, axis=-1)
        return train_steps(state, batches._replace(targets_BL=shifted))

    def not_a_number(state, batches):
        state, metrics = train_steps(state, batches)
        return state, metrics | {"loss": metrics["loss"].at[1].set(jnp.nan)}

    def stale_update(state, batches):
        """The second step sees the parameters of the first."""
        state, metrics = train_steps(state, batches)
        return state, {name: values.at[1].set(values[0]) for name, values in metrics.items()}

    for fault in (scaled, other_random_numbers):
        made[:] = graphdef, fault, train_steps
        (wrong,) = doctor._training()
        assert wrong.state == "wrong" and "COMPUTES WRONGLY" in wrong.found, fault
    for fault in (off_by_one, not_a_number, stale_update):
        made[:] = graphdef, init, fault
        (wrong,) = doctor._training()
        assert wrong.state == "wrong" and "COMPUTES WRONGLY" in wrong.found, fault


def test_this_machine_is_well(no_training, tmp_path, capsys):
    assert all(finding.state != "wrong" for finding in examine(None, tmp_path / "a" / "cache"))
    assert not (tmp_path / "a").exists()
    assert main(["doctor"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_a_run_that_is_not_there(tmp_path, capsys):
    (tmp_path / "file").write_text("in its place")
    for run in (tmp_path / "new", tmp_path / "file", tmp_path):
        assert main(["doctor", "--run", str(run)]) == 2
        out = capsys.readouterr()
        assert not out.out
        assert out.err == f"tsuzuri: {run} is not a run folder: it holds no config.json\n"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in its place")
    for folder in (tmp_path / "file" / "run", Path("/proc/run")):
        (needed,) = doctor._folder("run folder", folder, needed=True)
        assert needed.state == "wrong" and "cannot be written" in needed.found
        (cache,) = doctor._folder("cache", folder, needed=False)
        assert cache.state == "warning" and "set XDG_CACHE_HOME" in cache.found


def test_a_platform_that_is_not_there(tmp_path):
    """In a process of its own: JAX keeps the devices that it has found."""
    platform = "cuda" if jax.default_backend() == "cpu" else "nonsense"
    other, done = (
        subprocess.run(
            [sys.executable, "-m", "tsuzuri.cli", *arguments],
            cwd=tmp_path,
            env=os.environ | {"JAX_PLATFORMS": platform},
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        for arguments in (["generate", "run"], ["doctor"])
    )
    assert (other.returncode, done.returncode) == (2, 1)
    told = f"JAX has no {platform} here: unset JAX_PLATFORMS, or set it to cpu"
    assert [line for line in done.stdout.splitlines() if line.startswith("wrong")] == [
        f"wrong    {what:12} {told}" for what in ("devices", "training")
    ]
    assert other.stderr.splitlines()[-1] == f"tsuzuri: {told}"


@pytest.mark.parametrize(
    ("free", "run_folder", "cache"),
    [(4 << 30, "ok", "ok"), (1 << 30, "warning", "warning"), (1 << 20, "wrong", "warning")],
)
def test_a_disk_that_is_nearly_full(no_training, tmp_path, monkeypatch, free, run_folder, cache):
    usage = type(shutil.disk_usage(tmp_path))(100 << 30, (100 << 30) - free, free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert _found(None, tmp_path, "run folder").state == run_folder
    assert _found(None, tmp_path, "cache").state == cache


def test_little_memory(no_training, tmp_path, monkeypatch):
    class Memory(NamedTuple):
        available: int = 1 << 30
        total: int = 8 << 30

    monkeypatch.setattr(doctor.psutil, "virtual_memory", Memory)
    assert _found(None, tmp_path, "memory").state == "warning"


def test_a_gpu_that_jax_does_not_use(no_training, tmp_path, monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("JAX uses another device than the CPU")
    for hides in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(hides, raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    found = _found(None, tmp_path, "devices")
    assert found.state == "warning"
    assert f"pip install 'jax[cuda13]=={jax.__version__}'" in found.found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "pip install" in _found(None, tmp_path, "devices").found  # it is JAX that lacks CUDA
    monkeypatch.setattr(doctor, "_version", {"jax-cuda13-plugin": "0.10"}.get)
    assert "unset CUDA_VISIBLE_DEVICES, which is '7'" in _found(None, tmp_path, "devices").found
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "unset JAX_PLATFORMS" in _found(None, tmp_path, "devices").found
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "_nvidia", lambda: False)
    assert _found(None, tmp_path, "devices").state == "ok"


def test_packages_out_of_bounds(no_training, tmp_path, monkeypatch):
    def other(name: str) -> str:
        return {"flax": "0.1.0", "tqdm": ""}.get(name, real(name))

    real = doctor._version
    monkeypatch.setattr(doctor, "_version", other)
    found = _found(None, tmp_path, "packages")
    assert found.state == "wrong"
    assert "flax 0.1.0, needs >=0.12.8" in found.found and "tqdm is missing" in found.found
    assert ": pip install '" in found.found and "'flax>=0.12.8" in found.found


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "text.txt"
    text.write_text("".join(f"{n}番目の綴り。\n" for n in range(400)), encoding="utf-8")
    changes = {"tokenizer.kind": "bytes", "model.num_layers": 1, "model.embed_dim": 16}
    cfg = preset("llama", steps=2, save_every=1, batch_size=2, sequence_length=32, **changes)
    train(cfg, folder / "run", [str(text)], progress=False)
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def _files(folder: Path) -> Iterator[tuple[Path, str, int]]:
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        yield path, hashlib.sha256(content).hexdigest(), path.stat().st_mtime_ns


def test_a_sound_run_is_looked_at_and_left_as_it_is(no_training, run, tmp_path):
    before = list(_files(run))
    found = {finding.what: finding for finding in examine(run, tmp_path)}
    assert all(finding.state != "wrong" for finding in found.values())
    assert found["checkpoint"].found == "step 2 is sound; 2 in all"
    assert list(_files(run)) == before


def test_a_damaged_checkpoint(no_training, run, tmp_path):
    largest = max((run / "checkpoints" / "2").rglob("*"), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    found = [finding for finding in examine(run, tmp_path) if finding.what == "checkpoint"]
    assert [finding.state for finding in found] == ["wrong", "ok"]
    assert "2 is damaged (the SHA-256 of" in found[0].found and "step 1 is sound" in found[1].found
    shutil.rmtree(run / "checkpoints")
    assert _found(run, tmp_path, "checkpoints").state == "warning"


def test_damaged_features_config_and_tokenizer(no_training, run, tmp_path):
    part = next((run / "features").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1])
    assert part.name in _found(run, tmp_path, "features").found
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(
        config.replace('"model.embed_dim": 16', '"model.embed_dim": 32')
    )
    assert "with another model" in _found(run, tmp_path, "checkpoint").found
    (run / "config.json").write_text(config[:-5])
    assert _found(run, tmp_path, "run").state == "wrong"
    (run / "config.json").write_text(config)
    shutil.rmtree(run / "tokenizer")
    assert _found(run, tmp_path, "run").state == "wrong"
    assert "bring it back from a copy" in _found(run, tmp_path, "run").found
