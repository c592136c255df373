"""The table knows every parameter, and a mesh changes where numbers lie, not what they are."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from tsuzuri.config import Config, MeshConfig
from tsuzuri.errors import UserError
from tsuzuri.presets import PRESETS, preset
from tsuzuri.sharding import (
    AXES,
    check_batch,
    check_heads,
    local_rows,
    make_mesh,
    one_device,
    path_of,
    shardings,
    whole_mesh,
)
from tsuzuri.step import make_training

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
    with pytest.raises(
        UserError, match=r"mesh\.tensor 3 does not divide the 512 of head/bias; these would: 1, 2$"
    ):
        shardings(mesh, {"head": {"bias": jax.ShapeDtypeStruct((512,), jnp.float32)}})


def test_heads_that_the_mesh_does_not_divide_are_said():
    with pytest.raises(UserError, match=r"tensor 4 does not divide the 6 key .*would: 1, 2, 3$"):
        check_heads(4, 6)
    check_heads(3, 6)


def test_a_mesh_that_the_devices_do_not_make_up_is_said():
    with pytest.raises(UserError, match=r"makes 2 devices, but there are 1"):
        make_mesh(MeshConfig(fsdp=2), 8)
    assert make_mesh(MeshConfig(), 7).shape == dict.fromkeys(AXES, 1)


MESHES = Path(__file__).with_name("meshes.py")
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}


def eight_devices(processes: int, program: Path = MESHES) -> list[subprocess.Popen]:
    """The program in so many processes, which have eight virtual devices together."""
    flags = f"--xla_force_host_platform_device_count={8 // processes}"
    flags += " --xla_backend_optimization_level=0"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        subprocess.Popen(
            [sys.executable, str(program), *([port, str(index)] if processes > 1 else [])],
            env=ENVIRONMENT | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_mesh_learns_what_one_device_learns(processes: int):
    """In one process of eight devices, and in two of four; dropout off and on."""
    outs = [process.communicate() for process in eight_devices(processes)]
    assert "rematerialization" not in outs[0][1]  # a warning of XLA's: it had to gather a batch
    for out, errors in outs:
        assert out, errors
        distances = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
        controls = {name for name in distances if name.startswith("control")}
        assert len(controls) == 2 and len(distances) == 11
        for name, distance in distances.items():
            assert (distance > 1e-3) if name in controls else (distance < 1e-5), (name, distance)


def test_each_host_reads_its_own_rows_only():
    """On one host they are all rows; that two hosts part them, the test above would show."""
    assert local_rows(one_device(), 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_arithmetic_of_a_batch():
    check_batch(MeshConfig(2, 2, 1), 16, accumulate=4)
    with pytest.raises(UserError, match=r"12 is not divisible by the 8 .*fsdp\); 16 would be"):
        check_batch(MeshConfig(4, 2, 1), 12)
    with pytest.raises(UserError, match=r"8 devices.*, 2 times \(compute.accumulate\); 32 would"):
        check_batch(MeshConfig(4, 2, 1), 24, accumulate=2)
    assert whole_mesh(MeshConfig(fsdp=2, tensor=2), 16) == MeshConfig(4, 2, 2)
