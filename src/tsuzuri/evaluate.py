"""How well a model predicts a text: loss, perplexity, bits per byte."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from tsuzuri.checkpoint import parameters_sha256
from tsuzuri.data import Batch, Blocks, in_order
from tsuzuri.losses import cross_entropy
from tsuzuri.model import Decoder
from tsuzuri.sharding import BATCH

# (parameters, batch) -> (summed loss, summed weights)
EvalStep = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]


def make_eval_step(graphdef: nnx.GraphDef[Decoder]) -> EvalStep:
    """The jitted loss of one batch, dropout off."""

    @jax.jit
    def eval_step(params, b: Batch):
        logits_BLV = nnx.merge(graphdef, params)(b.tokens_BL, b.segments_BL, b.positions_BL)
        return cross_entropy(logits_BLV, b.targets_BL, b.weights_BL)

    return eval_step


def mean_loss(
    eval_step: EvalStep, params: Any, batches: Iterable[Batch], mesh: Mesh
) -> tuple[float, int]:
    """The mean loss over every token of `batches`, in nats a token, and the number of tokens.

    Sums are divided once, at the end, so padding and the size of the batches change nothing.
    """
    rows = NamedSharding(mesh, BATCH)
    sums = [eval_step(params, jax.device_put(batch, rows)) for batch in batches]
    tokens = sum(float(weight) for _, weight in sums)
    return math.fsum(float(loss) for loss, _ in sums) / tokens, round(tokens)


def split_figures(
    eval_step: EvalStep,
    params: Any,
    blocks: Blocks,
    split: Mapping[str, Any],
    mesh: Mesh,
    batch: int,
) -> dict[str, Any]:
    """The figures of a whole split of features, as `tsuzuri eval` prints them.

    bits_per_byte = loss / ln 2 x tokens / bytes of text: it compares models across tokenizers.

    Args:
      split: the split's entry in features.json.
      batch: blocks at a time, a multiple of the devices that share a batch.
    """
    loss, tokens = mean_loss(eval_step, params, in_order(blocks, batch), mesh)
    bits = split["entropy_bits"]
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": loss / math.log(2) * tokens / split["bytes"],
        "entropy_floor": None if bits is None else bits / split["bytes"],
        "tokens": tokens,
        "bytes": split["bytes"],
        "parameters_sha256": parameters_sha256(params),
    }
