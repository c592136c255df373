"""Export and import: time and memory beside a plain write and read of the same bytes.

The work: a model of about 100 million parameters (size base, vocabulary 16,384) out to a Hugging
Face folder and to a gguf in f32, and the folder in again. The peer: its numbers written to one
file, and synced to the disk as every export is; or read from one.

    python benchmarks/interop.py [--rounds 5]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _paired import alternate, median, peak_mib, ratio

PROGRAMS = ("plain", "export hf", "export gguf", "import hf")


def model(name: str) -> tuple[Any, Any, Any]:
    """A resolved ModelConfig, random parameters, a tokenizer that fits."""
    import jax
    import numpy as np
    from flax import nnx

    from tsuzuri.model import Decoder
    from tsuzuri.presets import preset
    from tsuzuri.tokenizer import ByteTokenizer

    cfg = preset(name, "base", sequence_length=1024).resolved_model(16_384)
    shapes = nnx.to_pure_dict(
        nnx.state(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0)))),
    )
    numbers = np.random.default_rng(0)
    params = jax.tree.map(lambda s: numbers.standard_normal(s.shape, np.float32), shapes)
    return cfg, params, ByteTokenizer()


def measure(program: str, name: str, folder: str) -> None:
    import jax
    import numpy as np
    import safetensors.numpy  # noqa: F401 (imports are not what is compared)

    from tsuzuri.interop import gguf, hf

    out = Path(folder) / program.replace(" ", "-")
    cfg, params, tok = model(name)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**20
    if program == "import hf":
        hf.export(cfg, params, tok, out, {}, lambda message: None)
        del params
    before = peak_mib()
    start = time.perf_counter()
    match program:
        case "plain":
            with out.open("wb") as file:
                for leaf in jax.tree.leaves(params):
                    file.write(leaf.data)
                file.flush()
                os.fsync(file.fileno())
        case "export hf":
            hf.export(cfg, params, tok, out, {}, lambda message: None)
        case "export gguf":
            gguf.export(cfg, params, tok, out, "f32", {}, lambda message: None)
        case "import hf":
            hf.read(out, lambda message: None)
    seconds = time.perf_counter() - start
    reading = 0.0
    if program == "plain":
        start = time.perf_counter()
        np.fromfile(out, np.float32)
        reading = time.perf_counter() - start
    more = (peak_mib() - before) / size
    print(json.dumps({"s": seconds, "reading": reading, "more": more, "MiB": size}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("PROGRAM", "PRESET"), help="one run")
    args = parser.parse_args()
    if args.measure:
        with tempfile.TemporaryDirectory() as folder:
            measure(*args.measure, folder)
        return
    for name in ("llama", "gpt2"):
        command = [sys.executable, __file__, "--measure"]
        results = alternate({p: [*command, p, name] for p in PROGRAMS}, args.rounds)
        plain = results["plain"]
        print(
            f"\n{name}, {median(plain, 'MiB'):.0f} MiB{'':8}s   of plain   memory added / model's"
        )
        print(f"  plain write     {median(plain, 's'):8.2f}")
        print(f"  plain read      {median(plain, 'reading'):8.2f}")
        for program in PROGRAMS[1:]:
            found = results[program]
            peer = [{"s": r["reading"] if program == "import hf" else r["s"]} for r in plain]
            figures = f"{median(found, 's'):8.2f}{ratio(found, peer, 's'):9.2f} x"
            print(f"  {program:16}{figures}{median(found, 'more'):12.2f}")


if __name__ == "__main__":
    main()
