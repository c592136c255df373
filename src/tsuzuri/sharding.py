"""The mesh, and the table from a parameter's path to how it is split over the mesh."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tsuzuri.config import MeshConfig
from tsuzuri.errors import UserError

AXES = ("data", "fsdp", "tensor")
_AUTO = (AxisType.Auto,) * 3  # the compiler splits the activations to fit the parameters

# The first pattern found in a parameter's path names its split. The optimizer's moments have their
# parameter's path at the end of their own, so the one table serves both. Matrices that read the
# residual stream are split by columns over `tensor`, those that write it by rows (Megatron-LM,
# Shoeybi et al. 2019), and the other dimension over `fsdp` (ZeRO-3, Rajbhandari et al. 2020).
TABLE: tuple[tuple[str, P], ...] = (
    (r"(^|/)v(_row|_col)?/", P()),  # Adafactor's squares: small, and not of the parameter's shape
    (r"token_embed/embedding$", P("tensor", "fsdp")),
    (r"position_embed/embedding$", P(None, "fsdp")),
    (r"attention/(query|key|value)/kernel$", P("fsdp", "tensor")),
    (r"attention/(query|key|value)/bias$", P("tensor")),
    (r"attention/out/kernel$", P("tensor", "fsdp")),
    (r"mlp/(up|gate)/kernel$", P("fsdp", "tensor")),
    (r"mlp/(up|gate)/bias$", P("tensor")),
    (r"mlp/down/kernel$", P("tensor", "fsdp")),
    (r"head/kernel$", P("fsdp", "tensor")),
    (r"head/bias$", P("tensor")),
    (r"(attention/out|mlp/down)/bias$", P()),
    (r"norm/(scale|bias)$", P()),
    (r"(^|/)(step|count|ns_coeffs)$", P()),
)
BATCH = P(("data", "fsdp"))  # a batch's rows


def make_mesh(cfg: MeshConfig, batch_size: int, accumulate: int = 1) -> Mesh:
    """All devices as a data x fsdp x tensor mesh; one device is a 1 x 1 x 1 mesh.

    Raises:
      UserError: the devices do not make up the mesh, or do not divide the batch.
    """
    whole = whole_mesh(cfg, jax.device_count())
    check_batch(whole, batch_size, accumulate)
    return jax.make_mesh((whole.data, whole.fsdp, whole.tensor), AXES, axis_types=_AUTO)


def whole_mesh(cfg: MeshConfig, devices: int) -> MeshConfig:
    """The mesh with the devices that are left over as `data`.

    Raises:
      UserError: the devices do not make up the mesh.
    """
    data = cfg.data or max(devices // (cfg.fsdp * cfg.tensor), 1)
    if data * cfg.fsdp * cfg.tensor != devices:
        raise UserError(
            f"mesh data {data} x fsdp {cfg.fsdp} x tensor {cfg.tensor} makes "
            f"{data * cfg.fsdp * cfg.tensor} devices, but there are {devices}"
        )
    return MeshConfig(data, cfg.fsdp, cfg.tensor)


def check_batch(mesh: MeshConfig, batch_size: int, accumulate: int = 1) -> None:
    """Whether each device gets equally many rows.

    Raises:
      UserError: it does not.
    """
    rows = mesh.data * mesh.fsdp
    if batch_size % (rows * accumulate):
        times = f", {accumulate} times (compute.accumulate)" if accumulate > 1 else ""
        enough = -(-batch_size // (rows * accumulate)) * rows * accumulate
        raise UserError(
            f"batch_size {batch_size} is not divisible by the {rows} devices that share the batch "
            f"(mesh.data x mesh.fsdp){times}; {enough} would be"
        )


def one_device() -> Mesh:
    """A 1 x 1 x 1 mesh of the first device, for generation and evaluation."""
    return jax.make_mesh((1, 1, 1), AXES, axis_types=_AUTO, devices=jax.local_devices()[:1])


def path_of(keys: tuple[Any, ...]) -> str:
    """A pytree key path as text: blocks/0/attention/query/kernel."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def shardings(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """The NamedSharding of every array (or shape) in `tree`, by the table.

    Raises:
      KeyError: no pattern matches a path; a new parameter needs a row.
      UserError: the mesh does not divide a dimension.
    """

    def one(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = path_of(keys)
        spec = next((spec for pattern, spec in TABLE if re.search(pattern, path)), None)
        if spec is None:
            raise KeyError(f"{path}: no row of sharding.TABLE matches this parameter")
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                divide = ", ".join(str(n) for n in range(1, mesh.shape[axis]) if size % n == 0)
                raise UserError(
                    f"mesh.{axis} {mesh.shape[axis]} does not divide the {size} of {path}; "
                    f"these would: {divide}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, tree)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Which rows of a batch the devices of this host hold, ascending."""
    held = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held.values()]))


def gathered(mesh: Mesh, params: Any) -> Any:
    """The weights whole over fsdp, as long as they work; their gradient comes back split again.

    Said both ways: else the compiler gathers the activations of the whole batch instead, which are
    much larger.

    Args:
      params: a nested dict with the model's own names, all of it or a part.
    """
    split = shardings(mesh, params)
    whole = jax.tree.map(
        lambda s: NamedSharding(mesh, P(*(None if axis == "fsdp" else axis for axis in s.spec))),
        split,
    )

    @jax.custom_vjp
    def gather(params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, whole)

    def backward(_: None, gradient: Any) -> tuple[Any]:
        return (jax.lax.with_sharding_constraint(gradient, split),)

    gather.defvjp(lambda params: (gather(params), None), backward)
    return gather(params)


def lookup(mesh: Mesh, table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """Rows of an embedding table that is split over fsdp [B, T, D].

    Written out, since the compiler would sum the whole table's gradient on every device; the
    gradient of this gathering is a reduce-scatter.
    """

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(None, "fsdp"), BATCH),
        out_specs=BATCH,
        axis_names={"data", "fsdp"},
        check_vma=False,
    )
    def rows(table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
        whole_VD = jax.lax.all_gather(table_VD, "fsdp", axis=1, tiled=True)
        return jnp.take(whole_VD, ids_BT, axis=0)

    # With nothing to part, XLA's partitioner cannot take it.
    parted = mesh.shape["data"] * mesh.shape["fsdp"] > 1
    return rows(table_VD, ids_BT) if parted else jnp.take(table_VD, ids_BT, axis=0)


def on_each_device(mesh: Mesh, loss: Any) -> Any:
    """losses.Loss over each device's own rows, and only then the sum over the devices.

    So a loss in parts sums the gradient of the head once, not once a part. `tensor` is left to the
    compiler.
    """
    axes = ("data", "fsdp")

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), BATCH, BATCH, BATCH),
        out_specs=P(),
        axis_names=set(axes),
        check_vma=False,  # else it sums the gradient after each part
    )
    def summed(*values: Any) -> Any:
        return jax.tree.map(lambda part: jax.lax.psum(part, axes), loss(*values))

    return summed if mesh.shape["data"] * mesh.shape["fsdp"] > 1 else loss
