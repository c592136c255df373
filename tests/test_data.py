import json
import random
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri import data, files
from tsuzuri.config import FeaturesConfig
from tsuzuri.corpus.document import Document
from tsuzuri.data import Batches, Blocks, in_order, permuted
from tsuzuri.errors import UserError
from tsuzuri.features import featurize
from tsuzuri.features.parquet import _fingerprint
from tsuzuri.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
L = 16


def make(out, tok=BYTES, count=40):
    documents = [Document(f"{i}番目の旅人は山の茶屋でお茶を飲んだ。\n") for i in range(count)]
    cfg = FeaturesConfig(held_out=0.1)
    return featurize(lambda: documents, tok, out, L, cfg, 0, {}, print, False)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "features"
    make(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "features", ignore=shutil.ignore_patterns("decoded"))


@pytest.fixture(scope="module")
def blocks(sound):
    return Blocks.open(sound, "train", BYTES, print)


def rows_of(folder):
    return np.array(pq.read_table(folder / "train-00000.parquet")["input_ids"].to_pylist())


def test_blocks_are_those_of_the_parquet(blocks, sound):
    assert (blocks.array == rows_of(sound)).all()
    assert blocks.array.dtype == np.uint16
    assert len(blocks) == len(rows_of(sound))
    assert (blocks[3] == rows_of(sound)[3]).all()  # as Grain asks for one
    assert not blocks.array.flags.owndata and not blocks.array.flags.writeable


def test_a_large_vocabulary_takes_more_bits(tmp_path):
    class Wide(ByteTokenizer):
        kind = "wide"
        vocab_size = property(lambda self: 70_258, lambda self, value: None)

        def encode_batch(self, texts):
            return [ids + np.uint32(70_000) for ids in super().encode_batch(texts)]

        def save(self, folder):
            pass

    make(tmp_path / "f", Wide())
    found = Blocks.open(tmp_path / "f", "train", Wide(), print).array
    assert found.dtype == np.uint32
    assert found.max() > 70_000
    assert (found == rows_of(tmp_path / "f")).all()


@settings(deadline=None, max_examples=100)
@given(total=st.integers(1, 1500), seed=st.integers(0, 2**64), epoch=st.integers(0, 2**20))
def test_every_epoch_is_a_permutation(total, seed, epoch):
    positions = np.arange(total, dtype=np.uint64) + np.uint64(epoch * total)
    assert sorted(permuted(positions, total, seed).tolist()) == list(range(total))


def test_epochs_and_seeds_differ_and_are_well_mixed():
    total, epochs = 10, 3000
    order = permuted(np.arange(total * epochs, dtype=np.uint64), total, 0).reshape(epochs, total)
    for place in range(total):  # each block is equally often at each place: within 5 sigma
        seen = np.bincount(order[:, place], minlength=total)
        assert abs(seen - epochs / total).max() < 5 * np.sqrt(epochs / total)
    assert len({tuple(row) for row in order}) > 0.99 * epochs
    followed = Counter(zip(order[:, 0].tolist(), order[:, 1].tolist(), strict=True))
    assert len(followed) == total * (total - 1)  # every pair of neighbours comes up
    large = permuted(np.arange(50_000, dtype=np.uint64), 50_000, 1)
    assert abs(np.corrcoef(large, np.arange(50_000))[0, 1]) < 0.02
    assert (large == permuted(np.arange(50_000, dtype=np.uint64), 50_000, 2)).sum() < 10


