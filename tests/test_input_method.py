"""The input method as a whole: made of a text, kept, loaded, used, and measured."""

import json
import random

import jax
import numpy as np
import pytest
from flax import nnx

from tsuzuri import files
from tsuzuri.apps.input_method.engine import InputMethod, Parts, _write_arrays, read_parts, train
from tsuzuri.apps.input_method.evaluate import (
    accuracy_plot,
    bootstrap,
    evaluate,
    keys_saved,
    seed_protocol,
    table,
)
from tsuzuri.apps.input_method.neural import Reading, Transformer, Typing, outputs, places
from tsuzuri.apps.input_method.predictors import ranks
from tsuzuri.cli import main
from tsuzuri.config import Config, replace
from tsuzuri.data import Blocks
from tsuzuri.errors import UserError
from tsuzuri.model import Decoder
from tsuzuri.presets import preset
from tsuzuri.tokenizer import load
from tsuzuri.tokenizer.first_two import CODES, FirstTwoTokenizer, code_of, split_keys, words_of

TINY = {"steps": 60, "batch_size": 8, "sequence_length": 16, "eval_every": 60, "save_every": 60}
TINY |= {"model.num_layers": 1, "model.num_heads": 1, "model.embed_dim": 32, "learning_rate": 1e-2}


def sentences(count: int, seed: int = 0) -> str:
    """Sentences in which the first word tells the others, though their codes are the same."""
    draw = random.Random(seed)
    lines = ["The cat caught a mouse in the house. ", "A car carried the mover in its hold. "]
    return "".join(draw.choice(lines) for _ in range(count))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ime")
    (folder / "text.txt").write_text(sentences(300))
    cfg = preset("first-two", **TINY)
    train(cfg, folder / "run", [str(folder / "text.txt")], "committed", True, lambda line: None)
    return folder / "run"


@pytest.fixture(scope="module")
def method(run):
    return InputMethod.load(run)


def test_words_and_codes():
    assert words_of("It's A b1—Café") == ["it", "s", "a", "b", "caf"]
    assert [CODES[code_of(word)] for word in ("a", "it", "the")] == ["a ", "it", "th"]
    assert len(CODES) == 702
    assert split_keys("fitwa ") == [*map(code_of, ("fi", "tw", "a"))]
    assert split_keys("fia") == [*map(code_of, ("fi", "a"))]
    for keys in ("fi1w", "ft w", "ｆｉ", "Fi"):
        with pytest.raises(UserError, match="at character"):
            split_keys(keys)


def test_the_vocabulary_is_read_as_it_was_saved(tmp_path):
    tok = FirstTwoTokenizer.of(["the", "then", "the", "a", "in", "it", "the", "in"])
    assert tok.words == ["a", "in", "it", "the", "then"] and tok.counts.tolist() == [1, 2, 1, 3, 1]
    assert [tok.words[w] for w in tok.candidates(code_of("that"))] == ["the", "then"]
    assert not tok.candidates(code_of("zz"))
    tok.save(tmp_path / "t")
    assert load(tmp_path / "t").fingerprint == tok.fingerprint
    assert tok.decode(tok.encode("The, in Xy")) == "the in \ufffd"
    (tmp_path / "t" / "words.tsv").write_text("a\t1\n")
    with pytest.raises(UserError, match=r"words\.tsv: changed or damaged"):
        load(tmp_path / "t")


def test_the_test_part_gives_the_vocabulary_nothing():
    words = [f"w{'abcdefghij'[i % 10]}" for i in range(900)] + ["only", "later"] * 50
    parts = Parts.of(words)
    assert len(parts.test.words) == 100 and len(parts.development.words) == 50
    assert (parts.test.words == len(parts.tokenizer.words)).all()
    assert [CODES[c] for c in parts.test.codes[:2]] == ["on", "la"]


def test_blocks_hold_each_place_with_what_it_shall_give(run):
    parts, tok = read_parts(run), read_parts(run).tokenizer
    blocks = Blocks.open(run / "ime" / "features", "held_out", tok, pytest.fail)
    batch = blocks.batch(np.arange(len(blocks)))
    T = len(parts.development.words)
    tokens = batch.tokens_BL.reshape(-1, 2)[:T]
    assert (tokens == places(tok, *parts.development, "committed")).all()
    assert (tokens[1:, 1] - len(CODES) == parts.development.words[:-1]).all()
    assert (batch.targets_BL.reshape(-1)[:T] == outputs(tok)[parts.development.words]).all()
    assert batch.weights_BL.sum() == T
    # In training each place but those of the first half block is there twice.
    train_blocks = Blocks.open(run / "ime" / "features", "train", tok, pytest.fail)
    counted = train_blocks.batch(np.arange(len(train_blocks))).weights_BL.sum()
    assert 1.9 < counted / len(parts.train.words) <= 2


