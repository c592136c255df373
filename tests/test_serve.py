"""The server over real sockets: OpenAI's own client, many clients at once, bad ones, slow ones."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import jax
import numpy as np
import openai
import pytest
import uvicorn
from flax import nnx

import tsuzuri
from servers import running
from tsuzuri import generate
from tsuzuri.apps.serve import http
from tsuzuri.apps.serve.connection import Connection
from tsuzuri.apps.serve.engine import Engine
from tsuzuri.errors import RunError
from tsuzuri.language_model import LanguageModel
from tsuzuri.model import Decoder
from tsuzuri.presets import preset
from tsuzuri.run_folder import create
from tsuzuri.sampling import Sampling
from tsuzuri.tokenizer import ByteTokenizer

CONTEXT = 128
TOKENIZER = ByteTokenizer()
EOT = TOKENIZER.end_of_text


def parameters(cfg: Any) -> Any:
    shapes = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0))))[1])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: rng.normal(0.0, 0.3, a.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes letters at random, to the length."""
    shape = {"model.num_layers": 1, "model.embed_dim": 32, "model.head_dim": 8}
    config = preset("nanolm", "tiny", sequence_length=CONTEXT, **shape)
    cfg = config.resolved_model(TOKENIZER.vocab_size)
    params = parameters(cfg)
    params["head"]["bias"][:] = -100
    params["head"]["bias"][TOKENIZER.encode("abc \n")] = 0
    folder = tmp_path_factory.mktemp("runs") / "letters"
    create(folder, replace(config, model=cfg), TOKENIZER, params)
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> LanguageModel:
    return tsuzuri.load(run)


def reciter(folder: Path, text: str) -> LanguageModel:
    """A model that says this text, a byte a token, and ends it."""
    shape = {"model.num_layers": 1, "model.embed_dim": CONTEXT, "model.head_dim": 4}
    config = preset("nanolm", "tiny", sequence_length=CONTEXT, **shape)
    cfg = config.resolved_model(TOKENIZER.vocab_size)
    params = jax.tree.map(lambda a: np.zeros_like(a), parameters(cfg))
    params["position_embed"]["embedding"][:] = np.eye(CONTEXT)
    params["final_norm"]["scale"][:] = 1
    script = TOKENIZER.encode(text)
    params["head"]["kernel"][np.arange(CONTEXT), script + [EOT] * (CONTEXT - len(script))] = 9
    create(folder, replace(config, model=cfg), TOKENIZER, params)
    return tsuzuri.load(folder)


@contextmanager
def serving(model: LanguageModel, **options: Any) -> Iterator[str]:
    """The address of a server in a thread of its own."""
    served = http.app(model, **options)
    config = uvicorn.Config(
        served, http=partial(Connection, http.SECONDS), log_level="warning", access_log=False
    )
    with running(config) as address:
        yield address


@pytest.fixture(scope="module")
def server(model: LanguageModel) -> Iterator[str]:
    with serving(model, rows=4, queue=64) as address:
        yield address


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it has not come to pass"
        time.sleep(0.01)


def client(address: str, **options: Any) -> openai.OpenAI:
    options = {"api_key": "none", "max_retries": 0, "timeout": 60} | options
    return openai.OpenAI(base_url=f"http://{address}/v1", **options)


def call(
    address: str, path: str, body: Any = None, headers: Any = None, method: str = ""
) -> tuple[int, Any, HTTPResponse]:
    """Status, what came (of JSON its object), and the answer."""
    connection = HTTPConnection(address, timeout=60)
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    is_json = answer.getheader("content-type", "").startswith("application/json")
    return answer.status, json.loads(content) if is_json else content, answer


def texts_alone(model: LanguageModel, prompt: str, n: int = 1, **settings: Any) -> list[str]:
    settings = {"temperature": 1.0, "top_k": 0} | settings
    done = model.generate_many([prompt] * n, Sampling(**settings))
    return [completion.text for completion in done]


