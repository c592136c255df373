"""The pages of the server in a real browser, without a window; skipped where there is none."""

import asyncio
import json
import math
import os
import re
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flax import nnx

from tsuzuri.apps.serve import pages
from tsuzuri.config import Config, flatten, replace
from tsuzuri.language_model import LanguageModel
from tsuzuri.model import Decoder
from tsuzuri.tokenizer import ByteTokenizer

pytest.importorskip("starlette", reason="needs pip install 'tsuzuri[serve]'")
uvicorn = pytest.importorskip("uvicorn", reason="needs pip install 'tsuzuri[serve]'")
httpx = pytest.importorskip("httpx2", reason="needs pip install httpx2")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
from starlette.applications import Starlette  # noqa: E402
from starlette.responses import JSONResponse, Response, StreamingResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from servers import running  # noqa: E402

expect = sync_api.expect
CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "chrome"])), None)
in_browser = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")

# What the canned model writes after any prompt: tokens, their probability, alternatives. The crane
# is three bytes in two tokens.
CANNED = [
    ("むかし", 0.5, {"むかし": 0.5, "ある": 0.25, "\n": 0.05}),
    ("、", 0.9, {"、": 0.9, "々": 0.1}),
    ("bytes:\\xe9\\xb6", 0.5, {"bytes:\\xe9\\xb6": 0.5, "bytes:\\xe4": 0.2, "亀": 0.1}),
    ("bytes:\\xb4", 0.25, {"bytes:\\xb4": 0.25}),
    ("が", 0.01, {"は": 0.8, "の": 0.1, "<|endoftext|>": 0.05}),
    ("\n", 1.0, {"\n": 1.0}),
]
TEXT = "むかし、鶴が\n"


def piece(text: str, tokens: list[tuple], finish: str | None = None) -> str:
    """A server-sent event as the API of completions has them."""
    logprobs = {
        "tokens": [token for token, *_ in tokens],
        "token_logprobs": [math.log(p) for _, p, _ in tokens],
        "top_logprobs": [{t: math.log(p) for t, p in top.items()} for *_, top in tokens],
        "text_offset": [0] * len(tokens),
    }
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}
    return f"data: {json.dumps({'object': 'text_completion', 'choices': [choice]})}\n\n"


class Model:
    """A server whose model says what is canned; prompts that are numbers get that status."""

    def __init__(self, runs: Path):
        self.asked: list[dict[str, Any]] = []
        self.left = threading.Event()  # set when a client went away
        self.token = ""
        self.runs = runs

    def app(self) -> Starlette:
        async def models(request: Any) -> Response:
            if denied := self._denied(request):
                return denied
            data = {"id": "tales", "object": "model", "context_length": 256, "vocab_size": 8192}
            return JSONResponse({"object": "list", "data": [data]})

        async def completions(request: Any) -> Response:
            if denied := self._denied(request):
                return denied
            asked = await request.json()
            self.asked.append(asked)
            if asked["prompt"] in ("400", "429"):
                error = {
                    "message": f"this is {asked['prompt']}",
                    "type": "x",
                    "param": None,
                    "code": None,
                }
                return JSONResponse(
                    {"error": error},
                    int(asked["prompt"]),
                    {"Retry-After": "3"} if asked["prompt"] == "429" else {},
                )
            return StreamingResponse(self._say(asked["prompt"]), media_type="text/event-stream")

        made = [
            Route("/v1/models", models),
            Route("/v1/completions", completions, methods=["POST"]),
        ]
        return Starlette(routes=[*pages.routes("tales", self.runs), *made])

    def _denied(self, request: Any) -> Response | None:
        if not self.token or request.headers.get("authorization") == f"Bearer {self.token}":
            return None
        return JSONResponse({"error": {"message": "wrong token"}}, 401)

    async def _say(self, prompt: str) -> AsyncIterator[str]:
        if prompt == "endless":
            try:
                while True:
                    yield piece("あ", [("あ", 0.5, {"あ": 0.5})])
                    await asyncio.sleep(0.01)
            finally:
                self.left.set()
        yield piece("むかし、", CANNED[:2])
        yield piece("", CANNED[2:3])
        yield piece("鶴", CANNED[3:4])
        if prompt == "cut":
            return
        yield piece("が\n", CANNED[4:], finish="length")
        yield 'data: {"choices": [], "usage": {"total_tokens": 8}}\n\n'
        yield "data: [DONE]\n\n"


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of a server of it."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    with running(config) as address:
        yield f"http://{address}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("served") / "runs")


