"""Counts from the text of compiled programs beside counts by hand and XLA's own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from genjax.tools.plan import hlo
from genjax.tools.plan.costs import Costs, costs_of
from genjax.tools.plan.jaxpr import count_products

MESH = {"data": 4, "fsdp": 2}


def compiled(function, *shapes, **options):
    return jax.jit(function, **options).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()


def counted(function, *shapes) -> Costs:
    return costs_of(compiled(function, *shapes).as_text(), {"data": 1})


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    def layers(x, weights):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0]

    costs = counted(layers, (8, 16), (7, 16, 16))
    assert costs.products == 7 * 2 * 8 * 16 * 16 and costs.unknown_loops == 0
    # XLA's own count has the body once.
    assert compiled(layers, (8, 16), (7, 16, 16)).cost_analysis()["flops"] < 2 * 2 * 8 * 16 * 16


def test_a_loop_inside_a_loop_counts_by_both():
    def nested(x, w):
        inner = lambda h: jax.lax.fori_loop(0, 3, lambda _, h: jnp.sin(h @ w), h)
        return jax.lax.fori_loop(0, 5, lambda _, h: inner(h) + 1.0, x)

    assert counted(nested, (4, 8), (8, 8)).products == 15 * 2 * 4 * 8 * 8


def test_a_loop_of_unknown_length_is_said_to_be_counted_once():
    def until(x, w):
        return jax.lax.while_loop(lambda h: (h < 1.0).all(), lambda h: jnp.abs(h @ w), x)

    costs = counted(until, (4, 8), (8, 8))
    assert costs.unknown_loops == 1 and costs.products == 2 * 4 * 8 * 8


def test_splash_attention_counts_the_pairs_that_it_names_and_what_follows_it():
    # A kernel's notes break its line, which goes on with two brackets.
    text = """HloModule m

ENTRY %main (p: bf16[2,256,128]) -> bf16[2,256,128] {
  %p = bf16[2,256,128]{2,1,0} parameter(0)
  %splash_mha_fwd_no_residuals.1 = bf16[2,256,128]{2,1,0} custom-call(%p, %p, %p), custom_call_target="tpu_custom_call", attributes={metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="jit(f)/splash_pairs_49152/splash"}
  %splash_mha_dq_no_residuals.1 = bf16[2,256,128]{2,1,0} custom-call(%p, %p, %p), custom_call_target="tpu_custom_call", metadata={op_name="transpose(splash_pairs_49152)"}
  ROOT %dot = bf16[2,256,256]{2,1,0} dot(%splash_mha_dq_no_residuals.1, %p), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={2}
}
"""  # noqa: E501
    costs = costs_of(text, {"data": 1})
    assert costs.unnoted_kernels == 0
    assert costs.products == 2 * 2 * 128 * (2 * 49152 + 3 * 49152 + 256 * 256)


def test_kernels_that_note_no_operations_are_counted():
    text = """HloModule m

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %a = f32[8,4]{1,0} custom-call(%p), custom_call_target="tpu_custom_call"
  ROOT %b = f32[8,4]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", config={"cost_estimate":{"flops":64}}
}
"""
    costs = costs_of(text, {"data": 1})
    assert costs.products == 64 and costs.unnoted_kernels == 1


def test_the_dearest_branch_of_a_conditional_counts():
    def either(x, w, flag):
        return jax.lax.cond(flag.sum() > 0, lambda: (x @ w) @ w, lambda: x + w[:4])

    assert counted(either, (4, 8), (8, 8), (1,)).products == 2 * 2 * 4 * 8 * 8


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1, 1), "padding": "SAME"},
        {"window_strides": (2, 1), "padding": [(0, 1), (3, 2)]},
        {"window_strides": (1, 1), "padding": [(2, 2), (1, 1)], "lhs_dilation": (2, 3)},
        {"window_strides": (1, 1), "padding": "VALID", "rhs_dilation": (2, 1)},
    ],
)
def test_products_of_convolutions_are_those_of_xla(options):
    convolve = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)
    program = compiled(convolve, (2, 9, 8, 4), (3, 2, 4, 6))
    assert costs_of(program.as_text(), {"data": 1}).products == program.cost_analysis()["flops"]


def test_traffic_of_an_elementwise_pass_is_one_reading_and_one_writing():
    assert counted(lambda x: jnp.sin(x) * 2.0 + 1.0, (256, 64)).traffic == 2 * 4 * 256 * 64


def test_traffic_of_a_scan_reads_each_slice_once():
    costs = counted(lambda c, xs: jax.lax.scan(lambda c, x: (c + jnp.sin(x), None), c, xs)[0], (64,), (100, 64))
    # A slice, the sum and its new value at each step; not the whole array a hundred times.
    assert 3 * 100 * 64 * 4 <= costs.traffic <= 6 * 100 * 64 * 4


def test_collectives_are_counted_by_kind_and_axis():
    types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=types, devices=jax.devices()[:8])
    steps, size = 5, 16

    def body(x, _):
        whole = jax.lax.all_gather(x, "fsdp", tiled=True)  # [2 size]
        part = jax.lax.psum_scatter(jnp.sin(whole), "fsdp", tiled=True)  # [size]
        total = jax.lax.psum(jnp.cos(part), "data")
        moved = jax.lax.ppermute(total, "data", [(i, (i + 1) % 4) for i in range(4)])
        return jnp.tanh(moved), None

    def program(x):
        return jax.lax.scan(body, x, None, length=steps)[0]

    sharded = jax.shard_map(
        program, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(("data", "fsdp")), check_vma=False
    )
    costs = costs_of(compiled(sharded, (8 * size,)).as_text(), MESH)
    found = {c.kind: c for c in costs.collectives}
    expected = {
        "all-gather": ("fsdp", 2 * size, 0.5),
        "reduce-scatter": ("fsdp", 2 * size, 0.5),
        "all-reduce": ("data", size, 1.5),
        "collective-permute": ("data", size, 1.0),
    }
    assert set(found) == set(expected)
    for kind, (axes, elements, share) in expected.items():
        assert found[kind].axes == axes and found[kind].count == steps, kind
        assert found[kind].num_bytes == steps * elements * 4 and found[kind].received == share * found[kind].num_bytes


def test_devices_of_a_collective_are_read_in_all_three_forms():
    listed = hlo.device_groups("replica_groups={{0,1},{2,3},{4,5},{6,7}}, x", 8)
    tiled = hlo.device_groups("replica_groups=[4,2]<=[8], x", 8)
    named = hlo.device_groups("replica_groups=mesh['a'=4,'b'=2] {'b'}, x", 8)
    np.testing.assert_array_equal(listed, tiled)
    np.testing.assert_array_equal(listed, named)
    np.testing.assert_array_equal(
        hlo.device_groups("replica_groups=[2,4]<=[4,2]T(1,0)", 8), [[0, 2, 4, 6], [1, 3, 5, 7]]
    )
    np.testing.assert_array_equal(
        hlo.device_groups("replica_groups=mesh['a'=8] {'a':(2)2}", 8), [[0, 2], [1, 3], [4, 6], [5, 7]]
    )
    ordered = "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}"
    np.testing.assert_array_equal(hlo.device_groups(ordered, 8), [[0, 2, 4, 6], [1, 3, 5, 7]])
    np.testing.assert_array_equal(hlo.device_groups("replica_groups={}", 3), [[0, 1, 2]])


#: What XLA writes for TPUs: a gather that is spread over a loop, and a scatter as a fusion.
TPU_TEXT = """
HloModule step

