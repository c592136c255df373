"""How well a model predicts a text: loss, perplexity, bits per byte."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tsuzuri.checkpoint import parameters_sha256
from tsuzuri.data import Batch, Blocks, in_order
from tsuzuri.losses import cross_entropy, in_parts
from tsuzuri.model import PLAIN, Decoder, Execution, head_logits
from tsuzuri.sharding import BATCH, by_rows, by_rows_specs, local_rows, summed

# (parameters, batch) -> (summed loss, summed weights)
EvalStep = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]


def make_eval_step(
    graphdef: nnx.GraphDef[Decoder], mesh: Mesh, how: Execution = PLAIN, parts: int = 1
) -> EvalStep:
    """The jitted loss of one batch, dropout off; both sums on all hosts.

    Args:
      parts: of the tokens, whose logits are there one after the other (`losses.in_parts`).
    """

    def of_rows(params: Any, b: Batch) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, params)
        x_BLD, _ = model.hidden(b.tokens_BL, b.positions_BL, None, None, b.segments_BL, how)

        def loss(head: Any, x_BLD: jax.Array, targets_BL: jax.Array, weights_BL: jax.Array) -> Any:
            return cross_entropy(head_logits(model.cfg, head, x_BLD), targets_BL, weights_BL)

        head = model.head_weights(how)
        sums = in_parts(loss, parts)(head, x_BLD, b.targets_BL, b.weights_BL)
        return summed(mesh, sums, (P(), P()))

    def eval_step(params: Any, b: Batch) -> tuple[jax.Array, jax.Array]:
        rows = jax.tree.map(lambda _: BATCH, b)
        return by_rows(mesh, of_rows, (by_rows_specs(params), rows), (P(), P()))(params, b)

    return jax.jit(eval_step, out_shardings=NamedSharding(mesh, P()))


def mean_loss(
    eval_step: EvalStep,
    params: Any,
    blocks: Blocks,
    batch: int,
    mesh: Mesh,
    limit: int = 0,
    alive: Callable[[], None] = lambda: None,
) -> tuple[float, int]:
    """The mean loss over every token of the blocks, in nats a token, and the number of tokens.

    Sums are divided once, at the end, so padding and the size of the batches change nothing.

    Args:
      batch: blocks at a time, a multiple of the devices that share a batch.
      limit: look at so many blocks at most, evenly spaced; 0 for all.
      alive: called after each batch.
    """
    split, rows = NamedSharding(mesh, BATCH), local_rows(mesh, batch)

    def on_devices(local: Any) -> jax.Array:
        return jax.make_array_from_process_local_data(split, local, (batch, *local.shape[1:]))

    sums = []
    for part in in_order(blocks, batch, limit, rows):
        sums.append(eval_step(params, jax.tree.map(on_devices, part)))
        jax.block_until_ready(sums[-2:][0])  # the batch before: the device has the next one to do
        alive()
    tokens = sum(float(weight) for _, weight in sums)
    return math.fsum(float(loss) for loss, _ in sums) / tokens, round(tokens)


def perplexity(loss: float) -> float:
    """exp(loss); of a loss above 700, that of 700: a float holds little more."""
    return math.exp(min(loss, 700.0))


def split_figures(
    eval_step: EvalStep,
    params: Any,
    blocks: Blocks,
    split: Mapping[str, Any],
    mesh: Mesh,
    batch: int,
    alive: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The figures of a whole split of features, as `tsuzuri eval` prints them.

    bits_per_byte = loss / ln 2 x tokens / bytes of text: it compares models across tokenizers.

    Args:
      split: the split's entry in features.json.
      batch: blocks at a time, a multiple of the devices that share a batch.
      alive: called after each batch.
    """
    loss, tokens = mean_loss(eval_step, params, blocks, batch, mesh, alive=alive)
    bits = split["entropy_bits"]
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": loss / math.log(2) * tokens / split["bytes"],
        "entropy_floor": None if bits is None else bits / split["bytes"],
        "tokens": tokens,
        "bytes": split["bytes"],
        "parameters_sha256": parameters_sha256(params),
    }