@pytest.fixture(scope="module")
def address(model: Model) -> Iterator[str]:
    with serving(model.app()) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Opened:
    """Opens pages; at the end: no complaint but those of `statuses`, no request of elsewhere."""

    def __init__(self, browser: Any, address: str):
        self.browser, self.address = browser, address
        self.told: list[str] = []
        self.asked: list[str] = []
        self.statuses: set[int] = set()
        self.contexts: list[Any] = []

    def __call__(self, path: str = "/", **options: Any) -> Any:
        context = self.browser.new_context(**{"locale": "en-US"} | options)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.told.append(message.text))
        page.on("pageerror", lambda error: self.told.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(self.address + path)
        return page

    def close(self) -> None:
        for context in self.contexts:
            context.close()
        refused = re.compile(r"Failed to load resource: .* status of (\d+)")
        told = [
            t for t in self.told if not (m := refused.match(t)) or int(m[1]) not in self.statuses
        ]
        assert told == []
        assert all(url.startswith((self.address + "/", "data:")) for url in self.asked)


@pytest.fixture
def opened(browser: Any, address: str, model: Model) -> Iterator[Opened]:
    model.asked.clear()
    model.left.clear()
    found = Opened(browser, address)
    yield found
    model.token = ""
    found.close()


@pytest.fixture
def runs(model: Model) -> Iterator[Path]:
    """An empty folder of runs."""
    model.runs.mkdir(parents=True, exist_ok=True)
    yield model.runs
    shutil.rmtree(model.runs)


def make_run(folder: Path, lines: int = 0, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    cfg = replace(Config(), {"steps": 100} | {k.replace("__", "."): v for k, v in changes.items()})
    (folder / "config.json").write_text(json.dumps(flatten(cfg)))
    (folder / "metrics.jsonl").touch()
    for step in range(1, lines + 1):
        log(folder, step)
    return folder


def log(run: Path, step: int, **more: Any) -> None:
    line = {"step": step, "loss": 9 / step, "tokens": 64 * step, "tokens_per_second": 1000.0} | more
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def shown(page: Any) -> str:
    """The prompt and what was written after it."""
    return page.evaluate("document.getElementById('text').textContent")


def write(page: Any, prompt: str) -> None:
    page.locator("#prompt").fill(prompt)
    page.keyboard.press("Control+Enter")


def done(page: Any, words: str = "as long as was asked") -> None:
    expect(page.locator("#status")).to_have_text(words)


# The playground.


@in_browser
def test_a_prompt_is_gone_on_with_and_its_tokens_are_shaded(opened: Opened, model: Model) -> None:
    page = opened()
    expect(page.locator("#model")).to_have_text("tales · 256 tokens at most, a vocabulary of 8,192")
    write(page, "昔々。")
    done(page)
    assert shown(page) == "昔々。" + TEXT
    tokens = page.locator(".token")
    assert tokens.all_text_contents() == ["むかし", "、", "鶴", "が", "\n"]
    bits = tokens.evaluate_all("all => all.map(one => one.style.getPropertyValue('--bits'))")
    assert [float(b) for b in bits] == [1.0, 0.15, 3.0, 6.64, 0.0]  # the crane: 1/2 of 1/4
    drawn = tokens.evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
    assert len(set(drawn)) == 5
    assert page.locator("#text").get_attribute("lang") == "ja"
    asked = model.asked[0]
    seed = asked.pop("seed")
    assert asked == {
        "model": "tales", "prompt": "昔々。", "max_tokens": 128, "temperature": 0.8, "top_k": 40,
        "top_p": 1, "logprobs": 5, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    expect(page.locator("#figures")).to_contain_text("6 tokens")
    expect(page.locator("#figures")).to_contain_text(f"seed {seed} · 8 of 256 in its context")


@in_browser
def test_the_alternatives_and_going_on_with_one(opened: Opened, model: Model) -> None:
    page = opened()
    write(page, "昔々。")
    done(page)
    page.get_by_role("button", name="が", exact=True).click()
    popover = page.locator("#alternatives")
    assert popover.locator("button").all_inner_texts() == [
        "は\n80%",
        "の\n10%",
        "the end\n5%",
        "が\n1%",
    ]
    expect(popover.get_by_role("button", name="the end")).to_be_disabled()
    assert popover.locator("[aria-current]").inner_text().startswith("が")
    width = popover.locator(".bar i").first.evaluate("bar => bar.style.width")
    assert float(width.rstrip("%")) == pytest.approx(80)
    popover.get_by_role("button", name="の").click()
    expect(page.locator(".token")).to_have_count(4 + 5)
    done(page)
    assert model.asked[1]["prompt"] == "昔々。むかし、鶴の"
    assert shown(page) == "昔々。むかし、鶴の" + TEXT
    # What was chosen has its probability, and the same alternatives again.
    page.get_by_role("button", name="の", exact=True).click()
    assert popover.locator("button").count() == 3
    page.get_by_role("button", name="Add to prompt").click()
    assert page.locator("#prompt").input_value() == "昔々。むかし、鶴の" + TEXT
    assert shown(page) == ""


@in_browser
def test_a_character_of_several_tokens(opened: Opened, model: Model) -> None:
    page = opened()
    write(page, "")
    done(page)
    page.get_by_role("button", name="鶴", exact=True).click()
    popover = page.locator("#alternatives")
    expect(popover.locator("p")).to_have_text("2 of 3 bytes of a character; together 13%")
    assert popover.locator(".word").all_inner_texts() == ["e9 b6…", "e4…", "亀"]
    assert popover.locator("button:disabled").count() == 2  # a part of a character is no text
    popover.get_by_role("button", name="亀").click()
    expect(page.locator(".token")).to_have_count(3 + 5)
    assert model.asked[1]["prompt"] == "むかし、亀"


@in_browser
@pytest.mark.parametrize("vertical", [False, True])
def test_with_the_keyboard_alone(opened: Opened, model: Model, vertical: bool) -> None:
    page = opened()
    focused = "document.activeElement.id || document.activeElement.textContent"
    page.keyboard.insert_text("昔々。")  # the prompt has the focus
    names = ["prompt", "temperature", "top_p", "top_k", "max_tokens", "seed", "run", "vertical"]
    for name in names[1:]:
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == name
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
    if vertical:
        page.keyboard.press("Enter")
        style = "getComputedStyle(document.getElementById('text')).writingMode"
        assert page.evaluate(style) == "vertical-rl"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    done(page)
    for _ in range(3):  # "continue" is there now
        page.keyboard.press("Tab")
    assert page.evaluate(focused) == "むかし"
    forth, back = ("ArrowDown", "ArrowUp") if vertical else ("ArrowRight", "ArrowLeft")
    for key, there in [
        (forth, "、"),
        (forth, "鶴"),
        (back, "、"),
        ("End", "\n"),
        ("Home", "むかし"),
    ]:
        page.keyboard.press(key)
        assert page.evaluate(focused) == there
    page.keyboard.press("Enter")
    popover = page.locator("#alternatives")
    expect(popover.get_by_role("button", name="むかし")).to_be_focused()
    page.keyboard.press("Escape")
    expect(popover).to_be_hidden()
    assert page.evaluate(focused) == "むかし"
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    expect(popover.get_by_role("button", name="ある")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".token")).to_have_count(1 + 5)
    assert model.asked[1]["prompt"] == "昔々。ある"


@in_browser
def test_lines_are_gone_through_by_the_arrow_keys(opened: Opened) -> None:
    page = opened()
    page.evaluate("given = ''; for (const c of 'あい\\nうえ\\nお') add({ text: c, parts: [] })")
    page.locator(".token").nth(1).focus()
    focused = "document.activeElement.textContent"
    for key, there in [
        ("ArrowDown", "え"),
        ("ArrowUp", "い"),
        ("ArrowDown", "え"),
        ("ArrowDown", "お"),
    ]:
        page.keyboard.press(key)
        assert page.evaluate(focused) == there
    page.keyboard.press("ArrowDown")  # there is no other line
    assert page.evaluate(focused) == "お"


@in_browser
def test_escape_ends_it_at_the_server_too(opened: Opened, model: Model) -> None:
    page = opened()
    write(page, "endless")
    expect(page.locator(".token").nth(2)).to_be_visible()
    expect(page.locator("#run")).to_contain_text("Stop")
    page.keyboard.press("Escape")
    done(page, "stopped")
    assert model.left.wait(10)
    expect(page.locator("#run")).to_contain_text("Run")
    model.left.clear()
    write(page, "endless")
    expect(page.locator(".token").nth(2)).to_be_visible()
    write(page, "another")  # the first one ends
    done(page)
    assert model.left.wait(10)
    assert shown(page) == "another" + TEXT


@in_browser
def test_what_the_server_refuses_is_said(opened: Opened, model: Model) -> None:
    opened.statuses = {400, 429}
    page = opened(viewport={"width": 390, "height": 400})
    write(page, "昔々。")
    done(page)
    page.evaluate("scrollTo(0, 0)")
    write(page, "400")
    done(page, "this is 400")
    expect(page.locator("#status")).to_be_in_viewport()
    expect(page.locator("#figures")).to_have_text("")  # those were another text's
    write(page, "429")
    done(page, "Too many are waiting. Try again in 3 s.")
    write(page, "cut")
    done(page, "the connection was lost: the text is cut short")
    page.locator("#max_tokens").fill("257")  # more than the context
    page.keyboard.press("Control+Enter")
    assert not page.evaluate("document.getElementById('left').checkValidity()")
    assert len(model.asked) == 4
    page.locator("#max_tokens").fill("9")
    page.locator("#seed").fill("7")
    write(page, "昔々。")
    done(page)
    assert (model.asked[4]["max_tokens"], model.asked[4]["seed"]) == (9, 7)


@in_browser
def test_a_server_with_a_token(opened: Opened, model: Model) -> None:
    opened.statuses = {401}
    model.token = "s3cret"
    page = opened()
    form = page.locator("#token")
    expect(form).to_contain_text("This server asks for its token.")
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(form).to_contain_text("That is not its token.")
    page.keyboard.type("s3cret")
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_contain_text("tales")
    expect(form).to_have_count(0)
    expect(page.locator("#prompt")).to_be_focused()  # as before
    page.reload()
    expect(page.locator("#model")).to_contain_text("tales")
    write(page, "昔々。")
    done(page)
    assert page.evaluate("localStorage.length") == 0


@in_browser
def test_what_was_asked_for_is_kept(opened: Opened, runs: Path) -> None:
    page = opened()
    page.locator("#prompt").fill("昔々。")
    page.locator("#temperature").fill("1.5")
    page.locator("#seed").fill("7")
    ways = [
        page.reload,
        lambda: (page.get_by_role("link").click(), page.get_by_role("link").click()),
        lambda: (page.get_by_role("link").click(), page.go_back()),
    ]
    for leave_and_come_back in ways:
        leave_and_come_back()
        expect(page.locator("#prompt")).to_have_value("昔々。")
        expect(page.locator("#temperature-said")).to_have_text("1.50")
        expect(page.locator("#seed")).to_have_value("7")


@in_browser
def test_a_phone_is_told_of_no_keys(opened: Opened) -> None:
    page = opened(is_mobile=True, has_touch=True)
    expect(page.locator("#run")).to_have_text("Run", use_inner_text=True)


@in_browser
def test_a_server_that_is_gone(opened: Opened, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(locale="en-US")
    with serving(Model(tmp_path).app()) as there:
        page.goto(there)
        expect(page.locator("#model")).to_contain_text("tales")
    write(page, "昔々。")
    done(page, "no answer from the server")
    page.close()


@in_browser
def test_in_japanese(opened: Opened, runs: Path) -> None:
    page = opened(locale="ja-JP")
    assert page.locator("html").get_attribute("lang") == "ja"
    expect(page.locator("#run")).to_contain_text("書く")
    write(page, "昔々。")
    done(page, "指定の長さに達しました")
    page = opened("/runs", locale="ja-JP")
    expect(page.locator("thead")).to_contain_text("検証損失")


@in_browser
@pytest.mark.parametrize("path", ["/", "/runs"])
def test_every_word_is_in_japanese_too(opened: Opened, runs: Path, path: str) -> None:
    html = httpx.get(opened.address + path).text
    calls = r"""(?:say|tell)\("([^"]+)"|data-say>([^<]+)<"""
    said = {"".join(found) for found in re.findall(calls, html)}
    said |= {"no answer from the server", "That is not its token."}
    known = set(opened(path).evaluate("Object.keys(JAPANESE)"))
    assert len(said) > 12 and said - known == set()


@in_browser
@pytest.mark.parametrize("path", ["/", "/runs"])
def test_light_dark_and_narrow(opened: Opened, runs: Path, path: str) -> None:
    make_run(runs / ("a-name-of-a-run-" * 6), lines=3)
    papers = set()
    for scheme, width in [("light", 1280), ("dark", 1280), ("light", 320)]:
        page = opened(path, color_scheme=scheme, viewport={"width": width, "height": 800})
        if path == "/":
            write(page, "pneumonoultramicroscopicsilicovolcanoconiosis" * 4)
            done(page)
        else:
            expect(page.locator("path.train")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


@pytest.mark.parametrize("path", ["/", "/runs"])
def test_a_page_is_one_small_file_that_loads_nothing(address: str, path: str) -> None:
    answer = httpx.get(address + path)
    assert len(answer.content) < 40_000
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", answer.text)
    assert "shared.html" not in answer.text


@in_browser
def test_the_real_server(browser: Any, runs: Path) -> None:
    """Bytes at random: hardly a character is whole, and what is shown is what the API says."""
    http = pytest.importorskip("tsuzuri.apps.serve.http")
    changes = {"model.num_layers": 1, "model.embed_dim": 16, "model.num_heads": 2}
    cfg = replace(Config(), changes | {"sequence_length": 64})
    decoder = Decoder(cfg.resolved_model(ByteTokenizer().vocab_size), rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.split(decoder)[1])
    lm = LanguageModel(runs / "tiny", cfg, ByteTokenizer(), params, 0, lambda line: None)
    make_run(runs / "tiny", lines=3)
    with serving(http.app(lm, "tiny", runs=runs, token="s3cret", rows=1)) as address:
        httpx.get(f"{address}/health", timeout=120)  # when all is compiled
        opened = Opened(browser, address)
        opened.statuses = {400, 401}
        page = opened()
        page.locator("#token input").fill("s3cret")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_contain_text("tiny · 64 tokens")
        page.locator("#seed").fill("7")
        page.locator("#max_tokens").fill("40")
        with page.expect_request("**/v1/completions") as asked:
            write(page, "昔")
        expect(page.locator("#figures")).to_contain_text("of 64 in its context")
        written = page.locator(".token").all_text_contents()
        body = asked.value.post_data_json
        del body["stream"], body["stream_options"]
        key = {"Authorization": "Bearer s3cret"}
        whole = httpx.post(f"{address}/v1/completions", json=body, headers=key, timeout=60).json()
        assert shown(page) == "昔" + "".join(written) == "昔" + whole["choices"][0]["text"]
        assert page.evaluate("groups.reduce((n, g) => n + g.parts.length, 0)") == len(
            whole["choices"][0]["logprobs"]["tokens"]
        )
        at = page.evaluate(
            "groups.findIndex((g) => bytes(g.parts[0].token)[0] < 128"
            " && Object.keys(g.parts[0].top).some((t) => t !== END && decoded([{ token: t }])))"
        )
        page.locator(".token").nth(at).click()
        page.locator("#max_tokens").fill("2")
        page.locator(".token").nth(at).click()
        other = page.locator("#alternatives button:enabled:not([aria-current])").first
        with page.expect_request("**/v1/completions") as asked:
            other.click()
        begun = "昔" + "".join(written[:at])
        prompt = asked.value.post_data_json["prompt"]
        assert prompt.startswith(begun) and len(prompt) == len(begun) + 1
        expect(page.locator("#run")).to_contain_text("Run")
        page.locator("#max_tokens").fill("64")
        write(page, "昔")
        expect(page.locator("#status")).to_contain_text("maximum context length is 64 tokens")
        page.goto(f"{address}/runs")
        expect(page.locator("path.train")).to_have_count(1)
        expect(page.locator(".served")).to_have_text("served")
        opened.close()


# The page of runs.


@in_browser
def test_runs_live(opened: Opened, runs: Path) -> None:
    one = make_run(runs / "one", lines=5)
    make_run(runs / "grid" / "cell-1", lines=100)
    page = opened("/runs")
    row = page.locator("tr", has_text="one")
    expect(row.locator("td")).to_have_text(["one", "5 / 100", "–", "–", "1,000", "training"])
    expect(page.locator("tr", has_text="grid/cell-1")).to_contain_text("finished")
    expect(page.locator("path.train")).to_have_count(2)
    log(one, 6, held_out_loss=1.5, held_out_bits_per_byte=0.75)  # its own timer finds it
    expect(row).to_contain_text("6 / 100\t1.5000\t0.7500", use_inner_text=True)
    assert page.evaluate("rows.get('one').curves.train.length") == 6
    assert page.evaluate("rows.get('one').curves.held_out") == [[6, 384, 1.5]]
    with (one / "metrics.jsonl").open("a") as file:  # a line is half written
        file.write('{"step": 7, "lo')
    page.evaluate("poll()")
    expect(row).to_contain_text("6 / 100")
    with (one / "metrics.jsonl").open("a") as file:
        file.write('ss": NaN}\n')
    log(one, 8)
    page.evaluate("poll()")
    expect(row).to_contain_text("8 / 100")
    assert page.evaluate("rows.get('one').curves.train.slice(6)") == [
        [7, 384, None],
        [8, 512, 1.125],
    ]
    (one / "metrics.jsonl").unlink()  # it begins anew
    log(one, 1)
    page.evaluate("poll()")
    expect(row).to_contain_text("1 / 100")
    assert page.evaluate("rows.get('one').curves.train") == [[1, 64, 9]]


@in_browser
def test_the_chart_is_read(opened: Opened, runs: Path) -> None:
    run = make_run(runs / "one", lines=10)
    log(run, 10, held_out_loss=2.25)
    page = opened("/runs")
    page.locator("svg").focus()
    page.keyboard.press("Home")
    readout = page.locator("#readout")
    expect(readout).to_have_text("step 1one · training 9.0000")
    page.keyboard.press("End")
    expect(readout).to_have_text("step 10one · training 0.9000 · held out 2.2500")
    covered, line = readout.bounding_box(), page.locator("#cursor").bounding_box()
    assert covered["x"] + covered["width"] < line["x"]
    for box in ("log x", "log y"):
        page.get_by_label(box).check()
        assert "NaN" not in page.locator("svg").inner_html()
    page.get_by_label("against").select_option("tokens")
    box = page.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 14, box["y"] + 50)
    expect(readout).to_contain_text("tokens 640")
    page.get_by_label("one").uncheck()
    expect(page.locator("svg")).to_contain_text("Choose runs")


@in_browser
def test_a_run_that_is_removed_while_it_is_shown(opened: Opened, runs: Path) -> None:
    opened.statuses = {404}
    make_run(runs / "one", lines=3)
    make_run(runs / "two", lines=3)
    page = opened("/runs")
    expect(page.locator("path.train")).to_have_count(2)
    shutil.rmtree(runs / "one")
    page.evaluate("poll()")
    expect(page.locator("#status")).to_have_text("one is gone")
    expect(page.locator("path.train")).to_have_count(1)
    assert page.locator("#a option").all_inner_texts() == ["two"]
    shutil.rmtree(runs / "two")
    page.evaluate("showDifferences()")  # before the list is read again
    expect(page.locator("#differences")).to_contain_text("there is no run 'two' here")
    page.evaluate("poll()")
    expect(page.locator("#count")).to_have_text("There are no runs in this folder yet.")


@in_browser
def test_samples_and_differences(opened: Opened, runs: Path) -> None:
    one = make_run(runs / "one", lines=3)
    make_run(runs / "two", lines=3, model__num_layers=6, text__document_separator="綴り")
    (one / "samples.jsonl").write_text(
        '{"step": 1, "prompt": "昔", "text": "<b>々</b>"}\n'
        '{"step": 2, "prompt": "", "text": "\\ud800あ"}\n'
    )
    page = opened("/runs")
    expect(page.locator("#sample-said")).to_have_text("Step 2")
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#sample")).to_have_text("昔<b>々</b>")
    page.get_by_label("Differences 2").select_option("two")
    cells = page.locator("#differences td").all_inner_texts()
    assert cells == ["text.document_separator", '""', '"綴り"', "model.num_layers", "4", "6"]
    page.get_by_label("Differences 1").select_option("two")
    expect(page.locator("#differences")).to_have_text("The configs are the same.")
    with (one / "samples.jsonl").open("a") as file:
        file.write('{"step": 3, "prompt": "", "text": "う"}\n')
    page.evaluate("poll()")  # the sample that is looked at stays
    expect(page.locator("#sample-at")).to_have_attribute("max", "2")
    expect(page.locator("#sample-said")).to_have_text("Step 1")


# What the page of runs asks for.


@pytest.fixture
def get(address: str) -> Iterator[Callable[..., Any]]:
    def get(path: str, status: int = 200, **parameters: str) -> Any:
        answer = client.get(f"{address}/runs/{path}", params=parameters or None)
        assert answer.status_code == status, answer.text

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(answer.text, parse_constant=refuse)

    with httpx.Client() as client:
        yield get


def test_only_names_of_the_list_are_taken(
    get: Callable[..., Any], runs: Path, tmp_path: Path
) -> None:
    make_run(runs / "one", lines=1)
    make_run(runs / ".hidden", lines=1)
    outside = make_run(tmp_path / "outside", lines=1)
    (runs / "link").symlink_to(outside)
    half = make_run(runs / "half")
    (half / "metrics.jsonl").unlink()
    (half / "metrics.jsonl").symlink_to(outside / "metrics.jsonl")
    config_outside = make_run(runs / "config-outside")
    (config_outside / "config.json").unlink()
    (config_outside / "config.json").symlink_to(outside / "config.json")
    pipe = make_run(runs / "pipe")
    (pipe / "metrics.jsonl").unlink()
    os.mkfifo(pipe / "metrics.jsonl")
    assert [run["name"] for run in get("list")["runs"]] == ["half", "one", "pipe"]
    assert get("metrics", run="half")["train"] == get("metrics", run="pipe")["train"] == []
    for name in [
        "", ".", "..", "../outside", "one/", "./one", "one/../one", "/etc", str(outside), "link",
        ".hidden", "one\0", "\0", "one%00", "%2e%2e/outside", "..%2foutside", "o" * 5000, "ONE",
        "one/checkpoints", "config-outside", "～", "\\..\\outside",
    ]:  # fmt: skip
        for path, parameters in [
            ("metrics", {"run": name}), ("samples", {"run": name}),
            ("differences", {"a": name, "b": "one"}), ("differences", {"a": "one", "b": name}),
        ]:  # fmt: skip
            error = get(path, 404, **parameters)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert len(error["message"]) < 400
    assert get("metrics?run=%ff%2e%2e", 404)["error"]
    assert get("samples", 404)["error"]


def test_what_cannot_be_read_is_noted(get: Callable[..., Any], runs: Path) -> None:
    make_run(runs / "good", lines=2)
    old = make_run(runs / "old", lines=2)
    (old / "config.json").write_text('{"stepz": 5}')
    broken = make_run(runs / "broken", lines=1)
    (broken / "config.json").write_text('{"steps": [5]}')
    with (broken / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"step": "x"}\n{"step": 1e999}\n' + b"[" * 100_000 + b"\n")
    log(broken, 3, held_out_loss=math.inf, loss=10**400)
    (broken / "samples.jsonl").write_text('no json\n{"step": 1}\n')
    found = {run["name"]: run for run in get("list")["runs"]}
    assert found["good"]["notes"] == [] and found["good"]["steps"] == 100
    assert "unknown config key 'stepz'" in found["old"]["notes"][0]
    assert found["old"]["step"] == 2 and found["old"]["steps"] is None
    assert "it must be" in found["broken"]["notes"][0]
    assert found["broken"]["notes"][1] == "metrics.jsonl:6 is no line of metrics"
    assert found["broken"]["step"] == 3 and found["broken"]["held_out_loss"] is None
    assert get("metrics", run="broken")["train"] == [[1, 64, 9], [3, 192, None]]
    assert "not JSON" in get("samples", 404, run="broken")["error"]["message"]
    message = get("differences", 404, a="good", b="old")["error"]["message"]
    assert "unknown config key 'stepz'" in message


def test_only_what_is_new_is_told(get: Callable[..., Any], runs: Path) -> None:
    run = make_run(runs / "one", lines=3)
    begun = get("metrics", run="one")
    assert begun["whole"] and len(begun["train"]) == 3
    again = get("metrics", run="one", have=begun["mark"])
    assert again == {"mark": begun["mark"], "whole": False, "train": [], "held_out": []}
    log(run, 4)
    more = get("metrics", run="one", have=begun["mark"])
    assert (more["whole"], more["train"]) == (False, [[4, 256, 2.25]])
    for nonsense in [
        "",
        "x",
        "x.1.2",
        begun["mark"] + ".1",
        begun["mark"].split(".")[0],
        "." * 999,
    ]:
        assert len(get("metrics", run="one", have=nonsense)["train"]) == 4
    # Resumed at step 2: the file is another one, with the same first lines, and longer than it was.
    kept = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]
    (runs / "beside").write_text("".join(kept))
    (runs / "beside").replace(run / "metrics.jsonl")
    for step in range(3, 9):
        log(run, step, loss=1.0)
    anew = get("metrics", run="one", have=more["mark"])
    assert anew["whole"] and [y for _, _, y in anew["train"]] == [9, 4.5] + [1] * 6
    (run / "metrics.jsonl").write_text("")  # cut off in place
    assert get("metrics", run="one", have=anew["mark"])["whole"]


def test_many_lines_are_thinned_and_the_extremes_are_kept(
    get: Callable[..., Any], runs: Path
) -> None:
    run = make_run(runs / "one")
    losses = [2.0 + math.sin(step) for step in range(50_000)]
    losses[31_234], losses[40_001] = 99.0, -99.0
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(f'{{"step": {i}, "loss": {loss}}}\n' for i, loss in enumerate(losses))
    train = get("metrics", run="one")["train"]
    assert 1000 <= len(train) <= pages.MOST_POINTS
    assert [31_234, None, 99] in train and [40_001, None, -99] in train
    assert [step for step, *_ in train] == sorted(step for step, *_ in train)
    assert train[0][0] < 60 and train[-1][0] > 49_940
