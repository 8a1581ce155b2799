"""The page in a browser: what it asks of the server, and what it makes of the answers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from served import Client, write_model

pytest.importorskip("starlette")
pytest.importorskip("playwright.sync_api")

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright  # noqa: E402

from pyllm.server import Settings  # noqa: E402
from pyllm.server.page import page as page_of  # noqa: E402
from pyllm.server.page import source  # noqa: E402
from pyllm.testing import running_server  # noqa: E402

SECONDS = 30  # what nothing here takes unless it hangs
CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
expect.set_options(timeout=SECONDS * 1000)

Reply = Callable[["Handler"], None]


# ----------------------------------------------------------------------------------------------------------
# A server that says what it is told to


class Fake(ThreadingHTTPServer):
    """Serves the page and one model, whose replies are those in `replies`, in turn.

    key    that requests must carry
    asked  the bodies of the requests"""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.key = ""
        self.asked: list[Any] = []
        self.replies: list[Reply] = []
        self.left = threading.Event()  # set when a client has left in the middle of a reply
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.left.set()


class Handler(BaseHTTPRequestHandler):
    server: Fake
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/":
            shown = page_of(None)  # type: ignore[arg-type]
            self.answer(200, bytes(shown.body), dict(shown.headers))
        elif self.refused():
            self.error(401, "the API key is missing or wrong")
        elif self.path == "/v1/models":
            self.json(200, {"data": [{"id": "tiny", "max_model_len": 2048}, {"id": "other"}]})
        else:
            self.error(404, "not found")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions" and self.headers["Content-Type"] == "application/json"
        if self.refused():
            self.error(401, "the API key is missing or wrong")
            return
        self.server.asked.append(body)
        reply = self.server.replies.pop(0) if self.server.replies else says("all right")
        reply(self)

    def refused(self) -> bool:
        return bool(self.server.key) and self.headers["Authorization"] != f"Bearer {self.server.key}"

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.start(status, {**headers, "Content-Length": str(len(data))})
        self.wfile.write(data)

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def json(self, status: int, body: Any) -> None:
        self.answer(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, message: str, param: str | None = None) -> None:
        """As the server tells of it, but that a 401 does not make the browser ask for a password."""
        self.json(status, {"error": {"message": message, "param": param}})

    def log_message(self, *_: Any) -> None:
        pass


CUT = object()
DONE = b"data: [DONE]\n\n"


def streamed(*steps: Any) -> Reply:
    """A reply that is sent step by step: an event; bytes as they are; a threading.Event, which is waited for;
    CUT, by which the connection ends."""

    def reply(handler: Handler) -> None:
        handler.start(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        for step in steps:
            if step is CUT:
                handler.connection.shutdown(socket.SHUT_RDWR)
                return
            if isinstance(step, threading.Event):
                assert step.wait(SECONDS)
                continue
            data = step if isinstance(step, bytes) else b"data: " + json.dumps(step).encode() + b"\n\n"
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        handler.wfile.write(b"0\r\n\r\n")

    return reply


def entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def piece(
    content: str = "",
    finish: str | None = None,
    logprobs: list[tuple[str, float, dict[str, float]]] | None = None,
    **delta: str,
) -> dict[str, Any]:
    """An event of a stream. logprobs: (token, its logprob, alternatives) of each token."""
    choice: dict[str, Any] = {"index": 0, "delta": {"content": content, **delta}, "finish_reason": finish}
    if logprobs:
        entries = [
            entry(token, logprob) | {"top_logprobs": [entry(*other) for other in top.items()]}
            for token, logprob, top in logprobs
        ]
        choice["logprobs"] = {"content": entries}
    return {"object": "chat.completion.chunk", "choices": [choice]}


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """The last event of a stream."""
    details = {"cached_tokens": cached}
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return {"choices": [], "usage": counts}


END = piece(finish="stop")


def says(*texts: str) -> Reply:
    """A whole reply, a piece a text."""
    return streamed(*map(piece, texts), END, usage(7, len(texts)), DONE)


def fails(status: int, message: str, param: str | None = None) -> Reply:
    return lambda handler: handler.error(status, message, param)


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    yield server
    server.stop()


# ----------------------------------------------------------------------------------------------------------
# A browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that nobody has used; afterwards: whether a page did what it should not."""
    wrong: list[str] = []

    def request(url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:")):
            wrong.append(f"asked for {url}")

    def console(text: str) -> None:
        if "Content Security Policy" in text or "Trusted" in text:
            wrong.append(text)

    context = browser.new_context()
    context.set_default_timeout(SECONDS * 1000)
    context.on("request", lambda made: request(made.url))
    context.on("console", lambda message: console(message.text))
    context.on("weberror", lambda error: wrong.append(f"{error.error}"))
    yield context
    context.close()
    assert wrong == []


@pytest.fixture
def tab(context: BrowserContext, fake: Fake) -> Page:
    return opened(context, fake.url)


def opened(context: BrowserContext, url: str) -> Page:
    """The page in a new tab, when it knows what is served."""
    tab = context.new_page()
    tab.goto(url)
    expect(tab.locator("#context")).not_to_be_empty()
    return tab


def draft(tab: Page) -> Locator:
    return tab.get_by_role("textbox", name="Message", exact=True)


def say(tab: Page, text: str) -> Locator:
    """Sends a message; the reply to it, which may be on its way."""
    draft(tab).fill(text)
    draft(tab).press("Enter")
    return last_reply(tab)


def last_reply(tab: Page) -> Locator:
    return tab.locator(".reply").last


def ended(reply: Locator) -> Locator:
    """The same reply when it has come to its end."""
    expect(reply).to_have_attribute("aria-busy", "false")
    return reply


def titles(tab: Page) -> Locator:
    return tab.locator("#titles a")


def click(tab: Page | Locator, name: str) -> None:
    tab.get_by_role("button", name=name, exact=True).click()


def said(body: Any) -> list[tuple[str, str]]:
    """The messages of a request."""
    return [(message["role"], message["content"]) for message in body["messages"]]


def exported(tab: Page) -> Any:
    """What "Export all" gives."""
    with tab.expect_download() as download:
        click(tab, "Export all")
    return json.loads(Path(download.value.path()).read_text())


def imported(tab: Page, text: str, name: str = "some.json") -> None:
    file = {"name": name, "mimeType": "application/json", "buffer": text.encode()}
    tab.locator("#file").set_input_files(file)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------
# What the page is


def test_a_browser_is_told_to_run_nothing_but_what_the_page_holds() -> None:
    shown = page_of(None)  # type: ignore[arg-type]
    html = bytes(shown.body).decode()
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert shown.headers["cache-control"] == "no-cache"
    assert shown.headers["referrer-policy"] == "no-referrer"
    assert shown.headers["x-frame-options"] == "DENY"
    policy = dict(part.split(" ", 1) for part in shown.headers["content-security-policy"].split("; "))
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_the_page_needs_nothing_else_and_makes_no_markup_of_texts() -> None:
    html = source()
    markup = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)
    assert not re.search(r"\s(on\w+|style|src)=", markup)
    assert re.findall(r'href="([^"]*)"', markup) == ["data:,"], "the icon, so that none is asked for"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(", html)


@needs_browser
def test_a_conversation_with_a_real_server(context: BrowserContext, tmp_path: Path) -> None:
    wanted = {"temperature": 0.8, "max_tokens": 12, "seed": 3}
    with running_server(write_model(tmp_path), Settings(names=("tiny",)), threads=1) as running:
        tab = opened(context, running.url)
        expect(tab.locator("h1")).to_contain_text("tiny")
        expect(tab.locator("#context")).to_have_text("2000 tokens")
        click(tab, "Settings")
        for name, value in wanted.items():
            tab.get_by_label(name).fill(str(value))
        reply = ended(say(tab, "Hi"))
        body = {"messages": [{"role": "user", "content": "Hi"}], **wanted}
        answer = Client(running.url).answer("/v1/chat/completions", body)
        (conversation,) = exported(tab)["conversations"]
        own, made = conversation["messages"]
        assert own == {"role": "user", "content": "Hi"}
        assert made["content"] == answer["choices"][0]["message"]["content"]
        assert made["finish"] == answer["choices"][0]["finish_reason"]
        count = answer["usage"]["completion_tokens"]
        expect(reply.locator(".facts")).to_contain_text(f"{count} tokens")
        assert len(made["tokens"]) == count and all(len(others) == 5 for _, _, others in made["tokens"])
        click(reply, "Show probabilities")
        expect(reply.locator(".token")).to_have_count(count)


@needs_browser
def test_a_real_server_with_a_key_takes_the_browsers_password(browser: Browser, tmp_path: Path) -> None:
    settings = Settings(names=("tiny",), keys=frozenset({"secret"}))
    with running_server(write_model(tmp_path), settings, threads=1) as running:
        context = browser.new_context(http_credentials={"username": "me", "password": "secret"})
        context.set_default_timeout(SECONDS * 1000)
        tab = opened(context, running.url)
        tab.evaluate("document.getElementById('set').click()")
        tab.get_by_label("max_tokens").fill("5")
        expect(ended(say(tab, "Hi")).locator(".facts")).to_contain_text("tokens")
        context.close()


# ----------------------------------------------------------------------------------------------------------
# Streams


@needs_browser
def test_a_reply_is_shown_as_it_comes(tab: Page, fake: Fake) -> None:
    more = threading.Event()
    fake.replies = [streamed(piece("Hel"), more, piece("lo"), END, usage(3, 2), DONE)]
    reply = say(tab, "Hi")
    expect(reply.locator(".text")).to_have_text("Hel")
    expect(reply).to_have_attribute("aria-busy", "true")
    more.set()
    expect(ended(reply).locator(".text")).to_have_text("Hello")
    assert fake.asked == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "top_logprobs": 5,
        }
    ]
    ended(say(tab, "Go on"))
    assert said(fake.asked[1]) == [("user", "Hi"), ("assistant", "Hello"), ("user", "Go on")]


