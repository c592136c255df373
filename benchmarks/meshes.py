"""One run on three meshes of eight devices: the loss curves, which must lie on one another.

The work: the demo's tales, 60 steps of the default model in float32, by `tsuzuri train` itself, on
eight virtual devices of this CPU. Prints each mesh's largest difference of a logged loss from that
of one device, and draws docs/images/meshes.png where --out says so.

    python benchmarks/meshes.py --out docs/images/meshes.png
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MESHES = {
    "1 device": (1, []),
    "data 8": (8, []),
    "fsdp 8": (8, ["--mesh.fsdp", "8"]),
    "data 2 x fsdp 2 x tensor 2": (8, ["--mesh.fsdp", "2", "--mesh.tensor", "2"]),
}
RUN = "--steps 60 --batch-size 8 --sequence-length 64 --log-every 1 --steps-per-call 1"
RUN += " --eval-every 60 --save-every 60 --sample-every 0 --tokenizer.vocab-size 1024"


def losses(folder: Path, name: str, devices: int, flags: list[str]) -> list[float]:
    """The loss of every step, as metrics.jsonl has it."""
    run = folder / name.replace(" ", "-")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    tsuzuri = [sys.executable, "-m", "tsuzuri.cli"]
    command = [*tsuzuri, "train", str(folder / "tales"), "--run", str(run), *RUN.split(), *flags]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="the picture to draw")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tales = ["prepare", "tales", "--count", "2000", "--out", str(folder / "tales")]
        subprocess.run([sys.executable, "-m", "tsuzuri.cli", *tales], check=True)
        curves = {mesh: losses(folder, mesh, *how) for mesh, how in MESHES.items()}
    one = curves["1 device"]
    for mesh, curve in curves.items():
        apart = max(abs(a - b) for a, b in zip(one, curve, strict=True))
        print(f"{mesh:30} {curve[0]:.4f} ... {curve[-1]:.4f}   largest difference {apart:.1e}")
    if args.out:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for width, (mesh, curve) in zip((7, 5, 3, 1), curves.items(), strict=True):
            axes.plot(range(1, len(curve) + 1), curve, linewidth=width, label=mesh)
        axes.set(xlabel="step", ylabel="training loss, nats a token")
        axes.legend()
        figure.savefig(args.out, dpi=150)


if __name__ == "__main__":
    main()
