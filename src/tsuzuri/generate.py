"""Text from a trained model: prefill the prompts once, then one token at a time from the KV cache.

The host keeps each text's window, the tokens that the model sees; the device keeps the keys and
values of all of them but the newest. Two programs do the work: `_prefill` puts windows into the
cache in one pass, `_decode` draws up to `_CHUNK` tokens in one call. When a window outgrows the
context it slides: its newer half is put into the cache anew, and the text goes on from there.

Legend: B texts, T tokens of a window, N tokens drawn, V vocabulary, C candidates for a token.
"""

import codecs
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsuzuri.config import ModelConfig
from tsuzuri.errors import UserError
from tsuzuri.model import Decoder, KVCache, empty_cache
from tsuzuri.tokenizer import Tokenizer

# Tokens a call of the device: enough that the call's own cost vanishes, few enough to stream well.
_CHUNK = 16
# Shapes grow by powers of two from here, so that few programs are ever compiled.
_LEAST_PREFILL = 16
_LEAST_SLOTS = 128


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the model's distribution, and when a text ends.

    Raises:
      UserError: a value out of its range.
    """

    temperature: float = 0.8  # divides the logits; 0: always the likeliest token (greedy)
    top_k: int = 40  # only from the k likeliest tokens; 0: from all
    top_p: float = 1.0  # only from the fewest likeliest that hold this share (Holtzman et al. 2020)
    min_p: float = 0.0  # only from those this share as likely as the likeliest (Nguyen et al. 2024)
    repetition_penalty: float = 1.0  # above 1: less of what was written (Keskar et al. 2019)
    max_new_tokens: int = 200
    stop: tuple[str, ...] = ()  # strings that end a text; they are not part of it
    seed: int = 0

    def __post_init__(self) -> None:
        def must(condition: bool, key: str, wanted: str) -> None:
            if not condition:
                raise UserError(f"{key} is {getattr(self, key)!r}; it must be {wanted}")

        must(0 <= self.temperature < math.inf, "temperature", "0 (greedy) or a positive number")
        must(self.top_k >= 0, "top_k", "0 (all) or more")
        must(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        must(0 <= self.min_p <= 1, "min_p", "from 0 to 1")
        must(0 < self.repetition_penalty < math.inf, "repetition_penalty", "a positive number")
        must(self.max_new_tokens >= 1, "max_new_tokens", "at least 1")
        must(
            not isinstance(self.stop, str) and all(self.stop), "stop", "strings, none of them empty"
        )
        must(0 <= self.seed < 2**31, "seed", "from 0 to 2147483647")


@dataclass(frozen=True)
class Completion:
    """What was written after one prompt."""

    prompt: str
    text: str  # without the prompt and the stop string; whole characters only
    ids: list[int]  # every token drawn, the one that ended the text included
    finish_reason: Literal["stop", "length", "end_of_text"]


class Generator:
    """A model that writes.

    Programs are compiled for each number of prompts, each power of two of the prompts' length and
    of the window's, and each power of two of `top_k`. All other settings are free to change.

    Args:
      cfg: the resolved ModelConfig.
      params: the Decoder's parameters, a nested dict.
      tokenizer: the one that the model was trained with.

    Raises:
      UserError: the tokenizer has more tokens than the model.
    """

    def __init__(self, cfg: ModelConfig, params: Any, tokenizer: Tokenizer):
        if tokenizer.vocab_size > cfg.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model {cfg.vocab_size}; "
                "use the tokenizer that the model was trained with"
            )
        self.cfg, self.params, self.tokenizer = cfg, params, tokenizer
        ids_V = np.arange(cfg.vocab_size)
        # Never text: these, and rows of the embedding table that no token has.
        never = {tokenizer.padding, tokenizer.unknown, tokenizer.begin_of_text}
        never -= {None, tokenizer.end_of_text}
        self._banned_V = np.isin(ids_V, list(never)) | (ids_V >= tokenizer.vocab_size)

    def generate(
        self,
        prompts: Sequence[str],
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> list[Completion]:
        """Continues every prompt; an empty one is the beginning of a text.

        Token n of prompt r is drawn with a key made of (seed, r, n) alone: what a prompt becomes
        does not depend on its neighbours, but for the rounding of its logits.

        Args:
          on_text: called with (a prompt's index, a piece of text) as it is written. The pieces are
            whole characters; joined they are the completion's text.
          say: told when a prompt is longer than the context.

        Raises:
          UserError: `top_k` is above the vocabulary; a prompt that cannot be encoded; the model's
            outputs are no tokens.
        """
        context = self.cfg.context_length
        if self.cfg.output_size:
            raise UserError("this model writes no text: it is an input method, see `tsuzuri ime`")
        knobs, candidates = self._knobs(sampling)
        texts = [_Text(prompt, self.tokenizer, sampling.stop) for prompt in prompts]
        seen_BV = np.zeros((len(texts), self.cfg.vocab_size), bool)
        for i, text in enumerate(texts):
            seen_BV[i, text.window[1:]] = True  # all but what stands before it
            if say and len(text.window) > context:
                say(
                    f"prompt {i + 1} is {len(text.window)} tokens long; the model sees its last "
                    f"{context}, the context"
                )
            text.window = text.window[-context:]

        cache, stale, step = None, texts, 0  # stale: the texts whose window is not in the cache
        while step < sampling.max_new_tokens and (active := [t for t in texts if not t.finish]):
            slots = _power_of_two(max(len(t.window) for t in active), _LEAST_SLOTS, context)
            cache = _make_room(self.cfg, cache, len(texts), slots)
            if any(len(t.window) > 1 for t in stale):
                cache = self._fill(cache, texts, stale)
            limit = min(_CHUNK, sampling.max_new_tokens - step)
            cache, tokens_BN, drawn = _decode(
                self.cfg,
                self.params,
                cache,
                np.array([t.window[-1] for t in texts], np.int32),
                np.array([len(t.window) - 1 for t in texts], np.int32),
                np.array([bool(t.finish) for t in texts]),
                seen_BV,
                self._banned_V,
                self.tokenizer.end_of_text,
                knobs,
                candidates,
                step,
                1 if on_text and step == 0 else limit,  # who watches sees the first token at once
            )
            step += int(drawn)
            for i, tokens in enumerate(np.asarray(tokens_BN)[:, : int(drawn)].tolist()):
                for token in tokens:
                    if not texts[i].finish:
                        seen_BV[i, token] = True
                        texts[i].add(token)
            stale = [t for t in active if not t.finish and len(t.window) > context]
            for text in stale:
                text.window = text.window[-max(context // 2, 1) :]
            if step == sampling.max_new_tokens:
                for text in texts:
                    text.end("length")
            if on_text:
                for i, text in enumerate(texts):
                    if piece := text.news():
                        on_text(i, piece)
        return [text.completion() for text in texts]

    def _knobs(self, sampling: Sampling) -> tuple["_Knobs", int]:
        """The settings as the device takes them, and how many candidates it looks at."""
        vocab_size = self.tokenizer.vocab_size
        if sampling.top_k > vocab_size:
            raise UserError(
                f"top_k is {sampling.top_k} and the vocabulary has {vocab_size} tokens; "
                "give at most so many, or 0 for all"
            )
        top_k = 1 if sampling.temperature == 0 else sampling.top_k or vocab_size
        knobs = _Knobs(
            np.float32(max(sampling.temperature, np.finfo(np.float32).tiny)),
            np.int32(top_k),
            np.float32(sampling.top_p),
            np.float32(sampling.min_p),
            np.float32(sampling.repetition_penalty),
            np.int32(sampling.seed),
        )
        return knobs, _power_of_two(top_k, 1, self.cfg.vocab_size)

    def _fill(self, cache: KVCache, texts: list["_Text"], stale: list["_Text"]) -> KVCache:
        """Puts the windows of the stale texts, all but their newest tokens, into the cache."""
        longest = max(len(t.window) - 1 for t in stale)
        length = _power_of_two(longest, _LEAST_PREFILL, self.cfg.context_length)
        tokens_BT = np.full((len(texts), length), self.tokenizer.padding, np.int32)
        for tokens_T, text in zip(tokens_BT, texts, strict=True):
            if text in stale:
                tokens_T[: len(text.window) - 1] = text.window[:-1]
        stale_B = np.array([text in stale for text in texts])
        return _prefill(self.cfg, self.params, cache, tokens_BT, stale_B)


class _Text:
    """One text as it grows: its tokens, and the characters that they make up to a stop string."""

    def __init__(self, prompt: str, tokenizer: Tokenizer, stop: tuple[str, ...]):
        self.prompt, self.tokenizer, self.stop = prompt, tokenizer, stop
        self.window = [tokenizer.begin_of_text, *tokenizer.encode(prompt)]
        self.ids: list[int] = []
        self.finish: Literal["stop", "length", "end_of_text"] | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text = ""
        self._told = 0  # how many characters `news` has given

    def add(self, token: int) -> None:
        self.window.append(token)
        self.ids.append(token)
        if token == self.tokenizer.end_of_text:
            self.end("end_of_text")
            return
        # A token may end inside a character: the decoder keeps those bytes for the next.
        self._text += self._decoder.decode(self.tokenizer.decode_bytes([token]))
        ends = [at for stop in self.stop if (at := self._text.find(stop, self._told)) >= 0]
        if ends:
            self._text = self._text[: min(ends)]
            self.end("stop")

    def end(self, reason: Literal["stop", "length", "end_of_text"]) -> None:
        self.finish = self.finish or reason

    def news(self) -> str:
        """The text since the last call, without what may yet turn out to begin a stop string."""
        held = 0
        if not self.finish:
            for stop in self.stop:
                begins = (n for n in range(len(stop) - 1, 0, -1) if self._text.endswith(stop[:n]))
                held = max(held, next(begins, 0))
        told, self._told = self._told, max(self._told, len(self._text) - held)
        return self._text[told : self._told]

    def completion(self) -> Completion:
        assert self.finish
        return Completion(self.prompt, self._text, self.ids, self.finish)


class _Knobs(NamedTuple):
    """Sampling as scalars of the device, so that changing one compiles nothing anew."""

    temperature: Any  # above 0
    top_k: Any  # 1 or more
    top_p: Any
    min_p: Any
    repetition_penalty: Any
    seed: Any


def draw(logits_BV: jax.Array, keys_B: jax.Array, knobs: _Knobs, candidates: int) -> jax.Array:
    """A token id for each text, int32 [B], from its `candidates` likeliest, at least `top_k`."""
    top_BC, ids_BC = jax.lax.top_k(logits_BV, candidates)
    if candidates == 1:
        return ids_BC[:, 0]
    # A place in the row is now a rank. Less the maximum, no temperature can overflow.
    # XLA's fast top_k stays only where nothing slices what it gives: hence max, not the first.
    top_BC = (top_BC - top_BC.max(axis=1, keepdims=True)) / knobs.temperature
    top_BC = jnp.where(jnp.arange(candidates)[None, :] < knobs.top_k, top_BC, -jnp.inf)
    p_BC = jax.nn.softmax(top_BC)
    likelier_BC = jnp.cumsum(p_BC, axis=1) - p_BC  # what the candidates before hold together
    kept_BC = (likelier_BC < knobs.top_p) & (p_BC >= knobs.min_p * p_BC.max(axis=1, keepdims=True))
    rank_B = jax.vmap(jax.random.categorical)(keys_B, jnp.where(kept_BC, top_BC, -jnp.inf))
    return jnp.take_along_axis(ids_BC, rank_B[:, None], axis=1)[:, 0]


@partial(jax.jit, static_argnames=("cfg",), donate_argnames=("cache",))
def _prefill(
    cfg: ModelConfig, params: Any, cache: KVCache, tokens_BT: jax.Array, stale_B: jax.Array
) -> KVCache:
    """Writes the keys and values of the stale texts' tokens into slots 0, 1, 2 ... T-1.

    Padding at the right writes too: no token sees it before its slot is written again.
    """
    _, filled = _model(cfg, params).hidden(tokens_BT, cache=cache)
    stale_B111 = stale_B[:, None, None, None]
    return jax.tree.map(lambda new, old: jnp.where(stale_B111, new, old), filled, cache)


@partial(
    jax.jit,
    static_argnames=("cfg", "candidates"),
    donate_argnames=("cache",),
    # A CPU reads the weights with its widest registers: 1.2 times as fast where it has 512 bits.
    compiler_options={"xla_cpu_prefer_vector_width": 512},
)
def _decode(
    cfg: ModelConfig,
    params: Any,
    cache: KVCache,
    token_B: jax.Array,
    position_B: jax.Array,
    done_B: jax.Array,
    seen_BV: jax.Array,
    banned_V: jax.Array,
    end_of_text: int,
    knobs: _Knobs,
    candidates: int,
    step: int,
    limit: int,
) -> tuple[KVCache, jax.Array, jax.Array]:
    """Draws up to `limit` tokens a text; fewer when all texts have ended, or one's cache is full.

    Args:
      token_B: each text's newest token, not yet in the cache.
      position_B: its position, which is its slot.
      step: how many tokens were drawn before.

    Returns:
      The cache, the tokens [B, _CHUNK], and how many columns of them were drawn.
    """
    model = _model(cfg, params)
    rows_B = jnp.arange(len(token_B))
    seeds_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(knobs.seed), rows_B)
    slots, first_B = cache.keys[0].shape[2], position_B

    def goes_on(state: tuple[Any, ...]) -> jax.Array:
        n, _, _, position_B, done_B, _, _ = state
        return (n < limit) & ~done_B.all() & (done_B | (position_B < slots)).all()

    def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
        n, recent, token_B, position_B, done_B, seen_BV, tokens_BN = state
        x_BTD, recent = model.hidden(
            token_B[:, None], position_B[:, None], recent, slot=n, past=(cache, first_B)
        )
        logits_BV = model.logits(x_BTD[:, 0])
        penalty = knobs.repetition_penalty
        less_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
        logits_BV = jnp.where(seen_BV, less_BV, logits_BV)
        logits_BV = jnp.where(banned_V[None, :], -jnp.inf, logits_BV)
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(seeds_B, step + n)
        token_B = draw(logits_BV, keys_B, knobs, candidates)
        return (
            n + 1,
            recent,
            token_B,
            position_B + ~done_B,
            done_B | (token_B == end_of_text),
            seen_BV.at[rows_B, token_B].set(True),
            tokens_BN.at[:, n].set(token_B),
        )

    tokens_BN = jnp.zeros((len(token_B), _CHUNK), jnp.int32)
    recent = empty_cache(cfg, len(token_B), _CHUNK)
    state = (0, recent, token_B, position_B, done_B, seen_BV, tokens_BN)
    n, recent, _, _, _, _, tokens_BN = jax.lax.while_loop(goes_on, body, state)
    # The loop only read the cache. What it wrote goes there now, each text's after its own.
    turns_N = jnp.arange(_CHUNK)
    slots_BN = jnp.where((turns_N < n)[None, :], first_B[:, None] + turns_N[None, :], slots)

    def settle(old_BGSK: jax.Array, new_BGNK: jax.Array) -> jax.Array:
        new_BNGK = new_BGNK.transpose(0, 2, 1, 3)
        return old_BGSK.at[rows_B[:, None], :, slots_BN].set(new_BNGK, mode="drop")

    return jax.tree.map(settle, cache, recent), tokens_BN, n


@cache
def graphdef(cfg: ModelConfig) -> nnx.GraphDef[Decoder]:
    """The Decoder without its parameters; making it costs half of what tracing a program does."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0))))[0]


def _model(cfg: ModelConfig, params: Any) -> Decoder:
    return nnx.merge(graphdef(cfg), params)


def _make_room(cfg: ModelConfig, cache: KVCache | None, batch: int, slots: int) -> KVCache:
    """A cache of so many slots, with what the old one holds."""
    if cache is None:
        return empty_cache(cfg, batch, slots)
    more = slots - cache.keys[0].shape[2]
    if more <= 0:
        return cache
    return jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, more), (0, 0))), cache)


def _power_of_two(n: int, least: int, most: int) -> int:
    """The first of least, 2 least, 4 least ... that holds n, but at most `most`, which does."""
    while least < n:
        least *= 2
    return min(least, most)
