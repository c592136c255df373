"""The mesh, and the table from a parameter's path to how it is split over the mesh."""

import math
import re
from collections.abc import Callable
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
ROWS = ("data", "fsdp")  # the axes that share the rows of a batch
BATCH = P(ROWS)


def make_mesh(cfg: MeshConfig, batch_size: int, accumulate: int = 1) -> Mesh:
    """All devices as a data x fsdp x tensor mesh; one device is a 1 x 1 x 1 mesh.

    Raises:
      UserError: the devices do not make up the mesh, or do not divide the batch.
    """
    whole = whole_mesh(cfg, jax.device_count())
    check_batch(whole, batch_size, accumulate)
    return jax.make_mesh((whole.data, whole.fsdp, whole.tensor), AXES, axis_types=_AUTO)


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices of the mesh are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


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


def check_heads(tensor: int, heads: int) -> None:
    """Whether `tensor` devices can share the key and value heads.

    Raises:
      UserError: they cannot.
    """
    if heads % tensor:
        divide = ", ".join(str(n) for n in range(1, tensor) if heads % n == 0)
        raise UserError(
            f"mesh.tensor {tensor} does not divide the {heads} key and value heads; these would: "
            f"{divide}"
        )


def one_device() -> Mesh:
    """A 1 x 1 x 1 mesh of the first device, for generation and evaluation."""
    return jax.make_mesh((1, 1, 1), AXES, axis_types=_AUTO, devices=jax.local_devices()[:1])


def path_of(keys: tuple[Any, ...]) -> str:
    """A pytree key path as text: blocks/0/attention/query/kernel."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def spec_of(path: str) -> P:
    """How the table splits a parameter.

    Raises:
      KeyError: no pattern matches the path; a new parameter needs a row.
    """
    spec = next((spec for pattern, spec in TABLE if re.search(pattern, path)), None)
    if spec is None:
        raise KeyError(f"{path}: no row of sharding.TABLE matches this parameter")
    return spec


def shardings(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """The NamedSharding of every array (or shape) in `tree`, by the table.

    Raises:
      KeyError: no pattern matches a path; a new parameter needs a row.
      UserError: the mesh does not divide a dimension.
    """

    def one(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = path_of(keys)
        spec = spec_of(path)
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


def by_rows(mesh: Mesh, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
    """`function` on each device for its own rows of the batch; `tensor` is left to the compiler.

    Inside, what is split over fsdp is gathered by name, and what devices share is summed by name.
    Left to itself the compiler sums whole gradients on every device (libtpu 0.0.42, for v5e:16x16).
    """
    if not parted(mesh):  # with nothing to part, XLA's partitioner cannot take it
        return function
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=set(ROWS),
        check_vma=False,
    )


def parted(mesh: Mesh) -> bool:
    """Whether several devices share the rows of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"] > 1


def by_rows_specs(params: Any) -> Any:
    """How parameters enter and leave `by_rows`: in their parts of fsdp."""

    def one(keys: tuple[Any, ...], _: Any) -> P:
        return P(*("fsdp" if axis == "fsdp" else None for axis in spec_of(path_of(keys))))

    return jax.tree_util.tree_map_with_path(one, params)


def gathered(mesh: Mesh, params: Any) -> Any:
    """The weights whole over fsdp, within `by_rows`; the gradient of this is a reduce-scatter.

    Args:
      params: a nested dict with the model's own names, all of it or a part.
    """

    def one(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        path = path_of(keys)
        spec = tuple(spec_of(path))
        if "fsdp" not in spec:
            return leaf
        return _gather(mesh, leaf, spec.index("fsdp"), "embed" in path or "head" in path)

    return jax.tree_util.tree_map_with_path(one, params)


@partial(jax.custom_vjp, nondiff_argnums=(0, 2, 3))
def _gather(mesh: Mesh, part: jax.Array, axis: int, has_vocabulary: bool) -> jax.Array:
    return jax.lax.all_gather(part, "fsdp", axis=axis, tiled=True)


def _scatter(
    mesh: Mesh, axis: int, has_vocabulary: bool, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    """The devices' gradients summed, each device's own part of it.

    In another shape TPUs' compiler (libtpu 0.0.42) has each device sum all of it: it parts columns
    rarely, and rows only where they fill its tiles, which those of a vocabulary do not.
    """
    rows = jnp.swapaxes(gradient, 0, axis)
    shape = rows.shape[0] // mesh.shape["fsdp"], rows.shape[1]
    if has_vocabulary and math.prod(shape) % 128 == 0:
        rows = rows.reshape(-1, 128)
    if on_cpu(mesh):  # XLA for CPUs dies of this sum in bfloat16
        rows = rows.astype(jnp.float32)
    rows = jax.lax.psum_scatter(rows, "fsdp", tiled=True).astype(gradient.dtype)
    return (jnp.swapaxes(rows.reshape(shape), 0, axis),)


_gather.defvjp(lambda mesh, part, axis, has: (_gather(mesh, part, axis, has), None), _scatter)


def summed(mesh: Mesh, values: Any, specs: Any) -> Any:
    """Each device's part of a sum, summed; of what is split over fsdp that is done already."""
    if not parted(mesh):
        return values
    return jax.tree.map(
        lambda v, spec: jax.lax.psum(v, tuple(a for a in ROWS if a not in spec)), values, specs
    )


def own_rows(mesh: Mesh, count: int) -> jax.Array:
    """Within `by_rows`: which rows of the batch this device's `count` are."""
    first = jax.lax.axis_index(ROWS) * count if parted(mesh) else 0
    return first + jnp.arange(count)
