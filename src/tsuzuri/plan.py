"""What a run needs, and what fits: parameters, memory by part, FLOPs, tokens and time.

Nothing is allocated or compiled. Weights, gradients and the optimizer's state are counted exactly,
from the shapes and the table of sharding.py. What the backward pass keeps of the forward pass is a
sum over the Decoder's parts, a comment to each term; tests hold it against what XLA's compiler for
CPUs really asks for.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import psutil
from flax import nnx
from jax.sharding import AbstractMesh

from tsuzuri.attention import name_of
from tsuzuri.config import Config, MeshConfig, ModelConfig, suggestion
from tsuzuri.devices import DEVICES, Device, peak
from tsuzuri.errors import UserError
from tsuzuri.model import Decoder, flops_per_token
from tsuzuri.optim import make_optimizer
from tsuzuri.sharding import AXES, check_batch, check_heads, path_of, shardings, whole_mesh
from tsuzuri.step import loss_parts

# Hoffmann et al. 2022 (arXiv:2203.15556): so many tokens a parameter spend the FLOPs best.
CHINCHILLA = 20
MFU = 0.4  # the share of the peak that a good run reaches


@dataclass(frozen=True)
class Memory:
    """Bytes a device. Not all are there at once: `peak` is the most that are."""

    weights: int
    optimizer: int  # its state
    activations: int  # what the backward pass needs of the forward pass
    logits: int
    gradients: int
    gradient_sums: int  # of the parts of a batch that went before, under compute.accumulate
    update: int  # what the optimizer works in
    weight_copies: int  # those at work are whole for a moment under fsdp; stacked; in bfloat16
    head_gradient: int  # the first of the gradients

    @property
    def always(self) -> int:
        return self.weights + self.optimizer + self.weight_copies + self.gradient_sums

    @property
    def backward_begins(self) -> int:
        return self.always + self.activations + self.logits + self.head_gradient

    @property
    def backward_ends(self) -> int:
        return self.always + self.gradients + self.update

    @property
    def peak(self) -> int:
        """The activations go as the gradients come, so it is at one of the two ends."""
        return max(self.backward_begins, self.backward_ends)


@dataclass(frozen=True)
class Plan:
    """What `table` shows; see there for the meaning of each."""

    cfg: Config
    kind: str
    device: Device
    mesh: MeshConfig  # without zeros
    parameters: int
    embedding: int  # of them: the tables of tokens and positions, and an untied head
    memory: Memory
    flops_per_token: int
    mfu: float
    largest_batch: int  # over all devices, on this mesh; 0: not even the smallest fits
    fitting: list[tuple[MeshConfig, int]]  # every mesh of so many devices, and its largest batch

    @property
    def tokens(self) -> int:
        return CHINCHILLA * self.parameters

    @property
    def fits(self) -> bool:
        return self.cfg.batch_size <= self.largest_batch

    def seconds(self, tokens: int) -> float | None:
        """The time for so many tokens on all devices; None where the device's peak is unknown."""
        if self.device.peak is None:
            return None
        devices = self.mesh.data * self.mesh.fsdp * self.mesh.tensor
        return tokens * self.flops_per_token / (self.mfu * self.device.peak * devices)


def plan(
    cfg: Config, vocab_size: int, devices: int = 1, kind: str = "this", mfu: float | None = None
) -> Plan:
    """What a run of `cfg` needs on so many devices, and what would fit.

    Args:
      vocab_size: the tokenizer's.
      kind: a name in DEVICES, or `this`: what JAX finds here.
      mfu: the share of the device's peak that is reached; 0.4 if not given.

    Raises:
      UserError: an unknown kind; a mesh that does not make up the devices, or does not divide the
        batch or the model; an mfu that is no share.
    """
    if devices < 1:
        raise UserError(f"--devices is {devices}; it must be at least 1")
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--mfu is {mfu}; it must be a share, more than 0 and at most 1")
    device = _device(kind, devices)
    cfg = dataclasses.replace(cfg, model=cfg.resolved_model(vocab_size))
    mesh = whole_mesh(cfg.mesh, devices)
    check_batch(mesh, cfg.batch_size, cfg.compute.accumulate)
    platform = jax.default_backend() if kind == "this" else "tpu" if "tpu" in kind else "gpu"
    attention = name_of(cfg.compute, cfg.model, cfg.sequence_length, platform)
    how = {"on_cpu": platform == "cpu", "scores_kept": attention == "blocked"}
    shapes = state_shapes(cfg)
    leaves = jax.tree_util.tree_leaves_with_path(shapes.params)
    sizes = {path_of(keys): leaf.size for keys, leaf in leaves}
    needed = memory(cfg, shapes, mesh, cfg.batch_size, **how)
    fitting = []
    for other in meshes(devices):
        with contextlib.suppress(UserError):  # it does not divide the model
            fitting.append((other, largest_batch(cfg, shapes, other, device, **how)))
    return Plan(
        cfg=cfg,
        kind=kind,
        device=device,
        mesh=mesh,
        parameters=sum(sizes.values()),
        embedding=sum(n for path, n in sizes.items() if "embed" in path or "head" in path),
        memory=needed,
        flops_per_token=flops_per_token(cfg.model, cfg.sequence_length),
        mfu=mfu or MFU,
        largest_batch=dict(fitting)[mesh],
        fitting=fitting,
    )


