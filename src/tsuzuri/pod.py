"""A training step compiled for a TPU pod by TPUs' own compiler, on a machine without a TPU.

libtpu compiles for a topology that is only named. What it makes of the true training step says how
much memory each chip needs and which collectives run; `hlo.work` counts them, and the data sheets
of devices.py turn the counts into a roofline (Williams et al. 2009): no step can be faster than its
matrix products, its traffic with the memory, or its traffic over the links allow. Work of the
vector units (dropout's random numbers, the softmax) and waiting are not in it.
"""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tsuzuri.config import Config, MeshConfig, suggestion
from tsuzuri.data import Batch
from tsuzuri.devices import DEVICES
from tsuzuri.errors import UserError
from tsuzuri.hlo import Collective, Kernel, Work, work
from tsuzuri.model import flops_per_token
from tsuzuri.plan import memory, meshes, shown_mesh, shown_size, state_shapes
from tsuzuri.sharding import AXES, BATCH, check_batch, shardings, whole_mesh
from tsuzuri.step import make_training

_DEVICES = {"v4": "tpu-v4", "v5e": "tpu-v5e", "v5p": "tpu-v5p", "v6e": "tpu-v6e"}
_EXAMPLES = "v5e:2x2, v5e:16x16, v5p:4x4x4, v6e:8x8"
_STEPS = 2  # in the program that is compiled, so that it has the loop over steps of a true call


@dataclass(frozen=True)
class Topology:
    """Chips in a grid, a torus where it closes."""

    name: str
    device: Any  # a devices.Device whose speeds are all known
    sides: tuple[int, ...]
    chips: Sequence[Any]  # jax.Device, with coords

    def links(self, members: np.ndarray) -> float:
        """The links by which each of these chips [members, 3] takes part in a collective of them.

        A ring of chips sends both ways along each side of the grid on which they lie, a line one
        way. Where they stand k apart, k such rings share the links between.
        """
        closed = [side % self.device.ring == 0 for side in self.sides]
        if len(self.sides) == 3:  # only grids of whole cubes are a torus
            closed = [all(closed)] * 3
        links = 0.0
        for side, closes, at in zip(self.sides, closed, members.T, strict=False):
            places = np.unique(at)
            if len(places) > 1:
                apart = int(places[1] - places[0])
                links += (2 if closes and len(places) * apart == side else 1) / apart
        return links


@dataclass(frozen=True)
class Exchange:
    """The collectives of one kind along the same axes of the mesh, in one step."""

    kind: str
    axes: str  # "fsdp", "data+fsdp"
    times: int
    size: int  # bytes of all their whole arrays
    largest: int  # bytes of one
    seconds: float


@dataclass(frozen=True)
class Step:
    """What a chip needs and does in one training step; times are the least that could be."""

    cfg: Config  # its mesh has no zeros
    topology: Topology
    needed: int  # bytes of memory
    state: int  # of them: weights, optimizer and batch
    code: int  # of them: the program
    flops: float  # of matrix products, those computed twice included
    flops_of_model: float  # by model.flops_per_token
    hbm_bytes: float
    exchanges: list[Exchange]

    @property
    def matmul(self) -> float:
        return self.flops / self.topology.device.peak

    @property
    def hbm(self) -> float:
        return self.hbm_bytes / self.topology.device.hbm

    @property
    def links(self) -> float:
        return math.fsum(e.seconds for e in self.exchanges)

    @property
    def seconds(self) -> float:
        """If products, memory and links are all busy at once."""
        return max(self.matmul, self.hbm, self.links)

    @property
    def seconds_one_by_one(self) -> float:
        """If each waits for the others."""
        return self.matmul + self.hbm + self.links

    def mfu(self, seconds: float) -> float:
        """The share of the chip's peak that the model's own FLOPs are."""
        return self.flops_of_model / (seconds * self.topology.device.peak)