SPLIT = """
const real = window.fetch;
window.fetch = async (...args) => {
  const response = await real(...args);
  const data = new Uint8Array(await response.arrayBuffer());
  const body = new ReadableStream({
    start(controller) {
      for (let i = 0; i < data.length; i += SIZE) controller.enqueue(data.slice(i, i + SIZE));
      controller.close();
    },
  });
  return new Response(body, response);
};
"""


@needs_browser
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 5])
def test_the_pieces_of_a_stream_may_end_anywhere(
    context: BrowserContext, fake: Fake, line_end: bytes, size: int
) -> None:
    events = [piece("Grüße "), piece("🎉 "), piece("データ"), END, usage(3, 3)]
    lines = [b": a comment", b""]
    for event in events:
        # JSON may be on two lines, each of which is data
        first, second = json.dumps(event, ensure_ascii=False).encode().split(b", ", 1)
        lines += [b"id: 4", b"data: " + first + b",", b"data:" + second, b": ping", b""]
    fake.replies = [streamed(line_end.join([*lines, b"data: [DONE]", b"", b""]))]
    context.add_init_script(SPLIT.replace("SIZE", str(size)))
    tab = opened(context, fake.url)
    expect(ended(say(tab, "Hi")).locator(".text")).to_have_text("Grüße 🎉 データ")
    expect(tab.locator("#failure")).to_be_hidden()


@needs_browser
def test_stop_keeps_what_has_come(tab: Page, fake: Fake) -> None:
    never = threading.Event()
    steps = [item for i in range(200) for item in (piece(f"w{i} "), pause(0.05))]
    fake.replies = [streamed(piece("As far as "), *steps, never)]
    reply = say(tab, "Hi")
    expect(reply.locator(".text")).to_contain_text("As far as w0")
    click(tab, "Stop")
    kept = ended(reply).locator(".text").inner_text()
    expect(reply.locator(".facts")).to_contain_text("stopped")
    expect(tab.get_by_role("button", name="Send")).to_be_visible()
    expect(tab.locator("#failure")).to_be_hidden()
    assert fake.left.wait(SECONDS), "the server is told"
    ended(say(tab, "More"))
    role, content = said(fake.asked[1])[1]
    assert role == "assistant" and content.strip() == kept.strip()


def pause(seconds: float) -> threading.Event:
    """A step that takes its time."""
    event = threading.Event()
    wait = event.wait
    event.wait = lambda timeout=None: wait(seconds) or True  # type: ignore[method-assign]
    return event


@needs_browser
def test_enter_sends_and_shift_enter_is_a_new_line(tab: Page, fake: Fake) -> None:
    draft(tab).press_sequentially("one")
    draft(tab).press("Shift+Enter")
    draft(tab).press_sequentially("two")
    assert draft(tab).input_value() == "one\ntwo" and fake.asked == []
    draft(tab).press("Enter")
    ended(last_reply(tab))
    assert said(fake.asked[0]) == [("user", "one\ntwo")]
    assert draft(tab).input_value() == ""
    draft(tab).press("Enter")
    draft(tab).fill("  ")
    draft(tab).press("Enter")
    assert len(fake.asked) == 1, "nothing is no message"


@needs_browser
def test_enter_that_chooses_a_character_does_not_send(tab: Page, fake: Fake) -> None:
    draft(tab).fill("に")
    draft(tab).dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    assert draft(tab).input_value() == "に" and fake.asked == []