class Shapes(NamedTuple):
    """The train state without its numbers: jax.ShapeDtypeStruct in the place of arrays."""

    params: Any
    opt_state: Any


def state_shapes(cfg: Config) -> Shapes:
    """The shapes of a run's state; `cfg.model` is resolved."""
    one_layer = dataclasses.replace(cfg.model, num_layers=1)  # and all layers are alike
    decoder = nnx.eval_shape(lambda: Decoder(one_layer, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.split(decoder)[1])
    params["blocks"] = dict.fromkeys(range(cfg.model.num_layers), params["blocks"][0])
    return Shapes(params, jax.eval_shape(make_optimizer(cfg)[0].init, params))


def memory(
    cfg: Config,
    shapes: Shapes,
    mesh: MeshConfig,
    batch_size: int,
    on_cpu: bool = False,
    scores_kept: bool = True,
) -> Memory:
    """The bytes of a training step on one device of the mesh.

    Args:
      cfg: its model is resolved.
      shapes: of the state.
      mesh: without zeros.
      batch_size: over all devices, in place of cfg's.
      on_cpu: as XLA compiles for CPUs, which keeps more than for accelerators.
      scores_kept: by the attention, for the backward pass; not by cuDNN or splash.

    Raises:
      UserError: the mesh does not divide the model.
    """
    check_heads(mesh.tensor, cfg.model.num_kv_heads)
    split = shardings(AbstractMesh((mesh.data, mesh.fsdp, mesh.tensor), AXES), shapes)

    def on_one_device(tree: Any, shardings: Any) -> int:
        parts = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
        return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in parts)

    m = cfg.model
    width = width_of(m, on_cpu)
    weights = on_one_device(shapes.params, split.params)
    optimizer = on_one_device(shapes.opt_state, split.opt_state)
    blocks = [sum(x.size for x in jax.tree.leaves(b)) for b in shapes.params["blocks"].values()]
    head = m.outputs * m.embed_dim
    stacked = width * sum(blocks) // (mesh.fsdp * mesh.tensor) if cfg.compute.scan_layers else 0
    copies = stacked
    if mesh.fsdp > 1:  # a block and its gradient, or the head, for the time of its work
        copies += width * max(2 * max(blocks), head) // mesh.tensor
    if on_cpu and m.dtype == "bfloat16":  # rounded, but as float32
        copies += weights
    update = 0
    if on_cpu:  # new weights and moments are both made of the old moments, which are copied first
        update = optimizer
        if cfg.optim.optimizer == "muon":  # X, X X^T and two more such, for all matrices at once
            update += 4 * 4 * sum(blocks)
    activations, logits, head_gradient = _of_batch(cfg, mesh, batch_size, on_cpu, scores_kept)
    return Memory(
        weights=weights,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        gradients=weights + stacked,
        gradient_sums=weights if cfg.compute.accumulate > 1 else 0,
        update=update,
        weight_copies=copies,
        head_gradient=head_gradient,
    )


def _of_batch(
    cfg: Config, mesh: MeshConfig, batch_size: int, on_cpu: bool, scores_kept: bool
) -> tuple[int, int, int]:
    """What depends on the batch: activations, logits and the gradient that comes first."""
    m = cfg.model
    tokens = batch_size // (mesh.data * mesh.fsdp * cfg.compute.accumulate) * cfg.sequence_length
    # XLA for CPUs computes nothing twice outside of a loop: it finds that both are the same.
    remat = cfg.compute.remat if cfg.compute.scan_layers or not on_cpu else "none"
    kept = kept_per_token(m, cfg.sequence_length, mesh.tensor, on_cpu, remat, scores_kept)
    devices = mesh.data * mesh.fsdp * mesh.tensor
    parts = loss_parts(dataclasses.replace(cfg, batch_size=batch_size), m.outputs, devices, on_cpu)
    # float32; a CPU keeps the logits and their gradient, an accelerator fuses one into the loss.
    logits = (2 if on_cpu else 1) * 4 * tokens * m.outputs // (mesh.tensor * parts)
    head = m.outputs * m.embed_dim // mesh.tensor
    first = 4 * head // mesh.fsdp
    if parts > 1:  # computed with the logits: the whole head's, and that of the stream
        first = width_of(m, on_cpu) * (head + tokens * m.embed_dim)
    return int(tokens * kept), logits, first


