"""The roofline's arithmetic by hand; and true training steps, compiled for pods by TPUs' compiler.

The second part needs libtpu (`make test-tpu`), and takes minutes.
"""

import importlib.util
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from tsuzuri.config import MeshConfig
from tsuzuri.devices import DEVICES
from tsuzuri.errors import UserError
from tsuzuri.hlo import Collective, Kernel, Work
from tsuzuri.pod import Topology, choose, compiled, exchanges, kernels_flops, table, topology_of
from tsuzuri.presets import preset
from tsuzuri.sharding import AXES

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="make test-tpu installs libtpu"
)
VOCABULARY = 30_000


def grid(kind: str, *sides: int) -> Topology:
    places = itertools.product(*(range(side) for side in (*sides, 1)[:3]))
    chips = [SimpleNamespace(coords=place) for place in places]
    return Topology(f"{kind}:{'x'.join(map(str, sides))}", DEVICES[f"tpu-{kind}"], sides, chips)


def mesh_of(pod: Topology, data: int, fsdp: int, tensor: int):
    chips = np.array(pod.chips, dtype=object).reshape(data, fsdp, tensor)
    return SimpleNamespace(devices=chips, axis_names=AXES)


def test_links_are_those_of_rings_and_lines():
    whole, part = grid("v5e", 16, 16), grid("v5e", 8, 8)
    row = np.array([[0, y, 0] for y in range(16)])
    assert whole.links(row) == 2  # a ring sends both ways
    assert whole.links(np.array([chip.coords for chip in whole.chips])) == 4
    assert whole.links(row[:4]) == 1  # a piece of a ring is a line
    assert whole.links(row[::4]) == 2 / 4  # four such rings share the links
    assert part.links(row[:8]) == 1  # a side of 8 does not close
    cube, slab = grid("v5p", 4, 4, 4), grid("v5p", 2, 4, 4)
    assert cube.links(np.array([chip.coords for chip in cube.chips])) == 6
    assert slab.links(row[:4]) == 1  # no cube, no torus


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-gather", 3 / 4), ("reduce-scatter", 3 / 4), ("all-reduce", 3 / 2), ("all-to-all", 1)],
)
def test_time_on_the_links_is_that_of_the_bytes_sent(kind, sent):
    pod = grid("v5p", 4, 4, 4)
    mesh = mesh_of(pod, 4, 4, 4)
    groups = np.arange(64).reshape(4, 4, 4).transpose(0, 2, 1).reshape(16, 4)
    found = Work(collectives=[Collective(kind, 10**9, groups, times=6)])
    (one,) = exchanges(found, pod, mesh, steps=2)
    assert (one.kind, one.axes, one.times, one.largest) == (kind, "fsdp", 3, 10**9)
    assert one.size == 3 * 10**9
    assert one.seconds == pytest.approx(3 * sent * 1e9 / (2 * 100e9))  # a ring, 100 GB/s a link


def test_collectives_are_told_apart_by_the_axes_they_are_on():
    pod = grid("v5e", 4, 4)
    mesh = mesh_of(pod, 2, 4, 2)
    ids = np.arange(16).reshape(2, 4, 2)
    both = ids.transpose(2, 0, 1).reshape(2, 8)
    found = Work(
        collectives=[
            Collective("all-reduce", 8, ids.transpose(1, 2, 0).reshape(8, 2), 2),
            Collective("all-reduce", 8, both, 2),
            Collective("all-reduce", 8, both, 2),
            Collective("all-reduce", 8, ids.reshape(16, 1), 2),  # with nobody
        ]
    )
    listed = {one.axes: one.times for one in exchanges(found, pod, mesh, steps=2)}
    assert listed == {"data": 1, "data+fsdp": 2}


def test_flops_of_splash_attention():
    B, G, R, T, K = 2, 4, 3, 1024, 128
    shapes = [(1, 2, 2), (1, 2, 2), (B, G, R, T, K), (B, G, T, K), (B, G, T, K)]
    product = 2 * B * G * R * T * T * K * 3 / 4  # of 2 x 2 blocks one is above the diagonal
    forward = Kernel("splash_mqa_fwd_segmented_residuals.2", shapes, 5)
    together = Kernel("splash_mqa_dkv_segmented_no_residuals.7", shapes, 5)
    apart = [together, Kernel("splash_mqa_dq_segmented_no_residuals", shapes, 5)]
    assert kernels_flops([forward]) == 5 * 2 * product
    assert kernels_flops([forward, together]) == 5 * (2 + 5) * product
    assert kernels_flops([forward, *apart]) == 5 * (2 + 4 + 3) * product
    assert kernels_flops([Kernel("another", shapes, 5)]) == 0