def test_ids_at_one_place_are_added_and_the_head_has_outputs_of_its_own():
    cfg = replace(
        Config(sample_every=0, sequence_length=8),
        {"model.tied_head": False, "model.output_size": 5, "model.embed_dim": 16},
    ).resolved_model(20)
    graphdef, state = nnx.split(Decoder(cfg, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    table = params["token_embed"]["embedding"]
    params["token_embed"]["embedding"] = table.at[19].set(table[3] + table[7])
    model = nnx.merge(graphdef, params)
    two = np.array([[[1, 2], [3, 7]]])
    logits = model(np.array([[[1, 2], [3, 7]]]))
    assert logits.shape == (1, 2, 5)
    one = model(np.concatenate([two[:, :1], [[[19, 19]]]], axis=1)) - logits
    assert np.abs(one[:, 0]).max() == 0  # it is causal
    params["token_embed"]["embedding"] = params["token_embed"]["embedding"].at[18].set(0)
    alone = nnx.merge(graphdef, params)(np.array([[[1, 2], [19, 18]]]))
    np.testing.assert_allclose(alone, logits, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.output_size": 5}, r"output_size needs model\.tied_head false"),
        ({"model.output_size": 5, "model.tied_head": False}, "needs sample_every 0"),
    ],
)
def test_what_an_output_size_needs(changes, message):
    with pytest.raises(UserError, match=message):
        replace(Config(), changes)


def transformer(sees="committed", length=16):
    tok = FirstTwoTokenizer.of([*words_of(sentences(50)), "once"])
    changes = TINY | {"sequence_length": length, "model.output_size": int(outputs(tok)[-1]) + 1}
    cfg = preset("first-two", **changes).resolved_model(tok.vocab_size)
    params = nnx.to_pure_dict(nnx.split(Decoder(cfg, rngs=nnx.Rngs(0)))[1])
    return Transformer(cfg, params, tok, sees), tok


@pytest.mark.parametrize("sees", ["prefixes", "committed"])
def test_reading_a_text_is_typing_it(sees):
    model, tok = transformer(sees)
    words = words_of(sentences(2))[:16]  # as many as it sees at once
    codes = np.array([*map(code_of, words)])
    numbers = np.array([*map(tok.index, words)])
    typing, reading = Typing(model, tok), Reading(model, codes, numbers)
    for code, word in zip(codes.tolist(), numbers.tolist(), strict=True):
        typed = typing.probabilities(code)
        for _ in range(2):  # who asks twice, or not at all, gets the same
            np.testing.assert_allclose(typed, reading.probabilities(code), atol=1e-5)
        assert len(typed) == len(tok.candidates(code)) and abs(typed.sum() - 1) < 1e-9
        typing.advance(code, word)
        reading.advance(code, word)


def test_a_long_text_is_read_with_half_of_the_context_at_least():
    model, tok = transformer(length=8)
    words = words_of(sentences(5))
    codes, numbers = np.array([*map(code_of, words)]), np.array([*map(tok.index, words)])
    found = list(model.along(codes, numbers))
    assert len(found) == len(words)
    text = places(tok, codes, numbers, "committed")
    for place in (3, 8, 13, len(words) - 1):
        begin = 0 if place < 8 else place // 4 * 4 - 4  # of the window it is new in
        expected = model.last([text[begin : place + 1]], [int(codes[place])])[0]
        np.testing.assert_allclose(found[place], expected, atol=1e-5)


def test_rare_words_share_what_is_left(method):
    model, tok = transformer()
    given = model.last([places(tok, np.array([code_of("on")]), np.array([]), "committed")],
                       [code_of("on")])[0]  # fmt: skip
    assert given.tolist() == [1.0]  # `once` is the code's only word, and rare


def test_committed_words_tell_what_codes_do_not(run, method):
    """After `a car` it is carried; after `the cat`, caught: the codes are the same from then on."""
    session = method.session()
    assert session.candidates("zz") == []
    for word in ("the", "cat"):
        session.commit(word)
    assert session.candidates("ca")[0].word == "caught"
    session = method.session()
    for word in ("a", "car"):
        session.commit(word)
    first, *others = session.candidates("ca", 3)
    assert first.word == "carried" and {c.word for c in others} <= {"car", "cat", "caught"}
    assert method.convert("a cacathmo", 1) == ["a car carried the mover"]
    assert method.convert("thcacaa mo", 2)[0] == "the cat caught a mouse"
    assert method.convert("thzqca", 1)[0].split()[1] == "zq"  # a code without words


def test_sessions_learn_and_share_nothing(method):
    one, two = method.session(), method.session()
    one.commit("camel")
    assert "camel" in [c.word for c in one.candidates("ca", 9)]
    assert "camel" not in [c.word for c in two.candidates("ca", 9)]
    shown = one.candidates("ca", 9)
    assert sum(c.probability for c in shown) == pytest.approx(1)
    assert shown == sorted(shown, key=lambda c: -c.probability)
    for word in ("Camel", "it's", ""):
        with pytest.raises(UserError, match="no word of the letters"):
            one.commit(word)
    for keys in ("c", "cat", ""):
        if keys != "c":
            with pytest.raises(UserError):
                one.candidates(keys)


def test_its_figures(run, method, tmp_path):
    found = evaluate(run)
    assert json.loads(json.dumps(found))["text"]["out_of_vocabulary"] == 0
    by_name = {(row["model"], row["sees"]): row for row in found["rows"]}
    parts = read_parts(run)
    rank, _ = ranks(method.predictor(parts.test), parts.tokenizer, *parts.test, True)
    together = by_name["all together", "committed"]["accuracy"]
    assert together[1] == (rank < 1).mean() and together[5] == (rank < 5).mean() == 1
    assert together[1] > by_name["seed's counts, n = 1", "prefixes"]["accuracy"][1] + 0.05
    low, high = by_name["all together", "committed"]["interval"]
    assert low <= together[1] <= high
    assert sum(f["share"] for f in found["by_length"].values()) == pytest.approx(1)
    shown = table(found)
    assert "all together" in shown and "keys saved" in shown
    assert table(seed_protocol(run)).count("paper") == 3
    accuracy_plot([found], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_keys_cost():
    rank = np.array([0, 0, 2, 7])  # the first; the first; by a digit; spelled: Esc, x y, a space
    assert keys_saved(rank, np.array([4, 1, 4, 4])) == pytest.approx(1 - (2 + 2 + 3 + 6) / 17)


def test_an_interval_holds_nineteen_times_of_twenty():
    draw = np.random.default_rng(0)
    held = [
        low <= 0.3 <= high for low, high in (bootstrap(draw.random(5000) < 0.3) for _ in range(200))
    ]
    assert 0.88 < np.mean(held) < 0.99


def test_going_on_and_being_refused(run, tmp_path, capsys):
    (tmp_path / "other.txt").write_text(sentences(100, seed=1))
    (tmp_path / "small.txt").write_text("Too few words. 少ない。")
    (tmp_path / "run").mkdir()
    cases = {
        f"ime train {tmp_path}/other.txt --run {run}": "of another text",
        f"ime train --run {run} --sees prefixes": "sees committed",
        f"ime train {tmp_path}/small.txt --run {tmp_path}/new": "3 words of the letters",
        f"ime train --run {tmp_path}/run": "is no input method",
        f"ime convert {tmp_path}/run fitw": "is no input method",
        f"ime eval {tmp_path}/run": "is no input method",
        f"ime convert {run} FITW": "at character 0",
        f"ime convert {run} fitw -k 0": "k of at least 1",
        f"ime eval {run} --protocol seed --plot x.png": "leave out --protocol seed",
        f"ime train {tmp_path}/other.txt --run {run} --seas x": "unknown argument '--seas'",
        f"generate {run}": "writes no text",
        f"export {run} --to hf --out {tmp_path}/hf": "output_size",
        f"export {run} --to gguf --out {tmp_path}/m.gguf": "output_size",
    }
    for command, message in cases.items():
        assert main(command.split()) == 2, command
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, (command, said)
    # Going on: nothing is left to train; the mixture is weighed again.
    before = files.read_json(run / "ime" / "config.json")
    assert main(["ime", "train", "--run", str(run)]) == 0
    assert files.read_json(run / "ime" / "config.json") == before
    assert main(["ime", "convert", str(run), "thca", "-k", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the cat"


def test_damage_is_found(run, tmp_path):
    import shutil

    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    path = copied / "ime" / "ngrams.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"ngrams\.npz: damaged"):
        InputMethod.load(copied)
    _write_arrays(copied / "ime" / "text.npz", {"words": np.array("some other words")})
    with pytest.raises(UserError, match="not the text"):
        read_parts(copied)
    (copied / "ime" / "config.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        InputMethod.load(copied)


def test_without_a_transformer(tmp_path):
    (tmp_path / "t.txt").write_text(sentences(100))
    cfg = preset("first-two", **TINY)
    train(cfg, tmp_path / "r", [str(tmp_path / "t.txt")], None, False, lambda line: None)
    method = InputMethod.load(tmp_path / "r")
    assert method.transformer is None and not (tmp_path / "r" / "checkpoints").exists()
    assert method.convert("thcacaa mo", 1) == ["the cat caught a mouse"]
    assert "Transformer" not in table(evaluate(tmp_path / "r"))
    assert jax.process_count() == 1
