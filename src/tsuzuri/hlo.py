"""What a compiled program does, read from XLA's text: FLOPs, bytes and collectives.

Everything is counted as often as it runs: times the trips of every loop around it, which XLA's own
cost analysis does not do. The text is what `compiled.as_text()` gives; XLA documents its operations
at openxla.org/xla/operation_semantics. Forms seen: XLA for CPUs and for TPUs, jax 0.10.
"""

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tsuzuri.errors import RunError

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SLICES = ("dynamic-slice", "slice", "gather")
# These move nothing by themselves, or stand for what is counted elsewhere.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "optimization-barrier"),
}
_BITS = {"pred": 8, "token": 0, "opaque": 0}  # of types whose names do not tell


@dataclass(frozen=True)
class Collective:
    """One collective operation, as often as it runs."""

    kind: str  # one of COLLECTIVES
    size: int  # bytes of the whole array on one device: what is gathered, or is yet to be reduced
    groups: np.ndarray  # [groups, members]: positions in the mesh; of a permute: [pairs, 2]
    times: int


@dataclass(frozen=True)
class Kernel:
    """One call of a kernel that XLA does not see into, written in Pallas."""

    name: str
    operands: list[tuple[int, ...]]  # their shapes
    times: int


@dataclass
class Work:
    """What one device does when the program runs once.

    Attributes:
      flops: of matrix multiplications and convolutions outside of kernels, 2 for a product's sum.
      bytes: read from and written to the main memory, an estimate: what each operation outside of
        a fusion reads and writes, padding included; what stays in the chip's own memory is free.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)


def work(text: str, devices: int) -> Work:
    """Counts a program.

    Args:
      text: of the optimized module, `compiled.as_text()`.
      devices: that run it together.

    Raises:
      RunError: the trips of a loop are not to be found in the text.
    """
    computations, entry = _parse(text)
    done = Work()

    def count(name: str, times: int, fused: bool) -> None:
        computation = computations[name]
        for one in computation.values():
            if one.opcode == "while":
                trips = _trips(one, computation, computations)
                count(one.called("body"), times * trips, fused)
            elif one.opcode == "conditional":
                for branch in one.names("branch_computations"):
                    count(branch, times, fused)  # each, as if all were taken
            elif one.opcode in ("fusion", "call", "async-start"):
                count(one.called("calls", "to_apply"), times, fused or one.opcode == "fusion")
            done.flops += times * _flops(one, computation)
            kind = _kind(one)
            # One that runs beside other work is written into each fusion of it: its start counts.
            beside = '"async_collective_fusion_config"' in one.attributes
            if kind and (not beside or _starts(computation)):
                done.collectives.append(_collective(kind, one, computation, times, devices))
                done.bytes += times * _moved(one, computation, computations)
            elif not fused and not kind:
                done.bytes += times * _moved(one, computation, computations)
            if '"tpu_custom_call"' in one.attributes:
                shapes = [computation[o].arrays[0].dims for o in one.operands]
                done.kernels.append(Kernel(one.name, shapes, times))

    count(entry, 1, False)
    return done


class _Array(NamedTuple):
    """An array's type: f32[8,128]{1,0:T(8,128)S(1)}."""

    dims: tuple[int, ...]
    size: int  # bytes as it lies in memory, tiles filled up
    in_main_memory: bool


class _Instruction(NamedTuple):
    name: str
    arrays: tuple[_Array, ...]  # what it gives; several if a tuple
    opcode: str
    inside: str  # between the parentheses
    attributes: str
    root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.inside)

    def called(self, *keys: str) -> str:
        return next(name for key in keys for name in self.names(key))

    def names(self, key: str) -> list[str]:
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%[\w.-]+)", self.attributes)
        return re.findall(r"%([\w.-]+)", found[1]) if found else []

    def numbers(self, key: str) -> tuple[int, ...]:
        """Of an attribute such as lhs_contracting_dims={0,1} or index=3."""
        found = re.search(rf"\b{key}=\{{?([\d,]*)", self.attributes)
        return tuple(int(n) for n in found[1].split(",") if n) if found else ()