def test_bad_input_is_one_line():
    for name, message in [
        ("v5e", "unknown topology 'v5e'; examples: v5e:2x2"),
        ("v5f:2x2", "unknown topology 'v5f:2x2'; did you mean 'v5p'\\?"),
        ("v5e:2x", "unknown topology 'v5e:2x'"),
        ("v5e:16", "unknown topology 'v5e:16'"),
    ]:
        with pytest.raises(UserError, match=message):
            topology_of(name)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu_the_error_says_how_to_get_it():
    with pytest.raises(UserError, match=r"pip install 'tsuzuri\[tpu\]'"):
        table(preset("japanese-0.1b"), VOCABULARY, "v5e:2x2")


@needs_libtpu
def test_bad_input_for_a_true_topology_is_one_line():
    for topology, changes, message in [
        ("v5e:3x5", {}, "no topology 'v5e:3x5': .*not divisible.*; examples: v5e:2x2"),
        ("v5e:2x2", {"mesh.fsdp": 3}, "makes 3 devices, but there are 4"),
        ("v5e:2x2", {"batch_size": 6, "mesh.fsdp": 4}, "batch_size 6 is not divisible by the 4"),
        ("v5e:2x2", {"mesh.tensor": 4, "model.num_heads": 2}, "does not divide the 2 key"),
        (
            "v5p:4x4x4",
            {"mesh.fsdp": 2, "mesh.tensor": 1},
            "cannot be laid on the grid of v5p:4x4x4",
        ),
    ]:
        with pytest.raises(UserError, match=message) as error:
            compiled(
                preset("japanese-0.1b", **({"batch_size": 64} | changes)), VOCABULARY, topology
            )
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"no mesh of v5e:2x2 holds japanese-0\.1b"):
        choose(preset("japanese-0.1b", batch_size=2**20), VOCABULARY, "v5e:2x2")


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "topology", "changes"),
    [
        ("japanese-0.1b", "v5e:2x2", {"batch_size": 64, "mesh.fsdp": 4}),
        ("japanese-1.0b", "v5e:16x16", {"batch_size": 1024, "mesh.data": 4, "mesh.fsdp": 64}),
        ("japanese-1.0b", "v5p:4x4x4", {"batch_size": 512, "mesh.data": 16, "mesh.fsdp": 4}),
    ],
)
def test_a_step_fits_its_pod_and_could_run_at_half_its_peak(name, topology, changes):
    cfg = preset(name, **changes, **{"compute.scan_layers": True})
    step = compiled(cfg, VOCABULARY, topology)
    assert step.needed <= step.topology.device.memory
    assert step.mfu(step.seconds) >= 0.5
    assert step.flops == pytest.approx(step.flops_of_model, rel=0.1)  # two ways to count

    weights = 2 * parameters(step)  # at work, in bfloat16
    sizes: dict[str, int] = {}
    for one in step.exchanges:
        if "fsdp" in one.axes:
            sizes[one.kind] = sizes.get(one.kind, 0) + one.size
    assert sizes["reduce-scatter"] >= 0.95 * weights
    assert sizes.get("all-reduce", 0) <= 0.02 * weights  # norms, biases and single numbers
    # Gathered forward and backward, a matrix at a time.
    assert sizes["all-gather"] >= 1.9 * (weights - 2 * 2 * VOCABULARY * step.cfg.model.embed_dim)
    assert max(e.largest for e in step.exchanges if e.kind == "all-gather") < weights / 4


def parameters(step) -> int:
    """Of the matrices: layers, embedding and head."""
    m = step.cfg.model
    heads = m.num_heads * m.head_dim
    layer = 4 * m.embed_dim * heads + 2 * m.embed_dim * m.mlp_dim
    return m.num_layers * layer + 2 * m.vocab_size * m.embed_dim


@needs_libtpu
def test_the_mesh_that_is_chosen_is_the_fastest_of_those_compiled():
    cfg = preset(
        "japanese-0.1b", batch_size=64, **{"compute.scan_layers": True, "model.num_layers": 2}
    )
    steps = choose(cfg, VOCABULARY, "v5e:2x2", candidates=2)
    assert [s.seconds for s in steps] == sorted(s.seconds for s in steps)
    assert len({s.cfg.mesh for s in steps}) == 2
    for step in steps:
        mesh: MeshConfig = step.cfg.mesh
        assert math.prod((mesh.data, mesh.fsdp, mesh.tensor)) == 4
