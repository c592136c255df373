"""Text from a trained model: prefill the prompts once, then one token at a time from the KV cache.

The host keeps each text's window, the tokens that the model sees; the device keeps the keys and
values of all of them but the newest. Two programs do the work: `_prefill` puts windows into the
cache in one pass, `_decode` draws up to `_CHUNK` tokens in one call. When a window outgrows the
context it slides: its newer half is put into the cache anew, and the text goes on from there.

Legend: B texts, R texts to prefill, T tokens of a window, N tokens drawn, V vocabulary,
A alternatives.
"""

import codecs
import itertools
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
from tsuzuri.sampling import Knobs, Sampling, draw, keys
from tsuzuri.tokenizer import Tokenizer

# Tokens a call of the device: enough that the call's own cost vanishes, few enough to stream well.
_CHUNK = 16
# Texts that `generate` writes side by side; more wait for a row, as memory grows with the rows.
_ROWS = 64
# Shapes grow by powers of two from here, so that few programs are ever compiled.
_LEAST_PREFILL = 16
_LEAST_SLOTS = 128
# The likeliest tokens that are told of a place, where a text asks for them.
ALTERNATIVES = 5


@dataclass(frozen=True)
class Completion:
    """What was written after one prompt."""

    prompt: str
    text: str  # without the prompt and the stop string; whole characters only
    ids: list[int]  # every token drawn, the one that ended the text included
    finish_reason: Literal["stop", "length", "end_of_text"]


class Score(NamedTuple):
    """What the model holds of one token and its alternatives, before any setting of Sampling."""

    logprob: float  # natural logarithm
    alternatives: list[tuple[int, float]]  # the ALTERNATIVES likeliest ids with theirs


class Generator:
    """A model that writes.

    Programs are compiled for each number of prompts up to 64, each power of two of the prompts'
    length and of the window's. All settings are free to change.

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
          say: told when a prompt is longer than the context; once, if several are the same.

        Raises:
          UserError: `top_k` is above the vocabulary; a prompt that cannot be encoded; the model's
            outputs are no tokens.
        """
        context = self.cfg.context_length
        texts = [Text(prompt, self.tokenizer, sampling, r) for r, prompt in enumerate(prompts)]
        for number, text in enumerate(texts, 1):
            if say and len(text.window) > context and text.prompt not in prompts[: number - 1]:
                say(
                    f"prompt {number} is {len(text.window)} tokens long; the model sees its last "
                    f"{context}, the context"
                )
        if not texts:
            return []
        longest = max(len(text.window) for text in texts) + sampling.max_new_tokens
        slots = _power_of_two(longest, _LEAST_SLOTS, context)
        batch = Batch(self.cfg, self.params, self.tokenizer, min(len(texts), _ROWS), slots)
        waiting = iter(texts)
        limit = 1 if on_text else _CHUNK  # who watches sees the first token at once
        while any(not text.finish for text in texts):
            for text in itertools.islice(waiting, batch.texts.count(None)):
                batch.enter(text)
            batch.step(limit)
            limit = _CHUNK
            if on_text:
                for r, text in enumerate(texts):
                    if piece := text.news():
                        on_text(r, piece)
        return [text.completion() for text in texts]


