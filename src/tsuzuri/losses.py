"""The loss, shared by training and evaluation; and what training may minimize instead."""

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


def objective(
    logits_BTV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """What training minimizes, and the mean cross-entropy, which is what it reports: nats a token.

    Without the two extras they are the same number.

    Args:
      label_smoothing: s; the target distribution is (1 - s) x the token + s x uniform (Szegedy et
        al. 2016).
      z_loss: the weight of log(Z)^2, Z the sum of exp(logits) (Chowdhery et al. 2022).
    """
    total, weight = cross_entropy(logits_BTV, targets_BT, weights_BT)
    loss = wanted = total / weight
    normalizer_BT = jax.nn.logsumexp(logits_BTV, axis=-1)

    def mean(values_BT: jax.Array) -> jax.Array:
        return jnp.sum(values_BT * weights_BT) / weight

    if label_smoothing:
        uniform = mean(normalizer_BT - jnp.mean(logits_BTV, axis=-1))
        wanted = (1 - label_smoothing) * loss + label_smoothing * uniform
    if z_loss:
        wanted += z_loss * mean(normalizer_BT**2)
    return wanted, loss
