"""Scaling studies: corpora that compare, cells that go on, laws that are found again."""

import dataclasses
import json
import math
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.optimize import curve_fit

from tsuzuri import corpus, files
from tsuzuri.apps.scaling import figures, grid, study
from tsuzuri.apps.scaling import verbs as scaling
from tsuzuri.apps.scaling.fit import LAWS, Fit, doubled, fit, table
from tsuzuri.apps.scaling.grid import ALL, Cell, Corpus, Grid, Lengths, Size
from tsuzuri.cli import main
from tsuzuri.config import Config, FeaturesConfig, replace
from tsuzuri.data import Blocks
from tsuzuri.errors import UserError
from tsuzuri.features import read_features, split_documents
from tsuzuri.features.splits import Part
from tsuzuri.tokenizer import load
from tsuzuri.track import read_jsonl

TINY = ["--steps", "20", "--batch-size", "4", "--sequence-length", "16", "--eval-every", "10"]
TINY += ["--tokenizer.kind", "bytes", "--features.held-out", "0.1", "--held-out-tokens", "300"]
BOOKS = 20  # of which two are held out


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    for number in range(BOOKS):
        words = [draw.choice(["雨", "が降る。", "wind ", "falls.\n"]) for _ in range(80)]
        (folder / f"{number:02}.txt").write_text(f"book {number}\n" + "".join(words))
    return folder


@pytest.fixture(scope="module")
def done(text, tmp_path_factory):
    """A study of a size and two corpora."""
    out = tmp_path_factory.mktemp("study") / "study"
    options = ["--sizes", "1x8", "--books", "2,all", *TINY]
    assert main(["scaling", str(text), "--out", str(out), *options]) == 0
    return out