@needs_browser
def test_a_message_can_be_edited_and_sent_again_from_there(tab: Page, fake: Fake) -> None:
    fake.replies = [says("first"), says("second"), says("third")]
    ended(say(tab, "One"))
    ended(say(tab, "Two"))
    click(tab.locator(".user").first, "Edit")
    area = tab.get_by_label("Edit your message")
    assert area.input_value() == "One"
    area.press("Escape")
    expect(tab.locator(".message")).to_have_count(4)
    click(tab.locator(".user").first, "Edit")
    area.fill("Uno")
    area.press("Enter")
    expect(ended(last_reply(tab)).locator(".text")).to_have_text("third")
    assert said(fake.asked[2]) == [("user", "Uno")]
    expect(tab.locator(".message .text")).to_have_text(["Uno", "third"])


@needs_browser
def test_the_last_reply_can_be_made_again(tab: Page, fake: Fake) -> None:
    fake.replies = [says("one"), says("two"), says("three")]
    ended(say(tab, "A"))
    ended(say(tab, "B"))
    expect(tab.get_by_role("button", name="Regenerate")).to_have_count(1)
    click(tab, "Regenerate")
    expect(tab.locator(".reply .text")).to_have_text(["one", "three"])
    assert said(fake.asked[2]) == [("user", "A"), ("assistant", "one"), ("user", "B")]


@needs_browser
def test_a_reply_comes_back_when_no_other_can_be_made(tab: Page, fake: Fake) -> None:
    fake.replies = [says("the only one"), fails(429, "the server is busy")]
    ended(say(tab, "A"))
    click(tab, "Regenerate")
    expect(tab.locator("#failure-text")).to_have_text("the server is busy")
    expect(tab.locator(".reply .text")).to_have_text(["the only one"])


@needs_browser
def test_settings_belong_to_a_conversation(tab: Page, fake: Fake) -> None:
    wanted = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 64, "seed": 7}
    click(tab, "Settings")
    tab.get_by_label("System prompt").fill("Be brief.")
    for name, value in wanted.items():
        tab.get_by_label(name).fill(str(value))
    ended(say(tab, "Hi"))
    assert said(fake.asked[0]) == [("system", "Be brief."), ("user", "Hi")]
    assert {name: fake.asked[0].get(name) for name in wanted} == wanted

    click(tab, "New conversation")
    expect(tab.get_by_label("System prompt")).to_have_value("")
    expect(tab.get_by_label("seed")).to_have_value("")
    ended(say(tab, "Other"))
    assert said(fake.asked[1]) == [("user", "Other")]
    assert not wanted.keys() & fake.asked[1].keys(), "what is empty is the server's to choose"

    titles(tab).get_by_text("Hi").click()
    expect(tab.get_by_label("System prompt")).to_have_value("Be brief.")
    tab.get_by_label("top_k").fill("")
    tab.get_by_label("top_k").blur()
    tab.reload()
    click(tab, "Settings")
    expect(tab.get_by_label("seed")).to_have_value("7")
    ended(say(tab, "Again"))
    assert fake.asked[2]["seed"] == 7 and "top_k" not in fake.asked[2]


@needs_browser
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_open_while_it_comes_and_folded_then(tab: Page, fake: Fake, name: str) -> None:
    more = threading.Event()
    steps = [piece(**{name: "Let me "}), piece(**{name: "see <b>."}), more, piece("Four."), END, DONE]
    fake.replies = [streamed(*steps)]
    reply = say(tab, "2 + 2")
    expect(reply.locator(".thought")).to_be_visible()
    expect(reply.locator(".thought")).to_have_text("Let me see <b>.")
    more.set()
    expect(ended(reply).locator(".text")).to_have_text("Four.")
    expect(reply.locator(".thought")).to_be_hidden()
    reply.get_by_text("Reasoning").click()
    expect(reply.locator(".thought")).to_be_visible()
    ended(say(tab, "And 3 + 3"))
    assert said(fake.asked[1])[1] == ("assistant", "Four."), "what it thought is not part of what it said"


# ----------------------------------------------------------------------------------------------------------
# Markdown

MARKDOWN = r"""
# Title

A *slanted*, **bold**, ***both***, ~~gone~~ word, `code *as is*`, ``a ` tick``, \*plain\*,
snake_case_name, 2 * 3 * 4, [a page](https://example.org/a_(b) "its title"), <https://example.org/>, https://example.org/x?y=1.
[mail](mailto:a@example.org), [relative](other.html)

1. one
2. two
   - inner
     - innermost

   second paragraph
3. three

* a
* b

> quoted **text**
>
> > deeper

| left | right | a \| b |
|:-----|------:|:------:|
| 1    | `2`   | 3      |

---

```python
def f(x):
	return x  # **no bold** <b>

```

~~~
never closed
"""


@needs_browser
def test_markdown_becomes_nodes(tab: Page, fake: Fake) -> None:
    fake.replies = [says(*re.findall(r"(?s).{1,7}", MARKDOWN))]
    text = ended(say(tab, "Hi")).locator(".text")
    expect(text.locator("h3")).to_have_text("Title")
    first = text.locator("> p").first
    assert first.locator("> em").all_inner_texts() == ["slanted"]
    assert first.locator("> strong").all_inner_texts() == ["bold", "both"]
    assert first.locator("> strong > em").all_inner_texts() == ["both"]
    assert first.locator("del").all_inner_texts() == ["gone"]
    assert first.locator("code").all_inner_texts() == ["code *as is*", "a ` tick"]
    assert "*plain*,\nsnake_case_name, 2 * 3 * 4," in first.inner_text()
    assert [link.get_attribute("href") for link in first.locator("a").all()] == [
        "https://example.org/a_(b)",
        "https://example.org/",
        "https://example.org/x?y=1",
        "mailto:a@example.org",
    ]
    assert "[relative](other.html)" in first.inner_text()
    for link in first.locator("a").all():
        assert link.get_attribute("target") == "_blank"
        assert link.get_attribute("rel") == "noopener noreferrer"
    assert len(text.locator("> ol > li").all()) == 3 and len(text.locator("> ul > li").all()) == 2
    expect(text.locator("ol > li > ul > li > ul > li")).to_have_text("innermost")
    expect(text.locator("ol > li:nth-child(2) > p")).to_have_text(["two", "second paragraph"])
    expect(text.locator("blockquote > p > strong")).to_have_text("text")
    expect(text.locator("blockquote > blockquote > p")).to_have_text("deeper")
    assert text.locator("th").all_inner_texts() == ["left", "right", "a | b"]
    assert text.locator("td").all_inner_texts() == ["1", "2", "3"]
    assert [cell.get_attribute("class") for cell in text.locator("td").all()] == ["left", "right", "center"]
    expect(text.locator("hr")).to_have_count(1)
    assert text.locator("figcaption span").all_inner_texts() == ["python", "text"]
    codes = [code.text_content() for code in text.locator("pre code").all()]
    assert codes == ["def f(x):\n\treturn x  # **no bold** <b>\n", "never closed\n"]


