"""The three packings: no token lost, none counted twice, no document seen from another."""

import itertools

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri.config import FeaturesConfig, ModelConfig
from tsuzuri.corpus.document import Document
from tsuzuri.data import Blocks
from tsuzuri.errors import UserError
from tsuzuri.evaluate import make_eval_step, mean_loss
from tsuzuri.features import IGNORED, featurize, packing, read_features
from tsuzuri.features.packing import COLUMNS, Packing, best_fit, packer
from tsuzuri.model import Decoder
from tsuzuri.sharding import one_device
from tsuzuri.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
BOS, EOS, PAD = 300, 301, 302

documents_of_ids = st.lists(
    st.lists(st.lists(st.integers(10, 99), max_size=20), min_size=1, max_size=3), max_size=12
).map(lambda found: [parts for parts in found if any(parts)])


def pack(kind, documents, length, stride=0, min_length=1, begin=BOS):
    """All blocks of documents given in parts, with the ids that were dropped."""
    chosen = Packing(kind, length, stride or length, min_length, begin, EOS, PAD)
    made = packer(chosen)
    taken = []
    for parts in documents:
        for number, part in enumerate(parts, 1):
            made.add(np.array(part, np.uint32), number == len(parts))
        if made.waiting > 30:
            taken.append(made.take())
    taken.append(made.take(last=True))
    return {name: np.concatenate([t[name] for t in taken]) for name in COLUMNS[kind]}, made.dropped


def streams(documents, begin=BOS):
    return [[begin, *itertools.chain(*parts), EOS] for parts in documents]


@settings(deadline=None, max_examples=150)
@given(documents=documents_of_ids, length=st.integers(1, 12), begin=st.sampled_from([BOS, EOS]))
def test_concat_is_one_stream(documents, length, begin):
    blocks, _ = pack("concat", documents, length, begin=begin)
    ids = blocks["input_ids"]
    stream = [begin]
    for parts in documents:
        stream += [*itertools.chain(*parts), EOS] + [begin] * (begin != EOS)
    assert (ids[1:, 0] == ids[:-1, -1]).all()
    found = [*ids[:1, 0].tolist(), *ids[:, 1:].ravel().tolist()]
    targets = len(stream) - 1
    assert found[: targets + 1] == stream[: len(found)]
    assert set(found[targets + 1 :]) <= {PAD} and len(found) - 1 - targets < length


@settings(deadline=None, max_examples=150)
@given(
    documents=documents_of_ids,
    length=st.integers(1, 12),
    stride=st.integers(1, 12),
    min_length=st.integers(1, 6),
)
def test_document_counts_every_token_once(documents, length, stride, min_length):
    stride, min_length = min(stride, length), min(min_length, length + 1)
    blocks, dropped = pack("document", documents, length, stride, min_length)
    ids, labels = blocks["input_ids"], blocks["labels"]
    assert ((labels == IGNORED) | (labels == ids)).all()
    assert (labels[ids == PAD] == IGNORED).all()
    assert (labels[:, 0] == IGNORED).all()
    lost = np.concatenate([[], *dropped])
    expected = list(itertools.chain(*(stream[1:] for stream in streams(documents))))
    if not len(lost):  # the targets are the documents, in order, each id once
        assert labels[labels != IGNORED].tolist() == expected
    assert (labels != IGNORED).sum() + (lost != BOS).sum() == len(expected)
    assert ((ids != PAD).sum(axis=1) >= min_length).all()