def line(arguments, capsys) -> tuple[int, str]:
    """The exit code, and the last line that is told."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    return code, capsys.readouterr().err.strip().splitlines()[-1]


# The grid.


def test_what_names_a_grid():
    assert grid.parse_sizes("2x64, 4x128,2x64") == [(2, 64), (4, 128)]
    assert grid.parse_corpora("12,all", "books") == [Corpus("books", 12), ALL]
    assert str(Cell(Size(2, 64), Corpus("tokens", 1000), 0)) == "2x64-1000-tokens"
    assert str(Cell(Size(2, 64), ALL, 1)) == "2x64-all-seed1"
    for wrong in ("64", "2x", "0x64", "2x64x3", "twoxthree"):
        with pytest.raises(UserError, match="layers x width"):
            grid.parse_sizes(wrong)
    for wrong in ("", " , "):
        with pytest.raises(UserError, match="no cell"):
            grid.parse_corpora(wrong, "tokens")


@pytest.mark.parametrize(
    ("size", "heads"), [((2, 32), 1), ((2, 128), 4), ((1, 8), 1), ((3, 80), 2)]
)
def test_a_wider_model_has_more_heads(size, heads):
    cfg = grid.config_of_cell(Config(), Cell(Size(*size), ALL, 2))
    assert (cfg.model.num_layers, cfg.model.embed_dim) == size
    assert cfg.model.num_heads == heads and cfg.seed == 2


def test_a_size_that_can_be_no_model():
    with pytest.raises(UserError, match="size 2x33: rope needs an even"):
        grid.config_of_cell(Config(), Cell(Size(2, 33), ALL, 0))


def test_parameters_without_embeddings():
    """Against a sum by hand: attention 4 D^2, SwiGLU 3 D F, two norms; a final norm."""
    model = replace(Config(), {"model.num_layers": 2, "model.embed_dim": 64}).resolved_model(1000)
    total, n = grid.parameters(model)
    assert n == 2 * (4 * 64**2 + 3 * 64 * model.mlp_dim + 2 * 64) + 64
    assert total == n + 1000 * 64


@settings(max_examples=50, deadline=None)
@given(
    train=st.lists(st.integers(2, 50), min_size=1, max_size=12),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_corpora_are_exact_and_nested(train, seed, data):
    train = np.array(train, np.int64)
    for unit, most in (("tokens", int(train.sum())), ("books", len(train))):
        small = data.draw(st.integers(1, most))
        large = data.draw(st.integers(small, most))
        a, b = (grid.chosen(Corpus(unit, count), train, seed) for count in (small, large))
        assert (a <= b).all() and (b <= train).all()
        assert small == (a.sum() if unit == "tokens" else (a == train).sum())
        with pytest.raises(UserError, match=rf"--{unit} {most + 1:,}: the text has {most:,} "):
            grid.chosen(Corpus(unit, most + 1), train, seed)
    assert (grid.chosen(ALL, train, seed) == train).all()


def test_corpora_share_what_is_held_out_and_nothing_else(done):
    tok = load(done / "tokenizer")
    texts = {}
    for name in ("2-books", "all"):
        folder = done / "corpora" / name
        for split in ("train", "held_out"):
            blocks = Blocks.open(folder, split, tok, print)
            ids = np.concatenate([blocks.array[:1, 0], blocks.array[:, 1:].ravel()])
            texts[name, split] = [
                tok.decode(part.tolist())
                for part in np.split(ids, np.flatnonzero(ids == tok.end_of_text))
            ]
    assert texts["2-books", "held_out"] == texts["all", "held_out"]
    titles = {key: {t.split("\n")[0] for t in ts if t} for key, ts in texts.items()}
    assert titles["2-books", "train"] < titles["all", "train"]
    assert len(titles["2-books", "train"]) == 2 and len(titles["all", "train"]) == BOOKS - 2
    assert not titles["all", "train"] & titles["all", "held_out"]
    split = read_features(done / "corpora" / "all")["splits"]["held_out"]
    assert 300 <= split["tokens"] <= 304  # as asked, but for rounding in each of two books
    shown = "".join(texts["all", "held_out"]).encode(errors="ignore")
    assert abs(split["bytes"] - len(shown)) <= 6  # a character that was cut


def test_one_long_book_is_cut(tmp_path):
    (tmp_path / "book.txt").write_text("a long book, told in one breath. " * 40)
    out = tmp_path / "study"
    options = ["--sizes", "1x8", "--tokens", "400", *TINY]
    assert main(["scaling", str(tmp_path / "book.txt"), "--out", str(out), *options]) == 0
    splits = read_features(out / "corpora" / "400-tokens")["splits"]
    assert splits["train"]["tokens"] == 400 and splits["held_out"]["tokens"] > 100


def test_a_corpus_of_one_book_is_of_passages_from_all_of_it(tmp_path, capsys):
    lines = [f"{number:04} {'x' * 94}\n" for number in range(1000)]
    (tmp_path / "book.txt").write_text("".join(lines))
    out = tmp_path / "study"
    command = ["scaling", str(tmp_path / "book.txt"), "--out", str(out), "--sizes", "1x8", *TINY]
    assert main([*command, "--tokens", "9000,18000"]) == 0
    numbers = {}
    for name in ("9000-tokens", "18000-tokens"):
        blocks = Blocks.open(out / "corpora" / name, "train", load("bytes"), print)
        ids = np.concatenate([blocks.array[:1, 0], blocks.array[:, 1:].ravel()])
        shown = load("bytes").decode(ids.tolist())
        numbers[name] = {int(n) for n in re.findall(r"(\d{4}) x", shown)}
    small, large = numbers.values()
    assert small < large and max(large) < 900  # the last tenth is held out
    thirds = [{n // 300 for n in found} for found in (small, large)]
    assert thirds == [{0, 1, 2}, {0, 1, 2}]
    runs = [n for n in large if n - 1 not in large]
    assert len(runs) <= 18_000 / 2000 + 1  # passages, not lines
    assert main([*command, "--books", "1"]) == 2
    assert "a text of 1 documents is too small to be counted in books" in capsys.readouterr().err


@given(st.lists(st.text("あx\n", max_size=40), max_size=4))
def test_passages_are_the_text(texts):
    parts = [Part("train", t * 300, len((t * 300).encode()), True, None) for t in texts]
    held_out = Part("held_out", "あ" * 9000, 27_000, True, None)
    *found, last = grid.passages([*parts, held_out])
    assert last == held_out and all(p.ends and 0 < len(p.text) <= 4000 for p in found)
    assert "".join(p.text for p in found) == "".join(p.text for p in parts)
    assert sum(p.bytes for p in found) == sum(p.bytes for p in parts)


def test_long_documents_that_come_in_pieces(text):
    """The lengths and the cuts count a document as one, however it is read."""
    whole = corpus.Document("あいうえお" * 20)
    pieces = [corpus.Document(whole.text[:33], continues=True), corpus.Document(whole.text[33:])]
    tok = load("bytes")

    def lengths(documents):
        parts = split_documents(lambda: documents, FeaturesConfig(held_out=0.5), 0, print)
        return [found.tolist() for found in Lengths.of(parts, tok)]

    assert lengths([whole, whole]) == lengths([whole, *pieces]) == [[301], [301]]


# The study.


def test_a_study_is_run_folders_with_figures(done, capsys):
    results = json.loads((done / "results.json").read_text())
    assert len(results["cells"]) == 2 and not results["failed"]
    for cell in results["cells"]:
        run = done / "cells" / cell["cell"]
        lines = read_jsonl(run / "metrics.jsonl")
        held_out = [m["held_out_loss"] for m in lines if "held_out_loss" in m]
        assert len(held_out) == 2 and cell["best_loss"] == min(held_out)
        assert cell["tokens"] == 20 * 4 * 16 == cell["curve"][-1][0]
    assert {p.name for p in done.glob("*.png")} == {"loss.png", "gap.png"}
    assert main(["eval", str(done / "cells" / "1x8-all"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    cell = next(c for c in results["cells"] if c["cell"] == "1x8-all")
    assert shown["loss"] == pytest.approx(cell["held_out_loss"], rel=1e-5)
    assert shown["bits_per_byte"] == pytest.approx(cell["bits_per_byte"], rel=1e-5)


def test_a_study_goes_on_and_grows(done, text, capsys):
    kept = done / "cells" / "1x8-all" / "checkpoints"
    before = {p: p.stat().st_mtime_ns for p in kept.rglob("*")}
    files.remove(done / "cells" / "1x8-2-books")  # as if killed before it
    code, _ = line(["scaling", "--out", done], capsys)
    assert code == 0 and (done / "cells" / "1x8-2-books" / "metrics.jsonl").exists()
    assert main(["scaling", str(text), "--out", str(done), "--tokens", "500"]) == 0
    out, err = capsys.readouterr()
    assert "2 of 3 cells are trained already" in err
    assert all(name in out for name in ("1x8-500-tokens", "1x8-2-books", "1x8-all"))
    assert before == {p: p.stat().st_mtime_ns for p in kept.rglob("*")}


def test_a_cell_that_fails_is_told_and_the_others_go_on(text, tmp_path, capsys):
    out = tmp_path / "study"
    out.mkdir()
    (out / "mine").write_text("precious")
    one = ["scaling", text, "--out", out, "--books", "all", *TINY, "--sizes", "1x8"]
    code, told = line(one, capsys)
    assert code == 2 and told.endswith("is there already, and is no study; choose another --out")
    (out / "mine").unlink()
    assert line(one, capsys)[0] == 0
    files.remove(out / "cells" / "1x8-all")
    (out / "cells" / "1x8-all").write_text("in the way")
    code, told = line([*one[:-1], "1x16"], capsys)
    assert code == 1
    assert told == "tsuzuri: 1 of 2 cells failed (1x8-all); the same command tries them again"
    results = json.loads((out / "results.json").read_text())
    assert [cell["cell"] for cell in results["cells"]] == ["1x16-all"]


def test_a_loss_that_is_no_number_fails_its_cell(text, tmp_path, capsys):
    out = tmp_path / "study"
    options = ["--out", out, "--books", "all", *TINY, "--sizes", "1x8", "--learning-rate", "1e30"]
    code, told = line(["scaling", text, *options], capsys)
    assert code == 1 and "1 of 1 cells failed (1x8-all)" in told
    assert "FAILED  RunError: loss or gradient not finite" in study.table(
        [], json.loads((out / "results.json").read_text())["failed"]
    )


def test_other_studies_are_refused(done, text, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("something else\n" * 50)
    for options, told in (
        ([text, "--steps", "30"], "steps 20 -> 30"),
        ([text, "--held-out-tokens", "9"], "held_out_tokens 300 -> 9"),
        ([other], "another text"),
    ):
        code, said = line(["scaling", *options, "--out", done], capsys)
        assert code == 2 and told in said and "would not compare" in said


def test_bad_input(text, tmp_path, capsys):
    def told(*given):
        code, said = line(["scaling", text, "--out", tmp_path / "study", *TINY, *given], capsys)
        assert code == 2
        return said

    assert "names nothing" in told("--sizes", "")
    assert "'64' is no size" in told("--sizes", "64")
    assert "'many' is no number of books" in told("--books", "many")
    assert "--books 500: the text has 18 books to train on" in told("--books", "500")
    assert "give at most so many, or all" in told("--tokens", "99999999")
    assert "shorter than one block" in told("--tokens", "9")
    assert "give --sizes" in told("--model.num-layers", "3")
    assert "rope needs an even" in told("--sizes", "1x7")
    assert "--seeds is 0" in told("--seeds", "0")
    assert line(["scaling", "--out", tmp_path / "none"], capsys)[1].endswith("to make it of")
    assert not (tmp_path / "study" / "cells").exists()


def test_the_config_of_a_study():
    cfg = scaling.config_of_study({})
    assert cfg.optim.schedule == "constant" and cfg.tokenizer.vocab_size == 2048
    assert 40 <= cfg.steps // cfg.eval_every <= 50
    given = {"optim.schedule": "cosine", "tokenizer.vocab_size": 512, "eval_every": 100}
    cfg = scaling.config_of_study(given)
    assert (cfg.optim.schedule, cfg.tokenizer.vocab_size, cfg.eval_every) == ("cosine", 512, 100)


def test_a_grid_grows():
    small = Grid((Size(1, 8),), (ALL,))
    both = small.with_(Grid((Size(2, 8), Size(1, 8)), (), 2))
    assert both == Grid((Size(1, 8), Size(2, 8)), (ALL,), 2) and len(both.cells) == 4


# The laws.

TRUE = {
    "kaplan": {"alpha_N": 0.076, "alpha_D": 0.103, "Nc": 6.4e13, "Dc": 1.8e13},
    "chinchilla": {"alpha": 0.34, "beta": 0.28, "E": 1.69, "A": 406.4, "B": 410.7},
}
N = np.repeat([2.5e4, 1e5, 4e5, 1.6e6], 5)
D = np.tile([1e5, 3e5, 1e6, 3e6, 1e7], 4)


def formula(law, n, d, a, b, *more):
    """The two laws as the papers print them."""
    if law == "kaplan":
        return ((more[0] / n) ** (a / b) + more[1] / d) ** b
    return more[0] + more[1] / n**a + more[2] / d**b


@pytest.mark.parametrize("law", LAWS)
def test_known_exponents_are_found_again(law):
    exact = formula(law, N, D, *TRUE[law].values())
    found = fit(law, N, D, exact, samples=2)
    assert {k: found.values[k] for k in TRUE[law]} == pytest.approx(TRUE[law], rel=1e-3)
    assert found.loss(N, D) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("law", LAWS)
def test_fits_agree_with_curve_fit(law):
    """Where no residual is large Huber's loss is squares, which scipy.optimize.curve_fit takes."""
    noise = np.random.default_rng(3).normal(0, 0.002, len(N))
    loss = formula(law, N, D, *TRUE[law].values()) * np.exp(noise)
    found = fit(law, N, D, loss, samples=200)

    def log_loss(_, a, b, *logs):
        return np.log(formula(law, N, D, a, b, *np.exp(logs)))

    start = [np.log(v) if i > 1 else v for i, v in enumerate(TRUE[law].values())]
    best, covariance = curve_fit(log_loss, N, np.log(loss), start)
    exponents = list(TRUE[law])[:2]
    assert [found.values[k] for k in exponents] == pytest.approx(best[:2], rel=1e-3)
    widths = [np.ptp(found.intervals[k]) / 3.92 for k in exponents]
    assert widths == pytest.approx(np.sqrt(np.diag(covariance))[:2], rel=0.35)