def test_openai_s_client_gets_what_generate_writes(server: str, model: LanguageModel) -> None:
    ask = partial(client(server).completions.create, model="letters", prompt="ab", seed=5)
    whole = ask(max_tokens=40, n=3, stop=["cb"], temperature=0.7)
    expected = texts_alone(model, "ab", 3, seed=5, max_new_tokens=40, stop=("cb",), temperature=0.7)
    assert [choice.text for choice in whole.choices] == expected
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert {choice.finish_reason for choice in whole.choices} <= {"stop", "length"}
    assert whole.usage is not None and whole.usage.prompt_tokens == 2
    assert whole.usage.completion_tokens >= sum(map(len, expected))

    told = ["", "", ""]
    ends: list[tuple[int, Any]] = []
    with ask(max_tokens=40, n=3, stop=["cb"], temperature=0.7, stream=True,
             stream_options={"include_usage": True}) as stream:  # fmt: skip
        for piece in stream:
            assert not ends or ends[-1][0] != -1
            assert "usage" in piece.model_fields_set
            for choice in piece.choices:
                told[choice.index] += choice.text
                if choice.finish_reason:
                    ends.append((choice.index, choice.finish_reason))
            if piece.usage:
                ends.append((-1, piece.usage))
    assert told == expected
    assert dict(ends) == {c.index: c.finish_reason for c in whole.choices} | {-1: whole.usage}


def test_models(server: str) -> None:
    listed = client(server).models.list().data
    assert [found.id for found in listed] == ["letters"]
    assert client(server).models.retrieve("letters").id == "letters"
    with pytest.raises(openai.NotFoundError):
        client(server).models.retrieve("others")


def test_many_at_once_are_each_as_alone_and_nothing_is_compiled(
    server: str, model: LanguageModel
) -> None:
    """Sixteen times the rows, entering and leaving, each with settings of its own."""
    settings: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.3, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 0.9, "top_k": 0, "repetition_penalty": 1.2},
    ]
    jobs = [
        ("abc " * (n % 20), settings[n % 4] | {"seed": n, "max_new_tokens": 1 + 3 * n % 40})
        for n in range(64)
    ]
    before = [program._cache_size() for program in (generate._decode, generate._prefill)]

    def ask(job: tuple[str, dict[str, Any]]) -> str:
        prompt, sampling = job
        body = {"model": "letters", "prompt": prompt, **sampling}
        body["max_tokens"] = body.pop("max_new_tokens")
        status, found, _ = call(server, "/v1/completions", body)
        assert status == 200, found
        return found["choices"][0]["text"]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, jobs))
    assert before == [program._cache_size() for program in (generate._decode, generate._prefill)]
    assert found == [texts_alone(model, prompt, **sampling)[0] for prompt, sampling in jobs]


def test_prompts_as_texts_and_ids(server: str, model: LanguageModel) -> None:
    ask = partial(client(server).completions.create, model="letters", max_tokens=9, seed=1)
    expected = [texts_alone(model, p, seed=1, max_new_tokens=9)[0] for p in ("ab", "cc")]
    for prompt in (["ab", "cc"], [TOKENIZER.encode("ab"), TOKENIZER.encode("cc")]):
        assert [choice.text for choice in ask(prompt=prompt).choices] == expected
    assert ask(prompt=TOKENIZER.encode("ab")).choices[0].text == expected[0]
    beginning = call(server, "/v1/completions", {"model": "letters", "seed": 1})[1]
    assert beginning["choices"][0]["text"] == texts_alone(model, "", seed=1, max_new_tokens=16)[0]


def test_echo_and_log_probabilities(server: str, model: LanguageModel) -> None:
    ask = partial(
        client(server).completions.create, model="letters", prompt="猫a", seed=2, logprobs=3
    )
    found = ask(max_tokens=6, echo=True).choices[0]
    known = found.logprobs
    assert found.text == "猫a" + texts_alone(model, "猫a", seed=2, max_new_tokens=6)[0]
    assert known and known.tokens and known.token_logprobs and known.text_offset
    assert known.tokens[:4] == ["bytes:\\xe7", "bytes:\\x8c", "bytes:\\xab", "a"]
    assert known.text_offset[:5] == [0, 0, 0, 1, 2]
    ids = [EOT, *TOKENIZER.encode(found.text)]
    logprobs_TV = np.asarray(jax.nn.log_softmax(model.logits(ids)))
    expected = [logprobs_TV[n, ids[n + 1]] for n in range(len(ids) - 1)]
    np.testing.assert_allclose(known.token_logprobs, expected, atol=1e-4)
    assert known.top_logprobs and all(len(top) == 3 for top in known.top_logprobs)
    assert max(known.top_logprobs[4].values()) == pytest.approx(logprobs_TV[4].max(), abs=1e-4)
    # Scoring alone, as evaluation harnesses do; the tokens of a stream are those of the whole.
    alone = ask(max_tokens=0, echo=True)
    assert alone.choices[0].text == "猫a" and alone.choices[0].finish_reason == "length"
    assert alone.choices[0].logprobs and alone.choices[0].logprobs.tokens == known.tokens[:4]
    # A harness counts: there is one for each id, the one that ends texts too.
    ids = [EOT, *TOKENIZER.encode("a"), EOT]
    counted = ask(prompt=ids, max_tokens=0, echo=True).choices[0]
    assert counted.text == "a" and counted.logprobs
    assert counted.logprobs.tokens == ["<|endoftext|>", "a", "<|endoftext|>"]
    assert counted.logprobs.text_offset == [0, 0, 1]
    streamed = [c for piece in ask(max_tokens=6, stream=True) for c in piece.choices]
    assert [t for c in streamed if c.logprobs for t in c.logprobs.tokens or []] == known.tokens[4:]


