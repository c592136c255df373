"""Accelerators: those of this machine, and what the makers' data sheets say of each."""

import os
from dataclasses import dataclass
from typing import Any

from tsuzuri.errors import UserError


@dataclass(frozen=True)
class Device:
    """One chip."""

    memory: float  # bytes
    peak: (
        float | None
    )  # FLOP/s of the matrix units: dense, bfloat16 in, float32 sums; None: unknown
    jax_kinds: tuple[str, ...] = ()  # what JAX calls it
    usable: float = 0.75  # the share of its memory that JAX takes: of a GPU three quarters, unless
    # the environment says XLA_PYTHON_CLIENT_MEM_FRACTION
    hbm: float | None = None  # bytes/s to and from its memory
    link: float | None = None  # bytes/s over one link to a neighbour, in each direction
    ring: int = 0  # a side of the grid of chips closes to a ring if this divides its length


def _tpu(
    memory: float, peak: float, jax_kinds: tuple[str, ...], hbm: float, link: float, ring: int
) -> Device:
    return Device(memory, peak, jax_kinds, usable=1.0, hbm=hbm, link=link, ring=ring)


DEVICES = {
    "a100-40gb": Device(40e9, 312e12, ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")),
    "a100-80gb": Device(80e9, 312e12, ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe")),
    "h100": Device(80e9, 989e12, ("NVIDIA H100 80GB HBM3",)),
    "h200": Device(141e9, 989e12, ("NVIDIA H200",)),
    "rtx-3090": Device(24e9, 71e12, ("NVIDIA GeForce RTX 3090",)),
    "rtx-4090": Device(24e9, 165e12, ("NVIDIA GeForce RTX 4090",)),
    "t4": Device(16e9, 65e12, ("Tesla T4",)),  # of float16: it has no bfloat16
    # TPUs: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e. A chip has a link to each neighbour in
    # a grid of 2 dimensions (v5e, v6e: 4 links) or 3 (v4, v5p: 6). The pages' "bidirectional ICI
    # bandwidth per chip" (v5e 400, v5p 1200, v6e 800 GB/s) is of all of them, in both directions;
    # v4's is from Jouppi et al. 2023 (arXiv:2304.01433), table 4. Grids of whole cubes of 4 x 4 x 4
    # close to a torus; v5e and v6e close a side of 16 only (jax-ml.github.io/scaling-book/tpus).
    "tpu-v4": _tpu(32e9, 275e12, ("TPU v4",), 1228e9, 50e9, 4),
    "tpu-v5e": _tpu(16e9, 197e12, ("TPU v5 lite",), 819e9, 50e9, 16),
    "tpu-v5p": _tpu(95e9, 459e12, ("TPU v5", "TPU v5p"), 2765e9, 100e9, 4),
    "tpu-v6e": _tpu(32e9, 918e12, ("TPU v6 lite",), 1638e9, 100e9, 16),
}


def peak(jax_kind: str) -> float | None:
    """The FLOP/s of a device by JAX's name for it; None where it is not in the table."""
    return next((device.peak for device in DEVICES.values() if jax_kind in device.jax_kinds), None)


def local() -> list[Any]:
    """The devices of this machine, as JAX finds them.

    Raises:
      UserError: JAX_PLATFORMS asks for a kind that JAX cannot use here.
    """
    import jax

    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts, wordless, that CUDA is there
        if not (asked := os.environ.get("JAX_PLATFORMS")):
            raise
        raise UserError(
            f"JAX has no {asked} here: unset JAX_PLATFORMS, or set it to cpu"
        ) from error