@pytest.mark.parametrize("law", LAWS)
def test_intervals_hold_the_truth(law):
    """Of 95 % intervals of the two exponents in 12 noisy grids; a binomial falls to 18 rarely."""
    draw = np.random.default_rng(4)
    exact = formula(law, N, D, *TRUE[law].values())
    held = 0
    for _ in range(12):
        found = fit(law, N, D, exact * np.exp(draw.normal(0, 0.005, len(N))), samples=60)
        for key in list(TRUE[law])[:2]:
            low, high = found.intervals[key]
            held += low <= TRUE[law][key] <= high
    assert held >= 19


def test_a_wild_cell_does_not_decide():
    loss = formula("chinchilla", N, D, *TRUE["chinchilla"].values())
    loss[7] *= 1.5
    found = fit("chinchilla", N, D, loss, samples=2)
    assert found.values["alpha"] == pytest.approx(0.34, abs=0.05)


def test_too_few_cells_are_refused():
    loss = formula("kaplan", N, D, *TRUE["kaplan"].values())
    with pytest.raises(UserError, match="has 5 numbers and needs 6 cells; here: 4"):
        fit("chinchilla", N[:4], D[:4], loss[:4])
    with pytest.raises(UserError, match="needs 3 different sizes; here: 2"):
        fit("chinchilla", N[:10], D[:10], loss[:10])


