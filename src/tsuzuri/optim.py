"""Optimizers and schedules by name, joined into one optax chain."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from tsuzuri.config import Config, OptimConfig


def cosine(cfg: Config) -> optax.Schedule:
    """Linear warmup, then half a cosine to final_ratio x the peak (Loshchilov, Hutter 2017)."""
    warmup = warmup_steps(cfg)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else cfg.learning_rate,
        peak_value=cfg.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(cfg.steps, warmup + 1),
        end_value=cfg.learning_rate * cfg.optim.final_ratio,
    )


def constant(cfg: Config) -> optax.Schedule:
    """Linear warmup, then the peak for ever."""
    warmup = warmup_steps(cfg)
    start = 0.0 if warmup else cfg.learning_rate  # optax would stay at the start for ever
    return optax.warmup_constant_schedule(start, cfg.learning_rate, warmup)


def rsqrt(cfg: Config) -> optax.Schedule:
    """Linear warmup, then the peak times sqrt(warmup / step) (Vaswani et al. 2017; Flax's lm1b)."""
    warmup = warmup_steps(cfg)
    shift = max(warmup, 1)

    def falling(since: Any) -> jax.Array:
        since = jnp.maximum(since, 0)  # optax asks during the warmup too, and takes no notice
        return cfg.learning_rate * jnp.sqrt(shift / (shift + since))

    return optax.join_schedules([constant(cfg), falling], [warmup])


def wsd(cfg: Config) -> optax.Schedule:
    """Linear warmup, the peak, then a line to final_ratio x the peak (Hu et al. 2024).

    With decay_share 1 and no warmup it is the plain line downwards.
    """
    peak, warmup = cfg.learning_rate, warmup_steps(cfg)
    falls_at = max(cfg.steps - round(cfg.optim.decay_share * cfg.steps), warmup)
    down = optax.linear_schedule(peak, peak * cfg.optim.final_ratio, max(cfg.steps - falls_at, 1))
    return optax.join_schedules([constant(cfg), down], [falls_at])


def adamw(schedule: optax.Schedule, cfg: OptimConfig) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019)."""
    return optax.adamw(
        schedule, cfg.b1, cfg.b2, cfg.epsilon, weight_decay=cfg.weight_decay, mask=_mask(cfg)
    )


def muon(schedule: optax.Schedule, cfg: OptimConfig) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for the matrices of the blocks, AdamW for all else.

    The update of a matrix is its momentum made orthogonal, scaled to the size of an AdamW update
    (Liu et al. 2025, arXiv:2502.16982), so that both share one learning rate.
    """

    def in_blocks(params: Any) -> Any:
        def one(keys: tuple[Any, ...], leaf: Any) -> contrib.MuonDimensionNumbers | None:
            is_matrix = leaf.ndim == 2 and "blocks" in jax.tree_util.keystr(keys)
            return contrib.MuonDimensionNumbers() if is_matrix else None

        return jax.tree_util.tree_map_with_path(one, params)

    return contrib.muon(
        schedule,
        weight_decay=cfg.weight_decay,
        muon_weight_dimension_numbers=in_blocks,
        consistent_rms=0.2,
        adam_b1=cfg.b1,
        adam_b2=cfg.b2,
    )


def lion(schedule: optax.Schedule, cfg: OptimConfig) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023): the sign of the momentum, half of AdamW's memory.

    It wants 3 to 10 times less learning rate than AdamW, and as many times more weight decay.
    """
    return optax.lion(schedule, cfg.b1, cfg.b2, weight_decay=cfg.weight_decay, mask=_mask(cfg))


def adafactor(schedule: optax.Schedule, cfg: OptimConfig) -> optax.GradientTransformation:
    """Adafactor (Shazeer, Stern 2018): a matrix's squares kept as one row and one column.

    Without momentum, and with AdamW's own learning rate and weight decay instead of steps relative
    to the parameters: what is left is how little memory it needs.
    """
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(cfg.weight_decay, _mask(cfg)),
        optax.scale_by_learning_rate(schedule),
    )


SCHEDULES = {"cosine": cosine, "constant": constant, "rsqrt": rsqrt, "wsd": wsd}
OPTIMIZERS = {"adamw": adamw, "muon": muon, "lion": lion, "adafactor": adafactor}


def make_optimizer(cfg: Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Clipping, the optimizer and its schedule as one chain; and the schedule, to be logged."""
    schedule = SCHEDULES[cfg.optim.schedule](cfg)
    chain = [OPTIMIZERS[cfg.optim.optimizer](schedule, cfg.optim)]
    if cfg.optim.clip_norm:
        chain.insert(0, optax.clip_by_global_norm(cfg.optim.clip_norm))
    return optax.chain(*chain), schedule


def warmup_steps(cfg: Config) -> int:
    """The warmup asked for, but at most a tenth of the run."""
    return min(cfg.optim.warmup_steps, cfg.steps // 10)


def decayed(params: Any) -> Any:
    """True for the matrices, which weight decay shrinks; False for biases, norms and positions."""

    def one(keys: tuple[Any, ...], leaf: Any) -> bool:
        return leaf.ndim >= 2 and "position_embed" not in jax.tree_util.keystr(keys)

    return jax.tree_util.tree_map_with_path(one, params)


def _mask(cfg: OptimConfig) -> Any:
    return None if cfg.decay_all else decayed
