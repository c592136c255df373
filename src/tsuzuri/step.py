"""The training step: the state, the gradient of a batch, the update; and a batch on the devices."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tsuzuri.attention import choose
from tsuzuri.config import Config, ModelConfig
from tsuzuri.data import Batch, Batches
from tsuzuri.losses import Loss, in_parts, objective
from tsuzuri.model import Decoder, Execution, head_logits
from tsuzuri.optim import make_optimizer
from tsuzuri.sharding import (
    BATCH,
    by_rows,
    by_rows_specs,
    check_heads,
    gathered,
    local_rows,
    on_cpu,
    own_rows,
    shardings,
    summed,
)


class TrainState(NamedTuple):
    """All that a checkpoint holds."""

    step: jax.Array  # int32 scalar: the steps done, which is the position in the data too
    params: Any
    opt_state: Any


def make_training(
    cfg: Config, model_cfg: ModelConfig, mesh: Mesh
) -> tuple[nnx.GraphDef[Decoder], Callable[[jax.Array], TrainState], Callable[..., Any]]:
    """The model's structure, the jitted initialization, and the jitted steps.

    Returns:
      graphdef: `nnx.merge(graphdef, params)` is the Decoder.
      init: key -> TrainState, made on the devices as the mesh splits it; no host holds it whole.
      train_steps: (TrainState, a Batch of N steps, each array [N, A, B/A, L]) ->
        (TrainState, {name: [N]}); the given state's memory is reused. "loss" is the cross-entropy,
        whatever is minimized. A step whose loss or gradient is not finite leaves parameters and
        optimizer as they were, and says so by `sound`.
    """
    optimizer, schedule = make_optimizer(cfg)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(model_cfg, rngs=nnx.Rngs(0))))

    def init(key: jax.Array) -> TrainState:
        _, params = nnx.split(Decoder(model_cfg, rngs=nnx.Rngs(key)))
        params = nnx.to_pure_dict(params)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    split = shardings(mesh, jax.eval_shape(init, jax.random.key(0)))
    how = execution(cfg, model_cfg, mesh)
    loss_of = loss_function(cfg, model_cfg, mesh)

    def gradient_of_rows(params: Any, b: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        """The summed loss and its gradient; b is this device's rows, the sums are of all rows."""

        def gradient_of(part: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
            def wanted_of(params: Any) -> tuple[jax.Array, jax.Array]:
                model = nnx.merge(graphdef, params)
                x_BLD, _ = model.hidden(
                    part.tokens_BL, part.positions_BL, None, key, part.segments_BL, how
                )
                return loss_of(model.head_weights(how), x_BLD, part.targets_BL, part.weights_BL)

            (_, loss), gradient = jax.value_and_grad(wanted_of, has_aux=True)(params)
            return loss, gradient

        def add(sums: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradient_of(*part)), None

        parts = cfg.compute.accumulate
        if parts == 1:
            sums = gradient_of(jax.tree.map(lambda a: a[0], b), key)
        else:
            zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
            sums, _ = jax.lax.scan(add, zeros, (b, jax.random.split(key, parts)))
        return summed(mesh, sums, (P(), by_rows_specs(params)))

    def train_step(state: TrainState, b: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(cfg.seed), state.step)
        specs = by_rows_specs(state.params)
        rows = jax.tree.map(lambda _: P(None, *BATCH), b)
        of_rows = by_rows(mesh, gradient_of_rows, (specs, rows, P()), (P(), specs))
        sums = of_rows(state.params, b, key)
        loss, gradient = jax.tree.map(lambda sum: sum / jnp.sum(b.weights_BL), sums)

        norm = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        sound = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = (optax.apply_updates(state.params, updates), opt_state)
        new = jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, state[1:])
        metrics = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": schedule(state.step),
            "sound": sound,
        }
        return TrainState(state.step + 1, *new), metrics

    def train_steps(state: TrainState, batches: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        return jax.lax.scan(train_step, state, batches)

    everywhere = NamedSharding(mesh, P())  # each host reads the metrics
    jitted = jax.jit(train_steps, donate_argnums=0, out_shardings=(split, everywhere))
    return graphdef, jax.jit(init, out_shardings=split), jitted


def execution(cfg: Config, model_cfg: ModelConfig, mesh: Mesh) -> Execution:
    """How the Decoder is computed on this mesh.

    Raises:
      UserError: the attention asked for is not to be had here; the mesh does not divide the heads.
    """
    check_heads(mesh.shape["tensor"], model_cfg.num_kv_heads)
    how = Execution(
        attention=choose(cfg.compute, model_cfg, cfg.sequence_length, mesh),
        remat=cfg.compute.remat,
        scan_layers=cfg.compute.scan_layers,
    )
    gather = partial(gathered, mesh) if mesh.shape["fsdp"] > 1 else None
    return how._replace(gather=gather, rows=partial(own_rows, mesh))


def loss_function(cfg: Config, model_cfg: ModelConfig, mesh: Mesh) -> Loss:
    """The objective from the residual stream on, in as many parts as `compute.logits_mb` asks."""
    extras = cfg.optim.label_smoothing, cfg.optim.z_loss

    def loss(head: Any, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> Any:
        return objective(head_logits(model_cfg, head, x_BTD), targets_BT, weights_BT, *extras)

    return in_parts(loss, loss_parts(cfg, model_cfg.outputs, mesh.size, on_cpu(mesh)))


def loss_parts(cfg: Config, outputs: int, devices: int, on_cpu: bool) -> int:
    """The fewest parts of a sequence whose logits are at most `compute.logits_mb` a device."""
    tokens = cfg.batch_size // cfg.compute.accumulate * cfg.sequence_length
    size = 4 * tokens * outputs / devices
    enough = size / ((cfg.compute.logits_mb or (16 if on_cpu else 1024)) * 1e6)
    divisors = (n for n in range(1, cfg.sequence_length + 1) if cfg.sequence_length % n == 0)
    return next((n for n in divisors if n >= enough), cfg.sequence_length)


def stack(batches: Batches, first: int, last: int, parts: int, mesh: Mesh) -> Batch:
    """The batches of steps first to last - 1 as one, on devices: each array [N, A, B/A, L, ...].

    Each host reads its own rows only. A is `compute.accumulate`.
    """
    rows_b = local_rows(mesh, batches.batch_size // parts)
    rows = np.concatenate([rows_b + part * (batches.batch_size // parts) for part in range(parts)])
    steps = [batches.batch(step, rows) for step in range(first, last)]
    split = NamedSharding(mesh, P(None, None, *BATCH))

    def one(*arrays: np.ndarray) -> jax.Array:
        rest = arrays[0].shape[1:]
        local = np.stack(arrays).reshape(len(steps), parts, len(rows_b), *rest)
        shape = len(steps), parts, batches.batch_size // parts, *rest
        return jax.make_array_from_process_local_data(split, local, shape)

    return jax.tree.map(one, *steps)
