"""The loss, shared by training and evaluation."""

import jax
import jax.numpy as jnp


def cross_entropy(
    logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The weighted sum of -log p(target), in nats, and the sum of the weights.

    Two sums instead of a mean, so that the mean over many batches is exact whatever their padding.
    """
    normalizer_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jnp.sum((normalizer_BT - chosen_BT) * weights_BT), jnp.sum(weights_BT)
