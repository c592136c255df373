"""The loop: it learns, it resumes to the bit, it survives kills, damage and bad batches."""

import contextlib
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tsuzuri
from tsuzuri import checkpoint, run_folder, tokenizer
from tsuzuri.config import Config, TokenizerConfig, replace
from tsuzuri.corpus.document import Document
from tsuzuri.corpus.prepare import prepare
from tsuzuri.data import Batch, Blocks, in_order
from tsuzuri.errors import RunError, UserError
from tsuzuri.files import locked
from tsuzuri.meter import Profiler
from tsuzuri.presets import preset
from tsuzuri.sharding import one_device
from tsuzuri.step import make_training
from tsuzuri.track import read_jsonl
from tsuzuri.train import Stopped, StopSignals, train

TINY = {
    "tokenizer.kind": "bytes",
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.embed_dim": 16,
    "model.dropout": 0.1,  # so that resuming has to find the dropout key too
    "sequence_length": 32,
    "batch_size": 4,
    "steps": 24,
    "steps_per_call": 2,
    "log_every": 2,
    "eval_every": 8,
    "save_every": 8,
    "sample_every": 0,
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n}番目の綴りは{n * n}。\n" for n in range(500)), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """An undisturbed run and its summary."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    return run, train(preset("llama", **TINY), run, [text], progress=False)