@needs_browser
def test_markdown_that_came_in_pieces_is_that_of_the_whole(tab: Page, fake: Fake) -> None:
    fake.replies = [says(*MARKDOWN), says(MARKDOWN)]
    for _ in range(2):
        ended(say(tab, "Hi"))
    first, second = (text.evaluate("node => node.outerHTML") for text in tab.locator(".reply .text").all())
    assert first == second and "<li>" in first


@needs_browser
@pytest.mark.parametrize("secure", [True, False])
def test_code_can_be_copied(context: BrowserContext, fake: Fake, secure: bool) -> None:
    """By plain HTTP, browsers have no clipboard."""
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    if not secure:
        context.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    fake.replies = [says(f"```sh\necho  '{secure}'\n\techo b\n```")]
    tab = opened(context, fake.url)
    ended(say(tab, "Hi"))
    click(tab, "Copy this code")
    expect(tab.get_by_role("button", name="Copy this code")).to_have_text("Copied")
    draft(tab).press("Control+V")
    expect(draft(tab)).to_have_value(f"echo  '{secure}'\n\techo b")


HOSTILE = """\
<img src=x onerror="window.hacked=1"> <script>window.hacked=1</script> &lt;b&gt;
[x](javascript:window.hacked=1) [y]( JaVaScRiPt:window.hacked=1)
[z](data:text/html,<script>window.hacked=1</script>)
![pixel](http://evil.example/pixel.png) ![](http://evil.example/?q=secret) <javascript:alert(1)>
[**bold**](https://good.example/"onmouseover="window.hacked=1) [a [b](vbscript:x) c](file:///etc/passwd)

<iframe src="http://evil.example/"></iframe>

```html" onclick="window.hacked=1
<style>body{display:none}</style>
```

| <svg onload=window.hacked=1> | b |
|---|---|
| ![c](http://evil.example/c.png) | [d](javascript:1) |
"""


@needs_browser
def test_no_text_becomes_markup(tab: Page, fake: Fake) -> None:
    """Of a model, of a user, of an error. The fixture sees to it that nothing is asked for elsewhere."""
    entries = [("<img src=x onerror=window.hacked=1>", -0.1, {"<script>": -3.0})]
    hostile = piece(HOSTILE, logprobs=entries, reasoning_content=HOSTILE)
    fake.replies = [streamed(hostile, END, usage(3, 1), DONE), fails(400, HOSTILE)]
    reply = ended(say(tab, HOSTILE))
    click(reply, "Show probabilities")
    reply.locator(".token").hover()
    expect(tab.locator("#popup")).to_contain_text("<script>")
    click(reply, "Show probabilities")
    draft(tab).fill("More")
    draft(tab).press("Enter")
    expect(tab.locator("#failure-text")).to_contain_text("<iframe")
    outside = "img, script, iframe, svg, style, link, object, embed, form, base, meta"
    assert tab.locator("body").locator(outside).count() == 1, "the page's own script"
    allowed = {"http://evil.example/pixel.png", "http://evil.example/?q=secret", "http://evil.example/c.png"}
    links = {link.get_attribute("href") for link in tab.locator("#log a").all()}
    assert allowed <= links and all(link.startswith(("http:", "https:")) for link in links if link)
    attributes = tab.evaluate(
        "[...document.querySelectorAll('body *')].flatMap(node => node.getAttributeNames())"
        ".filter(name => name.startsWith('on') || name === 'src' || name === 'srcdoc')"
    )
    assert attributes == []
    assert tab.evaluate("window.hacked") is None
    assert '<img src=x onerror="window.hacked=1">' in reply.locator(".text").inner_text()
    expect(tab.locator(".user .text").first).to_have_text(HOSTILE)
    assert tab.locator(".user .text").first.locator("*").count() == 0, "one's own messages are plain text"


