"""The optimizer against numpy, the schedules against their formulas, the loss against optax."""

import dataclasses
import functools
import math
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tsuzuri.config import Config, OptimConfig, replace
from tsuzuri.losses import cross_entropy, in_parts, objective
from tsuzuri.model import Decoder
from tsuzuri.optim import OPTIMIZERS, SCHEDULES, decayed, make_optimizer, warmup_steps
from tsuzuri.presets import PRESETS, preset
from tsuzuri.sharding import one_device, path_of, shardings

# For each field of OptimConfig: what it needs beside it, and the value it is flipped to.
WSD = {"schedule": "wsd"}
FLIPS: dict[str, tuple[dict[str, Any], Any]] = {
    "optimizer": ({}, "lion"),
    "schedule": ({}, "rsqrt"),
    "warmup_steps": ({}, 1),
    "decay_share": (WSD, 0.7),
    "final_ratio": (WSD, 0.5),
    "b1": ({}, 0.5),
    "b2": ({}, 0.5),
    "epsilon": ({}, 0.1),
    "weight_decay": ({}, 0.5),
    "decay_all": ({}, True),
    "clip_norm": ({}, 0.01),
    "label_smoothing": ({}, 0.2),
    "z_loss": ({}, 0.1),
}


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


def test_the_objective_is_the_loss_unless_it_is_told_otherwise():
    logits, targets, weights = random_batch()
    total, weight = cross_entropy(logits, targets, weights)
    assert objective(logits, targets, weights) == (total, total) and weight == weights.sum()


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.1, 0.0), (0.0, 0.01), (0.3, 0.2)])
def test_the_objective_is_that_of_the_papers(smoothing: float, z_loss: float):
    """Cross-entropy against the smoothed distribution, written out; and log(Z)^2."""
    logits, targets, weights = random_batch()
    exact = logits.astype(np.float64)
    log_z = np.log(np.exp(exact).sum(-1))
    wanted = (1 - smoothing) * np.eye(7)[targets] + smoothing / 7
    each = -(wanted * (exact - log_z[..., None])).sum(-1) + z_loss * log_z**2
    minimized, reported = objective(logits, targets, weights, smoothing, z_loss)
    assert float(minimized) == pytest.approx((each * weights).sum(), rel=1e-5)
    assert reported == cross_entropy(logits, targets, weights)[0]


def test_label_smoothing_is_optax_s():
    logits, targets, weights = random_batch()
    soft = optax.smooth_labels(jax.nn.one_hot(targets, 7), 0.1)
    each = optax.softmax_cross_entropy(logits, soft)
    minimized, _ = objective(logits, targets, weights, 0.1)
    assert float(minimized) == pytest.approx(float((each * weights).sum()), 1e-5)


@pytest.mark.parametrize("parts", [2, 6])
def test_a_loss_in_parts_is_the_loss(parts: int):
    """Its two sums, and its gradient, with the extras; never are all logits there."""
    rng = np.random.default_rng(0)
    x, head = rng.normal(size=(2, 6, 5)), {"kernel": rng.normal(size=(5, 7)), "bias": np.ones(7)}
    targets, weights = rng.integers(0, 7, (2, 6)), rng.random((2, 6))

    def loss(head: Any, x: Any, targets: Any, weights: Any) -> Any:
        logits = x @ head["kernel"] + jnp.broadcast_to(head["bias"], (*x.shape[:2], 7))
        return objective(logits, targets, weights, 0.1, 0.01)

    def gradient(loss: Any) -> Any:
        def scaled(head: Any, x: Any) -> Any:
            wanted, reported = loss(head, x, targets, weights)
            return 3 * wanted, reported

        return jax.jit(jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True))

    whole, in_some = gradient(loss), gradient(in_parts(loss, parts))
    for a, b in zip(*(jax.tree.leaves(f(head, x)) for f in (whole, in_some)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        in_parts(loss, parts)(head, x, targets, weights), loss(head, x, targets, weights), rtol=1e-6
    )
    shapes = f"[2,{6 // parts},7]"
    text = str(jax.make_jaxpr(in_some)(head, x))
    assert (
        shapes in text
        and "[2,6,7]" not in text
        and "[2,6,7]" in str(jax.make_jaxpr(whole)(head, x))
    )


@functools.cache
def learned(**changes: Any) -> Any:
    """Four matrices and a bias after 20 steps, by one optimizer on one objective."""
    flat = {f"optim.{key}": value for key, value in changes.items()}
    cfg = replace(Config(steps=20, learning_rate=0.05), flat)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20, 2, 4, 3)).astype(np.float32)
    targets = rng.integers(0, 5, (20, 2, 4))
    params = {
        "blocks": {"kernel": rng.normal(size=(3, 3)).astype(np.float32)},
        "head": {"kernel": rng.normal(size=(3, 5)).astype(np.float32), "bias": np.ones(5)},
    }
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    optimizer, _ = make_optimizer(cfg)

    def wanted(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = x @ params["blocks"]["kernel"] @ params["head"]["kernel"]
        logits += params["head"]["bias"][None, None]
        extras = cfg.optim.label_smoothing, cfg.optim.z_loss
        return objective(logits, y, jnp.ones(y.shape), *extras)[0] / y.size

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(wanted)(params, *batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), (inputs, targets))[0][0])(
        params
    )