def _copy(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def test_it_learns_and_writes_all_of_the_run_folder(finished):
    run, summary = finished
    lines = read_jsonl(run / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert [line["step"] for line in lines if "loss" in line] == list(range(2, 25, 2))
    assert losses[0] == pytest.approx(np.log(258), abs=0.1) and losses[-1] < losses[0] - 0.5
    assert lines[-1]["held_out_loss"] == summary["loss"]
    for name in ("config.json", "features.json", "tokenizer/config.json", "plots/loss.png"):
        assert (run / name).exists(), name
    assert list((run / "tensorboard").iterdir())
    assert checkpoint.steps(run / "checkpoints") == [8, 16, 24]


def test_running_it_again_changes_nothing(finished, tmp_path, text):
    run = _copy(finished, tmp_path)
    lines = read_jsonl(run / "metrics.jsonl")
    assert train(preset("llama", **TINY), run, [text], progress=False) == finished[1]
    assert read_jsonl(run / "metrics.jsonl") == lines


def test_a_profile_is_written_and_changes_nothing(finished, tmp_path, text):
    summary = train(preset("llama", **TINY), tmp_path, [text], progress=False, profile=True)
    assert summary["parameters_sha256"] == finished[1]["parameters_sha256"]
    names = {path.name for path in (tmp_path / "profile").rglob("*") if path.is_file()}
    assert "perfetto_trace.json.gz" in names
    assert any(name.endswith(".xplane.pb") for name in names)  # what TensorBoard reads


def test_accumulated_parts_are_the_batch(finished, tmp_path, text):
    """The same to rounding (dropout off); and a run may change how it is computed."""
    changes = TINY | {"model.dropout": 0.0}
    plain = train(preset("llama", **changes), tmp_path / "a", [text], progress=False)
    ways = {"accumulate": 2, "remat": "full", "scan_layers": True, "logits_mb": 1}
    ways = {f"compute.{key}": value for key, value in ways.items()}
    run = tmp_path / "b"
    other = train(preset("llama", **changes | ways), run, [text], progress=False)
    assert other["loss"] == pytest.approx(plain["loss"], abs=1e-4)
    shutil.rmtree(run / "checkpoints" / "24")
    mixed = train(preset("llama", **changes), run, [text], progress=False)
    assert mixed["loss"] == pytest.approx(plain["loss"], abs=1e-4)


def test_resumed_equals_undisturbed_to_the_bit(finished, tmp_path):
    run = _copy(finished, tmp_path)
    shutil.rmtree(run / "checkpoints" / "24")
    summary = train(preset("llama", **TINY), run, progress=False)  # without naming the text again
    assert summary["parameters_sha256"] == finished[1]["parameters_sha256"]
    lines, before = read_jsonl(run / "metrics.jsonl"), read_jsonl(finished[0] / "metrics.jsonl")
    assert [m["step"] for m in lines] == [m["step"] for m in before]
    assert [m.get("loss") for m in lines] == [m.get("loss") for m in before]


def test_a_run_begins_with_anothers_parameters(finished, tmp_path, text):
    """Continued pretraining, and a run of parameters that were trained elsewhere."""
    lm = tsuzuri.load(finished[0])
    run_folder.create(tmp_path / "imported", lm.config, lm.tokenizer, lm.params)
    imported = tsuzuri.load(tmp_path / "imported")
    assert imported.step == 0 and (imported.logits([5, 6]) == lm.logits([5, 6])).all()
    assert imported.evaluate([text], lm.config.text, tmp_path / "f")["loss"] > 0
    other = {"init_from": str(tmp_path / "imported"), "model.dropout": 0.0, "learning_rate": 1e-9}
    cfg = preset("llama", **TINY | other | {"steps": 2, "seed": 5})
    train(cfg, tmp_path / "on", [text], progress=False)
    for a, b in zip(
        *(jax.tree.leaves(m.params) for m in (lm, tsuzuri.load(tmp_path / "on"))), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
    with pytest.raises(UserError, match=r"another model \(model.embed_dim 16, not 32, "):
        train(replace(cfg, {"model.embed_dim": 32}), tmp_path / "c", [text], progress=False)
    with pytest.raises(UserError, match="--run NEW --init-from"):
        train(lm.config, tmp_path / "imported", [text], progress=False)
    with pytest.raises(UserError, match="is there already"):
        run_folder.create(tmp_path / "imported", lm.config, lm.tokenizer, lm.params)


@pytest.mark.parametrize(
    "packing", [{"features.packing": "packed"}, {"features.packing": "document"}]
)
def test_other_packings_train_and_resume_as_well(tmp_path, packing):
    text = tmp_path / "lines.txt"
    text.write_text("|".join(f"{n}番目の綴りは{n * n}。" for n in range(300)), encoding="utf-8")
    cfg = preset("llama", **TINY | packing | {"text.document_separator": "|", "steps": 16})
    summary = train(cfg, tmp_path / "a", [str(text)], progress=False)
    assert summary["loss"] < np.log(258) - 0.5
    read = read_jsonl(tmp_path / "a" / "metrics.jsonl")
    assert all(np.isfinite(line["loss"]) for line in read if "loss" in line)
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "16")
    again = train(cfg, tmp_path / "a", progress=False)
    assert again["parameters_sha256"] == summary["parameters_sha256"]
    lm = tsuzuri.load(tmp_path / "a")
    mine = lm.evaluate([str(text)], cfg.text, tmp_path / "f")
    assert mine["tokens"] == mine["bytes"] + 300  # each byte, and each document's end, once


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(finished, tmp_path):
    run = _copy(finished, tmp_path)
    largest = max((run / "checkpoints" / "24" / "state").rglob("*"), key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    summary = train(preset("llama", **TINY), run, progress=False)
    assert summary["parameters_sha256"] == finished[1]["parameters_sha256"]
    assert (run / "checkpoints" / "24.damaged").is_dir()


def test_kills_at_any_moment_change_nothing(finished, tmp_path, text):
    """SIGKILL three times and SIGTERM once, at random progress, in a real process."""
    flags = [f for k, v in TINY.items() for f in (f"--{k.replace('_', '-')}", str(v))]
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tsuzuri.cli", "train", text, "--run", str(run), *flags]
    chance = random.Random(1)
    codes = []
    for kind in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        begun = len(read_jsonl(run / "metrics.jsonl"))
        wait_for = chance.choice([0, 1, 2])  # lines more: 0 is before training has begun
        while process.poll() is None and len(read_jsonl(run / "metrics.jsonl")) < begun + wait_for:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.2)
        process.send_signal(kind)
        process.communicate()
        codes.append(process.returncode)
    assert signal.SIGKILL * -1 in codes
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert finished[1]["parameters_sha256"] in done.stdout
    assert not list(run.rglob(".*.partial"))


def test_the_first_signal_asks_the_second_stops():
    with StopSignals() as stop:
        stop.patient = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_who_sent_sigterm_before_there_was_anything_to_save_starts_it_again():
    for number, leaves_as in ((signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)):
        with pytest.raises(leaves_as), StopSignals():
            os.kill(os.getpid(), number)
            time.sleep(1)
    with pytest.raises(Stopped), StopSignals() as stop:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        finally:  # a library's clean-up that fails
            del stop.lock


def test_a_signal_is_not_lost_while_garbage_is_collected():
    def _xla_gc_callback(phase, _):
        if phase == "stop":
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped), StopSignals():
        gc.callbacks.append(_xla_gc_callback)
        gc.collect()
        gc.callbacks.remove(_xla_gc_callback)
        time.sleep(30)


def test_an_interrupt_that_a_library_swallows_still_stops_the_run(tmp_path, text, monkeypatch):
    """Some catch whatever comes while they are imported, or while their Rust calls Python."""

    def swallows(*arguments):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return decided(*arguments)

    decided = Blocks.open
    monkeypatch.setattr(Blocks, "open", swallows)
    with pytest.raises(Stopped, match="saved at step 0"):
        train(preset("llama", **TINY), tmp_path, [text], progress=False)


def test_a_signal_while_the_first_parameters_are_made_is_only_noted(tmp_path, text, monkeypatch):
    """There JAX compiles; an interrupt would leave XLA's threads behind, for a crash at the end."""

    def making(*arguments):
        def interrupted(key):
            if not isinstance(key, jax.core.Tracer):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
            return init(key)

        graphdef, init, steps = make_training(*arguments)
        return graphdef, interrupted, steps

    monkeypatch.setattr("tsuzuri.train.make_training", making)
    with pytest.raises(Stopped, match="saved at step 0"):
        train(preset("llama", **TINY), tmp_path, [text], progress=False)


def test_a_stop_saves_and_says_so(tmp_path, text, monkeypatch):
    monkeypatch.setattr("tsuzuri.train.its_time", _then_signal(after=3))
    with pytest.raises(Stopped, match="saved at step"):
        train(preset("llama", **TINY), tmp_path, [text], progress=False)
    assert checkpoint.steps(tmp_path / "checkpoints")


def _then_signal(after):
    """its_time, which sends this process a SIGINT on its way."""
    from tsuzuri.train import its_time

    calls = []

    def wrapped(*arguments):
        calls.append(arguments)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGINT)
        return its_time(*arguments)

    return wrapped