class Text:
    """One text as it grows: its tokens, and the characters that they make up to a stop string.

    Args:
      prompt: text, or ids.
      stream: texts of one seed and prompt differ by it.
      scored: keep what the model holds of each token, in `scores`.

    Raises:
      UserError: the prompt cannot be encoded; `top_k` is above the vocabulary.
    """

    def __init__(
        self,
        prompt: str | Sequence[int],
        tokenizer: Tokenizer,
        sampling: Sampling,
        stream: int = 0,
        scored: bool = False,
    ):
        if sampling.top_k > tokenizer.vocab_size:
            raise UserError(
                f"top_k is {sampling.top_k} and the vocabulary has {tokenizer.vocab_size} tokens; "
                "give at most so many, or 0 for all"
            )
        if isinstance(prompt, str):
            self.prompt, ids = prompt, tokenizer.encode(prompt)
        else:
            self.prompt, ids = tokenizer.decode(prompt), prompt
        self.tokenizer, self.sampling = tokenizer, sampling
        self.stream, self.scored = stream, scored
        self.window = [tokenizer.begin_of_text, *ids]
        self.ids: list[int] = []
        self.scores: list[Score] = []
        self.finish: Literal["stop", "length", "end_of_text", "failed"] | None = None
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
        stops = self.sampling.stop
        ends = [at for stop in stops if (at := self._text.find(stop, self._told)) >= 0]
        if ends:
            self._text = self._text[: min(ends)]
            self.end("stop")
        elif len(self.ids) == self.sampling.max_new_tokens:
            self.end("length")

    def end(self, reason: Literal["stop", "length", "end_of_text", "failed"]) -> None:
        self.finish = self.finish or reason

    def news(self) -> str:
        """The text since the last call, without what may yet turn out to begin a stop string."""
        held = 0
        if not self.finish:
            for stop in self.sampling.stop:
                begins = (n for n in range(len(stop) - 1, 0, -1) if self._text.endswith(stop[:n]))
                held = max(held, next(begins, 0))
        told, self._told = self._told, max(self._told, len(self._text) - held)
        return self._text[told : self._told]

    def completion(self) -> Completion:
        assert self.finish and self.finish != "failed"
        return Completion(self.prompt, self._text, self.ids, self.finish)