def largest_batch(
    cfg: Config,
    shapes: Shapes,
    mesh: MeshConfig,
    device: Device,
    on_cpu: bool = False,
    scores_kept: bool = True,
) -> int:
    """The largest batch that fits on the mesh, over all its devices; 0: not even one row each.

    Raises:
      UserError: the mesh does not divide the model.
    """
    rows = mesh.data * mesh.fsdp * cfg.compute.accumulate
    least = memory(cfg, shapes, mesh, rows, on_cpu, scores_kept)

    def fits(times: int) -> bool:
        activations, logits, first = _of_batch(cfg, mesh, times * rows, on_cpu, scores_kept)
        needed = dataclasses.replace(
            least, activations=activations, logits=logits, head_gradient=first
        )
        return needed.peak <= device.memory * device.usable

    if not fits(1):
        return 0
    enough, too_many = 1, 2
    while fits(too_many):
        enough, too_many = too_many, 2 * too_many
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        enough, too_many = (middle, too_many) if fits(middle) else (enough, middle)
    return rows * enough


def width_of(m: ModelConfig, on_cpu: bool) -> int:
    """The bytes of a number at work."""
    return 2 if m.dtype == "bfloat16" and not on_cpu else 4  # a CPU computes in float32 anyway


def kept_per_token(
    m: ModelConfig,
    length: int,
    tensor: int = 1,
    on_cpu: bool = False,
    remat: str = "none",
    scores_kept: bool = True,
) -> float:
    """The bytes that one token's forward pass leaves for the backward pass.

    Each array that a gradient needs counts once, after Korthikanti et al. 2022 (arXiv:2205.05198),
    for this Decoder. XLA's compiler for a TPU v5e (libtpu 0.0.42) asked for 653 MB where this makes
    682 (llama, base but 2 layers, bfloat16, 8 x 512 tokens, 8,192 in the vocabulary, nothing
    computed twice). XLA's compiler for CPUs (jax 0.10) fuses less and keeps more; its extra terms
    were read from its buffer assignments.

    Args:
      remat: as ComputeConfig's. What is computed again is there for one layer at a time.
    """
    width = width_of(m, on_cpu)
    D, F = m.embed_dim, m.mlp_dim / tensor
    heads, kv_heads = m.num_heads * m.head_dim / tensor, m.num_kv_heads * m.head_dim / tensor
    query_blocks = 4 if length % 4 == 0 and length >= 128 else 1  # as attention.blocked has it
    seen = (query_blocks + 1) / (2 * query_blocks)  # the share of the scores that is computed

    layer = 2 * D  # the residual stream, before attention and MLP
    layer += 2 * D  # each normalized: what their matrices multiply
    layer += heads + 2 * kv_heads  # queries, keys, values
    layer += heads  # what the attention gives, before its last matrix
    if scores_kept:
        layer += seen * length * m.num_heads / tensor  # the attention's weights
    else:
        layer += m.num_heads / tensor * 4 / width  # their sums' logarithms
    layer += {"swiglu": 3, "relu": 2, "gelu": 2, "gelu-tanh": 2}[m.activation] * F
    layer += (heads + kv_heads) * m.qk_norm  # before their norm
    outside = 2 * D  # the embedding, and the stream before the final norm
    if m.dropout:  # which were dropped, a byte each, of both sublayers and the embedding
        layer += 2 * D / width
        outside += D / width
    if on_cpu:
        layer += 6 * D  # a norm's deviation, its scale, and the product, each spread to the width
        layer += heads  # the attention's sums, before they are divided
        layer += 2 * kv_heads * (seen * query_blocks - 1)  # a block of queries copies what it sees
        layer += {"swiglu": 2, "relu": 0, "gelu": 2, "gelu-tanh": 1}[m.activation] * F
        layer += 4 * (heads + kv_heads) * m.qk_norm
        outside += 4 * D
        if m.dropout:  # as 32 bits
            layer += 3 * D
            outside += 2 * D
    kept = {
        "none": layer,
        "dots": D + heads + 2 * kv_heads + D + (2 if m.activation == "swiglu" else 1) * F + D,
        "full": D,
    }[remat]
    again = layer if remat != "none" else 0
    return width * (m.num_layers * kept + again + outside)