def test_one_bad_batch_skips_exactly_that_step():
    cfg = preset("llama", **TINY | {"model.dropout": 0.0, "optim.warmup_steps": 0})
    _, init, steps = make_training(cfg, cfg.resolved_model(258), one_device())
    tokens, targets = np.random.default_rng(0).integers(0, 258, (2, 3, 1, 4, 32))
    weights = np.ones((3, 1, 4, 32), np.float32)
    bad = weights.copy()
    bad[1, 0, 0, 0] = np.nan
    state, metrics = steps(init(jax.random.key(0)), Batch(tokens, targets, bad))
    assert metrics["sound"].tolist() == [True, False, True]
    assert int(state.step) == 3
    # The same, but for the step count, as training on the first and the third batch alone.
    first, third = (Batch(tokens[i:j], targets[i:j], weights[i:j]) for i, j in ((0, 1), (2, 3)))
    after_one, _ = steps(init(jax.random.key(0)), first)
    expected, _ = steps(after_one, third)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state))


def test_a_loss_that_stays_not_finite_ends_the_run(tmp_path, text):
    cfg = preset("llama", **TINY | {"learning_rate": 1e30, "optim.clip_norm": 0})
    with pytest.raises(RunError, match=r"not finite 5 steps in a row.*--learning-rate"):
        train(cfg, tmp_path, [text], progress=False)
    skipped = [line for line in read_jsonl(tmp_path / "metrics.jsonl") if line.get("skipped")]
    assert len(skipped) == 5 and len(skipped[0]["blocks"]) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.embed_dim": 32}, r"another config \(model.embed_dim 16 -> 32\)"),
        ({"learning_rate": 1e-3}, r"learning_rate 0.01 -> 0.001"),
        ({"seed": 1}, r"seed 0 -> 1"),
    ],
)
def test_another_config_is_refused_and_the_run_untouched(finished, changes, message):
    before = (finished[0] / "config.json").read_bytes()
    with pytest.raises(UserError, match=message):
        train(preset("llama", **TINY | changes), finished[0], progress=False)
    assert (finished[0] / "config.json").read_bytes() == before