MANY = 60_000
HANGING = {
    "emphasis": "*a " * MANY,
    "emphasis within": "*a **b " * MANY,
    "code": "`a``b " * MANY,
    "marks": "_" * MANY,
    "brackets": "[" * MANY,
    "pictures": "![](" * MANY,
    "addresses": "https://" * MANY,
    "angles": "<https://" * MANY,
    "nodes": "`a` " * (MANY + MANY // 2),
    "spaces": "# " + " " * MANY + "#x",
    "bars": "| " * MANY,
    "quotes": "> " * MANY + "x",
    "lists": "\n".join("  " * i + "- x" for i in range(1000)),
}


@needs_browser
@pytest.mark.parametrize("kind", HANGING)
def test_text_that_is_meant_to_hang_a_page_does_not(tab: Page, fake: Fake, kind: str) -> None:
    """What would take time that grows with the square of a text, or a call for each level."""
    fake.replies = [says(HANGING[kind] + "\n\nthe end")]
    expect(ended(say(tab, "Hi")).locator(".text > p").last).to_have_text("the end")


# ----------------------------------------------------------------------------------------------------------
# Numbers


@needs_browser
def test_usage_and_speed_are_shown(tab: Page, fake: Fake) -> None:
    fake.replies = [
        streamed(
            pause(1),
            piece("a"),
            pause(0.1),
            piece("b"),
            piece(finish="length"),
            usage(30, 11, cached=24),
            DONE,
        ),
        streamed(piece("a"), END, usage(31, 1), DONE),
    ]
    facts = ended(say(tab, "Hi")).locator(".facts")
    expect(facts).to_contain_text("11 tokens")
    expect(facts).to_contain_text("prompt 30 tokens, 24 cached")
    expect(facts).to_contain_text("reached the limit of tokens")
    (rate,) = re.findall(r"([\d.]+) tokens/s", facts.inner_text())
    (made,) = [m for c in exported(tab)["conversations"] for m in c["messages"] if m["role"] == "assistant"]
    assert made["seconds"] < made["wait"], "the time to the first piece does not count"
    assert float(rate) == pytest.approx(10 / made["seconds"], abs=0.06)
    facts = ended(say(tab, "Hi")).locator(".facts")
    expect(facts).to_contain_text("1 tokens")
    assert "tokens/s" not in facts.inner_text() and "cached" not in facts.inner_text()


TOKENS = [
    ("The", -0.01, {"The": -0.01, "A": -5.0}),
    (" ", -0.5, {" ": -0.5, "\n": -1.2}),
    ("mat", -0.030459, {"mat": -0.030459, "sofa": -4.422849, "<b>": -7.0}),
    ("bytes:\\xf0\\x9f", -9.0, {"x": -0.1}),
]


def with_tokens() -> Reply:
    texts = ["The", " ", "mat", ""]
    pieces = [piece(text, logprobs=[entry]) for text, entry in zip(texts, TOKENS, strict=True)]
    return streamed(*pieces, END, usage(3, 4), DONE)


@needs_browser
def test_probabilities_are_shown_at_each_token(tab: Page, fake: Fake) -> None:
    fake.replies = [with_tokens()]
    reply = ended(say(tab, "Hi"))
    shows = reply.get_by_role("button", name="Show probabilities")
    expect(shows).to_have_attribute("aria-pressed", "false")
    shows.click()
    expect(shows).to_have_attribute("aria-pressed", "true")
    tokens = reply.get_by_role("option")
    expect(tokens).to_have_count(4)
    expect(reply.locator(".text")).to_be_hidden()
    tokens.nth(2).hover()
    popup = tab.get_by_role("tooltip")
    rows = [row.text_content() for row in popup.locator("div").all()]
    assert rows == ["mat 97.0 %", "sofa 1.2 %", "<b> 0.1 %"]
    expect(popup.locator(".chosen")).to_have_text("mat 97.0 %")
    tokens.nth(3).hover()
    rows = [row.text_content() for row in popup.locator("div").all()]
    assert rows == ["x 90.5 %", "\\xf0\\x9f 0.0 %"], "what was chosen is there even if it was not likely"
    chances = [float(token.evaluate("n => n.style.getPropertyValue('--chance')")) for token in tokens.all()]
    assert chances == pytest.approx([0.990, 0.607, 0.970, 0.000], abs=0.001)
    colors = [token.evaluate("n => getComputedStyle(n).backgroundColor") for token in tokens.all()]
    assert len(set(colors)) == 4, "each is shaded by its own"
    tab.mouse.move(5, 5)
    expect(popup).to_be_hidden()
    shows.click()
    expect(reply.locator(".text")).to_have_text("The mat")


@needs_browser
def test_probabilities_can_be_reached_by_keyboard(tab: Page, fake: Fake) -> None:
    fake.replies = [with_tokens()]
    reply = ended(say(tab, "Hi"))
    click(reply, "Show probabilities")
    popup = tab.get_by_role("tooltip")
    tab.keyboard.press("Shift+Tab")
    while reply.locator(".token:focus").count() == 0:
        tab.keyboard.press("Shift+Tab")
    expect(popup).to_contain_text("The 99.0 %")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    expect(popup).to_contain_text("mat 97.0 %")
    expect(reply.locator(".token:focus")).to_have_attribute("aria-label", "mat 97.0 %")
    tab.keyboard.press("Home")
    expect(popup).to_contain_text("The 99.0 %")
    tab.keyboard.press("Escape")
    expect(popup).to_be_hidden()
    assert reply.locator(".token[tabindex='0']").count() == 1, "one stop for all of them"


@needs_browser
def test_a_server_without_probabilities_is_asked_without(tab: Page, fake: Fake) -> None:
    fake.replies = [fails(400, "top_logprobs must be from 0 to 0", "top_logprobs"), says("one"), says("two")]
    expect(ended(say(tab, "Hi")).locator(".text")).to_have_text("one")
    ended(say(tab, "Hi"))
    assert ["logprobs" in body for body in fake.asked] == [True, False, False]
    assert not any("top_logprobs" in body for body in fake.asked[1:])
    expect(tab.get_by_role("button", name="Show probabilities")).to_have_count(0)


# ----------------------------------------------------------------------------------------------------------
# Conversations


@needs_browser
def test_conversations_are_there_after_a_reload(tab: Page, fake: Fake) -> None:
    fake.replies = [says("to one"), with_tokens()]
    ended(say(tab, "One"))
    click(tab, "New conversation")
    expect(tab.locator(".message")).to_have_count(0)
    ended(say(tab, "Two"))
    draft(tab).fill("typed, not sent")
    tab.reload()
    expect(titles(tab)).to_have_text(["Two", "One"])
    expect(tab.locator(".message .text")).to_have_text(["Two", "The mat"])
    expect(draft(tab)).to_have_value("typed, not sent")
    click(last_reply(tab), "Show probabilities")
    expect(last_reply(tab).locator(".token")).to_have_count(4)
    titles(tab).get_by_text("One").click()
    expect(tab.locator(".message .text")).to_have_text(["One", "to one"])
    expect(draft(tab)).to_have_value("")
    tab.go_back()
    expect(tab.locator(".message .text")).to_have_text(["Two", "The mat"])


@needs_browser
def test_what_is_typed_stays_with_its_conversation(tab: Page) -> None:
    draft(tab).fill("half of it")
    click(tab, "Settings")
    tab.get_by_label("seed").fill("1")
    tab.get_by_label("seed").blur()
    expect(titles(tab)).to_have_text(["New conversation"])
    click(tab, "New conversation")
    expect(draft(tab)).to_have_value("")
    draft(tab).fill("other")
    tab.reload()
    expect(draft(tab)).to_have_value("other")
    titles(tab).click()
    expect(draft(tab)).to_have_value("half of it")
    ended(say(tab, "whole"))
    tab.reload()
    expect(draft(tab)).to_have_value("")


@needs_browser
def test_what_has_come_is_there_when_a_page_is_left(tab: Page, fake: Fake) -> None:
    never = threading.Event()
    fake.replies = [streamed(piece("So far"), pause(1.1), piece(", so good"), never), says("anew")]
    expect(say(tab, "Hi").locator(".text")).to_have_text("So far, so good")
    tab.reload()
    expect(ended(last_reply(tab)).locator(".text")).to_have_text("So far, so good")
    expect(last_reply(tab).locator(".facts")).to_have_text(re.compile("not whole"))
    click(tab, "Regenerate")
    expect(tab.locator(".reply .text")).to_have_text(["anew"])


@needs_browser
def test_a_browser_that_keeps_nothing_can_talk(context: BrowserContext, fake: Fake) -> None:
    for name in ("indexedDB", "localStorage", "sessionStorage"):
        context.add_init_script(
            f"Object.defineProperty(window, '{name}', {{ get() {{ throw Error('no') }} }})"
        )
    tab = opened(context, fake.url)
    expect(ended(say(tab, "One")).locator(".text")).to_have_text("all right")
    expect(tab.locator("#notice")).to_contain_text("could not be kept")
    click(tab, "New conversation")
    ended(say(tab, "Two"))
    titles(tab).get_by_text("One").click()
    expect(tab.locator(".message .text")).to_have_text(["One", "all right"])
    assert len(exported(tab)["conversations"]) == 2
    click(tab, "Delete Two")
    click(tab.get_by_role("dialog"), "Delete")
    expect(titles(tab)).to_have_text(["One"])


@needs_browser
def test_a_conversation_can_be_renamed(tab: Page) -> None:
    ended(say(tab, "A long question"))
    click(tab, "Rename A long question")
    tab.get_by_role("textbox", name="Title").fill("<i>Short</i>")
    tab.get_by_role("textbox", name="Title").press("Enter")
    expect(titles(tab)).to_have_text(["<i>Short</i>"])
    click(tab, "Rename <i>Short</i>")
    tab.get_by_role("textbox", name="Title").fill("other")
    tab.get_by_role("textbox", name="Title").press("Escape")
    expect(titles(tab)).to_have_text(["<i>Short</i>"])
    tab.reload()
    expect(titles(tab)).to_have_text(["<i>Short</i>"])


@needs_browser
def test_a_conversation_is_deleted_when_the_question_is_answered(tab: Page) -> None:
    for text in ("One", "Two"):
        ended(say(tab, text))
        click(tab, "New conversation")
    click(tab, "Delete One")
    expect(tab.get_by_role("dialog")).to_contain_text("Delete “One”?")
    click(tab, "Cancel")
    expect(titles(tab)).to_have_text(["Two", "One"])
    for key in ("Escape", "Enter"):
        click(tab, "Delete One")
        tab.keyboard.press(key)
        expect(tab.get_by_role("dialog")).to_be_hidden()
        expect(titles(tab)).to_have_text(["Two", "One"])
    click(tab, "Delete One")
    click(tab.get_by_role("dialog"), "Delete")
    expect(titles(tab)).to_have_text(["Two"])
    tab.reload()
    expect(titles(tab)).to_have_text(["Two"])


@needs_browser
def test_what_is_deleted_while_it_is_made_stays_deleted(tab: Page, fake: Fake) -> None:
    never = threading.Event()
    fake.replies = [streamed(piece("some"), never)]
    expect(say(tab, "Hi").locator(".text")).to_have_text("some")
    click(tab, "Delete Hi")
    click(tab.get_by_role("dialog"), "Delete")
    expect(titles(tab)).to_have_count(0)
    expect(tab.locator(".message")).to_have_count(0)
    never.set()
    ended(say(tab, "Other"))
    tab.reload()
    expect(titles(tab)).to_have_text(["Other"])


@needs_browser
def test_a_reply_goes_on_while_another_conversation_is_shown(tab: Page, fake: Fake) -> None:
    more = threading.Event()
    fake.replies = [streamed(piece("slow "), more, piece("reply"), END, DONE), says("quick")]
    expect(say(tab, "Long").locator(".text")).to_have_text("slow")
    click(tab, "New conversation")
    expect(ended(say(tab, "Short")).locator(".text")).to_have_text("quick")
    more.set()
    titles(tab).get_by_text("Long").click()
    expect(ended(last_reply(tab)).locator(".text")).to_have_text("slow reply")
    expect(tab.locator(".message")).to_have_count(2)


@needs_browser
def test_two_tabs_keep_each_others_conversations(context: BrowserContext, fake: Fake) -> None:
    first, second = opened(context, fake.url), opened(context, fake.url)
    more = threading.Event()
    fake.replies = [streamed(piece("slow"), more, END, DONE), says("of second")]
    expect(say(first, "First").locator(".text")).to_have_text("slow")
    ended(say(second, "Second"))
    more.set()
    ended(last_reply(first))
    for tab in (first, second):
        expect(titles(tab)).to_have_count(2)
        begun = {chat["messages"][0]["content"] for chat in exported(tab)["conversations"]}
        assert begun == {"First", "Second"}
    titles(second).get_by_text("First").click()
    ended(say(first, "More"))
    expect(second.locator(".user .text")).to_have_text(["First", "More"])
    ended(say(second, "And more"))
    expect(first.locator(".user .text")).to_have_text(["First", "More", "And more"])
    click(second.locator(".user").first, "Edit")
    second.get_by_label("Edit your message").fill("half of it")
    ended(say(first, "At last"))
    expect(titles(first).first).to_have_text("First")
    expect(second.get_by_label("Edit your message")).to_have_value("half of it")
    first.reload()
    expect(first.locator(".user .text")).to_have_text(["First", "More", "And more", "At last"])
    titles(first).get_by_text("Second").click()
    expect(first.locator(".message .text")).to_have_text(["Second", "of second"])


# ----------------------------------------------------------------------------------------------------------
# Files


@needs_browser
def test_what_is_exported_can_be_imported(tab: Page, browser: Browser, fake: Fake) -> None:
    fake.replies = [with_tokens()]
    click(tab, "Settings")
    tab.get_by_label("System prompt").fill("Be brief.")
    tab.get_by_label("seed").fill("5")
    ended(say(tab, "One"))
    click(tab, "New conversation")
    ended(say(tab, "Two"))
    whole = exported(tab)
    assert whole["format"] == "pyllm-conversations" and len(whole["conversations"]) == 2
    imported(tab, json.dumps(whole))
    expect(tab.locator("#notice")).to_have_text("0 imported, 2 were here already.")
    expect(titles(tab)).to_have_count(2)

    other = browser.new_context()
    elsewhere = opened(other, fake.url)
    imported(elsewhere, json.dumps(whole))
    expect(elsewhere.locator("#notice")).to_have_text("2 imported, 0 were here already.")
    expect(titles(elsewhere)).to_have_text(["Two", "One"])
    titles(elsewhere).get_by_text("One").click()
    expect(elsewhere.locator(".message .text")).to_have_text(["One", "The mat"])
    click(elsewhere, "Settings")
    expect(elsewhere.get_by_label("System prompt")).to_have_value("Be brief.")
    ended(say(elsewhere, "On"))
    assert fake.asked[-1]["seed"] == 5
    other.close()


@needs_browser
def test_an_import_changes_no_conversation_that_is_here(tab: Page) -> None:
    ended(say(tab, "Mine"))
    whole = exported(tab)
    whole["conversations"][0]["messages"][0]["content"] = "Changed"
    whole["conversations"] *= 2
    imported(tab, json.dumps(whole))
    expect(tab.locator("#notice")).to_contain_text("imported")
    contents = sorted(c["messages"][0]["content"] for c in exported(tab)["conversations"])
    assert contents[-1] == "Mine" and set(contents[:-1]) == {"Changed"}
    expect(tab.locator(".user .text")).to_have_text("Mine")


def export_of(*conversations: Any) -> str:
    return json.dumps({"format": "pyllm-conversations", "version": 1, "conversations": conversations})


SOUND = {"id": "0" * 32, "title": "", "changed": 1, "system": "", "sampling": {}, "messages": []}


def export_with(message: Any) -> str:
    """An export whose second conversation has this message."""
    return export_of(
        {**SOUND, "messages": [{"role": "user", "content": "x"}]}, {**SOUND, "messages": [message]}
    )


def export_with_reply(**fields: Any) -> str:
    return export_with({"role": "assistant", "content": "", **fields})


@needs_browser
@pytest.mark.parametrize(
    "text, why",
    [
        ("", "it is not JSON"),
        ("\x00\xff", "it is not JSON"),
        ("null", "no export of this page"),
        ("[]", "no export of this page"),
        ('{"format": "pyllm-conversations", "version": 2, "conversations": []}', "no export of this page"),
        ('{"format": "pyllm-conversations", "version": 1}', "conversations is not a list"),
        (export_of(None), "title is not a text"),
        (export_of({**SOUND, "messages": {"length": 1}}), "messages is not a list"),
        (export_of({**SOUND, "sampling": {"seed": "1"}}), "seed is not a number"),
        (export_with(None), "content is not a text"),
        (export_with({"role": "user"}), "content is not a text"),
        (export_with({"role": "tool", "content": "x"}), "neither the user's nor the model's"),
        (export_with_reply(reasoning=1), "reasoning is not a text"),
        (export_with_reply(tokens=[1]), "token is not a list"),
        (export_with_reply(tokens=[["x", "1", []]]), "logprob is not a number"),
        (export_with_reply(usage={}), "prompt is not a number"),
    ],
)
def test_a_file_that_is_no_export_changes_nothing(tab: Page, text: str, why: str) -> None:
    ended(say(tab, "Mine"))
    before = exported(tab)
    imported(tab, text, "holiday.json")
    expect(tab.locator("#notice")).to_contain_text("holiday.json was not imported: ")
    expect(tab.locator("#notice")).to_contain_text(why)
    assert exported(tab) == before
    expect(titles(tab)).to_have_text(["Mine"])


@needs_browser
def test_what_is_imported_is_not_trusted(tab: Page) -> None:
    reply = {
        "role": "assistant",
        "content": HOSTILE,
        "reasoning": HOSTILE,
        "tokens": [["<b>", 700.5, [["<i>", -1]]]],
        "extra": "x",
    }
    hostile = {
        "id": '"><script>',
        "changed": 1,
        "title": "<script>window.hacked=1</script>",
        "system": HOSTILE,
        "sampling": {"seed": 1, "model": 4, "__proto__": 1},
        "failure": HOSTILE,
        "messages": [{"role": "user", "content": HOSTILE, "role2": 1}, reply],
        "more": {"a": 1},
    }
    imported(tab, export_of(hostile).replace('"__proto__": 1', '"__proto__": {"polluted": 1}'))
    titles(tab).click()
    click(last_reply(tab), "Show probabilities")
    last_reply(tab).locator(".token").hover()
    expect(tab.get_by_role("tooltip")).to_contain_text("<i> 36.8 %")
    expect(titles(tab)).to_have_text(["<script>window.hacked=1</script>"])
    assert tab.locator("body").locator("img, script, iframe, svg, b, i").count() == 1, "the page's own script"
    assert tab.evaluate("[window.hacked, {}.polluted]") == [None, None]
    (kept,) = exported(tab)["conversations"]
    assert re.fullmatch("[0-9a-f]{32}", kept["id"]) and kept["sampling"] == {"seed": 1}
    assert "more" not in kept and all("extra" not in m and "role2" not in m for m in kept["messages"])


# ----------------------------------------------------------------------------------------------------------
# What goes wrong


@needs_browser
def test_an_error_of_the_server_is_shown_and_can_be_tried_again(tab: Page, fake: Fake) -> None:
    fake.replies = [fails(429, "the server is busy: 128 requests are waiting"), says("now")]
    draft(tab).fill("Hi")
    draft(tab).press("Enter")
    expect(tab.get_by_role("alert")).to_contain_text("the server is busy: 128 requests are waiting")
    expect(tab.locator(".message .text")).to_have_text(["Hi"])
    tab.reload()
    expect(tab.get_by_role("alert")).to_contain_text("the server is busy: 128 requests are waiting")
    click(tab, "Try again")
    expect(ended(last_reply(tab)).locator(".text")).to_have_text("now")
    expect(tab.get_by_role("alert")).to_have_count(0)
    assert [said(body) for body in fake.asked] == [[("user", "Hi")]] * 2


@needs_browser
def test_an_answer_that_is_not_the_servers_is_told_by_its_status(tab: Page, fake: Fake) -> None:
    page = {"Content-Type": "text/html"}
    fake.replies = [lambda handler: handler.answer(502, b"<h1>Bad gateway</h1>", page)]
    draft(tab).fill("Hi")
    draft(tab).press("Enter")
    expect(tab.locator("#failure-text")).to_have_text("The server answered 502 Bad Gateway")


ENDINGS = {
    "error": ([{"error": {"message": "the engine has failed"}}, DONE], "the engine has failed"),
    "end": ([], "The connection was cut before the reply had ended."),
    "cut": ([CUT], "The connection was cut before the reply had ended."),
    "half": ([b'data: {"choices": [{"delta": {"con'], "The connection was cut before the reply had ended."),
    "nonsense": ([b"data: {]\n\n"], "The server sent something that is not JSON."),
}


@needs_browser
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("come", ["", "So far, "])
def test_a_stream_that_breaks_keeps_what_has_come(tab: Page, fake: Fake, ending: str, come: str) -> None:
    steps, message = ENDINGS[ending]
    shown = threading.Event()
    fake.replies = [streamed(piece(come), shown, *steps), says("so good")]
    reply = say(tab, "Hi")
    expect(reply.locator(".text")).to_have_text(come)
    shown.set()
    expect(tab.locator("#failure-text")).to_have_text(message)
    expect(tab.locator(".message .text")).to_have_text(["Hi", "So far,"] if come else ["Hi"])
    draft(tab).fill("typed meanwhile")
    click(tab, "Try again")
    expect(tab.locator(".message .text")).to_have_text(["Hi", "so good"])
    assert said(fake.asked[1]) == [("user", "Hi")]
    expect(draft(tab)).to_have_value("typed meanwhile")


@needs_browser
def test_a_server_that_is_gone_is_said_and_tried_again(context: BrowserContext) -> None:
    server = Fake()
    tab = opened(context, server.url)
    ended(say(tab, "One"))
    server.stop()
    draft(tab).fill("Two")
    draft(tab).press("Enter")
    expect(tab.locator("#failure-text")).to_contain_text("The server cannot be reached.")
    expect(tab.locator(".user .text")).to_have_text(["One", "Two"])
    click(tab, "Try again")
    expect(tab.locator("#failure-text")).to_contain_text("The server cannot be reached.")
    server = Fake(server.server_port)
    click(tab, "Try again")
    expect(tab.locator("#failure")).to_be_hidden()
    expect(ended(last_reply(tab)).locator(".text")).to_have_text("all right")
    assert said(server.asked[0]) == [("user", "One"), ("assistant", "all right"), ("user", "Two")]
    server.stop()


@needs_browser
def test_a_key_is_asked_for_where_the_server_wants_one(context: BrowserContext, fake: Fake) -> None:
    fake.key = "secret"
    tab = context.new_page()
    tab.goto(fake.url)
    expect(tab.locator("#failure-text")).to_have_text("the API key is missing or wrong")
    tab.get_by_label("API key").fill("wrong")
    click(tab, "Try again")
    expect(tab.locator("#failure-text")).to_have_text("the API key is missing or wrong")
    tab.get_by_label("API key").fill("secret")
    tab.get_by_label("API key").press("Enter")
    expect(tab.locator("#model")).to_have_text("tiny")
    expect(tab.locator("#failure")).to_be_hidden()
    expect(ended(say(tab, "Hi")).locator(".text")).to_have_text("all right")
    fake.key = "other"
    draft(tab).fill("More")
    draft(tab).press("Enter")
    expect(tab.locator(".user .text")).to_have_text(["Hi", "More"])
    tab.get_by_label("API key").fill("other")
    click(tab, "Try again")
    expect(tab.locator(".reply")).to_have_count(2)
    tab.reload()
    expect(tab.locator("#model")).to_have_text("tiny")
    assert "other" not in json.dumps(exported(tab))


# ----------------------------------------------------------------------------------------------------------
# How it looks and sounds


@needs_browser
def test_a_reader_who_scrolled_away_stays_there(tab: Page, fake: Fake) -> None:
    first, second, third = (threading.Event() for _ in range(3))
    lines = "\n\n".join(f"line {i}" for i in range(100))
    steps = [piece(lines), first, piece("\n\nnear end"), second, piece(lines), third, piece("\n\nend")]
    fake.replies = [streamed(*steps, END, DONE)]
    where = "(n => [n.scrollTop, n.scrollHeight - n.clientHeight])(document.getElementById('scroll'))"

    def at_end() -> bool:
        top, most = tab.evaluate(where)
        return top > 0 and most - top < 2

    reply = say(tab, "Hi")
    expect(reply).to_contain_text("line 99")
    first.set()
    expect(reply).to_contain_text("near end")
    assert at_end(), "it follows"
    tab.locator("#scroll").hover()
    tab.mouse.wheel(0, -800)
    expect(tab.get_by_role("button", name="To the end")).to_be_visible()
    top, most = tab.evaluate(where)
    second.set()
    expect(reply.get_by_text("line 50", exact=True)).to_have_count(2)
    after, more = tab.evaluate(where)
    assert after == top and more > most + 500, "it has grown, and the reader is where they were"
    click(tab, "To the end")
    assert at_end()
    third.set()
    expect(ended(reply).locator("p").filter(has_text=re.compile("^end$"))).to_have_count(1)
    assert at_end(), "it follows again"


def background(tab: Page) -> int:
    """How light the page is: 0 to 765."""
    color = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in re.findall(r"\d+", color)[:3])


