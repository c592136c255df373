"""The optimizer against numpy, the schedules against their formulas, the loss against optax."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tsuzuri.config import Config, replace
from tsuzuri.losses import cross_entropy
from tsuzuri.model import Decoder
from tsuzuri.optim import decayed, make_optimizer, warmup_steps
from tsuzuri.presets import PRESETS, preset
from tsuzuri.sharding import path_of


def random_batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, targets and 0-or-1 weights of 3 sequences of 5 tokens, 7 words known."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (3, 5, 7)).astype(np.float32)
    weights = rng.integers(0, 2, (3, 5)).astype(np.float32)
    return logits, rng.integers(0, 7, (3, 5)), weights


def test_the_loss_is_optax_s_and_numpy_s():
    logits, targets, weights = random_batch()
    total, weight = cross_entropy(logits, targets, weights)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    assert float(total) == pytest.approx(float((each * weights).sum()), rel=1e-5)
    exact = np.exp(logits.astype(np.float64))
    exact /= exact.sum(-1, keepdims=True)
    chosen = np.take_along_axis(exact, targets[..., None], -1)[..., 0]
    assert float(total) == pytest.approx(-(np.log(chosen) * weights).sum(), rel=1e-5)
    assert float(weight) == weights.sum()


def test_what_has_no_weight_has_no_say():
    logits, targets, weights = random_batch()
    slopes = jax.grad(lambda x: cross_entropy(x, targets, weights)[0])(logits)
    assert not np.any(slopes[weights == 0])
    assert np.all(np.abs(slopes[weights == 1]).max(-1) > 0)
    assert float(cross_entropy(logits, targets, np.zeros_like(weights))[0]) == 0


def test_the_mean_over_batches_does_not_depend_on_how_they_are_cut():
    logits, targets, weights = random_batch()
    whole = cross_entropy(logits, targets, weights)
    rows = [
        cross_entropy(logits[i : i + 1], targets[i : i + 1], weights[i : i + 1]) for i in range(3)
    ]
    parts = [sum(float(row[k]) for row in rows) for k in (0, 1)]
    assert parts[0] / parts[1] == pytest.approx(float(whole[0] / whole[1]), rel=1e-6)


def test_large_logits_are_finite():
    logits = jnp.array([[[1e4, 0.0, -1e4]]])
    total, _ = cross_entropy(logits, jnp.array([[1]]), jnp.ones((1, 1)))
    assert float(total) == pytest.approx(1e4)


def test_cosine_warms_up_and_comes_down():
    cfg = Config(steps=1000, learning_rate=0.4)
    _, schedule = make_optimizer(cfg)
    assert [float(schedule(s)) for s in (0, 50, 100)] == pytest.approx([0, 0.2, 0.4])
    half = 0.04 + (0.4 - 0.04) / 2
    assert float(schedule(550)) == pytest.approx(half)
    assert float(schedule(1000)) == pytest.approx(0.04)
    rates = [float(schedule(s)) for s in range(100, 1001, 100)]
    assert rates == sorted(rates, reverse=True)


def test_constant_warms_up_and_stays():
    changes = {"optim.schedule": "constant", "optim.warmup_steps": 4}
    cfg = replace(Config(steps=1000, learning_rate=0.4), changes)
    _, schedule = make_optimizer(cfg)
    rates = [float(schedule(s)) for s in (0, 1, 4, 5, 10**6)]
    assert rates == pytest.approx([0, 0.1, 0.4, 0.4, 0.4])


@pytest.mark.parametrize("name", ["cosine", "constant"])
def test_without_a_warmup_the_first_step_has_the_peak(name: str):
    changes = {"optim.schedule": name, "optim.warmup_steps": 0}
    _, schedule = make_optimizer(replace(Config(learning_rate=0.4), changes))
    assert [float(schedule(s)) for s in (0, 1)] == pytest.approx([0.4, 0.4], rel=1e-4)


def test_the_warmup_is_a_tenth_of_the_run_at_most():
    assert warmup_steps(Config(steps=10_000)) == 100
    assert warmup_steps(Config(steps=300)) == 30
    assert warmup_steps(Config(steps=1)) == 0
    for steps in (1, 2, 9, 10, 11):
        _, schedule = make_optimizer(Config(steps=steps, learning_rate=0.4))
        assert all(math.isfinite(schedule(s)) for s in range(steps + 1))


@pytest.mark.parametrize("name", PRESETS)
def test_weight_decay_shrinks_matrices_only(name: str):
    cfg = preset(name, **{"model.qk_norm": True}).resolved_model(300)
    model = nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0)))
    mask = decayed(nnx.to_pure_dict(nnx.state(model)))
    for keys, shrinks in jax.tree_util.tree_leaves_with_path(mask):
        path = path_of(keys)
        matrix = path.endswith(("kernel", "token_embed/embedding"))
        assert shrinks == matrix, path


def numpy_adamw(params: Any, gradients: list[Any], rates: list[float], cfg: Config) -> Any:
    """Clipping by the global norm, then algorithm 2 of Loshchilov and Hutter 2019, in float64."""
    o = cfg.optim
    out = {name: p.astype(np.float64) for name, p in params.items()}
    m, v = dict.fromkeys(out, 0.0), dict.fromkeys(out, 0.0)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        norm = math.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradient.values()))
        for name, g in gradient.items():
            if o.clip_norm:
                g = g * min(1.0, o.clip_norm / norm)
            m[name] = o.b1 * m[name] + (1 - o.b1) * g
            v[name] = o.b2 * v[name] + (1 - o.b2) * g**2
            step = (m[name] / (1 - o.b1**t)) / (np.sqrt(v[name] / (1 - o.b2**t)) + o.epsilon)
            decay = o.weight_decay if g.ndim >= 2 else 0.0
            out[name] = out[name] - rate * (step + decay * out[name])
    return out


@pytest.mark.parametrize("clip", [0.0, 1.0, 1e6])
def test_adamw_is_the_published_one(clip: float):
    changes = {"optim.clip_norm": clip, "optim.schedule": "constant", "optim.warmup_steps": 2}
    cfg = replace(Config(learning_rate=0.05), changes)
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "bias": (3,)}

    def draw() -> dict[str, np.ndarray]:
        return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}

    start, gradients = draw(), [draw() for _ in range(4)]
    optimizer, schedule = make_optimizer(cfg)
    params = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    rates = [float(schedule(s)) for s in range(4)]
    assert rates == pytest.approx([0, 0.025, 0.05, 0.05])
    expected = numpy_adamw(start, gradients, rates, cfg)
    for name in shapes:
        np.testing.assert_allclose(params[name], expected[name], rtol=2e-5, atol=2e-6)