def test_a_mesh_that_is_not_there_is_refused_before_anything_is_made(finished, tmp_path, text):
    run, wrong = _copy(finished, tmp_path), TINY | {"mesh.fsdp": 3, "steps": 32}
    with pytest.raises(UserError, match="makes 3 devices, but there are 1"):
        train(preset("llama", **wrong), run, [text], progress=False)
    assert run_folder.read_config(run) == run_folder.read_config(finished[0])
    with pytest.raises(UserError, match="makes 3 devices"):
        train(preset("llama", **wrong), tmp_path / "new", [text], progress=False)
    assert not (tmp_path / "new" / "tokenizer").exists()


def test_features_that_are_gone_are_asked_for_and_made_again(finished, tmp_path, text):
    run = _copy(finished, tmp_path)
    shutil.rmtree(run / "features")
    shutil.rmtree(run / "checkpoints" / "24")
    with pytest.raises(UserError, match=r"run/features is gone: give the text"):
        train(preset("llama", **TINY), run, progress=False)
    again = train(preset("llama", **TINY), run, [text], progress=False)
    assert again["parameters_sha256"] == finished[1]["parameters_sha256"]


def test_before_a_run_has_begun_its_tokenizer_and_its_source_may_change(finished, tmp_path, text):
    def quietly(line):
        pass

    run, mine = tmp_path / "run", tmp_path / "mine"
    cfg = replace(preset("llama", **TINY), {"steps": 2, "tokenizer.path": str(mine)})
    for kind in ("bpe", "bytes"):  # another one at the same path
        shutil.rmtree(mine, ignore_errors=True)
        options = TokenizerConfig(kind=kind, vocab_size=300)
        made = tokenizer.train([Path(text).read_text("utf-8")], options, quietly, False)
        made.save(mine)
        run_folder.prepare([text], cfg, run, quietly, False)
        assert run_folder.features_of(run)[1]["tokenizer"]["fingerprint"] == made.fingerprint
        assert tokenizer.load(run / "tokenizer").fingerprint == made.fingerprint
    shutil.rmtree(run)
    other = replace(cfg, {"tokenizer.path": "", "tokenizer.kind": "bpe"})
    run_folder.prepare([text], other, run, quietly, False)
    train(cfg, run, [str(finished[0] / "features")], progress=False)  # features instead of a text
    train(replace(cfg, {"steps": 4}), run, progress=False)


def test_a_profile_of_too_few_calls_is_not_silently_none(tmp_path):
    said = []
    profiler = Profiler(tmp_path, said.append)
    profiler.call()
    profiler.close()
    assert len(said) == 1 and "no profile: the device was called 1 times" in said[0]


def test_samples_take_a_small_vocabulary_as_it_is(tmp_path, text):
    few = TINY | {"steps": 8, "sample_every": 8, "sample.max_new_tokens": 2, "sample.top_k": 1000}
    train(preset("llama", **few), tmp_path, [text], progress=False)
    assert len(read_jsonl(tmp_path / "samples.jsonl")) == 1


def test_a_held_out_loss_of_any_size_is_told(tmp_path, text):
    """A rate that is far too high gives logits, and so a perplexity, beyond every float."""
    wild = TINY | {"learning_rate": 100, "steps": 16, "optim.clip_norm": 0}
    summary = train(preset("nanolm", **wild), tmp_path, [text], progress=False)
    assert summary["loss"] > 1000 and np.isfinite(summary["perplexity"])


