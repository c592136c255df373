"""Generation against slow, plain references: full forward passes, numpy, whole texts."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tsuzuri import generate
from tsuzuri.config import ModelConfig
from tsuzuri.errors import UserError
from tsuzuri.generate import Batch, Generator, Text
from tsuzuri.model import Decoder, empty_cache
from tsuzuri.presets import preset
from tsuzuri.sampling import Knobs, Sampling
from tsuzuri.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
EOT = TOKENIZER.end_of_text
CONTEXT = 32
MODELS = {
    "llama": ("llama", {}),
    "grouped queries": ("llama", {"model.num_kv_heads": 2, "model.qk_norm": True}),
    "gpt2": ("gpt2", {}),
    "nanolm": ("nanolm", {}),
    "sinusoidal": ("nanolm", {"model.positions": "sinusoidal", "model.norm_place": "post"}),
}
PROMPTS = ["", "綴り", "a prompt of thirty bytes, or so", "b"]
SHORT = ["", "綴", "a", "bc"]


@pytest.fixture(autouse=True)
def no_rank_promotion() -> Iterator[None]:
    with jax.numpy_rank_promotion("raise"):
        yield


@cache
def tiny(name: str) -> tuple[ModelConfig, Any]:
    """A model of random parameters, large enough that its choices are far apart."""
    base, changes = MODELS[name]
    shape = {"model.num_layers": 2, "model.embed_dim": 32, "model.head_dim": 8}
    config = preset(base, "tiny", sequence_length=CONTEXT, **shape, **changes)
    cfg = config.resolved_model(TOKENIZER.vocab_size + 2)  # two rows that no token has
    rng = np.random.default_rng(0)
    fill = lambda a: rng.normal(0.0, 0.3, a.shape).astype(np.float32)  # noqa: E731
    return cfg, jax.tree.map(fill, shapes(cfg))


def shapes(cfg: ModelConfig) -> Any:
    return nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0))))[1])


def bind(cfg: ModelConfig, params: Any) -> Decoder:
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, params)


def generator(name: str = "llama") -> Generator:
    return Generator(*tiny(name), TOKENIZER)


def reciter(script: Sequence[int]) -> Generator:
    """A real Decoder whose parameters make it say script[t] at position t, then end the text.

    Its blocks add nothing; each position has a direction of its own, that the head reads.
    """
    changes = {"model.num_layers": 1, "model.embed_dim": 64, "model.head_dim": 4}
    config = preset("nanolm", "tiny", sequence_length=64, **changes)
    cfg = config.resolved_model(TOKENIZER.vocab_size)
    params = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes(cfg))
    params["position_embed"]["embedding"][:] = np.eye(64)
    params["final_norm"]["scale"][:] = 1
    params["head"]["kernel"][np.arange(64), [*script, *[EOT] * (64 - len(script))]] = 1
    return Generator(cfg, params, TOKENIZER)


@cache
def full_forward(name: str) -> Any:
    cfg, params = tiny(name)
    return jax.jit(lambda tokens_BT: bind(cfg, params)(tokens_BT))


def naive(name: str, prompts: Sequence[str], sampling: Sampling) -> list[list[int]]:
    """Greedy by whole forward passes over the windows; nothing is cached."""
    seen = [TOKENIZER.encode(prompt) for prompt in prompts]
    windows = [[EOT, *ids][-CONTEXT:] for ids in seen]
    new: list[list[int]] = [[] for _ in prompts]
    for _ in range(sampling.max_new_tokens):
        padded_BT = np.zeros((len(prompts), CONTEXT), np.int32)
        for r, window in enumerate(windows):
            if len(window) > CONTEXT:
                windows[r] = window = window[-CONTEXT // 2 :]
            padded_BT[r, : len(window)] = window
        logits_BTV = np.array(full_forward(name)(padded_BT))
        for r in range(len(prompts)):
            if EOT in new[r]:
                continue
            logits_V = logits_BTV[r, len(windows[r]) - 1]
            for token in set(seen[r] + new[r]):
                by = sampling.repetition_penalty
                logits_V[token] = (
                    logits_V[token] / by if logits_V[token] > 0 else logits_V[token] * by
                )
            logits_V[[TOKENIZER.padding, -1, -2]] = -np.inf
            new[r].append(int(logits_V.argmax()))
            windows[r].append(new[r][-1])
    return new


@pytest.mark.parametrize("name", MODELS)
def test_cached_logits_are_the_full_logits(name: str) -> None:
    cfg, params = tiny(name)
    tokens_BT = np.random.default_rng(1).integers(0, cfg.vocab_size, (4, CONTEXT))
    full_BTV = np.asarray(full_forward(name)(tokens_BT))

    @jax.jit
    def cached(tokens_BT: Any, positions_BT: Any, kv: Any, slot: Any = 0, past: Any = None) -> Any:
        model = bind(cfg, params)
        x_BTD, kv = model.hidden(tokens_BT, positions_BT, kv, slot=slot, past=past)
        return model.logits(x_BTD), kv

    # Prefill 20 tokens, of which row r keeps its first few: the rest is padding, never seen again.
    kept_B = np.array([3, 20, 11, 7])
    logits_BTV, kv = cached(tokens_BT[:, :20], None, empty_cache(cfg, 4, CONTEXT))
    np.testing.assert_allclose(logits_BTV, full_BTV[:, :20], atol=1e-5, rtol=1e-5)
    rows_B1, recent = np.arange(4)[:, None], empty_cache(cfg, 4, CONTEXT - 20)
    for slot in range(0, CONTEXT - 20, 2):
        at_BT = kept_B[:, None] + [slot, slot + 1]
        logits_BTV, recent = cached(tokens_BT[rows_B1, at_BT], at_BT, recent, slot, ([kv], kept_B))
        np.testing.assert_allclose(logits_BTV, full_BTV[rows_B1, at_BT], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "slots"), [("llama", CONTEXT), ("gpt2", CONTEXT // 4)])
def test_greedy_is_the_naive_loop_also_beyond_the_context(
    name: str, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "_LEAST_SLOTS", slots)  # gpt2's windows outgrow the first few
    monkeypatch.setattr(generate, "_LEAST_PREFILL", min(slots, generate._LEAST_PREFILL))
    sampling = Sampling(temperature=0, max_new_tokens=50, repetition_penalty=1.3)
    prompts = PROMPTS if slots == CONTEXT else SHORT
    completions = generator(name).generate(prompts, sampling)
    assert [c.ids for c in completions] == naive(name, prompts, sampling)
    assert any(len(c.ids) > CONTEXT for c in completions)  # some did slide
    for c in completions:
        assert c.finish_reason == ("end_of_text" if c.ids[-1] == EOT else "length")


def test_a_text_does_not_depend_on_its_neighbours() -> None:
    sampling = Sampling(temperature=1.5, max_new_tokens=40)
    together = [c.ids for c in generator().generate(PROMPTS, sampling)]
    for r in range(len(PROMPTS)):
        others = [f"neighbour {n}" for n in range(r)] + [PROMPTS[r]] + ["x" * 20] * (3 - r)
        assert generator().generate(others, sampling)[r].ids == together[r]
    assert generator().generate(PROMPTS[:1], sampling)[0].ids == together[0]


def test_a_token_depends_on_the_seed_the_row_and_its_number_only() -> None:
    def ids(**changes: Any) -> list[list[int]]:
        sampling = replace(Sampling(temperature=2.0, max_new_tokens=30), **changes)
        return [c.ids for c in generator().generate(["綴"] * 4, sampling)]

    first, second, *_ = ids()
    assert first != second
    assert ids()[:2] == [first, second]
    assert ids(seed=1)[0] != first
    assert ids(max_new_tokens=5)[0] == first[:5]
    streamed = generator().generate(
        ["綴"] * 4, Sampling(temperature=2.0, max_new_tokens=30), on_text=lambda _, piece: None
    )
    assert streamed[0].ids == first


def kept_by_numpy(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """The distribution that the settings leave, by the papers' definitions over the whole row."""
    p = np.exp((logits.astype(np.float64) - logits.max()) / (s.temperature or 1e-30))
    order = np.argsort(-p, kind="stable")
    if s.top_k:
        p[order[s.top_k :]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    kept = np.zeros_like(p)
    kept[order] = (before < s.top_p) & (p[order] >= s.min_p * p.max())
    return p * kept / (p * kept).sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_k=0),
        Sampling(temperature=0.7, top_k=5),
        Sampling(temperature=2.0, top_k=0, top_p=0.8),
        Sampling(temperature=1.0, top_k=12, top_p=0.6),
        Sampling(temperature=1.3, top_k=0, min_p=0.2),
        Sampling(temperature=1.0, top_k=9, top_p=0.9, min_p=0.1),
        Sampling(temperature=1.0, top_k=100, top_p=0.9),
        Sampling(temperature=1e-6, top_k=9),
        Sampling(temperature=0),
    ],
)
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    draws, vocab_size = 20_000, 500
    logits_V = np.random.default_rng(0).normal(0, 2.5, vocab_size).astype(np.float32)
    keys_B = jax.random.split(jax.random.key(0), draws)
    logits_BV = np.broadcast_to(logits_V, (draws, vocab_size))
    drawn_B = np.asarray(
        jax.jit(generate.draw)(logits_BV, keys_B, Knobs.of([(sampling, 0)] * draws))
    )
    expected_V = kept_by_numpy(logits_V, sampling)
    found_V = np.bincount(drawn_B, minlength=vocab_size) / draws
    assert not found_V[expected_V == 0].any()
    # Five standard deviations of a share of so many draws; rare tokens come by whole ones.
    assert (abs(found_V - expected_V) <= 5 * np.sqrt(expected_V / draws) + 4 / draws).all()


