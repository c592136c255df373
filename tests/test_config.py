"""The Config: what is wrong is said at once, in one line that names the field."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri.config import Config, differences, flatten, from_json, replace, suggestion
from tsuzuri.errors import UserError
from tsuzuri.presets import PRESETS, SIZED, SIZES, preset

NAN, INFINITY = float("nan"), float("inf")

WRONG: list[tuple[str, Any]] = [
    ("steps", 0),
    ("batch_size", 0),
    ("sequence_length", -1),
    ("eval_every", 0),
    ("eval_blocks", 0),
    ("save_every", 0),
    ("keep_checkpoints", 0),
    ("log_every", 0),
    ("steps_per_call", 0),
    ("seed", -1),
    ("seed", 2**31),
    ("sample_every", -1),
    ("learning_rate", 0.0),
    ("learning_rate", -1e-3),
    ("learning_rate", NAN),
    ("learning_rate", INFINITY),
    ("features.held_out", 0.0),
    ("features.held_out", NAN),
    ("tokenizer.sample_mb", 0),
    ("model.num_layers", 0),
    ("model.num_heads", 0),
    ("model.embed_dim", 0),
    ("model.num_heads", 3),
    ("model.num_kv_heads", 3),
    ("model.head_dim", 7),
    ("model.mlp_dim", -1),
    ("model.context_length", 100),
    ("model.head_bias", True),
    ("model.dropout", 1.0),
    ("model.dropout", NAN),
    ("model.norm_epsilon", 0.0),
    ("model.rope_theta", NAN),
    ("optim.warmup_steps", -1),
    ("optim.final_ratio", 1.5),
    ("optim.b1", 1.0),
    ("optim.b2", NAN),
    ("optim.epsilon", 0.0),
    ("optim.weight_decay", -0.1),
    ("optim.clip_norm", NAN),
    ("mesh.data", -1),
    ("mesh.fsdp", 0),
    ("mesh.tensor", 0),
    ("sample.max_new_tokens", 0),
    ("sample.temperature", NAN),
    ("sample.temperature", -1.0),
    ("sample.top_k", -1),
    ("steps", "many"),
    ("steps", 1.5),
    ("steps", [5]),
    ("steps", None),
    ("steps", True),
    ("learning_rate", True),
    ("text.field", True),
    ("learning_rate", {"peak": 1}),
    ("learning_rate", 10**400),
    ("model.final_norm", [True]),
    ("model.norm", ["rmsnorm"]),
    ("text.field", ["text"]),
    ("track", "tensorboard"),
    ("learning_rate", "fast"),
    ("model.final_norm", "perhaps"),
    ("model.positions", "alibi"),
    ("optim.schedule", ""),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_is_one_line_that_names_the_field(key: str, value: Any):
    with pytest.raises(UserError) as caught:
        replace(Config(), {key: value})
    message = str(caught.value)
    assert key in message
    assert "\n" not in message


def test_scaling_the_tied_head_needs_a_tied_head():
    with pytest.raises(UserError, match=r"model\.scale_tied_head needs model\.tied_head"):
        replace(Config(), {"model.scale_tied_head": True, "model.tied_head": False})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("model.num_layer", "model.num_layers"),
        ("num-layers", "model.num_layers"),
        ("--num-layers", "model.num_layers"),
        ("learnin_rate", "learning_rate"),
        ("optim.beta2", "optim.b2"),
    ],
)
def test_an_unknown_key_suggests_the_right_one(wrong: str, right: str):
    with pytest.raises(UserError) as caught:
        replace(Config(), {wrong: 1})
    assert str(caught.value) == f"unknown config key '{wrong}'; did you mean '{right}'?"


def test_nothing_is_suggested_where_nothing_is_near():
    assert suggestion("quux", flatten(Config())) == ""


def test_text_is_read_as_the_fields_type():
    flags = {"steps": "20", "learning_rate": "1e-4", "model.final_norm": "False", "seed": 3.0}
    cfg = replace(Config(), flags)
    assert (cfg.steps, cfg.learning_rate, cfg.model.final_norm, cfg.seed) == (20, 1e-4, False, 3)
    assert type(cfg.seed) is int


# A sound value of every kind, for any fields at once.
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 10**9),
        "seed": st.integers(0, 2**31 - 1),
        "learning_rate": st.floats(1e-9, 10),
        "text.encoding": st.text(),
        "sample.prompt": st.text(),
        "model.final_norm": st.booleans(),
        "model.positions": st.sampled_from(["learned", "sinusoidal", "rope"]),
        "model.num_layers": st.integers(1, 200),
        "optim.clip_norm": st.floats(0, 1e6),
        "mesh.fsdp": st.integers(1, 4096),
    },
)


@settings(max_examples=60, deadline=None)
@given(CHANGES)
def test_flatten_and_replace_are_inverse(changes: dict[str, Any]):
    cfg = replace(Config(), changes)
    flat = flatten(cfg)
    assert flat | changes == flat
    assert replace(Config(), flat) == cfg
    assert replace(Config(), json.loads(json.dumps(flat))) == cfg
    # As flags: everything is text.
    assert replace(Config(), {key: str(value) for key, value in flat.items()}) == cfg
    found = differences(Config(), cfg)
    assert {key: after for key, (_, after) in found.items()}.items() <= changes.items()
    assert replace(Config(), {key: after for key, (_, after) in found.items()}) == cfg


def test_a_config_file_is_flat_or_nested(tmp_path: Path):
    file = tmp_path / "config.json"
    file.write_text('{"steps": 7, "model": {"num_layers": 6}, "optim.b2": 0.9}', "utf-8")
    flat = from_json(file)
    assert flat == {"steps": 7, "model.num_layers": 6, "optim.b2": 0.9}
    assert replace(Config(), flat).model.num_layers == 6


@pytest.mark.parametrize("content", ["[1, 2]", '{"steps": ', "\xff"])
def test_what_is_no_config_file_is_said(tmp_path: Path, content: str):
    file = tmp_path / "config.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json"):
        from_json(file)
    with pytest.raises(UserError, match=r"absent\.json: no such file"):
        from_json(tmp_path / "absent.json")


def test_a_resolved_model_has_no_zero_left():
    zeros = {"vocab_size", "context_length", "num_kv_heads", "head_dim", "mlp_dim"}
    for name in PRESETS:
        for size in SIZES if name in SIZED else [""]:
            model = dataclasses.asdict(preset(name, size).resolved_model(1000))
            assert all(model[key] > 0 for key in zeros)
    model = preset("llama", "base").resolved_model(1000)
    assert (model.context_length, model.num_kv_heads, model.head_dim) == (256, 12, 64)
    assert model.mlp_dim == 2048  # 8/3 x 768
    assert preset("gpt2", "base").resolved_model(1000).mlp_dim == 3072
    # 8/3 x 128 is 341.3: the next multiple of 32
    assert preset("llama").resolved_model(1000).mlp_dim == 352


def test_the_model_may_have_room_beyond_the_tokenizer_but_not_less():
    cfg = replace(Config(), {"model.vocab_size": 1024})
    assert cfg.resolved_model(1000).vocab_size == 1024
    with pytest.raises(UserError, match=r"model\.vocab_size 1024 is less than .* 1025"):
        cfg.resolved_model(1025)


def test_presets_know_their_name_and_take_changes():
    for name in PRESETS:
        for size in SIZES if name in SIZED else [""]:
            cfg = preset(name, size, steps=5, **{"model.num_layers": 3})
            assert (cfg.preset, cfg.size, cfg.steps, cfg.model.num_layers) == (name, size, 5, 3)


@pytest.mark.parametrize(
    ("name", "size", "hint"),
    [("lama", "tiny", "did you mean 'llama'?"), ("gpt2", "smal", "did you mean 'small'?")],
)
def test_an_unknown_preset_or_size_suggests_the_right_one(name: str, size: str, hint: str):
    with pytest.raises(UserError) as caught:
        preset(name, size)
    assert hint in str(caught.value)