def test_a_run_may_be_made_longer(finished, tmp_path):
    run = _copy(finished, tmp_path)
    longer = train(preset("llama", **TINY | {"steps": 32}), run, progress=False)
    assert longer["step"] == 32
    assert longer["parameters_sha256"] != finished[1]["parameters_sha256"]


def test_another_text_is_refused(finished, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("ほかの話。" * 500, encoding="utf-8")
    with pytest.raises(UserError, match="another text"):
        train(preset("llama", **TINY), finished[0], [str(other)], progress=False)


def test_a_run_in_use_is_refused(finished):
    with locked(finished[0]), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        train(preset("llama", **TINY), finished[0], progress=False)


def test_a_run_that_lies_in_the_text_is_refused(tmp_path):
    """It would be trained on its own config.json."""
    (tmp_path / "text.txt").write_text("綴り。" * 2000, encoding="utf-8")
    with pytest.raises(UserError, match=r"is read as text, and .* lies in it"):
        train(preset("llama", **TINY), tmp_path / "runs" / "it", [str(tmp_path)], progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]  # nothing is left to be read
    prepared = tmp_path / "corpus"  # which names its own files
    prepare([Document("綴り。" * 2000)], prepared, {}, lambda line: None)
    train(preset("llama", **TINY | {"steps": 2}), prepared / "run", [str(prepared)], progress=False)


def test_a_text_whose_name_is_not_utf8(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\x83e.txt")  # of a zip from Windows
    Path(name).write_text("綴り。" * 2000, encoding="utf-8")
    cfg = preset("llama", **TINY | {"steps": 2})
    train(cfg, tmp_path / "run", [name], progress=False)
    assert run_folder.features_of(tmp_path / "run")[1]["source"]["sources"] == [name]


@pytest.mark.parametrize("stored", ["{}", "[]", '{"fingerprint": 1, "format": 1}'])
def test_a_features_json_that_was_changed_by_hand(finished, tmp_path, stored):
    run = _copy(finished, tmp_path)
    (run / "features.json").write_text(stored)
    for reads in (run_folder.features_of, run_folder.draw_loss):
        with pytest.raises(UserError, match="make the features again"):
            reads(run)
    with pytest.raises(UserError, match="make the features again"):
        tsuzuri.load(run).facts()
    with pytest.raises(UserError, match="make the features again"):
        train(preset("llama", **TINY), run, [], progress=False)


def test_no_text_at_all(tmp_path):
    with pytest.raises(UserError, match="give a text to train on"):
        train(preset("llama", **TINY), tmp_path / "run", progress=False)


def test_held_out_loss_is_the_true_mean(finished, text):
    """Against -log p of each held-out token by lm.logits, in plain numpy."""
    run, summary = finished
    lm = tsuzuri.load(run)
    blocks = Blocks.open(run / "features", "held_out", lm.tokenizer, pytest.fail)
    losses = []
    for block in blocks.array.astype(int):
        logits = lm.logits(block[:-1]).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses += [-log_p[i, t] for i, t in enumerate(block[1:]) if t != blocks.padding]
    features = json.loads((run / "features.json").read_text())["splits"]["held_out"]
    assert summary["tokens"] == features["tokens"] == len(losses)
    assert summary["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    bits = sum(losses) / np.log(2)
    assert summary["bits_per_byte"] == pytest.approx(bits / features["bytes"], rel=1e-5)
    assert summary["entropy_floor"] is None
    assert summary["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64, 10**6])  # the last is what a cluster trained on
def test_held_out_loss_does_not_depend_on_the_batch(finished, batch_size, tmp_path):
    run, summary = finished
    lm = tsuzuri.load(run)
    lm.config = replace(lm.config, {"batch_size": batch_size})
    figures = lm.evaluate([], Config().text, tmp_path)
    assert figures["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    assert figures["parameters_sha256"] == summary["parameters_sha256"]


def test_in_order_covers_each_block_once(finished):
    run, _ = finished
    lm = tsuzuri.load(run)
    blocks = Blocks.open(run / "features", "held_out", lm.tokenizer, pytest.fail)
    rows = sum(int((b.weights_BL.sum(1) > 0).sum()) for b in in_order(blocks, 3))
    assert rows == len(blocks)