def test_the_table_stands_beside_the_papers():
    found = Fit("kaplan", (), {"alpha_N": 0.1}, {"alpha_N": (0.05, 0.15)}, 0.01, 9)
    shown = table([found])
    assert "0.05 to 0.15" in shown and "0.076" in shown
    assert shown.endswith("1.00% of the loss")


def test_a_law_that_misses_the_losses_is_said_not_to_hold():
    """Losses that fall ever faster in log D are of no power law."""
    loss = [8 - (math.log(d) - 9) ** 2 / 10 + 1e4 / n for n, d in zip(N, D, strict=True)]
    found = fit("kaplan", N, D, loss, samples=2)
    assert not found.holds and "it does not hold here" in table([found])


def test_what_doubling_brings():
    """By hand: of a pure power law, 2^-alpha of the loss stays."""
    fits = [
        Fit("kaplan", (0.1, 0.2, math.log(1e9), -100), {}, {}, 0, 9),  # L = (1e9 / N)^0.1
        Fit("chinchilla", (0.3, 0.5, -100, -100, math.log(1e4)), {}, {}, 0, 9),  # L = 1e4 / D^0.5
    ]
    _, kaplan, chinchilla = doubled(fits, 1e5, 1e6).splitlines()
    assert f"{10**0.4 * (2**-0.1 - 1):.3f} nats for twice the parameters, +0.000" in kaplan
    assert f"0.000 nats for twice the parameters, {10 * (2**-0.5 - 1):.3f}" in chinchilla


