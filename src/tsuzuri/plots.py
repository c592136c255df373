"""The figures of a run."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsuzuri.files import write_beside

_TRAIN, _HELD_OUT, _FLOOR = "#7a9cc6", "#c73e3a", "#5b8930"  # washed indigo, red, moss
# For the name of a run, which may be Japanese; Matplotlib's own font is not.
_FONTS = {"Hiragino Sans", "Yu Gothic", "Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic"}


def loss_plot(
    metrics: Sequence[Mapping[str, Any]], path: Path, title: str, floor: float | None = None
) -> None:
    """Draws loss against steps, and against tokens on a second axis, as a PNG.

    Args:
      metrics: the lines of metrics.jsonl.
      path: where the picture goes.
      title: what stands above it.
      floor: the entropy of the text in nats a token, where the corpus knows it.
    """
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.font_manager import fontManager

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    train = [(m["step"], m["loss"]) for m in metrics if "loss" in m]
    held_out = [(m["step"], m["held_out_loss"]) for m in metrics if "held_out_loss" in m]
    if train:
        axes.plot(*zip(*train, strict=True), color=_TRAIN, linewidth=1.2, label="train")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color=_HELD_OUT, markersize=3.5,
                  linewidth=1.6, label=f"held out ({held_out[-1][1]:.3f} at the end)")  # fmt: skip
    if floor is not None:
        axes.axhline(floor, color=_FLOOR, linestyle="--", linewidth=1.2,
                     label=f"entropy of the text ({floor:.3f})")  # fmt: skip
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    fonts = _FONTS.intersection(fontManager.get_font_names())
    axes.set_title(title, family=["sans-serif", *sorted(fonts)], parse_math=False)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["right"]].set_visible(False)
    axes.legend(frameon=False)
    per_step = next((m["tokens"] / m["step"] for m in metrics if m.get("tokens")), None)
    if per_step:
        scale = per_step / 1e6
        there_and_back = (lambda s: np.asarray(s) * scale, lambda t: np.asarray(t) / scale)
        top = axes.secondary_xaxis("top", there_and_back)
        top.set_xlabel("million tokens")
    with write_beside(path) as beside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a square stands for it
        figure.savefig(beside, dpi=144, format="png")
    plt.close(figure)