@settings(deadline=None, max_examples=150)
@given(documents=documents_of_ids, length=st.integers(1, 12), group=st.sampled_from([1, 20, 1000]))
def test_packed_keeps_every_document_apart(documents, length, group):
    old, packing._GROUP = packing._GROUP, group
    try:
        blocks, _ = pack("packed", documents, length)
    finally:
        packing._GROUP = old
    found = []
    for ids, labels, segments, positions in zip(*blocks.values(), strict=True):
        assert (np.diff(segments[segments > 0]) >= 0).all()
        for number in range(1, segments.max() + 1):
            inside = segments == number
            segment = ids[inside]
            assert positions[inside].tolist() == list(range(len(segment)))
            assert labels[inside].tolist() == [IGNORED, *segment[1:].tolist()]
            found.append(segment.tolist())
        rest = segments == 0
        assert (ids[rest] == PAD).all() and (labels[rest] == IGNORED).all()
        assert not rest[: (~rest).sum()].any()
    # A long document goes on in a segment that begins with the last id of the one before.
    expected = []
    for stream in streams(documents):
        starts = range(0, max(len(stream) - 1, 1), length)
        expected += [stream[start : start + length + 1] for start in starts]
    assert sorted(found) == sorted(expected)


def test_best_fit_wastes_little():
    lengths = np.random.default_rng(0).geometric(1 / 60, 5000).clip(2, 257)
    blocks = best_fit([np.zeros(n) for n in lengths], 257)
    assert all(sum(map(len, block)) <= 257 for block in blocks)
    assert sum(map(len, blocks)) == 5000
    assert lengths.sum() / (257 * len(blocks)) > 0.995


TEXTS = ["山の茶屋", "鳥", "旅人はお茶を飲んだ。" * 3, "a", "海へ", "むかしむかし"]


def features_of(tmp_path, kind, length=24, **options):
    cfg = FeaturesConfig(held_out=0.0, packing=kind, **options)
    documents = [Document(text) for text in TEXTS]
    args = (lambda: documents, BYTES, tmp_path / kind, length, cfg, 0, {}, print, False)
    return featurize(*args), Blocks.open(tmp_path / kind, "train", BYTES, print)


@pytest.mark.parametrize(("kind", "options"), [("packed", {}), ("document", {"stride": 7})])
def test_batches_say_what_the_parquet_says(tmp_path, kind, options):
    found, blocks = features_of(tmp_path, kind, **options)
    rows = pq.read_table(tmp_path / kind / "train-00000.parquet").to_pydict()
    assert tuple(rows) == COLUMNS[kind]
    batch = blocks.batch(np.arange(len(blocks)))
    labels = np.array(rows["labels"])[:, 1:]
    assert (batch.weights_BL == (labels != IGNORED)).all()
    assert (batch.targets_BL == np.where(labels == IGNORED, batch.targets_BL, labels)).all()
    assert found["splits"]["train"]["tokens"] == batch.weights_BL.sum()
    assert batch.weights_BL.sum() == sum(len(t.encode()) + 1 for t in TEXTS)
    if kind == "packed":
        assert (batch.segments_BL == np.array(rows["segment_ids"])[:, :-1]).all()
        real = batch.segments_BL > 0
        assert (batch.positions_BL == np.array(rows["position_ids"])[:, :-1])[real].all()