# The figures.


def test_ticks_are_the_values_of_the_grid_and_none_covers_another():
    axes = Figure().subplots()
    axes.set(xscale="log", xlim=(1e4, 4e5))
    figures._ticks(axes, [336_781, 12_473, 300_000, 37_420, 12_473])
    shown = [label.get_text() for label in axes.get_xticklabels(which="both")]
    assert shown == ["12k", "37k", "300k"]


def results_of(seeds: int = 1) -> list[study.Result]:
    """A made-up study that follows Chinchilla's law."""
    found = []
    for n, d in zip(N.tolist(), D.tolist(), strict=True):
        for seed in range(seeds):
            tokens = np.geomspace(1e5, 1e7, 40)
            curve = formula("chinchilla", n, tokens, *TRUE["chinchilla"].values())
            found.append(
                study.Result(
                    cell=f"{n}-{d}", size=f"1x{n:.0f}", corpus=f"{d}", seed=seed,
                    parameters=int(n), n=int(n), books=1, d=int(d), tokens=int(1e7),
                    flops=6 * n * 1e7, train_loss=3.0, held_out_loss=3.5, bits_per_byte=2.0,
                    best_loss=float(formula("chinchilla", n, d, *TRUE["chinchilla"].values())),
                    best_step=1, steps=2,
                    curve=[(int(t), float(c)) for t, c in zip(tokens, curve, strict=True)],
                )
            )  # fmt: skip
    return found


def test_isoflops_are_losses_at_the_same_flops():
    curves = figures.isoflops(results_of(seeds=2))
    assert len(curves) >= 3
    for curve in curves:
        for n, loss in zip(curve["n"], curve["loss"], strict=True):
            tokens = curve["flops"] / (6 * n)
            true = formula("chinchilla", n, tokens, *TRUE["chinchilla"].values())
            assert loss == pytest.approx(true, rel=2e-3)
        if curve["best"]:
            assert curve["n"][0] <= curve["best"][0] <= curve["n"][-1]
    few = [r for r in results_of() if r.n < 2e5]
    assert figures.isoflops(few) == []


def test_figures_are_drawn_with_or_without_a_law(tmp_path):
    results = results_of()
    loss = [r.best_loss for r in results]
    found = fit("chinchilla", N, D, loss, samples=2)
    assert len(figures.draw(results, [found], tmp_path / "a")) == 3
    one = [dataclasses.replace(results[0], curve=results[0].curve[:1])]
    assert len(figures.draw(one, [], tmp_path / "b")) == 2
    assert figures.draw([], [], tmp_path / "c") == []
    for picture in tmp_path.rglob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