@pytest.mark.parametrize("batch_size", [1, 3, 7, 500])
def test_every_block_once_an_epoch(blocks, batch_size):
    total = len(blocks)
    batches = Batches(blocks, batch_size, seed=1)
    seen = np.concatenate([batches.indices(step) for step in range(3 * total // batch_size + 1)])
    for epoch in range(3):
        assert sorted(seen[epoch * total : (epoch + 1) * total]) == list(range(total))
    assert (seen[:total] != seen[total : 2 * total]).any()


def test_a_batch_is_a_function_of_seed_and_step(blocks, sound):
    forward = Batches(blocks, 4, seed=5)
    expected = [forward.batch(step) for step in range(30)]
    again = Batches(Blocks.open(sound, "train", BYTES, print), 4, seed=5)
    for step in [29, 3, 100_000, 3, 0, 17]:
        found = again.batch(step)
        for a, b in zip(found, expected[step] if step < 30 else forward.batch(step), strict=True):
            assert (a is b is None) or (a == b).all()
    other = Batches(blocks, 4, seed=6)
    assert any((other.indices(s) != forward.indices(s)).any() for s in range(3))


def test_targets_and_weights(blocks):
    padded = 0
    for step in range(len(blocks)):  # one epoch
        batches = Batches(blocks, 1, seed=0)
        tokens, targets, weights, _, _ = batches.batch(step)
        block = blocks[int(batches.indices(step)[0])]
        assert (tokens[0] == block[:-1]).all() and (targets[0] == block[1:]).all()
        assert (weights[0] == (block[1:] != BYTES.padding)).all()
        padded += int((weights == 0).sum())
    assert padded == (blocks.array == BYTES.padding).sum() > 0
    assert (tokens.dtype, targets.dtype, weights.dtype) == (np.int32, np.int32, np.float32)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_share_a_batch(blocks, hosts):
    batches = Batches(blocks, 8, seed=0)
    share = 8 // hosts
    for step in (0, 7, 1000):
        parts = [batches.batch(step, slice(h * share, (h + 1) * share)) for h in range(hosts)]
        whole = batches.batch(step)
        for i, array in enumerate(whole[:3]):
            assert (np.concatenate([part[i] for part in parts]) == array).all()


@pytest.mark.parametrize("batch_size", [1, 7, 10_000])
def test_in_order_sees_every_target_once(blocks, batch_size):
    found = list(in_order(blocks, batch_size))
    assert {batch.tokens_BL.shape for batch in found} == {(batch_size, L)}
    assert sum(batch.weights_BL.sum() for batch in found) == (blocks.array[:, 1:] != 1).sum()
    tokens = np.concatenate([batch.tokens_BL for batch in found])
    assert (tokens[: len(blocks)] == blocks.array[:, :-1]).all()
    halves = [list(in_order(blocks, 4, rows=half)) for half in (slice(0, 2), slice(2, 4))]
    for whole, *parts in zip(in_order(blocks, 4), *halves, strict=True):
        for i, array in enumerate(whole[:3]):
            assert (np.concatenate([part[i] for part in parts]) == array).all()


def test_in_order_with_a_limit_is_evenly_spaced(blocks):
    found = list(in_order(blocks, 4, limit=10))
    assert len(found) == 3
    rows = np.concatenate([batch.tokens_BL for batch in found])[:10]
    spaced = blocks.array[np.arange(10) * len(blocks) // 10, :-1]
    assert (rows == spaced).all()
    assert (found[-1].weights_BL[2:] == 0).all() and (found[-1].weights_BL[:2] == 1).all()
    assert len(list(in_order(blocks, 4, limit=10**9))) == -(-len(blocks) // 4)


def test_no_bit_flip_of_the_parquet_is_silent(folder):
    path = folder / "train-00000.parquet"
    content = path.read_bytes()
    chance = random.Random(0)
    for decoded in (False, True):  # before and after the blocks have been decoded
        for _ in range(150):
            damaged = bytearray(content)
            damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=r"train-00000\.parquet: damaged"):
                Blocks.open(folder, "train", BYTES, print)
        path.write_bytes(content)
        assert (folder / "decoded" / "train.input_ids.npy").exists() == decoded
        Blocks.open(folder, "train", BYTES, print)


def test_the_pages_of_the_parquet_have_checksums(folder):
    """For other readers, who have not the SHA-256: a flip among the ids is seen when they ask."""
    path = folder / "train-00000.parquet"
    pages = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[pages.data_page_offset + pages.total_compressed_size - 1] ^= 4
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        list(data._read(path, "input_ids", L + 1))


def test_truncated_missing_or_exchanged_parquet(folder):
    path = folder / "train-00000.parquet"
    content = path.read_bytes()
    for wrong in (
        content[:-1],
        content[:100],
        b"",
        (folder / "held_out-00000.parquet").read_bytes(),
    ):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"train-00000\.parquet: damaged"):
            Blocks.open(folder, "train", BYTES, print)
    path.unlink()
    with pytest.raises(UserError, match=r"train-00000\.parquet: cannot be read \(No such file"):
        Blocks.open(folder, "train", BYTES, print)


def test_damaged_decoded_blocks_are_made_again_and_it_is_said(folder):
    said = []
    expected = np.array(Blocks.open(folder, "train", BYTES, said.append).array)
    path = folder / "decoded" / "train.input_ids.npy"
    content = path.read_bytes()
    assert said == []
    chance = random.Random(1)
    for i in range(20):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged if i else content[:-7])
        found = Blocks.open(folder, "train", BYTES, said.append)
        assert (found.array == expected).all()
        assert len(said) == i + 1 and "train.input_ids.npy is damaged" in said[-1]
    path.with_suffix(".json").write_text("{")
    assert (Blocks.open(folder, "train", BYTES, said.append).array == expected).all()
    assert len(said) == 21


def forge(folder, table):
    """Features that are consistent in themselves, with other rows than our program writes."""
    pq.write_table(table, folder / "train-00000.parquet")
    path = folder / "features.json"
    features = json.loads(path.read_text())
    file = features["splits"]["train"]["files"][0]
    file["sha256"] = files.sha256(folder / "train-00000.parquet")
    features["fingerprint"] = _fingerprint(features)
    path.write_text(json.dumps(features))


@pytest.mark.parametrize("wrong", [-1, 258])
def test_an_id_outside_the_vocabulary(folder, wrong):
    rows = rows_of(folder)
    rows[5, 5] = wrong
    forge(folder, pa.table({"input_ids": pa.array(rows.tolist(), pa.list_(pa.int32()))}))
    with pytest.raises(
        UserError, match=r"train-00000\.parquet: holds a token id outside of 0 to 257"
    ):
        Blocks.open(folder, "train", BYTES, print)
    assert not list(folder.glob("decoded/*"))


def test_other_rows_than_announced(folder):
    rows = rows_of(folder).tolist()
    for wrong, message in (
        (rows[:-1], "blocks in train, not the"),
        ([*rows[:-1], rows[-1][:-1]], "not 17 token ids"),
        ([*rows[:-1], None], "not 17 token ids"),
        ([*rows[:-1], [None, *rows[-1][1:]]], "not 17 token ids"),
    ):
        forge(folder, pa.table({"input_ids": pa.array(wrong, pa.list_(pa.int32()))}))
        with pytest.raises(UserError, match=message):
            Blocks.open(folder, "train", BYTES, print)


def test_features_of_another_tokenizer(folder):
    class Other(ByteTokenizer):
        fingerprint = property(lambda self: "another", lambda self, value: None)

    with pytest.raises(UserError, match=r"made by another tokenizer .*; make the features again"):
        Blocks.open(folder, "train", Other(), print)


def test_a_split_that_is_empty_or_unknown(tmp_path):
    cfg = FeaturesConfig(held_out=0)
    documents = [Document("山の茶屋でお茶を飲んだ。")]
    featurize(lambda: documents, BYTES, tmp_path / "f", L, cfg, 0, {}, print, False)
    for split in ("held_out", "test"):
        with pytest.raises(UserError, match=f"nothing in its {split} split: the text is"):
            Blocks.open(tmp_path / "f", split, BYTES, print)
    with pytest.raises(UserError, match="no such file"):
        Blocks.open(tmp_path, "train", BYTES, print)