def test_the_features_open_in_datasets(tmp_path):
    from datasets import Dataset

    _, blocks = features_of(tmp_path, "packed")
    opened = Dataset.from_parquet(
        str(tmp_path / "packed" / "train-*.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert opened.column_names == list(COLUMNS["packed"])
    assert (np.array(opened["input_ids"]) == blocks.array).all()


def model_of(positions):
    cfg = ModelConfig(
        vocab_size=BYTES.vocab_size, context_length=128, num_layers=2, num_heads=2, num_kv_heads=1,
        embed_dim=16, head_dim=8, mlp_dim=32, positions=positions,
    )  # fmt: skip
    return nnx.split(Decoder(cfg, rngs=nnx.Rngs(0)))


def alone_in(graphdef):
    """(params, ids) -> logits [T, V] of ids that nothing else is with; what follows is not seen."""
    run = jax.jit(lambda params, tokens_BT: nnx.merge(graphdef, params)(tokens_BT))
    return lambda params, ids: run(params, np.pad(ids, (0, 128 - len(ids)))[None])[0, : len(ids)]


@pytest.mark.parametrize("positions", ["rope", "learned", "sinusoidal"])
def test_a_packed_document_is_predicted_as_if_it_were_alone(tmp_path, positions):
    """128 tokens a block, where attention takes its queries in four parts."""
    _, blocks = features_of(tmp_path, "packed", length=128)
    graphdef, params = model_of(positions)
    model, logits_of = nnx.merge(graphdef, params), alone_in(graphdef)
    batch = blocks.batch(np.arange(len(blocks)))
    packed = model(batch.tokens_BL, batch.segments_BL, batch.positions_BL)
    assert batch.segments_BL.max() >= 4
    for row, segments in enumerate(batch.segments_BL):
        for number in range(1, segments.max() + 1):
            inside = np.flatnonzero(segments == number)
            alone = logits_of(params, batch.tokens_BL[row, inside])
            np.testing.assert_allclose(packed[row, inside], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "length", "options"),
    [("document", 128, {}), ("document", 24, {}), ("packed", 128, {}), ("packed", 24, {})],
)
def test_the_masked_mean_is_the_true_mean(tmp_path, kind, length, options):
    """jax-lm-training divided by all positions, padding too, and reported half of the true loss."""
    found, blocks = features_of(tmp_path, kind, length, **options)
    graphdef, params = model_of("rope")
    logits_of, losses = alone_in(graphdef), []
    for text in TEXTS:
        ids = np.array([BYTES.begin_of_text, *BYTES.encode(text), BYTES.end_of_text])
        for start in range(0, len(ids) - 1, length):
            window = ids[start : start + length + 1]
            log_p = np.asarray(jax.nn.log_softmax(logits_of(params, window[:-1])))
            losses += [-float(log_p[i, target]) for i, target in enumerate(window[1:])]
    step = make_eval_step(graphdef, one_device())
    for batch_size in (1, 4):
        loss, tokens = mean_loss(step, nnx.to_pure_dict(params), blocks, batch_size, one_device())
        assert tokens == len(losses) == found["splits"]["train"]["tokens"]
        assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_what_min_length_drops_leaves_the_figures(tmp_path):
    said = []
    documents = [Document("あいう"), Document("え"), Document("abcdefgh")]
    cfg = FeaturesConfig(held_out=0.0, packing="document", min_length=6)
    args = (BYTES, tmp_path / "f", 8, cfg, 0, {}, said.append, False)
    train = featurize(lambda: documents, *args)["splits"]["train"]
    # 9 + 2 ids in windows of 9 and 3; 3 + 2 ids; 8 + 2 ids in windows of 9 and 2.
    assert train["blocks"] == 2 and train["documents"] == 3
    assert train["tokens"] == 16 and train["dropped_tokens"] == 2 + 5 + 1
    assert train["bytes"] == 8 + 8 and train["entropy_bits"] is None
    assert said == ["tokens dropped, in blocks of fewer than 6: 8"]
    assert read_features(tmp_path / "f")["min_length"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": "document", "stride": 9}, "stride 9 must be from 0 to sequence_length 8"),
        ({"packing": "document", "stride": -1}, "stride -1"),
        ({"packing": "document", "min_length": 10}, "min_length 10 must be from 1 to 9"),
        ({"stride": 4}, "belong to packing document only"),
        ({"packing": "packed", "min_length": 4}, "belong to packing document only"),
        ({"packing": "document", "min_length": 9}, "no block has --features.min-length 9"),
    ],
)
def test_numbers_that_contradict(tmp_path, options, message):
    cfg = FeaturesConfig(held_out=0.0, **options)
    args = (BYTES, tmp_path / "f", 8, cfg, 0, {}, print, False)
    with pytest.raises(UserError, match=message):
        featurize(lambda: [Document("abc")], *args)
    assert list(tmp_path.iterdir()) == []
