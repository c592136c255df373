"""How the next token is drawn from what the model holds likely.

Every text has settings of its own, as numbers on the device: changing one compiles nothing anew,
and texts with different settings are written side by side.

Legend: B texts, V vocabulary, C candidates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tsuzuri.errors import UserError

# Where every text draws from at most so many tokens, only these are sorted.
_CANDIDATES = 64


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the model's distribution, and when a text ends.

    Raises:
      UserError: a value out of its range.
    """

    temperature: float = 0.8  # divides the logits; 0: always the likeliest token (greedy)
    top_k: int = 40  # only from the k likeliest tokens; 0: from all
    top_p: float = 1.0  # only from the fewest likeliest that hold this share (Holtzman et al. 2020)
    min_p: float = 0.0  # only from those this share as likely as the likeliest (Nguyen et al. 2024)
    repetition_penalty: float = 1.0  # above 1: less of what was written (Keskar et al. 2019)
    max_new_tokens: int = 200
    stop: tuple[str, ...] = ()  # strings that end a text; they are not part of it
    seed: int = 0

    def __post_init__(self) -> None:
        def must(condition: bool, key: str, wanted: str) -> None:
            if not condition:
                raise UserError(f"{key} is {getattr(self, key)!r}; it must be {wanted}")

        # The two that divide logits: beyond, numbers of 32 bits may overflow.
        positive = self.temperature or 1  # 0 divides nothing
        must(1e-6 <= positive <= 100, "temperature", "0 (greedy), or from 1e-6 to 100")
        must(self.top_k >= 0, "top_k", "0 (all) or more")
        must(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        must(0 <= self.min_p <= 1, "min_p", "from 0 to 1")
        must(1e-6 <= self.repetition_penalty <= 100, "repetition_penalty", "from 1e-6 to 100")
        must(1 <= self.max_new_tokens < 2**31, "max_new_tokens", "from 1 to 2147483647")
        must(
            not isinstance(self.stop, str) and all(self.stop), "stop", "strings, none of them empty"
        )
        must(0 <= self.seed < 2**31, "seed", "from 0 to 2147483647")


class Knobs(NamedTuple):
    """Sampling as arrays of the device, a number for each text [B]."""

    temperature: Any  # above 0
    top_k: Any  # 1: greedy; 0: all
    top_p: Any
    min_p: Any
    repetition_penalty: Any
    seed: Any
    stream: Any  # texts of one seed differ by it

    @classmethod
    def of(cls, settings: list[tuple[Sampling, int]]) -> "Knobs":
        """The knobs of texts with these (Sampling, stream)."""
        return cls(
            np.array([s.temperature or 1 for s, _ in settings], np.float32),
            np.array([s.top_k if s.temperature else 1 for s, _ in settings], np.int32),
            np.array([s.top_p for s, _ in settings], np.float32),
            np.array([s.min_p for s, _ in settings], np.float32),
            np.array([s.repetition_penalty for s, _ in settings], np.float32),
            np.array([s.seed for s, _ in settings], np.int32),
            np.array([stream for _, stream in settings], np.int32),
        )


def keys(knobs: Knobs, number_B: jax.Array) -> jax.Array:
    """A key for each text's token of this number, made of (seed, stream, number) alone."""
    seeds_B = jax.vmap(jax.random.key)(knobs.seed)
    streams_B = jax.vmap(jax.random.fold_in)(seeds_B, knobs.stream)
    return jax.vmap(jax.random.fold_in)(streams_B, number_B)


def draw(logits_BV: jax.Array, keys_B: jax.Array, knobs: Knobs) -> jax.Array:
    """A token id for each text, int32 [B]; a logit of -inf is never drawn.

    The tokens that may be drawn are those at least as likely as a bound; so tokens just as likely
    as the last of `top_k` may be drawn as well. What is drawn does not depend on the other texts'
    settings, only the way to the bound does.
    """
    most_B1 = logits_BV.max(axis=1, keepdims=True)
    ids_V = jnp.arange(logits_BV.shape[1])
    # The first of the likeliest; on a CPU argmax takes several times as long.
    greedy_B = jnp.where(logits_BV >= most_B1, ids_V[None, :], ids_V[-1]).min(axis=1)

    def sampled() -> jax.Array:
        p_BV = jax.nn.softmax((logits_BV - most_B1) / knobs.temperature[:, None])
        few_B = (knobs.top_k > 0) & (knobs.top_k <= _CANDIDATES)
        ways = (lambda: _bound_of_all(p_BV, knobs), lambda: _bound_of_few(p_BV, knobs))
        bound_B = jax.lax.switch(few_B.all().astype(int), ways)
        most_B = p_BV.max(axis=1)
        bound_B = jnp.maximum(jnp.minimum(bound_B, most_B), knobs.min_p * most_B)
        kept_BV = jnp.where(p_BV >= bound_B[:, None], p_BV, 0)
        drawn_B = _pick(kept_BV, jax.vmap(jax.random.uniform)(keys_B))
        return jnp.where(knobs.top_k == 1, greedy_B, drawn_B)

    return jax.lax.cond((knobs.top_k == 1).all(), lambda: greedy_B, sampled)


def _bound_of_few(p_BV: jax.Array, knobs: Knobs) -> jax.Array:
    """The probability of the least likely token that top_k and top_p keep, [B]; from 1 <= top_k."""
    candidates = min(_CANDIDATES, p_BV.shape[1])
    p_BC = jax.lax.top_k(p_BV, candidates)[0]  # a place in the row is now a rank
    p_BC = jnp.where(jnp.arange(candidates)[None, :] < knobs.top_k[:, None], p_BC, 0)
    likelier_BC = jnp.cumsum(p_BC, axis=1) - p_BC  # what the candidates before hold together
    held_B1 = knobs.top_p[:, None] * p_BC.sum(axis=1, keepdims=True)
    return jnp.where((likelier_BC < held_B1) & (p_BC > 0), p_BC, jnp.inf).min(axis=1)


def _bound_of_all(p_BV: jax.Array, knobs: Knobs) -> jax.Array:
    """The same from any top_k, without sorting: both bounds are found by bisection."""
    most_B = p_BV.max(axis=1)

    def least(holds: Callable[[jax.Array], jax.Array], wanted_B: jax.Array) -> jax.Array:
        """The least number from 0 on for which `holds`; 0 where none is wanted."""
        # Numbers that are not negative are in the order of their bits, which are halved.
        low_B, high_B = (
            jnp.full_like(knobs.top_k, -1),
            jax.lax.bitcast_convert_type(most_B, jnp.int32),
        )

        def halve(_: int, bits: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low_B, high_B = bits
            middle_B = jnp.maximum(low_B + (high_B - low_B) // 2, 0)
            ok_B = holds(jax.lax.bitcast_convert_type(middle_B, jnp.float32)[:, None])
            return jnp.where(ok_B, low_B, middle_B), jnp.where(ok_B, middle_B, high_B)

        turns = jnp.where(wanted_B.any(), 31, 0)
        _, high_B = jax.lax.fori_loop(0, turns, halve, (low_B, high_B))
        return jnp.where(wanted_B, jax.lax.bitcast_convert_type(high_B, jnp.float32), 0)

    bound_B = least(lambda t_B1: (p_BV > t_B1).sum(axis=1) < knobs.top_k, knobs.top_k > 0)
    p_BV = jnp.where(p_BV >= bound_B[:, None], p_BV, 0)
    held_B = knobs.top_p * p_BV.sum(axis=1)
    likelier_B = least(
        lambda t_B1: jnp.where(p_BV > t_B1, p_BV, 0).sum(axis=1) < held_B, knobs.top_p < 1
    )
    return jnp.maximum(bound_B, likelier_B)


def _pick(weights_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The place at which a share `uniform_B` of a row's weights has been passed, int32 [B].

    By the sums of parts of the row first, then within one part: a running sum of the whole row
    costs more than all else here.
    """
    batch, vocab_size = weights_BV.shape
    part = math.isqrt(vocab_size - 1) + 1
    weights_BNP = jnp.pad(weights_BV, ((0, 0), (0, -vocab_size % part))).reshape(batch, -1, part)
    rows_B = jnp.arange(batch)

    def place(weights_BX: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        sums_BX = jnp.cumsum(weights_BX, axis=1)
        # Below the sum of all, and at a place with a weight, whatever was rounded: a GPU adds up in
        # another order for each place, so that a sum may grow where there is nothing to add.
        target_B = jnp.clip(target_B, 0, sums_BX.max(axis=1) * (1 - 2.0**-20))
        at_B = jnp.argmax((sums_BX > target_B[:, None]) & (weights_BX > 0), axis=1)
        return at_B, target_B - (sums_BX - weights_BX)[rows_B, at_B]

    parts_BN = weights_BNP.sum(axis=2)
    part_B, rest_B = place(parts_BN, uniform_B * parts_BN.sum(axis=1))
    at_B, _ = place(weights_BNP[rows_B, part_B], rest_B)
    return (part_B * part + at_B).astype(jnp.int32)
