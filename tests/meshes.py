"""The same 20 steps on several meshes of 8 devices; test_sharding.py runs it in other processes.

python tests/meshes.py [PORT PROCESS_ID]: one process of 8 devices, or one of two that have 4 each.
Prints one JSON object: what was trained -> the relative L2 distance of its parameters from those of
one device.
"""

import json
import sys

import jax
import numpy as np

from tsuzuri import hosts
from tsuzuri.config import Config, MeshConfig
from tsuzuri.data import Batch, Batches
from tsuzuri.presets import preset
from tsuzuri.sharding import make_mesh, one_device
from tsuzuri.step import make_training, stack

STEPS, ROWS, LENGTH, VOCABULARY = 20, 16, 16, 64
MESHES = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))
DROPOUT = {"model.dropout": 0.1}


class Random:
    """As data.Blocks: rows of random ids, with documents and weights."""

    def __len__(self) -> int:
        return 1000

    def batch(self, indices: np.ndarray) -> Batch:
        rows = [np.random.default_rng(i).integers(0, VOCABULARY, LENGTH + 1) for i in indices]
        ids = np.stack(rows).astype(np.int32)
        segments = np.broadcast_to(np.arange(LENGTH, dtype=np.int32) // 10, (len(ids), LENGTH))
        positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32) % 10, (len(ids), LENGTH))
        weights = (ids[:, 1:] % 7 != 0).astype(np.float32)
        return Batch(ids[:, :-1], ids[:, 1:], weights, segments, positions)


def trained(mesh, logits_parts: bool = False, **changes) -> np.ndarray:
    """All parameters after 20 steps, as one vector."""
    shape = {"model.num_layers": 2, "model.num_heads": 8, "model.embed_dim": 32}
    recipe = {"optim.optimizer": "adamw", "learning_rate": 1e-3, "steps": STEPS}
    sizes = {"batch_size": ROWS, "sequence_length": LENGTH}
    cfg: Config = preset("llama", **sizes | recipe | shape | changes)
    _, init, train_steps = make_training(cfg, cfg.resolved_model(VOCABULARY), mesh)
    state = init(jax.random.key(0))
    batches = Batches(Random(), ROWS, seed=changes.get("seed", 0))
    state, _ = train_steps(state, stack(batches, 0, STEPS, cfg.compute.accumulate, mesh))
    everywhere = jax.jit(lambda tree: tree, out_shardings=jax.NamedSharding(mesh, jax.P()))(
        state.params
    )
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(everywhere)])


def main() -> None:
    if sys.argv[1:]:
        hosts.join(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
    found = {}

    def compare(name: str, vector: np.ndarray, with_: np.ndarray) -> None:
        found[name] = float(np.linalg.norm(vector - with_) / np.linalg.norm(with_))

    plain, dropped = trained(one_device()), trained(one_device(), **DROPOUT)
    for mesh in MESHES:
        made = make_mesh(MeshConfig(*mesh), ROWS)
        compare(f"{mesh}", trained(made), plain)
        compare(f"{mesh} dropout", trained(made, **DROPOUT), dropped)
    every = {"compute.scan_layers": True, "compute.accumulate": 2, "compute.remat": "dots"}
    compare("(2, 2, 2) every way", trained(made, **every), plain)
    compare("control: another order", trained(one_device(), seed=1), plain)
    compare("control: dropout", dropped, plain)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
