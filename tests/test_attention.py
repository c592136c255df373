"""Each attention is softmax attention; what is not for a device or model is said."""

import jax
import numpy as np
import pytest

from tsuzuri.attention import blocked, choose, name_of, splash
from tsuzuri.config import ComputeConfig
from tsuzuri.errors import UserError
from tsuzuri.presets import preset
from tsuzuri.sharding import one_device

B, G, R, T, K = 2, 2, 2, 128, 64
LLAMA = preset("llama", "base", **{"model.dtype": "bfloat16"}).resolved_model(512)


def arrays() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    shapes = (B, G, R, T, K), (B, G, T, K), (B, G, T, K)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def written_out(q: np.ndarray, k: np.ndarray, v: np.ndarray, segments: np.ndarray | None):
    """In float64, without a trick."""
    scores = np.einsum("bgrtk,bgsk->bgrts", q, k, dtype=np.float64) / np.sqrt(K)
    seen = np.tril(np.ones((T, T), bool))[None]
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    weights = np.where(seen[:, None, None], np.exp(scores), 0)
    return np.einsum("bgrts,bgsk->bgrtk", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("segments", [None, np.arange(T)[None].repeat(B, 0) // 50])
@pytest.mark.parametrize("kernel", ["blocked", "splash"])
def test_it_is_attention_and_so_is_its_gradient(kernel: str, segments: np.ndarray | None):
    attention = blocked if kernel == "blocked" else splash(one_device(), interpret=True)
    given = arrays()
    out, back = jax.vjp(lambda *given: attention(*given, segments), *given)
    np.testing.assert_allclose(out, written_out(*given, segments), atol=3e-6)
    direction = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
    along = [np.random.default_rng(n).normal(size=a.shape) for n, a in enumerate(given)]
    ahead, behind = (
        written_out(*(a + s * 1e-4 * d for a, d in zip(given, along, strict=True)), segments)
        for s in (1, -1)
    )
    slope = ((ahead - behind) / 2e-4 * direction).sum()
    found = sum((np.asarray(g) * d).sum() for g, d in zip(back(direction), along, strict=True))
    assert found == pytest.approx(slope, rel=1e-4)


def test_each_device_gets_the_fastest_that_takes_the_model():
    assert choose(ComputeConfig(), LLAMA, 1024, one_device()) is blocked
    assert name_of(ComputeConfig(), LLAMA, 1024, "gpu") == "cudnn"
    assert name_of(ComputeConfig(), LLAMA, 1024, "tpu") == "splash"
    assert name_of(ComputeConfig(), LLAMA, 100, "tpu") == "blocked"
    assert name_of(ComputeConfig(attention="blocked"), LLAMA, 1024, "gpu") == "blocked"


@pytest.mark.parametrize(
    ("asked", "platform", "length", "message"),
    [
        ("cudnn", "cpu", 1024, "it is for NVIDIA GPUs, and this is a cpu; give auto or blocked"),
        ("splash", "gpu", 1024, "it is for TPUs, and this is a gpu"),
        ("splash", "tpu", 100, "steps of 128, and this is 100"),
    ],
)
def test_what_is_not_to_be_had_is_said(asked, platform, length, message):
    with pytest.raises(UserError, match=message):
        name_of(ComputeConfig(attention=asked), LLAMA, length, platform)
