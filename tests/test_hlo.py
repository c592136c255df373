"""What the reader of compiled programs counts, against closed forms and XLA's own count."""

# ruff: noqa: E501

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tsuzuri.errors import RunError
from tsuzuri.hlo import work

LOOPS = """HloModule loops, is_scheduled=true

%inner_body (p: (s32[], bf16[64,128], f32[6,16,128])) -> (s32[], bf16[64,128], f32[6,16,128]) {
  %p = (s32[], bf16[64,128]{1,0:T(8,128)(2,1)}, f32[6,16,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %all = f32[6,16,128]{2,1,0:T(8,128)} get-tuple-element(%p), index=2
  %w = bf16[32,128]{1,0:T(8,128)(2,1)} fusion(%all, %i), kind=kLoop, calls=%one_layer
  %whole = bf16[128,128]{1,0:T(8,128)(2,1)} all-gather(%w), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true
  %y = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} convolution(%x, %whole), dim_labels=bf_io->bf
  %z = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%y), channel_id=2, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], bf16[64,128]{1,0:T(8,128)(2,1)}, f32[6,16,128]{2,1,0:T(8,128)}) tuple(%next, %z, %all)
}

%one_layer (a: f32[6,16,128], b: s32[]) -> bf16[32,128] {
  %a = f32[6,16,128]{2,1,0:T(8,128)} parameter(0)
  %b = s32[] parameter(1)
  %zero = s32[] constant(0)
  %s = f32[1,16,128]{2,1,0:T(8,128)} dynamic-slice(%a, %b, %zero, %zero), dynamic_slice_sizes={1,16,128}
  ROOT %c = bf16[32,128]{1,0:T(8,128)(2,1)} convert(%s)
}

%inner_condition (p: (s32[], bf16[64,128], f32[6,16,128])) -> pred[] {
  %p = (s32[], bf16[64,128]{1,0:T(8,128)(2,1)}, f32[6,16,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(6)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%outer_body (p: (s32[], bf16[64,128], f32[6,16,128])) -> (s32[], bf16[64,128], f32[6,16,128]) {
  %p = (s32[], bf16[64,128]{1,0:T(8,128)(2,1)}, f32[6,16,128]{2,1,0:T(8,128)}) parameter(0)
  %first = s32[] constant(2)
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %all = f32[6,16,128]{2,1,0:T(8,128)} get-tuple-element(%p), index=2
  %start = (s32[], bf16[64,128]{1,0:T(8,128)(2,1)}, f32[6,16,128]{2,1,0:T(8,128)}) tuple(%first, %x, %all)
  ROOT %inner = (s32[], bf16[64,128]{1,0:T(8,128)(2,1)}, f32[6,16,128]{2,1,0:T(8,128)}) while(%start), condition=%inner_condition, body=%inner_body
}

%outer_condition (p: (s32[], bf16[64,128], f32[6,16,128])) -> pred[] {
  %p = (s32[], bf16[64,128]{1,0:T(8,128)(2,1)}, f32[6,16,128]{2,1,0:T(8,128)}) parameter(0)
  ROOT %what = pred[] custom-call(%p), custom_call_target="unknown"
}

ENTRY %main (p: (s32[], bf16[64,128], f32[6,16,128])) -> (s32[], bf16[64,128], f32[6,16,128]) {
  %p = (s32[], bf16[64,128]{1,0:T(8,128)(2,1)}, f32[6,16,128]{2,1,0:T(8,128)}) parameter(0)
  ROOT %outer = (s32[], bf16[64,128]{1,0:T(8,128)(2,1)}, f32[6,16,128]{2,1,0:T(8,128)}) while(%p), condition=%outer_condition, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_everything_is_counted_once_a_trip_of_each_loop_around_it():
    found = work(LOOPS, 8)
    trips = 3 * (6 - 2)  # the inner loop begins at 2
    assert found.flops == trips * 2 * 64 * 128 * 128
    gather, reduce = found.collectives
    assert (gather.kind, gather.times, gather.size) == ("all-gather", trips, 2 * 128 * 128)
    assert gather.groups.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (reduce.kind, reduce.times, reduce.size) == ("all-reduce", trips, 2 * 64 * 128)
    assert reduce.groups.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    # Of the six layers one is read; what lies in the chip's own memory, S(1), is free.
    layer, w, whole, x = 4 * 16 * 128, 2 * 32 * 128, 2 * 128 * 128, 2 * 64 * 128
    a_trip = (layer + w) + (w + whole) + (x + whole) + x + 4 * 4  # and i, twice, one and next
    assert found.bytes == trips * a_trip


def test_a_loop_whose_trips_are_not_told_is_an_error():
    with pytest.raises(RunError, match="how often the loop outer runs"):
        work(LOOPS.replace('{"known_trip_count":{"n":"3"}}', "{}"), 8)


FUSED = """HloModule fused

