"""Accelerators: how much they hold and how fast they are, from the makers' data sheets."""

from dataclasses import dataclass


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


DEVICES = {
    "a100-40gb": Device(40e9, 312e12, ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")),
    "a100-80gb": Device(80e9, 312e12, ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe")),
    "h100": Device(80e9, 989e12, ("NVIDIA H100 80GB HBM3",)),
    "h200": Device(141e9, 989e12, ("NVIDIA H200",)),
    "rtx-3090": Device(24e9, 71e12, ("NVIDIA GeForce RTX 3090",)),
    "rtx-4090": Device(24e9, 165e12, ("NVIDIA GeForce RTX 4090",)),
    "t4": Device(16e9, 65e12, ("Tesla T4",)),  # of float16: it has no bfloat16
    "tpu-v4": Device(32e9, 275e12, ("TPU v4",), usable=1.0),
    "tpu-v5e": Device(16e9, 197e12, ("TPU v5 lite",), usable=1.0),
    "tpu-v5p": Device(95e9, 459e12, ("TPU v5", "TPU v5p"), usable=1.0),
    "tpu-v6e": Device(32e9, 918e12, ("TPU v6 lite",), usable=1.0),
}


def peak(jax_kind: str) -> float | None:
    """The FLOP/s of a device by JAX's name for it; None where it is not in the table."""
    return next((device.peak for device in DEVICES.values() if jax_kind in device.jax_kinds), None)
