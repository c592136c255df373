import io
import itertools
import warnings

import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest
import sentencepiece
from flax import config as flax_config
from flax import linen as nn
from flax import nnx
from flax.training import checkpoints, train_state

from tsuzuri import tokenizer
from tsuzuri.corpus.tales import documents
from tsuzuri.errors import UserError
from tsuzuri.generate import Generator
from tsuzuri.interop import lm1b
from tsuzuri.model import Decoder
from tsuzuri.sampling import Sampling

V, D, H, F, L, T = 1200, 32, 4, 48, 2, 24


class TransformerLM(nn.Module):
    """Flax's lm1b example in Linen, from its description: it takes targets and shifts them itself.

    Vaswani et al. 2017's decoder: sinusoids (all sines, then all cosines), layer norms before the
    sublayers and at the end, no bias in the attention; an untied head, or the embedding divided by
    sqrt(D).
    """

    tied: bool = False

    @nn.compact
    def __call__(self, targets_BT):
        return Stack(self.tied, name="decoder")(targets_BT)


class Stack(nn.Module):
    tied: bool

    @nn.compact
    def __call__(self, targets_BT):
        embed = nn.Embed(V, D, embedding_init=nn.initializers.normal(1.0))
        x_BTD = embed(jnp.pad(targets_BT, ((0, 0), (1, 0)))[:, :-1])
        rates = 1e4 ** -(np.arange(D // 2) / (D // 2 - 1))
        angles = np.arange(targets_BT.shape[1])[:, None] * rates[None, :]
        x_BTD = x_BTD + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[None]
        for i in range(L):
            x_BTD = SubLayers(name=f"encoderdecoderblock_{i}")(x_BTD)
        x_BTD = nn.LayerNorm(name="encoderdecoder_norm")(x_BTD)
        if self.tied:
            return embed.attend(x_BTD) / np.sqrt(D)
        return nn.Dense(V, bias_init=nn.initializers.normal(0.1), name="logitdense")(x_BTD)


class SubLayers(nn.Module):
    @nn.compact
    def __call__(self, x_BTD):
        attention = nn.MultiHeadDotProductAttention(H, use_bias=False, name="SelfAttention_0")
        mask = nn.make_causal_mask(x_BTD[..., 0])
        x_BTD = x_BTD + attention(nn.LayerNorm()(x_BTD), mask=mask)
        return x_BTD + Feed(name="MlpBlock_0")(nn.LayerNorm()(x_BTD))


class Feed(nn.Module):
    @nn.compact
    def __call__(self, x_BTD):
        h_BTF = nn.relu(nn.Dense(F, bias_init=nn.initializers.normal(0.1))(x_BTD))
        return nn.Dense(D, bias_init=nn.initializers.normal(0.1))(h_BTF)


@pytest.fixture(scope="module")
def spm() -> bytes:
    """A tokenizer as the program trains it: by the library's defaults but for a few options."""
    text = "".join(document.text for document in itertools.islice(documents(), 60))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(text.splitlines()), model_writer=model, minloglevel=2,
        vocab_size=V, model_type="unigram", character_coverage=0.9995, byte_fallback=True,
    )  # fmt: skip
    return model.getvalue()


def write(folder, spm, tied=False, seed=0):
    """A run folder as the program leaves it, with random parameters; they are returned."""
    model, random = TransformerLM(tied), np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, T), np.int32))["params"]
    params = jax.tree.map(lambda a: np.float32(random.normal(0, 0.3, a.shape)), shapes)
    state = train_state.TrainState.create(
        apply_fn=model.apply, params=params, tx=optax.adamw(1e-3, b2=0.98)
    )
    with flax_config.temp_flip_flag("use_orbax_checkpointing", False), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the format is Flax's old one
        checkpoints.save_checkpoint(folder, state, 499999)
    (folder / "sentencepiece_model").write_bytes(spm)
    return params