%start (p: f32[2,4]) -> (f32[2,4], f32[8,4]) {
  %p = f32[2,4]{1,0:T(8,128)} parameter(0)
  %g = f32[8,4]{1,0:T(8,128)} all-gather(%p), channel_id=3, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
  ROOT %c = (f32[2,4]{1,0}, f32[8,4]{1,0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%carry (q: f32[2,4]) -> f32[8,4] {
  %q = f32[2,4]{1,0:T(8,128)} parameter(0)
  ROOT %g2 = f32[8,4]{1,0:T(8,128)} all-gather(%q), channel_id=3, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
}

%all-reduce-scatter.1 (r: f32[8,4]) -> f32[2,4] {
  %r = f32[8,4]{1,0} parameter(0)
  %s = f32[8,4]{1,0} all-reduce(%r), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %z = s32[] constant(0)
  ROOT %d = f32[2,4]{1,0:T(8,128)S(1)} dynamic-slice(%s, %z, %z), dynamic_slice_sizes={2,4}
}

%condition (t: (s32[], f32[2,4])) -> pred[] {
  %t = (s32[], f32[2,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(6)
  ROOT %l = pred[] compare(%i, %n), direction=LT
}

%body (u: (s32[], f32[2,4])) -> (s32[], f32[2,4]) {
  %u = (s32[], f32[2,4]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%u), index=0
  %v = f32[2,4]{1,0} get-tuple-element(%u), index=1
  %f = f32[8,4]{1,0} fusion(%v), kind=kOutput, calls=%carry
  %w = f32[2,4]{1,0:T(8,128)S(1)} fusion(%f), kind=kCustom, calls=%all-reduce-scatter.1
  %o = s32[] constant(1)
  %k = s32[] add(%j, %o)
  ROOT %x = (s32[], f32[2,4]{1,0}) tuple(%k, %w)
}

ENTRY %main (a: f32[2,4]) -> f32[2,4] {
  %a = f32[2,4]{1,0:T(8,128)} parameter(0)
  %b = (f32[2,4]{1,0}, f32[8,4]{1,0}) fusion(%a), kind=kCustom, calls=%start
  %two = s32[] constant(2)
  %y = (s32[], f32[2,4]{1,0}) tuple(%two, %a)
  %h = (s32[], /*index=1*/f32[2,4]{1,0}) while(%y), condition=%condition, body=%body
  ROOT %e = f32[2,4]{1,0} get-tuple-element(%h), index=1
}
"""


def test_a_collective_that_a_tpu_spreads_over_fusions_counts_once_and_a_fused_scatter_is_one():
    costs = costs_of(TPU_TEXT, {"data": 2, "fsdp": 4})
    found = {c.kind: (c.axes, c.count, c.num_bytes) for c in costs.collectives}
    # The loop runs from 2 to 6.
    assert found == {"all-gather": ("fsdp", 1, 8 * 4 * 4), "reduce-scatter": ("fsdp", 4, 4 * 8 * 4 * 4)}


def test_what_lies_in_fast_memory_is_no_traffic():
    program = hlo.parse(TPU_TEXT)
    kept = program.computations["body"].instructions["w"].arrays[0]
    assert dataclasses.astuple(kept) == ("f32", (2, 4), False)


def test_products_of_a_traced_function_are_those_that_xla_counts():
    def loss(w, x):
        h = jax.lax.conv_general_dilated(x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.tanh(h).sum()

    w, x = jnp.zeros((2, 2, 3, 5)), jnp.zeros((4, 8, 8, 3))
    gradient = jax.grad(loss, argnums=(0, 1))
    # A kernel as wide as its stride: the forward pass and both gradients have the same products.
    assert count_products(jax.make_jaxpr(gradient)(w, x).jaxpr) == 3 * 2 * 4 * 16 * (2 * 2 * 3) * 5