def test_a_stream_is_whole_characters_and_its_tokens_come_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tsuzuri.apps.serve.engine._WORDS", 1e9)
    text = "猫🐈と👩‍👩‍👧。①終わり"
    with serving(reciter(tmp_path / "reciter", text), rows=1) as address:
        ask = partial(client(address).completions.create, model="reciter", prompt="")
        pieces = [p.choices[0] for p in ask(max_tokens=100, stream=True, logprobs=1)]
        assert "".join(p.text for p in pieces) == text
        assert not any("\ufffd" in p.text for p in pieces) and len(pieces) > 2
        assert pieces[-1].finish_reason == "stop"
        tokens = [t for p in pieces if p.logprobs for t in p.logprobs.tokens or []]
        said = b"".join(bytes.fromhex(t.removeprefix("bytes:").replace("\\x", "")) for t in tokens)
        assert said.decode() == text
        cut = ask(max_tokens=100, stop="と👩", logprobs=0).choices[0]
        assert (cut.text, cut.finish_reason) == ("猫🐈", "stop")
        assert cut.logprobs and len(cut.logprobs.tokens or []) == len("猫🐈".encode())


BAD = [
    (b"{", "the body is not JSON"),
    (b"\x00\xff\xfe" * 50, "the body is not JSON"),
    (b'{"model": "letters", "temperature": NaN}', "NaN is not JSON"),
    (b"[" * 100_000, "nested too deep"),
    (b"[1]", "the body must be one JSON object"),
    ({"prompt": "a"}, "model is required"),
    ({"model": 3}, "model must be a string"),
    ({"max_tokens": "many"}, "max_tokens must be a whole number"),
    ({"max_tokens": True}, "max_tokens must be a whole number"),
    ({"max_tokens": -1}, "max_tokens must be 0 or more"),
    ({"max_tokens": CONTEXT + 1}, f"maximum context length is {CONTEXT} tokens"),
    ({"prompt": "a" * 100, "max_tokens": 29}, "129 (100 in the prompt, 29 in the completion)"),
    ({"temperature": -0.1}, "temperature is -0.1; it must be 0 (greedy), or from 1e-6 to 100"),
    ({"temperature": "hot"}, "temperature must be a number"),
    ({"temperature": 10**400}, "temperature must be a number"),
    ({"temperature": 1e39}, "it must be 0 (greedy), or from 1e-6 to 100"),
    ({"temperature": 1e-50}, "it must be 0 (greedy), or from 1e-6 to 100"),
    ({"repetition_penalty": 1e-50}, "it must be from 1e-6 to 100"),
    ({"prompt": "a", "max_tokens": 10**4300 - 1}, "max_tokens must be a whole number"),
    ({"top_p": 0}, "top_p is 0"),
    ({"top_k": 10**6}, "top_k is 1000000 and the vocabulary has 258 tokens"),
    ({"n": 0}, "n must be from 1 to 64"),
    ({"n": 10**9}, "n must be from 1 to 64"),
    ({"prompt": ["a"] * 33, "n": 2}, "prompt must be at most 32 texts, with n 2"),
    ({"prompt": ["a"] * 100_000}, "more than 64 texts"),
    ({"prompt": []}, "prompt must be a string, a list of strings"),
    ({"prompt": {"a": 1}}, "prompt must be a string, a list of strings"),
    ({"prompt": [1, "a"]}, "prompt must be a string, a list of strings"),
    ({"prompt": [10**6]}, "token id 1000000 is outside the vocabulary of 258"),
    ({"prompt": [-1]}, "token id -1 is outside the vocabulary of 258"),
    ({"prompt": "\ud800"}, "half of a surrogate pair"),
    ({"stop": ["a"] * 1000}, "stop must be a string or up to 4 of them"),
    ({"stop": ["a" * 10_000]}, "each of 1 to 256 characters"),
    ({"stop": [""]}, "stop must be a string or up to 4 of them"),
    ({"stop": 5}, "stop must be a string or up to 4 of them"),
    ({"logprobs": 6}, "logprobs must be from 0 to 5"),
    ({"seed": 2**70}, "seed must be an integer of 64 bits"),
    ({"best_of": 5}, "best_of is not supported"),
    ({"presence_penalty": 1}, "presence_penalty is not supported"),
    ({"temprature": 1}, "unknown field 'temprature'; did you mean 'temperature'?"),
    ({"stream": "yes"}, "stream must be true or false"),
    ({"stream_options": {"include_usage": "yes"}}, "include_usage must be true or false"),
    ({"stream_options": {"usage": True}}, "unknown field 'usage'"),
    ({"\ud800": 1}, "unknown field"),
]


