"""Presets are the models and recipes of their publishers, and say what sizes they have."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from tsuzuri import cli
from tsuzuri.config import ModelConfig, flatten
from tsuzuri.data import Batch
from tsuzuri.errors import UserError
from tsuzuri.model import Decoder
from tsuzuri.presets import ONE_SHAPE, SIZED, SIZES, preset
from tsuzuri.sharding import one_device
from tsuzuri.step import make_training

# jax-llm's README command: --num_layers 12 --embed_size 512 --head_size 64 --num_heads 8
README = {"num_layers": 12, "embed_dim": 512, "head_dim": 8, "num_heads": 8}


def count(cfg: ModelConfig) -> int:
    shapes = nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes)))


@pytest.mark.parametrize(
    ("name", "vocab_size", "shape", "said", "exactly"),
    [
        # By hand for NanoLM: (2 x 50,304 + 256) x 512 for the tables and the head, 50,304 for its
        # bias, 12 x 2,233,536 for the blocks, 1024 for the last norm.
        ("nanolm", 50_304, README, 78.5e6, 78_496_128),
        ("lm1b", 30_000, {}, 0.05e9, 49_653_040),
        ("japanese-default", 30_000, {}, 0.05e9, 49_653_040),
        ("japanese-0.1b", 30_000, {}, 0.13e9, 131_129_136),
        ("japanese-1.0b", 30_000, {}, 1.0e9, 1_029_215_536),
        ("minigpt", 50_257, {}, 27.4e6, 27_430_481),
    ],
)
def test_the_counts_of_the_publishers(
    name: str, vocab_size: int, shape: dict[str, Any], said: float, exactly: int
):
    cfg = preset(name, **{f"model.{k}": v for k, v in shape.items()})
    found = count(cfg.resolved_model(vocab_size))
    assert found == exactly
    assert found == pytest.approx(said, rel=0.03)


# What the publishers' configs say; lm1b_default.py, japanese_*_v1.py, the tutorial, jax-llm's
# train.py. A batch of lm1b is 32 (1.0b: 16) on each of 8 devices.
LM1B = {
    "steps": 500_000,
    "learning_rate": 0.0016,
    "tokenizer.kind": "unigram",
    "tokenizer.vocab_size": 30_000,
    "features.packing": "packed",
    "optim.optimizer": "adamw",
    "optim.schedule": "rsqrt",
    "optim.warmup_steps": 1000,
    "optim.b1": 0.9,
    "optim.b2": 0.98,
    "optim.epsilon": 1e-9,
    "optim.weight_decay": 0.1,
    "optim.decay_all": True,
    "optim.clip_norm": 0.0,
    "optim.label_smoothing": 0.0,
    "model.dropout": 0.1,
    "model.norm_epsilon": 1e-6,
    "model.dtype": "bfloat16",
}
RECIPES = {
    "lm1b": LM1B | {"batch_size": 256, "sequence_length": 128, "tokenizer.sample_mb": 5},
    "japanese-default": LM1B | {"batch_size": 256, "sequence_length": 128},
    "japanese-0.1b": LM1B
    | {"batch_size": 256, "sequence_length": 256, "tokenizer.sample_mb": 400}
    | {"tokenizer.options": "--character_coverage=0.9995 --byte_fallback=true"},
    "japanese-1.0b": LM1B | {"batch_size": 128, "sequence_length": 1024},
    "minigpt": {
        "batch_size": 256,
        "sequence_length": 256,
        "learning_rate": 1e-3,
        "tokenizer.path": "gpt2",
        "optim.schedule": "constant",
        "optim.warmup_steps": 0,
        "optim.b2": 0.999,
        "optim.weight_decay": 0.0,
        "optim.clip_norm": 0.0,
        "model.num_layers": 4,
        "model.norm_epsilon": 1e-6,
        "model.dropout": 0.0,
    },
    "nanolm": {
        "learning_rate": 1e-3,
        "optim.b2": 0.999,
        "optim.weight_decay": 1e-4,
        "optim.decay_all": True,
        "model.norm_epsilon": 1e-6,
        "model.dropout": 0.1,
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_of_the_publishers(name: str):
    found = flatten(preset(name))
    assert {key: found[key] for key in RECIPES[name]} == RECIPES[name]


def test_a_preset_of_one_shape_takes_no_size(tmp_path: Any, capsys: pytest.CaptureFixture[str]):
    assert set(SIZED).isdisjoint(ONE_SHAPE)
    for name in ONE_SHAPE:
        assert preset(name).size == ""
        with pytest.raises(UserError, match=f"preset '{name}' has one shape; leave out the size"):
            preset(name, "small")
    text = tmp_path / "book.txt"
    text.write_text("吾輩は猫である。", "utf-8")
    command = ["train", str(text), "--run", str(tmp_path / "run"), "--preset", "lm1b"]
    assert cli.main([*command, "--size", "tiny"]) == 2
    assert capsys.readouterr().err.startswith("tsuzuri: preset 'lm1b' has one shape")


def test_a_family_has_our_sizes():
    for name in SIZED:
        assert preset(name) == preset(name, "tiny")
        assert {preset(name, size).model.embed_dim for size in SIZES} == {128, 384, 768}
        with pytest.raises(UserError, match=r"unknown size 'larg'; .* tiny, small, base"):
            preset(name, "larg")


@pytest.mark.parametrize("name", ["lm1b", "minigpt"])
def test_a_recipe_takes_a_step(name: str):
    """Small, on blocks of two documents each: the loss is finite, and the parameters move."""
    shape = {"num_layers": 1, "num_heads": 2, "embed_dim": 16, "mlp_dim": 16, "context_length": 0}
    changes = {f"model.{key}": value for key, value in shape.items()}
    cfg = preset(name, batch_size=2, sequence_length=8, steps=20, **changes)
    _, init, train_steps = make_training(cfg, cfg.resolved_model(32), one_device())
    state = init(jax.random.key(0))
    before = jax.tree.map(np.asarray, state.params)
    ids = np.random.default_rng(0).integers(0, 32, (2, 2, 9), dtype=np.int32)
    batch = Batch(
        ids[..., :-1],
        ids[..., 1:],
        np.ones((2, 2, 8), np.float32),
        np.broadcast_to([0, 0, 0, 1, 1, 1, 1, 1], (2, 2, 8)),
        np.broadcast_to([0, 1, 2, 0, 1, 2, 3, 4], (2, 2, 8)),
    )
    state, metrics = train_steps(state, jax.tree.map(lambda a: a[:, None], batch))
    assert np.isfinite(metrics["loss"]).all() and metrics["sound"].all()
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, state.params)
    assert moved["blocks"][0]["mlp"]["up"]["kernel"] and moved["token_embed"]["embedding"]