def table(
    cfg: Config,
    vocab_size: int,
    topology: str,
    candidates: int = 3,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """The training step on a pod, and the mesh to choose for it, as lines to print.

    Args:
      cfg: where its mesh is not the default one, that is shown, beside what would be chosen.
      topology: as v5e:16x16.
      candidates: so many meshes are compiled to choose among; 0: only cfg's.

    Raises:
      UserError: the topology is unknown; libtpu is not installed; the mesh does not make up the
        chips or divide the batch or model; nothing fits.
    """
    steps = []
    if cfg.mesh != MeshConfig() or not candidates:
        steps.append(compiled(cfg, vocab_size, topology, say))
    if candidates:
        known = {step.cfg.mesh: step for step in steps}
        steps += choose(cfg, vocab_size, topology, candidates, say, known)
    given = steps[0]
    rows = list(_rows(given))
    if candidates:
        rows += [("", ""), ("meshes", "the first is the one to choose"), *_comparison(steps)]
    return "\n".join(f"{name:<19} {value}".rstrip() for name, value in rows)


def choose(
    cfg: Config,
    vocab_size: int,
    topology: str,
    candidates: int = 3,
    say: Callable[[str], None] = lambda line: None,
    known: dict[MeshConfig, Step] | None = None,
) -> list[Step]:
    """The fastest meshes by the roofline among those that fit, the fastest first.

    Every mesh of the chips is judged by plan.memory and a formula of its collectives' bytes; the
    best few are compiled.

    Args:
      known: those that are compiled already.

    Raises:
      UserError: as `table`.
    """
    pod = topology_of(topology)
    cfg = replace(cfg, model=cfg.resolved_model(vocab_size))
    shapes = state_shapes(cfg)
    fitting = []
    for mesh in meshes(len(pod.chips)):
        with contextlib.suppress(UserError):  # it does not divide the batch or the model
            check_batch(mesh, cfg.batch_size, cfg.compute.accumulate)
            needed = memory(cfg, shapes, mesh, cfg.batch_size).peak
            if needed <= pod.device.memory * pod.device.usable:
                seconds = _seconds_of_links(cfg, shapes, mesh, pod)
                fitting.append((seconds, mesh))
    fitting.sort(key=lambda pair: pair[0])
    steps = list((known or {}).values())
    for _, mesh in fitting[:candidates]:
        if mesh not in (known or {}):
            with contextlib.suppress(_DoesNotFit):  # by the compiler, which knows better
                steps.append(compiled(replace(cfg, mesh=mesh), vocab_size, topology, say))
    if not steps:
        raise UserError(
            f"no mesh of {topology} holds {cfg.preset} at batch_size {cfg.batch_size}: give a "
            "smaller batch_size or a larger compute.accumulate, or compute.remat full"
        )
    return sorted(steps, key=lambda step: step.seconds)


def compiled(
    cfg: Config,
    vocab_size: int,
    topology: str,
    say: Callable[[str], None] = lambda line: None,
) -> Step:
    """Compiles the training step of `cfg` for a topology, on cfg's mesh.

    Raises:
      UserError: as `table`; the step does not fit a chip.
    """
    pod = topology_of(topology)
    whole = whole_mesh(cfg.mesh, len(pod.chips))
    check_batch(whole, cfg.batch_size, cfg.compute.accumulate)
    cfg = replace(cfg, model=cfg.resolved_model(vocab_size), mesh=whole)
    say(f"compiling for {topology}, {shown_mesh(whole)}")
    mesh = make_mesh(pod, whole)
    train_steps: Any  # jitted
    _, init, train_steps = make_training(cfg, cfg.model, mesh)
    state = jax.eval_shape(init, jax.random.key(0))
    state = jax.tree.map(_placed, state, shardings(mesh, state))
    try:
        program = train_steps.lower(state, _batches(cfg, mesh)).compile()
    except jax.errors.JaxRuntimeError as e:
        # "Used 21.0G of 15.75G hbm", or "required for HLO temporaries (21.13G) exceeds available
        # HBM (15.75G)"
        used = re.search(r"([\d.]+[GMK])\)?(?: of | exceeds available HBM \()([\d.]+[GMK])", str(e))
        if not used:
            raise
        raise _DoesNotFit(
            f"{topology}, {shown_mesh(whole)}: the step needs {used[1]} of a chip's {used[2]}; "
            "give a smaller batch_size or a larger compute.accumulate, compute.remat full, or a "
            "larger mesh.fsdp"
        ) from None
    sizes = program.memory_analysis()
    outside = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    counts = work(program.as_text(), len(pod.chips))
    tokens = cfg.batch_size * cfg.sequence_length
    return Step(
        cfg=cfg,
        topology=pod,
        needed=sizes.argument_size_in_bytes
        + outside
        + sizes.temp_size_in_bytes
        + sizes.generated_code_size_in_bytes,
        state=sizes.argument_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        flops=(counts.flops + kernels_flops(counts.kernels)) / _STEPS,
        flops_of_model=tokens * flops_per_token(cfg.model, cfg.sequence_length) / len(pod.chips),
        hbm_bytes=counts.bytes / _STEPS,
        exchanges=exchanges(counts, pod, mesh, _STEPS),
    )


class _DoesNotFit(UserError):
    """The compiler found that a chip's memory is too small."""


def topology_of(name: str) -> Topology:
    """A pod's chips by its name, as v5e:16x16.

    Raises:
      UserError: there is no such pod, or libtpu is not installed.
    """
    kind, _, sides = name.partition(":")
    if kind not in _DEVICES or not re.fullmatch(r"\d+(x\d+){1,2}", sides):
        near = suggestion(kind, _DEVICES) if kind not in _DEVICES else ""
        raise UserError(f"unknown topology '{name}'{near}; examples: {_EXAMPLES}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--topology needs libtpu, TPUs' compiler: pip install 'tsuzuri[tpu]'")
    # libtpu looks for a TPU's own machine otherwise, and complains that this is none; and it lets
    # only one process in at a time, for the sake of chips that are not there.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    # The two cores of these chips work as one device.
    options = {"chip_config_name": "megacore"} if kind in ("v4", "v5p") else {}
    try:
        found = topologies.get_topology_desc(name, "tpu", **options)
    except jax.errors.JaxRuntimeError as e:
        reason = str(e).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"no topology '{name}': {reason}; examples: {_EXAMPLES}") from None
    shape = tuple(int(n) for n in sides.split("x"))
    return Topology(name, DEVICES[_DEVICES[kind]], shape, found.devices)


