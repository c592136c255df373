"""Two models of the same random weights, and the measure of how much they differ."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from tsuzuri.config import ModelConfig
from tsuzuri.model import Decoder

ASKED = 1e-4
rows: list[tuple[str, str, float]] = []  # preset, reference, difference


def decoder(cfg: ModelConfig) -> tuple[Any, dict[str, Any]]:
    """Ours, jitted, and its random weights: every bias and scale is far from where it begins.

    Embeddings are small, so that the epsilon of the first norm shows.
    """
    shapes = nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(shapes)
    rng = np.random.default_rng(0)

    def random(keys: Any, leaf: Any) -> np.ndarray:
        path = jax.tree_util.keystr(keys)
        mean, spread = float("scale" in path), 0.03 if "embedding" in path else 0.3
        return rng.normal(mean, spread, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(random, nnx.to_pure_dict(params))
    return jax.jit(nnx.merge(graphdef, params)), params


def compare(preset: str, reference: str, ours: Any, theirs: Any) -> None:
    """Holds the largest difference, relative to the largest value, under what is asked."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    rows.append((preset, reference, difference))
    assert difference <= ASKED