%start (p: f32[8,128]) -> (f32[8,128], f32[32,128], u32[]) {
  %p = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  %ag.1 = f32[32,128]{1,0:T(8,128)} all-gather(%p), channel_id=7, replica_groups={}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %c = (f32[8,128]{1,0:T(8,128)S(1)}, f32[32,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%beside (p: f32[8,128], q: f32[32,128], x: f32[16,128]) -> (f32[16,128], f32[8,128], f32[32,128]) {
  %p = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  %q = f32[32,128]{1,0:T(8,128)S(1)} parameter(1)
  %x = f32[16,128]{1,0:T(8,128)} parameter(2)
  %y = f32[16,128]{1,0:T(8,128)} negate(%x)
  %ag.2 = f32[32,128]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=7, replica_groups={}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %t = (f32[16,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[32,128]{1,0:T(8,128)S(1)}) tuple(%y, %p, %ag.2)
}

%all-reduce-scatter (g: f32[32,128]) -> f32[8,128] {
  %g = f32[32,128]{1,0:T(8,128)} parameter(0)
  %ar = f32[32,128]{1,0:T(8,128)} all-reduce(%g), channel_id=7, replica_groups={}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %mine = f32[8,128]{1,0:T(8,128)} dynamic-slice(%ar, %zero, %zero), dynamic_slice_sizes={8,128}
}

ENTRY %main (p: f32[8,128], x: f32[16,128], g: f32[32,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  %x = f32[16,128]{1,0:T(8,128)} parameter(1)
  %g = f32[32,128]{1,0:T(8,128)} parameter(2)
  %f.1 = (f32[8,128]{1,0:T(8,128)S(1)}, f32[32,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%start
  %a = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%f.1), index=0
  %b = f32[32,128]{1,0:T(8,128)S(1)} get-tuple-element(%f.1), index=1
  %f.2 = (f32[16,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[32,128]{1,0:T(8,128)S(1)}) fusion(%a, %b, %x), kind=kOutput, calls=%beside
  %s = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)S(1)}) collective-permute-start(%a), channel_id=9, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %d = f32[8,128]{1,0:T(8,128)S(1)} collective-permute-done(%s)
  ROOT %f.3 = f32[8,128]{1,0:T(8,128)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_what_a_tpu_fuses_is_found_once():
    found = work(FUSED, 4)
    kinds = [(one.kind, one.size, one.groups.shape) for one in found.collectives]
    assert kinds == [
        ("all-gather", 4 * 32 * 128, (1, 4)),  # though it is written in both fusions
        ("collective-permute", 4 * 8 * 128, (4, 2)),
        ("reduce-scatter", 4 * 32 * 128, (1, 4)),  # an all-reduce of which a part is kept
    ]
    # Of the first and the third the result, of the second x in and y out.
    assert found.bytes == 4 * 128 * (32 + (16 + 16) + (32 + 8 + 32))


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh[a=4,b=2] {a}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (
            "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]<=[2,4]T(1,0)) {'b'}",
            [[0, 4, 1, 5], [2, 6, 3, 7]],
        ),
    ],
)
def test_groups_in_every_notation(written, groups):
    text = (
        "ENTRY %main (p: f32[8]) -> f32[8] {\n"
        "  %p = f32[8]{0} parameter(0)\n"
        f"  ROOT %r = f32[8]{{0}} all-reduce(%p), channel_id=1, {written}, to_apply=%add\n}}\n"
    )
    (found,) = work(text, 8).collectives
    assert found.groups.tolist() == groups


def test_flops_of_nested_scans_are_those_of_their_products():
    def program(x_BD, w_NDD):
        def inner(x_BD, w_DD):
            return jnp.tanh(x_BD @ w_DD), None

        def outer(x_BD, _):
            return lax.scan(inner, x_BD, w_NDD)[0], None

        return lax.scan(outer, x_BD, length=3)[0]

    x_BD, w_NDD = jax.ShapeDtypeStruct((16, 32), jnp.float32), jnp.zeros((5, 32, 32))
    compiled = jax.jit(program).lower(x_BD, w_NDD).compile()
    assert work(compiled.as_text(), 1).flops == 3 * 5 * 2 * 16 * 32 * 32
    # And the gradient: two more products for each.
    gradient = jax.jit(jax.grad(lambda w: program(jnp.ones((16, 32)), w).sum()))
    assert work(gradient.lower(w_NDD).compile().as_text(), 1).flops == 3 * 15 * 2 * 16 * 32 * 32


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_flops_of_a_convolution_are_as_xla_counts_them(stride, padding):
    def convolve(x_NHWC, w_HWIO):
        return lax.conv_general_dilated(
            x_NHWC, w_HWIO, (stride, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = jnp.zeros((2, 9, 8, 3)), jnp.zeros((3, 2, 3, 5))
    compiled = jax.jit(convolve).lower(*shapes).compile()
    analysis = compiled.cost_analysis()
    assert analysis is not None
    assert work(compiled.as_text(), 1).flops == analysis["flops"]


def test_a_group_is_one_of_the_mesh_axes():
    """The notations above, against the ids that JAX's own mesh has."""
    mesh = np.arange(24).reshape(2, 3, 4)
    text = LOOPS.replace("[2,4]<=[8]", "mesh['data'=2,'fsdp'=3,'tensor'=4] {'fsdp'}")
    groups = work(text, 24).collectives[0].groups
    assert sorted(groups.tolist()) == sorted(mesh.transpose(0, 2, 1).reshape(-1, 3).tolist())