def logits(found, targets_BT):
    """Ours: the model sees what stands before each target."""
    begins_B1 = np.full((len(targets_BT), 1), found.tokenizer.begin_of_text)
    inputs_BT = np.concatenate([begins_B1, targets_BT[:, :-1]], axis=1)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(found.model, rngs=nnx.Rngs(0))))
    return jax.jit(lambda p, ids: nnx.merge(graphdef, p)(ids))(found.params, inputs_BT)


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_written_by_flax_gives_the_same_logits(tmp_path, spm, tied):
    params = write(tmp_path, spm, tied)
    targets_BT = np.random.default_rng(1).integers(3, V, (2, T))
    wanted = jax.jit(TransformerLM(tied).apply)({"params": params}, targets_BT)
    told: list[str] = []
    assert lm1b.is_checkpoint(tmp_path)
    found = lm1b.read(tmp_path, told.append)
    np.testing.assert_allclose(logits(found, targets_BT), wanted, rtol=1e-4, atol=1e-4)
    cfg = found.model
    assert (cfg.num_layers, cfg.num_heads, cfg.head_dim) == (L, H, D // H)
    assert (cfg.embed_dim, cfg.mlp_dim, cfg.vocab_size) == (D, F, V)
    assert (cfg.tied_head, cfg.scale_tied_head, cfg.head_bias) == (tied, tied, not tied)
    leaves = jax.tree.leaves(found.params)
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    assert f"{sum(leaf.size for leaf in leaves):,} parameters" in told[0]


def test_the_newest_checkpoint_is_read_and_bfloat16_becomes_float32(tmp_path, spm):
    write(tmp_path, spm, seed=5)
    old = (tmp_path / "checkpoint_499999").rename(tmp_path / "checkpoint_90000")
    state = flax.serialization.msgpack_restore(old.read_bytes())
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), state["params"])
    newer = flax.serialization.to_bytes({"step": 100000, "params": params})
    (tmp_path / "checkpoint_100000").write_bytes(newer)
    found = lm1b.read(tmp_path, print)
    table = params["decoder"]["Embed_0"]["embedding"].astype(jnp.float32)
    np.testing.assert_array_equal(found.params["token_embed"]["embedding"], table)
    assert found.params["token_embed"]["embedding"].dtype == np.float32


def test_its_tokenizer_keeps_the_ids_of_the_model_and_can_be_saved(tmp_path, spm):
    write(tmp_path, spm)
    found = lm1b.read(tmp_path, print)
    tok = found.tokenizer
    assert (tok.begin_of_text, tok.padding, tok.end_of_text, tok.unknown) == (0, 1, 2, 0)
    assert tok.vocab_size == V
    engine = sentencepiece.SentencePieceProcessor.from_proto(spm)
    text = "①むかしむかし、山の茶屋に😀"
    assert tok.encode(text) == engine.encode(text)
    tok.save(tmp_path / "tokenizer")
    again = tokenizer.load(tmp_path / "tokenizer")
    assert (again.begin_of_text, again.padding, again.vocab_size) == (0, 1, V)
    assert again.fingerprint == tok.fingerprint
    plain = tokenizer.load(tmp_path / "sentencepiece_model")
    assert plain.fingerprint != tok.fingerprint  # the same pieces, but other ids before a text
    config = tmp_path / "tokenizer" / "config.json"
    config.write_text(config.read_text().replace('"padding": 1,', '"padding": 7,'))
    with pytest.raises(UserError, match="fingerprint"):
        tokenizer.load(tmp_path / "tokenizer")


def test_it_writes_what_the_model_itself_would(tmp_path, spm):
    """Greedy text, against the whole sequence through Linen's model at every token."""
    params = write(tmp_path, spm)
    found = lm1b.read(tmp_path, print)
    generator = Generator(found.model, found.params, found.tokenizer)
    ids = generator.generate(["むかし"], Sampling(temperature=0, max_new_tokens=8))[0].ids
    written, apply = found.tokenizer.encode("むかし"), jax.jit(TransformerLM().apply)
    for token in ids:
        targets_BT = np.zeros((1, T), np.int32)  # zeros after what is written: it sees none of them
        targets_BT[0, : len(written)] = written
        scores_V = np.asarray(apply({"params": params}, targets_BT))[0, len(written)]
        assert token == np.argmax(scores_V[2:]) + 2  # 0 and 1 are never text
        written.append(token)