_Computation = dict[str, _Instruction]
_HEADER = re.compile(r"(ENTRY )?%([\w.-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"  (ROOT )?%([\w.-]+) = (.+?) ([a-z][\w-]*)\((.*?)\)(, .*|)$")
_TYPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """The computations by name, and the entry's name."""
    computations: dict[str, _Computation] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            computations[name] = {}
            entry = name if header[1] else entry
        elif name and (found := _LINE.match(line)):
            root, called, kind, opcode, inside, attributes = found.groups()
            arrays = tuple(_array(*parts) for parts in _TYPE.findall(kind))
            computations[name][called] = _Instruction(
                called, arrays, opcode, inside, attributes, bool(root)
            )
    return computations, entry


def _array(kind: str, dims: str, layout: str) -> _Array:
    shape = [int(d.lstrip("<=")) for d in dims.split(",") if d]
    order, _, tiling = layout.partition(":")
    padded = [shape[int(d)] for d in reversed(order.split(",")) if d] or list(shape)  # major first
    if tile := re.match(r"T\(([\d,]+)\)", tiling):
        for back, length in enumerate(reversed(tile[1].split(",")), 1):
            if back <= len(padded):
                padded[-back] = -(-padded[-back] // int(length)) * int(length)
    found = re.search(r"\d+", kind)
    bits = _BITS.get(kind, int(found[0]) if found else 8)
    return _Array(tuple(shape), math.prod(padded) * bits // 8, not re.search(r"S\([1-9]", tiling))


def _trips(loop: _Instruction, around: _Computation, computations: dict[str, _Computation]) -> int:
    """How often a loop's body runs, as jax.lax.scan and fori_loop make them: i < limit, i + 1."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = computations[loop.called("condition")]
    last = next(one for one in condition.values() if one.root)
    if last.opcode == "fusion":  # the comparison alone
        inner = next(i for i in computations[last.called("calls")].values() if i.root)
        last = last._replace(opcode=inner.opcode, attributes=inner.attributes)
    sides = [condition[name] for name in last.operands]
    limits = [int(one.inside) for one in sides if one.opcode == "constant"]
    counters = [one.numbers("index")[0] for one in sides if one.opcode == "get-tuple-element"]
    if (
        last.opcode != "compare"
        or "direction=LT" not in last.attributes
        or not len(limits) == len(counters) == 1
    ):
        raise RunError(f"XLA's text does not say how often the loop {loop.name} runs")
    start = around[loop.operands[0]]
    if start.opcode == "tuple":
        start = around[start.operands[counters[0]]]
        while start.opcode in ("copy", "bitcast"):
            start = around[start.operands[0]]
    return limits[0] - (int(start.inside) if start.opcode == "constant" else 0)


def _flops(one: _Instruction, computation: _Computation) -> float:
    """Of a matrix multiplication or convolution; 0 of all else."""
    if one.opcode == "dot":
        left = computation[one.operands[0]].arrays[0].dims
        contracted = math.prod(left[d] for d in one.numbers("lhs_contracting_dims"))
        return 2.0 * math.prod(one.arrays[0].dims) * contracted
    if one.opcode != "convolution":
        return 0.0
    # As XLA's HloCostAnalysis: products where the window lies on the input, not on its padding.
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert labels, one
    left, right = (computation[name].arrays[0].dims for name in one.operands[:2])
    batch, features = left[labels[1].index("b")], left[labels[1].index("f")]
    outputs = one.arrays[0].dims[labels[3].index("f")]
    window = re.search(r"window=\{([^}]*)\}", one.attributes)
    settings = dict(part.split("=") for part in window[1].split()) if window else {}
    positions = 1
    for d in range(len(labels[1]) - 2):
        positions *= _valid_positions(
            inputs=left[labels[1].index(str(d))],
            window=right[labels[2].index(str(d))],
            outputs=one.arrays[0].dims[labels[3].index(str(d))],
            stride=_part(settings, "stride", d, 1),
            pad=_part(settings, "pad", d, 0),
            inputs_apart=_part(settings, "lhs_dilate", d, 1),
            window_apart=_part(settings, "rhs_dilate", d, 1),
        )
    groups = (one.numbers("feature_group_count") or (1,))[0]
    groups *= (one.numbers("batch_group_count") or (1,))[0]
    return 2.0 * batch * features * outputs * positions / groups


def _part(settings: dict[str, str], key: str, dimension: int, otherwise: int) -> int:
    """One dimension's number of a window: stride=1x2, and the lower side of pad=0_0x3_3."""
    if key not in settings:
        return otherwise
    return int(settings[key].split("x")[dimension].split("_")[0])


def _valid_positions(
    inputs: int, window: int, outputs: int, stride: int, pad: int, inputs_apart: int,
    window_apart: int,
) -> int:  # fmt: skip
    at = np.arange(outputs)[:, None] * stride + np.arange(window)[None, :] * window_apart - pad
    on_input = (at >= 0) & (at % inputs_apart == 0) & (at // inputs_apart < inputs)
    return int(on_input.sum())


def _kind(one: _Instruction) -> str:
    """Which collective it is; empty if none. The -done of an asynchronous one is none."""
    kind = one.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else ""


def _starts(computation: _Computation) -> bool:
    """Whether a fusion on a TPU begins a collective that goes on in other fusions."""
    return any('"AsyncCollectiveStart"' in one.attributes for one in computation.values())


def _collective(
    kind: str, one: _Instruction, computation: _Computation, times: int, devices: int
) -> Collective:
    sent = sum(a.size for name in one.operands for a in computation[name].arrays)
    groups = _groups(one.attributes, devices)
    if kind == "all-reduce" and any(
        other.root and other.opcode == "dynamic-slice" and one.name in other.operands
        for other in computation.values()
    ):
        kind = "reduce-scatter"  # as XLA for TPUs writes it
    size = sent * groups.shape[1] if kind == "all-gather" else sent
    return Collective(kind, size, groups, times)


def _groups(attributes: str, devices: int) -> np.ndarray:
    """Who takes part, in any of XLA's three notations, or a permute's pairs.

    {{0,1},{2,3}} lists them. [2,2]<=[4] and [2,2]<=[2,2]T(1,0) reshape 0, 1, 2 ...; and
    mesh['a'=2,'b'=2] {'b'} names the axes along which a group lies, {'b':(2)4} a part of one: the
    4 within each of 2.
    """
    if listed := re.search(
        r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes
    ):
        return np.array(
            [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)", listed[1])]
        )
    iota = r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search("replica_groups=" + iota, attributes):
        return _iota(*found.groups())
    named = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(?(\S+?)\)?)? \{([^}]*)\}"
    if not (found := re.search(named, attributes)):
        return np.arange(devices)[None, :]
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", found[1])}
    ids = np.arange(math.prod(sizes.values()))
    if found[2] and (order := re.search(iota, found[2])):
        ids = _iota(*order.groups()).ravel()
    shape: list[int] = []
    members: list[int] = []
    parts = {
        name: (int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'?([\w.]+)'?(?::\((\d+)\)(\d+))?", found[3])
    }
    for name, size in sizes.items():
        before, of_group = parts.get(name, (size, 1))
        members.append(len(shape) + 1)
        shape += [before, of_group, size // (before * of_group)]
    others = [d for d in range(len(shape)) if d not in members]
    count = math.prod(shape[d] for d in members)
    return ids.reshape(shape).transpose(*others, *members).reshape(-1, count)


def _iota(dims: str, reshaped: str, order: str | None) -> np.ndarray:
    to, sizes = ([int(n) for n in text.split(",")] for text in (dims, reshaped))
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    if order:
        ids = ids.transpose([int(n) for n in order.split(",")])
    return ids.reshape(to)


def _moved(
    one: _Instruction, computation: _Computation, computations: dict[str, _Computation]
) -> int:
    """The bytes that an operation reads from and writes to the main memory."""
    if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
        return 0
    if one.opcode == "custom-call" and '"tpu_custom_call"' not in one.attributes:
        return 0  # XLA's own, which are notes to itself
    if one.opcode.endswith("-start"):  # gives a copy and its source; others their source first
        source = computation[one.operands[0]].arrays[0]
        target = one.arrays[0 if one.opcode == "copy-start" else len(one.operands)]
        return target.size * (source.in_main_memory + target.in_main_memory)
    given = [computation[name].arrays[0] for name in one.operands]
    if one.opcode == "fusion":  # of what it only slices, updates in place or hands on, the part
        body = computations[one.called("calls")]
        read = sum(
            _read(_parameter(body, i), body, computations)
            for i, a in enumerate(given)
            if a.in_main_memory
        )
        written = zip(_written(body, computations), one.arrays, strict=True)
        return read + sum(min(size, a.size) for size, a in written if a.in_main_memory)
    # A slice reads, and an update in place writes, no more than the part.
    if one.opcode in _SLICES:
        return sum(2 * a.size for a in one.arrays if a.in_main_memory)
    if one.opcode == "dynamic-update-slice":
        return 2 * given[1].size if one.arrays[0].in_main_memory else 0
    return sum(a.size for a in (*given, *one.arrays) if a.in_main_memory)


def _parameter(body: _Computation, number: int) -> _Instruction:
    return next(p for p in body.values() if p.opcode == "parameter" and int(p.inside) == number)


def _read(given: _Instruction, body: _Computation, computations: dict[str, _Computation]) -> int:
    """The bytes that a fusion's operations read of what they are given."""
    size, parts = given.arrays[0].size, 0
    for user in body.values():
        if given.name not in user.operands or _is_counted_apart(user):
            continue
        part = size
        if user.opcode == "tuple" and given.opcode == "parameter":
            part = 0  # handed on
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == given.name:
            part = 0  # updated in place
        elif user.opcode in _SLICES and user.operands[0] == given.name:
            part = user.arrays[0].size
        elif user.opcode == "fusion":
            inner = computations[user.called("calls")]
            number = user.operands.index(given.name)
            part = _read(_parameter(inner, number), inner, computations)
        if not user.root and math.prod(user.arrays[0].dims) == math.prod(given.arrays[0].dims):
            part = min(part, _read(user, body, computations))  # element by element
        parts += part
    return min(parts, size)


def _written(body: _Computation, computations: dict[str, _Computation]) -> list[int]:
    """The bytes that a fusion writes of each of its results."""
    root = next(one for one in body.values() if one.root)
    sizes = []
    for result in [body[name] for name in root.operands] if root.opcode == "tuple" else [root]:
        while result.opcode == "bitcast":
            result = body[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            sizes.append(body[result.operands[1]].arrays[0].size)
        elif result.opcode == "fusion":
            sizes += _written(computations[result.called("calls")], computations)
        elif result.opcode == "parameter" or _is_counted_apart(result):
            sizes += [0] * len(result.arrays)
        else:
            sizes += [a.size for a in result.arrays]
    return sizes


def _is_counted_apart(one: _Instruction) -> bool:
    return bool(_kind(one)) or "AsyncCollective" in one.attributes