@pytest.mark.parametrize(("body", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_requests(server: str, body: Any, message: str) -> None:
    if isinstance(body, dict) and message != "model is required":
        body = {"model": "letters", **body}
    status, found, _ = call(server, "/v1/completions", body)
    assert status == 400, found
    assert set(found["error"]) == {"message", "type", "param", "code"}
    assert message in found["error"]["message"]
    assert found["error"]["type"] == "invalid_request_error"


def test_other_errors_in_openai_s_form(server: str) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client(server).completions.create(model="gpt-4", prompt="a")
    assert error.value.code == "model_not_found" and "this server has 'letters'" in str(error.value)
    assert call(server, "/v1/completions", {"model": "\ud800"})[0] == 404  # half a surrogate pair
    for path in ("/v1/chat/completions", "/v1/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
                 "/runs/../../config.json", "//etc/passwd", "/v1/completions/%00"):  # fmt: skip
        status, found, _ = call(server, path, {})
        assert status == 404 and found["error"]["type"] == "not_found_error", path
    status, found, answer = call(server, "/v1/completions")
    assert status == 405 and "GET is not for" in found["error"]["message"]
    assert answer.getheader("Allow") == "POST"


def test_bodies_that_are_too_long(server: str) -> None:
    body = json.dumps({"model": "letters", "prompt": "a" * http.MOST_BYTES}).encode()
    assert call(server, "/v1/completions", body)[0] == 413
    with raw(server) as connection:  # no length is told, and it never ends
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                           b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
        try:
            for _ in range(40):
                connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        except ConnectionError:  # it does not read on
            pass
        assert b"413" in connection.recv(100)


@contextmanager
def raw(address: str) -> Iterator[socket.socket]:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        yield connection


def test_slow_headers_and_bodies_are_ended(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SECONDS", 1)
    with serving(model, rows=1) as address, raw(address) as silent, raw(address) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        with raw(address) as body:
            body.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                         b"Content-Length: 100\r\n\r\n{")  # fmt: skip
            with raw(address) as second:  # good, and slow in its second request
                second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200 OK" in second.recv(1000)
                second.sendall(b"GET /hea")
                for connection in (silent, slow, body, second):
                    said = connection.recv(1000)
                    assert b"408" in said
                    until(lambda c=connection: c.recv(1000) == b"")
        with raw(address) as early:  # answered before its body has come, and that comes on
            early.sendall(b"POST /health HTTP/1.1\r\nHost: localhost\r\n"
                          b"Content-Length: 9000\r\n\r\n")  # fmt: skip
            assert b"405" in early.recv(1000)
            with pytest.raises(ConnectionError):
                until(lambda: bool(time.sleep(0.2) or early.sendall(b"x")))
        assert call(address, "/health")[0] == 200


def test_a_full_queue_says_when_to_come_again(model: LanguageModel) -> None:
    with serving(model, rows=1, queue=2) as address:
        body = {"model": "letters", "max_tokens": CONTEXT - 1, "prompt": "a", "n": 3}
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda _: call(address, "/v1/completions", body), range(12)))
        statuses = [status for status, *_ in found]
        assert set(statuses) == {200, 429}
        refused = next(f for f in found if f[0] == 429)
        assert refused[1]["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused[2].getheader("Retry-After", "")) <= 60
        never = call(address, "/v1/completions", body | {"n": 4})
        assert never[0] == 400 and "n must be from 1 to 3" in never[1]["error"]["message"]
        counted = call(address, "/metrics")[1].decode()
        assert f'requests_total{{status="200"}} {statuses.count(200)}.0' in counted
        assert "tsuzuri_texts_being_written 0.0" in counted


def test_prompts_that_wait_to_be_scored_are_a_queue_too(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, inside = generate._scores, []

    def slowly(*which: Any) -> Any:
        inside.append(True)
        time.sleep(0.1)
        assert len(inside) == 1  # one at a time, whoever asks
        inside.pop()
        return passes(*which)

    body = {"model": "letters", "prompt": "a", "max_tokens": 0, "echo": True, "logprobs": 0}
    with serving(model, rows=1, queue=2) as address:
        monkeypatch.setattr(generate, "_scores", slowly)
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda _: call(address, "/v1/completions", body), range(12)))
        assert {status for status, *_ in found} == {200, 429}
        assert call(address, "/v1/completions", body)[0] == 200


