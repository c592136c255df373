"""The table knows every parameter, and a mesh changes where numbers lie, not what they are."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from tsuzuri.config import Config, MeshConfig
from tsuzuri.errors import UserError
from tsuzuri.presets import PRESETS, preset
from tsuzuri.sharding import AXES, make_mesh, one_device, path_of, shardings
from tsuzuri.train import make_training

EVERY_SWITCH = {"model.qk_norm": True, "model.num_layers": 1}


def state_shapes(cfg: Config):
    _, init, _ = make_training(cfg, cfg.resolved_model(512), one_device())
    return jax.eval_shape(init, jax.random.key(0))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_and_moment_has_a_row(name: str, optimizer: str):
    shapes = state_shapes(preset(name, **EVERY_SWITCH | {"optim.optimizer": optimizer}))
    split = shardings(one_device(), shapes)
    params = jax.tree_util.tree_leaves_with_path(split.params)
    moments = jax.tree_util.tree_leaves_with_path(split.opt_state)
    for keys, sharding in params:
        path = path_of(keys)
        same = [s.spec for k, s in moments if path_of(k).endswith("/" + path)]
        # Moments lie where the parameter lies: Adam's two; of a matrix under Muon, its one.
        of_muon = optimizer == "muon" and "blocks" in path and path.endswith("kernel")
        assert same == [sharding.spec] * (1 if of_muon else 2), path


@pytest.mark.parametrize("name", PRESETS)
def test_every_matrix_is_split_both_ways(name: str):
    shapes = state_shapes(preset(name)).params
    for keys, sharding in jax.tree_util.tree_leaves_with_path(shardings(one_device(), shapes)):
        path = path_of(keys)
        if path.endswith(("kernel", "token_embed/embedding")):
            assert sorted(sharding.spec) == ["fsdp", "tensor"], path


def test_a_parameter_without_a_row_is_an_error():
    shapes = {"blocks": {0: {"attention": {"gizmo": {"kernel": jnp.zeros((2, 2))}}}}}
    with pytest.raises(KeyError, match="blocks/0/attention/gizmo/kernel"):
        shardings(one_device(), shapes)


def test_a_dimension_that_the_mesh_does_not_divide_is_said():
    mesh = AbstractMesh((1, 1, 3), AXES)
    with pytest.raises(UserError, match=r"mesh\.tensor 3 does not divide the 512 of head/bias"):
        shardings(mesh, {"head": {"bias": jax.ShapeDtypeStruct((512,), jnp.float32)}})


def test_a_mesh_that_the_devices_do_not_make_up_is_said():
    with pytest.raises(UserError, match=r"makes 2 devices, but there are 1"):
        make_mesh(MeshConfig(fsdp=2), 8)
    assert make_mesh(MeshConfig(), 7).shape == dict.fromkeys(AXES, 1)


# Run with eight virtual devices in a process of its own, since a process counts its devices once.
EIGHT_DEVICES = """
import json
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from tsuzuri.config import MeshConfig
from tsuzuri.data import Batch
from tsuzuri.errors import UserError
from tsuzuri.presets import preset
from tsuzuri.sharding import BATCH, make_mesh, one_device
from tsuzuri.train import make_training

changes = {"model.num_layers": 1, "model.embed_dim": 32, "optim.warmup_steps": 0}
cfg = preset("gpt2", batch_size=8, sequence_length=16, learning_rate=1e-2, **changes)
blocks = np.random.default_rng(0).integers(0, 64, (8, 17), np.int32)
batch = Batch(blocks[:, :-1], blocks[:, 1:], np.ones((8, 16), np.float32))
batches = jax.tree.map(lambda part: np.stack([part] * 3), batch)

losses = {}
for data, fsdp, tensor in [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)]:
    one = data * fsdp * tensor == 1
    mesh = one_device() if one else make_mesh(MeshConfig(data, fsdp, tensor), 8)
    _, init, train_steps = make_training(cfg, cfg.resolved_model(64), mesh)
    state = init(jax.random.key(0))
    rows = NamedSharding(mesh, P(None, *BATCH))
    _, metrics = train_steps(state, jax.device_put(batches, rows))
    losses[f"{data}x{fsdp}x{tensor}"] = np.asarray(metrics["loss"]).tolist()
said = ""
try:
    make_mesh(MeshConfig(), 12)
except UserError as error:
    said = str(error)
print(json.dumps({"losses": losses, "said": said}))
"""


def test_eight_devices_learn_what_one_learns():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    out = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    result = json.loads(out.splitlines()[-1])
    losses = result["losses"]
    assert len(losses) == 4
    expected = losses.pop("1x1x1")
    assert expected[-1] < expected[0]
    for mesh, values in losses.items():
        assert values == pytest.approx(expected, abs=1e-5), mesh
    assert result["said"].startswith("batch_size 12 is not divisible by the 8 devices")