def test_what_is_drawn_does_not_depend_on_the_way_to_the_bound() -> None:
    """Rows of few candidates, of all and greedy ones, each alone and all together."""
    all_settings = [
        Sampling(temperature=0),
        Sampling(temperature=1.7, top_k=40, top_p=0.9),
        Sampling(temperature=1.1, top_k=0),
        Sampling(temperature=0.9, top_k=0, top_p=0.7),
        Sampling(temperature=1.3, top_k=90, min_p=0.01),
    ]
    logits_BV = np.random.default_rng(2).normal(0, 1.5, (5, 300)).astype(np.float32)
    drawn = jax.jit(generate.draw)
    for seed in range(20):
        keys_B = jax.random.split(jax.random.key(seed), 5)
        together = drawn(logits_BV, keys_B, Knobs.of([(s, 0) for s in all_settings]))
        alone = [
            int(drawn(logits_BV[r : r + 1], keys_B[r : r + 1], Knobs.of([(s, 0)]))[0])
            for r, s in enumerate(all_settings)
        ]
        assert together.tolist() == alone
        assert alone[0] == logits_BV[0].argmax()


def test_texts_enter_and_leave_at_any_time() -> None:
    settings = [
        Sampling(temperature=0, max_new_tokens=30),
        Sampling(temperature=1.5, max_new_tokens=9, seed=3),
        Sampling(temperature=2.0, top_k=0, max_new_tokens=40, seed=4),
        Sampling(temperature=1.0, top_p=0.5, top_k=0, max_new_tokens=1, repetition_penalty=1.4),
        Sampling(temperature=1.2, max_new_tokens=25, stop=("e",), seed=5),
    ]
    jobs = [(PROMPTS[n % 4] + str(n), settings[n % 5]) for n in range(12)]
    cfg, params = tiny("llama")
    batch = Batch(cfg, params, TOKENIZER, 4, CONTEXT)
    batch.warm_up()
    programs = generate._decode._cache_size(), generate._prefill._cache_size()
    waiting = [Text(prompt, TOKENIZER, sampling, scored=True) for prompt, sampling in jobs]
    texts, left, turn = list(waiting), Text("nobody waits", TOKENIZER, settings[0]), 0
    while waiting or any(batch.texts):
        turn += 1
        while waiting and None in batch.texts and (turn % 2 or not any(batch.texts)):
            batch.enter(waiting.pop())
        if turn == 3 and None in batch.texts:
            batch.enter(left)
        batch.step(1 + turn % 7)
        if turn == 5 and left in batch.texts:
            batch.leave(left)
    assert programs == (generate._decode._cache_size(), generate._prefill._cache_size())
    for text, (prompt, sampling) in zip(texts, jobs, strict=True):
        alone = generator().generate([prompt], sampling)[0]
        assert text.completion() == alone
        assert len(text.scores) == len(text.ids)