@needs_browser
def test_the_theme_is_the_systems_unless_it_is_chosen(tab: Page) -> None:
    for scheme, light in (("dark", False), ("light", True)):
        tab.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert (background(tab) > 500) == light
    click(tab, "Theme: auto")
    tab.emulate_media(color_scheme="dark")
    assert background(tab) > 500
    click(tab, "Theme: light")
    tab.emulate_media(color_scheme="light")
    assert background(tab) < 200
    tab.reload()
    expect(tab.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert background(tab) < 200


LONG = f"""{"verylongword" * 30}

| {"a wide column |" * 12}
|{"---|" * 12}
| {"a value |" * 12}

```
{"a long line of code " * 20}
```

https://example.org/{"path" * 60} `{"code" * 60}`
"""


@needs_browser
@pytest.mark.parametrize("scale", [1, 2])
def test_nothing_overflows_on_a_phone(tab: Page, fake: Fake, scale: int) -> None:
    fake.replies = [streamed(piece(LONG, logprobs=TOKENS, reasoning_content=LONG), END, usage(3, 1), DONE)]
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.evaluate(f"document.documentElement.style.fontSize = '{16 * scale}px'")
    reply = ended(say(tab, LONG))
    reply.get_by_text("Reasoning").click()
    click(tab, "Settings")
    size = "n => parseFloat(getComputedStyle(n).fontSize)"
    sizes = [text.evaluate(size) for text in reply.locator("p").all()]
    assert max(sizes) == 16 * scale, "texts grow with the browser's"
    wide = """
        [...document.querySelectorAll("html, #room, #scroll, header, #composer, #settings")]
          .filter(node => node.scrollWidth > node.clientWidth).map(node => node.id || node.tagName)"""
    assert tab.evaluate(wide) == []
    buttons = [tab.get_by_role("button", name=name) for name in ("Chats", "Settings", "Send")]
    for node in (draft(tab), *buttons):
        box = node.bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 360
    click(reply, "Show probabilities")
    for token in reply.locator(".token").all():
        token.focus()
        box = tab.get_by_role("tooltip").bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 360
        assert box["y"] >= 0 and box["y"] + box["height"] <= 740


@needs_browser
def test_the_list_is_a_drawer_on_a_phone(tab: Page) -> None:
    ended(say(tab, "One"))
    tab.set_viewport_size({"width": 360, "height": 740})
    menu = tab.get_by_role("button", name="Chats", exact=True)
    expect(titles(tab)).not_to_be_visible()
    menu.click()
    expect(menu).to_have_attribute("aria-expanded", "true")
    expect(titles(tab)).to_be_visible()
    tab.keyboard.press("Escape")
    expect(titles(tab)).not_to_be_visible()
    menu.click()
    titles(tab).click()
    expect(titles(tab)).not_to_be_visible()
    expect(menu).to_have_attribute("aria-expanded", "false")
    menu.click()
    click(tab, "New conversation")
    expect(titles(tab)).not_to_be_visible()
    expect(tab.locator(".message")).to_have_count(0)


@needs_browser
def test_everything_has_a_name_and_new_text_is_read_politely(tab: Page, fake: Fake) -> None:
    code = piece("```\nx\n```", logprobs=TOKENS, reasoning_content="h")
    fake.replies = [streamed(code, END, DONE), fails(401, "no")]
    click(tab, "Settings")
    ended(say(tab, "One"))
    draft(tab).fill("Two")
    draft(tab).press("Enter")
    expect(tab.get_by_role("alert")).to_be_visible()
    unnamed = """
        [...document.querySelectorAll("button, input, textarea, [tabindex='0'], nav")].filter(node => {
          const label = node.getAttribute("aria-label");
          return !label && !node.textContent.trim() && !node.labels?.length;
        }).map(node => node.outerHTML)"""
    assert tab.evaluate(unnamed) == []
    expect(tab.get_by_role("log")).to_have_attribute("aria-live", "polite")
    assert tab.locator("html").get_attribute("lang") == "en"
