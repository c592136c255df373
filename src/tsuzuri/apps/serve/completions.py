"""OpenAI's API of completions, as its clients speak it: a request read, its answer formed.

The fields are those of platform.openai.com/docs/api-reference/completions, and of vLLM's beyond
them: top_k, min_p, repetition_penalty. By default a text is drawn from the model's distribution as
it is. What is not understood is refused, never ignored.
"""

import codecs
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from tsuzuri.apps.serve.engine import News
from tsuzuri.config import suggestion
from tsuzuri.errors import UserError
from tsuzuri.generate import ALTERNATIVES, Score, Text
from tsuzuri.sampling import Sampling
from tsuzuri.tokenizer import Tokenizer

_MOST_STOPS, _MOST_STOP_CHARACTERS = 4, 256
# What OpenAI has and this has not, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}


class Refused(Exception):
    """A request that is answered by an error, in OpenAI's form.

    Args:
      status: of HTTP.
      param: the field that is wrong.
      code: a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        kinds |= {429: "rate_limit_error"}
        kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    prompts: list[list[int]]
    sampling: Sampling
    max_tokens: int
    n: int = 1  # continuations of each prompt
    stream: bool = False
    usage_in_stream: bool = False
    echo: bool = False  # the prompt stands before its continuation
    logprobs: int | None = None  # so many alternatives of each token


def read(body: bytes, model: str, tokenizer: Tokenizer, context: int, most: int) -> Request:
    """A request from its body.

    Args:
      model: the name of the one that is served.
      context: the most tokens of a prompt and its continuation together.
      most: the most texts, n of each prompt.

    Raises:
      Refused: it is no JSON, a field is unknown, or holds what it cannot.
    """
    fields = _Fields(_object(body))
    name = fields.take("model", str, "a string", required=True)
    if name != model:
        message = f"there is no model '{name[:100]}' here; this server has '{model}'"
        raise Refused(404, message, "model", "model_not_found")
    n = fields.take("n", int, "a whole number", 1)
    max_tokens = fields.take("max_tokens", int, "a whole number", 16)
    logprobs = fields.take("logprobs", int, "a whole number or null")
    prompt = fields.take("prompt", object, "", "")
    stop = fields.take("stop", object, "", [])
    stop = [stop] if isinstance(stop, str) else stop
    seed = fields.take("seed", int, "an integer of 64 bits", secrets.randbelow(2**31))
    options = _Fields(fields.take("stream_options", dict, "an object", {}))
    request = {
        "stream": fields.take("stream", bool, "true or false", False),
        "echo": fields.take("echo", bool, "true or false", False),
        "usage_in_stream": options.take("include_usage", bool, "true or false", False),
    }
    options.end()
    sampling = {
        name: fields.take(name, kind, what, default)
        for name, kind, what, default in (
            ("temperature", float, "a number", 1.0),
            ("top_k", int, "a whole number", 0),
            ("top_p", float, "a number", 1.0),
            ("min_p", float, "a number", 0.0),
            ("repetition_penalty", float, "a number", 1.0),
        )
    }
    fields.take("user", str, "a string")
    for key, neutral in (_NEUTRAL | {"best_of": (None, n)}).items():
        if fields.take(key, object, "") not in neutral:
            raise Refused(400, f"{key} is not supported; leave it out", key, "unsupported")
    fields.end()

    def must(condition: bool, key: str, wanted: str) -> None:
        if not condition:
            raise Refused(400, f"{key} must be {wanted}", key, "invalid_value")

    must(1 <= n <= most, "n", f"from 1 to {most}")
    must(max_tokens >= 0, "max_tokens", "0 or more")
    must(logprobs is None or 0 <= logprobs <= ALTERNATIVES, "logprobs", f"from 0 to {ALTERNATIVES}")
    must(
        isinstance(stop, list)
        and len(stop) <= _MOST_STOPS
        and all(isinstance(s, str) and 0 < len(s) <= _MOST_STOP_CHARACTERS for s in stop),
        "stop",
        f"a string or up to {_MOST_STOPS} of them, each of 1 to {_MOST_STOP_CHARACTERS} characters",
    )
    try:
        settings = Sampling(
            **sampling, max_new_tokens=max(max_tokens, 1), stop=tuple(stop), seed=seed % 2**31
        )
        prompts = _prompts(prompt, tokenizer, most)
        Text([], tokenizer, settings)  # it knows whether the vocabulary holds top_k
    except UserError as error:
        raise Refused(400, str(error), code="invalid_value") from error
    must(len(prompts) <= most // n, "prompt", f"at most {most // n} texts, with n {n}")
    for ids in prompts:
        if len(ids) + max_tokens > context:
            raise Refused(
                400,
                f"this model's maximum context length is {context} tokens, and you asked for "
                f"{len(ids) + max_tokens} ({len(ids)} in the prompt, {max_tokens} in the "
                "completion); reduce the prompt or max_tokens",
                "max_tokens",
                "context_length_exceeded",
            )
    return Request(prompts, settings, max_tokens, n, logprobs=logprobs, **request)


class _Fields:
    """The fields of an object, taken out one by one; what is null counts as left out."""

    def __init__(self, fields: dict[str, Any]):
        self._left, self._known = fields, set[str]()

    def take(
        self, key: str, kind: type, what: str, default: Any = None, required: bool = False
    ) -> Any:
        self._known.add(key)
        value = self._left.pop(key, None)
        if value is None:
            if required:
                raise Refused(400, f"{key} is required", key, "missing")
            return default
        if kind is float and isinstance(value, int) and abs(value) < 2**53:
            value = value if isinstance(value, bool) else float(value)
        fits = isinstance(value, kind) and not (isinstance(value, bool) and kind in (int, float))
        if not fits or (kind is int and not -(2**63) <= value < 2**63):
            raise Refused(400, f"{key} must be {what}", key, "invalid_type")
        return value

    def end(self) -> None:
        for key in self._left:
            said = f"unknown field '{key[:100]}'{suggestion(key, self._known)}"
            raise Refused(400, said, key[:100], "unknown_field")


def _object(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        found = json.loads(body.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise Refused(400, f"the body is not JSON: {said}", code="invalid_json") from error
    if not isinstance(found, dict):
        raise Refused(400, "the body must be one JSON object", code="invalid_json")
    return found


def _prompts(prompt: Any, tokenizer: Tokenizer, most: int) -> list[list[int]]:
    """A text, ids, or a list of one of them, as lists of ids.

    Raises:
      Refused: it is something else.
      UserError: it cannot be encoded.
    """

    def is_ids(value: Any) -> bool:
        return isinstance(value, list) and all(type(i) is int for i in value)

    if isinstance(prompt, str) or (is_ids(prompt) and prompt):
        prompt = [prompt]
    fits = isinstance(prompt, list) and all(isinstance(p, str) or is_ids(p) for p in prompt)
    if not fits or not prompt:
        wanted = "a string, a list of strings, a list of token ids or a list of such lists"
        raise Refused(400, f"prompt must be {wanted}", "prompt", "invalid_type")
    if len(prompt) > most:  # none of them is encoded
        raise Refused(400, f"prompt holds more than {most} texts", "prompt")
    encoded = [tokenizer.encode(p) if isinstance(p, str) else p for p in prompt]
    for ids in encoded:
        tokenizer.decode(ids)  # it knows whether they are ids
    return encoded


def texts(request: Request, tokenizer: Tokenizer) -> list[Text]:
    """The texts to write, n for each prompt, each with a stream of its own."""
    scored = request.logprobs is not None
    return [
        Text(ids, tokenizer, request.sampling, stream, scored)
        for ids in request.prompts
        for stream in range(request.n)
    ]


class Answer:
    """What is sent back, whole or in pieces.

    Args:
      prompt_scores: of each prompt's tokens, where they are echoed with log-probabilities.
    """

    def __init__(
        self,
        request: Request,
        model: str,
        tokenizer: Tokenizer,
        prompt_scores: Sequence[Sequence[Score]] = (),
    ):
        self._request, self._created = request, int(time.time())
        self._id, self._model = f"cmpl-{secrets.token_hex(12)}", model
        self._choices: list[_Choice] = []
        for at, ids in enumerate(request.prompts):
            for _ in range(request.n):
                choice = _Choice(tokenizer, request.logprobs)
                if request.echo:
                    known = prompt_scores[at] if prompt_scores else []
                    choice.add(tokenizer.decode(ids), ids, known)
                self._choices.append(choice)
        self.completion_tokens = 0

    def pieces(self, news: Sequence[News]) -> Iterator[dict[str, Any]]:
        """What one word from the engine adds, a piece for each text; nothing that is empty."""
        for word in news:
            choice = self._choices[word.index]
            choice.add(word.piece, word.ids, word.scores, word.finish)
            self.completion_tokens += len(word.ids)
            if self._request.stream and (piece := choice.piece(word.index)):
                yield self._object([piece], None)

    @property
    def ended(self) -> bool:
        return all(choice.finish for choice in self._choices)

    def nothing(self) -> list[News]:
        """The news of texts of no tokens."""
        return [News(n, "", [], [], "length") for n in range(len(self._choices))]

    def whole(self) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        choices = [choice.piece(n) for n, choice in enumerate(self._choices)]
        return self._object(choices, self.usage())

    def last(self) -> dict[str, Any]:
        """What ends a stream whose usage was asked for."""
        return self._object([], self.usage())

    def usage(self) -> dict[str, int]:
        prompt = sum(map(len, self._request.prompts))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt + self.completion_tokens,
        }

    def _object(self, choices: list[Any], usage: dict[str, int] | None) -> dict[str, Any]:
        # In a stream whose usage was asked for, it is null up to the last one.
        told = {"usage": usage} if usage or self._request.usage_in_stream else {}
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            **told,
        }


class _Choice:
    """One text of an answer: what has come and is not told yet."""

    def __init__(self, tokenizer: Tokenizer, logprobs: int | None):
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text, self._length = "", 0  # not told yet; all of it
        self._decoded = 0  # characters of the tokens so far
        self._tokens: list[tuple[int, int, int, Score]] = []  # first and last character, id, score
        self.finish: str | None = None
        self._told_finish = False

    def add(
        self, piece: str, ids: Sequence[int], scores: Sequence[Score], finish: str | None = None
    ) -> None:
        self._text += piece
        self._length += len(piece)
        self.finish = {"end_of_text": "stop"}.get(finish, finish) if finish else None
        if self._logprobs is None:
            return
        for token, score in zip(ids, scores, strict=True):
            start = self._decoded
            self._decoded += len(self._decoder.decode(self._tokenizer.decode_bytes([token])))
            least = start + (token != self._tokenizer.end_of_text)  # that one has no characters
            self._tokens.append((start, max(self._decoded, least), token, score))
        if finish == "end_of_text":  # what ended the text is no part of it
            self._tokens.pop()

    def piece(self, index: int) -> dict[str, Any] | None:
        """What is new, as a choice of the API; None where that is nothing."""
        # A token is told with the last of its characters: not before, where a stop string may yet
        # take it away.
        told = list(
            takewhile(
                lambda t: t[1] <= self._length or (self.finish and t[0] < self._length),
                self._tokens,
            )
        )
        if not (self._text or told or (self.finish and not self._told_finish)):
            return None
        text, self._text, self._told_finish = self._text, "", bool(self.finish)
        self._tokens = self._tokens[len(told) :]
        logprobs = None
        if self._logprobs is not None:
            logprobs = {
                "tokens": [self._shown(token) for _, _, token, _ in told],
                "token_logprobs": [score.logprob for *_, score in told],
                "top_logprobs": [
                    {self._shown(i): p for i, p in score.alternatives[: self._logprobs]}
                    for *_, score in told
                ]
                if self._logprobs
                else None,
                "text_offset": [start for start, *_ in told],
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": self.finish}

    def _shown(self, token: int) -> str:
        """A token as text; as OpenAI shows one that is no whole character: bytes:\\xe7\\xb6."""
        if token == self._tokenizer.end_of_text:
            return "<|endoftext|>"
        raw = self._tokenizer.decode_bytes([token])
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