class Batch:
    """Texts that are written side by side, each in a row of one KV cache.

    A text enters when a row is free, whatever the others are at, and leaves its row when it ends:
    so rows are not left idle (Orca, Yu et al. 2022). The cache is made of blocks, each as long as
    all before it, and only those are looked at that the windows reach into. No shape ever changes,
    and the programs are few: one for each number of blocks, two for each power of two of the
    windows that enter.

    Args:
      rows: how many texts at most.
      slots: the longest window that is kept.

    Raises:
      UserError: the model's outputs are no tokens.
    """

    def __init__(self, cfg: ModelConfig, params: Any, tokenizer: Tokenizer, rows: int, slots: int):
        if cfg.output_size:
            raise UserError("this model writes no text: it is an input method, see `tsuzuri ime`")
        self.cfg, self.params, self.tokenizer = cfg, params, tokenizer
        self._reaches = _powers_of_two(_LEAST_SLOTS, slots)  # how far each block reaches
        sizes = np.diff([0, *self._reaches]).tolist()
        self._cache = [empty_cache(cfg, rows, size) for size in sizes]
        self.texts: list[Text | None] = [None] * rows  # by row
        self._stale: set[int] = set()  # rows whose window is not in the cache
        self._seen_BV = np.zeros((rows, cfg.vocab_size), bool)
        ids_V = np.arange(cfg.vocab_size)
        # Never text: these, and rows of the embedding table that no token has.
        never = {tokenizer.padding, tokenizer.unknown, tokenizer.begin_of_text}
        never -= {None, tokenizer.end_of_text}
        self._banned_V = np.isin(ids_V, list(never)) | (ids_V >= tokenizer.vocab_size)

    def enter(self, text: Text) -> None:
        """Gives the text the first row that is free; one must be."""
        row = self.texts.index(None)
        self.texts[row] = text
        self._seen_BV[row] = False
        self._seen_BV[row, text.window[1:]] = True  # all but what stands before it
        text.window = text.window[-self.cfg.context_length :]
        self._stale.add(row)

    def leave(self, text: Text) -> None:
        """Frees the row of a text."""
        row = self.texts.index(text)
        self.texts[row] = None
        self._stale.discard(row)

    def step(self, limit: int = _CHUNK) -> None:
        """Writes up to `limit` tokens more of every text; those that end leave."""
        inside = {row: text for row, text in enumerate(self.texts) if text}
        if not inside:
            return
        self._fill()
        longest = max(len(text.window) for text in inside.values())
        scored = any(text.scored for text in inside.values())
        tokens_BN, drawn, *scores = self._decode(longest, scored, limit)
        tokens = np.asarray(tokens_BN)[:, : int(drawn)].tolist()
        logprob_BN, ids_BNA, logprobs_BNA = map(np.asarray, scores if scored else [[], [], []])
        for row, text in inside.items():
            for n, token in enumerate(tokens[row]):
                if text.finish:
                    break
                self._seen_BV[row, token] = True
                text.add(token)
                if text.scored:
                    best = zip(ids_BNA[row, n].tolist(), logprobs_BNA[row, n].tolist(), strict=True)
                    text.scores.append(Score(float(logprob_BN[row, n]), list(best)))
            if text.finish:
                self.leave(text)
            elif len(text.window) > self.cfg.context_length:
                text.window = text.window[-max(self.cfg.context_length // 2, 1) :]
                self._stale.add(row)

    def warm_up(self) -> None:
        """Compiles all programs that `enter` and `step` can need; for an empty batch."""
        self._prefill([], 1, _LEAST_PREFILL)  # from here on the cache is where the parameters are
        for length in _powers_of_two(_LEAST_PREFILL, self._reaches[-1]):
            for rows in {1, len(self.texts)}:
                self._prefill([], rows, length)
        for reach in self._reaches:
            self._decode(reach, False, 0)

    def _decode(self, longest: int, scored: bool, limit: int) -> tuple[jax.Array, ...]:
        """What `_decode` gives, where the longest window has so many tokens."""
        blocks = 1 + sum(reach < longest for reach in self._reaches)
        texts, nobody = self.texts, Sampling(temperature=0)
        self._cache[:blocks], *drawn = _decode(
            self.cfg,
            self.params,
            self._cache[:blocks],
            np.array([t.window[-1] if t else 0 for t in texts], np.int32),
            np.array([len(t.window) - 1 if t else 0 for t in texts], np.int32),
            np.array([len(t.ids) if t else 0 for t in texts], np.int32),
            np.array([t.sampling.max_new_tokens if t else 0 for t in texts], np.int32),
            self._seen_BV,
            Knobs.of([(t.sampling, t.stream) if t else (nobody, 0) for t in texts]),
            self._banned_V,
            self.tokenizer.end_of_text,
            scored,
            limit,
        )
        return tuple(drawn)

    def _fill(self) -> None:
        """Puts the windows of the stale rows, all but their newest tokens, into the cache."""
        texts = {row: self.texts[row] for row in sorted(self._stale)}
        windows = {row: t.window[:-1] for row, t in texts.items() if t and len(t.window) > 1}
        self._stale.clear()
        # One by one, unless so many come at once that a program for all rows does less.
        together = len(self.texts) if 4 * len(windows) > len(self.texts) > 1 else 1
        for first in range(0, len(windows), together):
            part = list(windows.items())[first : first + together]
            longest = max(len(window) for _, window in part)
            length = _power_of_two(longest, _LEAST_PREFILL, self._reaches[-1])
            self._prefill(part, together, length)

    def _prefill(self, windows: list[tuple[int, list[int]]], rows: int, length: int) -> None:
        tokens_RT = np.full((rows, length), self.tokenizer.padding, np.int32)
        row_R = np.full(rows, len(self.texts), np.int32)  # no such row: nothing is written
        for r, (row, window) in enumerate(windows):
            tokens_RT[r, : len(window)], row_R[r] = window, row
        blocks = 1 + sum(reach < length for reach in self._reaches)
        self._cache[:blocks] = _prefill(
            self.cfg, self.params, self._cache[:blocks], tokens_RT, row_R
        )


def scores(cfg: ModelConfig, params: Any, tokens: Sequence[int], most: int) -> list[Score]:
    """What the model holds of each of the tokens but the first.

    Args:
      most: there are at most so many more; a program is compiled for each such number.
    """
    tokens_1T = np.zeros((1, 1 + most), np.int32)
    tokens_1T[0, : len(tokens)] = tokens
    logprob_T, ids_TA, logprobs_TA = map(np.asarray, _scores(cfg, params, tokens_1T))
    return [
        Score(
            float(logprob_T[n]), list(zip(ids_TA[n].tolist(), logprobs_TA[n].tolist(), strict=True))
        )
        for n in range(len(tokens) - 1)
    ]


@partial(jax.jit, static_argnames=("cfg",), donate_argnames=("cache",))
def _prefill(
    cfg: ModelConfig, params: Any, cache: list[KVCache], tokens_RT: jax.Array, row_R: jax.Array
) -> list[KVCache]:
    """Writes the keys and values of the tokens into slots 0, 1, 2 ... T-1 of these rows.

    Padding at the right writes too: no token sees it before its slot is written again. A row that
    the cache does not have is left out.
    """
    rows, length = tokens_RT.shape
    _, filled = _model(cfg, params).hidden(tokens_RT, cache=empty_cache(cfg, rows, length))
    written, first = [], 0
    for block in cache:
        most = block.keys[0].shape[2]

        def write(old: jax.Array, new: jax.Array, first: int = first, most: int = most):
            part = new[:, :, first : first + most]
            return old.at[row_R, :, : part.shape[2]].set(part, mode="drop")

        written.append(jax.tree.map(write, block, filled))
        first += most
    return written


@partial(
    jax.jit,
    static_argnames=("cfg",),
    donate_argnames=("cache",),
    # A CPU reads the weights with its widest registers: 1.2 times as fast where it has 512 bits.
    compiler_options={"xla_cpu_prefer_vector_width": 512},
)
def _decode(
    cfg: ModelConfig,
    params: Any,
    cache: list[KVCache],
    token_B: jax.Array,
    position_B: jax.Array,
    number_B: jax.Array,
    most_B: jax.Array,
    seen_BV: jax.Array,
    knobs: Knobs,
    banned_V: jax.Array,
    end_of_text: int,
    scored: bool,
    limit: int,
) -> tuple[list[KVCache], jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Draws up to `limit` tokens a text; fewer when all texts have ended, or one's slots are full.

    Args:
      cache: its first blocks, as far as any text reaches.
      token_B: each text's newest token, not yet in the cache.
      position_B: its position, which is its slot.
      number_B: how many tokens were drawn before; `most_B`, how many there may be in the end.
      scored: whether what the model holds of them is wanted.

    Returns:
      The cache, the tokens [B, _CHUNK], and how many columns of them were drawn; and of each token
      its log-probability, the likeliest ids [B, _CHUNK, A] and their log-probabilities.
    """
    model = _model(cfg, params)
    batch = len(token_B)
    rows_B = jnp.arange(batch)
    slots = sum(block.keys[0].shape[2] for block in cache)
    first_B = position_B
    alternatives = min(ALTERNATIVES, cfg.vocab_size)

    def goes_on(state: tuple[Any, ...]) -> jax.Array:
        n, _, _, position_B, done_B, *_ = state
        return (n < limit) & ~done_B.all() & (done_B | (position_B < slots)).all()

    def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
        n, recent, token_B, position_B, done_B, seen_BV, tokens_BN, scores = state
        x_BTD, recent = model.hidden(
            token_B[:, None], position_B[:, None], recent, slot=n, past=(cache, first_B)
        )
        held_BV = model.logits(x_BTD[:, 0])
        penalty_B1 = knobs.repetition_penalty[:, None]
        less_BV = jnp.where(held_BV > 0, held_BV / penalty_B1, held_BV * penalty_B1)
        logits_BV = jnp.where(seen_BV, less_BV, held_BV)
        logits_BV = jnp.where(banned_V[None, :], -jnp.inf, logits_BV)
        token_B = draw(logits_BV, keys(knobs, number_B + n), knobs)
        scores = jax.lax.cond(
            scored,
            lambda: jax.tree.map(lambda a, s: a.at[:, n].set(s), scores, _score(held_BV, token_B)),
            lambda: scores,
        )
        return (
            n + 1,
            recent,
            token_B,
            position_B + ~done_B,
            done_B | (token_B == end_of_text) | (number_B + n + 1 >= most_B),
            seen_BV.at[rows_B, token_B].set(True),
            tokens_BN.at[:, n].set(token_B),
            scores,
        )

    tokens_BN = jnp.zeros((batch, _CHUNK), jnp.int32)
    alternatives_BNA = jnp.zeros((batch, _CHUNK, alternatives), jnp.int32)
    scores = tokens_BN.astype(float), alternatives_BNA, alternatives_BNA.astype(float)
    recent = empty_cache(cfg, batch, _CHUNK)
    done_B = number_B >= most_B
    state = (0, recent, token_B, position_B, done_B, seen_BV, tokens_BN, scores)
    n, recent, *_, tokens_BN, scores = jax.lax.while_loop(goes_on, body, state)
    # The loop only read the cache. What it wrote goes there now, each text's after its own.
    turns_N = jnp.arange(_CHUNK)
    slots_BN = jnp.where((turns_N < n)[None, :], first_B[:, None] + turns_N[None, :], slots)
    settled, first = [], 0
    for block in cache:
        most = block.keys[0].shape[2]
        inside_BN = (slots_BN >= first) & (slots_BN < first + most)
        at_BN = jnp.where(inside_BN, slots_BN - first, most)  # there is no such slot: left out

        def settle(old_BGSK: jax.Array, new_BGNK: jax.Array, at_BN: jax.Array = at_BN):
            new_BNGK = new_BGNK.transpose(0, 2, 1, 3)
            return old_BGSK.at[rows_B[:, None], :, at_BN].set(new_BNGK, mode="drop")

        settled.append(jax.tree.map(settle, block, recent))
        first += most
    return settled, tokens_BN, n, *scores


@partial(jax.jit, static_argnames=("cfg",))
def _scores(cfg: ModelConfig, params: Any, tokens_1T: jax.Array) -> tuple[jax.Array, ...]:
    """Of each token but the first what `_score` gives, [T-1] and twice [T-1, A]."""
    model = _model(cfg, params)
    x_1TD, _ = model.hidden(tokens_1T[:, :-1])
    # Few places at a time: the logits of all of them would take far more room than the model.
    return jax.lax.map(
        lambda place: jax.tree.map(
            lambda a: a[0], _score(model.logits(place[0][None]), place[1][None])
        ),
        (x_1TD[0], tokens_1T[0, 1:]),
        batch_size=64,
    )


def _score(logits_BV: jax.Array, token_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The token's log-probability [B], the likeliest ids [B, A] and their log-probabilities."""
    logprobs_BV = jax.nn.log_softmax(logits_BV)
    likeliest_BA, ids_BA = jax.lax.top_k(logprobs_BV, min(ALTERNATIVES, logits_BV.shape[1]))
    return jnp.take_along_axis(logprobs_BV, token_B[:, None], axis=1)[:, 0], ids_BA, likeliest_BA


@cache
def graphdef(cfg: ModelConfig) -> nnx.GraphDef[Decoder]:
    """The Decoder without its parameters; making it costs half of what tracing a program does."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0))))[0]


def _model(cfg: ModelConfig, params: Any) -> Decoder:
    return nnx.merge(graphdef(cfg), params)


def _powers_of_two(least: int, most: int) -> list[int]:
    """least, 2 least, 4 least ... up to `most`, which ends them whatever it is."""
    return [least << n for n in range(most.bit_length()) if least << n < most] + [most]


def _power_of_two(n: int, least: int, most: int) -> int:
    """The first of these that holds n, but at most `most`."""
    return next((size for size in _powers_of_two(least, most) if size >= n), most)
