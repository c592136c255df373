"""The plan's figures, against XLA's own count, and against arithmetic by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri.config import Config, MeshConfig
from tsuzuri.data import Batch
from tsuzuri.devices import DEVICES, peak
from tsuzuri.errors import UserError
from tsuzuri.plan import largest_batch, memory, plan, state_shapes, table
from tsuzuri.presets import PRESETS, preset
from tsuzuri.sharding import one_device
from tsuzuri.step import make_training

SHAPE = {"batch_size": 8, "sequence_length": 256, "model.num_layers": 2}
WIDE = {"model.embed_dim": 384, "model.num_heads": 6}
ONE = {"model.num_layers": 1}
SCANNED = {"compute.scan_layers": True, "model.num_layers": 6}


def compiled(cfg: Config):
    """What XLA asks for to run two steps of training, and what the plan says of one."""
    _, init, train_steps = make_training(cfg, cfg.model, one_device())
    state = jax.eval_shape(init, jax.random.key(0))
    parts = cfg.compute.accumulate
    shape = 2, parts, cfg.batch_size // parts, cfg.sequence_length
    ids_NABL = jax.ShapeDtypeStruct(shape, jnp.int32)
    weights_NABL = jax.ShapeDtypeStruct(shape, jnp.float32)
    batches = Batch(ids_NABL, ids_NABL, weights_NABL, None, None)
    wanted = train_steps.lower(state, batches).compile().memory_analysis()
    one = MeshConfig(1, 1, 1)
    return wanted, memory(cfg, state_shapes(cfg), one, cfg.batch_size, on_cpu=True)


def resolved(cfg: Config, vocab_size: int) -> Config:
    return dataclasses.replace(cfg, model=cfg.resolved_model(vocab_size))


@pytest.mark.parametrize(
    ("name", "vocab_size", "changes"),
    [
        ("llama", 8192, WIDE | {"batch_size": 1, "model.num_layers": 3}),  # weights outweigh all
        ("llama", 500, {"model.num_kv_heads": 1, "model.qk_norm": True}),
        ("gpt2", 2000, WIDE | ONE | {"model.tied_head": False, "sequence_length": 512}),
        ("lm1b", 3000, ONE | {"optim.optimizer": "lion", "sequence_length": 100}),
        ("llama", 2000, WIDE | ONE | {"optim.optimizer": "muon", "batch_size": 1}),
        ("gpt2", 2000, WIDE | SCANNED | {"compute.remat": "full"}),
        ("llama", 500, SCANNED | {"compute.remat": "dots"}),
        ("llama", 500, SCANNED),
        ("llama", 500, {"compute.remat": "full"}),  # in vain on a CPU
        ("llama", 2000, WIDE | {"compute.accumulate": 4, "batch_size": 32}),
        ("gpt2", 16000, ONE | {"compute.logits_mb": 20}),
    ],
)
def test_within_15_percent_of_what_the_compiler_asks_for(name, vocab_size, changes):
    wanted, found = compiled(resolved(preset(name, **(SHAPE | changes)), vocab_size))
    state = found.weights + found.optimizer + 4  # the step
    assert state == wanted.alias_size_in_bytes
    total = wanted.argument_size_in_bytes + wanted.temp_size_in_bytes
    print(
        name,
        changes,
        total / 2**20,
        {k: getattr(found, k) / 2**20 for k in found.__dataclass_fields__},
    )
    loops = "compute.scan_layers" in changes  # which keep more, and again on CPUs only
    assert found.peak == pytest.approx(total, rel=0.25 if loops else 0.15)


def test_a_billion_parameters_are_counted_without_being_made():
    found = plan(preset("japanese-1.0b"), 30_000, 8, "a100-80gb")
    D, F, L, V = 2048, 8192, 18, 30_000
    layer = 4 * D * D + 2 * D * F + F + D + 4 * D  # attention, MLP and its biases, two norms
    assert found.parameters == L * layer + 2 * D + V * D + D * V + V
    assert found.embedding == V * D + D * V + V
    assert found.memory.weights == found.memory.gradients == 4 * found.parameters
    assert found.memory.optimizer == 8 * found.parameters + 8  # Adam's two moments; two counters
    assert found.tokens == 20 * found.parameters
    matrices = found.parameters - V * D  # all but the table; biases and norms are a trifle
    attention = 6 * L * D * 1024
    assert found.flops_per_token == pytest.approx(6 * matrices + attention, rel=1e-3)
    assert sum(array.nbytes for array in jax.live_arrays()) < 1e6


def test_the_time_is_that_of_the_flops():
    cfg = preset("gpt2", "base", **{"model.dtype": "bfloat16"})
    found = plan(cfg, 50_257, 4, "h100", mfu=0.5)
    assert found.parameters == pytest.approx(124e6, rel=0.01)
    assert found.seconds(10**9) == pytest.approx(1e9 * found.flops_per_token / (0.5 * 4 * 989e12))
    assert plan(cfg, 50_257, 8, "h100").seconds(10**9) == pytest.approx(
        found.seconds(10**9) * 0.5 * 4 / (0.4 * 8)
    )


def test_a_mesh_divides_what_it_says():
    cfg = resolved(preset("llama", "base"), 8192)
    shapes = state_shapes(cfg)

    def on(data: int, fsdp: int, tensor: int):
        return memory(cfg, shapes, MeshConfig(data, fsdp, tensor), 16)

    whole = on(1, 1, 1)
    copies = on(4, 1, 1)
    assert copies.weights == whole.weights
    assert copies.activations == pytest.approx(whole.activations / 4)
    assert copies.logits == whole.logits / 4
    split = on(1, 4, 1)  # but for the norms, which are on every device
    assert split.weights == pytest.approx(whole.weights / 4, rel=1e-3)
    assert split.optimizer == pytest.approx(whole.optimizer / 4, rel=2e-3)
    assert split.activations == copies.activations
    assert split.weight_copies > 0 == copies.weight_copies
    tensor = on(1, 1, 4)
    assert tensor.weights == pytest.approx(whole.weights / 4, rel=1e-3)
    assert tensor.logits == whole.logits / 4
    # The residual stream and what is normalized stay whole.
    assert whole.activations / 4 < tensor.activations < whole.activations


def gpt2(**changes: object) -> Config:
    return resolved(preset("gpt2", "base", **changes), 50_257)


SHAPES = state_shapes(gpt2())


@given(
    device=st.sampled_from(list(DEVICES.values())),
    data=st.integers(1, 9),
    fsdp=st.sampled_from([1, 2, 8]),
    length=st.sampled_from([100, 256, 1024]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    on_cpu=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_largest_batch_fits_and_one_more_row_does_not(
    device, data, fsdp, length, dtype, on_cpu
):
    cfg = gpt2(**{"sequence_length": length, "model.dtype": dtype})
    mesh = MeshConfig(data, fsdp, 1)
    largest = largest_batch(cfg, SHAPES, mesh, device, on_cpu)
    usable = device.memory * device.usable
    assert largest % (data * fsdp) == 0
    assert memory(cfg, SHAPES, mesh, largest + data * fsdp, on_cpu).peak > usable
    assert not largest or memory(cfg, SHAPES, mesh, largest, on_cpu).peak <= usable


def lines(preset_cfg: Config, *arguments) -> dict[str, str]:
    shown = table(plan(preset_cfg, 30_000, *arguments))
    return {line[:20].strip(): line[20:] for line in shown.splitlines()}


def test_the_table_answers_what_fits():
    shown = lines(preset("japanese-1.0b"), 8, "a100-80gb")
    assert shown["run"] == "japanese-1.0b, 8 x a100-80gb, mesh data 8 x fsdp 1 x tensor 1"
    assert shown["parameters"] == "1,029,215,536"
    assert shown["optimizer"] == "7.67 GiB"
    assert shown["batch_size"] == "128 fits" and "as a power of two" in shown["largest"]
    assert "75% of it" in shown["room on a device"]
    assert "2.06e+10 tokens" in shown["Chinchilla"] and "1.4 days" in shown["Chinchilla"]
    assert shown["MFU"].startswith("0.4 of 312 TFLOP/s")
    # A T4 cannot hold its weights and moments: a mesh that splits them can.
    shown = lines(preset("japanese-1.0b", batch_size=8), 8, "t4")
    assert shown["batch_size"] == "8 does not fit" and shown["largest"] == "none fits on this mesh"
    assert shown["best mesh"].startswith("mesh data 4 x fsdp 2 x tensor 1")
    shown = lines(preset("japanese-1.0b"), 8, "t4")
    assert shown["best mesh"].startswith("none at batch_size 128; mesh data 1 x fsdp 8")
    shown = lines(preset("japanese-1.0b", batch_size=1), 1, "t4")
    assert shown["best mesh"] == "none fits: give more devices, or larger ones"


def test_this_machine_is_known_but_for_its_speed():
    found = plan(preset("llama"), 8192)
    assert found.fits and found.device.memory > 2**28
    if found.device.peak is None:
        assert found.seconds(1) is None
        assert "time unknown" in table(found)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_planned(name):
    cfg = preset(name)
    assert table(plan(cfg, cfg.tokenizer.vocab_size, 2, "tpu-v5e")).count("\n") > 8


def test_bad_input_is_one_line():
    cfg = preset("llama")
    for message, changes, arguments in [
        ("unknown device 'a100-80g'; did you mean 'a100-80gb'\\?", {}, (1, "a100-80g")),
        ("did you mean 'a100-", {}, (1, "a100")),
        ("there are: this, a100-40gb", {}, (1, "abacus")),
        ("makes 3 devices, but there are 8", {"mesh.fsdp": 3, "mesh.data": 1}, (8, "h100")),
        ("makes 16 devices, but there are 8", {"mesh.fsdp": 16}, (8, "h100")),
        ("batch_size 8 is not divisible by the 5 devices", {}, (5, "h100")),
        ("mesh.tensor 3 does not divide", {"mesh.tensor": 3}, (3, "h100")),
        ("--devices is 0", {}, (0, "h100")),
        ("--mfu is 40", {}, (1, "h100", 40)),
        ("--mfu is 0", {}, (1, "h100", 0.0)),
        ("is less than the tokenizer's", {"model.vocab_size": 100}, (1, "h100")),
    ]:
        with pytest.raises(UserError, match=message) as error:
            plan(preset("llama", **changes) if changes else cfg, 8192, *arguments)
        assert "\n" not in str(error.value)


def test_one_table_serves_the_plan_and_the_training():
    assert peak("NVIDIA H100 80GB HBM3") == DEVICES["h100"].peak == 989e12
    assert peak("TPU v5 lite") == 197e12
    assert peak("cpu") is None
    names = [name for device in DEVICES.values() for name in device.jax_kinds]
    assert len(names) == len(set(names))
