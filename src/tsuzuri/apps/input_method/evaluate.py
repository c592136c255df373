"""How good an input method is: accuracy, keys saved, time; as figures, a table and a picture.

The fair protocol: the vocabulary is of the text before the test part, a test word outside of it
counts as wrong, and each position is scored once, with all that comes before it.

The seed's protocol, for comparison: the first 90 % of the words train, the rest test, nothing is
tuned apart; the vocabulary is that of both; a Transformer is scored at each position of windows
that begin everywhere, so that most positions have little before them; and its heads were 4 wide.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsuzuri.apps.input_method.cache import Cache
from tsuzuri.apps.input_method.engine import InputMethod, Parts, Text, read_parts
from tsuzuri.apps.input_method.histories import HiddenHistories
from tsuzuri.apps.input_method.neural import Reading
from tsuzuri.apps.input_method.ngram import SeedCounts
from tsuzuri.apps.input_method.predictors import Predictor, ranks
from tsuzuri.files import write_beside
from tsuzuri.tokenizer.first_two import CODES

# Test accuracies of the seed's slides: by n, and of the Transformer by block size.
PAPER = {
    "Shakespeare": {
        "n": {1: 0.473, 2: 0.522, 3: 0.505, 4: 0.499, 5: 0.499, 6: 0.499},
        "block": {4: 0.495, 8: 0.513, 16: 0.518, 32: 0.515, 64: 0.503},
    },
    "WikiText-2": {
        "n": {1: 0.417, 2: 0.455, 3: 0.447, 4: 0.441, 5: 0.440, 6: 0.440},
        "block": {4: 0.438, 8: 0.447, 16: 0.456, 32: 0.462, 64: 0.457},
    },
}
SHOWN = 5  # candidates a user sees
_WITH_TRANSFORMER = ("Transformer", "all together")
_PIECE = 100  # words: a bootstrap sample is made of pieces, as neighbouring words are alike
_SAMPLES = 1000
_TIMED = 300  # words
_LONG = 8  # letters: words of so many or more are counted together


def evaluate(run: str | Path) -> dict[str, Any]:
    """The fair protocol on the run's own test part.

    Returns:
      "text": its numbers; "rows": of each model and what it sees the accuracies at 1, 3 and 5, and
      for the first a 95 % interval; of the last row, which is all models together: "by_length",
      "keys_saved" and "ms_a_word".

    Raises:
      UserError: `run` is no input method, or is not finished.
    """
    method, parts = InputMethod.load(run), read_parts(Path(run))
    tok, test = parts.tokenizer, parts.test
    before = _before_test(parts)
    rows = []

    def row(model: str, sees: str, found: np.ndarray) -> np.ndarray:
        accuracy = {k: float((found < k).mean()) for k in (1, 3, 5)}
        interval = bootstrap(found < 1)
        rows.append({"model": model, "sees": sees, "accuracy": accuracy, "interval": interval})
        return found

    seed = SeedCounts(*before, 6)
    for n in range(1, 7):
        found = np.where(seed.predict(test.codes, n) == test.words, 0, SHOWN)
        row(f"seed's counts, n = {n}", "prefixes", found)
        rows[-1]["accuracy"] = {1: rows[-1]["accuracy"][1]}  # it has one candidate

    def typed(predictor: Predictor, sees: str) -> np.ndarray:
        return ranks(predictor, tok, *test, sees == "committed")[0]

    for sees in ("prefixes", "committed"):
        histories = HiddenHistories(method.ngrams, tok)
        row("Kneser-Ney", sees, typed(histories, sees))
        histories = HiddenHistories(method.ngrams, tok)
        last = row("Kneser-Ney + cache", sees, typed(Cache(tok, histories, histories), sees))
    sees = method.sees
    if method.transformer:
        alone, together = _WITH_TRANSFORMER
        row(alone, sees, typed(Reading(method.transformer, *test), sees))
        last = row(together, sees, typed(method.predictor(test), sees))
    letters = np.array([len(word) for word in parts.test_words])
    lengths = np.minimum(letters, _LONG)
    return {
        "text": {
            "words": len(before.words) + len(test.words),
            "test_words": len(test.words),
            "vocabulary": len(tok.words),
            "out_of_vocabulary": float((test.words == len(tok.words)).mean()),
        },
        "block_size": method.transformer.length if method.transformer else None,
        "rows": rows,
        "by_length": {
            f"{n}{'+' if n == _LONG else ''}": {
                "share": float((lengths == n).mean()),
                "accuracy": float((last[lengths == n] < 1).mean()),
            }
            for n in range(1, _LONG + 1)
            if (lengths == n).any()
        },
        "keys_saved": keys_saved(last, letters),
        "ms_a_word": _milliseconds(method, test),
    }


def seed_protocol(run: str | Path) -> dict[str, Any]:
    """The seed's own models in its own protocol: accuracies by n, in training and in test.

    Raises:
      UserError: `run` is no input method.
    """
    parts = read_parts(Path(run))
    # That the vocabulary is of the test part too changes nothing: no count ever gives such a word.
    train, test = _before_test(parts), parts.test
    model, found = SeedCounts(*train, 6), {}
    for n in range(1, 7):
        found[n] = {
            split: float((model.predict(text.codes, n) == text.words).mean())
            for split, text in (("train", train), ("test", test))
        }
    return {"protocol": "seed", "n": found}


def bootstrap(right: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of a share, by resampling pieces of the text (Efron 1979; moving on in
    pieces because neighbours depend on each other, Kunsch 1989).
    """
    pieces = np.array([part.mean() for part in np.array_split(right, -(-len(right) // _PIECE))])
    chosen = np.random.default_rng(0).integers(len(pieces), size=(_SAMPLES, len(pieces)))
    low, high = np.quantile(pieces[chosen].mean(1), [0.025, 0.975])
    return float(low), float(high)


def keys_saved(found: np.ndarray, letters: np.ndarray) -> float:
    """The share of keys that need not be pressed, against typing all letters and a space.

    A word costs its two keys; a third picks one of the other candidates shown. A word that is not
    among them costs Esc, its other letters and a space.

    Args:
      found: int [n], how many candidates were before each word.
      letters: int [n], of each word.
    """
    spelled = 2 + 1 + np.maximum(letters - 2, 0) + 1
    pressed = np.where(found < 1, 2, np.where(found < SHOWN, 3, spelled))
    return float(1 - pressed.sum() / (letters + 1).sum())


def _before_test(parts: Parts) -> Text:
    return Text(*map(np.concatenate, zip(parts.train, parts.development, strict=True)))


def _milliseconds(method: InputMethod, text: Text) -> dict[str, float]:
    """How long a user waits for the candidates of a word."""
    session, waits = method.session(), []
    for code, word in zip(text.codes[:_TIMED], text.words[:_TIMED], strict=True):
        start = time.perf_counter()
        session.candidates(CODES[code], SHOWN)
        waits.append(time.perf_counter() - start)
        if word < len(method.tokenizer.words):
            session.commit(method.tokenizer.words[word])
    waits = 1000 * np.sort(waits)
    return {"median": float(np.median(waits)), "p95": float(np.quantile(waits, 0.95))}


def table(figures: Mapping[str, Any]) -> str:
    """What `evaluate` or `seed_protocol` gave, for a person."""
    if figures.get("protocol") == "seed":
        lines = [f"{'n':10}" + "".join(f"{n:>8}" for n in figures["n"])]
        for split in ("train", "test"):
            shown = "".join(f"{found[split]:8.3f}" for found in figures["n"].values())
            lines.append(f"{split:10}{shown}")
        for name, paper in PAPER.items():
            lines.append(
                f"{'paper':10}" + "".join(f"{a:8.3f}" for a in paper["n"].values()) + f"  {name}"
            )
        lines += [
            "",
            "Here, as in the paper, nothing is tuned, and the vocabulary is of train and test; a",
            "Transformer would be scored at all positions of its windows, most with little before",
            "them, and have heads of 4 dimensions. `--protocol fair` does none of this.",
        ]
        return "\n".join(lines)
    text = figures["text"]
    lines = [
        f"{text['words']:,} words, the last {text['test_words']:,} to test; vocabulary "
        f"{text['vocabulary']:,}; out of it {text['out_of_vocabulary']:.1%} of the test words",
        "",
        f"{'model':22}{'sees':11}{'at 1':>7}{'95 % interval':>16}{'at 3':>8}{'at 5':>8}",
    ]
    for row in figures["rows"]:
        low, high = row["interval"]
        more = "".join(f"{row['accuracy'][k]:8.3f}" for k in (3, 5) if k in row["accuracy"])
        shown = f"{row['accuracy'][1]:7.3f}   {low:.3f} to {high:.3f}"
        lines.append(f"{row['model']:22}{row['sees']:11}{shown}{more}")
    lines += ["", "of the last row, by letters of the word:"]
    by_length = figures["by_length"].items()
    lines.append(f"{'letters':10}" + "".join(f"{n:>7}" for n, _ in by_length))
    lines.append(f"{'share':10}" + "".join(f"{f['share']:7.1%}" for _, f in by_length))
    lines.append(f"{'at 1':10}" + "".join(f"{f['accuracy']:7.3f}" for _, f in by_length))
    wait = figures["ms_a_word"]
    lines += [
        f"keys saved {figures['keys_saved']:.1%}: two keys a word, a third to pick another of "
        f"{SHOWN}, else Esc, the other letters and a space",
        f"candidates after {wait['median']:.1f} ms, at the 95th percentile {wait['p95']:.1f} ms",
    ]
    return "\n".join(lines)


def accuracy_plot(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws accuracy against n and against block size, beside the paper's, as a PNG.

    Args:
      found: what `evaluate` gave of runs on one text, which differ in block size or what they see.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 6), sharey=True, layout="constrained")
    for (name, paper), color in zip(PAPER.items(), ("#9a9a9a", "#c9b27c"), strict=True):
        for axes, by in ((left, paper["n"]), (right, paper["block"])):
            axes.plot(*zip(*by.items(), strict=True), "o--", color=color, markersize=3.5,
                      linewidth=1.2, label=f"paper, {name}")  # fmt: skip
    rows = [row for row in found[0]["rows"] if row["model"] not in _WITH_TRANSFORMER]
    counts = [row["accuracy"][1] for row in rows[:6]]
    left.plot(
        range(1, 7), counts, "o-", color="#7a9cc6", markersize=3.5, label="the seed's counts, here"
    )
    styles = [("#5b8930", "--"), ("#5b8930", "-"), ("#b5651d", "--"), ("#b5651d", "-")]
    for row, (color, line) in zip(rows[6:], styles, strict=True):
        left.axhline(row["accuracy"][1], color=color, linestyle=line, linewidth=1.4,
                     label=f"{row['model']}, {row['sees']}")  # fmt: skip
    colors = iter(("#7a3b69", "#c73e3a", "#c58fb6", "#e5a19f"))
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for figures in sorted(found, key=lambda f: f["block_size"] or 0):
        for row in figures["rows"]:
            if row["model"] in _WITH_TRANSFORMER:
                line = points.setdefault((row["model"], row["sees"]), [])
                line.append((figures["block_size"], row["accuracy"][1]))
    for (model, sees), line in points.items():
        right.plot(*zip(*line, strict=True), "o-", color=next(colors), markersize=5,
                   label=f"{model}, {sees}")  # fmt: skip
    left.set(xlabel="n", ylabel="accuracy of the first candidate", title="n-grams")
    right.set(xlabel="block size", title="Transformer", xscale="log")
    right.set_xticks([4, 8, 16, 32, 64], ["4", "8", "16", "32", "64"])
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small", loc="upper center",
                    bbox_to_anchor=(0.5, -0.12), ncols=2)  # fmt: skip
    with write_beside(path) as beside:
        figure.savefig(beside, dpi=110, format="png")
    plt.close(figure)