def test_scores_are_the_model_s_own_whatever_the_settings() -> None:
    cfg, params = tiny("llama")
    batch = Batch(cfg, params, TOKENIZER, 2, CONTEXT)
    sampling = Sampling(temperature=3.0, top_k=3, repetition_penalty=1.5, max_new_tokens=20)
    text = Text("猫", TOKENIZER, sampling, scored=True)
    batch.enter(text)
    while not text.finish:
        batch.step()
    ids = [EOT, *TOKENIZER.encode("猫"), *text.ids]
    padded = np.zeros((4, CONTEXT), np.int32)
    padded[0, : len(ids)] = ids
    logprobs_TV = np.asarray(jax.nn.log_softmax(full_forward("llama")(padded)[0]))
    of_all = generate.scores(cfg, params, ids, CONTEXT)
    assert len(of_all) == len(ids) - 1
    for found, first in ((text.scores, 4), (of_all, 1)):
        for n, score in enumerate(found, first):
            row_V = logprobs_TV[n - 1]
            assert score.logprob == pytest.approx(row_V[ids[n]], abs=1e-4)
            assert [i for i, _ in score.alternatives] == np.argsort(-row_V)[:5].tolist()
            assert [p for _, p in score.alternatives] == pytest.approx(
                np.sort(row_V)[::-1][:5], abs=1e-4
            )


