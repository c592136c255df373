"""The loss, shared by training and evaluation; and what training may minimize instead.

Legend: B batch, T tokens, D width of the residual stream, V vocabulary, N parts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (the head's weights, x [B, T, D], targets [B, T], weights [B, T]) -> two sums over the tokens, of
# which the first is what is minimized
Loss = Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


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
    """What training minimizes, and the cross-entropy, which is what it reports: sums, in nats.

    Without the two extras they are the same number.

    Args:
      label_smoothing: s; the target distribution is (1 - s) x the token + s x uniform (Szegedy et
        al. 2016).
      z_loss: the weight of log(Z)^2, Z the sum of exp(logits) (Chowdhery et al. 2022).
    """
    loss, _ = cross_entropy(logits_BTV, targets_BT, weights_BT)
    wanted = loss
    normalizer_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    if label_smoothing:
        uniform = jnp.sum((normalizer_BT - jnp.mean(logits_BTV, axis=-1)) * weights_BT)
        wanted = (1 - label_smoothing) * loss + label_smoothing * uniform
    if z_loss:
        wanted += z_loss * jnp.sum(normalizer_BT**2 * weights_BT)
    return wanted, loss


def in_parts(loss: Loss, parts: int) -> Loss:
    """The same loss over `parts` stretches of the tokens, so that never all logits are there.

    The gradient is computed along with each part's loss, while its logits are there; nothing is
    computed twice, as it would be by rematerialization (the idea of Liger-Kernel's fused linear
    cross-entropy, arXiv:2410.10989).
    """
    if parts == 1:
        return loss

    def split(values_BT: jax.Array) -> jax.Array:  # [B, T, ...] -> [N, B, T/N, ...]
        B, T = values_BT.shape[:2]
        return values_BT.reshape(B, parts, T // parts, *values_BT.shape[2:]).swapaxes(0, 1)

    @jax.custom_vjp
    def summed(head: Any, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> Any:
        def add(sums: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, loss(head, *part)), None

        values = split(x_BTD), split(targets_BT), split(weights_BT)
        return jax.lax.scan(add, (jnp.float32(0), jnp.float32(0)), values)[0]

    def forward(
        head: Any, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
    ) -> tuple[Any, Any]:
        gradient_of = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

        def add(carry: Any, part: Any) -> tuple[Any, jax.Array]:
            sums, of_head = carry
            found, (more, of_x) = gradient_of(head, *part)
            return jax.tree.map(jnp.add, (sums, of_head), (found, more)), of_x

        start = (jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, head)
        values = split(x_BTD), split(targets_BT), split(weights_BT)
        (sums, of_head), of_x_NBTD = jax.lax.scan(add, start, values)
        return sums, (of_head, of_x_NBTD.swapaxes(0, 1).reshape(x_BTD.shape))

    def backward(gradients: Any, of_sums: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
        scaled = jax.tree.map(lambda g: (g * of_sums[0]).astype(g.dtype), gradients)
        return *scaled, None, None

    summed.defvjp(forward, backward)
    return summed