def edited(folder, change):
    """The checkpoint with its decoder's parameters changed."""
    path = folder / "checkpoint_499999"
    state = flax.serialization.msgpack_restore(path.read_bytes())
    change(state["params"]["decoder"])
    path.write_bytes(flax.serialization.msgpack_serialize(state))


def test_tensors_that_do_not_fit_are_named_with_their_shapes(tmp_path, spm):
    def refused(change, message):
        write(tmp_path, spm)
        edited(tmp_path, change)
        with pytest.raises(UserError, match=message) as error:
            lm1b.read(tmp_path, print)
        assert "\n" not in str(error.value) and "checkpoint_499999" in str(error.value)
        (tmp_path / "checkpoint_499999").unlink()

    def narrower(decoder):
        decoder["encoderdecoderblock_1"]["MlpBlock_0"]["Dense_1"]["kernel"] = np.zeros((F, D - 1))

    refused(narrower, r"encoderdecoderblock_1/MlpBlock_0/Dense_1/kernel has the shape \(48, 31\)")
    refused(lambda d: d.pop("encoderdecoder_norm"), r"encoderdecoder_norm/bias is missing")
    refused(lambda d: d.pop("encoderdecoderblock_0"), r"query/kernel is missing")
    refused(lambda d: d.pop("Embed_0"), r"Embed_0/embedding is missing")
    refused(
        lambda d: d.update(posembed_output={"pos_embedding": np.zeros((1, 512, D))}),
        "posembed_output/pos_embedding does not belong to it",
    )
    refused(lambda d: d.update(Embed_0={"embedding": np.zeros(3)}), r"has the shape \(3,\)")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.999])
def test_a_checkpoint_cut_short_is_refused(tmp_path, spm, share):
    write(tmp_path, spm)
    path = tmp_path / "checkpoint_499999"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="cut short") as error:
        lm1b.read(tmp_path, print)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 a zip",
        b"\x80\x04\x95 a pickle",
        b"\xc1" * 50,
        msgpack.packb([1, 2, 3]),
        msgpack.packb({"step": 3, "params": {"encoder": 1}}),
        msgpack.packb({"step": 3, "params": 7}),
        msgpack.packb({"params": {"decoder": msgpack.ExtType(1, b"no array")}}),
        flax.serialization.to_bytes({"step": 1, "target": {}}),
    ],
)
def test_another_programs_file_is_refused(tmp_path, spm, content):
    (tmp_path / "checkpoint_1").write_bytes(content)
    (tmp_path / "sentencepiece_model").write_bytes(spm)
    with pytest.raises(UserError) as error:
        lm1b.read(tmp_path, print)
    assert "checkpoint_1" in str(error.value) and "\n" not in str(error.value)


def test_the_tokenizer_must_be_the_models_own(tmp_path, spm):
    write(tmp_path, spm)
    (tmp_path / "sentencepiece_model").unlink()
    with pytest.raises(UserError, match="holds no sentencepiece_model"):
        lm1b.read(tmp_path, print)

    text = "".join(document.text for document in itertools.islice(documents(), 60))
    for size, more, message in (
        (V - 10, {}, "has 1190 tokens and the model of checkpoint_499999 1200"),
        (V, {"unk_id": 3, "pad_id": 0}, "<unk> has id 3 and </s> 2"),
    ):
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(text.splitlines()), model_prefix=str(tmp_path / "other"),
            vocab_size=size, character_coverage=0.9995, byte_fallback=True, minloglevel=2, **more,
        )  # fmt: skip
        (tmp_path / "other.model").rename(tmp_path / "sentencepiece_model")
        with pytest.raises(UserError, match=message):
            lm1b.read(tmp_path, print)


def test_a_folder_without_a_checkpoint_is_none(tmp_path):
    (tmp_path / "checkpoint_499999").mkdir()  # Orbax's
    (tmp_path / "checkpoint_last").write_bytes(b"")
    assert not lm1b.is_checkpoint(tmp_path)
    assert not lm1b.is_checkpoint(tmp_path / "none")
    with pytest.raises(UserError, match="holds no checkpoint_STEP"):
        lm1b.read(tmp_path, print)