def test_padding_and_rows_without_a_token_are_never_drawn() -> None:
    cfg, params = tiny("nanolm")
    bias_V = np.zeros(cfg.vocab_size, np.float32)
    bias_V[[TOKENIZER.padding, -1, -2]] = 1e4
    params = params | {"head": params["head"] | {"bias": bias_V}}
    writer = Generator(cfg, params, TOKENIZER)
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature, top_k=0, max_new_tokens=40)
        ids = writer.generate([""], sampling)[0].ids
        assert TOKENIZER.padding not in ids and max(ids) < TOKENIZER.vocab_size


def test_the_stream_is_whole_characters_and_the_text() -> None:
    text = "猫🐈と👩‍👩‍👧。①"
    pieces: list[str] = []
    completion = reciter(TOKENIZER.encode(text)).generate(
        [""], Sampling(temperature=0), lambda i, piece: pieces.append(piece)
    )[0]
    assert (completion.text, completion.finish_reason) == (text, "end_of_text")
    assert completion.ids == [*TOKENIZER.encode(text), EOT]
    assert "".join(pieces) == text and len(pieces) > 1
    assert "\ufffd" not in "".join(pieces)


def test_a_character_cut_by_the_length_is_left_out_and_broken_bytes_are_shown() -> None:
    cat = TOKENIZER.encode("猫🐈")
    cut = reciter(cat).generate([""], Sampling(temperature=0, max_new_tokens=5))[0]
    assert (cut.text, cut.finish_reason, len(cut.ids)) == ("猫", "length", 5)
    broken = reciter(cat[3:5] + cat[:3]).generate([""], Sampling(temperature=0))[0]
    assert broken.text == "\ufffd猫"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("名前",), "吾輩は猫である。"),
        (("まだ", "名", "猫で"), "吾輩は"),  # the earliest in the text, not the first given
        (("である。名前は",), "吾輩は猫"),  # longer than a call's 16 tokens
        (("無",), "吾輩は猫である。名前は"),  # never found
        (("\ufffd",), "吾輩は猫である。名前は"),  # half a character is no text
    ],
)
def test_stop_strings(stop: tuple[str, ...], text: str) -> None:
    whole = "吾輩は猫である。名前は"
    pieces: list[str] = []
    completion = reciter(TOKENIZER.encode(whole)[: 3 * len(whole)]).generate(
        [""], Sampling(temperature=0, stop=stop), lambda i, piece: pieces.append(piece)
    )[0]
    assert completion.text == "".join(pieces) == text
    assert completion.finish_reason == ("end_of_text" if text == whole else "stop")


