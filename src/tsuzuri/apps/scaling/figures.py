"""The three figures of a study."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsuzuri.apps.scaling.fit import Fit
from tsuzuri.apps.scaling.study import Result
from tsuzuri.files import write_beside

# From washed indigo to ink, for models from small to large; red for held out, as in plots.py.
_LIGHT, _DARK = (0.66, 0.76, 0.87), (0.09, 0.17, 0.32)
_TRAIN, _HELD_OUT, _BEST = "#7a9cc6", "#c73e3a", "#c73e3a"
_STYLES = ("-", "--")  # of the laws
_BUDGETS = 5  # isoFLOP curves


def draw(results: Sequence[Result], fits: Sequence[Fit], folder: Path) -> list[Path]:
    """Draws what the results allow, as PNGs in `folder`.

    loss.png: the lowest held-out loss against D, a line for each N, and the law.
    gap.png: losses at the end, and how far they are apart, against D.
    isoflop.png: the held-out loss for the same FLOPs against N, on the largest corpus.

    Returns:
      The pictures.
    """
    if not results:
        return []
    pictures = [folder / "loss.png", folder / "gap.png"]
    _draw(_loss, pictures[0], (7.2, 5.2), results, fits)
    _draw(_gap, pictures[1], (10.5, 4.6), results)
    curves = isoflops(results)
    if curves:
        pictures.append(folder / "isoflop.png")
        _draw(_isoflop, pictures[2], (7.2, 5.2), curves)
    return pictures


def isoflops(results: Sequence[Result]) -> list[dict[str, Any]]:
    """For some amounts of FLOPs: each size's held-out loss after them, on the largest corpus.

    As Hoffmann et al. 2022 (section 3.2), but from the losses on the way of one run for each size,
    which a constant learning rate allows (Hagele et al. 2024, arXiv:2405.18392).

    Returns:
      By amount: "flops", "n" and "loss" of at least three sizes, the "parabola" through them in
      log N, and its "best" (N, loss) if that lies between the smallest and the largest.
    """
    largest = max(r.d for r in results)
    rows: dict[int, list[Result]] = {}
    for r in results:
        if r.d == largest:
            rows.setdefault(r.n, []).append(r)
    lines = {}  # by N: log FLOPs, and the loss then, the mean over seeds
    for n, runs in rows.items():
        a_token = runs[0].flops / runs[0].tokens
        tokens = np.array([tokens for tokens, _ in runs[0].curve])
        losses = np.mean([[loss for _, loss in run.curve] for run in runs], axis=0)
        lines[n] = np.log(tokens * a_token), losses
    if len(lines) < 3:
        return []
    # From where three sizes have begun to where three have not ended.
    low = sorted(flops[0] for flops, _ in lines.values())[2]
    high = sorted(flops[-1] for flops, _ in lines.values())[-3]
    found = []
    for log_flops in np.linspace(low, high, _BUDGETS + 1)[1:] if low < high else []:
        there = {
            n: float(np.interp(log_flops, flops, losses))
            for n, (flops, losses) in sorted(lines.items())
            if flops[0] <= log_flops <= flops[-1] + 1e-9
        }
        if len(there) < 3:
            continue
        log_n, losses = np.log(list(there)), np.array(list(there.values()))
        parabola = np.polyfit(log_n, losses, 2)
        lowest = -parabola[1] / (2 * parabola[0]) if parabola[0] > 0 else math.nan
        best = None
        if log_n[0] <= lowest <= log_n[-1]:
            best = float(np.exp(lowest)), float(np.polyval(parabola, lowest))
        found.append({"flops": float(np.exp(log_flops)), "n": list(there), "loss": losses.tolist(),
                      "parabola": parabola.tolist(), "best": best})  # fmt: skip
    return found


def _loss(figure: Any, results: Sequence[Result], fits: Sequence[Fit]) -> None:
    axes = figure.subplots()
    corpora = sorted({r.seen for r in results})
    reach = np.geomspace(corpora[0] / 1.3, corpora[-1] * 1.3, 200)
    for color, rows in _by_size(results):
        d, loss = zip(*((r.seen, r.best_loss) for r in rows), strict=True)
        axes.plot(d, loss, "o", color=color, markersize=6, zorder=3,
                  label=f"{rows[0].size}, N = {_short(rows[0].n)}")  # fmt: skip
        if not fits:
            axes.plot(*zip(*_means(d, loss), strict=True), color=color, linewidth=1.3)
        for law, style in zip(fits, _STYLES, strict=False):
            axes.plot(reach, law.loss(rows[0].n, reach), style, color=color, linewidth=1.3)
    for law, style in zip(fits, _STYLES, strict=False):
        names = {
            "kaplan": r"Kaplan: $\alpha_N$ = {alpha_N:.3f}, $\alpha_D$ = {alpha_D:.3f}",
            "chinchilla": r"Chinchilla: $\alpha$ = {alpha:.3f}, $\beta$ = {beta:.3f}",
        }
        axes.plot([], [], style, color=_DARK, label=names[law.law].format(**law.values))
    axes.set(xscale="log", yscale="log", xlabel="D: tokens of text that the model has seen",
             ylabel="loss (nats a token)")  # fmt: skip
    axes.set_title("Lowest held-out loss", fontsize="medium")
    _ticks(axes, corpora)
    _plain(axes.yaxis)
    _finish(axes)


def _gap(figure: Any, results: Sequence[Result]) -> None:
    left, right = figure.subplots(1, 2)
    _, rows = _by_size(results)[-1]
    for values, color, label in (
        ([r.train_loss for r in rows], _TRAIN, "train"),
        ([r.held_out_loss for r in rows], _HELD_OUT, "held out"),
        ([r.best_loss for r in rows], _HELD_OUT, "held out, lowest"),
    ):
        style = "o--" if "lowest" in label else "o-"
        points = _means([r.d for r in rows], values)
        left.plot(*zip(*points, strict=True), style, color=color, markersize=5, linewidth=1.5,
                  alpha=0.55 if "lowest" in label else 1, label=label)  # fmt: skip
    left.set(xscale="log", xlabel="D: tokens of the corpus", ylabel="loss (nats a token)")
    left.set_title(f"At the end of training, {rows[0].size}", fontsize="medium")
    for color, rows in _by_size(results):
        points = _means([r.d for r in rows], [r.gap for r in rows])
        right.plot(*zip(*points, strict=True), "o-", color=color, markersize=5, linewidth=1.5,
                   label=f"{rows[0].size}, N = {_short(rows[0].n)}")  # fmt: skip
    if all(r.gap > 0 for r in results):
        right.set_yscale("log")
    right.set(xscale="log", xlabel="D: tokens of the corpus", ylabel="held out - train (nats)")
    right.set_title("Gap", fontsize="medium")
    for axes in (left, right):
        _ticks(axes, [r.d for r in results])
        _finish(axes)


def _isoflop(figure: Any, curves: Sequence[dict[str, Any]]) -> None:
    axes = figure.subplots()
    for color, curve in zip(_colors(len(curves)), curves, strict=True):
        axes.plot(curve["n"], curve["loss"], "o", color=color, markersize=6, zorder=3,
                  label=_scientific(curve["flops"]) + " FLOPs")  # fmt: skip
        reach = np.geomspace(curve["n"][0], curve["n"][-1], 200)
        axes.plot(reach, np.polyval(curve["parabola"], np.log(reach)), color=color, linewidth=1.3)
    best = [curve["best"] for curve in curves if curve["best"]]
    if best:
        axes.plot(*zip(*best, strict=True), "*", color=_BEST, markersize=11, linestyle="none",
                  zorder=4, label="best N")  # fmt: skip
    axes.set(xscale="log", xlabel="N: parameters without embeddings", ylabel="loss (nats a token)")
    axes.set_title("Held-out loss for the same FLOPs, on the largest corpus", fontsize="medium")
    _ticks(axes, [n for curve in curves for n in curve["n"]])
    _finish(axes)


def _by_size(results: Sequence[Result]) -> list[tuple[Any, list[Result]]]:
    """The results of each N, from small to large, with a color."""
    sizes = sorted({r.n for r in results})
    rows = [sorted((r for r in results if r.n == n), key=lambda r: r.d) for n in sizes]
    return list(zip(_colors(len(sizes)), rows, strict=True))


def _colors(count: int) -> list[Any]:
    shares = np.linspace(0, 1, count) if count > 1 else np.ones(1)
    return [tuple(a + (b - a) * s for a, b in zip(_LIGHT, _DARK, strict=True)) for s in shares]


def _means(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """One point for each x: the mean over seeds."""
    groups: dict[float, list[float]] = {}
    for x, y in zip(xs, ys, strict=True):
        groups.setdefault(x, []).append(y)
    return [(x, sum(group) / len(group)) for x, group in sorted(groups.items())]


def _short(number: float) -> str:
    """24576 -> 25k"""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.{1 if number < 10 * size else 0}f}{letter}"
    return f"{number:g}"


def _scientific(number: float) -> str:
    """4.6e11 as a formula"""
    digits, _, power = f"{number:.1e}".partition("e")
    return rf"${digits} \times 10^{{{int(power)}}}$"


def _ticks(axes: Any, values: Iterable[float]) -> None:
    """On a logarithmic axis: the very values of the grid, but for those that stand too near."""
    shown: list[float] = []
    for value in sorted(values):
        if not shown or value > 1.25 * shown[-1]:
            shown.append(value)
    axes.set_xticks(shown, [_short(value) for value in shown])
    axes.xaxis.minorticks_off()


def _plain(axis: Any) -> None:
    """4.5 on a logarithmic axis, not 4.5 x 10^0."""
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    axis.set_major_locator(MaxNLocator(7))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(ScalarFormatter())


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")


def _draw(what: Any, path: Path, size: tuple[float, float], *arguments: Any) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=size, layout="constrained")
    what(figure, *arguments)
    with write_beside(path) as beside:
        figure.savefig(beside, dpi=144, format="png")
    plt.close(figure)
