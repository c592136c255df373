"""Batches whose loss is not a number: each costs its own step, several in a row end the run."""

import pytest
from faulty import changed
from trainer import TINY

from tsuzuri.data import Batches, Blocks
from tsuzuri.language_model import LanguageModel
from tsuzuri.presets import preset
from tsuzuri.track import read_jsonl
from tsuzuri.train import train

SHORT = TINY | {"steps": 40}


def _run(run, text, bad, monkeypatch):
    """Trains with the weights of the `bad` batches NaN; what was skipped, and all of the lines."""
    with monkeypatch.context() as patch:
        if bad:
            patch.setattr(Batches, "batch", changed(Batches.batch, "nan", bad))
        summary = train(preset("llama", **SHORT), run, [text], progress=False)
    lines = read_jsonl(run / "metrics.jsonl")
    return summary, [line for line in lines if line.get("skipped")], lines


def _losses(lines):
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def clean(text, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return _run(tmp_path_factory.mktemp("clean") / "run", text, "", patch)


@pytest.mark.parametrize("bad", [[21], [21, 30]])  # two: the control
def test_a_nan_skips_exactly_its_own_step(bad, clean, text, tmp_path, monkeypatch, tell):
    listed = ",".join(map(str, bad))
    summary, skipped, lines = _run(tmp_path / "run", text, listed, monkeypatch)
    assert [line["step"] for line in skipped] == [step + 1 for step in bad]  # steps done
    lm = LanguageModel.load(tmp_path / "run")
    blocks = Blocks.open(tmp_path / "run" / "features", "train", lm.tokenizer, pytest.fail)
    batches = Batches(blocks, SHORT["batch_size"], 0)
    assert [line["blocks"] for line in skipped] == [batches.indices(s).tolist() for s in bad]
    # Until then it is the clean run, line by line; afterwards another one, that learns as well.
    losses, expected = (
        {m["step"]: m["loss"] for m in run if "loss" in m} for run in (lines, clean[2])
    )
    assert losses.keys() == expected.keys()
    same = [step for step in losses if losses[step] == expected[step]]
    assert same == list(range(2, 21, 2))
    assert summary["parameters_sha256"] != clean[0]["parameters_sha256"]
    assert summary["loss"] == pytest.approx(clean[0]["loss"], rel=0.1)
    steps = f"steps {[line['step'] for line in skipped]} skipped, with their blocks"
    tell(f"{len(bad)} NaN in batch {listed}", steps)


def test_a_clean_run_skips_none(clean):
    assert not clean[1]


def test_five_in_a_row_end_the_run(start, text, tmp_path, tell):
    trainer = start(tmp_path / "run", SHORT, text, faults=["nan:20,21,22,23,24"])
    assert trainer.end() == 1
    assert "not finite 5 steps in a row" in trainer.complaints[-1]
    skipped = [m["step"] for m in read_jsonl(trainer.run / "metrics.jsonl") if m.get("skipped")]
    assert skipped == [21, 22, 23, 24, 25]
    tell("5 NaN in a row", f"exit code 1 after steps {skipped}")