def table(plan: Plan) -> str:
    """The plan as lines to print."""
    cfg, device, mesh = plan.cfg, plan.device, plan.mesh
    count = mesh.data * mesh.fsdp * mesh.tensor
    place = f"{count} x {'this machine' if plan.kind == 'this' else plan.kind}"
    rows = [
        ("run", f"{cfg.preset} {cfg.size}".strip() + f", {place}, {shown_mesh(mesh)}"),
        ("parameters", f"{plan.parameters:,}"),
        ("  embedding, head", f"{plan.embedding:,}"),
        ("  the rest", f"{plan.parameters - plan.embedding:,}"),
        ("memory a device", f"{shown_size(plan.memory.peak)}, of these parts, not all at once"),
    ]
    for part, size in dataclasses.asdict(plan.memory).items():
        if size:
            rows.append((f"  {part.replace('_', ' ')}", shown_size(size)))
    room = shown_size(device.memory * device.usable)
    if device.usable < 1:
        room += f", {device.usable:.0%} of it: more by XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"
    batch_tokens = cfg.batch_size * cfg.sequence_length
    rows += [
        ("room on a device", room),
        ("batch_size", f"{cfg.batch_size} {'fits' if plan.fits else 'does not fit'}"),
        ("  largest", _largest(plan.largest_batch)),
        ("  best mesh", _advice(plan)),
        ("FLOPs a token", f"{plan.flops_per_token:.3g}"),
    ]
    for name, tokens in (("this run", cfg.steps * batch_tokens), ("Chinchilla", plan.tokens)):
        steps = f"{math.ceil(tokens / batch_tokens):,} steps of {batch_tokens:,} tokens"
        rows.append((name, f"{tokens:.3g} tokens, {steps}, {_time(plan.seconds(tokens))}"))
    if device.peak:
        speed = f"{plan.mfu:g} of {device.peak / 1e12:.0f} TFLOP/s in bfloat16, by data sheet"
        if cfg.model.dtype != "bfloat16":
            speed += "; float32 is slower: give --model.dtype bfloat16"
        rows.append(("MFU", speed))
    return "\n".join(f"{name:<19} {value}" for name, value in rows)


def _device(kind: str, devices: int) -> Device:
    if kind == "this":
        first = jax.devices()[0]
        stats = first.memory_stats()  # None of a CPU, whose devices share the machine's memory
        held = stats["bytes_limit"] if stats else psutil.virtual_memory().total / devices
        return Device(held, peak(first.device_kind), usable=1.0)
    if kind not in DEVICES:
        near = suggestion(kind, [name for name in DEVICES if name.startswith(kind)] or DEVICES)
        known = ", ".join(["this", *DEVICES])
        raise UserError(f"unknown device '{kind}'{near}; there are: {known}")
    return DEVICES[kind]


def meshes(devices: int) -> Iterator[MeshConfig]:
    """Every mesh of so many devices; those that send the least over their links come first."""
    parts = [n for n in range(1, devices + 1) if devices % n == 0]
    for tensor, fsdp in itertools.product(parts, parts):
        if devices % (tensor * fsdp) == 0:
            yield MeshConfig(devices // (tensor * fsdp), fsdp, tensor)


def _advice(plan: Plan) -> str:
    """Which mesh the batch wants, or the best there is."""
    batch = plan.cfg.batch_size
    for mesh, largest in plan.fitting:
        if batch <= largest and batch % (mesh.data * mesh.fsdp) == 0:
            return f"{shown_mesh(mesh)}, with the least communication at batch_size {batch}"
    mesh, largest = max(plan.fitting, key=lambda pair: pair[1])
    if not largest:
        return "none fits: give more devices, or larger ones"
    return f"none at batch_size {batch}; {shown_mesh(mesh)} holds {_largest(largest)}"


def _largest(batch: int) -> str:
    if not batch:
        return "none fits on this mesh"
    return f"{batch:,} ({2 ** (batch.bit_length() - 1):,} as a power of two)"


def shown_mesh(mesh: MeshConfig) -> str:
    return f"mesh data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor}"


def shown_size(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "time unknown: train shows this device's speed"
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {name}"
    return f"{seconds:.0f} seconds"