def test_every_field_of_the_optimizer_has_a_case():
    assert set(FLIPS) == {f.name for f in dataclasses.fields(OptimConfig)}


@pytest.mark.parametrize("name", FLIPS)
def test_every_field_of_the_optimizer_does_something(name: str):
    beside, value = FLIPS[name]
    before, after = learned(**beside), learned(**beside | {name: value})
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, after)
    assert max(jax.tree.leaves(gaps)) > 1e-4


def test_every_choice_is_its_own():
    hints = get_type_hints(OptimConfig)
    for field, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        assert set(get_args(hints[field])) == set(known)
        ends = [learned(**{field: choice})["blocks"]["kernel"] for choice in known]
        for i, end in enumerate(ends):
            assert np.isfinite(end).all()
            assert all(np.abs(end - other).max() > 1e-4 for other in ends[:i])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name: str):
    """A matrix is recovered from what it does to random vectors."""
    changes = {"optim.optimizer": name, "optim.weight_decay": 0.0}
    optimizer, _ = make_optimizer(replace(Config(steps=200, learning_rate=0.1), changes))
    rng = np.random.default_rng(0)
    wanted = jnp.asarray(rng.normal(size=(6, 6)), jnp.float32)
    inputs = jnp.asarray(rng.normal(size=(200, 32, 6)), jnp.float32)

    def step(carry: Any, x: jax.Array) -> Any:
        params, state = carry

        def loss(p: Any) -> jax.Array:
            return jnp.mean((x @ p["blocks"]["kernel"] - x @ wanted) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    params = {"blocks": {"kernel": jnp.zeros((6, 6))}}
    _, losses = jax.lax.scan(step, (params, optimizer.init(params)), inputs)
    assert losses[-10:].mean() < losses[0] / 20


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_s_state_has_a_row_in_the_table_of_splits(name: str):
    """Matrices large enough that Adafactor factors them: their squares are a row and a column."""
    cfg = preset("gpt2", "base", **{"optim.optimizer": name, "model.num_layers": 1})
    model = nnx.eval_shape(lambda: Decoder(cfg.resolved_model(512), rngs=nnx.Rngs(0)))
    optimizer, _ = make_optimizer(cfg)
    state = jax.eval_shape(optimizer.init, nnx.to_pure_dict(nnx.state(model)))
    splits = jax.tree.leaves(shardings(one_device(), state))
    for leaf, split in zip(jax.tree.leaves(state), splits, strict=True):
        assert len(split.spec) <= leaf.ndim


def test_lion_is_the_published_one():
    """Algorithm 2 of Chen et al. 2023, in float64."""
    changes = {"optimizer": "lion", "schedule": "constant", "warmup_steps": 0, "clip_norm": 0.0}
    cfg = replace(Config(learning_rate=0.05), {f"optim.{k}": v for k, v in changes.items()})
    rng = np.random.default_rng(0)
    start, *gradients = (rng.normal(size=(4, 3)).astype(np.float32) for _ in range(6))
    optimizer, _ = make_optimizer(cfg)
    params = jnp.asarray(start)
    state = optimizer.init(params)
    expected, momentum, o = start.astype(np.float64), np.zeros((4, 3)), cfg.optim
    for g in gradients:
        updates, state = optimizer.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        sign = np.sign(o.b1 * momentum + (1 - o.b1) * g)
        expected = expected - 0.05 * (sign + o.weight_decay * expected)
        momentum = o.b2 * momentum + (1 - o.b2) * g
    np.testing.assert_allclose(params, expected, rtol=1e-5)


def test_adafactor_keeps_a_row_and_a_column():
    """The first step of Shazeer and Stern 2018, algorithm 4, without relative steps."""
    changes = {"optimizer": "adafactor", "schedule": "constant", "warmup_steps": 0}
    changes |= {"clip_norm": 0.0}
    cfg = replace(Config(learning_rate=0.05), {f"optim.{k}": v for k, v in changes.items()})
    start, gradient = np.random.default_rng(0).normal(size=(2, 128, 160)).astype(np.float32)
    optimizer, _ = make_optimizer(cfg)
    state = optimizer.init(jnp.asarray(start))
    assert max(leaf.size for leaf in jax.tree.leaves(state)) == 160
    updates, _ = optimizer.update(jnp.asarray(gradient), state, jnp.asarray(start))
    squares = gradient.astype(np.float64) ** 2
    estimate = squares.mean(1)[:, None] * squares.mean(0)[None] / squares.mean()
    step = gradient / np.sqrt(estimate)
    step /= max(1.0, np.sqrt((step**2).mean()))
    np.testing.assert_allclose(updates, -0.05 * (step + 0.1 * start), rtol=1e-3, atol=1e-6)


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


def test_rsqrt_is_that_of_lm1b():
    """Flax's lm1b: linear for 1000 steps, then 0.0016 x sqrt(1000 / step)."""
    _, schedule = make_optimizer(preset("lm1b"))
    rates = {0: 0.0, 500: 8e-4, 1000: 1.6e-3, 4000: 8e-4, 500_000: 1.6e-3 / math.sqrt(500)}
    assert [float(schedule(s)) for s in rates] == pytest.approx(list(rates.values()))


def test_wsd_stays_and_comes_down_at_the_end():
    changes = {"optim.schedule": "wsd", "optim.decay_share": 0.2}
    _, schedule = make_optimizer(replace(Config(steps=1000, learning_rate=0.4), changes))
    rates = {0: 0, 50: 0.2, 100: 0.4, 500: 0.4, 800: 0.4, 900: 0.22, 1000: 0.04}
    assert [float(schedule(s)) for s in rates] == pytest.approx(list(rates.values()), rel=1e-4)


def test_wsd_can_be_the_plain_line_downwards():
    changes = {"schedule": "wsd", "decay_share": 1.0, "warmup_steps": 0, "final_ratio": 0.0}
    cfg = replace(
        Config(steps=100, learning_rate=0.4), {f"optim.{k}": v for k, v in changes.items()}
    )
    _, schedule = make_optimizer(cfg)
    assert [float(schedule(s)) for s in (0, 25, 100)] == pytest.approx([0.4, 0.3, 0.0])


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_a_warmup_the_first_step_has_the_peak(name: str):
    changes = {"optim.schedule": name, "optim.warmup_steps": 0}
    _, schedule = make_optimizer(replace(Config(learning_rate=0.4), changes))
    assert float(schedule(0)) == pytest.approx(0.4)
    assert float(schedule(1)) == pytest.approx(0.4 / math.sqrt(2) if name == "rsqrt" else 0.4, 1e-4)


def test_the_warmup_is_a_tenth_of_the_run_at_most():
    assert warmup_steps(Config(steps=10_000)) == 100
    assert warmup_steps(Config(steps=300)) == 30
    assert warmup_steps(Config(steps=1)) == 0
    for name in SCHEDULES:
        for steps in (1, 2, 10, 11):
            cfg = replace(Config(steps=steps, learning_rate=0.4), {"optim.schedule": name})
            _, schedule = make_optimizer(cfg)
            assert all(math.isfinite(schedule(s)) for s in range(steps + 1))
            assert max(float(schedule(s)) for s in range(steps + 1)) == pytest.approx(0.4)


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