def make_mesh(pod: Topology, mesh: MeshConfig) -> Mesh:
    """The pod's chips as train has them: JAX lays the mesh's axes along the sides of the grid.

    Raises:
      UserError: JAX knows no way.
    """
    shape = mesh.data, mesh.fsdp, mesh.tensor
    try:
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=pod.chips)
    except NotImplementedError:
        raise UserError(
            f"{shown_mesh(mesh)} cannot be laid on the grid of {pod.name}: each axis has to be a "
            "product of the grid's sides"
        ) from None


def _placed(shape: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _batches(cfg: Config, mesh: Mesh) -> Batch:
    """The shapes of what step.stack gives."""
    parts = cfg.compute.accumulate
    shape = _STEPS, parts, cfg.batch_size // parts, cfg.sequence_length
    split = NamedSharding(mesh, P(None, None, *BATCH))
    ids = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=split)
    weights = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
    segments = ids if cfg.features.packing == "packed" else None
    return Batch(ids, ids, weights, segments, segments)


def exchanges(counts: Work, pod: Topology, mesh: Mesh, steps: int) -> list[Exchange]:
    """The collectives of one step of so many, by kind and axes of the mesh, the slowest first."""
    together: dict[tuple[str, str], list[Collective]] = {}
    for one in counts.collectives:
        together.setdefault((one.kind, _axes(one, mesh)), []).append(one)
    places = np.array([chip.coords for chip in mesh.devices.flat])

    def seconds(one: Collective) -> float:
        members = places[one.groups[0]]
        return _sent(one) / (pod.links(members) * pod.device.link)

    found = [
        Exchange(
            kind,
            axes,
            times=sum(one.times for one in ones) // steps,
            size=sum(one.size * one.times for one in ones) // steps,
            largest=max(one.size for one in ones),
            seconds=math.fsum(seconds(one) * one.times for one in ones) / steps,
        )
        for (kind, axes), ones in together.items()
        if axes  # a group of one chip exchanges nothing
    ]
    return sorted(found, key=lambda e: -e.seconds)


def _axes(one: Collective, mesh: Mesh) -> str:
    """The axes of the mesh along which the members of a group differ."""
    places = np.unravel_index(one.groups[0], mesh.devices.shape)
    return "+".join(axis for axis, at in zip(AXES, places, strict=True) if len(np.unique(at)) > 1)


def _sent(one: Collective) -> float:
    """The bytes that each member sends, by the algorithms for rings of Thakur et al. 2005.

    On a ring an all-to-all's parts travel n/4 links on average when they go both ways.
    """
    n = one.groups.shape[1]
    share = {
        "all-gather": (n - 1) / n,
        "reduce-scatter": (n - 1) / n,
        "all-reduce": 2 * (n - 1) / n,
        "all-to-all": n / 4,
        "collective-permute": 1,
    }[one.kind]
    return one.size * share