@settings(max_examples=200, deadline=None)
@given(
    st.text("ab猫"),
    st.lists(st.text("ab猫", min_size=1, max_size=4), max_size=3),
    st.integers(1, 5),
)
def test_stop_strings_cut_at_the_first_however_the_text_arrives(
    whole: str, stop: list[str], chunk: int
) -> None:
    text = Text("", TOKENIZER, Sampling(stop=tuple(stop)))
    pieces = []
    for n, token in enumerate(TOKENIZER.encode(whole)):
        if not text.finish:
            text.add(token)
        if n % chunk == 0:
            pieces.append(text.news())
    text.end("length")
    pieces.append(text.news())
    # The string that ends first ends the text: nobody can know of one that ends later.
    ends = [(whole.find(s) + len(s), whole.find(s)) for s in stop if s in whole]
    first = min(ends)[0] if ends else None
    expected = whole if first is None else whole[: min(at for end, at in ends if end == first)]
    assert "".join(pieces) == text.completion().text == expected
    assert text.finish == ("length" if first is None else "stop")


def test_settings_compile_nothing_anew() -> None:
    writer = generator()
    writer.generate(["ab"], Sampling())
    programs = generate._decode._cache_size(), generate._prefill._cache_size()
    for n, prompt in enumerate(["", "abc", "a longer one"]):
        settings = {"temperature": 0.5 + n, "top_k": 33 + n, "top_p": 0.5, "min_p": 0.1, "seed": n}
        writer.generate([prompt], Sampling(**settings, repetition_penalty=1.1, max_new_tokens=20))
    assert programs == (generate._decode._cache_size(), generate._prefill._cache_size())


def test_a_prompt_longer_than_the_context_is_cut_and_that_is_said() -> None:
    said: list[str] = []
    sampling = Sampling(temperature=0, max_new_tokens=20)
    long = "だから" * 20
    prompts = ["a", long, "b", long]
    completions = generator().generate(prompts, sampling, say=said.append)
    assert [c.ids for c in completions] == naive("llama", prompts, sampling)
    assert said == [f"prompt 2 is 181 tokens long; the model sees its last {CONTEXT}, the context"]


def test_more_texts_than_rows_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [*PROMPTS, *SHORT, "綴り"]
    sampling = Sampling(max_new_tokens=20)
    at_once = generator().generate(prompts, sampling)
    monkeypatch.setattr(generate, "_ROWS", 2)
    pieces = [""] * len(prompts)

    def hear(r: int, piece: str) -> None:
        pieces[r] += piece

    assert generator().generate(prompts, sampling, hear) == at_once
    assert pieces == [c.text for c in at_once]


def test_no_prompts_no_completions() -> None:
    assert generator().generate([], Sampling()) == []


def test_the_smallest_context_slides_at_every_token() -> None:
    cfg, params = tiny("llama")
    cfg = replace(cfg, context_length=1)
    ids = Generator(cfg, params, TOKENIZER).generate([""], Sampling(max_new_tokens=9))[0].ids
    assert len(ids) == 9 or ids[-1] == EOT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; it must be 0 (greedy), or from 1e-6 to 100"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1; it must be 0 (all) or more"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"min_p": 1.5}, "min_p is 1.5; it must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be from 1e-6 to 100"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be from 1 to 2147483647"),
        ({"max_new_tokens": 2**31}, "max_new_tokens is 2147483648"),
        ({"stop": ("",)}, "stop is ('',); it must be strings, none of them empty"),
        ({"stop": "。"}, "stop is '。'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Sampling(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_extreme_settings_draw_tokens_all_the_same() -> None:
    greedy = generator().generate(PROMPTS, Sampling(temperature=0, max_new_tokens=20))
    coldest = generator().generate(PROMPTS, Sampling(temperature=1e-6, max_new_tokens=20))
    assert [c.ids for c in coldest] == [c.ids for c in greedy]
    for temperature, penalty in itertools.product((1e-6, 100), repeat=2):
        sampling = Sampling(temperature, repetition_penalty=penalty, max_new_tokens=20)
        for c in generator().generate(PROMPTS, sampling):
            assert max(c.ids) < TOKENIZER.vocab_size


def test_bad_combinations() -> None:
    with pytest.raises(UserError, match="top_k is 259 and the vocabulary has 258 tokens"):
        generator().generate([""], Sampling(top_k=259))
    with pytest.raises(UserError, match="half of a surrogate"):
        generator().generate(["\ud800"], Sampling())
    cfg, params = tiny("llama")
    with pytest.raises(UserError, match="the tokenizer has 258 tokens and the model 100"):
        Generator(replace(cfg, vocab_size=100), params, TOKENIZER)
