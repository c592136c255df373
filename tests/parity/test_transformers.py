"""gpt2 and llama against Hugging Face transformers, where it is installed (extra `peers`)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from peers import compare, decoder

from tsuzuri.presets import preset

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTH, VOCAB = 24, 50


def ids() -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCAB, (3, LENGTH))


def logits(model: Any, weights: dict[str, Any]) -> np.ndarray:
    """Those of a model of transformers with our weights."""
    torch.set_num_threads(1)  # beside JAX's threads, more are slower
    state = {name: torch.tensor(np.array(array)) for name, array in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    with torch.no_grad():
        return model.eval()(torch.tensor(ids())).logits.numpy()


def test_gpt2():
    changes = {"model.num_layers": 2, "model.embed_dim": 64}
    cfg = preset("gpt2", sequence_length=LENGTH, **changes).resolved_model(VOCAB)
    model, params = decoder(cfg)
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": LENGTH, "vocab_size": VOCAB}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **ends))
    weights = {
        "transformer.wte.weight": params["token_embed"]["embedding"],
        "transformer.wpe.weight": params["position_embed"]["embedding"],
        "transformer.ln_f.weight": params["final_norm"]["scale"],
        "transformer.ln_f.bias": params["final_norm"]["bias"],
    }
    for i, block in params["blocks"].items():
        attention = block["attention"]
        for part, theirs in (("kernel", "weight"), ("bias", "bias")):
            qkv = [attention[name][part] for name in ("query", "key", "value")]
            weights |= {
                f"transformer.h.{i}.attn.c_attn.{theirs}": np.concatenate(qkv, axis=-1),
                f"transformer.h.{i}.attn.c_proj.{theirs}": attention["out"][part],
                f"transformer.h.{i}.mlp.c_fc.{theirs}": block["mlp"]["up"][part],
                f"transformer.h.{i}.mlp.c_proj.{theirs}": block["mlp"]["down"][part],
            }
        for part, theirs in (("scale", "weight"), ("bias", "bias")):
            weights[f"transformer.h.{i}.ln_1.{theirs}"] = block["attention_norm"][part]
            weights[f"transformer.h.{i}.ln_2.{theirs}"] = block["mlp_norm"][part]
    expected = logits(peer, weights)
    compare("gpt2", "transformers GPT2LMHeadModel", model(jnp.asarray(ids())), expected)


@pytest.mark.parametrize("kv_heads", [4, 2], ids=["as-many-kv-heads", "grouped-query"])
@pytest.mark.parametrize("peer_name", ["Llama", "Qwen3"])
def test_llama(peer_name: str, kv_heads: int):
    """Qwen3 is Llama with a norm on each head's queries and keys."""
    qk_norm = peer_name == "Qwen3"
    changes = {"num_layers": 2, "embed_dim": 64, "num_kv_heads": kv_heads, "qk_norm": qk_norm}
    changes |= {"head_dim": 24 if qk_norm else 16}
    flat = {f"model.{key}": value for key, value in changes.items()}
    cfg = preset("llama", sequence_length=LENGTH, **flat).resolved_model(VOCAB)
    model, params = decoder(cfg)
    peer_cfg = getattr(transformers, f"{peer_name}Config")(
        vocab_size=VOCAB,
        hidden_size=cfg.embed_dim,
        intermediate_size=cfg.mlp_dim,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        num_key_value_heads=kv_heads,
        head_dim=cfg.head_dim,
        rms_norm_eps=cfg.norm_epsilon,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    peer = getattr(transformers, f"{peer_name}ForCausalLM")(peer_cfg)
    weights = {
        "model.embed_tokens.weight": params["token_embed"]["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
    }
    for i, block in params["blocks"].items():
        layer = f"model.layers.{i}"
        weights[f"{layer}.input_layernorm.weight"] = block["attention_norm"]["scale"]
        weights[f"{layer}.post_attention_layernorm.weight"] = block["mlp_norm"]["scale"]
        for ours, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            kernel = block["attention"][ours]["kernel"]
            weights[f"{layer}.self_attn.{letter}_proj.weight"] = kernel.T
        for name in ("gate", "up", "down"):
            weights[f"{layer}.mlp.{name}_proj.weight"] = block["mlp"][name]["kernel"].T
        if qk_norm:
            for ours, letter in (("query_norm", "q"), ("key_norm", "k")):
                scale = block["attention"][ours]["scale"]
                weights[f"{layer}.self_attn.{letter}_norm.weight"] = scale
    expected = logits(peer, weights)
    name = f"llama, {kv_heads} of 4 kv heads" + (", qk-norm" if qk_norm else "")
    reference = f"transformers {peer_name}ForCausalLM"
    compare(name, reference, model(jnp.asarray(ids())), expected)