def kernels_flops(kernels: Iterable[Kernel]) -> float:
    """Of the splash attention, whose products XLA does not see: forward 2 of queries x keys x width
    a head, backward 5 in one kernel, or 3 and 4 in two; of the blocks that causality leaves."""
    apart = any("dq" in kernel.name for kernel in kernels)
    total = 0.0
    for kernel in kernels:
        if "splash" not in kernel.name:
            continue
        products = 3 if "dq" in kernel.name else (4 if apart else 5) if "dkv" in kernel.name else 2
        blocks = kernel.operands[0][-1]  # the first says which blocks are seen: [heads, q, kv]
        queries = next(shape for shape in kernel.operands if len(shape) >= 4)
        scores = math.prod(queries) * queries[-2] * (blocks + 1) / (2 * blocks)
        total += kernel.times * 2 * products * scores
    return total


def _seconds_of_links(cfg: Config, shapes: Any, mesh: MeshConfig, pod: Topology) -> float:
    """The time of the collectives that a mesh should need, by formula, all in bfloat16.

    Weights are gathered over `fsdp` forward and backward, their gradients scattered over it and
    then reduced over `data`; a layer's two sublayers reduce their results over `tensor`, and their
    inputs' gradients.
    """
    chips = make_mesh(pod, mesh).devices
    places = np.array([chip.coords for chip in chips.flat]).reshape(*chips.shape, 3)

    def seconds(size: float, axis: int) -> float:
        n = chips.shape[axis]
        along = np.moveaxis(places, axis, 0).reshape(n, -1, 3)[:, 0]
        return size * (n - 1) / n / (pod.links(along) * pod.device.link) if n > 1 else 0.0

    weights = 2 * sum(leaf.size for leaf in jax.tree.leaves(shapes.params)) / mesh.tensor
    tokens = cfg.batch_size * cfg.sequence_length / (mesh.data * mesh.fsdp)
    residual = 2 * tokens * cfg.model.embed_dim
    return (
        seconds(2 * weights / mesh.fsdp, 0)
        + seconds(3 * cfg.compute.accumulate * weights, 1)
        + seconds(2 * 4 * cfg.model.num_layers * residual, 2)
    )


def _rows(step: Step) -> Iterable[tuple[str, str]]:
    cfg, pod = step.cfg, step.topology
    room = pod.device.memory * pod.device.usable
    name = f"{cfg.preset} {cfg.size}".strip()
    tokens = cfg.batch_size * cfg.sequence_length
    yield "run", f"{name}, {pod.name}: {len(pod.chips)} chips, {shown_mesh(cfg.mesh)}"
    yield "batch", f"{cfg.batch_size:,} x {cfg.sequence_length:,} = {tokens:,} tokens a step"
    fits = "" if step.needed <= room else ": does not fit"
    yield "memory a chip", f"{shown_size(step.needed)} of {shown_size(room)}{fits}"
    yield "  state and batch", shown_size(step.state)
    yield "  program", shown_size(step.code)
    yield "  the rest", shown_size(step.needed - step.state - step.code)
    yield "collectives", "a step, on each chip: whole arrays, the largest, time on the links"
    for e in step.exchanges:
        what = f"{e.times:,} over {e.axes}, {shown_size(e.size)}, {shown_size(e.largest)}"
        yield f"  {e.kind}", f"{what}, {_milliseconds(e.seconds)}"
    more = step.flops / step.flops_of_model
    yield "roofline", "of a step; what the compiler's text holds, times the trips of its loops"
    yield "  matrices", f"{_milliseconds(step.matmul)}, {more:.2f} x the FLOPs of the formula"
    yield "  memory", f"{_milliseconds(step.hbm)}, {shown_size(step.hbm_bytes)} (an estimate)"
    yield "  links", _milliseconds(step.links)
    for label, seconds in (
        ("all at once", step.seconds),
        ("one by one", step.seconds_one_by_one),
    ):
        speed = f"{tokens / seconds:,.0f} tokens/s, MFU {step.mfu(seconds):.0%}"
        yield f"  {label}", f"{_milliseconds(seconds)}, {speed}"


def _comparison(steps: list[Step]) -> Iterable[tuple[str, str]]:
    for step in sorted(steps, key=lambda step: step.seconds):
        parts = " ".join(
            f"{name} {_milliseconds(seconds)},"
            for name, seconds in (
                ("matrices", step.matmul),
                ("memory", step.hbm),
                ("links", step.links),
            )
        )
        yield (
            "",
            f"{shown_mesh(step.cfg.mesh)}: {shown_size(step.needed)}, {parts} "
            f"MFU {step.mfu(step.seconds):.0%}",
        )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"
