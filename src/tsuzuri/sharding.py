"""The mesh, and the table from a parameter's path to how it is split over the mesh."""

import re
from typing import Any

import jax
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


def make_mesh(cfg: MeshConfig, batch_size: int) -> Mesh:
    """All devices as a data x fsdp x tensor mesh; one device is a 1 x 1 x 1 mesh.

    Raises:
      UserError: the devices do not make up the mesh, or do not divide the batch.
    """
    devices = jax.device_count()
    data = cfg.data or max(devices // (cfg.fsdp * cfg.tensor), 1)
    if data * cfg.fsdp * cfg.tensor != devices:
        raise UserError(
            f"mesh data {data} x fsdp {cfg.fsdp} x tensor {cfg.tensor} makes "
            f"{data * cfg.fsdp * cfg.tensor} devices, but there are {devices}"
        )
    if batch_size % (data * cfg.fsdp):
        raise UserError(
            f"batch_size {batch_size} is not divisible by the {data * cfg.fsdp} devices that share "
            "the batch (mesh.data x mesh.fsdp)"
        )
    return jax.make_mesh((data, cfg.fsdp, cfg.tensor), AXES, axis_types=_AUTO)


def one_device() -> Mesh:
    """A 1 x 1 x 1 mesh of the first device, for generation and evaluation."""
    return jax.make_mesh((1, 1, 1), AXES, axis_types=_AUTO, devices=jax.devices()[:1])


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
                raise UserError(
                    f"mesh.{axis} {mesh.shape[axis]} does not divide the {size} of {path}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, tree)
