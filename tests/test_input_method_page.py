"""The page in a real browser, without a window; skipped where there is none."""

import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from test_input_method_typing import METHOD
from tsuzuri.apps.input_method import page as page_module
from tsuzuri.errors import UserError

sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
uvicorn = pytest.importorskip("uvicorn", reason="needs pip install 'tsuzuri[serve]'")
client = pytest.importorskip("websockets.sync.client")
from servers import running  # noqa: E402

Page = sync_api.Page
CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "chrome"])), None)
in_browser = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")


@contextmanager
def serving(port: int = 0) -> Iterator[str]:
    """The address of a server of the tiny input method."""
    with running(page_module.config(METHOD, "127.0.0.1"), port) as found:
        yield found


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address: str) -> Iterator:
    """A page that is connected; at the end: no complaint, and no request of elsewhere."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    found, told, asked = context.new_page(), [], []
    found.on("console", lambda message: told.append(message.text))
    found.on("pageerror", lambda error: told.append(str(error)))
    found.on("request", lambda request: asked.append(request.url))
    found.on("websocket", lambda websocket: asked.append(websocket.url))
    open_page(found, address)
    yield found
    context.close()
    assert told == []
    assert {re.sub(r"^\w+://", "", url) for url in asked if not url.startswith("data:")} == {
        f"{address}/",
        f"{address}/keys",
    }


def open_page(page, address: str) -> None:
    page.goto(f"http://{address}/")
    sync_api.expect(page.locator("#line")).to_have_text("connected")


def expect_text(page, text: str) -> None:
    """What stands on the sheet, the word at the caret included."""
    page.wait_for_function("expected => text() === expected", arg=text)


def expect_below(page, text: str) -> None:
    sync_api.expect(page.locator("#below")).to_contain_text(text)


def paste(page, text: str) -> None:
    page.evaluate("text => navigator.clipboard.writeText(text)", text)
    page.keyboard.press("Control+V")


@in_browser
def test_two_letters_a_word(page) -> None:
    assert page.title() == "tsuzuri ime"
    page.keyboard.type("fi")
    expect_below(page, "1first2field")
    expect_text(page, "first")
    page.keyboard.type("twchinme")
    expect_text(page, "first two character input method")
    sync_api.expect(page.locator("footer")).to_contain_text("10 keys 32 characters 69 % saved")
    sync_api.expect(page.locator("#last")).to_have_text(re.compile(r"^\d+\.\d$"))


@in_browser
def test_a_digit_picks_and_one_beyond_is_said(page) -> None:
    page.keyboard.type("Fi2")
    expect_text(page, "Field")
    page.keyboard.type("tw7")
    expect_below(page, "there is no candidate 7")
    expect_text(page, "Field two")


@in_browser
def test_escape_spells_and_the_word_is_learned(page) -> None:
    page.keyboard.type("tw")
    page.keyboard.press("Escape")
    expect_below(page, "spelled in full")
    page.keyboard.type("ixy")
    page.keyboard.press("Backspace")
    page.keyboard.type("t tw")
    expect_below(page, "twixt")
    page.keyboard.press("Enter")
    page.keyboard.type("日本 é")
    expect_text(page, "twixt two\n日本 é")


@in_browser
def test_two_pages_share_nothing(page, browser, address: str) -> None:
    other = browser.new_page()
    open_page(other, address)
    page.keyboard.press("Escape")
    page.keyboard.type("twixt tw")
    other.keyboard.type("fitw")
    expect_below(page, "twixt")
    expect_below(other, "1two")
    assert "twixt" not in other.locator("#below").text_content()
    expect_text(page, "twixt two")
    expect_text(other, "first two")
    other.close()


@in_browser
def test_ten_thousand_keys_pasted_and_another_page_meanwhile(page, browser, address: str) -> None:
    other = browser.new_page()
    open_page(other, address)
    paste(page, "fitwchinme" * 1000)
    other.keyboard.type("fitw")
    expect_text(other, "first two")
    expect_text(page, " ".join(["first two character input method"] * 1000))
    page.keyboard.type(" tw")
    expect_below(page, "1two")
    shown = " ".join(page.locator("#text").inner_text().split())
    assert shown == " ".join(["first two character input method"] * 1000) + " two"
    other.close()


@in_browser
def test_a_long_text_is_shown_as_it_is_and_can_be_taken_back(page) -> None:
    paste(page, "fitwchinme\n" * 200 + "\n" + "fitw" * 1000)
    lines = ["first two character input method"] * 200
    expect_text(page, "\n".join([*lines, "", " ".join(["first two"] * 1000)]))
    shown = list(filter(None, page.locator("#text").inner_text().splitlines()))
    assert shown[:200] == lines and shown[200].startswith("first two first")
    # A block's last newline makes no line of its own: 252 pieces of 6 a line are 42 lines.
    high = "document.getElementById('folded').children[0].offsetHeight"
    found = page.evaluate(f"{high} / parseFloat(getComputedStyle(sheet).lineHeight)")
    assert round(found, 1) == 42
    for _ in range(4):
        page.keyboard.press("Backspace")
    expect_text(page, "\n".join([*lines, "", " ".join(["first two"] * 998)]) + " first")


@in_browser
def test_a_message_of_more_than_64_kib_is_refused(page, address: str) -> None:
    paste(page, "fi" * 33_000)
    expect_below(page, "more than 64 KiB at once are refused")
    expect_text(page, "")
    with client.connect(f"ws://{address}/keys", origin=f"http://{address}") as direct:
        direct.send("fi" * 33_000)
        assert "more than 64 KiB" in direct.recv()
        direct.send("fi")
        assert '"pending":"first"' in direct.recv()


@in_browser
def test_the_text_can_be_copied(page) -> None:
    page.keyboard.type("fitw")
    expect_text(page, "first two")
    page.keyboard.press("Control+C")
    assert page.evaluate("navigator.clipboard.readText()") == "first two"


@in_browser
def test_a_lost_connection_is_said_and_comes_back(browser) -> None:
    opened = browser.new_page()
    with serving() as address:
        open_page(opened, address)
        opened.keyboard.type("fitw")
        expect_text(opened, "first two")
    sync_api.expect(opened.locator("#line")).to_have_text("connection lost, trying again")
    opened.keyboard.type("ch")
    with serving(int(address.split(":")[1])):
        sync_api.expect(opened.locator("#line")).to_have_text("connected again, with a new session")
        opened.keyboard.type("ch")
        expect_text(opened, "first two\ncharacter")
        opened.close()


@pytest.mark.parametrize("origin", [None, "http://example.org", "http://127.0.0.1:1", "null"])
def test_pages_of_other_sites_are_refused(address: str, origin: str | None) -> None:
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus, match="403"):
        client.connect(f"ws://{address}/keys", origin=origin)


def test_a_name_that_was_made_to_point_here_is_refused(address: str) -> None:
    from websockets.exceptions import InvalidStatus

    host, port = address.split(":")
    named, direct = f"evil.example:{port}", socket.create_connection((host, int(port)))
    with pytest.raises(InvalidStatus, match="403"):
        client.connect(f"ws://{named}/keys", sock=direct, origin=f"http://{named}")


def test_a_page_that_closes_ends_its_work(address: str) -> None:
    with client.connect(f"ws://{address}/keys", origin=f"http://{address}") as gone:
        gone.send("fitwchinme" * 6000)
    began = time.monotonic()
    with client.connect(f"ws://{address}/keys", origin=f"http://{address}") as other:
        other.send("fi")
        assert '"pending":"first"' in other.recv()
    assert time.monotonic() - began < 60


def test_a_message_of_bytes_ends_its_connection_only(address: str) -> None:
    from websockets.exceptions import ConnectionClosedError

    with client.connect(f"ws://{address}/keys", origin=f"http://{address}") as one:
        one.send(b"fi")
        with pytest.raises(ConnectionClosedError, match="1003"):
            one.recv()
    with client.connect(f"ws://{address}/keys", origin=f"http://{address}") as other:
        other.send("fi")
        assert '"pending":"first"' in other.recv()


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port {port} of 127.0.0.1 is in use; .* --port$"):
            page_module.serve(METHOD, "127.0.0.1", port, print)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("192.0.2.1", 0)])
def test_an_address_that_cannot_be_had(host: str, port: int) -> None:
    with pytest.raises(UserError, match="--port"):
        page_module.serve(METHOD, host, port, print)