def test_who_leaves_frees_the_row(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    step, engines = Engine._step, []

    def slowly(engine: Engine, *which: Any) -> None:
        engines.append(engine)
        time.sleep(0.02)
        step(engine, *which)

    monkeypatch.setattr(Engine, "_step", slowly)
    monkeypatch.setattr("tsuzuri.apps.serve.engine._CALL", 1e-9)  # a token a call
    with serving(model, rows=1) as address:
        ask = partial(client(address).completions.create, model="letters", prompt="a")
        stream = ask(max_tokens=CONTEXT - 1, stream=True)
        next(iter(stream))
        stream.close()
        with raw(address) as connection:  # whole, and gone before it is there
            body = json.dumps({"model": "letters", "max_tokens": CONTEXT - 1}).encode()
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                               b"Content-Length: %d\r\n\r\n%s" % (len(body), body))  # fmt: skip
            until(lambda: sum(engines[0].load) == 1)
        until(lambda: engines[0].load == (0, 0))
        written = call(address, "/metrics")[1].decode().split("completion_tokens_total ")[-1]
        assert float(written.split()[0]) < CONTEXT  # of 254
        assert ask(max_tokens=3).choices[0].finish_reason == "length"


def test_a_call_that_fails_is_told_and_the_next_ones_are_served(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(model, rows=2) as address:
        ask = partial(client(address).completions.create, model="letters", prompt="a", seed=3)
        decode = generate._decode

        def fails(*_: Any, **__: Any) -> None:
            raise RuntimeError("RESOURCE_EXHAUSTED")

        monkeypatch.setattr(generate, "_decode", fails)
        with pytest.raises(openai.InternalServerError, match="the server's log says why"):
            ask()
        with pytest.raises(openai.APIError, match="the server's log says why"):
            list(ask(stream=True))
        monkeypatch.setattr(generate, "_decode", decode)
        expected = texts_alone(model, "a", seed=3, max_new_tokens=16)
        assert ask().choices[0].text == expected[0]
        assert call(address, "/health")[0] == 200
    assert "RESOURCE_EXHAUSTED" in caplog.text


def test_a_server_that_cannot_begin_says_what_to_try(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: so many bytes\nand where")

    monkeypatch.setattr(generate, "empty_cache", fails)
    with pytest.raises(RunError, match=r"RESOURCE_EXHAUSTED: so many bytes\); try fewer --rows"):
        http.serve(model, "127.0.0.1", 0, lambda line: None)


def test_an_engine_that_cannot_go_on_keeps_nobody_waiting(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED")

    with serving(model, rows=1) as address:
        ask = {"model": "letters", "n": 3}  # one is written, two wait
        monkeypatch.setattr(generate, "_decode", fails)
        monkeypatch.setattr(generate, "empty_cache", fails)  # nor is there room for another one
        for _ in range(2):
            status, found, _ = call(address, "/v1/completions", ask)
            assert (status, found["error"]["type"]) == (500, "server_error")
        assert call(address, "/health")[0] == 503
    assert "RESOURCE_EXHAUSTED" in caplog.text


def test_a_body_that_breaks_off_is_no_error_of_the_server(
    model: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(model, rows=1) as address:
        with raw(address) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                               b"Content-Length: 100\r\n\r\n{")  # fmt: skip
        until(lambda: b'status="400"' in call(address, "/metrics")[1])
    assert "Exception" not in capsys.readouterr().err


def test_a_token_is_wanted_where_one_is_set(model: LanguageModel) -> None:
    with serving(model, rows=1, token="秘密 secret") as address:
        for key in ("none", "", "秘密"):
            given = {"Authorization": f"Bearer {key}".encode()}
            status, found, _ = call(address, "/v1/models", headers=given)
            assert status == 401 and found["error"]["code"] == "invalid_api_key"
        assert call(address, "/v1/completions", {"model": "letters"})[0] == 401
        assert call(address, "/metrics")[0] == 401
        assert call(address, "/runs/list")[0] == 401
        assert call(address, "/")[0] == call(address, "/health")[0] == 200
        given = {"Authorization": "Bearer 秘密 secret".encode()}
        assert call(address, "/v1/models", headers=given)[0] == 200


def test_other_pages_may_not_call_unless_asked(server: str, model: LanguageModel) -> None:
    port = server.split(":")[1]
    rebound = {"Host": f"evil.example:{port}"}
    assert call(server, "/v1/models", headers=rebound)[0] == 403
    body = {"model": "letters", "max_tokens": 1}
    for origin, status in (
        ("https://evil.example", 403), (f"http://127.0.0.1:{port}", 200), ("null", 403),
        ("http://[", 403),
    ):  # fmt: skip
        assert call(server, "/v1/completions", body, {"Origin": origin})[0] == status
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert call(server, "/v1/completions", headers=preflight, method="OPTIONS")[0] in (403, 405)
    with serving(model, rows=1, cors=["https://a.example"]) as address:
        status, _, answer = call(address, "/v1/completions", body, {"Origin": "https://a.example"})
        assert status == 200
        assert answer.getheader("Access-Control-Allow-Origin") == "https://a.example"
        assert call(address, "/v1/completions", headers=preflight, method="OPTIONS")[0] == 200


def test_the_verb_drains_at_sigterm_and_says_what_is_wrong(run: Path) -> None:
    def serve(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tsuzuri.cli", "serve", str(run), *arguments],
            stderr=subprocess.PIPE, text=True, env=os.environ | environment,
        )  # fmt: skip

    first = serve("--port", "0", "--rows", "1")
    try:
        assert first.stderr
        assert first.stderr.readline().startswith("compiling")
        said = first.stderr.readline()
        address = said.split()[0].removeprefix("http://")
        stream = client(address).completions.create(
            model="letters", prompt="", max_tokens=CONTEXT, seed=1, stream=True
        )
        pieces = iter(stream)
        text = next(pieces).choices[0].text
        first.send_signal(signal.SIGTERM)
        text += "".join(p.choices[0].text for p in pieces)  # up to its end
        assert len(text) == CONTEXT
        assert first.wait(30) == 0
    finally:
        first.kill()
        first.communicate()

    cut_off = serve("--port", "0", "--rows", "1")
    try:
        assert cut_off.stderr and cut_off.stderr.readline().startswith("compiling")
        address = cut_off.stderr.readline().split()[0].removeprefix("http://")
        next(iter(client(address).completions.create(
            model="letters", prompt="", max_tokens=CONTEXT, n=60, stream=True
        )))  # fmt: skip
        cut_off.send_signal(signal.SIGINT)
        time.sleep(0.3)  # uvicorn looks ten times a second
        cut_off.send_signal(signal.SIGINT)  # it is not to wait for them
        assert cut_off.communicate(timeout=30)[1] == "" and cut_off.returncode == 0
    finally:
        cut_off.kill()

    hurried = serve("--port", "0")
    assert hurried.stderr and hurried.stderr.readline().startswith("compiling")
    hurried.send_signal(signal.SIGINT)
    assert hurried.communicate(timeout=60)[1] == "interrupted\n" and hurried.returncode == 130

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        others = {
            f"port {port} of 127.0.0.1 is in use": serve("--port", port),
            "0.0.0.0 can be reached by others": serve("--host", "0.0.0.0", "--port", "0"),
            "--rows is 0; it must be at least 1": serve("--rows", "0"),
        }
        for message, process in others.items():
            _, said = process.communicate(timeout=60)
            assert process.returncode == 2 and message in said.splitlines()[-1]
